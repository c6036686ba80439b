"""Region records of the official release: tensorpack's LMDB (msgpack) and the TSV; finding,
decoding and writing them.

Nothing is unpickled, and neither tensorpack nor msgpack is needed. See :mod:`m5lib.data.m5features`
for what is made of them.
"""

import base64
import binascii
import csv
import io
import os
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m5lib.catalogue import DataError, MediaFile, Skip
from m5lib.data.decoding import MediaError


class Found(NamedTuple):
    """A region record: where it lies, and its caption."""

    id: str
    file: MediaFile
    caption: str


# ---- msgpack, as much of it as tensorpack writes. A reader of our own, because finding the ids of
# a million records of 0.3 MB must not read the features that stand before each id: byte strings are
# views here, and a page that nobody looks at is not loaded.

_SIZED = {
    0xC4: "B",
    0xC5: "H",
    0xC6: "I",
    0xD9: "B",
    0xDA: "H",
    0xDB: "I",
    0xDC: "H",
    0xDD: "I",
    0xDE: "H",
    0xDF: "I",
}
_NUMBERS = dict(zip((0xCA, 0xCB, *range(0xCC, 0xD4)), "fdBHIQbhiq", strict=True))
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def unpack(data: memoryview, at: int = 0) -> tuple[Any, int]:
    """One msgpack value and the position after it. Byte strings are views of ``data``. Raises
    ``ValueError`` for anything else."""
    if at >= len(data):
        raise ValueError("msgpack ends too early")
    code, at = data[at], at + 1
    if code < 0x80 or code >= 0xE0:
        return (code if code < 0x80 else code - 0x100), at
    if code in _CONSTANTS:
        return _CONSTANTS[code], at
    form = _NUMBERS.get(code) or _SIZED.get(code)
    if form is not None:
        size = struct.calcsize(form)
        if at + size > len(data):
            raise ValueError("msgpack ends too early")
        (count,), at = struct.unpack_from(">" + form, data, at), at + size
        if code in _NUMBERS:
            return count, at
    elif code < 0xC0:
        count = code & (0x1F if code >= 0xA0 else 0x0F)
    else:
        raise ValueError(f"msgpack code {code:#x}")
    if code in (0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB) or 0xA0 <= code < 0xC0:
        if at + count > len(data):
            raise ValueError("msgpack ends too early")
        raw = data[at : at + count]
        return (raw if code in (0xC4, 0xC5, 0xC6) else str(raw, "utf-8")), at + count
    keyed, items = code in (0xDE, 0xDF) or code < 0x90, []
    for _ in range(count * (1 + keyed)):
        value, at = unpack(data, at)
        items.append(value)
    if not keyed:
        return items, at
    keys = [bytes(key) if isinstance(key, memoryview) else key for key in items[::2]]
    return dict(
        zip(
            (str(k, "utf-8") if isinstance(k, bytes) else k for k in keys), items[1::2], strict=True
        )
    ), at


def pack(value: Any) -> bytes:
    """msgpack of a record: lists, texts, ints, bytes, and arrays as msgpack-numpy writes them. The
    inverse of :func:`unpack`."""
    if isinstance(value, np.ndarray):
        fields = {
            b"nd": True,
            b"type": value.dtype.str,
            b"kind": b"",
            b"shape": list(value.shape),
            b"data": value.tobytes(),
        }
        return b"\x85" + b"".join(pack(key) + pack(field) for key, field in fields.items())
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value)
    if isinstance(value, list):
        return struct.pack(">BI", 0xDD, len(value)) + b"".join(pack(item) for item in value)
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">BI", 0xDB if isinstance(value, str) else 0xC6, len(data)) + data


def array_of(value: Any, field: str) -> np.ndarray:
    """An array from msgpack-numpy's map of type, shape and data."""
    try:
        kind = np.dtype(str(value["type"]))
        if kind.kind not in "fiu":
            raise MediaError(f"{field} of type {kind}, expected numbers")
        return np.frombuffer(value["data"], dtype=kind).reshape(value["shape"])
    except (TypeError, KeyError, ValueError) as error:
        raise MediaError(f"{field} is not an array as msgpack-numpy writes it ({error})") from None


# ---- LMDB


@dataclass(frozen=True)
class LmdbRecord(MediaFile):
    """A value of an LMDB; ``path`` is the database."""

    key: bytes = b""

    def read(self) -> bytes:
        """The bytes of the value."""
        with _environment(self.path).begin() as transaction:
            data = transaction.get(self.key)
        if data is None:
            raise MediaError(f"no key {self.key!r} in {self.path.name}")
        return data

    def ends(self, length: int = 16_384) -> bytes:
        """The first and the last bytes of the value."""
        data = self.read()
        return data if len(data) <= 2 * length else data[:length] + data[-length:]


@lru_cache(maxsize=64)
def _environment(path: Path):
    import lmdb

    data = path / "data.mdb" if path.is_dir() else path
    try:
        found = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise DataError(
            f"{path}: not an LMDB ({error}); give the .lmdb that tensorpack wrote"
        ) from None
    if (found.info()["last_pgno"] + 1) * found.stat()[
        "psize"
    ] > data.stat().st_size:  # reading on would end the process
        raise DataError(f"{path}: the file is cut short; copy it again")
    return found


if hasattr(
    os, "register_at_fork"
):  # an LMDB must not be used across a fork: the child opens its own
    os.register_at_fork(after_in_child=_environment.cache_clear)


def lmdb_records(path: Path, skipped: list[Skip]) -> Iterator[Found]:
    """The records of an LMDB, found without reading their features; unreadable ones are listed."""
    with _environment(path).begin(buffers=True) as transaction:
        for key, value in transaction.cursor():
            key = bytes(key)
            if key == b"__keys__":
                continue
            name = f"{path.name}:{key.decode(errors='replace')}"
            try:
                record, _ = unpack(memoryview(value))
                found, caption = record[5], record[6]
                if not isinstance(found, str) or not isinstance(caption, str):
                    raise ValueError("no id and caption in it")
            except (ValueError, TypeError, IndexError, RecursionError) as error:
                skipped.append(Skip(name, "regions", f"not a record of seven ({error})"))
                continue
            yield Found(found.split("#")[0], LmdbRecord(path, 0, len(value), name, key), caption)


# ---- TSV

_BEGINS = re.compile(rb'"?[^\t"]+"?\t\d+\t\d+\t\d+\t')


def tsv_records(path: Path, skipped: list[Skip]) -> Iterator[Found]:
    """The records of a TSV. A caption in quotes may hold line ends; a line that begins like a
    record begins one."""

    def finish(start: int, lines: list[bytes]) -> Iterator[Found]:
        if not (record := b"".join(lines)).strip():
            return
        fields = record.rstrip(b"\r\n").split(b"\t", 6)
        if len(fields) < 7 or not _BEGINS.match(record):
            skipped.append(
                Skip(f"{path.name}, byte {start}", "regions", "not a record of seven fields")
            )
            return
        name, tail = fields[0].decode(errors="replace").strip('"').split("#")[0], fields[6]
        caption = tail.decode(errors="replace")
        caption = (
            caption[1:-1].replace('""', '"') if caption[:1] == '"' == caption[-1:] else caption
        )
        yield Found(name, MediaFile(path, start, len(record), f"{path.name}:{name}"), caption)

    start, lines, quotes = 0, [], 0
    with open(path, "rb") as file:
        for line in file:
            if lines and (quotes % 2 == 0 or _BEGINS.match(line)):
                yield from finish(start, lines)
                start, lines, quotes = start + sum(map(len, lines)), [], 0
            lines.append(line)
            quotes += line.count(b'"')
    yield from finish(start, lines)


def tsv_fields(data: bytes) -> list:
    """A TSV record in the LMDB's order: features, boxes, n, height, width, id, caption."""
    csv.field_size_limit(sys.maxsize)
    try:
        rows = list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter="\t"))
        name, width, height, count, boxes, features, caption = rows[0]
        arrays = [
            np.frombuffer(base64.b64decode(x, validate=True), "<f4").reshape(int(count), -1)
            for x in (features, boxes)
        ]
    except (ValueError, IndexError, csv.Error, binascii.Error) as error:
        raise MediaError(f"not a region record of seven fields ({error})") from None
    return [*arrays, count, height, width, name, caption]


def write_lmdb(path: Path, records: list[list]) -> None:
    """Write region records (features, boxes, n, height, width, id, caption) as tensorpack does,
    into a single file."""
    import lmdb

    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [f"{n:08}".encode() for n in range(len(records))]
    values = [
        struct.pack("B", 0x90 + len(record)) + b"".join(pack(field) for field in record)
        for record in records
    ]
    size = 2 * sum(len(value) + 65_536 for value in values) + (1 << 20)
    with (
        lmdb.open(str(path), subdir=False, map_size=size, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in zip(keys, values, strict=True):
            transaction.put(key, value)
        transaction.put(b"__keys__", pack(keys))


def write_tsv(path: Path, records: list[list]) -> None:
    """Write region records as the released extraction script does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        for values, boxes, count, height, width, name, caption in records:
            text = [base64.b64encode(x.astype("<f4").tobytes()).decode() for x in (boxes, values)]
            writer.writerow([name, width, height, count, *text, caption])
