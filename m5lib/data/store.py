"""Extracted features on disk: memory-mapped shards with an index.

::

    <folder>/<modality>.json              the index: extractor with its settings, shards in order, products, rows, width
    <folder>/<modality>/<key>.json        one shard: ids, lengths, what could not be read and why; written last
    <folder>/<modality>/<key>.npy         (T, F) float16, the features of its products one after another
    <folder>/<modality>/<key>.boxes.npy   (T, 5) float16, for regions

``key`` is a hash of the extractor's settings and of the ids and checksums of the shard's products.
Work that is done is found by its key, so nothing is made twice, a killed extraction goes on where
it stopped, and its end is the same to the byte. Files appear under their name only when they are
whole. The folder can be moved; no path is in it. Delete it to start anew.
"""  # noqa: E501

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from m5lib.catalogue import Catalogue, DataError, Product, Skip
from m5lib.data.extractors import described, settings
from m5lib.data.files import locked
from m5lib.data.media import UNREADABLE, Ragged, features_of, in_parallel, prepared
from m5lib.modalities import MODALITIES


@lru_cache(maxsize=256)  # open files are few on most systems; shards may be many
def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


class Mapped:
    """A (T, F) array in several ``.npy`` files one after another, indexed along T like a numpy
    array.

    Files are opened when something of them is read, and a copy of that is returned. Pickles as
    paths, so that loader processes each open their own.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        lengths: Sequence[int] | np.ndarray,
        width: int,
        rows: np.ndarray | None = None,
    ):
        self.paths, self.rows, self.dtype, self.ndim = tuple(paths), rows, np.dtype(np.float16), 2
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.shape = (int(self.starts[-1]) if rows is None else len(rows), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        index = (
            np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        )
        index = np.flatnonzero(index) if index.dtype == bool else index
        flat = np.where(index < 0, index + len(self), index).ravel()
        if flat.size and (flat.min() < 0 or flat.max() >= len(self)):
            raise IndexError(f"rows up to {flat.max()} of {len(self)}")
        flat = flat if self.rows is None else self.rows[flat]
        out = np.empty((flat.size, self.shape[1]), self.dtype)
        shards = np.searchsorted(self.starts, flat, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            out[here] = _map(self.paths[shard])[flat[here] - self.starts[shard]]
        return out.reshape(*index.shape, self.shape[1])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def take(self, rows: np.ndarray) -> "Mapped":
        """The same files, seen through other rows."""
        lengths = np.diff(self.starts)
        return Mapped(
            self.paths, lengths, self.shape[1], rows if self.rows is None else self.rows[rows]
        )


def _write(path: Path, write: Callable) -> None:
    """Write a file so that it is there whole or not at all, whenever the process ends."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _write_json(path: Path, content: dict) -> None:
    _write(
        path, lambda file: file.write(json.dumps(content, ensure_ascii=False, indent=1).encode())
    )


@dataclasses.dataclass
class _Shard:
    """Products that are extracted together, and where their features lie."""

    stem: Path
    products: list[Product]
    sources: list[str]

    @property
    def values(self) -> Path:
        return self.stem.with_suffix(".npy")

    @property
    def boxes(self) -> Path:
        return self.stem.with_suffix(".boxes.npy")

    def record(self) -> dict | None:
        """What was written of it; None where it is missing, not whole, or met a fault that may have
        passed."""
        try:
            record = json.loads(self.stem.with_suffix(".json").read_bytes())
            whole = all(
                (self.stem.parent / name).stat().st_size == size
                for name, size in record["bytes"].items()
            )
            return record if whole and not record["again"] else None
        except (OSError, ValueError, KeyError):
            return None

    def write(self, found: list, extractor) -> None:
        there = [features for features in found if not isinstance(features, Skip)]
        files = {
            self.values: np.concatenate(
                [np.empty((0, extractor.width)), *(f.values for f in there)]
            )
        }
        if there and there[0].boxes is not None:
            files[self.boxes] = np.concatenate([f.boxes for f in there])
        for path, array in files.items():
            _write(
                path,
                lambda file, array=array: np.save(
                    file, array.astype(np.float16), allow_pickle=False
                ),
            )
        _write_json(
            self.stem.with_suffix(".json"),
            {
                "ids": [product.id for product in self.products],
                "sources": self.sources,
                "lengths": [0 if isinstance(f, Skip) else len(f.values) for f in found],
                "skipped": [[f.where, f.reason] for f in found if isinstance(f, Skip)],
                "bytes": {path.name: path.stat().st_size for path in files},
                # A file that is not there, or a disk that did not answer, is tried again the next
                # time.
                "again": any(
                    isinstance(f, Skip) and f.reason.startswith(UNREADABLE) for f in found
                ),
            },
        )


def _plan(
    products: list[Product], name: str, extractor, folder: Path, size: int, workers
) -> tuple[list[_Shard], list[Skip]]:
    def source(product: Product) -> str | Skip:
        try:
            return product.contents[name].checksum
        except OSError as error:
            return Skip(product.id, name, f"{UNREADABLE}: {error.strerror or error}")

    sources = list(in_parallel(source, products, workers))
    lost = [source for source in sources if isinstance(source, Skip)]
    pairs = [(p, s) for p, s in zip(products, sources, strict=True) if not isinstance(s, Skip)]
    shards = []
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        job = json.dumps([settings(extractor), [(p.id, s) for p, s in part]], ensure_ascii=False)
        key = hashlib.blake2b(job.encode(), digest_size=10).hexdigest()
        shards.append(_Shard(folder / name / key, [p for p, _ in part], [s for _, s in part]))
    return shards, lost


def extract(
    catalogue: Catalogue,
    extractors: Mapping[str, object],
    folder: str | Path,
    workers: int | None = None,
    shard: int = 256,
) -> tuple[Catalogue, dict[str, Ragged]]:
    """:func:`m5lib.data.media.extract` into a folder: what is there is not made again, and features
    are read from it lazily.

    Args:
        folder: of this store; made where missing.
        workers: threads, by default one per core (see :func:`m5lib.data.media.in_parallel`).
        shard: products per shard. A killed extraction loses at most one; take some thousands for
            millions of products.

    Returns:
        the catalogue without what could not be decoded, and for each modality a
        :class:`~m5lib.data.media.Ragged` of :class:`Mapped` arrays in the order of that catalogue.
    """
    folder = Path(folder).absolute()  # read from later, perhaps by a process that works elsewhere
    catalogue, extractors = prepared(catalogue, extractors, workers)
    broken: list[Skip] = []
    indices = {}
    with locked(folder / ".lock"):
        for part in folder.rglob("*.part"):  # left by a process that was killed
            part.unlink()
        for name, extractor in extractors.items():
            (folder / name).mkdir(exist_ok=True)
            products = [product for product in catalogue.products if name in product.contents]
            shards, lost = _plan(products, name, extractor, folder, shard, workers)
            todo = [part for part in shards if part.record() is None]
            _run(
                todo,
                sum(len(s.products) for s in shards) - sum(len(s.products) for s in todo),
                name,
                extractor,
                workers,
            )
            records = [json.loads(part.stem.with_suffix(".json").read_bytes()) for part in shards]
            broken += lost + [
                Skip(where, name, reason)
                for record in records
                for where, reason in record["skipped"]
            ]
            index = {"settings": settings(extractor), "shards": [part.stem.name for part in shards]}
            index |= {
                "products": sum(len(r["ids"]) for r in records),
                "rows": sum(sum(r["lengths"]) for r in records),
            }
            _write_json(folder / f"{name}.json", index)
            indices[name] = index | {"settings": described(extractor)}
    clean = catalogue.without(broken) if broken else catalogue
    return clean, {
        name: ragged
        for name, index in indices.items()
        if (ragged := _read(folder, name, clean, index)) is not None
    }


def _run(todo: list[_Shard], done: int, name: str, extractor, workers: int | None) -> None:
    products = [product for part in todo for product in part.products]
    results = in_parallel(lambda product: features_of(extractor, product, name), products, workers)
    parts, found = iter(todo), []
    part = next(parts, None)
    with closing(results):
        for result in (
            tqdm(results, f"{name} features", done + len(products), initial=done, unit=" files")
            if todo
            else ()
        ):
            found.append(result)
            if len(found) == len(part.products):
                part.write(found, extractor)
                part, found = next(parts, None), []


def _read(folder: Path, name: str, catalogue: Catalogue, index: dict) -> Ragged | None:
    """Features of a catalogue's products, in its order, from the shards that the index names; None
    where there are none."""
    stems = [folder / name / key for key in index["shards"]]
    records = [json.loads(stem.with_suffix(".json").read_bytes()) for stem in stems]
    filled = [
        (stem, record)
        for stem, record in zip(stems, records, strict=True)
        if sum(record["lengths"])
    ]
    if not filled:
        return None
    stems, records = zip(*filled, strict=True)
    sizes, width = [sum(record["lengths"]) for record in records], index["settings"]["width"]
    values = Mapped([stem.with_suffix(".npy") for stem in stems], sizes, width)
    boxes = [stem.with_suffix(".boxes.npy") for stem in stems]
    boxes = Mapped(boxes, sizes, 5) if boxes[0].exists() else None
    ids = [i for record in records for i in record["ids"]]
    lengths = np.array([n for record in records for n in record["lengths"]])
    starts = np.cumsum(lengths) - lengths
    place = {i: n for n, i in enumerate(ids)}
    wanted = np.array(
        [
            place.get(i, -1) if name in p.contents else -1
            for i, p in zip(catalogue.ids, catalogue.products, strict=True)
        ]
    )
    counts = np.where(wanted >= 0, lengths[wanted], 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    rows = np.repeat(starts[wanted] - offsets[:-1], counts) + np.arange(offsets[-1])
    if not np.array_equal(
        rows, np.arange(len(values))
    ):  # other products, or another order, than were extracted
        values, boxes = values.take(rows), boxes and boxes.take(rows)
    return Ragged(values, offsets, boxes, settings=index["settings"])


def load(folder: str | Path, catalogue: Catalogue) -> tuple[Catalogue, dict[str, Ragged]]:
    """Stored features of a catalogue's products, in its order, without their media: it may be a
    part of what was extracted.

    Returns:
        as :func:`extract`. A product that the store has no features of for a modality loses it,
        with a line in ``skipped``.

    Raises:
        DataError: no store lies there, or a file of it is missing or not whole.
    """
    folder, features, lost = Path(folder).absolute(), {}, []
    names = [name for name in MODALITIES if (folder / f"{name}.json").is_file()]
    if not names:
        raise DataError(
            f"{folder}: no feature store (no <modality>.json); make one with "
            "m5lib.data.store.extract"
        )
    for name in names:
        index = json.loads((folder / f"{name}.json").read_bytes())
        if bad := [
            k for k in index["shards"] if _Shard(folder / name / k, [], []).record() is None
        ]:
            raise DataError(
                f"{folder / name / bad[0]}: missing or not whole; run m5lib.data.store.extract "
                "again"
            )
        records = [json.loads((folder / name / f"{k}.json").read_bytes()) for k in index["shards"]]
        had = {
            i
            for record in records
            for i, length in zip(record["ids"], record["lengths"], strict=True)
            if length
        }
        why = {i: reason for record in records for i, reason in record["skipped"]}
        catalogue = _known(catalogue, name, had)
        without = [p.id for p in catalogue.products if name in p.contents and p.id not in had]
        lost += [Skip(i, name, why.get(i, "not in the store")) for i in without]
    catalogue = catalogue.without(lost) if lost else catalogue
    for name in names:
        if name in catalogue.modalities:
            index = json.loads((folder / f"{name}.json").read_bytes())
            features[name] = _read(folder, name, catalogue, index)
    return catalogue, {name: ragged for name, ragged in features.items() if ragged is not None}


def _known(catalogue: Catalogue, name: str, had: set[str]) -> Catalogue:
    """Give products what the store knows to lie inside another file of theirs (sound in video)."""
    inside, products = MODALITIES[name].inside, []
    for product in catalogue.products:
        if inside in product.contents and name not in product.contents and product.id in had:
            contents = {**product.contents, name: product.contents[inside]}
            product = dataclasses.replace(
                product, contents={n: contents[n] for n in MODALITIES if n in contents}
            )
        products.append(product)
    return dataclasses.replace(catalogue, products=tuple(products))
