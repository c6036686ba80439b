"""Decoding and feature extraction: a media file in, an array of feature vectors out.

An extractor is a frozen dataclass, so that its settings can be saved beside a model, and a callable::

    extractor(file: MediaFile) -> Features(values (L, F) float32, boxes (L, 5) float32 or None)

It raises :class:`MediaError` with a reason where the file cannot be used. :func:`extract` runs extractors over a catalogue; what
could not be decoded is taken out of the catalogue and listed, never replaced by zeros.
"""

import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from m5lib.data import Catalogue, MediaFile, Skip
from m5lib.modalities import MODALITIES
from m5lib.progress import progress


class MediaError(ValueError):
    """One media file that cannot be used; the message is the reason, without the file's name."""


class Features(NamedTuple):
    """Feature vectors of one file: ``values`` (L, F) float32, and ``boxes`` (L, 5) float32 for regions of a picture."""

    values: np.ndarray
    boxes: np.ndarray | None = None


def open_image(file: MediaFile) -> Image.Image:
    """Decode a picture to RGB. Transparent pixels become white, as a shop's page shows them.

    Raises:
        MediaError: empty, not a picture, or cut short.
    """
    data = file.read()
    if not data or (file.size is not None and len(data) < file.size):
        raise MediaError("the file is empty or cut short")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else f"cannot be decoded ({error})"
        raise MediaError(reason) from None


@dataclass(frozen=True)
class Crops:
    """Plain region features that need no weights: crops at several scales, each described by its colours and its edges.

    ``levels`` ``(1, 2, 3)`` cuts the picture into 1 + 4 + 9 = 14 crops that overlap by ``margin`` of their side. Of each crop, a
    grid of ``cells`` x ``cells`` gives mean RGB and a histogram of gradient directions (HOG: Dalal and Triggs, CVPR 2005; undirected,
    strongest channel, normalised over the crop, square root), so F = cells² (3 + directions). Colours and histograms are
    shifted and scaled to about zero mean and unit deviation. Raw pixels do worse by far, see ``LOG.md``.

    Boxes are the paper's 5-d location (x1/W, y1/H, x2/W, y2/H, area/WH), as the released loader writes it.
    """

    levels: tuple[int, ...] = (1, 2, 3)
    margin: float = 0.15
    cells: int = 4
    directions: int = 8

    @property
    def width(self) -> int:
        """F."""
        return self.cells**2 * (3 + self.directions)

    def boxes(self) -> np.ndarray:
        """(L, 5) boxes in fractions of the picture, the coarsest level first, then by rows."""
        boxes = []
        for level in self.levels:
            grow = self.margin / level if level > 1 else 0.0
            for row in range(level):
                for column in range(level):
                    x1, y1 = max(0.0, column / level - grow), max(0.0, row / level - grow)
                    x2, y2 = min(1.0, (column + 1) / level + grow), min(1.0, (row + 1) / level + grow)
                    boxes.append((x1, y1, x2, y2, (x2 - x1) * (y2 - y1)))
        return np.array(boxes, dtype=np.float32)

    def __call__(self, file: MediaFile) -> Features:
        """Features and boxes of one picture. Raises :class:`MediaError`."""
        image = open_image(file)
        scale = np.array([image.width, image.height] * 2)
        boxes, side = self.boxes(), 4 * self.cells
        crops = [np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=tuple(box * scale))) for box in boxes[:, :4]]
        return Features(self.describe(np.stack(crops).astype(np.float32) / 255.0), boxes)

    def describe(self, crops: np.ndarray) -> np.ndarray:
        """(L, side, side, 3) in [0, 1] -> (L, F): colours, then histograms, cell by cell."""
        n, side = len(crops), crops.shape[1]
        grid = (n, self.cells, side // self.cells, self.cells, side // self.cells)
        colours = crops.reshape(*grid, 3).mean((2, 4))
        dx, dy = np.zeros_like(crops), np.zeros_like(crops)
        dx[:, :, 1:-1] = crops[:, :, 2:] - crops[:, :, :-2]
        dy[:, 1:-1] = crops[:, 2:] - crops[:, :-2]
        strongest = np.hypot(dx, dy).argmax(-1, keepdims=True)
        dx, dy = (np.take_along_axis(d, strongest, -1)[..., 0] for d in (dx, dy))
        place = np.arctan2(dy, dx) % np.pi / np.pi * self.directions  # in bins; shared out between the two nearest
        share = place % 1.0
        lower = place.astype(int) % self.directions
        bins = np.arange(self.directions)
        vote = (lower[..., None] == bins) * (1 - share)[..., None] + ((lower[..., None] + 1) % self.directions == bins) * share[..., None]
        edges = (vote * np.hypot(dx, dy)[..., None]).reshape(*grid, self.directions).sum((2, 4))
        edges = np.sqrt(edges / (edges.sum((1, 2, 3), keepdims=True) + 0.5))
        scaled = [(colours - 0.75) / 0.3, (edges - 0.05) / 0.06]
        return np.concatenate([part.reshape(n, -1) for part in scaled], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Pixels:
    """The whole picture as one token of ``width x height`` RGB pixels in [-1, 1]: what a control without learning sees."""

    size: tuple[int, int] = (24, 32)

    @property
    def width(self) -> int:
        """F."""
        return 3 * self.size[0] * self.size[1]

    def __call__(self, file: MediaFile) -> Features:
        """Pixels of one picture. Raises :class:`MediaError`."""
        pixels = np.asarray(open_image(file).resize(self.size, Image.Resampling.BILINEAR), dtype=np.float32)
        return Features(pixels.reshape(1, -1) / 127.5 - 1.0, np.array([[0, 0, 1, 1, 1]], dtype=np.float32))


#: Extractors that need no weights, used where nothing else is asked for.
PLAIN = {"image": Crops()}


class Ragged(NamedTuple):
    """Features of N products one after another: those of product ``n`` are rows ``offsets[n]`` to ``offsets[n + 1]``.

    ``values`` (T, F) float16, ``boxes`` (T, 5) float16 or None, ``offsets`` (N + 1,) int64; an absent modality has no rows.
    """

    values: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray | None = None


def _stack(found: list[Features | None]) -> Ragged:
    lengths = [0 if features is None else len(features.values) for features in found]
    there = [features for features in found if features is not None]
    boxes = np.concatenate([f.boxes for f in there]).astype(np.float16) if there[0].boxes is not None else None
    values = np.concatenate([f.values for f in there]).astype(np.float16)
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]), boxes)


def extract(
    catalogue: Catalogue, extractors: Mapping[str, object] = PLAIN, workers: int | None = None
) -> tuple[Catalogue, dict[str, Ragged]]:
    """Features of every feature modality that the catalogue has and that has an extractor.

    Returns:
        the catalogue without what could not be decoded (see :meth:`~m5lib.data.Catalogue.without`), and for each modality a
        :class:`Ragged` in the order of that catalogue.
    """
    found: dict[str, dict[str, Features]] = {}
    broken: list[Skip] = []

    def work(extractor, product, name):
        try:
            return extractor(product.contents[name])
        except (MediaError, OSError) as error:
            return Skip(product.id, name, str(error))

    for name, row in MODALITIES.items():
        if row.kind != "features" or name not in extractors or name not in catalogue.modalities:
            continue
        products = [product for product in catalogue.products if name in product.contents]
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            results = pool.map(lambda p, name=name: work(extractors[name], p, name), products)
            results = list(progress(results, len(products), f"{name} features", "files"))
        broken += [result for result in results if isinstance(result, Skip)]
        found[name] = {p.id: r for p, r in zip(products, results, strict=True) if not isinstance(r, Skip)}
    clean = catalogue.without(broken) if broken else catalogue
    return clean, {name: _stack([by_id.get(i) for i in clean.ids]) for name, by_id in found.items() if by_id}
