"""One function per figure: takes arrays, returns a matplotlib Figure. One style, colour-blind safe
(Okabe and Ito)."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from m5lib.catalogue import Catalogue, MediaFile
from m5lib.data.decoding import open_image, probe, sound
from m5lib.data.extractors import RATE
from m5lib.modalities import MODALITIES, codes

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RIGHT, WRONG, QUIET = "#0072B2", "#D55E00", "#8a8a8a"
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


def _axes(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 3.2), **settings):
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **settings)
    plt.close(figure)  # the caller shows or saves it; nothing is drawn twice in a notebook
    return figure, axes


def short(text: str, lines: int, width: int = 20) -> str:
    """Text broken into at most so many lines of ``width`` characters, with an ellipsis where it is
    cut."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder="…"))


@styled
def long_tail(labels: Iterable) -> Figure:
    """Products per category, largest first, on a logarithmic axis (Figure 3)."""
    counts = pd.Series(
        [label for label in labels if label is not None], dtype=object
    ).value_counts()
    figure, ((axes,),) = _axes()
    if counts.empty:
        axes.text(0.5, 0.5, "the products have no labels", ha="center", transform=axes.transAxes)
        return figure
    rank = np.arange(1, len(counts) + 1)
    axes.fill_between(rank, 0.8, counts, step="mid", color=PALETTE[0], alpha=0.25)
    axes.step(rank, counts, where="mid", color=PALETTE[0])
    axes.set(
        yscale="log",
        xlabel="category, by size",
        ylabel="products",
        title="Long tail",
        xlim=(1, max(2, len(counts))),
    )
    for place in np.unique(np.linspace(0, len(counts) - 1, 5).astype(int))[:-1]:
        axes.annotate(
            f"{counts.index[place]} {counts.iloc[place]:,}",
            (place + 1, counts.iloc[place]),
            (6, 3),
            textcoords="offset points",
            fontsize=8,
        )
    return figure


@styled
def presence(table: pd.DataFrame) -> Figure:
    """Who is missing what: how many products have exactly which modalities (UpSet style), largest
    group on top."""
    names = [name for name in table.columns if table[name].any()]
    groups = table[names].value_counts()
    figure, ((dots, bars),) = _axes(
        1, 2, (7.0, 1.2 + 0.32 * len(groups)), width_ratios=(1, 2.4), sharey=True
    )
    place = np.arange(len(groups))
    for column, name in enumerate(names):
        has = np.array([group[column] for group in groups.index])
        dots.scatter(np.full(has.sum(), column), place[has], s=70, color=colour(name))
        dots.scatter(
            np.full((~has).sum(), column),
            place[~has],
            s=70,
            facecolors="none",
            edgecolors="#cccccc",
        )
    dots.set(xticks=range(len(names)), xlim=(-0.6, len(names) - 0.4), yticks=[])
    dots.set_xticklabels([MODALITIES[name].code for name in names])
    dots.invert_yaxis()
    bars.barh(place, groups, color=QUIET)
    bars.margins(x=0.2)
    for y, count in enumerate(groups):
        bars.annotate(f" {count:,} ({count / len(table):.1%})", (count, y), va="center", fontsize=9)
    bars.set(xlabel="products", title="Which modalities the products have")
    return figure


@styled
def lengths(by_modality: Mapping[str, np.ndarray]) -> Figure:
    """Tokens per product and stream, with the limit of the modality's row."""
    figure, axes = _axes(1, len(by_modality), (2.6 * len(by_modality), 2.6))
    for place, (name, values) in zip(axes[0], by_modality.items(), strict=True):
        values = np.asarray(values)
        place.hist(
            values,
            bins=np.arange(values.min(initial=1), values.max(initial=2) + 2) - 0.5,
            color=colour(name),
        )
        place.set(
            title=f"{name} (≤ {MODALITIES[name].max_tokens})", xlabel="tokens", ylabel="products"
        )
    return figure


@styled
def histograms(values: Mapping[str, Iterable], counted: str = "products") -> Figure:
    """A histogram of each set of values, whose name is the axis' label; the longest hundredth is
    drawn at the end (Figure 9)."""
    figure, axes = _axes(1, len(values), (3.0 * len(values), 2.6))
    for place, (name, part) in zip(axes[0], values.items(), strict=True):
        part = np.asarray(list(part), dtype=float)
        end = max(np.quantile(part, 0.99), part.min() + 1)
        whole = (
            part == part.round()
        ).all() and end - part.min() < 40  # a bin for each whole number
        bins = np.arange(part.min(), np.ceil(end) + 2) - 0.5 if whole else 30
        place.hist(np.minimum(part, end), bins=bins, color=PALETTE[0])
        place.set(xlabel=name, ylabel=counted)
    return figure


@styled
def spread(values: pd.DataFrame, metric: str, title: str, chance: float | None = None) -> Figure:
    """Mean over seeds with its standard deviation, a bar per index entry; ``values`` has a column
    per seed, whose dots are drawn too."""
    figure, ((axes,),) = _axes(size=(6.4, 1.3 + 0.27 * len(values)))
    place, mean = np.arange(len(values)), values.mean(axis=1)
    several = values.shape[1] > 1
    axes.barh(
        place,
        mean,
        0.7,
        color=PALETTE[5],
        xerr=values.std(axis=1) if several else None,
        error_kw={"elinewidth": 1.2},
    )
    for column in values:
        axes.scatter(values[column], place, s=9, color=PALETTE[0], zorder=3)
    right = values.max(axis=1)
    for y, value in enumerate(mean):
        axes.annotate(
            f"{value:.3f}",
            (max(right.iloc[y], value + (values.iloc[y].std() if several else 0)), y),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    if chance is not None:
        axes.axvline(chance, color=QUIET, ls=":")
        axes.annotate(
            "chance",
            (chance, -0.75),
            (3, 0),
            textcoords="offset points",
            fontsize=8,
            color=QUIET,
            va="center",
        )
    axes.set(
        yticks=place,
        xlabel=metric,
        title=title,
        xlim=(0, min(1.08, 1.15 * float(values.to_numpy().max()))),
        ylim=(len(values) - 0.4, -1.1),
    )
    axes.set_yticklabels(values.index)
    return figure


@styled
def panels(values: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Several numbers side by side: for each, label against seed (:func:`m5lib.lab.tables.values`);
    dots are seeds, bars mean ± deviation."""
    labels = next(iter(values.values())).index
    figure, axes = _axes(
        1, len(values), (1.6 + 2.2 * len(values), 1.2 + 0.3 * len(labels)), sharey=True
    )
    for number, (place, (name, part)) in enumerate(zip(axes[0], values.items(), strict=True)):
        height, mean = np.arange(len(labels)), part.mean(axis=1)
        several = part.shape[1] > 1
        place.errorbar(
            mean,
            height,
            xerr=part.std(axis=1) if several else None,
            fmt="D",
            ms=5,
            capsize=3,
            color=PALETTE[number],
        )
        for column in part:
            place.scatter(part[column], height + 0.22, s=8, color=PALETTE[number], alpha=0.6)
        place.set(title=name, yticks=height, ylim=(len(labels) - 0.4, -0.6))
        place.set_yticklabels(labels)
        place.grid(axis="y", color="#eeeeee")
        place.margins(x=0.12)
        place.locator_params(axis="x", nbins=4)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


@styled
def costs(frame: pd.DataFrame, cost: str, quality: str, title: str) -> Figure:
    """Quality against cost, a point for each row of the frame; a column ``<quality> ±`` gives its
    deviation."""
    figure, ((axes,),) = _axes(size=(6.4, 3.6))
    for number, (label, row) in enumerate(frame.iterrows()):
        colour_ = PALETTE[number % len(PALETTE)]
        axes.errorbar(
            row[cost],
            row[quality],
            yerr=row.get(f"{quality} ±"),
            fmt="osD^v<>P"[number % 8],
            color=colour_,
            capsize=3,
            label=label,
        )
    axes.set(xlabel=cost, ylabel=quality, title=title)
    axes.margins(0.1)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def cosines(nearest: np.ndarray, copies: np.ndarray, threshold: float) -> Figure:
    """Cosine of each product with its nearest, and with a copy of itself that lacks something; a
    line at the threshold."""
    figure, ((axes,),) = _axes(size=(6.4, 3.2))
    bins = np.linspace(min(nearest.min(), copies.min()), 1.0, 50)
    for values, shade, label in (
        (nearest, QUIET, "its nearest product"),
        (copies, PALETTE[0], "a copy of itself that lacks a quarter"),
    ):
        axes.hist(
            values,
            bins=bins,
            weights=np.full(len(values), 100 / len(values)),
            color=shade,
            alpha=0.7,
            label=label,
        )
    axes.axvline(threshold, color=PALETTE[1])
    axes.annotate(
        f"threshold {threshold:.2f}",
        (threshold, 1.0),
        (-4, -4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        va="top",
        color=PALETTE[1],
        fontsize=9,
    )
    axes.set(
        xlabel="cosine of a product with …",
        ylabel="products (%)",
        title="How near is a near-duplicate?",
    )
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def table(values: pd.DataFrame, ticks: pd.DataFrame | None = None, title: str = "") -> Figure:
    """A heat map of numbers from 0 to 1; a frame around the cells that ``ticks`` marks."""
    figure, ((axes,),) = _axes(size=(1.6 + 0.75 * values.shape[1], 1.2 + 0.45 * len(values)))
    axes.imshow(values.clip(0, 1), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(
        xticks=range(values.shape[1]),
        yticks=range(len(values)),
        xticklabels=values.columns,
        yticklabels=values.index,
        title=title,
    )
    axes.spines[:].set_visible(False)
    for (y, x), value in np.ndenumerate(values.to_numpy()):
        axes.text(
            x,
            y,
            f"{value:.2f}",
            ha="center",
            va="center",
            color="white" if value > 0.6 else "black",
            fontsize=9,
        )
        if ticks is not None and ticks.iloc[y, x]:
            axes.add_patch(
                plt.Rectangle(
                    (x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor=PALETTE[1], linewidth=2
                )
            )
    return figure


def player(file: MediaFile, limit: int = 8 << 20):
    """Something that plays a video or audio file in a notebook, kept inside it; a sentence for a
    file over ``limit`` bytes."""
    from IPython.display import Audio, Markdown, Video

    found = probe(file)
    if file.size is not None and file.size > limit:
        return Markdown(f"{file.name}: {file.size / 1e6:.0f} MB, too large to keep in a notebook")
    if found.video is not None:
        return Video(file.read(), embed=True, mimetype="video/mp4", width=224)
    return Audio(sound(file, RATE), rate=RATE)


@styled
def gallery(catalogue: Catalogue, rows: Sequence[int], columns: int = 8) -> Figure:
    """Pictures of products with their titles."""
    lines = -(-len(rows) // columns)
    figure, axes = _axes(lines, columns, (1.35 * columns, 2.0 * lines))
    for place in axes.flat:
        place.axis("off")
    for place, row in zip(axes.flat, rows, strict=False):
        _picture(place, catalogue, row)
        place.set_title(short(_title(catalogue, row), 3), fontsize=7, fontweight="normal")
    return figure


@styled
def losses(history: Sequence[Mapping], batch_size: int) -> Figure:
    """Every part of the loss over the steps; contrast beside its chance level log B."""
    parts = [key for key in history[-1] if key.isupper() or key.startswith("contrast_")]
    masked = [part for part in parts if not part.startswith("contrast")]
    panels = [[part] for part in masked] + (
        [pairs] if (pairs := [p for p in parts if p not in masked]) else []
    )
    figure, axes = _axes(1, len(panels), (2.7 * len(panels), 2.7))
    for place, panel in zip(axes[0], panels, strict=True):
        for number, part in enumerate(panel):
            values = pd.Series([line[part] for line in history])
            smooth = values.rolling(max(1, len(values) // 40), min_periods=1).mean()
            turn, shade = divmod(number, len(PALETTE))  # ten pairs, seven colours
            place.plot(
                smooth,
                color=PALETTE[shade],
                ls=("-", "--")[turn % 2],
                label=part.removeprefix("contrast_"),
            )
        place.set(
            title=panel[0] if len(panel) == 1 and panel[0] in masked else "contrast",
            xlabel="step",
            ylim=(0, None),
        )
        if panel[0] not in masked:
            place.axhline(np.log(batch_size), color=QUIET, ls=":", label="chance")
            place.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def milestones(points: pd.DataFrame, metric: str) -> Figure:
    """A metric against the share of pre-training done, a line per read-out; columns ``share``,
    ``readout``, ``value``."""
    figure, ((axes,),) = _axes(size=(6.2, 3.4))
    for number, (readout, part) in enumerate(points.groupby("readout", sort=False)):
        part = part.sort_values("share")
        axes.plot(
            100 * part["share"],
            part["value"],
            marker="o",
            color=PALETTE[number % len(PALETTE)],
            label=readout,
        )
    axes.set(
        xlabel="pre-training done (%)",
        ylabel=metric,
        title="Pre-training and read-outs, validation products",
    )
    if len(points):
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        axes.text(
            0.5,
            0.5,
            "nothing to measure: the products have no labels",
            ha="center",
            transform=axes.transAxes,
        )
    return figure


@styled
def score_matrix(
    matrix: np.ndarray, names: Sequence[str], title: str = "Mean harmony scores S"
) -> Figure:
    """A matrix over modalities as a heat map with its numbers."""
    matrix = np.asarray(matrix)
    figure, ((axes,),) = _axes(size=(1.6 + 0.7 * len(names), 1.2 + 0.7 * len(names)))
    axes.imshow(matrix, cmap="cividis", vmin=min(0.0, matrix.min()), vmax=1.0)
    labels = [MODALITIES[name].code for name in names]
    axes.set(
        xticks=range(len(names)),
        yticks=range(len(names)),
        xticklabels=labels,
        yticklabels=labels,
        title=title,
    )
    axes.spines[:].set_visible(False)
    for (y, x), value in np.ndenumerate(matrix):
        axes.text(
            x,
            y,
            f"{value:.2f}",
            ha="center",
            va="center",
            color="black" if value > 0.6 else "white",
        )
    return figure


@styled
def bars(values: pd.DataFrame, metric: str, title: str) -> Figure:
    """Horizontal bars: one group per index entry, one bar per column (``untrained``,
    ``pretrained``, ``control``); blanks stay blank."""
    figure, ((axes,),) = _axes(size=(7.0, 1.3 + 0.24 * values.size))
    paint = {
        "untrained": "#bbbbbb",
        "pretrained": PALETTE[0],
        "finetuned": PALETTE[2],
        "control": PALETTE[4],
    }
    height = 0.8 / len(values.columns)
    for number, column in enumerate(values):
        place = np.arange(len(values)) + (number - (len(values.columns) - 1) / 2) * height
        axes.barh(
            place,
            values[column].fillna(0),
            height * 0.92,
            color=paint.get(column, PALETTE[number]),
            label=column,
        )
        for y, value in zip(place, values[column], strict=True):
            if value == value:
                axes.annotate(f" {value:.3f}", (value, y), va="center", fontsize=8)
    axes.set(
        yticks=range(len(values)),
        xlabel=metric,
        title=title,
        xlim=(0, min(1.0, 1.15 * float(np.nanmax(values.to_numpy())))),
    )
    axes.set_yticklabels(values.index)
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def neighbours(
    catalogue: Catalogue,
    queries: Sequence[int],
    found: np.ndarray,
    matched: np.ndarray | None,
    title: str = "",
) -> Figure:
    """Each query with its nearest products: blue frame, same category; orange frame, another one
    (Figures 10-12).

    Args:
        queries: rows of the catalogue; ``found`` (Q, R) rows of their neighbours, -1 for none;
            ``matched`` (Q, R), None where nobody
            knows: grey frames. A product without a label shows its title.
    """
    columns = 1 + found.shape[1]
    figure, axes = _axes(len(queries), columns, (1.25 * columns, 2.05 * len(queries)))
    for line, (query, rows) in enumerate(zip(queries, found, strict=True)):
        _picture(axes[line, 0], catalogue, query, "#000000")
        axes[line, 0].set_title("\n".join(filter(None, _captions(catalogue, query))), fontsize=7)
        for number, (place, row) in enumerate(zip(axes[line, 1:], rows, strict=True)):
            if row < 0:
                place.axis("off")
                continue
            shade = QUIET if matched is None else RIGHT if matched[line, number] else WRONG
            _picture(place, catalogue, row, shade)
            said, label = _captions(catalogue, row)
            caption = short(label.strip("[]"), 2) if label else said
            place.set_title(
                caption,
                fontsize=7,
                color="black" if matched is None else shade,
                fontweight="normal",
            )
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


def _captions(catalogue: Catalogue, row: int | np.integer) -> tuple[str, str]:
    """Title and label of a product, the label in brackets and empty where unknown."""
    label = catalogue.labels[row]
    return short(
        _title(catalogue, row), 3, 18
    ), "" if label is None else f"[{short(str(label), 1)}]"


def _title(catalogue: Catalogue, row: int | np.integer) -> str:
    words = [
        (name, content)
        for name, content in catalogue.products[row].contents.items()
        if isinstance(content, str)
    ]
    return words[0][1] if words else catalogue.products[row].id


def _picture(axes, catalogue: Catalogue, row: int | np.integer, frame: str | None = None) -> None:
    """The product's picture; a product without one shows which modalities it has."""
    axes.set(xticks=[], yticks=[])
    file = catalogue.products[row].contents.get(next(iter(MODALITIES)))
    if file is None:
        axes.text(
            0.5,
            0.5,
            f"no picture\n({codes(catalogue.products[row].contents)})",
            ha="center",
            va="center",
            fontsize=7,
        )
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect=4 / 3)
    else:
        axes.imshow(open_image(file))
    for spine in axes.spines.values():
        spine.set(visible=frame is not None, color=frame, linewidth=3)
