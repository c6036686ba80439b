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
def whole_file(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """A temporary name in the same folder, made where missing, to write to: renamed to ``path`` at
    the end, so that nobody ever sees half a file; with ``sync`` not even if the machine stops.
    Where writing fails nothing is left. Raises ``OSError``: the disk is full; file and sizes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:  # that of safetensors has no errno
        if getattr(error, "errno", 0) != errno.ENOSPC and "(os error 28)" not in str(error):
            raise
        size = temporary.stat().st_size / 1e6 if temporary.exists() else 0.0
        free = shutil.disk_usage(path.parent).free / 1e6
        said = f"the disk is full: {size:.1f} MB were written, {free:.1f} MB are free; make room"
        raise OSError(errno.ENOSPC, said, str(path)) from error
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
