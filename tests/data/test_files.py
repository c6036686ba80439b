"""Whole files, and one at a time behind a lock."""

import errno
import fcntl
import threading
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("19712 requested and 1984 written"),  # numpy
        RuntimeError("unexpected pos 64 vs 0"),  # torch
        Exception("I/O error: No space left on device (os error 28)"),  # safetensors
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_said_of_the_file_with_sizes(error, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    path = tmp_path / "a.npy"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="2 kB were written, 1 kB are free; make") as raised:
        with files.whole_file(path) as temporary:
            temporary.write_bytes(bytes(2000))
            raise error
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("free, error", [(10**9, OSError("x")), (0, KeyError("x"))])
def test_other_faults_are_not_said_of_the_disk(free, error, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(type(error), match="x"), files.whole_file(tmp_path / "a") as _:
        raise error


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


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(files.os, name)
        monkeypatch.setattr(
            files.os, name, lambda *a, name=name, real=real: done.append(name) or real(*a)
        )
    files.write_json(tmp_path / "marker.json", {})
    assert done == ["fsync", "replace"]
