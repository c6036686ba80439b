"""Decoding: pictures with Pillow, video and sound with PyAV (FFmpeg is in its wheel; imported where
it is used), arrays, and the cells of tables.

Nothing here knows of products. What cannot be decoded raises :class:`MediaError` with the reason.
Files are other people's: whatever a decoder raises for one (:func:`m5lib.data.foreign`) is a fault
of that file, and no more is allocated than the file can hold.
"""

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from m5lib import data
from m5lib.catalogue import DataError, Skip
from m5lib.data import MediaError, MediaFile, Record, foreign, mended, words

#: A picture or a frame has at most so many pixels when it is decoded: 8192 x 8192.
MOST_PIXELS = 2**26


def _source(file: MediaFile):
    """A seekable binary file: the file itself, or a member's bytes. Raises :class:`MediaError`
    where it is empty or cut short."""
    if file.member is None and not file.offset:
        source = open(file.path, "rb")
        size = os.fstat(source.fileno()).st_size
    else:
        data = file.read()
        source, size = io.BytesIO(data), len(data)
    head = source.read(8)
    source.seek(0)
    # WAV, AVI, WebP; FFmpeg forgives a lost end
    riff = int.from_bytes(head[4:], "little") if head.startswith(b"RIFF") else 0
    if not size or (file.size is not None and size < file.size) or size + 8 < riff < 0xFFFFFF00:
        source.close()
        raise MediaError("the file is empty or cut short")
    return source


def open_image(file: MediaFile, longest: int = 2048) -> Image.Image:
    """Decode a picture to 8-bit RGB, upright.

    Transparent pixels become white, as a shop's page shows them; 16-bit grey is scaled, not
    clipped; the camera's orientation is applied; a picture with a side over ``longest`` pixels is
    reduced to it (a JPEG already while it is decoded).

    Raises ``MediaError``: empty, not a picture, cut short, PostScript (a program, which is not
    run), numbers without a known white, or more than :data:`MOST_PIXELS` (a JPEG of up to 179
    million is reduced on the way).
    """
    with _source(file) as source, foreign():
        try:
            image = Image.open(source)
        except UnidentifiedImageError:
            raise MediaError("not a picture") from None
        with image:
            if image.format == "EPS":
                raise MediaError("a PostScript file; save it as a picture")
            if max(image.size) > longest:
                image.draft(None, (longest, longest))
            if (pixels := image.width * image.height) > MOST_PIXELS:
                what = f"{pixels:,} pixels exceeds limit of {MOST_PIXELS:,}"
                raise MediaError(f"{what}; save it smaller")
            ImageOps.exif_transpose(image, in_place=True)  # a copy would be as large again
            if image.mode.startswith(("I", "F")):
                image = _eight_bits(image, image.format == "TIFF")
            image.thumbnail((longest, longest), reducing_gap=2.0)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")


def _eight_bits(image: Image.Image, tiff: bool) -> Image.Image:
    """Grey of 16 bits scaled to 8; Pillow's own conversion would clip at 255. Numbers of 32 bits,
    which only a TIFF has, are taken as the 8 or 16 bits that hold them."""
    grey = np.asarray(image)
    if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
        what = "a picture of 32-bit" + (" floating-point" if image.mode == "F" else "")
        raise MediaError(f"{what} numbers, whose white is unknown; save it with 8 or 16 bits")
    wide = image.mode != "I" or not tiff or grey.max() > 255
    return Image.fromarray((grey // 257 if wide else grey).astype(np.uint8))


def numbers(data: bytes) -> np.ndarray:
    """The array of an ``.npy``. Its shape is believed only where its numbers are there: nothing is
    allocated. Raises :class:`MediaError`: not an ``.npy`` of numbers, or cut short."""
    why = "not an .npy of numbers, or cut short"
    with foreign(lambda error: MediaError(f"{why} ({error})")):
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, fortran, kind = read.get(version, np.lib.format.read_array_header_2_0)(file)
        if kind.kind not in "fiu" or min(shape, default=0) < 0:
            raise MediaError(f"{why} (of type {kind} and shape {shape})")
        values = np.frombuffer(data, kind, offset=file.tell())
        return values.reshape(shape, order="F" if fortran else "C")


class Track(NamedTuple):
    """A video or sound track: ``seconds`` None where the file does not say."""

    codec: str
    seconds: float | None


class Probe(NamedTuple):
    """What a container says: its length, and its first tracks (no cover art) or None."""

    seconds: float | None
    video: Track | None
    audio: Track | None


@contextmanager
def _opened(file: MediaFile) -> Iterator:
    """A PyAV container. FFmpeg's errors, while it is open too, become :class:`MediaError`."""
    import av

    with _source(file) as source, foreign():
        # No protocol: a playlist under a video's name must not make FFmpeg open other files or
        # addresses. Titles and the like may be in any encoding (GBK is common); they are not read.
        closed = {"protocol_whitelist": ""}
        with av.open(source, options=closed, metadata_errors="replace") as container:
            yield container


def _track(container, kind: str):
    """The first stream of a kind (``video``, ``audio``) that can be decoded, or None."""
    from av.stream import Disposition

    for stream in container.streams:
        cover = stream.disposition & Disposition.attached_pic
        if stream.type == kind and not cover and stream.codec_context is not None:
            # Files are decoded side by side; threads inside one would only get in each other's way.
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            return stream
    return None


def _seconds(container, stream) -> float | None:
    """Declared length of a stream: its own, Matroska's tag, or a container's with no other."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if tag := stream.metadata.get("DURATION"):
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else None


def probe(file: MediaFile) -> Probe:
    """Look at a video or audio file without decoding it. Raises :class:`MediaError`: not a media
    file, empty, cut short."""
    with _opened(file) as container:
        streams = (_track(container, kind) for kind in ("video", "audio"))
        tracks = (s and Track(s.codec_context.name, _seconds(container, s)) for s in streams)
        return Probe(container.duration / 1e6 if container.duration else None, *tracks)


def _pixels(frame, size: int | tuple[int, int] | None) -> np.ndarray:
    width, height = frame.width, frame.height
    if isinstance(size, int):
        shorter = min(width, height)
        width, height = (max(size, round(side * size / shorter)) for side in (width, height))
    elif size is not None:
        height, width = size[::-1] if frame.rotation % 180 else size
    how = {"format": "rgb24", "interpolation": "AREA", "threads": 1}
    pixels = frame.to_ndarray(width=width, height=height, **how)
    # a phone held upright stores its frames lying
    return np.rot90(pixels, round(frame.rotation / 90) % 4)


def frames(
    file: MediaFile, times: Iterable, size: int | tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The frames of a video nearest to some times.

    Args:
        times: ascending, in seconds from the first frame. With a constant rate each frame is within
            half a frame of its time; past the end it is the last one. The file is decoded from its
            start to the last of them.
        size: None, (height, width), or the length of the shorter side, in pixels.

    Returns (n, height, width, 3) uint8 RGB, and the frames' own times (n,) in seconds.

    Raises ``MediaError``: no video track, no frame, or the track ends more than a second before the
    length it declares.
    """
    times, found, stamps = list(times), [], []

    def take(frame, at: float) -> None:
        found.append(found[-1] if stamps and stamps[-1] == at else _pixels(frame, size))
        stamps.append(at)

    with _opened(file) as container:
        stream = _track(container, "video")
        if stream is None:
            raise MediaError("no video track in it")
        before, seen, end, start, tick = None, 0.0, 0.0, None, float(stream.time_base)
        for frame in container.decode(stream):
            if frame.time is None or frame.is_corrupt:
                continue
            start = frame.time if start is None else start
            now = frame.time - start
            while len(found) < len(times) and now >= times[len(found)]:
                earlier = before is not None and times[len(found)] < (seen + now) / 2
                take(*((before, seen) if earlier else (frame, now)))
            if len(found) == len(times):
                break
            before, seen, end = frame, now, now + (frame.duration or 0) * tick
        else:
            if before is None:
                raise MediaError("no frame of it can be decoded")
            declared = _seconds(container, stream)
            if declared and end + 1.0 < declared:
                raise MediaError(f"cut short: the frames end at {end:.1f} s of {declared:.1f} s")
            while len(found) < len(times):
                take(before, seen)
    return np.stack(found), np.array(stamps)


def sound(file: MediaFile, rate: int = 16_000, seconds: float | int = 12.0) -> np.ndarray:
    """The first ``seconds`` of the sound of an audio or video file: (T,) float32 mono in [-1, 1],
    ``rate`` samples a second.

    Mono is the mean of the channels, as in the released code.

    Raises ``MediaError``: no sound track, no sample, one that is no number, or the track is cut
    short (by more than half a second).
    """
    import av

    want, parts = round(rate * seconds), []
    with _opened(file) as container:
        stream = _track(container, "audio")
        if stream is None:
            raise MediaError("no sound track in it")
        declared = None if _guessed(container, file) else _seconds(container, stream)
        # FFmpeg's own way to one channel adds 0.7 of each, which clips; the mean is the released
        # "sum, halved".
        # Not "fltp": PyAV reads past the end of the planes of eight channels or more.
        resampler = av.AudioResampler(format="flt", rate=rate)
        have, source = 0, container.decode(stream)
        while have < want:
            frame = next(source, None)
            for out in resampler.resample(frame):
                # a stream may change from mono to stereo on its way
                parts.append(out.to_ndarray().reshape(-1, out.layout.nb_channels).mean(axis=1))
                have += out.samples
            if frame is None:
                break
    if not have:
        raise MediaError("no sound can be decoded")
    if declared and have / rate + 0.5 < min(declared, seconds):
        raise MediaError(f"cut short: the sound ends at {have / rate:.1f} s of {declared:.1f} s")
    if not np.isfinite(samples := np.concatenate(parts)[:want]).all():
        raise MediaError("samples that are no numbers (NaN or infinite)")
    return samples


def _guessed(container, file: MediaFile) -> bool:
    """Whether the length is FFmpeg's guess from the bit rate: a bare AAC or MP3 stream, without the
    header that counts frames."""
    if container.format.name not in ("mp3", "aac"):
        return False
    head = file.ends()
    return not any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))


# --- tables

#: Columns that pandas adds for its index.
INDEX = re.compile(r"Unnamed: 0(\.\d+)?|__index_level_\d+__")

Row = dict[str, str | MediaFile]


def rows(
    path: Path, known: Sequence[str], skipped: list[Skip], files: Sequence[str] = (), need: int = 1
) -> Iterator[tuple[int, Row]]:
    """The rows of a table with their line (in a parquet: their number). Cells are stripped text; in
    the columns ``files`` also bytes that lie in the table, as a file.

    Names of columns that are ``known`` count in any case; the first ``need`` of them must be there.
    An index that pandas wrote is left out. A row that cannot be read is listed by its line. Raises
    ``DataError``: no such file, empty, not UTF-8, damaged, a column twice, or one that lacks."""
    usual, files = {name.casefold(): name for name in known}, frozenset(files)
    read = _parquet_rows if data.form_of(path) == ".parquet" else data.text_rows
    header, names = None, []
    with foreign(lambda why: DataError(f"{path}: cannot be read ({why}); is it a whole table?")):
        for line, given, cells in read(path, skipped):
            try:
                if given is not header:
                    header, names = given, _named(given, usual)
                if cells is not None:
                    yield line, _row(names, cells, files)
                elif missing := [name for name in known[:need] if name not in names]:
                    has = f"the file has {sorted(filter(None, names))}"[:300]
                    raise MediaError(f"column {missing} is missing; {has}; name one of them so")
            except MediaError as error:
                if cells is None:  # it is the header
                    raise DataError(f"{path}: {error}") from None
                skipped.append(Skip(f"line {line}", "row", str(error)))


def _named(given: Iterable[str], usual: Mapping[str, str]) -> list[str | None]:
    """Names of columns; those that are known in their usual spelling, None for an index."""
    names = [usual.get(data.plainly(name), mended(name).strip("\ufeff \t\r\n")) for name in given]
    if doubled := sorted(name for name, count in Counter(names).items() if name and count > 1):
        raise MediaError(f"column {doubled} appears twice; rename one")
    first = next((place for place, name in enumerate(names) if name), 0)
    return [None if n < first or INDEX.fullmatch(x) else x for n, x in enumerate(names)]


def _row(names: Sequence[str | None], cells: Sequence[Any], files: frozenset[str]) -> Row:
    if why := data.misfit(names, cells):
        raise MediaError(why)
    row = {}
    for name, cell in zip(names, cells, strict=False):
        if name in files:
            row[name] = cell if isinstance(cell, MediaFile) else words(data.place_of(cell))
        elif name:
            row[name] = words(cell)
        elif name == "" and words(cell):
            raise MediaError("a cell in a column without a name in the header")
    return row


@dataclass(frozen=True)
class ParquetCell(Record):
    """A file that lies in a cell of a parquet; ``group``, ``place`` in it, and ``column``."""

    group: int = 0
    place: int = 0
    column: int = 0

    def read(self) -> bytes:
        """The bytes in the cell."""
        with foreign():
            cells = _column(self.path, self.path.stat().st_mtime_ns, self.group, self.column)
            return data.held(cells[self.place].as_py()) or b""


@lru_cache(maxsize=4)  # files are read in order, by threads that are near each other
def _column(path: Path, changed: int, group: int, column: int):
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        name = file.schema_arrow.names[column]
        return file.read_row_group(group, columns=[name]).column(name)


def _parquet_rows(path: Path, skipped: list[Skip]) -> Iterator[tuple[int, list[str], list | None]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        meta, names, line, held = file.metadata, file.schema_arrow.names, 0, 0
        size = max([0, *(meta.row_group(n).total_byte_size for n in range(meta.num_row_groups))])
        most = data.DENSEST * path.stat().st_size
        if meta.num_rows > most or size > most + data.FREE:
            what = f"{meta.num_rows:,} rows and {size:,} bytes in too small a file"
            raise DataError(f"{path}: {what}; save it anew")
        # an index of numbers in a row that has a name lies in the notes of pandas only
        notes = json.loads((file.schema_arrow.metadata or {}).get(b"pandas", b"{}"))
        index = [i for i in notes.get("index_columns", ()) if isinstance(i, dict) and i["name"]]
        names = [*names, *(i["name"] for i in index)]
        yield 0, names, None
        for group in range(meta.num_row_groups):
            row = -1
            for batch in file.iter_batches(64, row_groups=[group]):
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    cells = [*cells, *(i["start"] + i["step"] * line for i in index)]
                    line, row = line + 1, row + 1
                    for column, cell in enumerate(cells):
                        if (found := data.held(cell)) is not None:
                            at = f"{path.name}: row {line}, {names[column]}"
                            cells[column] = ParquetCell(path, 0, len(found), at, group, row, column)
                        held += len(found or cell) if isinstance(found or cell, bytes | str) else 0
                    if held > most + data.FREE:  # one value, said once for all of its rows
                        raise DataError(f"{path}: {held:,} bytes in too small a file; save it anew")
                    yield line, names, cells
