"""Runs, recording, studies, claims, sweeps, notebooks, doctor; here, the version of the code."""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1]
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
