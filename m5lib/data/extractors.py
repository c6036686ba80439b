"""Extractors: one media file in, an array of feature vectors out.

An extractor is a frozen dataclass, so that its settings can be saved beside a model, with a
``width`` (F), where tokens are stretches of time a ``step`` (seconds), and a callable::

    extractor(file: MediaFile) -> Features(values (L, F) float32, boxes (L, 5) float32 or None,
                                           classes (L, K) float32 or None)

that raises :class:`~m5lib.data.decoding.MediaError` with a reason where the file cannot be used. A
field with ``compare=False`` says how to compute, not what (a device). ``version`` counts changes of
what a class computes; stored features of another version are made again. ``decodes = False`` marks
one that reads finished features and no media (:mod:`m5lib.data.m5features`). One with
``prepare`` and ``features`` computes several files ``together`` (:mod:`m5lib.data.store`).

Those here need no weights; pre-trained ones are in :mod:`m5lib.data.networks` and
:mod:`m5lib.data.backbones`. torch and torchaudio are imported where they are used.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache, wraps
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image

from m5lib.data import MediaFile
from m5lib.data.decoding import MediaError, frames, open_image, probe, sound


class Features(NamedTuple):
    """Feature vectors of one file: ``values`` (L, F) float32, ``boxes`` (L, 5) float32 for regions
    of a picture, and ``classes`` (L, K) float32, their class probabilities."""

    values: np.ndarray
    boxes: np.ndarray | None = None
    classes: np.ndarray | None = None


def locations(boxes: np.ndarray, width: float | int = 1.0, height: float | int = 1.0) -> np.ndarray:
    """5-d locations (released) of boxes (L, 4): (L, 5) of x1/W, y1/H, x2/W, y2/H, area/WH."""
    boxes = np.asarray(boxes, np.float32) / np.array([width, height] * 2, np.float32)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.concatenate([boxes, area[:, None]], axis=1)


@dataclass(frozen=True)
class Crops:
    """Plain region features without weights: crops at several scales, their colours and edges.

    ``levels`` ``(1, 2, 3)`` cuts the picture into 1 + 4 + 9 = 14 crops that overlap by ``margin``
    of their side. Of each crop, a grid of ``cells`` x ``cells`` gives mean RGB and a histogram of
    gradient directions (HOG: Dalal and Triggs, CVPR 2005; undirected, strongest channel, normalised
    over the crop, square root), so F = cells² (3 + directions). Colours and histograms are shifted
    and scaled to about zero mean and unit deviation. Raw pixels do worse by far, see ``LOG.md``.

    Boxes: see :func:`locations`.
    """

    levels: tuple[int, ...] = (1, 2, 3)
    margin: float = 0.15
    version: ClassVar[int] = 2
    cells: int = 4
    directions: int = 8
    width = property(lambda self: self.cells**2 * (3 + self.directions))

    def boxes(self) -> np.ndarray:
        """(L, 5) boxes in fractions of the picture, the coarsest level first, then by rows."""
        boxes = []
        for level in self.levels:
            grow = self.margin / level if level > 1 else 0.0
            for row in range(level):
                for column in range(level):
                    x1, y1 = max(0.0, column / level - grow), max(0.0, row / level - grow)
                    x2, y2 = (min(1.0, (n + 1) / level + grow) for n in (column, row))
                    boxes.append((x1, y1, x2, y2))
        return locations(np.array(boxes))

    def __call__(self, file: MediaFile) -> Features:
        """Features and boxes of one picture. Raises :class:`MediaError`."""
        image = open_image(file, longest=1024)
        boxes, size, smooth = self.boxes(), (4 * self.cells,) * 2, Image.Resampling.BILINEAR
        corners = boxes[:, :4] * np.array([image.width, image.height] * 2)
        crops = np.stack([image.resize(size, smooth, box=tuple(box)) for box in corners])
        return Features(self.describe(crops.astype(np.float32) / 255.0), boxes)

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
        # in bins; shared out between the two nearest
        place = np.arctan2(dy, dx) % np.pi / np.pi * self.directions
        share, bins = (place % 1.0)[..., None], np.arange(self.directions)
        lower = (place.astype(int) % self.directions)[..., None]
        vote = (lower == bins) * (1 - share) + ((lower + 1) % self.directions == bins) * share
        edges = (vote * np.hypot(dx, dy)[..., None]).reshape(*grid, self.directions).sum((2, 4))
        edges = np.sqrt(edges / (edges.sum((1, 2, 3), keepdims=True) + 0.5))
        scaled = [(colours - 0.75) / 0.3, (edges - 0.05) / 0.06]
        return np.concatenate([part.reshape(n, -1) for part in scaled], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Pixels:
    """The whole picture as one token of RGB pixels in [-1, 1], for a control without learning."""

    size: tuple[int, int] = (24, 32)
    version: ClassVar[int] = 1
    width = property(lambda self: 3 * self.size[0] * self.size[1])

    def __call__(self, file: MediaFile) -> Features:
        """Pixels of one picture. Raises :class:`MediaError`."""
        small = open_image(file).resize(self.size, Image.Resampling.BILINEAR)
        pixels = np.asarray(small, dtype=np.float32).reshape(1, -1) / 127.5 - 1.0
        return Features(pixels, np.array([[0, 0, 1, 1, 1]], dtype=np.float32))


@dataclass(frozen=True)
class Frames:
    """One frame per second (supplement E), up to ``limit``, each as a crop of :class:`Crops`.

    F = cells² (3 + directions). The frame is the one in the middle of each second (the first of a
    video is often black): token ``n`` shows second ``n`` + 0.5. A shorter video gives its middle
    frame. Released: clips of 16 frames through S3D-G (:class:`m5lib.data.networks.Clips`).
    """

    cells: int = 6
    directions: int = 8
    limit: int = 12
    version: ClassVar[int] = 2
    step: ClassVar[float] = 1.0
    width = Crops.width

    def __call__(self, file: MediaFile) -> Features:
        """One frame per second of a video."""
        track = probe(file).video
        if track is None:
            raise MediaError("no video track in it")
        side = 4 * self.cells
        pixels, stamps = frames(file, seconds_of(track.seconds, self.limit), (side, side))
        keep = np.unique(stamps, return_index=True)[1] if track.seconds is None else slice(None)
        describe = Crops(cells=self.cells, directions=self.directions).describe
        return Features(describe(pixels[keep].astype(np.float32) / 255.0))


def seconds_of(length: float | None, limit: int) -> list[float]:
    """The middle of each of the first ``limit`` seconds of a video; its middle where it has no
    whole half second."""
    times = [n + 0.5 for n in range(limit) if length is None or n + 0.5 < length]
    return times or [length / 2]


RATE, WINDOW, HOP = 16_000, 1024, 256


def once(load: Callable) -> Callable:
    """The same function; each of its last results is made once per process, by the first thread."""
    lock, cached = Lock(), lru_cache(maxsize=16)(load)

    @wraps(load)
    def loaded(*given):
        with lock:
            return cached(*given)

    return loaded


@once
def _torchaudio(part: str):
    """A module of torchaudio. They import each other: a second thread would find half a module."""
    return import_module(f"torchaudio.{part}")


@once
def _mel(bands: int):
    """torchaudio's mel power, window and hop of the paper (supplement E); thread-safe."""
    made = _torchaudio("transforms").MelSpectrogram
    return made(RATE, n_fft=WINDOW, hop_length=HOP, n_mels=bands)


def _samples(file: MediaFile, seconds: float):
    import torch

    samples = sound(file, RATE, seconds)
    if len(samples) < WINDOW:
        length, window = len(samples) / RATE, WINDOW / RATE
        raise MediaError(f"{length:.3f} s of sound; one window is {window:.3f} s")
    return torch.from_numpy(samples)


def means(frames: np.ndarray, group: int) -> np.ndarray:
    """(T, F) -> (ceil(T / group), F) float32, means of ``group`` frames, at the end of fewer."""
    starts = np.arange(0, len(frames), group)
    counts = np.diff([*starts, len(frames)])[:, None]
    return (np.add.reduceat(frames, starts, axis=0) / counts).astype(np.float32)


@dataclass(frozen=True)
class LogMel:
    """Decibels of mel bands, a token per ``group`` frames of 16 ms (10: 0.16 s), at most
    ``seconds`` of sound.

    Window 1,024, hop 256, 16 kHz (supplement E). A token is the *mean* of its frames, so that 12 s,
    751 frames, make 76 tokens of the 80 that the paper allows; shorter sound makes fewer tokens of
    the same length. Decibels are below the loudest of the file, at most 80, and are scaled to [-1,
    1], the scale of the other features (losses of masked features are squared errors).
    """

    bands: int = 80
    group: int = 10
    seconds: float | int = 12.0
    version: ClassVar[int] = 1
    width = property(lambda self: self.bands)
    step = property(lambda self: self.group * HOP / RATE)

    def __call__(self, file: MediaFile) -> Features:
        """Sound of an audio or video file."""
        frames = self.scaled(self.spectrogram(_samples(file, self.seconds)))
        return Features(means(frames, self.group))

    def spectrogram(self, samples) -> np.ndarray:
        """(T,) tensor of samples -> (frames, bands) decibels, by torchaudio's definitions."""
        decibels = _torchaudio("functional").amplitude_to_DB
        return decibels(_mel(self.bands)(samples), 10.0, 1e-10, 0.0, top_db=80.0).numpy().T

    def scaled(self, decibels: np.ndarray) -> np.ndarray:
        """Decibels below the loudest, in [-1, 1]."""
        return (decibels - decibels.max()) / 40.0 + 1.0


@dataclass(frozen=True)
class Mfcc(LogMel):
    """Mel-frequency cepstral coefficients, the paper's audio features (supplement E; the released
    code has :class:`ReleasedMel`), in tokens as :class:`LogMel`'s.

    To come near the scale of the other features, coefficient 0 (loudness) is divided by 40
    sqrt(bands) and the others by 40; no mean is taken out, for the mean of a file is its timbre.
    """

    coefficients: int = 40
    width = property(lambda self: self.coefficients)

    def spectrogram(self, samples) -> np.ndarray:
        """(T,) tensor of samples -> (frames, coefficients), equal to torchaudio's ``MFCC``."""
        dct = _torchaudio("functional").create_dct(self.coefficients, self.bands, "ortho")
        return super().spectrogram(samples) @ dct.numpy()

    def scaled(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients near the scale of the other features."""
        frames = coefficients / 40.0
        frames[:, 0] /= math.sqrt(self.bands)
        return frames


@dataclass(frozen=True)
class ReleasedMel:
    """The released layout: 80 mel bands are the tokens, their 751 values over 12 s the features.

    Mel *power*, neither logarithm nor cosine transform (the paper says MFCC); sound under 12 s is
    filled up with silence, so every file has 751 columns; each column is standardised over the
    bands with the sample deviation, and a silent one is all zeros.
    """

    bands: int = 80
    seconds: float | int = 12.0
    version: ClassVar[int] = 1
    width = property(lambda self: round(self.seconds * RATE) // HOP + 1)

    def __call__(self, file: MediaFile) -> Features:
        """Sound of an audio or video file."""
        import torch

        samples = _samples(file, self.seconds)
        silence = round(self.seconds * RATE) - len(samples)
        mel = _mel(self.bands)(torch.nn.functional.pad(samples, (0, silence)))
        return Features(((mel - mel.mean(dim=0)) / (mel.std(dim=0) + 1e-9)).numpy())


def settings(extractor) -> dict:
    """What an extractor computes, as JSON: name, version, width, fields, weights' checksum."""
    made = {"extractor": type(extractor).__name__, "version": getattr(extractor, "version", 1)}
    made["width"] = extractor.width
    for field in fields(extractor):
        value = getattr(extractor, field.name)
        if field.compare:
            made[field.name] = checksum(value) if isinstance(value, Path) else value
    return json.loads(json.dumps(made))  # tuples become lists, as they are read again


def described(extractor) -> dict:
    """:func:`settings` with ``hints`` that say nothing of what is computed: seconds of a token
    (``step``), where the weights lay, and the name and revision of those of a hub."""
    hints, weights = {}, getattr(extractor, "weights", None)
    if weights is not None:
        hints["weights"] = str(weights.resolve())
        if weights.parent.name == "snapshots":  # of the hub's cache: models--owner--name
            name = weights.parents[1].name.removeprefix("models--").replace("--", "/")
            hints["name"] = f"{name}@{weights.name}"
    if getattr(extractor, "step", None):
        hints["step"] = extractor.step
    return settings(extractor) | {"hints": hints}


#: What decides what a model in a folder computes, beside its weights.
CONFIGURATIONS = ("config.json", "preprocessor_config.json", "processor_config.json")


def checksum(path: Path) -> str:
    """16 hex digits of a file of weights, or of a folder's configurations and weights."""
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
        files = [*filter(Path.is_file, (path / name for name in CONFIGURATIONS)), *weights]
        return hashlib.blake2b("".join(map(checksum, files)).encode(), digest_size=8).hexdigest()
    seen = path.stat()
    return _checksum(path.resolve(), seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=64)
def _checksum(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


#: Extractors that need no weights, used where nothing else is asked for.
PLAIN = {"image": Crops(), "video": Frames(), "audio": Mfcc()}
