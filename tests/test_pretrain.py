import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from m5lib.model import Model
from m5lib.models import zoo
from m5lib.pretrain import Training, order, pretrain, schedule
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
    found = pretrain(fresh(stream_set), stream_set, TRAINING, tmp_path / "killed")
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
        pretrain(fresh(stream_set), stream_set, replace(training, seed=seed), tmp_path / name)
        for seed, name in ((1, "one"), (1, "two"), (2, "other"))
    )
    assert np.mean([x["loss"] for x in one[-5:]]) < 0.9 * np.mean([x["loss"] for x in one[:5]])
    assert without_speed(one) == without_speed(two) != without_speed(other)


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
    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert (
        factors[0] == pytest.approx(0.1)
        and max(factors) == factors[9] == 1.0
        and factors[-1] == pytest.approx(1 / 90)
    )
    assert all(a <= b for a, b in zip(factors[:10], factors[1:10], strict=False))
    rows = np.arange(50)
    assert set(order(rows, 0, 0)) == set(rows) and list(order(rows, 0, 0)) == list(
        order(rows, 0, 0)
    )
    assert list(order(rows, 0, 0)) != list(order(rows, 1, 0)) != list(order(rows, 1, 1))


def test_every_product_is_seen_once_per_epoch_the_last_batch_included(stream_set, tmp_path):
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
