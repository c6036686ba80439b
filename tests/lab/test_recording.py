"""Where numbers say that they come from."""

import subprocess

import pytest

from m5lib.lab import recording

FILES = ("m5lib/model.py", "notebooks/04.ipynb", "benchmarks/step.py", "paper/claims.csv")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of a few files, whose provenance is asked for."""
    for name in (*FILES, "results/demo.json", "benchmarks/step.json", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("first")
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    recording._git.cache_clear()
    yield tmp_path
    recording._git.cache_clear()


@pytest.mark.parametrize("name", FILES)
def test_a_commit_is_marked_where_what_numbers_come_from_was_changed(checkout, name):
    clean = recording.provenance("tiny", 0, 1.0)["commit"]
    assert len(clean) == 12
    (checkout / name).write_text("second")
    assert recording.provenance("tiny", 0, 1.0)["commit"] == clean  # this process runs the first
    recording._git.cache_clear()
    assert recording.provenance("tiny", 0, 1.0)["commit"] == clean + "+"


def test_what_was_recorded_marks_no_commit(checkout):
    for name in ("results/demo.json", "benchmarks/step.json", "README.md"):
        (checkout / name).write_text("second")
    assert "+" not in recording.provenance("tiny", 0, 1.0)["commit"]


def test_a_copy_without_git_and_one_in_anothers_repository_have_no_commit(checkout, monkeypatch):
    inside = checkout / "ours"
    inside.mkdir()
    (inside / "m5lib").mkdir()
    (inside / "m5lib" / "model.py").write_text("first")
    monkeypatch.setattr(recording, "ROOT", inside)
    recording._git.cache_clear()
    assert recording.provenance("tiny", 0, 1.0)["commit"] == ""
    monkeypatch.setattr(recording, "ROOT", checkout)
    recording._git.cache_clear()
    assert len(recording.provenance("tiny", 0, 1.0)["commit"]) == 12
    monkeypatch.setenv("PATH", "")
    recording._git.cache_clear()
    assert recording.provenance("tiny", 0, 1.0)["commit"] == ""


def test_a_commit_is_marked_where_git_cannot_say_what_was_changed(checkout, monkeypatch):
    clean, real = recording.provenance("tiny", 0, 1.0)["commit"], recording._git
    slow = lambda *words: None if words[0] == "status" else real(*words)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(recording, "_git", slow)
        assert recording.provenance("tiny", 0, 1.0)["commit"] == clean + "+"
