"""The picture of the front page: one product with all it has, through the model, to one vector and
what lies nearest to it."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from m5lib.catalogue import Catalogue, MediaFile
from m5lib.data.decoding import frames, open_image, probe, sound
from m5lib.data.extractors import RATE, LogMel
from m5lib.figures.catalogue import picture
from m5lib.figures.style import QUIET, RIGHT, WRONG, canvas, colour, short, styled
from m5lib.modalities import MODALITIES

WIDTH, HEIGHT, STRIP = 9.6, 4.95, 6


def _show_picture(axes: Axes, file: MediaFile) -> None:
    axes.imshow(open_image(file))


def _show_words(axes: Axes, title: str) -> None:
    axes.text(
        0.03,
        0.5,
        f"“{short(title, 2, 36)}”",
        va="center",
        fontsize=9,
        style="italic",
        transform=axes.transAxes,
    )


def _show_pairs(axes: Axes, table: Sequence[tuple[str, str]], lines: int = 5) -> None:
    for number, (name, value) in enumerate(table[:lines]):
        y = 1 - (number + 0.6) / (lines + 0.2)
        axes.text(
            0.03,
            y,
            short(name, 1, 16),
            va="center",
            fontsize=9,
            color=QUIET,
            transform=axes.transAxes,
        )
        axes.text(0.45, y, short(value, 1, 18), va="center", fontsize=9, transform=axes.transAxes)


def _show_film(axes: Axes, file: MediaFile) -> None:
    length = probe(file).video.seconds or 1.0
    seen, _ = frames(file, (np.arange(STRIP) + 0.5) * length / STRIP, 120)
    side = min(seen.shape[1:3])
    top, left = (seen.shape[1] - side) // 2, (seen.shape[2] - side) // 2
    axes.imshow(
        np.concatenate(list(seen[:, top : top + side, left : left + side]), axis=1), aspect="auto"
    )
    for number in range(1, STRIP):
        axes.axvline(number * side - 0.5, color="white", lw=2)


def _show_sound(axes: Axes, file: MediaFile) -> None:
    import torch

    axes.imshow(
        LogMel().spectrogram(torch.from_numpy(sound(file, RATE))).T,
        origin="lower",
        aspect="auto",
        cmap="magma",
    )


#: Modality -> where it is drawn (left, top, width, height in inches), and how.
PLACES: dict[str, tuple[tuple[float, float, float, float], Callable[[Axes, object], None]]] = {
    "image": ((0.08, 0.62, 1.62, 1.62), _show_picture),
    "text": ((1.95, 0.62, 2.47, 0.42), _show_words),
    "table": ((1.95, 1.34, 2.47, 0.90), _show_pairs),
    "video": ((0.08, 2.60, 4.34, 0.72), _show_film),
    "audio": ((0.08, 3.68, 4.34, 0.72), _show_sound),
}


def _inset(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    axes = figure.add_axes(
        (left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT)
    )
    axes.set(xticks=[], yticks=[])
    return axes


def _arrow(
    page: Axes, start: tuple, end: tuple, paint: str = "#444444", width: float = 1.6
) -> None:
    page.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            color=paint,
            lw=width,
            shrinkA=0,
            shrinkB=0,
        )
    )


def _model(page: Axes, names: Sequence[str], there: Sequence[str], left: float, name: str) -> None:
    """An encoder for each modality, and one that reads them all; those of absent modalities are
    left blank."""
    middle, step = 2.5, 0.62
    tall = step * (len(names) - 1) + 0.4
    page.add_patch(
        FancyBboxPatch(
            (left - 0.1, middle - tall / 2 - 0.13),
            1.28,
            tall + 0.26,
            boxstyle="round,pad=0.02",
            fc="white",
            ec=QUIET,
        )
    )
    page.add_patch(
        FancyBboxPatch(
            (left + 0.72, middle - tall / 2),
            0.36,
            tall,
            boxstyle="round,pad=0.02",
            fc="#eeeeee",
            ec="#444444",
        )
    )
    page.text(
        left + 0.9, middle, "joint encoder", rotation=90, ha="center", va="center", fontsize=9.5
    )
    for number, modality in enumerate(names):
        y, has = middle + (number - (len(names) - 1) / 2) * step, modality in there
        paint = colour(modality) if has else "#bbbbbb"
        page.add_patch(
            FancyBboxPatch(
                (left, y - 0.19),
                0.46,
                0.38,
                boxstyle="round,pad=0.02",
                fc=paint if has else "white",
                ec=paint,
                ls="-" if has else ":",
            )
        )
        page.text(
            left + 0.23,
            y,
            MODALITIES[modality].code,
            ha="center",
            va="center",
            fontsize=9.5,
            color="white" if has else paint,
            fontweight="bold",
        )
        if has:
            _arrow(page, (left + 0.48, y), (left + 0.7, y), paint)
    page.text(left + 0.54, 0.2, name, ha="center", va="center", fontsize=11, fontweight="bold")


@styled
def front(
    catalogue: Catalogue,
    row: int | np.integer,
    found: Sequence[int] | np.ndarray,
    vectors: np.ndarray,
    matched: Sequence[bool] | np.ndarray,
    readout: str,
    names: Sequence[str] = tuple(MODALITIES),
    model: str = "SCALE",
) -> Figure:
    """A product in all its modalities, the model, the product's vector as a strip of colours, and
    its nearest products.

    Args:
        row: the product; ``found`` (R,) rows of its neighbours, at most six are shown.
        vectors: (N, E) embeddings, a row for each product of the catalogue.
        matched: (R,) whether a neighbour is of the product's category (blue frame; orange:
            another).
        readout: where in the model the vector is read (:mod:`m5lib.embeddings`).
        names: the modalities of the model. What the product lacks is said.
    """
    product, vector = catalogue.products[row], np.asarray(vectors[row], dtype=np.float64)
    figure, ((page,),) = canvas(size=(WIDTH, HEIGHT))
    page.set_position((0, 0, 1, 1))
    page.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    page.axis("off")
    page.text(
        0.05,
        0.2,
        f"one product: {short(str(product.label), 1, 30)}",
        va="center",
        fontsize=11,
        fontweight="bold",
    )
    for name in [name for name in names if name in PLACES]:
        place, draw = PLACES[name]
        page.text(
            place[0],
            place[1] - 0.13,
            name,
            va="center",
            fontsize=9.5,
            fontweight="bold",
            color=colour(name),
        )
        axes = _inset(figure, *place)
        axes.spines[:].set(visible=True, color=colour(name), linewidth=2)
        if name in product.contents:
            draw(axes, product.contents[name])
        else:
            axes.text(
                0.5, 0.5, "absent", ha="center", va="center", color=QUIET, transform=axes.transAxes
            )
    _arrow(page, (4.48, 2.5), (4.66, 2.5))
    _model(page, names, list(product.contents), 4.78, model)
    _arrow(page, (5.99, 2.5), (6.15, 2.5))
    strip = _inset(figure, 6.17, 0.5, 0.42, 4.0)
    columns = max(1, round(np.sqrt(len(vector) / 10)))
    cells = np.full(-(-len(vector) // columns) * columns, np.nan)
    cells[: len(vector)] = vector
    reach = np.nanpercentile(np.abs(cells), 98) or 1.0
    strip.imshow(
        cells.reshape(-1, columns),
        aspect="auto",
        cmap="PuOr",
        vmin=-reach,
        vmax=reach,
        interpolation="nearest",
    )
    strip.spines[:].set_visible(True)
    page.text(6.38, 0.2, "one vector", ha="center", va="center", fontsize=11, fontweight="bold")
    page.text(
        6.38, 4.62, f"{len(vector):,} numbers", ha="center", va="center", fontsize=9, color=QUIET
    )
    page.text(6.38, 4.8, readout, ha="center", va="center", fontsize=8.5, color=QUIET)
    _arrow(page, (6.67, 2.5), (6.88, 2.5))
    page.text(
        8.25, 0.2, "its nearest products", ha="center", va="center", fontsize=11, fontweight="bold"
    )
    for number, (other, right) in enumerate(zip(found[:6], matched, strict=False)):
        line, column = divmod(number, 2)
        left, top = 7.0 + 1.32 * column, 0.62 + 1.42 * line
        paint = RIGHT if right else WRONG
        cosine = (
            vector
            @ vectors[other]
            / max(np.linalg.norm(vector) * np.linalg.norm(vectors[other]), 1e-12)
        )
        page.text(
            left + 0.59,
            top - 0.12,
            short(str(catalogue.labels[other]), 1, 18),
            ha="center",
            va="center",
            fontsize=9,
            color=paint,
        )
        axes = _inset(figure, left, top, 1.18, 1.12)
        picture(axes, catalogue, other, paint)
        note = {"fc": "white", "ec": "none", "pad": 1.5, "alpha": 0.85}
        axes.text(
            0.06,
            0.07,
            f"{cosine:.2f}",
            fontsize=8,
            color="#222222",
            transform=axes.transAxes,
            bbox=note,
        )
    page.text(
        8.25,
        4.8,
        "cosine; blue: its category, orange: another",
        ha="center",
        va="center",
        fontsize=8.5,
        color=QUIET,
    )
    return figure
