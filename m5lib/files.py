"""Files that are whole or not there, and faults that are said of the file they lie in.

>>> with whole_file("runs/first/notes.txt") as temporary:
...     temporary.write_text("nobody sees half of it")
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident


@contextmanager
def room(path: Path, written: Path) -> Iterator[None]:
    """What is raised because the disk is full (each library has words of its own, some no errno) or
    ``written`` may not be is an ``OSError`` of the file ``path``; of a full disk with sizes."""
    try:
        yield
    except Exception as error:
        words = f"(os error {getattr(error, 'errno', 0)}) {error}"  # as libraries in Rust say it
        if any(f"(os error {n})" in words for n in (errno.EACCES, errno.EPERM, errno.EROFS)):
            raise PermissionError(13, "read-only; write elsewhere (M5_HOME)", str(path)) from error
        free = shutil.disk_usage(path.parent).free
        size = os.path.getsize(written) if written.exists() else 0
        tight = free < 4096 and isinstance(error, OSError | RuntimeError)
        if not (tight or f"(os error {errno.ENOSPC})" in words) or "disk is full" in words:
            raise
        said = f"{size / 1e3:,.0f} kB were written, {free / 1e3:,.0f} kB are free; make room"
        raise OSError(errno.ENOSPC, f"the disk is full: {said}", str(path)) from error


@contextmanager
def whole_file(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """A temporary name in the same folder, made where missing, to write to: renamed to ``path`` at
    the end, so that nobody ever sees half a file; with ``sync`` not even if the machine stops.
    Where writing fails nothing is left. Raises ``OSError`` as :func:`room`."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        with room(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if sync:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def reading(path: str | Path, mend: str = "write or download it again") -> Iterator[None]:
    """Whatever is raised while a file is read, or what it says is used, is said of the file, as a
    ``ValueError``: path, fault, mend. (Each library has errors of its own.)"""
    try:
        yield
    except Exception as error:
        start = Path(path).open("rb").read(64).lstrip() if Path(path).is_file() else b"-"
        lines = str(error).strip().splitlines() or [""]
        fault = lines[-1 if type(error) is RuntimeError else 0].strip()  # torch says it last
        fault = fault if type(error) is ValueError else f"{type(error).__name__}: {fault}"
        if start.startswith(b"version https://git-lfs"):
            fault, mend = "a pointer of Git LFS stands in its place", "fetch it with git lfs pull"
        elif start.startswith(b"<") or not start:
            fault = "a web page stands in its place" if start else "it is empty"
        raise ValueError(f"{path}: {fault}; {mend}") from error
