"""What all figures share: one style, colours that the colour-blind can tell apart (Okabe and Ito),
a canvas, text from outside, and the two ways to draw numbers: dots and a heat map."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from m5lib.modalities import MODALITIES

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RIGHT, WRONG, QUIET, TRUE = PALETTE[0], PALETTE[1], "#8a8a8a", PALETTE[2]
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "font.size": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
}


def colour(name: str) -> str:
    """The colour of a modality, the same in every figure."""
    return PALETTE[list(MODALITIES).index(name) % len(PALETTE)]


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the project's style without changing anybody else's."""

    @wraps(draw)
    def wrapped(*arguments, **settings) -> Figure:
        with plt.rc_context(STYLE):
            return draw(*arguments, **settings)

    return wrapped


def canvas(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 3.2), **settings):
    """A figure of ``size`` inches and its (rows, columns) axes, in the project's style. The caller
    shows or saves it: nothing is drawn twice in a notebook."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **settings)
    plt.close(figure)
    return figure, axes


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


def plain(text: object) -> str:
    """Text from outside as matplotlib shows it letter by letter. All titles, labels and attributes
    of products go through here: two dollar signs would else be set as mathematics, or end the
    drawing with an error."""
    return str(text).replace("$", r"\$")


def short(text: object, lines: int, width: int = 20) -> str:
    """:func:`plain` text in at most so many lines of ``width`` characters; an ellipsis where it is
    cut."""
    return plain("\n".join(textwrap.wrap(str(text), width, max_lines=lines, placeholder="…")))


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
        digits: of the mean, written at the right end; None: not written.
        chance: where a dotted line stands.
        label: the name of the series in a legend.

    Returns:
        the right end of what is drawn.
    """
    lines, mean = np.arange(len(values)) + shift, values.mean(axis=1)
    several = values.shape[1] > 1
    error = values.std(axis=1) if several else None
    if bars:
        style = {"xerr": error, "error_kw": {"elinewidth": 1.2}}
        axes.barh(lines, mean, height, color=paint, label=label, **style)
    else:
        style = {"fmt": "D", "ms": 5, "capsize": 3}
        axes.errorbar(mean, lines, xerr=error, color=paint, label=label, **style)
    for seed in values if several else ():
        below = lines if bars else lines + 0.22
        axes.scatter(values[seed], below, s=9, color=point, zorder=3)
    ends = np.fmax(values.max(axis=1), mean + (0 if error is None else error.fillna(0)))
    for y, value, end in zip(lines, mean, ends, strict=True):
        if digits is not None and value == value:
            at = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            axes.annotate(f"{value:.{digits}f}", (end, y), (5, 0), **at)
    names = [plain(name) for name in values.index]
    top = -0.6 if chance is None else -1.1
    axes.set(yticks=range(len(values)), yticklabels=names, ylim=(len(values) - 0.4, top))
    if chance is not None:
        axes.axvline(chance, color=QUIET, ls=":")
        at = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": QUIET}
        axes.annotate("chance", (chance, -0.78), (3, 0), **at)
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
    """A matrix as a heat map with its numbers in it.

    Args:
        matrix: (R, C); ``rows`` and ``columns``: their names.
        norm: the ends of the colours, or a matplotlib norm.
        said: what is written for a number, ``size`` points high.
    """
    matrix = np.asarray(matrix, dtype=float)
    norm = Normalize(*norm, clip=True) if isinstance(norm, tuple) else norm
    image = axes.imshow(matrix, cmap=cmap, norm=norm, aspect=aspect)
    names = [[plain(name) for name in side] for side in (columns, rows)]
    axes.set(xticks=range(len(names[0])), xticklabels=names[0])
    axes.set(yticks=range(len(names[1])), yticklabels=names[1])
    axes.spines[:].set_visible(False)
    for (y, x), value in np.ndenumerate(matrix):
        light = image.to_rgba(value)[:3] @ np.array([0.299, 0.587, 0.114]) > 0.5
        ink = "black" if light else "white"
        axes.text(x, y, said(value), ha="center", va="center", color=ink, fontsize=size)


def codes_of(names: Sequence[str]) -> list[str]:
    """The short names of modalities, for ticks."""
    return [MODALITIES[name].code for name in names]
