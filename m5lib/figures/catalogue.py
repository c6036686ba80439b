"""Figures of products: how many, of which category, with what; their pictures and neighbours."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from m5lib.catalogue import Catalogue
from m5lib.data import MediaError
from m5lib.data.decoding import frames, open_image, probe, sound
from m5lib.data.extractors import RATE, LogMel
from m5lib.figures.style import (
    PALETTE,
    QUIET,
    RIGHT,
    WRONG,
    canvas,
    codes_of,
    colour,
    heading,
    inset,
    nothing,
    page,
    plain,
    short,
    styled,
)
from m5lib.modalities import MODALITIES, codes


@styled
def long_tail(labels: Iterable) -> Figure:
    """Products per category, largest first, on a logarithmic axis (Figure 3). None is no label."""
    known = [label for label in labels if label is not None]
    counts = pd.Series(known, dtype=object).value_counts()
    figure, ((axes,),) = canvas()
    if counts.empty:
        nothing(axes, "the products have no labels")
        return figure
    rank = np.arange(1, len(counts) + 1)
    axes.fill_between(rank, 0.8, counts, step="mid", color=PALETTE[0], alpha=0.25)
    axes.step(rank, counts, where="mid", color=PALETTE[0])
    axes.set(xlabel="category, by size", ylabel="products", title="Long tail")
    axes.set(yscale="log", xlim=(1, max(2, len(counts))))
    for place in np.unique(np.linspace(0, len(counts) - 1, 5).astype(int))[:-1]:
        note = f"{plain(counts.index[place])} {counts.iloc[place]:,}"
        spot = (place + 1, counts.iloc[place])
        axes.annotate(note, spot, (6, 3), textcoords="offset points", fontsize=8)
    return figure


@styled
def presence(table: pd.DataFrame) -> Figure:
    """How many products have exactly which modalities (UpSet style), the largest group on top."""
    names = [name for name in table.columns if table[name].any()]
    groups = table[names].value_counts()
    size = (7.0, 1.2 + 0.32 * len(groups))
    figure, ((marks, bars),) = canvas(1, 2, size, width_ratios=(1, 2.4), sharey=True)
    lines = np.arange(len(groups))
    for column, name in enumerate(names):
        has = np.array([group[column] for group in groups.index])
        empty = {"facecolors": "none", "edgecolors": "#cccccc"}
        marks.scatter(np.full(has.sum(), column), lines[has], s=70, color=colour(name))
        marks.scatter(np.full((~has).sum(), column), lines[~has], s=70, **empty)
    marks.set(xticks=range(len(names)), xlim=(-0.6, len(names) - 0.4), yticks=[])
    marks.set_xticklabels(codes_of(names))
    marks.invert_yaxis()
    bars.barh(lines, groups, color=QUIET)
    bars.margins(x=0.2)
    for y, count in enumerate(groups):
        bars.annotate(f" {count:,} ({count / len(table):.1%})", (count, y), va="center", fontsize=9)
    bars.set(xlabel="products", title="Which modalities the products have")
    return figure


@styled
def histograms(values: Mapping[str, Iterable]) -> Figure:
    """A histogram for each set of values, whose name labels the axis (Figure 9). The longest
    hundredth is drawn at the end."""
    values = {name: np.asarray(list(numbers), dtype=float) for name, numbers in values.items()}
    values = {name: numbers for name, numbers in values.items() if len(numbers)}
    figure, axes = canvas(1, len(values) or 1, (3.0 * max(1, len(values)), 2.6))
    if not values:
        nothing(axes[0, 0], "the products have nothing of it")
    for place, (name, numbers) in zip(axes[0], values.items(), strict=False):
        low, end = numbers.min(), max(np.quantile(numbers, 0.99), numbers.min() + 1)
        whole = (numbers == numbers.round()).all() and end - low < 40  # a bin for each number
        bins = np.arange(low, np.ceil(end) + 2) - 0.5 if whole else 30
        place.hist(np.minimum(numbers, end), bins=bins, color=PALETTE[0])
        place.locator_params(axis="x", nbins=6, integer=bool(whole))
        place.set(xlabel=name, ylabel="products")
    return figure


# --- pictures


@styled
def gallery(catalogue: Catalogue, rows: Sequence[int], columns: int = 8) -> Figure:
    """Pictures of products with their titles."""
    lines = -(-len(rows) // columns)
    figure, axes = canvas(lines, columns, (1.35 * columns, 2.0 * lines))
    for place in axes.flat:
        place.axis("off")
    for place, row in zip(axes.flat, rows, strict=False):
        picture(place, catalogue, row)
        title = short(title_of(catalogue.products[row]), 3)
        place.set_title(title, fontsize=7, fontweight="normal")
    return figure


@styled
def neighbours(
    catalogue: Catalogue,
    queries: Sequence[int],
    rows: np.ndarray,
    matched: np.ndarray | None,
    title: str = "",
) -> Figure:
    """Queries and their nearest: blue frame, same category; orange, another (Figures 10-12).

    Args:
        queries: (Q,) rows of the catalogue.
        rows: (Q, R) those of their neighbours, -1 for none.
        matched: (Q, R) whether they are what was sought; None where nobody knows: grey frames. A
            product without a label has one, too, and shows its title.
    """
    columns, labels = 1 + rows.shape[1], catalogue.labels
    titles = lambda row: short(title_of(catalogue.products[row]), 3, 18)  # noqa: E731
    figure, axes = canvas(len(queries), columns, (1.25 * columns, 2.05 * len(queries)))
    for line, query in enumerate(queries):
        picture(axes[line, 0], catalogue, query, "#000000")
        label = "" if labels[query] is None else f"\n[{short(labels[query], 1)}]"
        axes[line, 0].set_title(titles(query) + label, fontsize=7)
        for number, (place, row) in enumerate(zip(axes[line, 1:], rows[line], strict=True)):
            if row < 0:
                place.axis("off")
                continue
            known = matched is not None and labels[row] is not None
            shade = QUIET if not known else RIGHT if matched[line, number] else WRONG
            picture(place, catalogue, row, shade, titled=labels[row] is not None)
            said = titles(row) if labels[row] is None else short(labels[row], 1)
            ink = shade if known else "black"
            place.set_title(said, fontsize=7, color=ink, fontweight="normal")
    heading(figure, title)
    return figure


def title_of(product) -> str:
    """The first of a product's texts, or its id where it has none."""
    texts = (content for content in product.contents.values() if isinstance(content, str))
    return next(texts, product.id)


def picture(
    axes: Axes,
    catalogue: Catalogue,
    row: int | np.integer,
    frame: str | None = None,
    titled: bool = False,
) -> None:
    """The product's picture, in a frame of a colour; without one (or with its features only), the
    modalities it has; if ``titled``, its title, too."""
    axes.set(xticks=[], yticks=[])
    contents = (product := catalogue.products[row]).contents
    if "image" not in contents or not _drawn(_photograph, axes, contents["image"]):
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect=4 / 3)
        text = f"no picture\n({codes(contents)})"
        text += f"\n\n{short(title_of(product), 3, 10)}" * titled
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=7)
    axes.spines[:].set(visible=frame is not None, color=frame, linewidth=3)


def _drawn(draw, axes: Axes, content) -> bool:
    """Draw a content, unless it cannot be: features in its place, as in the official data."""
    try:
        draw(axes, content)
    except (MediaError, OSError):  # or a file that is gone since
        return False
    return True


# --- the front page: one product, the model, its vector, its neighbours

WIDTH, HEIGHT, MIDDLE = 9.6, 4.95, 2.5  # inches


def _title(axes: Axes, content: str) -> None:
    _say(axes, 0.03, 0.5, f"“{short(content, 2, 36)}”", ha="left", fontsize=9, style="italic")


def _cells(axes: Axes, content) -> None:
    for line, (key, value) in enumerate(content[:5]):
        y, look = 1 - (line + 0.6) / 5.2, {"ha": "left", "fontsize": 9}
        _say(axes, 0.03, y, short(key, 1, 16), color=QUIET, **look)
        _say(axes, 0.45, y, short(value, 1, 18), **look)


def _film(axes: Axes, content) -> None:
    """Six frames, cut to squares."""
    seconds = probe(content).video.seconds or 1.0
    film, _ = frames(content, (np.arange(6) + 0.5) * seconds / 6, 120)
    side = min(film.shape[1:3])
    top, left = (film.shape[1] - side) // 2, (film.shape[2] - side) // 2
    squares = film[:, top : top + side, left : left + side]
    axes.imshow(np.concatenate(list(squares), axis=1), aspect="auto")
    for cut in range(1, 6):
        axes.axvline(cut * side - 0.5, color="white", lw=2)


def _sound(axes: Axes, content) -> None:
    bands = LogMel().spectrogram(torch.from_numpy(sound(content, RATE)))
    axes.imshow(bands.T, origin="lower", aspect="auto", cmap="magma")


def _photograph(axes: Axes, content) -> None:
    axes.imshow(open_image(content))


#: Modality -> how what a product has of it is drawn, and where: left, top, width, height.
DRAWN = {
    "image": (_photograph, (0.08, 0.62, 1.62, 1.62)),
    "text": (_title, (1.95, 0.62, 2.47, 0.42)),
    "table": (_cells, (1.95, 1.34, 2.47, 0.90)),
    "video": (_film, (0.08, 2.60, 4.34, 0.72)),
    "audio": (_sound, (0.08, 3.68, 4.34, 0.72)),
}


def _arrow(axes: Axes, left: float, right: float, y: float = MIDDLE, paint="#444444") -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "color": paint, "lw": 1.6}
    axes.add_patch(FancyArrowPatch((left, y), (right, y), shrinkA=0, shrinkB=0, **look))


def _box(axes: Axes, left: float, y: float, width: float, height: float, **look) -> None:
    """A rounded box whose middle is at ``y``."""
    spot = (left, y - height / 2)
    axes.add_patch(FancyBboxPatch(spot, width, height, boxstyle="round,pad=0.02", **look))


def _say(axes: Axes, x: float, y: float, text: str, **look) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 9.5} | look)


def _model(axes: Axes, names: Sequence[str], has: Sequence[str], left: float) -> None:
    """An encoder for each modality, blank where absent, and one that reads them all."""
    step, tall = 0.62, 0.62 * (len(names) - 1) + 0.4
    _box(axes, left - 0.1, MIDDLE, 1.28, tall + 0.26, fc="white", ec=QUIET)
    _box(axes, left + 0.72, MIDDLE, 0.36, tall, fc="#eeeeee", ec="#444444")
    _say(axes, left + 0.9, MIDDLE, "joint encoder", rotation=90)
    for number, name in enumerate(names):
        y = MIDDLE + (number - (len(names) - 1) / 2) * step
        paint = colour(name) if name in has else "#bbbbbb"
        face, ink, line = (paint, "white", "-") if name in has else ("white", paint, ":")
        _box(axes, left, y, 0.46, 0.38, fc=face, ec=paint, ls=line)
        _say(axes, left + 0.23, y, MODALITIES[name].code, color=ink, fontweight="bold")
        if name in has:
            _arrow(axes, left + 0.48, left + 0.7, y, paint)


def _strip(axes: Axes, vector: np.ndarray) -> None:
    """A vector as a strip of colours, the rest of the last line blank."""
    columns = max(1, round(np.sqrt(len(vector) / 10)))
    cells = np.full(-(-len(vector) // columns) * columns, np.nan)
    cells[: len(vector)] = vector
    reach = np.nanpercentile(np.abs(cells), 98) or 1.0
    paint = {"cmap": "PuOr", "vmin": -reach, "vmax": reach, "interpolation": "nearest"}
    axes.imshow(cells.reshape(-1, columns), aspect="auto", **paint)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


@styled
def front(
    catalogue: Catalogue,
    row: int | np.integer,
    rows: Sequence[int] | np.ndarray,
    vectors: np.ndarray,
    matched: Sequence[bool] | np.ndarray,
    readout: str,
    names: Sequence[str] = tuple(MODALITIES),
    model: str = "SCALE",
) -> Figure:
    """A product in all its modalities, the model, its vector as a strip, its nearest products.

    Args:
        row: the product; ``rows`` (R,) those of its neighbours, at most six are shown.
        vectors: (N, E) embeddings by ``readout``, a row for each product of the catalogue.
        matched: (R,) whether a neighbour is of its category (blue frame; orange: another).
        names: the modalities of the model. What the product lacks is said.
    """
    product, vector = catalogue.products[row], np.asarray(vectors[row], dtype=np.float64)
    figure, axes = page(WIDTH, HEIGHT)
    bold, small = {"fontsize": 11, "fontweight": "bold"}, {"fontsize": 8.5, "color": QUIET}
    _say(axes, 0.05, 0.2, f"one product: {short(product.label, 1, 30)}", ha="left", **bold)
    for name in (name for name in names if name in DRAWN):
        draw, at = DRAWN[name]
        _say(axes, at[0], at[1] - 0.13, name, ha="left", fontweight="bold", color=colour(name))
        place = inset(figure, *at)
        place.set(xticks=[], yticks=[])
        place.spines[:].set(visible=True, color=colour(name), linewidth=2)
        if name not in product.contents:
            _say(place, 0.5, 0.5, "absent", color=QUIET)
        elif not _drawn(draw, place, product.contents[name]):
            _say(place, 0.5, 0.5, "features", color=QUIET)
    _model(axes, names, list(product.contents), 4.78)
    for left, right in ((4.48, 4.66), (5.99, 6.15), (6.67, 6.88)):
        _arrow(axes, left, right)
    _strip(inset(figure, 6.17, 0.5, 0.42, 4.0), vector)
    for x, text in ((5.32, model), (6.38, "one vector"), (8.25, "its nearest products")):
        _say(axes, x, 0.2, text, **bold)
    _say(axes, 6.38, 4.62, f"{len(vector):,} numbers", fontsize=9, color=QUIET)
    _say(axes, 6.38, 4.8, readout, **small)
    _say(axes, 8.25, 4.8, "cosine; blue: its category, orange: another", **small)
    for number, (other, right) in enumerate(zip(rows[:6], matched, strict=False)):
        left, top = 7.0 + 1.32 * (number % 2), 0.62 + 1.42 * (number // 2)
        paint, lengths = RIGHT if right else WRONG, np.linalg.norm(vectors[[row, other]], axis=1)
        cosine = vector @ vectors[other] / max(lengths.prod(), 1e-12)
        label = short(catalogue.labels[other], 1, 18)
        _say(axes, left + 0.59, top - 0.12, label, fontsize=9, color=paint)
        place = inset(figure, left, top, 1.18, 1.12)
        picture(place, catalogue, other, paint)
        note = {"fc": "white", "ec": "none", "pad": 1.5, "alpha": 0.85}
        look = {"transform": place.transAxes, "bbox": note, "color": "#222222"}
        place.text(0.06, 0.07, f"{cosine:.2f}", fontsize=8, **look)
    return figure
