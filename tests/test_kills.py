"""A run that is killed at any of its writes, and killed again, ends as one that was left alone.

A kill is an exception after which nothing more reaches the disk: no clean-up, no buffer. That with
SIGKILL, at random moments, is ``benchmarks/kills.py``."""

import builtins
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from m5lib import pretrain
from m5lib.pretrain import Task, Training, run_loop


class Killed(BaseException):
    """No ``except Exception`` stops it."""


class Buffered:
    """A text file whose lines are lost with the process, unless they were flushed."""

    def __init__(self, disk, file):
        self.disk, self.file, self.lines = disk, file, []

    def write(self, text):
        self.lines.append(text)

    def flush(self):
        self.disk.touch("flush")
        self.file.write("".join(self.lines))
        self.file.flush()
        self.lines.clear()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.disk.dead and self.lines:
            self.flush()
        self.file.close()


class Disk:
    """Counts what is done to the disk, and dies at the ``at``-th; half of a file of a model is
    written by then."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.at, self.count, self.dead, self.seen = monkeypatch, 0, 0, False, []
        for module, name in (
            (os, "replace"),
            (os, "fsync"),
            (os, "unlink"),
            (torch, "save"),
            (pretrain, "train_step"),
        ):
            monkeypatch.setattr(module, name, self.watched(name, getattr(module, name)))
        self.open = builtins.open
        monkeypatch.setattr(pretrain, "open", self.opened, raising=False)

    def touch(self, name):
        self.count += 1
        self.seen.append(name)
        if self.dead or self.count == self.at:
            self.dead = True
            raise Killed

    def watched(self, name, real):
        def call(*arguments, **settings):
            try:
                self.touch(name)
            except Killed:
                if name == "save":
                    arguments[1].write(b"half")
                raise
            return name == "fsync" or real(*arguments, **settings)

        return call

    def opened(self, path, mode="r"):
        if mode != "r":
            self.touch(f"open {mode}")
        file = self.open(path, mode)
        return file if "b" in mode or mode == "r" else Buffered(self, file)

    def run(self, work, at=0):
        """Whether the work ended; ``at``: the touch of the disk that it dies at."""
        self.at, self.count, self.dead, self.seen = at, 0, False, []
        try:
            work()
        except Killed:
            return False
        finally:
            self.at, self.dead = 0, False
        return True


class Tiny(nn.Module):
    """With dropout: the random state counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.spec, self.line, self.drop = SimpleNamespace(rates=()), nn.Linear(3, 3), nn.Dropout()


def trained(folder, steps=3, seconds=0.0):
    """What a run has at its end: its weights, and the history that it returns."""
    model = Tiny()

    def losses(rows, generator):
        x = torch.randn(len(rows), 3, generator=generator)
        return model.drop(model.line(x)).square().mean(), {}

    training = Training(steps=steps, batch_size=2, checkpoint_seconds=seconds)
    history = run_loop(model, Task("", np.arange(9), losses, {}), training, folder)
    return {n: p.clone() for n, p in model.state_dict().items()}, history


def same(one, other) -> bool:
    (weights, history), (others, past) = one, other
    plain = [[{**x, "products_per_second": 0} for x in lines] for lines in (history, past)]
    return plain[0] == plain[1] and all(weights[n].equal(others[n]) for n in weights)


@pytest.mark.parametrize("steps, seconds", [(2, 0.0), (3, 1e9)])  # two checkpoints, or one
def test_killed_twice_at_any_write_it_ends_as_if_left_alone(tmp_path, monkeypatch, steps, seconds):
    disk = Disk(monkeypatch)
    expected = trained(tmp_path / "whole", steps, seconds)
    assert {"open a", "flush", "fsync", "save", "replace"} <= set(disk.seen)
    kills = pairs = 0
    for first in range(1, 100):
        folder = tmp_path / f"{first}"
        if disk.run(lambda folder=folder: trained(folder, steps, seconds), first):
            break
        kills += 1
        for second in range(1, 100):
            folder = tmp_path / f"{first}-{second}"
            assert not disk.run(lambda folder=folder: trained(folder, steps, seconds), first)
            if disk.run(lambda folder=folder: trained(folder, steps, seconds), second):
                break
            pairs += 1
            ended = trained(folder, steps, seconds)
            assert same(ended, expected), (first, second)
            lines = (folder / "history.jsonl").read_text().splitlines()
            assert [json.loads(line) for line in lines] == ended[1]
            assert {path.name for path in folder.iterdir()} == {"history.jsonl", "checkpoint.pt"}
    assert kills >= 8 and pairs > 3 * kills


def test_a_history_that_is_not_the_checkpoints_is_refused_and_not_trained_on(tmp_path):
    trained(tmp_path, steps=4)
    path, state = tmp_path / "history.jsonl", (tmp_path / "checkpoint.pt").read_bytes()
    whole = path.read_text()
    for lines in (
        "",
        whole[: len(whole) // 2],
        whole[len(whole) // 4 :],
        "<html>\n" * 4,
        "3\n" * 4,
    ):
        path.write_text(lines)
        with pytest.raises(ValueError, match="history.jsonl: .*put it back, or delete .* anew"):
            trained(tmp_path, steps=4)
        assert path.read_text() == lines and (tmp_path / "checkpoint.pt").read_bytes() == state
    path.unlink()
    with pytest.raises(ValueError, match="0 lines are not those of the first 4 steps"):
        trained(tmp_path, steps=4)


@pytest.mark.parametrize("content", [b"", b"half", b"<!DOCTYPE html>", b"version https://git-lfs"])
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path, content):
    trained(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: .+; .*"):
        trained(tmp_path)
