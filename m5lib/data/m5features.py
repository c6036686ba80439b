"""Features of the official release: regions in TSV or LMDB, video and audio in ``.npy``. Nothing is
unpickled; neither tensorpack nor msgpack is needed.

::

    <folder>/lmdb_features/*.lmdb   tensorpack's LMDBSerializer, msgpack of a list:
                                    features, boxes, n, height, width, id, caption
    <folder>/tsv_features/*.tsv     id, width, height, n, boxes, features (base64 float32), caption;
                                    no header
    <folder>/video_feature/<id>.npy (t, 1024) float16, a row per second
    <folder>/audio_feature/<id>.npy (80, 751) float32, mel bands x time

A record is found once, as a :class:`~m5lib.data.MediaFile` (a stretch of a file, or a key), and
read by an extractor as media are: the same checks, the same list of faults, the same store.
"""

import base64
import csv
import hashlib
import io
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from m5lib import home
from m5lib.catalogue import Catalogue, DataError, Product, Skip
from m5lib.data import MediaFile, Record, foreign, in_folder
from m5lib.data.decoding import MediaError, numbers
from m5lib.data.extractors import Features, locations
from m5lib.data.store import extract, with_sound
from m5lib.modalities import MODALITIES, ordered
from m5lib.streams import Ragged


@dataclass(frozen=True)
class StoredRegions:
    """Regions of a record, from LMDB or TSV: (n, ``width``), and 5-d locations (released)."""

    width: int = 2048
    version: ClassVar[int] = 1
    decodes: ClassVar[bool] = False

    def __call__(self, file: MediaFile) -> Features:
        """The regions of one record."""
        fields = _lmdb_fields if isinstance(file, LmdbRecord) else _tsv_fields
        features, boxes, *sizes = fields(file.read())
        what = "num_boxes, height or width is no number"
        with foreign(lambda why: MediaError(f"{what}: {sizes[:3]}"[:200])):
            count, height, width = (int(np.int32(int(size))) for size in sizes[:3])
        shapes = features.shape, boxes.shape
        if shapes != ((count, self.width), (count, 4)) or min(height, width) < 1:
            raise MediaError(
                f"features {shapes[0]} and boxes {shapes[1]} for num_boxes {count} of a picture "
                f"{width} x {height}; expected ({count}, {self.width}) and ({count}, 4)"
            )
        return Features(features.astype(np.float32), locations(boxes, width, height))


@dataclass(frozen=True)
class StoredRows:
    """The first ``rows`` rows of an ``.npy`` (t, ``width``): clip features of a video, one per
    ``step`` seconds, or mel bands of a sound."""

    width: int
    rows: int
    step: float | None = field(default=None, compare=False)
    version: ClassVar[int] = 1
    decodes: ClassVar[bool] = False

    def __call__(self, file: MediaFile) -> Features:
        """The rows of one file."""
        values = numbers(file.read())
        if values.ndim != 2 or values.shape[1] != self.width:
            raise MediaError(f"an array of {values.shape}, expected (rows, {self.width})")
        return Features(values[: self.rows].astype(np.float32))


#: Readers of the released features, and the folders of those with a file per product.
OFFICIAL = {
    "image": StoredRegions(),
    "video": StoredRows(1024, 12, 1.0),
    "audio": StoredRows(751, 80),
}
ROWS = {"video": "video_feature", "audio": "audio_feature"}


def read_features(
    folder: str | Path,
    catalogue: Catalogue | None = None,
    store: str | Path | None = None,
    readers: Mapping[str, Any] = OFFICIAL,
    workers: int | None = None,
) -> tuple[Catalogue, dict[str, Ragged]]:
    """The features of a release, where there is nothing else, or instead of extracting.

    Args:
        folder: the data root. Where a product is in an LMDB and in a TSV, the LMDB is read.
        catalogue: from :func:`m5lib.data.readers.read_m5product`; None: :func:`listed`.
        store: folder of a :mod:`m5lib.data.store`, for more than memory holds; None: in memory.
        readers: modality -> reader, for features of other widths as ``{"image":
            StoredRegions(1024)}``; or an extractor, which reads that modality's media.

    Returns as :func:`m5lib.data.store.extract`. A product has the feature modalities that it has
    features for; its picture, video and sound stay its contents where it has them too.

    Raises ``DataError``: there are no features, or an LMDB is broken.
    """
    skipped: list[Skip] = []
    catalogue = catalogue or listed(folder, readers)
    sources, _ = _sources(Path(folder), readers, skipped)
    decoded = {name for name in readers if name not in sources}
    if any(MODALITIES[name].inside for name in decoded):  # while the videos are still videos
        catalogue = with_sound(catalogue, workers)
    products = []
    for product in catalogue.products:
        contents = _with(product, sources, decoded)
        lack = [name for name in sources if name in product.contents and name not in contents]
        skipped += [Skip(product.id, name, "no features of this id") for name in lack]
        products += [replace(product, contents=contents)] if contents else []
    skips = (*catalogue.skipped, *skipped)
    sourced = replace(catalogue, products=tuple(products), skipped=skips)
    clean, features = extract(sourced, readers, store, workers)
    media = {product.id: product.contents for product in catalogue.products}
    back = tuple(
        replace(p, contents={n: media[p.id].get(n, c) for n, c in p.contents.items()})
        for p in clean.products
    )
    return replace(clean, products=back), features


def listed(folder: str | Path, readers: Mapping[str, Any] = OFFICIAL) -> Catalogue:
    """The products of a release of which only the features are there: ids of the features, titles
    from the captions of region records; no labels, no tables. Raises as :func:`read_features`."""
    sources, captions = _sources(Path(folder), readers, [])
    ids = dict.fromkeys(i for records in sources.values() for i in records)
    titles = {i: {"text": caption} for i, caption in captions.items() if caption.strip()}
    products = (Product(i, titles.get(i, {})) for i in ids)
    products = tuple(replace(p, contents=_with(p, sources)) for p in products)
    return Catalogue(Path(folder).name, products)


def _sources(
    folder: Path, readers: Mapping[str, Any], skipped: list[Skip]
) -> tuple[dict[str, dict[str, MediaFile]], dict[str, str]]:
    """Feature records by modality and id, and captions by id."""
    stored = [name for name, reader in readers.items() if not getattr(reader, "decodes", True)]
    sources: dict[str, dict[str, MediaFile]] = {name: {} for name in stored}
    captions: dict[str, str] = {}
    for name in stored:
        if name in ROWS:
            sources[name] = in_folder(folder / ROWS[name], ".npy", others=False)
            continue
        for pattern, records in RECORDS.items():  # the first that has an id counts
            for path in sorted(folder.glob(pattern)):
                for record in records(path, skipped):
                    if sources[name].setdefault(record.id, record.file) is record.file:
                        captions[record.id] = record.caption
    if not any(sources.values()):
        places = ", ".join((*RECORDS, *(f"{place}/*.npy" for place in ROWS.values())))
        raise DataError(f"{folder}: no features; expected some of {places}")
    return sources, captions


def _with(product: Product, sources: Mapping[str, dict], decoded=()) -> dict[str, Any]:
    """A product's contents with feature records instead of media, save those that are decoded."""
    stays = {name for name, row in MODALITIES.items() if row.kind == "words"} | {*decoded}
    kept = {name: content for name, content in product.contents.items() if name in stays}
    kept |= {name: files[product.id] for name, files in sources.items() if product.id in files}
    return {name: kept[name] for name in ordered(kept)}


class Found(NamedTuple):
    """A region record: where it lies, and its caption."""

    id: str
    file: MediaFile
    caption: str


# --- LMDB. A msgpack reader of our own, because finding the ids of a million records of 0.3 MB must
# not read the features that stand before each id: byte strings are views, unread pages not loaded.

#: Codes of sized and plain values, and the struct format of the size or the number after each.
_SIZED = dict(zip(range(0xC4, 0xC7), "BHI", strict=True))  # bytes
_SIZED |= dict(zip(range(0xD9, 0xE0), "BHIHIHI", strict=True))  # texts, lists, maps
_NUMBERS = dict(zip((0xCA, 0xCB, *range(0xCC, 0xD4)), "fdBHIQbhiq", strict=True))
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def unpack(data: memoryview, at: int = 0) -> tuple[Any, int]:
    """One msgpack value, bytes as views, and the place after it. Raises ``ValueError``."""
    code, at = _bytes(data, at, 1)[0], at + 1
    if code < 0x80 or code >= 0xE0:
        return (code if code < 0x80 else code - 0x100), at
    if code in _CONSTANTS:
        return _CONSTANTS[code], at
    if form := _NUMBERS.get(code) or _SIZED.get(code):
        size = struct.calcsize(form)
        (count,), at = struct.unpack(">" + form, _bytes(data, at, size)), at + size
        if code in _NUMBERS:
            return count, at
    elif code < 0xC0:
        count = code & (0x1F if code >= 0xA0 else 0x0F)
    else:
        raise ValueError(f"msgpack code {code:#x}")
    if 0xC4 <= code <= 0xC6:
        return _bytes(data, at, count), at + count
    if 0xA0 <= code < 0xC0 or 0xD9 <= code <= 0xDB:
        return str(_bytes(data, at, count), "utf-8"), at + count
    keyed, items = code < 0x90 or code >= 0xDE, []
    for _ in range(count * (1 + keyed)):
        value, at = unpack(data, at)
        items.append(value)
    if not keyed:
        return items, at
    keys = [str(key, "utf-8") if isinstance(key, memoryview) else key for key in items[::2]]
    return dict(zip(keys, items[1::2], strict=True)), at


def _bytes(data: memoryview, at: int, count: int) -> memoryview:
    if at + count > len(data):
        raise ValueError("msgpack ends too early")
    return data[at : at + count]


@dataclass(frozen=True)
class LmdbRecord(Record):
    """A value of an LMDB; ``path`` is the database."""

    key: bytes = b""

    def read(self) -> bytes:
        """The bytes of the value."""
        with foreign(), _environment(self.path).begin() as transaction:
            data = transaction.get(self.key)
        if data is None:
            raise MediaError(f"no key {self.key!r} in {self.path.name}")
        return data


@lru_cache(maxsize=64)
def _environment(path: Path):
    import lmdb

    folder, data = path.is_dir(), path / "data.mdb" if path.is_dir() else path
    mend = "give the .lmdb that tensorpack wrote"
    with foreign(lambda why: DataError(f"{path}: not an LMDB ({why}); {mend}")):
        opened = lmdb.open(str(path), subdir=folder, readonly=True, lock=False, readahead=False)
    size = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
    if size > data.stat().st_size:  # reading on would end the process
        raise DataError(f"{path}: the file is cut short; copy it again")
    # a damaged page may lead past the end of the file, which ends the process that reads it: walked
    # whole, once, for all processes and as long as the file is not written again
    now = data.stat()
    known = f"{data.resolve()} {now.st_ino} {now.st_size} {now.st_mtime_ns}".encode()
    walked = home("cache", "walked", hashlib.blake2b(known, digest_size=10).hexdigest())
    if not walked.exists():
        walk = [sys.executable, "-I", "-c", _WALK, str(path), "folder" * folder]
        if (code := subprocess.run(walk, stderr=subprocess.DEVNULL).returncode) < 0:
            raise DataError(f"{path}: damaged; copy it again (reading it ends in signal {-code})")
        if code == 0:
            walked.parent.mkdir(parents=True, exist_ok=True)
            walked.touch()
    return opened


_WALK = """import lmdb, sys
path, folder = sys.argv[1:]
how = dict(subdir=bool(folder), readonly=True, lock=False, readahead=False)
with lmdb.open(path, **how).begin(buffers=True) as transaction:
    for key, value in transaction.cursor():
        bytes(key), value[:1].tobytes(), value[-1:].tobytes()
"""


if hasattr(os, "register_at_fork"):  # an LMDB must not be used across a fork
    os.register_at_fork(after_in_child=_environment.cache_clear)


def lmdb_records(path: Path, skipped: list[Skip]) -> Iterator[Found]:
    """The records of an LMDB, found without reading their features; unreadable ones are listed.
    Raises :class:`~m5lib.catalogue.DataError`: the database itself is damaged."""
    opened, damaged = _environment(path), f"{path}: damaged; copy it again"
    with (
        foreign(lambda why: DataError(f"{damaged} ({why})")),
        opened.begin(buffers=True) as transaction,
    ):
        for key, value in transaction.cursor():
            key = bytes(key)
            if key == b"__keys__":
                continue
            name = f"{path.name}:{key.decode(errors='replace')}"
            try:
                with foreign(_no_record):
                    record, _ = unpack(memoryview(value))
                    product, caption = record[5], record[6]
                    if not isinstance(product, str) or not isinstance(caption, str):
                        raise ValueError("no id and caption in it")
            except MediaError as error:
                skipped.append(Skip(name, "regions", str(error)))
                continue
            yield Found(product.split("#")[0], LmdbRecord(path, 0, len(value), name, key), caption)


def _no_record(why: str) -> MediaError:
    return MediaError(f"not a record of seven fields ({why})")


def _lmdb_fields(data: bytes) -> list:
    """A record's features, boxes, n, height, width, id, caption."""
    with foreign(_no_record):
        record, _ = unpack(memoryview(data))
        return [_array(record[0], "features"), _array(record[1], "boxes"), *record[2:]]


def _array(value: Any, name: str) -> np.ndarray:
    """An array from msgpack-numpy's map of type, shape and data."""
    what = f"{name} is not an array as msgpack-numpy writes it"
    with foreign(lambda why: MediaError(f"{what} ({why})")):
        kind = np.dtype(str(value["type"]))
        if kind.kind not in "fiu":
            raise MediaError(f"{name} of type {kind}, expected numbers")
        return np.frombuffer(value["data"], dtype=kind).reshape(value["shape"])


# --- TSV

_BEGINS = re.compile(rb'"?[^\t"]+"?\t\d+\t\d+\t\d+\t')


def tsv_records(path: Path, skipped: list[Skip]) -> Iterator[Found]:
    """The records of a TSV. Captions in quotes may hold line ends, but no beginning of a record."""

    def finish(start: int, record: bytes) -> Iterator[Found]:
        fields = record.rstrip(b"\r\n").split(b"\t", 6)
        if len(fields) < 7 or not _BEGINS.match(record):
            where = f"{path.name}, byte {start}"
            skipped.append(Skip(where, "regions", "not a record of seven fields"))
            return
        name = fields[0].decode(errors="replace").strip('"').split("#")[0]
        caption = fields[6].decode(errors="replace")
        if caption[:1] == '"' == caption[-1:]:
            caption = caption[1:-1].replace('""', '"')
        yield Found(name, MediaFile(path, start, len(record), f"{path.name}:{name}"), caption)

    start, record = 0, b""
    with open(path, "rb") as file:
        for line in file:
            if record and (record.count(b'"') % 2 == 0 or _BEGINS.match(line)):
                yield from finish(start, record) if record.strip() else ()
                start, record = start + len(record), b""
            record += line
    yield from finish(start, record) if record.strip() else ()


def _tsv_fields(data: bytes) -> list:
    """A record's features, boxes, n, height, width, id, caption."""
    csv.field_size_limit(sys.maxsize)
    with foreign(_no_record):
        rows = list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter="\t"))
        name, width, height, count, boxes, features, caption = rows[0]
        arrays = [
            np.frombuffer(base64.b64decode(x, validate=True), "<f4").reshape(int(count), -1)
            for x in (features, boxes)
        ]
    return [*arrays, count, height, width, name, caption]


#: Where region records lie.
RECORDS = {"lmdb_features/*.lmdb": lmdb_records, "tsv_features/*.tsv": tsv_records}
