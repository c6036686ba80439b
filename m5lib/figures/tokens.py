"""Figures of tokens and masks. What is hidden is dark or hatched, what is true of the product
green. Every mark of a hidden token has the ``gid`` ``hidden``, so that a test can count them."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from m5lib.data import MediaFile
from m5lib.data.m5features import StoredRegions, StoredRows
from m5lib.figures.style import (
    PALETTE,
    QUIET,
    TRUE,
    blank,
    canvas,
    families,
    page,
    plain,
    styled,
)
from m5lib.modalities import MODALITIES
from m5lib.streams import Streams

#: What became of a word piece, how its chip is painted (face, edge, letters), and the legend.
CHIPS = {
    "seen": ("#eeeeee", "#eeeeee", "#222222", "read as it is"),
    "masked": ("#222222", "#222222", "white", "[MASK]"),
    "random": (PALETTE[1], PALETTE[1], "white", "another piece"),
    "kept": ("white", PALETTE[0], PALETTE[0], "kept, yet predicted"),
    "special": ("white", "#cccccc", QUIET, ""),
}
SIZE = 9.0  # of a chip's letters, in points; DejaVu Sans Mono is 0.602 wide
LETTER, PAD, GAP, LINE = 0.602 * SIZE / 72, 0.05, 0.06, 0.27  # inches
Values = Sequence | np.ndarray
SHEET = {"fc": "#d0d0d0", "ec": "#333333", "hatch": "////", "lw": 1.2, "alpha": 0.92, "zorder": 3}


def drawable(streams: Streams, row: int | np.integer) -> dict[str, object]:
    """What a product has and can be drawn: no features in the place of media (official data), and
    no file that is gone since it was read."""
    stored = (StoredRegions.__name__, StoredRows.__name__)
    bare = [name for name, made in streams.settings.items() if made["extractor"] in stored]
    contents = streams.catalogue.products[row].contents.items()
    gone = [n for n, file in contents if isinstance(file, MediaFile) and not file.path.exists()]
    return {name: content for name, content in contents if name not in (*bare, *gone)}


def as_read(title: str) -> str:
    """As much of a title as the model reads (:func:`m5lib.streams.word_pieces`)."""
    return title[: 20 * MODALITIES["text"].max_tokens]


class Pieces(NamedTuple):
    """Word pieces as the model reads them, and what became of each: a key of :data:`CHIPS`."""

    read: Sequence[str]
    fate: Sequence[str]


def fates(
    before: Sequence[str], after: Sequence[str], chosen: Values, entity: Values, mask: str
) -> Pieces:
    """What became of the word pieces of a stream; ``entity``: -1 where none may be."""
    fate = []
    for old, new, picked, number in zip(before, after, chosen, entity, strict=True):
        changed = "masked" if new == mask else "random" if new != old else "kept"
        fate.append(changed if picked else "special" if number < 0 else "seen")
    return Pieces(list(after), fate)


# --- words


def chip_width(text: str) -> float:
    """Width of a chip in inches."""
    wide = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
    return wide * LETTER + 2 * PAD


def chip(
    axes: Axes, x: float, y: float, text: str, look: Sequence, true: bool = False, **settings
) -> float:
    """A word piece in a rounded box; returns its width. ``x`` is its left end, ``y`` its middle, in
    inches (:func:`m5lib.figures.style.page`); ``look``: colours of face, edge and letters; ``true``
    ones are underlined in green; ``settings``: of the box."""
    (face, edge, ink, *_), width = look, chip_width(text)
    settings = {"fc": face, "ec": edge, "lw": 1.2} | settings
    style = "round,pad=0,rounding_size=0.04"
    axes.add_patch(FancyBboxPatch((x, y - 0.1), width, 0.2, boxstyle=style, **settings))
    letters = {"color": ink, "fontsize": SIZE, "family": ["DejaVu Sans Mono", *families()]}
    axes.text(x + width / 2, y, plain(text), ha="center", va="center_baseline", **letters)
    if true:
        axes.plot([x, x + width], [y + 0.135] * 2, color=TRUE, lw=2.5, solid_capstyle="butt")
    return width


def _piece(axes: Axes, x: float, y: float, text: str, fate: str, true: bool = False) -> None:
    gid = "hidden" if fate in ("masked", "random", "kept") else None
    chip(axes, x, y, text, CHIPS[fate], true, gid=gid)


def _say(axes: Axes, x: float, y: float, text: str, **settings) -> None:
    axes.text(x, y, text, va="center_baseline", **{"fontsize": SIZE} | settings)


def _legend(axes: Axes, x: float, y: float, true: bool) -> None:
    for *look, said in CHIPS.values():
        x += chip(axes, x, y, said, look) + 2 * GAP if said else 0
    if true:
        axes.plot([x, x + 0.3], [y, y], color=TRUE, lw=2.5)
        _say(axes, x + 0.36, y, "names the category")


@styled
def words(pieces: Sequence[str], draws: Sequence[Pieces], true: Values = ()) -> Figure:
    """A title's word pieces, and below them what the model reads in some draws of the mask.
    ``true``: pieces that name the category."""
    true = np.asarray(true, dtype=bool) if len(true) else np.zeros(len(pieces), bool)
    first = [fate if fate == "special" else "seen" for fate in draws[0].fate]
    lines = [Pieces(pieces, first), *draws]
    width, margin, blocks, left = 9.5, 0.75, [[]], 0.75
    for n in range(len(pieces)):
        wide = max(chip_width(line.read[n]) for line in lines)
        if left + wide > width and blocks[-1]:
            blocks, left = [*blocks, []], margin
        blocks[-1].append((n, left))
        left += wide + GAP
    tall = len(lines) * LINE + 0.2
    figure, axes = page(width, 0.35 + tall * len(blocks) + 0.2)
    for place, block in enumerate(blocks):
        for number, line in enumerate(lines):
            y = 0.2 + place * tall + number * LINE + (0.06 if number else 0.0)
            look = {"color": QUIET} if number else {"fontweight": "bold"}
            _say(axes, 0.02, y, f"draw {number}" if number else "title", **look)
            for n, x in block:
                _piece(axes, x, y, line.read[n], line.fate[n], bool(true[n]) and number == 0)
    _legend(axes, margin, 0.2 + len(blocks) * tall + 0.12, bool(true.any()))
    return figure


def _cell(
    axes: Axes | None, x: float, y: float, width: float, chips: Sequence, true: bool = False
) -> int:
    """Chips (text, fate) from ``x``, broken into lines of ``width``; returns the number of lines.
    Without axes it only counts."""
    lines, at = 1, x
    for text, fate in chips:
        if at > x and at + chip_width(text) > x + width:
            lines, at = lines + 1, x
        if axes is not None:
            _piece(axes, at, y + (lines - 1) * LINE, text, fate, true)
        at += chip_width(text) + GAP / 2
    return lines


@styled
def tables(
    entity: Values, panels: Mapping[str, tuple[Sequence[str], Pieces]], true: Values = ()
) -> Figure:
    """A table under several masks: properties left, values right, chips are word pieces.

    Args:
        entity: of each piece, even for a property, odd for its value, -1 for neither.
        panels: title -> (the pieces before, :class:`Pieces` after). A hidden piece still shows what
            it was: ``[MASK]`` by its dark chip, another piece as ``old→new``.
        true: numbers of the pairs that name the category.
    """
    entity, width = np.asarray(entity), 4.7
    pairs = range(int(entity.max(initial=-1)) // 2 + 1)
    cells = {}  # title, pair, side -> chips
    for title, (before, after) in panels.items():
        for n in np.flatnonzero(entity >= 0):
            old, fate = before[n], after.fate[n]
            text = f"{old}→{after.read[n]}" if fate == "random" else old
            cells.setdefault((title, *divmod(int(entity[n]), 2)), []).append((text, fate))
    sides = (0.08, 0.42 * width - 0.15), (0.08 + 0.42 * width, 0.58 * width - 0.2)  # left, width
    lines = [
        max(_cell(None, 0, 0, sides[key[2]][1], cells[key]) for key in cells if key[1] == pair)
        for pair in pairs
    ]
    tall = 0.55 + sum(lines) * LINE + 0.08 * len(lines)
    figure, axes = page(width * len(panels), tall + 0.35)
    for place, title in enumerate(panels):
        start, end, y = place * width + 0.08, (place + 1) * width - 0.12, 0.62
        _say(axes, start, 0.17, title, fontsize=10.5, fontweight="bold")
        axes.plot([start, end], [0.37] * 2, color=QUIET, lw=1)
        for pair in pairs:
            for side, (left, space) in enumerate(sides):
                chips = cells.get((title, pair, side), [])
                _cell(axes, place * width + left, y, space, chips, pair in true)
            y += lines[pair] * LINE + 0.08
            axes.plot([start, end], [y - 0.175] * 2, color="#dddddd", lw=0.7)
    _legend(axes, 0.08, tall + 0.12, len(true) > 0)
    return figure


# --- pictures and sound


def frame(axes: Axes, box, color: str, **settings) -> None:
    """The outline of a box x1, y1, x2, y2."""
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, **settings))


def _cover(axes: Axes, x: float, y: float, width: float, height: float) -> None:
    """A hatched grey sheet over what is hidden."""
    axes.add_patch(Rectangle((x, y), width, height, gid="hidden", **SHEET))


def _strips(upper: float, lower: float, width: float) -> tuple:
    """A figure of two strips, as high as is said in inches."""
    figure = blank(width, upper + lower)
    return figure, *figure.subfigures(2, 1, height_ratios=(upper, lower))


def _thumbnails(axes: np.ndarray, pictures, hidden: np.ndarray, titles: Sequence[str]) -> None:
    """Small pictures in a row, the hidden ones covered."""
    for place in axes:
        place.axis("off")
    for place, picture, gone, title in zip(axes, pictures, hidden, titles, strict=False):
        place.imshow(picture)
        if gone:
            height, width = np.shape(picture)[:2]
            _cover(place, -0.5, -0.5, width, height)
        place.set_title(title, fontsize=8, fontweight="bold" if gone else "normal")


@styled
def regions(
    picture: np.ndarray,
    boxes: np.ndarray,
    hidden: np.ndarray,
    groups: Sequence[int] = (),
    true: Values = (),
) -> Figure:
    """Regions on the picture, a panel per scale, the hidden ones hatched; below, their crops.

    Args:
        picture: (H, W, 3) uint8; ``boxes`` (L, 4 or 5) x1, y1, x2, y2 in fractions of it, ``true``
            that of the product; ``hidden`` (L,) bool.
        groups: how many boxes go into each panel, in their order; all into one, if not given.
    """
    height, width = picture.shape[:2]
    boxes = boxes[:, :4] * ([width, height] * 2)
    groups = list(groups) if sum(groups) == len(boxes) else [len(boxes)]
    columns, shape = min(18, len(boxes)), 9.0 * height / width
    lines = -(-len(boxes) // columns)
    upper, lower = shape / (len(groups) + 1) + 0.35, lines * (shape / columns + 0.2)
    figure, upper, lower = _strips(upper, lower, 9.0)
    panels = upper.subplots(1, len(groups) + 1)
    for place in panels:
        place.imshow(picture)
        place.axis("off")
    panels[0].set_title("picture" + (", its product (truth)" if len(true) else ""), fontsize=9)
    if len(true):
        frame(panels[0], np.asarray(true) * ([width, height] * 2), TRUE, lw=3, ls="--")
    for place, count, end in zip(panels[1:], groups, np.cumsum(groups), strict=True):
        for n in range(end - count, end):
            inset = 0.006 * np.array([width, height, -width, -height])
            x1, y1, x2, y2 = box = boxes[n] + inset
            if hidden[n]:
                _cover(place, x1, y1, x2 - x1, y2 - y1)
            frame(place, box, "white", lw=2.6, zorder=2)
            frame(place, box, PALETTE[0], lw=1.3, zorder=2)
            note = {"fc": "#222222" if hidden[n] else PALETTE[0], "ec": "none", "pad": 1.2}
            look = {"color": "white", "fontsize": 8, "ha": "center", "va": "center", "zorder": 4}
            place.text((x1 + x2) / 2, (y1 + y2) / 2, n + 1, bbox=note, **look)
        gone = hidden[end - count : end].sum()
        place.set_title(f"{count} region{'s' * (count > 1)}, {gone} hidden", fontsize=9)
    pixels = boxes.round().astype(int)
    crops = [picture[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] for x1, y1, x2, y2 in pixels]
    cells = lower.subplots(lines, columns, squeeze=False).ravel()
    _thumbnails(cells, crops, hidden, [str(n + 1) for n in range(len(boxes))])
    return figure


def _spans(axes: Axes, spans, y: float, height: float) -> None:
    look = {"fc": TRUE, "ec": "white", "lw": 1, "clip_on": False}
    for start, end in spans:
        axes.add_patch(Rectangle((start, y), end - start, height, **look))


@styled
def film(frames: np.ndarray, times: np.ndarray, hidden: np.ndarray, spans: Sequence = ()) -> Figure:
    """A film strip with one frame per token (L, H, W, 3), uint8, and its time in seconds, the
    hidden ones hatched; below, when they were taken. ``spans``: (n, 2) seconds in which the film
    shows something of the product."""
    count, side = len(frames), min(1.5, 9.0 / len(frames))
    tall = side * frames.shape[1] / frames.shape[2] + 0.25
    figure, upper, lower = _strips(tall, 0.7, side * count + 0.2)
    titles = [f"{n + 1} · {t:.1f} s" if side > 0.8 else f"{t:.1f} s" for n, t in enumerate(times)]
    _thumbnails(upper.subplots(1, count, squeeze=False)[0], frames, hidden, titles)
    axes = lower.subplots()
    _spans(axes, spans, -0.9, 0.5)
    gone = {"facecolor": "#d0d0d0", "edgecolor": "#333333", "marker": "X", "s": 45}
    axes.scatter(times[~hidden], np.zeros((~hidden).sum()), color=PALETTE[0], s=30)
    axes.scatter(times[hidden], np.zeros(hidden.sum()), **gone)
    end = max(float(times.max()) + 0.5, *(float(span[1]) for span in spans), 0.0)
    label = "seconds" + (" (green: making and using are shown)" if len(spans) else "")
    axes.set(xlim=(0, end), ylim=(-1, 0.6), yticks=[], xlabel=label)
    axes.spines["left"].set_visible(False)
    return figure


@styled
def spectrogram(
    decibels: np.ndarray,
    step: float,
    tokens: np.ndarray,
    length: float,
    hidden: np.ndarray,
    spans: Sequence = (),
) -> Figure:
    """The sound, ``decibels`` (T, bands) every ``step`` seconds, with the tokens' boundaries, the
    hidden ones hatched; below, the tokens (L, F) every ``length`` seconds as the model reads them.
    ``spans``: (n, 2) seconds in which the sound tells something of the product."""
    count, width = tokens.shape
    bands, end, last = decibels.shape[1], len(decibels) * step, count * length
    figure, axes = canvas(2, 1, (9.0, 4.4), sharex=True, height_ratios=(1.5, 1))
    above, below = axes[:, 0]
    flat = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    above.imshow(decibels.T, extent=(0, end, 0, bands), cmap="cividis", **flat)
    above.vlines(np.arange(count + 1) * length, 0, bands, color="white", lw=0.5, alpha=0.7)
    reach = np.percentile(np.abs(tokens[~hidden]), 98) if (~hidden).any() else 1.0
    paint = {"cmap": "PuOr", "vmin": -reach, "vmax": reach}
    below.imshow(tokens.T, extent=(0, last, 0, width), **paint, **flat)
    for n in np.flatnonzero(hidden):
        _cover(above, n * length, 0, min(length, end - n * length), bands)
        below.axvspan(n * length, (n + 1) * length, fc="white", ec="#333333", hatch="////", lw=1.0)
    _spans(above, spans, bands * 1.02, bands * 0.06)
    title = f"log-mel spectrogram, {count} tokens of {length:g} s, {hidden.sum()} hidden"
    title += " (green: making and using are heard)" if len(spans) else ""
    above.set_title(title, fontsize=9, pad=14)
    above.set(ylabel="mel band", xlim=(0, max(end, last)), ylim=(0, bands))
    below.set_title("what the model reads; hidden tokens are zeros", fontsize=9)
    below.set(xlabel="seconds", ylabel="feature")
    return figure
