"""Runs, recording, studies, claims, sweeps, notebooks, doctor; here, the version of the code, and
what an argument must be."""

import ast
import hashlib
import inspect
import json
import sys
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import get_args

LIBRARY = Path(__file__).resolve().parents[1]
#: Folders whose code a training run depends on (``""`` is the core), and all there are. Features
#: that ``data/columns`` keeps are made by ``data``, which counts.
TRAINING = ("", "data", "models")
ROOMS = (*TRAINING, "data/columns", "shop", "evaluation", "explain", "figures", "lab", "search")


@cache
def code_version(*rooms: str) -> str:
    """12 hex digits of what the code in some folders or files of the library does; of those that a
    training run depends on, if none is named.

    Every definition counts as its syntax tree, alike in every Python, without docstrings, in any
    order: comments, layout, imports and its file do not, so that they cost no finished run. The
    shop has a ``VERSION`` of its own, in its catalogue's fingerprint.
    """
    places = [LIBRARY / room for room in rooms or TRAINING]
    paths = [path for x in places for path in ([x] if x.suffix else x.glob("*.py"))]
    found = sorted(tree for path in paths for tree in _definitions(path.read_text("utf-8")))
    return hashlib.blake2b("\n".join(found).encode(), digest_size=6).hexdigest()


def digest(settings: object) -> str:
    """10 hex digits of what JSON can say: part of the names of runs and sweeps."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


@cache  # half a second for all modules, which a table of results asks for many times
def _definitions(source: str) -> tuple[str, ...]:
    """Those of a module as syntax trees without docstrings and imports."""
    found, empty = [], {"show_empty": True} if sys.version_info >= (3, 13) else {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        for node in ast.walk(statement):
            if isinstance(getattr(node, "body", None), list):
                node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
        tree = ast.dump(statement, **empty).replace(", type_params=[]", "")  # new in 3.12
        found += [] if _is_text(statement) else [tree]
    return tuple(found)


def _is_text(statement: ast.AST) -> bool:
    """A string that stands alone: a docstring."""
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(getattr(value, "value", None), str)


#: Whole numbers that may not be 0; below it none may be.
FROM_ONE = ("top", "most", "batch_size", "workers", "count")
#: What passes for an annotation beside itself, and what to give.
NUMBERS = {int: (Integral,), float: (Real,)}  # numpy's too
GIVE = {int: "a whole number", float: "a number", str: "text", Path: "a path"}
OURS = ("builtins", "pathlib", "m5lib")


def checked(call):
    """A public function, or a class with its public methods, that says at once which of its
    arguments is not of the kind that its annotation names, as a ``ValueError``: text, a path, a
    whole number (of :data:`FROM_ONE` from 1 on, else from 0 on), a number, or an object of a
    class. Other annotations are left to the function."""
    if isinstance(call, type):
        for name, method in list(vars(call).items()):
            if inspect.isfunction(method) and not name.startswith("_"):
                setattr(call, name, checked(method))
        return call
    signature = inspect.signature(call)

    @wraps(call)
    def wrapped(*given, **named):
        for name, value in signature.bind(*given, **named).arguments.items():
            parameter = signature.parameters[name]
            several = value if parameter.kind is parameter.VAR_POSITIONAL else [value]
            for fault in filter(None, (_fault(name, x, parameter.annotation) for x in several)):
                raise ValueError(fault)
        return call(*given, **named)

    return wrapped


def _fault(name: str, value: object, hint: object) -> str:
    """What is wrong with an argument; nothing, where nothing is."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    plain = (isinstance(o, type) and o.__module__.split(".")[0] in OURS for o in options)
    if not all(plain) or value is None and type(None) in options:
        return ""
    least = int(name in FROM_ONE)
    fits = isinstance(value, tuple(kind for o in options for kind in NUMBERS.get(o, (o,))))
    fits &= bool in options or not isinstance(value, bool)
    fits &= not isinstance(value, Real) or value == value  # NaN
    if fits and (int not in options or str in options or value >= least):
        return ""
    kinds = [GIVE.get(o, f"a {o.__name__}") for o in options if o is not type(None)]
    kinds = " or ".join(kinds) + f" from {least} on" * (int in options)
    return f"{name} {' '.join(repr(value).split()):.60}: give {kinds}"
