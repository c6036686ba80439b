"""Where outputs lie, files that are whole or not there, one process at a time, the version of the
code. Imports nothing heavy."""

import ast
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def home(*parts: str) -> Path:
    """A path below the folder for outputs: ``M5_HOME``, or the checkout that the library lies
    in."""
    return Path(os.environ.get("M5_HOME", ROOT)).joinpath(*parts)


def write_json(path: str | Path, content) -> Path:
    """Write JSON to a temporary name and rename, so that a reader never sees half a file. Lists of
    objects have one to a line."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(_text(content) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def _text(content) -> str:
    if isinstance(content, dict) and any(_is_table(value) for value in content.values()):
        return (
            "{\n"
            + ",\n".join(f"{json.dumps(key)}: {_text(value)}" for key, value in content.items())
            + "\n}"
        )
    if _is_table(content):
        return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in content) + "\n]"
    return json.dumps(content, indent=1, ensure_ascii=False)


def _is_table(content) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(row, dict) for row in content)
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process or thread at a time behind a file, whose folder is made where missing: others
    wait, and say so. Ends with the process.

    Where files cannot be locked (no POSIX system, or a network disk mounted without locks) nobody
    waits: what is made twice is made to the same bytes, and files appear under their names only
    when they are whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{path.parent}: another process is at work here; waiting for it", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError) as error:
            if getattr(error, "errno", errno.ENOSYS) not in (
                errno.ENOSYS,
                errno.ENOTSUP,
                errno.ENOLCK,
            ):
                raise
        yield


@cache
def code_version(start: str = "") -> str:
    """12 hex digits of the library's source files; of one module and every other that it imports,
    directly or not, where it is named.

    A run depends on ``runs`` and what that imports: a change of a figure, or of a table's layout,
    leaves finished runs finished.
    """
    files = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.py"))}
    known, todo = set(), [start] if start else list(files)
    while todo:
        if (name := todo.pop()) in files and name not in known:
            known.add(name)
            todo += [
                word
                for node in ast.walk(ast.parse(files[name].read_bytes()))
                for word in _imported(node)
            ]
    digest = hashlib.blake2b(digest_size=6)
    for name in sorted(known):
        digest.update(files[name].read_bytes())
    return digest.hexdigest()


def _imported(node: ast.AST) -> list[str]:
    """The library's modules that an import statement names: ``data``, for ``from m5lib import
    data`` and ``from m5lib.data import …``."""
    if isinstance(node, ast.ImportFrom) and node.module == "m5lib":
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("m5lib."):
        return [node.module.split(".")[1]]
    return []
