"""Media files and members of tars, files that are whole or not there, one process at a time, the
version of the code. Imports nothing heavy."""

import ast
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import get_ident

from filelock import FileLock, Timeout

LIBRARY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class MediaFile:
    """A media file on disk, or a member inside an uncompressed tar that is read in place
    (``offset`` and ``size`` in bytes)."""

    path: Path
    offset: int = 0
    size: int | None = None
    member: str | None = None

    def read(self) -> bytes:
        """The bytes of the file. Safe to call from several threads and processes: nothing is kept
        open."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read() if self.size is None else file.read(self.size)

    def ends(self, length: int = 16_384) -> bytes:
        """The first and the last ``length`` bytes, the whole file where it is no longer than
        both."""
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
        folder, or is no file."""
        path = Path(os.path.normpath(folder / name))
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
            raise ValueError("the path leads out of the media folder")
        if not os.path.isfile(path):
            raise ValueError("no such file")
        return cls(path, size=path.stat().st_size)

    @property
    def name(self) -> str:
        """Name for messages: the member's where there is one."""
        return self.member or str(self.path)


def by_stem(folder: Path, ending: str = "") -> dict[str, MediaFile]:
    """The files of a folder, in order, by name without ending; none where there is no folder.
    Listed, not looked up: no id can lead out of the folder."""
    paths = sorted(folder.glob(f"[!.]*{ending}"))
    return {
        path.stem: MediaFile(path, size=path.stat().st_size) for path in paths if path.is_file()
    }


@contextmanager
def whole_file(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """A temporary name in the same folder, made where missing, to write to: renamed to ``path`` at
    the end, so that nobody ever sees half a file; with ``sync`` not even if the machine stops.
    Where writing fails nothing is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content, sync: bool = False) -> Path:
    """Write JSON as a whole file. Lists of objects have one to a line."""
    with whole_file(path, sync) as temporary:
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
def locked(path: Path) -> Iterator[None]:
    """One process or thread at a time behind a file, whose folder is made where missing: others
    wait, and say so. Ends with the process.

    Where files cannot be locked (a network disk mounted without locks) nobody waits: what is made
    twice is made to the same bytes, and files appear under their names only when they are whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"{path.parent}: another process is at work here; waiting for it", flush=True)
            lock.acquire(poll_interval=0.2)
    except (OSError, NotImplementedError) as error:
        no_locks = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
        if isinstance(error, OSError) and error.errno not in no_locks:
            raise
    try:
        yield
    finally:
        lock.release()


#: Folders whose code a training run depends on (``""`` is the core), and all there are.
TRAINING = ("", "data", "models")
ROOMS = (*TRAINING, "shop", "evaluation", "explain", "figures", "lab", "search")


@cache
def code_version(*rooms: str) -> str:
    """12 hex digits of what the code in some folders of the library does; of those that a training
    run depends on, if none is named.

    Every definition counts as its syntax tree, without docstrings, in any order: comments, layout,
    imports and the file that a definition stands in do not, so that they cost no finished run. The
    synthetic shop has a ``VERSION`` of its own, in its catalogue's fingerprint.
    """
    paths = [path for room in rooms or TRAINING for path in (LIBRARY / room).glob("*.py")]
    sources = [path.read_text("utf-8") for path in paths]
    return hashlib.blake2b("\n".join(_meaning(sources)).encode(), digest_size=6).hexdigest()


def _meaning(sources: Iterable[str]) -> list[str]:
    """The definitions of some modules as syntax trees without docstrings and imports, sorted."""
    found = []
    for source in sources:
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                continue
            for node in ast.walk(statement):
                if isinstance(getattr(node, "body", None), list):
                    node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
            found += [] if _is_text(statement) else [ast.dump(statement)]
    return sorted(found)


def _is_text(statement: ast.AST) -> bool:
    """A string that stands alone: a docstring."""
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(getattr(value, "value", None), str)
