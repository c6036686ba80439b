import json
import os
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m5lib.model import Model
from m5lib.models import zoo
from m5lib.models.parallel import ahead
from m5lib.pretrain import Task, Training, drawn, optimiser, pretrain, run_loop, schedule
from m5lib.spec import Objective

TRAINING = Training(steps=8, batch_size=32, learning_rate=1e-3, checkpoint_seconds=0.0)


def fresh(stream_set, seed=0, **settings) -> Model:
    torch.manual_seed(seed)
    return Model(zoo.scale(**{"width": 16, "layers": 1, "heads": 2} | settings).fit(stream_set))


def without_speed(history):
    return [{k: v for k, v in line.items() if k != "products_per_second"} for line in history]


def test_a_killed_run_resumes_to_the_same_losses_and_weights(stream_set, tmp_path):
    whole, parts = fresh(stream_set, dropout=0.1), fresh(stream_set, dropout=0.1)
    expected = pretrain(whole, stream_set, TRAINING, tmp_path / "whole")
    pretrain(parts, stream_set, TRAINING, tmp_path / "parts", stop_after=3)
    parts = fresh(
        stream_set, seed=99, dropout=0.1
    )  # a new process: other weights until the checkpoint is read
    found = pretrain(parts, stream_set, TRAINING, tmp_path / "parts")
    assert without_speed(found) == without_speed(expected) and len(found) == 8
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        assert one.equal(two)
    assert [
        json.loads(x)["step"]
        for x in (tmp_path / "parts" / "history.jsonl").read_text().splitlines()
    ] == list(range(8))


def test_a_kill_between_checkpoints_repeats_the_lost_steps(stream_set, tmp_path):
    expected = pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path / "whole")
    pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path / "killed", stop_after=4)
    with open(tmp_path / "killed" / "history.jsonl", "a") as log:
        log.write(json.dumps({"step": 4, "loss": -1.0}) + "\n")  # logged, but lost with the process
    found = pretrain(fresh(stream_set, seed=99), stream_set, TRAINING, tmp_path / "killed")
    assert without_speed(found) == without_speed(expected)


def test_after_ctrl_c_the_same_call_goes_on_from_the_last_checkpoint(
    stream_set, tmp_path, monkeypatch
):
    from m5lib import pretrain as module

    expected = pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path / "whole")
    real, calls = torch.optim.AdamW.step, []

    def pressed_in_the_middle(optimizer, *arguments):
        """Half of the parameters moved: what was pressed during a step must not be kept."""
        calls.append(1)
        if len(calls) == 4:
            optimizer.param_groups[0]["params"][0].data.add_(1.0)
            raise KeyboardInterrupt
        return real(optimizer, *arguments)

    monkeypatch.setattr(module.torch.optim.AdamW, "step", pressed_in_the_middle)
    for seconds in (0.0, 1e9):  # with a checkpoint after each step, and without any
        calls.clear()
        training = replace(TRAINING, checkpoint_seconds=seconds)
        with pytest.raises(KeyboardInterrupt):
            pretrain(fresh(stream_set), stream_set, training, tmp_path / str(seconds))
        found = pretrain(fresh(stream_set), stream_set, training, tmp_path / str(seconds))
        assert without_speed(found) == without_speed(expected)
        assert len(calls) == 4 + (5 if seconds == 0 else 8)


@pytest.mark.parametrize("seconds, expected", [(10, [11, 62, 73, 80]), (0, list(range(1, 81)))])
def test_a_checkpoint_costs_less_than_a_hundredth_of_the_time(
    seconds, expected, tmp_path, monkeypatch
):
    """A step takes a second; writing half a second the first time, later a sixteenth."""
    model, now, saved = torch.nn.Linear(1, 1), [0.0], []
    model.spec = SimpleNamespace(rates=())

    def losses(chosen, generator):
        now[0] += 1.0
        return model.weight.square().sum(), {}

    def save(checkpoint, model, optimizer, step):
        now[0] += 0.0625 if saved else 0.5
        saved.append(step)

    monkeypatch.setattr("m5lib.pretrain.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("m5lib.pretrain.Checkpoint.save", save)
    training = Training(steps=80, batch_size=2, checkpoint_seconds=seconds)
    run_loop(model, Task("", np.arange(4), losses, {}), training, tmp_path)
    assert saved == expected


def test_a_full_disk_is_said_of_the_checkpoint_and_the_run_goes_on_later(
    stream_set, tmp_path, monkeypatch
):
    """torch's error has no errno and names no file."""
    expected = pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path / "whole")
    real, calls, disk = torch.save, [], shutil.disk_usage

    def full(state, file):
        calls.append(state)
        if len(calls) < 4:
            return real(state, file)
        file.write(b"half")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"the disk is full: 0 kB were written.*checkpoint\.pt"):
        pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path / "full")
    monkeypatch.setattr(torch, "save", real)
    monkeypatch.setattr(shutil, "disk_usage", disk)
    assert not list((tmp_path / "full").glob("*.tmp"))
    found = pretrain(fresh(stream_set, seed=99), stream_set, TRAINING, tmp_path / "full")
    assert without_speed(found) == without_speed(expected)


def test_a_loss_that_is_not_a_number_keeps_the_last_good_checkpoint(
    stream_set, tmp_path, monkeypatch
):
    from m5lib import pretrain as module

    pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path, stop_after=2)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    real = module.objectives.total
    monkeypatch.setattr(module.objectives, "total", lambda *a: (real(*a)[0] * float("nan"), {}))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == good


def test_a_checkpoint_of_another_run_is_refused(stream_set, tmp_path):
    pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path, stop_after=1)
    with pytest.raises(ValueError, match="belongs to another run"):
        pretrain(fresh(stream_set), stream_set, replace(TRAINING, learning_rate=9e-4), tmp_path)


def test_loss_falls_and_seeds_decide(stream_set, tmp_path):
    training = Training(steps=40, batch_size=32, learning_rate=3e-3)
    one, two, other = (
        pretrain(
            fresh(stream_set),
            stream_set,
            replace(training, seed=seed),
            tmp_path / name,
            stop_after=stop,
        )
        for seed, name, stop in ((1, "one", None), (1, "two", 10), (2, "other", 10))
    )
    assert np.mean([x["loss"] for x in one[-5:]]) < 0.9 * np.mean([x["loss"] for x in one[:5]])
    assert without_speed(one[:10]) == without_speed(two) != without_speed(other)


def test_overfits_one_batch(stream_set, tmp_path):
    rows = stream_set.catalogue.split("train")[:16]
    plain = Objective(mask_rate=0.0, harmony="uniform", temperature=0.07)
    training = Training(steps=150, batch_size=16, learning_rate=3e-3, precision="float32")
    history = pretrain(
        fresh(stream_set, width=32, objective=plain), stream_set, training, tmp_path, rows
    )
    start, end = history[0]["contrast_I+T"], history[-1]["contrast_I+T"]
    assert start > 2.0 and end < 0.2  # from log 16


def test_schedule_and_order():
    def order(epoch, seed):
        training = Training(batch_size=20, seed=seed)
        steps = drawn(np.arange(50), training, range(3 * epoch, 3 * epoch + 3))
        return [row for rows in steps for row in rows]

    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert (
        factors[0] == pytest.approx(0.1)
        and max(factors) == factors[9] == 1.0
        and factors[-1] == pytest.approx(1 / 90)
    )
    assert all(a <= b for a, b in zip(factors[:10], factors[1:10], strict=False))
    first, again, later, other = (order(*of) for of in ((0, 0), (0, 0), (1, 0), (1, 1)))
    assert sorted(first) == list(range(50)) and first == again and first != later != other


def test_the_last_incomplete_batch_of_an_epoch_is_a_step(stream_set, tmp_path):
    training = Training(epochs=1, batch_size=50)
    assert (
        training.total_steps(120) == 3 and Training(epochs=0.5, batch_size=50).total_steps(120) == 2
    )
    with pytest.raises(ValueError, match="the train split is empty"):
        pretrain(fresh(stream_set), stream_set, training, tmp_path, rows=np.array([], dtype=int))


def test_quarters_are_watched(stream_set, tmp_path):
    history = pretrain(
        fresh(stream_set), stream_set, TRAINING, tmp_path, watch=lambda model: {"seen": 1}
    )
    assert [line["step"] for line in history if "seen" in line] == [1, 3, 5, 7]


def test_matrices_decay_and_nothing_else(stream_set):
    model = fresh(stream_set)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optimiser(model, Training(weight_decay=0.1)).param_groups
    rest, decay = sorted(groups, key=lambda group: group["weight_decay"])
    assert decay["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decay["params"])
    kept = {names[id(p)] for p in rest["params"]}
    assert {n for n in names.values() if n.endswith("bias") or "norm" in n} <= kept


def seen_in_training(stream_set, tmp_path, monkeypatch, training=TRAINING, scale=1.0, **settings):
    """What each step of a run saw: its rows, first random number and whether the model trained."""
    model, rows, seen = fresh(stream_set), stream_set.catalogue.split("train")[:40], []
    monkeypatch.setattr("m5lib.pretrain.torch.optim.AdamW.step", lambda *_, **__: None)

    def losses(chosen, generator):
        seen.append((chosen, generator.initial_seed(), model.training))
        return scale * sum(p.square().sum() for p in model.parameters()), {}

    run_loop(model.eval(), Task("", rows, losses, {}), training, tmp_path)
    return model, rows, seen


def test_an_epoch_is_every_product_once_in_training_mode_with_masks_of_its_own(
    stream_set, tmp_path, monkeypatch
):
    training = Training(epochs=2, batch_size=16)
    _, rows, seen = seen_in_training(stream_set, tmp_path, monkeypatch, training)
    chosen, seeds, trained = zip(*seen, strict=True)
    assert len(seen) == 6 and all(trained) and len(set(seeds)) == 6
    for epoch in (chosen[:3], chosen[3:]):
        assert sorted(np.concatenate(epoch)) == sorted(rows)
    assert list(np.concatenate(chosen[:3])) != list(np.concatenate(chosen[3:]))


@pytest.mark.parametrize("missing", ["mask", "impute"])
def test_loaders_make_the_batches_of_a_run(stream_set, tmp_path, missing):
    runs, made, batch = [], [], type(stream_set).batch

    def spy(streams, rows, part=None):
        made.append(os.getpid())
        return batch(streams, rows, part)

    training = replace(TRAINING, epochs=2, steps=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(stream_set), "batch", spy)
        for loaders, feed in ((0, map), (2, partial(ahead, loaders=2))):
            model = fresh(stream_set, missing=missing, dropout=0.1)
            folder = tmp_path / str(loaders)
            history = pretrain(model, stream_set, training, folder, feed=feed)
            runs.append((without_speed(history), [p.tolist() for p in model.parameters()]))
            assert set(made) <= {os.getpid()}, "a loader is a process of its own"
            assert bool(made) == (loaders == 0)
            made.clear()
    assert runs[0] == runs[1] and len(runs[0][0]) > 3


def test_a_loader_that_fails_ends_the_run_with_its_reason(stream_set, tmp_path, monkeypatch):
    def fails(streams, rows, part=None):
        raise ValueError("no such shelf")

    monkeypatch.setattr(type(stream_set), "batch", fails)
    with pytest.raises(ValueError, match="no such shelf"):
        pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path, feed=partial(ahead, loaders=1))


def test_gradients_are_clipped(stream_set, tmp_path, monkeypatch):
    training = replace(TRAINING, steps=1)
    model, *_ = seen_in_training(stream_set, tmp_path, monkeypatch, training, scale=1e6)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert norm <= 1.001 * training.clip


def test_each_step_is_taken_at_the_scheduled_rate(stream_set, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(
        "m5lib.pretrain.torch.optim.AdamW.step",
        lambda optimizer, *_: rates.append({g["lr"] for g in optimizer.param_groups}),
    )
    history = pretrain(fresh(stream_set), stream_set, replace(TRAINING, warmup=0.5), tmp_path)
    slow = [1e-3 * factor / 4 for factor in (1, 2, 3, 4, 4, 3, 2, 1)]
    assert [line["learning_rate"] for line in history] == pytest.approx(slow)
    assert [rate for (rate,) in rates] == pytest.approx(slow)


def test_a_row_masks_at_its_own_rate(stream_set, tmp_path):
    none, most = (
        pretrain(
            fresh(stream_set, objective=Objective(mask_rate=rate)),
            stream_set,
            TRAINING,
            tmp_path / str(rate),
            stop_after=1,
        )[0]
        for rate in (0.0, 0.9)
    )
    for task in ("MLM", "MEM", "MRP"):
        assert none[task] == 0 < most[task]


def test_by_default_only_training_products_teach(stream_set, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "m5lib.pretrain.run_loop", lambda model, task, *_: seen.append(task.rows) or []
    )
    pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path)
    assert list(seen[0]) == list(stream_set.catalogue.split("train"))


def test_what_a_row_hides_is_hidden(stream_set, tmp_path):
    """Table 7: entities of the table, or single tokens. Two runs, not one."""
    runs = []
    for hides in ((), (("table", "token"),)):
        objective = Objective(hides=hides)
        model = fresh(stream_set, objective=objective)
        runs.append(pretrain(model, stream_set, TRAINING, tmp_path / str(len(runs)))[0])
    assert runs[0]["MEM"] != runs[1]["MEM"]


def test_only_pre_training_drops_modalities_and_as_its_row_says(stream_set, tmp_path, monkeypatch):
    seen, forward = [], Model.forward

    def spy(model, batch, *rest, given=None):
        seen.append((given, batch.presence))
        return forward(model, batch, *rest, given=given)

    monkeypatch.setattr(Model, "forward", spy)
    for drop in (0.0, 1.0):
        objective = Objective(drop=drop, fused=1.0)
        folder = tmp_path / str(drop)
        pretrain(fresh(stream_set, objective=objective), stream_set, TRAINING, folder)
    without, having = seen[:8], seen[8:]
    assert all(given is None for given, _ in without) and len(having) == 8
    assert all((given != there).any() and given.any(1).all() for given, there in having)
    model = fresh(stream_set, objective=Objective(drop=1.0)).train()
    batch = stream_set.batch(stream_set.catalogue.split("train")[:8])
    for name, summary in model(batch).summary.items():  # as fine-tuning calls it
        assert summary.any(1).equal(batch.streams[name].valid[:, 0])
