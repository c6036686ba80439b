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
from tqdm.auto import tqdm

from m5lib.data import Catalogue, MediaFile, Skip
from m5lib.modalities import MODALITIES


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
    """Plain region features that need no weights: crops at several scales, each resized to a few pixels.

    ``levels`` ``(1, 2, 3)`` cuts the picture into 1 + 4 + 9 = 14 equal crops, overlapping by half a crop's margin; a crop becomes
    ``size`` x ``size`` RGB pixels in [-1, 1], so F = 3 ``size``². Boxes are the paper's 5-d location
    (x1/W, y1/H, x2/W, y2/H, area/WH), as the released loader writes it.
    """

    levels: tuple[int, ...] = (1, 2, 3)
    size: int = 8
    margin: float = 0.15

    @property
    def width(self) -> int:
        """F."""
        return 3 * self.size**2

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
        image = open_image(file)
        scale = np.array([image.width, image.height] * 2)
        boxes = self.boxes()
        crops = [
            np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=tuple(box * scale)))
            for box in boxes[:, :4]
        ]
        return Features(np.stack(crops).reshape(len(boxes), -1).astype(np.float32) / 127.5 - 1.0, boxes)


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
            results = list(tqdm(results, total=len(products), desc=f"{name} features", unit="file", mininterval=2))
        broken += [result for result in results if isinstance(result, Skip)]
        found[name] = {p.id: r for p, r in zip(products, results, strict=True) if not isinstance(r, Skip)}
    clean = catalogue.without(broken) if broken else catalogue
    return clean, {name: _stack([by_id.get(i) for i in clean.ids]) for name, by_id in found.items() if by_id}
