"""Feature extraction over a catalogue: media files in, arrays of feature vectors out, in memory or
in a folder of memory-mapped shards.

An extractor (:mod:`m5lib.data.extractors`) turns one file into one array. What could not be decoded
is taken out of the catalogue and listed, never replaced by zeros (section 4.1).

::

    <folder>/<modality>.json              the index: settings, shards in order, products, rows
    <folder>/<modality>/<key>.json        a shard: ids, lengths, what was not read; written last
    <folder>/<modality>/<key>.npy         (T, F) float16, the features of its products
    <folder>/<modality>/<key>.boxes.npy   (T, 5) float16, for regions
    <folder>/<modality>/<key>.classes.npy (T, K) float16, for regions with class probabilities

``key`` is a hash of the extractor's settings and of the ids and checksums of the shard's products:
nothing is made twice, and a killed extraction goes on where it stopped, to the same bytes. Any
number of processes may work in one folder: each takes shards that nobody is at (``<key>.lock``),
and one that is killed loses one at most. Files appear only when they are whole. The folder can be
moved, no path is in these files; delete it anytime.

>>> clean, features = extract(catalogue, folder="features", processes=8)  # or with an executor
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from m5lib.catalogue import Catalogue, Product, Skip
from m5lib.data import in_parallel, locked, whole_file, write_json
from m5lib.data.decoding import MediaError, probe
from m5lib.data.extractors import PLAIN, Features, described, settings
from m5lib.modalities import MODALITIES
from m5lib.streams import Ragged

Item = tuple[str, Any]  # id and content
#: How the reason begins where not the file's content was at fault: it may be there the next time.
UNREADABLE = "cannot be read"


def extract(
    catalogue: Catalogue,
    extractors: Mapping[str, object] = PLAIN,
    folder: str | Path | None = None,
    workers: int | None = None,
    shard: int = 256,
    processes: int = 1,
    executor: Executor | None = None,
) -> tuple[Catalogue, dict[str, Ragged]]:
    """Features of every modality that the catalogue has and that has an extractor (for words,
    :class:`m5lib.models.words.Pieces`).

    Args:
        extractors: modality -> extractor. With one for a modality that lies inside another (sound
            in video), products get it from there (:func:`with_sound`).
        folder: where they are kept, not made again, and read from lazily. None: in memory.
        workers: threads of each process (:func:`in_parallel`).
        shard: products per shard, what a kill loses; some thousands for millions of products.
        processes: how many work on the folder, this one among them.
        executor: runs them, any of ``concurrent.futures``; this process then waits. Machines must
            see the folder, and the media, under the same paths.

    Returns the catalogue without what could not be decoded (:func:`without`), and for each modality
    a :class:`Ragged` in its order, of :class:`Mapped` arrays where there is a folder.
    """
    decoding = (name for name, e in extractors.items() if getattr(e, "decodes", True))
    if any(MODALITIES[name].inside for name in decoding):
        catalogue = with_sound(catalogue, workers)
    chosen = {name: extractors[name] for name in catalogue.modalities if name in extractors}
    if folder is None:
        parts = {name: _in_memory(catalogue, name, e, workers) for name, e in chosen.items()}
    else:
        folder = Path(folder).absolute()  # read later, perhaps by a process that works elsewhere
        alone = executor is not None or processes < 2
        others = None if alone else ProcessPoolExecutor(processes - 1, get_context("spawn"))
        with others or nullcontext(executor) as pool:
            crew = partial(_together, pool, processes, executor is not None)
            parts = {
                name: _stored(catalogue, name, e, folder, workers, shard, crew)
                for name, e in chosen.items()
            }
    broken = [skip for part in parts.values() for skip in part.skipped]
    clean = without(catalogue, broken) if broken else catalogue
    filled = {name: part for name, part in parts.items() if len(part.values)}
    return clean, {n: part.of(clean, described(chosen[n])) for n, part in filled.items()}


def without(catalogue: Catalogue, broken: Sequence[Skip]) -> Catalogue:
    """The catalogue without what could not be decoded, which its ``skipped`` lists. A product keeps
    its other modalities; one that has none left is left out."""
    lost, products = {(skip.where, skip.field) for skip in broken}, []
    for p in catalogue.products:
        left = {name: x for name, x in p.contents.items() if (p.id, name) not in lost}
        same = len(left) == len(p.contents)
        products += [p if same else replace(p, contents=left)] if left else []
    return replace(catalogue, products=tuple(products), skipped=(*catalogue.skipped, *broken))


class _Extracted(NamedTuple):
    """Features of some products one after another, and why others have none."""

    ids: list[str]
    lengths: list[int]
    skipped: list[Skip]
    values: "np.ndarray | Mapped"
    boxes: "np.ndarray | Mapped | None"
    classes: "np.ndarray | Mapped | None" = None

    @classmethod
    def joined(cls, ids: list[str], results: list[Features | Skip], extractor) -> "_Extracted":
        """The results of some products, in half precision."""
        read, kind = [r for r in results if not isinstance(r, Skip)], _dtype(extractor)
        values = np.concatenate([np.empty((0, extractor.width), kind), *(f.values for f in read)])
        more = (
            np.concatenate(parts).astype(np.float16) if parts and parts[0] is not None else None
            for parts in ([f.boxes for f in read], [f.classes for f in read])
        )
        lengths = [0 if isinstance(result, Skip) else len(result.values) for result in results]
        skipped = [result for result in results if isinstance(result, Skip)]
        return cls(ids, lengths, skipped, values.astype(kind), *more)

    def of(self, catalogue: Catalogue, made: dict) -> Ragged:
        """The features of a catalogue's products, which come in the same order."""
        lengths = dict(zip(self.ids, self.lengths, strict=True))
        offsets = np.cumsum([0, *(lengths.get(id, 0) for id in catalogue.ids)])
        return Ragged(self.values, offsets, self.boxes, self.classes, made)


def _dtype(extractor) -> np.dtype:
    return np.dtype(getattr(extractor, "dtype", np.float16))


def _having(catalogue: Catalogue, name: str) -> list[Item]:
    pairs = zip(catalogue.ids, catalogue.contents(name), strict=True)
    return [pair for pair in pairs if pair[1] is not None]


def _in_memory(catalogue: Catalogue, name: str, extractor, workers: int | None) -> _Extracted:
    items = _having(catalogue, name)
    results = _results(extractor, items, name, workers)
    results = list(tqdm(results, f"{name} features", len(items), unit=" files"))
    return _Extracted.joined([id for id, _ in items], results, extractor)


def _results(
    extractor, items: Sequence[Item], name: str, workers: int | None
) -> Iterator[Features | Skip]:
    """Features of each content, or why there are none: in threads, or decoded there and computed
    together where the extractor says so."""
    whole = getattr(extractor, "together", 1) == 1
    work = (lambda f: _checked(extractor(f), extractor)) if whole else extractor.prepare
    tried = partial(_tried, work, name)
    results = in_parallel(tried, items, workers) if work else (content for _, content in items)
    if whole:
        yield from results
        return
    with closing(results):
        pairs = zip(items, results, strict=True)
        while some := list(islice(pairs, extractor.together)):
            ready = iter(extractor.features([r for _, r in some if not isinstance(r, Skip)]))
            check = partial(_tried, partial(_checked, extractor=extractor), name)
            for (id, _), result in some:
                yield result if isinstance(result, Skip) else check((id, next(ready)))


def _tried(work: Callable, name: str, item: Item):
    """What some work makes, or the :class:`Skip` that says why it cannot."""
    try:
        return work(item[1])
    except MediaError as error:
        return Skip(item[0], name, str(error))
    except OSError as error:
        return Skip(item[0], name, f"{UNREADABLE}: {error.strerror or error}")


def _checked(features: tuple, extractor) -> Features:
    """The same, as features. Raises :class:`MediaError` where they are not (L, F), finite."""
    values, *_ = features = Features(*features)
    if values.ndim != 2 or not len(values) or values.shape[1] != extractor.width:
        what = f"features of shape {values.shape}, expected (at least 1, {extractor.width})"
        raise MediaError(what)
    arrays, kind = (array for array in features if array is not None), _dtype(extractor)
    if not all(np.isfinite(array.astype(kind)).all() for array in arrays):
        raise MediaError("features that are not finite in half precision")
    return features


def with_sound(catalogue: Catalogue, workers: int | None = None) -> Catalogue:
    """The catalogue with the sound of its videos (``Modality.inside``): a product without a sound
    file whose video has a sound track gets that video as its audio content (the paper cuts all of
    its audio from the video, section 3). One that cannot be opened is listed later."""
    for name, row in MODALITIES.items():
        products = [] if row.inside is None else catalogue.products
        here = [p for p in products if row.inside in p.contents and name not in p.contents]

        def holds(p: Product, name=name, row=row) -> bool:
            try:
                return getattr(probe(p.contents[row.inside]), name) is not None
            except (MediaError, OSError):
                return False

        found = zip(here, in_parallel(holds, here, workers), strict=True)
        if more := {p.id: {name: p.contents[row.inside]} for p, there in found if there}:
            pairs = [(p, {**p.contents, **more.get(p.id, {})}) for p in products]
            own = (replace(p, contents={n: c[n] for n in MODALITIES if n in c}) for p, c in pairs)
            catalogue = replace(catalogue, products=tuple(own))
    return catalogue


# --- on disk


@lru_cache(maxsize=512)  # most systems allow 1,024 open files; shards may be many
def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


class Mapped:
    """A (T, F) array in several ``.npy`` files, indexed along T like a numpy array. Files are
    opened when something of them is read, and a copy of that is returned. Pickles as paths, so that
    loader processes each open their own."""

    def __init__(self, paths: Sequence[Path], lengths: Sequence[int], width: int, dtype="float16"):
        self.paths, self.dtype, self.ndim = tuple(paths), np.dtype(dtype), 2
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.shape = (int(self.starts[-1]), width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index
        flat = np.where(index < 0, index + len(self), index).ravel()
        if flat.size and (flat.min() < 0 or flat.max() >= len(self)):
            raise IndexError(f"rows up to {flat.max()} of {len(self)}")
        out = np.empty((flat.size, self.shape[1]), self.dtype)
        shards = np.searchsorted(self.starts, flat, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            out[here] = _map(self.paths[shard])[flat[here] - self.starts[shard]]
        return out.reshape(*index.shape, self.shape[1])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


def _stored(
    catalogue: Catalogue, name: str, extractor, folder: Path, workers, size: int, crew: Callable
) -> _Extracted:
    """Features of one modality from the folder, after those that lack are written there."""
    shards, skipped = _plan(catalogue, name, extractor, folder, size, workers)
    crew(shards, name, extractor, workers)
    records = [(stem, json.loads(_file(stem, "json").read_bytes())) for stem in shards]
    skipped += [Skip(w, name, reason) for _, record in records for w, reason in record["skipped"]]
    index = {
        "settings": settings(extractor),
        "shards": [stem.name for stem in shards],
        "products": sum(len(record["ids"]) for _, record in records),
        "rows": sum(sum(record["lengths"]) for _, record in records),
    }
    with locked(folder / ".lock"):
        for half in [*folder.glob(f"{name}.json.*.tmp"), *(folder / name).glob("*.tmp")]:
            with locked(lock := half.with_name(f"{half.name.split('.')[0]}.lock"), False) as mine:
                if mine:  # left by a process that was killed
                    half.unlink(missing_ok=True)
                    lock.unlink(missing_ok=True)
        if os.access(folder, os.W_OK):  # else all of it is there, and no other can be made
            write_json(folder / f"{name}.json", index)
    records = [(stem, record) for stem, record in records if any(record["lengths"])]
    stems, sizes = [stem for stem, _ in records], [sum(r["lengths"]) for _, r in records]
    files = [_file(stem, "npy") for stem in stems]
    values, more = Mapped(files, sizes, extractor.width, _dtype(extractor)), []
    for ending in ("boxes.npy", "classes.npy"):
        paths = [path for stem in stems if (path := _file(stem, ending)).exists()]
        more.append(Mapped(paths, sizes, _map(paths[0]).shape[1]) if paths else None)
    ids, lengths = ([x for _, r in records for x in r[key]] for key in ("ids", "lengths"))
    return _Extracted(ids, lengths, skipped, values, *more)


def _file(stem: Path, ending: str) -> Path:
    return stem.with_name(f"{stem.name}.{ending}")


def _plan(
    catalogue: Catalogue, name: str, extractor, folder: Path, size: int, workers: int | None
) -> tuple[dict[Path, list[tuple[Item, str]]], list[Skip]]:
    """The shards of a catalogue's products with their checksums, and the files that have none."""
    items = _having(catalogue, name)
    if MODALITIES[name].kind == "words":
        sources = (hashlib.blake2b(repr(c).encode(), digest_size=8).hexdigest() for _, c in items)
    else:
        sources = in_parallel(partial(_tried, lambda c: c.checksum, name), items, workers)
    pairs = list(zip(items, sources, strict=True))
    lost = [source for _, source in pairs if isinstance(source, Skip)]
    pairs = [pair for pair in pairs if not isinstance(pair[1], Skip)]
    shards, made = {}, settings(extractor)
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        job = json.dumps([made, [(id, s) for (id, _), s in part]], ensure_ascii=False)
        shards[folder / name / hashlib.blake2b(job.encode(), digest_size=10).hexdigest()] = part
    return shards, lost


def _done(stem: Path, once: bool = False) -> bool:
    """Whether a shard is there, whole, and met no fault that may have passed (or ``once`` did)."""
    try:
        record = json.loads(_file(stem, "json").read_bytes())
        sizes = record["bytes"].items()
        whole = all(stem.with_name(name).stat().st_size == size for name, size in sizes)
        return whole and (once or not record["again"])
    except (OSError, ValueError, KeyError):
        return False


def _together(pool, processes: int, elsewhere: bool, shards, name, extractor, workers) -> None:
    """Fill the shards in several processes. What one that was killed has left is done here."""
    if pool is not None and not elsewhere and workers is None:
        workers = max(1, (os.cpu_count() or 1) // processes)
    jobs, count = [], processes - (not elsewhere)
    with suppress(BrokenExecutor):  # one of its processes was killed
        for _ in range(0 if pool is None or all(map(_done, shards)) else count):
            jobs.append(pool.submit(_fill, shards, name, extractor, workers, True))
    for job in jobs * elsewhere:  # this process has no work but to wait
        job.exception()
    _fill(shards, name, extractor, workers)
    for job in jobs:  # not by `wait`: those of submitit are no futures
        job.exception()


def _fill(
    shards: Mapping[Path, list], name: str, extractor, workers: int | None, quiet: bool = False
) -> None:
    """Make the shards that lack: first those that nobody is at, then what others have left."""
    todo = {s: x for s, x in shards.items() if not _done(s) or _file(s, "lock").exists()}
    total, lacking = (sum(map(len, some.values())) for some in (shards, todo))
    left, hints = set(todo), {"unit": " files", "disable": quiet or not todo}
    with tqdm(None, f"{name} features", total, initial=total - lacking, **hints) as bar:
        for later in (False, True):
            for stem in [stem for stem in todo if stem in left]:
                with locked(_file(stem, "lock"), wait=later) as mine:
                    if not mine:
                        continue
                    left.remove(stem)
                    if _done(stem, once=later):
                        bar.update(len(todo[stem]))
                    else:
                        _make(stem, todo[stem], name, extractor, workers, bar)
                    _file(stem, "lock").unlink(missing_ok=True)


def _make(stem: Path, pairs: list[tuple[Item, str]], name, extractor, workers, bar) -> None:
    results, (items, sources) = [], zip(*pairs, strict=True)
    with closing(_results(extractor, items, name, workers)) as made:
        for result in made:
            results.append(result)
            bar.update()
    part = _Extracted.joined([id for id, _ in items], results, extractor)
    _write(stem, part, list(sources))


def _write(stem: Path, part: _Extracted, sources: list[str]) -> None:
    arrays = {"npy": part.values, "boxes.npy": part.boxes, "classes.npy": part.classes}
    files = {_file(stem, end): array for end, array in arrays.items() if array is not None}
    for path, array in files.items():
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
    record = {
        "ids": part.ids,
        "sources": sources,
        "lengths": part.lengths,
        "skipped": [[skip.where, skip.reason] for skip in part.skipped],
        "bytes": {path.name: path.stat().st_size for path in files},
        # a file that is not there, or a disk that did not answer, is tried again next time
        "again": any(skip.reason.startswith(UNREADABLE) for skip in part.skipped),
    }
    write_json(_file(stem, "json"), record)
