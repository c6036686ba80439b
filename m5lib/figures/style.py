"""What all figures share: one style, colours that the colour-blind can tell apart (Okabe and Ito),
a canvas, text from outside, and the two ways to draw numbers: dots and a heat map."""

import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager, rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from m5lib.modalities import MODALITIES

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RIGHT, WRONG, QUIET, TRUE = PALETTE[0], PALETTE[1], "#8a8a8a", PALETTE[2]
STYLE = rc_params_from_file(Path(__file__).with_suffix(".mplstyle"), use_default_template=False)

#: Files of fonts that have Chinese, which matplotlib's own lacks: the first of these is taken.
CHINESE = "notosanscjk notosanssc sourcehansans wqy-microhei wqy-zenhei droidsansfallback".split()
CHINESE += "msyh simhei hiraginosansgb stheiti arialuni arialunicode".split()
INSTALL = "install one, such as Debian's fonts-noto-cjk, and start Python again"


def colour(name: str) -> str:
    """The colour of a modality, the same in every figure."""
    return PALETTE[list(MODALITIES).index(name) % len(PALETTE)]


def _style() -> dict:
    return {**STYLE, "font.family": families()}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the project's style without changing anybody else's."""

    @wraps(draw)
    def wrapped(*arguments, **settings) -> Figure:
        with plt.rc_context(_style()):
            return draw(*arguments, **settings)

    return wrapped


def canvas(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 3.2), **settings):
    """A figure of ``size`` inches and its (rows, columns) axes, in the project's style. The caller
    shows or saves it: nothing is drawn twice in a notebook."""
    with plt.rc_context(_style()):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **settings)
    plt.close(figure)
    return figure, axes


def blank(width: float, height: float, **settings) -> Figure:
    """A figure of so many inches without axes. As :func:`canvas` by pyplot: one that is not may be
    the first of a notebook, and is then not shown."""
    figure = plt.figure(figsize=(width, height), **settings)
    plt.close(figure)
    return figure


def page(width: float, height: float) -> tuple[Figure, Axes]:
    """A page measured in inches, the origin at the top left, without axes to be seen."""
    figure, ((axes,),) = canvas(size=(width, height))
    axes.set_position((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def inset(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place of a figure, in inches from the top left."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


# --- text


@cache
def families() -> list[str]:
    """The fonts that text is drawn in, the next for what the ones before lack: matplotlib's, and
    one of :data:`CHINESE`, where one is installed (after matplotlib's list of fonts was made,
    too)."""
    files = {Path(x).stem.lower().replace(" ", ""): x for x in font_manager.findSystemFonts()}
    for name in CHINESE:
        if found := [path for stem, path in sorted(files.items()) if stem.startswith(name)]:
            for path in found:  # its weights
                font_manager.fontManager.addfont(path)
            return ["DejaVu Sans", font_manager.get_font(found[0]).family_name]
    return ["DejaVu Sans"]


@cache
def _drawn() -> frozenset[str]:
    """The letters that these fonts have, and the end of a line."""
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in families()]
    return frozenset({"\n"}.union(*(map(chr, font.get_charmap()) for font in fonts)))


@cache
def _warn() -> None:  # once
    said = "no font that is installed has some letters of these products; figures show □ for them"
    warnings.warn(f"{said}. For Chinese {INSTALL}", stacklevel=3)


def plain(text: object) -> str:
    """Text from outside as matplotlib shows it letter by letter. All titles, labels and attributes
    of products go through here: else two dollar signs are mathematics, or an error, and each letter
    that no font has is a warning (one for all here, and □ in its place)."""
    text = str(text).replace("$", r"\$")
    if text.isascii() or _drawn().issuperset(text):
        return text
    _warn()
    return "".join(letter if letter in _drawn() else "□" for letter in text)


def short(text: object, lines: int, width: int = 20) -> str:
    """:func:`plain` text, :func:`cut`."""
    return plain(cut(text, lines, width))


def cut(text: object, lines: int, width: int = 20) -> str:
    """Text in at most so many lines of ``width`` characters; an ellipsis where it is cut."""
    kept = textwrap.wrap(str(text), width, max_lines=lines, placeholder="…")
    if kept[-1:] == ["…"]:  # one long word, or a language without spaces
        kept[-1] = textwrap.wrap(str(text), width)[len(kept) - 1][: width - 1] + "…"
    return "\n".join(kept)


def heading(figure: Figure, text: str) -> None:
    """A title over all panels of a figure."""
    if text:
        figure.suptitle(text, fontsize=11, fontweight="bold")


def legend_beside(axes: Axes, **settings) -> None:
    """A legend to the right of the axes."""
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **settings)


def nothing(axes: Axes, text: str) -> None:
    """A sentence in place of a drawing."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


# --- numbers


def dots(
    axes: Axes,
    values: pd.DataFrame,
    paint,
    *,
    point: str = PALETTE[0],
    bars: bool = True,
    shift: float = 0.0,
    height: float = 0.7,
    digits: int | None = 3,
    chance: float | None = None,
    label: str | None = None,
) -> float:
    """One line per row: the mean as a bar (or a diamond), its standard deviation, a dot per seed.

    Args:
        values: (rows, seeds); a row of NaN stays empty.
        paint: the colour of all bars, or one for each; ``point``: that of the dots.
        shift: how far below its line the row is drawn, where several series share the lines.
        digits: of the mean, written at the right end, which is returned; None: not written.
        chance: where a dotted line stands.
    """
    lines, mean = np.arange(len(values)) + shift, values.mean(axis=1)
    several = values.shape[1] > 1
    look = {"xerr": values.std(axis=1) if several else None, "color": paint, "label": label}
    if bars:
        axes.barh(lines, mean, height, error_kw={"elinewidth": 1.2}, **look)
    else:
        axes.errorbar(mean, lines, fmt="D", ms=5, capsize=3, **look)
    for seed in values if several else ():
        axes.scatter(values[seed], lines + (0 if bars else 0.22), s=9, color=point, zorder=3)
    at = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    ends = np.fmax(values.max(axis=1), mean + values.std(axis=1).fillna(0))
    for y, value, end in zip(lines, mean, ends, strict=True):
        if digits is not None and value == value:
            axes.annotate(f"{value:.{digits}f}", (end, y), (5, 0), **at)
    axes.set_yticks(range(len(values)), [plain(name) for name in values.index])
    axes.set_ylim(len(values) - 0.4, -0.6 if chance is None else -1.1)
    if chance is not None:
        axes.axvline(chance, color=QUIET, ls=":")
        axes.annotate("chance", (chance, -0.78), (3, 0), color=QUIET, **at)
    return float(ends.max())


def heat(
    axes: Axes,
    matrix: np.ndarray,
    rows: Iterable,
    columns: Iterable,
    *,
    cmap="Blues",
    norm: Normalize | tuple[float, float] = (0.0, 1.0),
    said: Callable[[float], str] = "{:.2f}".format,
    size: float = 9,
    aspect: str = "auto",
) -> None:
    """A matrix (R, C) as a heat map with its numbers in it, written by ``said``, ``size`` points
    high. ``norm``: the ends of the colours, or a matplotlib norm."""
    matrix = np.asarray(matrix, dtype=float)
    norm = Normalize(*norm, clip=True) if isinstance(norm, tuple) else norm
    image = axes.imshow(matrix, cmap=cmap, norm=norm, aspect=aspect)
    rows, columns = ([plain(name) for name in side] for side in (rows, columns))
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    for (y, x), value in np.ndenumerate(matrix):
        light = image.to_rgba(value)[:3] @ np.array([0.299, 0.587, 0.114]) > 0.5
        ink = "black" if light else "white"
        axes.text(x, y, said(value), ha="center", va="center", color=ink, fontsize=size)


def codes_of(names: Sequence[str]) -> list[str]:
    """The short names of modalities, for ticks."""
    return [MODALITIES[name].code for name in names]
