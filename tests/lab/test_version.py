"""The version of the code: what changes it and what does not."""

import ast

import pytest

from m5lib import lab

SOURCE = '''"""A module."""
import math

LIMIT = 3


def area(r: float) -> float:
    """Of a circle."""
    return math.pi * r**2  # pi r squared


class Box:
    """A box."""

    side = 2
'''


@pytest.fixture
def version(tmp_path, monkeypatch):
    """A function: files -> the version of a library of these; a function: (rooms) of it."""
    monkeypatch.setattr(lab, "LIBRARY", tmp_path)

    def make(*rooms, **sources):
        for path in tmp_path.rglob("*.py"):
            path.unlink()
        for name, source in sources.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
        lab._definitions.cache_clear()  # read again, though this source was seen
        return lab.code_version.__wrapped__(*rooms)

    return make


def test_another_python_costs_no_run(version, monkeypatch):
    """3.12 gives definitions ``type_params``; here they are given to the trees of any Python."""
    plain, parse = version(a=SOURCE), ast.parse
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

    def newer(*given, **named):  # pytest parses too, to show a failure
        tree = parse(*given, **named)
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                node.type_params = []
        return tree

    monkeypatch.setattr(ast, "parse", newer)
    for kind in kinds:
        fields = [field for field in kind._fields if field != "type_params"]
        monkeypatch.setattr(kind, "_fields", (*fields, "type_params"))
    assert "type_params=[]" in ast.dump(ast.parse("class A: pass"))
    assert version(a=SOURCE) == plain


def test_what_does_not_change_what_the_code_does_costs_no_run(version):
    plain = version(a=SOURCE)
    half = SOURCE.index("class Box")
    same = {
        "a comment": dict(a=SOURCE.replace("  # pi r squared", "\n    # nothing follows")),
        "a docstring": dict(a=SOURCE.replace("Of a circle", "Of a disc")),
        "no docstring": dict(a=SOURCE.replace('    """A box."""\n', "")),
        "layout": dict(a=ast.unparse(ast.parse(SOURCE))),
        "a docstring of the module": dict(a='"""Circles and boxes."""\n' + SOURCE),
        "another order": dict(a="import math\n\n" + SOURCE[half:] + "\n\n" + SOURCE[:half]),
        "a move": dict(a=SOURCE[:half], data__b="import os\n\n" + SOURCE[half:]),
        "another name of the file": dict(models__z=SOURCE),
        "the shop": dict(a=SOURCE, shop__s="X = 1"),
        "a figure": dict(a=SOURCE, figures__f="X = 1"),
    }
    for what, sources in same.items():
        assert version(**sources) == plain, what


def test_what_changes_what_the_code_does_makes_another_run(version):
    plain = version(a=SOURCE)
    seen = {plain}
    for room in ("a", "data__a", "models__a"):
        for old, new in (("LIMIT = 3", "LIMIT = 4"), ("math.pi *", "math.pi +"), ("side = 2", "")):
            changed = version(**{room: SOURCE.replace(old, new)})
            assert changed != plain, (room, old)
            seen.add(changed)
    assert len(seen) == 4, "the same change in another room is the same change"
    assert version(a=SOURCE, b="def area(r): return 0") != plain


def test_other_rooms_count_where_they_are_named(version):
    """Sweeps and measured numbers depend on more than training does."""
    sources = dict(a=SOURCE, evaluation__e="X = 1")
    changed = sources | dict(evaluation__e="X = 2")
    assert version(**sources) == version(**changed)
    assert version("evaluation", **sources) != version("evaluation", **changed)
    assert version(*lab.ROOMS, **sources) != version(*lab.ROOMS, **changed)


def test_every_folder_of_the_library_is_a_room():
    paths = lab.LIBRARY.rglob("*.py")
    folders = {path.parent.relative_to(lab.LIBRARY).as_posix() for path in paths}
    assert folders == set(lab.ROOMS) - {""} | {"."}
