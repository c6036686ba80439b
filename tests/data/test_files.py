"""Whole files, one at a time behind a lock, and the version of the code."""

import ast
import fcntl
import threading

import pytest

from m5lib import data as files


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.whole_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    with pytest.raises(KeyError), files.whole_file(path) as temporary:
        temporary.write_text("broken")
        raise KeyError
    assert path.read_text() == "half" and list(path.parent.iterdir()) == [path]


def test_one_at_a_time_behind_a_lock(tmp_path, capsys):
    """The second says that it waits, and gets in when the first is out."""
    lock, order, waiting = tmp_path / "run" / ".lock", [], threading.Event()

    def second():
        with files.locked(lock):
            order.append("second")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: waiting.set() or order.append(words[0]))
        with files.locked(lock):
            thread = threading.Thread(target=second)
            thread.start()
            assert waiting.wait(60)
            order.append("first")
        thread.join(60)
    assert "waiting for it" in order[0] and order[1:] == ["first", "second"]


@pytest.mark.parametrize("number", [37, 38, 95])
def test_where_files_cannot_be_locked_nobody_waits(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.locked(tmp_path / ".lock"), files.locked(tmp_path / ".lock"):
        pass


def test_a_disk_that_fails_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output"), files.locked(tmp_path / ".lock"):
        pass


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
    monkeypatch.setattr(files, "LIBRARY", tmp_path)

    def make(*rooms, **sources):
        for path in tmp_path.rglob("*.py"):
            path.unlink()
        for name, source in sources.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
        return files.code_version.__wrapped__(*rooms)

    return make


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
    assert version(*files.ROOMS, **sources) != version(*files.ROOMS, **changed)


def test_every_folder_of_the_library_is_a_room():
    folders = {path.parent.name for path in files.LIBRARY.glob("*/__init__.py")}
    assert folders == set(files.ROOMS) - {""}
