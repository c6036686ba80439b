"""A batch in parts has the gradient of the whole: micro-batches, and several processes."""

import os
import signal
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from conftest import FewWords, make_five_batch
from torch import nn

from m5lib import masking, objectives, simcl
from m5lib.model import Model
from m5lib.models import parallel, zoo
from m5lib.models.parallel import launch
from m5lib.pretrain import Training, pretrain
from m5lib.streams import impute

NAMES = ("image", "text", "table", "video", "audio")
WIDTHS = (("image", 12), ("video", 10), ("audio", 8))
#: What a model is trained with: every contrast by several scores, and every other loss.
CASES = {
    **{form: {"contrast": form} for form in simcl.FORMS},
    "scores with a gradient": {"harmony": "embedding", "agreement": "cosine"},
    "free scores": {"harmony": "free", "over_pairs": "sum"},
    "literal scores": {"harmony": "literal", "harmony_on": ("contrast",)},
    "on losses": {"contrast": "eq2", "acts_on": "losses"},
    "neighbours, fixed temperature": {"pairs": "neighbours", "learn_temperature": False},
    "the fused loss": {"fused": 1.0, "drop": 0.5},
    "classes": {"classes": ("image",)},
    "no contrast": {"contrast": "none"},
    "matching": {"matching": ("text", "table")},
    "scores after the fusion": {"harmony": "embedding", "diagonal": "fused"},
}
ROWS = ("scale", "scale_fused", "vilbert", "uniter", "m5_mmt", "released")


def built(case: str) -> Model:
    """In float64, with random biases and norms, without dropout."""
    if case in CASES:
        spec = zoo.scale(width=16, layers=1, heads=2, dropout=0.0)
        spec = replace(spec, objective=replace(spec.objective, **CASES[case]))
    else:
        heads = {"feature_heads": 2, "joint_heads": 2} if case == "released" else {}
        spec = zoo.build(case, width=16, layers=1, heads=2, dropout=0.0, **heads)
    names = tuple(name for name in NAMES if not spec.takes or name in spec.takes)
    widths = tuple((name, width) for name, width in WIDTHS if name in names)
    torch.manual_seed(0)
    classes = tuple((name, 6) for name in spec.objective.classes)
    sizes = {"modalities": names, "widths": widths, "classes": classes}
    model = Model(replace(spec, vocabulary=50, empty=(2, 3), **sizes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2) if parameter.ndim else None
    return model.double().train()


def products(count: int = 7):
    """Ragged, uneven, and without video in the first half."""
    batch = make_five_batch(3, count)
    streams = dict(batch.streams)
    video, none = streams["video"], torch.arange(count) < count // 2 + 1
    streams["video"] = replace(video, valid=video.valid & ~none[:, None])
    image = streams["image"].tokens  # with probabilities of six classes
    streams["image"] = replace(streams["image"], classes=image[..., :6].softmax(-1))
    for name, stream in streams.items():
        if stream.tokens.is_floating_point():
            tensors = {
                k: x.double() if x.is_floating_point() else x
                for k, x in vars(stream).items()
                if x is not None
            }
            streams[name] = replace(stream, **tensors)
    return replace(batch, streams=streams)


def step(case: str, count: int = 7, micro: int | None = None, seed: int = 5):
    """Values and gradients of one batch: of the whole, or (``micro``) in parts, of which a process
    has its share."""
    model, batch = built(case), products(count)
    objective, spec = model.spec.objective, model.spec
    batch = impute(batch, spec.empty) if spec.missing == "impute" else batch
    if micro is not None and (own := parallel.Parts(model).share(count)):
        batch = batch.take(*own)
    draw, given = torch.Generator().manual_seed(seed), None
    asked = (0.4, dict(objective.hides), objective.tasks(spec.modalities), objective.classes)
    batch, targets = masking.mask(batch, FewWords(), draw, *asked)
    if objective.drop:
        there = batch.presence_of(spec.modalities)
        given = masking.drawn_modalities(there, objective.drop, draw, batch.part)
    if micro is None:
        loss, values = objectives.total(model, model(batch, given=given), targets)
    else:
        parts = parallel.Parts(model, micro)
        loss, values = parts.losses(batch, targets, given, seed)
    loss.backward()
    values = {"loss": loss} | values
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {name: float(x.detach()) for name, x in values.items()}, gradients


@cache
def whole(case: str):
    return step(case)


def same(found, expected):
    """Gradient / gradient is 1 +- 1e-6, that of each parameter and the length of all."""
    (values, gradients), (others, wanted) = found, expected
    for name, value in others.items():
        assert values[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    scale = torch.stack([g.norm() for g in wanted.values()]).norm()
    for name, gradient in wanted.items():
        error = (gradients[name] - gradient).norm()
        assert error <= 1e-6 * gradient.norm() + 1e-9 * scale, (name, error, gradient.norm())


@pytest.mark.parametrize("case, micro", [("infonce", 1), *((case, 3) for case in [*CASES, *ROWS])])
def test_micro_batches_have_the_gradient_of_the_whole(case, micro):
    same(step(case, micro=micro), whole(case))


def test_dropout_is_that_of_the_part_in_both_passes(monkeypatch):
    model, batch, seen = built("scale"), products(), []
    for module in model.modules():
        if hasattr(module, "rate"):
            module.rate = 0.5
    encode = Model._encode
    monkeypatch.setattr(
        Model, "_encode", lambda self, *x: seen.append(encode(self, *x)) or seen[-1]
    )
    batch, targets = masking.mask(batch, FewWords(), torch.Generator())
    parallel.Parts(model, 2).losses(batch, targets, None, 1)[0].backward()
    assert len(seen) == 8
    for first, second in zip(seen[:4], seen[4:], strict=True):
        for name, pooled in first.pooled.items():
            assert pooled.equal(second.pooled[name])
    drawn = [x.embedded["image"][0, 0] == 0 for x in seen]
    assert not any(drawn[0].equal(other) for other in drawn[1:4])


def test_micro_batches_learn_in_half_precision_too():
    """Weights that were cast without a gradient are cast again."""
    found = []
    for micro in (0, 3):
        model, batch = built("scale").float(), make_five_batch(3, 7)
        batch, targets = masking.mask(batch, FewWords(), torch.Generator())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if micro:
                loss = parallel.Parts(model, micro).losses(batch, targets, None, 1)[0]
            else:
                loss = objectives.total(model, model(batch), targets)[0]
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.cosine_similarity(*found, dim=0) > 0.999
    assert found[0].norm() == pytest.approx(float(found[1].norm()), rel=0.02)


# --- two processes --------------------------------------------------------------------------------

#: Each whole; those of each kind in parts, too (of all, one process holds them).
PARTS = ("infonce", "scores with a gradient", "the fused loss", "classes", "matching", "released")
RANKED = [*((case, 0) for case in [*CASES, *ROWS]), *((case, 2) for case in PARTS)]


def steps(folder, fault):
    """In each of two processes: all cases, kept; then the second fails, and the first waits: not
    for the second, as it may then fail of that first (``LOG.md``)."""
    found = {str((case, micro)): step(case, micro=micro) for case, micro in RANKED}
    torch.save(found, folder / f"{parallel.world()[0]}.pt")
    torch.distributed.barrier()
    if parallel.world()[0] == 1:
        raise ValueError(fault)
    time.sleep(600)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both computed, and what was said of their end."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(RuntimeError) as fault:
        launch(steps, 2, folder, "no such shelf")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)], str(fault.value)


@pytest.mark.xdist_group("two processes")  # which are started once, not once a worker
@pytest.mark.parametrize("case, micro", RANKED)
def test_two_processes_have_the_gradient_of_one(two, case, micro):
    for found in two[0]:
        same(found[str((case, micro))], whole(case))


@pytest.mark.xdist_group("two processes")
def test_a_fault_of_one_process_is_said_in_a_line(two):
    said = "number 1 of 2 processes failed: ValueError: no such shelf; the others were ended"
    assert two[1].startswith(said) and "\n" not in two[1]


def trained(streams, folder, stop=None, killed=False):
    """Six steps; of several processes the second may be killed in its fourth."""
    torch.manual_seed(parallel.world()[0])  # weights are those of the first, whatever others have
    model = Model(zoo.scale(width=16, layers=1, heads=2, dropout=0.0).fit(streams))
    seen, batch_of = [], type(streams).batch

    def batch(self, rows, part=None):
        seen.append((part, [int(row) for row in rows]))
        torch.save(seen, folder / f"seen-{parallel.world()}.pt")
        if killed and len(seen) == 4 and parallel.world()[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch_of(self, rows, part)

    type(streams).batch, rows = batch, streams.catalogue.split("train")[:46]
    training = Training(steps=6, batch_size=12, checkpoint_seconds=0, precision="float32")
    parts = parallel.Parts(model) if parallel.world()[1] > 1 else None
    try:
        history = pretrain(model, streams, training, folder, rows, stop, parts=parts)
    finally:
        type(streams).batch = batch_of
    return history, seen


def test_a_run_goes_on_with_another_number_of_devices_and_after_a_kill(stream_set, tmp_path, capfd):
    """The same products in the same batches, and to rounding the same losses; the bar is shown."""
    expected, seen = trained(stream_set, tmp_path / "one")
    folder = tmp_path / "several"
    trained(stream_set, folder, 2)
    capfd.readouterr()
    message = "number 1 of 2 processes was ended by SIGKILL.*; the others were ended; the same call"
    with pytest.raises(RuntimeError, match=message):
        launch(trained, 2, stream_set, folder, None, True)
    assert "2/6" in capfd.readouterr().err
    one, other = (torch.load(folder / f"seen-({rank}, 2).pt") for rank in range(2))
    assert [rows for _, rows in other] == [rows for _, rows in seen[2:]]
    assert [rows for _, rows in one[:3]] == [rows for _, rows in other[:3]]
    assert all(part == (0, len(rows) // 2) for part, rows in one)
    assert all(part == (len(rows) // 2, len(rows)) for part, rows in other)
    assert len((folder / "history.jsonl").read_text().splitlines()) == 5  # 2 and 3 more
    found, rest = trained(stream_set, folder)
    assert [rows for _, rows in rest] == [rows for _, rows in seen[5:]]
    for line, same in zip(found, expected, strict=True):
        assert line["loss"] == pytest.approx(same["loss"], rel=1e-4)
        assert line["step"] == same["step"] and set(line) == set(same)


def test_the_shares_are_the_batch(monkeypatch):
    for size, count in ((1, 5), (2, 7), (3, 3), (8, 3)):
        monkeypatch.setattr(parallel, "world", lambda size=size: (0, size))
        parts = parallel.shares(count)
        assert [n for first, last in parts for n in range(first, last)] == list(range(count))
        assert len(parts) == size and np.ptp([last - first for first, last in parts]) <= 1
