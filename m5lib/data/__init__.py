"""Media files and members of tars, JSON, one process at a time, and the lines of tables: what other
people's files are met with first (``docs/trust.md``)."""

import csv
import errno
import gzip
import hashlib
import io
import json
import mimetypes
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from m5lib.catalogue import DataError, Skip
from m5lib.files import room, whole_file


class MediaError(ValueError):
    """One media file that cannot be used; the message is the reason, without the file's name."""


@contextmanager
def foreign(failed: Callable[[str], Exception] | None = None) -> Iterator[None]:
    """Around the calls of a decoder that others wrote. Whatever it raises for what it was given,
    lack of memory too, becomes ``failed(reason)``, by default :class:`MediaError`; a fault that has
    its words passes as it is. Keep code of our own out of it: its faults would hide."""
    try:
        yield
    except (MediaError, DataError):
        raise
    except Exception as error:
        why = str(getattr(error, "strerror", None) or error)
        named = "" if why and not isinstance(error, LookupError) else type(error).__name__
        why = " ".join(f"{named} {why}".split())[:200]
        raise (failed or (lambda why: MediaError(f"cannot be decoded ({why})")))(why) from None


@dataclass(frozen=True)
class MediaFile:
    """A media file on disk, or a member inside an uncompressed tar that is read in place
    (``offset`` and ``size`` in bytes)."""

    path: Path
    offset: int = 0
    size: int | None = None
    member: str | None = None

    def read(self) -> bytes:
        """The bytes of the file, for several threads and processes too: nothing stays open."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read() if self.size is None else file.read(self.size)

    def ends(self, length: int = 16_384) -> bytes:
        """The first and the last ``length`` bytes; the whole file where both hold it."""
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - self.offset if self.size is None else self.size
            file.seek(self.offset)
            if size <= 2 * length:
                return file.read(max(size, 0))
            head = file.read(length)
            file.seek(self.offset + size - length)
            return head + file.read(length)

    @property
    def checksum(self) -> str:
        """16 hex digits of the size and both ends of the bytes: a file put in another's place is
        noticed without reading it all."""
        size = self.path.stat().st_size if self.size is None else self.size
        salt = size.to_bytes(16, "little")
        return hashlib.blake2b(self.ends(), digest_size=8, salt=salt).hexdigest()

    @classmethod
    def inside(cls, folder: Path, name: str) -> "MediaFile":
        """The file of that name in a folder or below it. Raises ``ValueError``: it leads out of the
        folder, or is no file; with the mend where it is plain."""
        if re.match(r"[A-Za-z][\w+.-]+:", name):
            raise ValueError("an address; download the file first and give its path")
        path = inside(folder, name)
        if not os.path.isfile(path):
            mend = "; write / between folders, not \\" if "\\" in name else ""
            raise ValueError(f"no such file{mend}")
        return cls(path, size=path.stat().st_size)

    @property
    def name(self) -> str:
        """Name for messages: the member's where there is one."""
        return self.member or str(self.path)


@dataclass(frozen=True)
class Record(MediaFile):
    """A file's bytes that are kept inside something else, of which ``path`` and ``member`` tell:
    ``size`` is known, and a subclass says how to ``read`` them."""

    def ends(self, length: int = 16_384) -> bytes:
        """The first and the last ``length`` bytes."""
        data = self.read()
        return data if len(data) <= 2 * length else data[:length] + data[-length:]


def inside(folder: str | Path, name: str) -> Path:
    """The path of a name that data give, in a folder or below it: whoever reads or writes such a
    path asks here. Links are followed. Raises ``ValueError``: it leads out of the folder."""
    path = Path(os.path.normpath(Path(folder) / name))  # which stops at a zero byte
    if "\0" in name or not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
        raise ValueError("the path leads out of the media folder")
    return path


def mended(text: str) -> str:
    """The text, with U+FFFD for halves of characters (lone surrogates), which nothing can write."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


#: Without the machine's own lists, so that a file is the same kind everywhere.
_KINDS = mimetypes.MimeTypes()


def by_stem(files: Iterable[tuple[str, MediaFile]], usual: str) -> dict[str, MediaFile]:
    """Files by name without ending. Of several, the one with the ``usual`` ending counts, then one
    of the same kind, then one whose ending says nothing: notes beside a picture are no picture."""

    def rank(ending: str) -> int:
        kind, sought = (_KINDS.guess_type(f"x{end}")[0] or "" for end in (ending, usual))
        same = kind.partition("/")[0] == sought.partition("/")[0]
        return 1 if kind and same else 2 if not kind else 3

    found: dict[str, tuple[int, MediaFile]] = {}
    for name, file in files:
        stem, ending = os.path.splitext(name)
        place = 0 if ending.lower() == usual else rank(ending)
        stem = mended(stem)
        if stem not in found or place < found[stem][0]:
            found[stem] = place, file
    return {stem: file for stem, (_, file) in found.items()}


def in_folder(folder: Path, usual: str, others: bool = True) -> dict[str, MediaFile]:
    """The files of a folder :func:`by_stem`, or only those with the ``usual`` ending; none where
    there is no folder. Listed, not looked up: no id can lead out of the folder."""
    paths = sorted(folder.glob("[!.]*" if others else f"[!.]*{usual}"))
    paths = (path for path in paths if path.is_file())
    return by_stem(
        ((path.name, MediaFile(path, size=path.stat().st_size)) for path in paths), usual
    )


def write_json(path: str | Path, content) -> Path:
    """Write JSON as a whole file. Lists of objects have one to a line."""
    with whole_file(path) as temporary:
        temporary.write_text(_text(content) + "\n", encoding="utf-8")
    return Path(path)


def _text(content) -> str:
    if isinstance(content, dict) and any(_is_table(value) for value in content.values()):
        fields = (f"{json.dumps(key)}: {_text(value)}" for key, value in content.items())
        return "{\n" + ",\n".join(fields) + "\n}"
    if _is_table(content):
        return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in content) + "\n]"
    return json.dumps(content, indent=1, ensure_ascii=False)


def _is_table(content) -> bool:
    filled = isinstance(content, list) and bool(content)
    return filled and all(isinstance(row, dict) for row in content)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """One process or thread at a time behind a file, whose folder is made where missing: others
    wait, and say so, or (``wait`` false) are told False and go by. Ends with the process.

    Where files cannot be locked (a network disk mounted without locks) or the folder is read-only,
    nobody waits: what is made twice is made to the same bytes, and appears only when it is whole.
    """
    with room(path.parent, path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock, mine = FileLock(path, fallback_to_soft=False), True
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if mine := wait:
                print(f"{path.parent}: another process is at work here; waiting for it", flush=True)
                lock.acquire(poll_interval=0.2)
    except (OSError, NotImplementedError) as error:
        known = getattr(error, "errno", errno.ENOSYS) in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
        if not known and os.access(path.parent, os.W_OK):
            raise
    try:
        yield mine
    finally:
        lock.release()


def in_parallel(work: Callable, items: Iterable, workers: int | None = None) -> Iterator:
    """``work`` of each item, in order, on ``workers`` threads (default: one per core).

    Threads, not processes: FFmpeg, Pillow and torch let go of the interpreter while they work,
    threads need neither a main guard nor a second import of torch, and on two cores they are as
    fast (``benchmarks/extractors.json``). torch uses one thread in each.
    """
    import joblib
    import torch

    threads = torch.get_num_threads()
    workers = workers or joblib.cpu_count()  # knows containers, affinity, and a sweep's share
    pool = joblib.Parallel(
        workers, prefer="threads", return_as="generator", pre_dispatch="8 * n_jobs"
    )
    torch.set_num_threads(1)
    try:
        with closing(pool(joblib.delayed(work)(item) for item in items)) as results:
            yield from results
    finally:
        torch.set_num_threads(threads)


# --- tables that are text

#: Endings of tables, in any case; text may be packed with gzip.
LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", *LINES, ".parquet")
#: Bytes of content for a byte of file, and bytes that are free: denser is no list of products.
DENSEST, FREE = 200, 2**24


def form_of(path: Path) -> str:
    """The ending of a table, one of :data:`TABLES`; empty where it has none of them."""
    endings = [ending.lower() for ending in path.suffixes if ending.lower() != ".gz"]
    return endings[-1] if endings and endings[-1] in TABLES else ""


def _text_of(path: Path) -> str:
    """The text of a table. Raises :class:`~m5lib.catalogue.DataError`: empty, not UTF-8, or so
    dense that it would fill the memory."""
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        most = DENSEST * len(data) + FREE
        data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(most + 1)
        if len(data) > most:
            raise DataError(f"{path}: unpacks to over {DENSEST} times its size; unpack it yourself")
    if data.startswith(b"PK"):
        raise DataError(f"{path}: an Excel file or a zip; save the table as CSV (UTF-8)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mend = "save the file as UTF-8 and read it again"
        raise DataError(f"{path}: byte {error.start} is not UTF-8; {mend}") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty; expected a header and one product per line")
    return text


def text_rows(path: Path, skipped: list[Skip]) -> Iterator[tuple[int, list[str], list | None]]:
    """Line, names and cells of each row of a table that is text; what is none is listed."""
    lines = list(io.StringIO(_text_of(path), newline=""))
    if form_of(path) in LINES:
        return (yield from _json_rows(lines, skipped))
    first = next(n for n, line in enumerate(lines) if line.strip())
    if said := re.fullmatch("sep=(.)", lines[first].strip()):  # what Excel is told, or says
        mark, first = said[1], first + 1
    else:  # the one by which the header has a column id, then the one with most columns
        mark = max(",;\t|", key=lambda mark: _columns(lines[first:], mark))
    header, place, makes = [], 0, set()
    for start, end, cells in _records(lines, first, mark):
        if header and not isinstance(cells, str) and [*map(plainly, cells)] == names:
            cells = "the header again"  # two tables, one after the other
        if isinstance(cells, str) and header:
            skipped.append(Skip(f"line {start}", "row", cells))
        elif isinstance(cells, str):
            raise DataError(f"{path}: line {start}, the header: {cells}")
        elif not header:
            header, names = cells, list(map(plainly, cells))
            place = names.index("id") if "id" in names else 0
            yield start, header, None
        else:
            makes.update(map(_make, cells[place : place + 1]))
            if _swallows(lines[start:end], mark, header, place, makes):
                reason = f"in a cell that line {start} begins with a quote; is one missing?"
                skipped += [Skip(f"line {n + 1}", "row", reason) for n in range(start, end)]
            yield start, header, cells


def plainly(name: str) -> str:
    """The name of a column as it is compared: without capitals, and what nobody sees."""
    name = unicodedata.normalize("NFKC", mended(name))
    return "".join(c for c in name if unicodedata.category(c) != "Cf").strip().casefold()


def _columns(lines: list[str], mark: str) -> tuple[bool, int]:
    names = next(csv.reader(lines[:1], delimiter=mark, skipinitialspace=True), [])
    return "id" in map(plainly, names), len(names)


def misfit(names: Sequence[str | None], cells: Sequence[Any]) -> str:
    """Why a row does not fit the header, or nothing. Columns without a name may lack."""
    named = max((n for n, name in enumerate(names, 1) if name and name.strip()), default=0)
    fits = len(cells) >= named and not any(words(cell) for cell in cells[len(names) :])
    return "" if fits else f"{len(cells)} cells where the header has {len(names)}"


def _records(lines: list[str], first: int, mark: str) -> Iterator[tuple[int, int, list[str] | str]]:
    """First and last line of each record, and its cells; or why the line that begins it is none:
    the next record is looked for in the line after it, so that one quote too many costs one line,
    not all that follow. The first record is the header, which the others of several lines fit."""
    csv.field_size_limit(sys.maxsize)  # a cell may be a whole page of text
    form, header = {"delimiter": mark, "strict": True, "skipinitialspace": True}, []
    while first < len(lines):
        start, reader = first, csv.reader((lines[n] for n in range(first, len(lines))), **form)
        try:
            for cells in reader:
                end = first + reader.line_num
                if cells and "".join(lines[start:end]).strip():
                    header = header or cells
                    if end > start + 1 and (why := misfit(header, cells)):
                        raise csv.Error(f"{why}, down to line {end}")
                    yield start + 1, end, cells
                start = end
            return
        except csv.Error as error:
            yield start + 1, start + 1, f'a quote without its other end, write "" for one ({error})'
            first = start + 1


def _make(cell: str) -> str:
    """What an id is made of: digits, letters, or both with what joins them."""
    cell = re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", cell.strip()))
    return re.sub(r"(?=.*0)(?=.*a)[0a_./#-]+", "x", cell)


def _swallows(inner: list[str], mark: str, header: list[str], place: int, makes: set[str]) -> bool:
    """Whether a line inside one record looks like one: it fits, and so does the make of its id."""
    rows = (next(csv.reader([line], delimiter=mark), []) for line in inner if len(header) > 1)
    rows = (cells for cells in rows if not misfit(header, cells))
    return any(_make(cell) in makes for cells in rows for cell in cells[place : place + 1])


def _json_rows(lines: list[str], skipped: list[Skip]) -> Iterator[tuple[int, list[str], list]]:
    what = "not one JSON object"
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            with foreign(lambda why: MediaError(f"{what} ({why})")):
                row = json.loads(text, object_pairs_hook=_fields)
            if not isinstance(row, dict):
                raise MediaError(what)
            yield line, list(row), list(row.values())
        except MediaError as error:
            skipped.append(Skip(f"line {line}", "row", str(error)))


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(fields := dict(pairs)) < len(pairs):
        raise ValueError("a field appears twice")
    return fields


def words(cell: Any) -> str:
    """A cell as text: nothing for None and NaN; the values of a list, or the pairs of a map, are
    several words; whole numbers have no point. Raises :class:`MediaError` for bytes."""
    if isinstance(cell, str):
        return mended(cell).strip()
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, bytes | MediaFile):
        raise MediaError("bytes in a cell that should be text")
    if isinstance(cell, Mapping):
        cell = [x for name, value in cell.items() if words(value) for x in (name, value)]
    if isinstance(cell, list | tuple):
        return " ".join(filter(None, map(words, cell)))
    whole = isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53
    return str(int(cell) if whole else cell).strip()


def place_of(cell: Any) -> Any:
    """The path in a cell for a file: of the first, where there are several; of datasets' map."""
    cell = cell[0] if isinstance(cell, list) and cell else cell
    return cell.get("path", cell) if isinstance(cell, Mapping) else cell


def held(cell: Any) -> bytes | None:
    """The bytes of a file that lie in a cell: bare, or in the map of Hugging Face's datasets."""
    cell = cell[0] if isinstance(cell, list) and cell else cell
    cell = cell.get("bytes") if isinstance(cell, Mapping) else cell
    return cell if isinstance(cell, bytes) else None
