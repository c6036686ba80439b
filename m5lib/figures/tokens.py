"""Figures of tokens and masks: takes arrays, returns a Figure. What is hidden is dark or hatched,
what is true of the product green.

Every mark of a hidden token carries the ``gid`` ``hidden``, so that a test can count them.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from m5lib.figures.style import PALETTE, QUIET, canvas, styled

TRUE = PALETTE[2]
#: What became of a word piece, and how its chip is painted: face, edge, letters.
CHIPS = {
    "seen": ("#eeeeee", "#eeeeee", "#222222"),
    "special": ("white", "#cccccc", QUIET),
    "masked": ("#222222", "#222222", "white"),
    "random": (PALETTE[1], PALETTE[1], "white"),
    "kept": ("white", PALETTE[0], PALETTE[0]),
}
SAID = {
    "seen": "read as it is",
    "masked": "[MASK]",
    "random": "another piece",
    "kept": "kept, yet predicted",
}
SIZE = 9.0  # of the letters of a chip, in points
LETTER, PAD, GAP, LINE = (
    0.602 * SIZE / 72,
    0.05,
    0.06,
    0.27,
)  # inches; DejaVu Sans Mono is 0.602 wide


class Pieces(NamedTuple):
    """Word pieces as the model reads them, and what became of each: a key of :data:`CHIPS`."""

    read: Sequence[str]
    fate: Sequence[str]


def fates(
    before: Sequence[str],
    after: Sequence[str],
    chosen: Sequence | np.ndarray,
    entity: Sequence | np.ndarray,
    mask: str,
) -> Pieces:
    """What became of the word pieces of a stream; ``entity`` is -1 where a piece may not be
    chosen."""
    found = []
    for old, new, picked, number in zip(before, after, chosen, entity, strict=True):
        changed = "masked" if new == mask else "random" if new != old else "kept"
        found.append(changed if picked else "special" if number < 0 else "seen")
    return Pieces(list(after), found)


def _width(text: str) -> float:
    wide = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
    return wide * LETTER + 2 * PAD


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    """A page in inches, the origin at the top left."""
    figure, ((axes,),) = canvas(size=(width, height))
    axes.set_position((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def _chip(axes: Axes, x: float, y: float, text: str, fate: str, true: bool = False) -> float:
    """A chip with its left end at ``x``; returns its width."""
    face, edge, ink = CHIPS[fate]
    width = _width(text)
    gid = "hidden" if fate in ("masked", "random", "kept") else None
    axes.add_patch(
        FancyBboxPatch(
            (x, y - 0.1),
            width,
            0.2,
            boxstyle="round,pad=0,rounding_size=0.04",
            fc=face,
            ec=edge,
            lw=1.2,
            gid=gid,
        )
    )
    axes.text(
        x + width / 2,
        y,
        text,
        ha="center",
        va="center_baseline",
        color=ink,
        fontsize=SIZE,
        family="monospace",
    )
    if true:
        axes.plot([x, x + width], [y + 0.135] * 2, color=TRUE, lw=2.5, solid_capstyle="butt")
    return width


def _legend(axes: Axes, x: float, y: float, true: str = "") -> None:
    for fate, said in SAID.items():
        x += _chip(axes, x, y, said, fate) + 2 * GAP
        axes.patches[-1].set_gid(None)
    if true:
        axes.plot([x, x + 0.3], [y, y], color=TRUE, lw=2.5)
        axes.text(x + 0.36, y, true, va="center_baseline", fontsize=SIZE)


@styled
def words(
    pieces: Sequence[str],
    draws: Sequence[Pieces],
    true: Sequence[bool] | np.ndarray = (),
    width: float = 9.5,
) -> Figure:
    """A title's word pieces, and below them what the model reads in some draws of the mask.
    ``true``: pieces that name the category."""
    true = np.zeros(len(pieces), bool) if len(true) == 0 else np.asarray(true)
    columns = [
        max(_width(text) for text in (piece, *(d.read[n] for d in draws)))
        for n, piece in enumerate(pieces)
    ]
    blocks, left = [[]], 0.75
    for n, wide in enumerate(columns):
        if left + wide > width and blocks[-1]:
            blocks, left = [*blocks, []], 0.75
        blocks[-1].append((n, left))
        left += wide + GAP
    tall = (len(draws) + 1) * LINE + 0.2
    figure, axes = _page(width, 0.35 + tall * len(blocks) + 0.2)
    special = (
        [draws[0].fate[n] == "special" for n in range(len(pieces))]
        if draws
        else [False] * len(pieces)
    )
    for place, block in enumerate(blocks):
        top = 0.2 + place * tall
        axes.text(0.02, top, "title", va="center_baseline", fontsize=SIZE, fontweight="bold")
        for n, x in block:
            _chip(axes, x, top, pieces[n], "special" if special[n] else "seen", bool(true[n]))
        for number, draw in enumerate(draws):
            y = top + 0.06 + (number + 1) * LINE
            axes.text(
                0.02, y, f"draw {number + 1}", va="center_baseline", fontsize=SIZE, color=QUIET
            )
            for n, x in block:
                _chip(axes, x, y, draw.read[n], draw.fate[n])
    _legend(axes, 0.75, 0.2 + len(blocks) * tall + 0.12, "names the category" if true.any() else "")
    return figure


def _cell(
    axes: Axes | None,
    x: float,
    y: float,
    width: float,
    chips: Sequence[tuple[str, str]],
    true: bool = False,
) -> int:
    """Chips from ``x``, broken into lines of ``width``; returns the number of lines. Without axes
    it only counts."""
    lines, at = 1, x
    for text, fate in chips:
        if at > x and at + _width(text) > x + width:
            lines, at = lines + 1, x
        if axes is not None:
            _chip(axes, at, y + (lines - 1) * LINE, text, fate, true)
        at += _width(text) + GAP / 2
    return lines


@styled
def tables(
    entity: Sequence[int] | np.ndarray,
    panels: Mapping[str, tuple[Sequence[str], Pieces]],
    true: Sequence[int] | np.ndarray = (),
    width: float = 4.7,
) -> Figure:
    """A specification table side by side under several masks: properties left, values right, chips
    are word pieces.

    Args:
        entity: of each piece, even for a property, odd for its value, -1 for neither.
        panels: title -> (the pieces before, :class:`Pieces` after). A hidden piece still shows what
            it was: ``[MASK]`` by its dark chip, another piece as ``old→new``.
        true: numbers of the pairs that name the category.
    """
    entity = np.asarray(entity)
    pairs = range(int(entity.max(initial=-1)) // 2 + 1)
    shown = {}
    for title, (before, after) in panels.items():
        texts = [
            f"{old}→{new}" if fate == "random" else old
            for old, new, fate in zip(before, *after, strict=True)
        ]
        shown[title] = [
            [(texts[n], after.fate[n]) for n in np.flatnonzero(entity == number)]
            for number in range(2 * len(pairs))
        ]
    split = 0.42 * width
    heights = [
        max(
            _cell(None, 0, 0, space, cells[2 * pair + side])
            for cells in shown.values()
            for side, space in enumerate(spaces)
        )
        for pair in pairs
        for spaces in [(split - 0.15, width - split - 0.2)]
    ]
    tall = 0.55 + sum(heights) * LINE + 0.08 * len(heights)
    figure, axes = _page(width * len(shown), tall + 0.35)
    for place, (title, cells) in enumerate(shown.items()):
        x, y = 0.08 + place * width, 0.62
        axes.text(x, 0.17, title, va="center_baseline", fontsize=10.5, fontweight="bold")
        axes.plot([x, x + width - 0.2], [0.37] * 2, color=QUIET, lw=1)
        for pair, lines in zip(pairs, heights, strict=True):
            _cell(axes, x, y, split - 0.15, cells[2 * pair], pair in true)
            _cell(axes, x + split, y, width - split - 0.2, cells[2 * pair + 1], pair in true)
            y += lines * LINE + 0.08
            axes.plot([x, x + width - 0.2], [y - 0.175] * 2, color="#dddddd", lw=0.7)
    _legend(axes, 0.08, tall + 0.12, "names the category" if len(true) else "")
    return figure


def _cover(axes: Axes, x: float, y: float, width: float, height: float) -> None:
    """A hatched grey sheet over what is hidden."""
    axes.add_patch(
        Rectangle(
            (x, y),
            width,
            height,
            fc="#d0d0d0",
            ec="#333333",
            hatch="////",
            lw=1.2,
            alpha=0.92,
            gid="hidden",
            zorder=3,
        )
    )


def _thumbnails(
    axes: Sequence[Axes] | np.ndarray,
    pictures,
    hidden: Sequence[bool] | np.ndarray,
    titles: Sequence[str],
) -> None:
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
    hidden: Sequence[bool] | np.ndarray,
    groups: Sequence[int] = (),
    true: Sequence[float] | np.ndarray = (),
    columns: int = 18,
) -> Figure:
    """Region boxes on the picture, a panel per scale, the hidden ones hatched; below, each token's
    own crop.

    Args:
        picture: (H, W, 3) uint8; ``boxes`` (L, 4 or 5) x1, y1, x2, y2 in fractions of it;
            ``hidden`` (L,).
        groups: how many boxes go into each panel, in their order; all into one, if not given.
        true: the product's box.
    """
    height, width = picture.shape[:2]
    scale, hidden = np.array([width, height] * 2), np.asarray(hidden, dtype=bool)
    groups = list(groups) if sum(groups) == len(boxes) else [len(boxes)]
    columns = min(columns, len(boxes))
    lines = -(-len(boxes) // columns)
    side = 9.0 / (len(groups) + 1) * height / width
    figure = plt.figure(figsize=(9.0, side + 0.35 + lines * (9.0 / columns * height / width + 0.2)))
    plt.close(figure)
    upper, lower = figure.subfigures(
        2, 1, height_ratios=(side + 0.35, lines * (9.0 / columns * height / width + 0.2))
    )
    panels = upper.subplots(1, len(groups) + 1)
    for place in panels:
        place.imshow(picture)
        place.axis("off")
    panels[0].set_title("picture" + (", its product (truth)" if len(true) else ""), fontsize=9)
    if len(true):
        x1, y1, x2, y2 = np.asarray(true) * scale
        panels[0].add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=TRUE, lw=3, ls="--")
        )
    for place, count, end in zip(panels[1:], groups, np.cumsum(groups), strict=True):
        for n in range(end - count, end):
            x1, y1, x2, y2 = boxes[n, :4] * scale
            x1, y1, x2, y2 = (
                x1 + 0.006 * width,
                y1 + 0.006 * height,
                x2 - 0.006 * width,
                y2 - 0.006 * height,
            )
            if hidden[n]:
                _cover(place, x1, y1, x2 - x1, y2 - y1)
            place.add_patch(
                Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="white", lw=2.6, zorder=2)
            )
            place.add_patch(
                Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=PALETTE[0], lw=1.3, zorder=2)
            )
            note = {"fc": "#222222" if hidden[n] else PALETTE[0], "ec": "none", "pad": 1.2}
            place.text(
                (x1 + x2) / 2,
                (y1 + y2) / 2,
                n + 1,
                color="white",
                fontsize=8,
                ha="center",
                va="center",
                bbox=note,
                zorder=4,
            )
        place.set_title(
            f"{count} region{'s' * (count > 1)}, {hidden[end - count : end].sum()} hidden",
            fontsize=9,
        )
    pixels = (boxes[:, :4] * scale).round().astype(int)
    crops = [picture[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] for x1, y1, x2, y2 in pixels]
    _thumbnails(
        lower.subplots(lines, columns, squeeze=False).ravel(),
        crops,
        hidden,
        [str(n + 1) for n in range(len(boxes))],
    )
    return figure


def _spans(axes: Axes, spans, y: float, height: float) -> None:
    for start, end in spans:
        axes.add_patch(
            Rectangle((start, y), end - start, height, fc=TRUE, ec="white", lw=1, clip_on=False)
        )


@styled
def film(
    frames: np.ndarray,
    times: Sequence[float] | np.ndarray,
    hidden: Sequence[bool] | np.ndarray,
    spans: Sequence = (),
) -> Figure:
    """A film strip with one frame per token and its time, the hidden ones hatched; below, when they
    were taken.

    Args:
        frames: (L, H, W, 3) uint8; ``times`` (L,) seconds; ``hidden`` (L,).
        spans: (n, 2) seconds in which the film shows something of the product.
    """
    hidden, times = np.asarray(hidden, dtype=bool), np.asarray(times)
    count, shape = len(frames), frames.shape[1] / frames.shape[2]
    cell = min(1.5, 9.0 / count)
    figure = plt.figure(figsize=(cell * count + 0.2, cell * shape + 0.95))
    plt.close(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=(cell * shape + 0.25, 0.7))
    upper.set_facecolor("white")
    titles = [f"{n + 1} · {t:.1f} s" if cell > 0.8 else f"{t:.1f} s" for n, t in enumerate(times)]
    _thumbnails(upper.subplots(1, count, squeeze=False)[0], frames, hidden, titles)
    axes = lower.subplots()
    end = max(float(times.max()) + 0.5, max((float(span[1]) for span in spans), default=0.0))
    _spans(axes, spans, -0.9, 0.5)
    axes.scatter(times[~hidden], np.zeros((~hidden).sum()), color=PALETTE[0], s=30)
    axes.scatter(
        times[hidden],
        np.zeros(hidden.sum()),
        facecolor="#d0d0d0",
        edgecolor="#333333",
        marker="X",
        s=45,
    )
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
    hidden: Sequence[bool] | np.ndarray,
    spans: Sequence = (),
) -> Figure:
    """The sound over time with the tokens' boundaries, the hidden ones hatched; below, the tokens
    as the model reads them.

    Args:
        decibels: (T, bands), a row every ``step`` seconds.
        tokens: (L, F) features after masking, one every ``length`` seconds; ``hidden`` (L,).
        spans: (n, 2) seconds in which the sound tells something of the product.
    """
    end, bands = len(decibels) * step, decibels.shape[1]
    hidden = np.asarray(hidden, dtype=bool)
    figure, axes = canvas(2, 1, (9.0, 4.4), sharex=True, height_ratios=(1.5, 1))
    above, below = axes[:, 0]
    above.imshow(
        decibels.T,
        origin="lower",
        aspect="auto",
        extent=(0, end, 0, bands),
        cmap="cividis",
        interpolation="nearest",
    )
    above.vlines(np.arange(len(tokens) + 1) * length, 0, bands, color="white", lw=0.5, alpha=0.7)
    reach = np.percentile(np.abs(tokens[~hidden]), 98) if (~hidden).any() else 1.0
    place = (0, len(tokens) * length, 0, tokens.shape[1])
    below.imshow(
        tokens.T,
        origin="lower",
        aspect="auto",
        extent=place,
        cmap="PuOr",
        vmin=-reach,
        vmax=reach,
        interpolation="nearest",
    )
    for n in np.flatnonzero(hidden):
        _cover(above, n * length, 0, min(length, end - n * length), bands)
        below.axvspan(n * length, (n + 1) * length, fc="white", ec="#333333", hatch="////", lw=1.0)
    _spans(above, spans, bands * 1.02, bands * 0.06)
    label = " (green: making and using are heard)" if len(spans) else ""
    above.set_title(
        f"log-mel spectrogram, {len(tokens)} tokens of {length:g} s, {hidden.sum()} hidden{label}",
        fontsize=9,
        pad=14,
    )
    above.set(ylabel="mel band", xlim=(0, max(end, place[1])), ylim=(0, bands))
    below.set_title("what the model reads; hidden tokens are zeros", fontsize=9)
    below.set(xlabel="seconds", ylabel="feature")
    return figure
