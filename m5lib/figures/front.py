"""The picture of the front page: one product with all it has, through the model, to one vector and
what lies nearest to it."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from m5lib.catalogue import Catalogue
from m5lib.data.decoding import frames, open_image, probe, sound
from m5lib.data.extractors import RATE, LogMel
from m5lib.figures.catalogue import picture
from m5lib.figures.style import QUIET, RIGHT, WRONG, colour, page, short, styled
from m5lib.modalities import MODALITIES

WIDTH, HEIGHT, MIDDLE = 9.6, 4.95, 2.5  # inches
#: Modality -> where it is drawn: left, top, width, height.
PLACES = {
    "image": (0.08, 0.62, 1.62, 1.62),
    "text": (1.95, 0.62, 2.47, 0.42),
    "table": (1.95, 1.34, 2.47, 0.90),
    "video": (0.08, 2.60, 4.34, 0.72),
    "audio": (0.08, 3.68, 4.34, 0.72),
}


def _content(axes: Axes, name: str, content) -> None:
    """What a product has of a modality."""
    middle = {"va": "center", "fontsize": 9, "transform": axes.transAxes}
    if name == "image":
        axes.imshow(open_image(content))
    elif name == "text":
        axes.text(0.03, 0.5, f"“{short(content, 2, 36)}”", style="italic", **middle)
    elif name == "table":
        for line, (key, value) in enumerate(content[:5]):
            y = 1 - (line + 0.6) / 5.2
            axes.text(0.03, y, short(key, 1, 16), color=QUIET, **middle)
            axes.text(0.45, y, short(value, 1, 18), **middle)
    elif name == "video":  # six frames, cut to squares
        seconds = probe(content).video.seconds or 1.0
        film, _ = frames(content, (np.arange(6) + 0.5) * seconds / 6, 120)
        side = min(film.shape[1:3])
        top, left = (film.shape[1] - side) // 2, (film.shape[2] - side) // 2
        squares = film[:, top : top + side, left : left + side]
        axes.imshow(np.concatenate(list(squares), axis=1), aspect="auto")
        for cut in range(1, 6):
            axes.axvline(cut * side - 0.5, color="white", lw=2)
    else:
        bands = LogMel().spectrogram(torch.from_numpy(sound(content, RATE)))
        axes.imshow(bands.T, origin="lower", aspect="auto", cmap="magma")


def _inset(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    bottom = 1 - (top + height) / HEIGHT
    axes = figure.add_axes((left / WIDTH, bottom, width / WIDTH, height / HEIGHT))
    axes.set(xticks=[], yticks=[])
    return axes


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
    """An encoder for each modality, blank where the product has none, and one that reads them
    all."""
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
    """A product in all its modalities, the model, the product's vector as a strip of colours, and
    its nearest products.

    Args:
        row: the product; ``rows`` (R,) those of its neighbours, at most six are shown.
        vectors: (N, E) embeddings, a row for each product of the catalogue.
        matched: (R,) whether a neighbour is of the product's category (blue frame; orange:
            another).
        readout: where in the model the vector is read (:mod:`m5lib.embeddings`).
        names: the modalities of the model. What the product lacks is said.
    """
    product, vector = catalogue.products[row], np.asarray(vectors[row], dtype=np.float64)
    figure, axes = page(WIDTH, HEIGHT)
    bold, small = {"fontsize": 11, "fontweight": "bold"}, {"fontsize": 8.5, "color": QUIET}
    _say(axes, 0.05, 0.2, f"one product: {short(product.label, 1, 30)}", ha="left", **bold)
    for name in (name for name in names if name in PLACES):
        left, top, _, _ = PLACES[name]
        look = {"ha": "left", "fontweight": "bold", "color": colour(name)}
        _say(axes, left, top - 0.13, name, **look)
        inset = _inset(figure, *PLACES[name])
        inset.spines[:].set(visible=True, color=colour(name), linewidth=2)
        if name in product.contents:
            _content(inset, name, product.contents[name])
        else:
            _say(inset, 0.5, 0.5, "absent", color=QUIET, transform=inset.transAxes)
    _model(axes, names, list(product.contents), 4.78)
    for left, right in ((4.48, 4.66), (5.99, 6.15), (6.67, 6.88)):
        _arrow(axes, left, right)
    _strip(_inset(figure, 6.17, 0.5, 0.42, 4.0), vector)
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
        inset = _inset(figure, left, top, 1.18, 1.12)
        picture(inset, catalogue, other, paint)
        note = {"fc": "white", "ec": "none", "pad": 1.5, "alpha": 0.85}
        place = {"transform": inset.transAxes, "bbox": note, "color": "#222222"}
        inset.text(0.06, 0.07, f"{cosine:.2f}", fontsize=8, **place)
    return figure
