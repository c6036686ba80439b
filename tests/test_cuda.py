"""The same on CUDA as on the processor, to tolerance. Skipped where there is no device, so that it
is run whenever one can be had:

python -m pytest -n 0 -m cuda tests/test_cuda.py
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import FewWords, make_five_batch
from torch import nn

from m5lib import masking, objectives
from m5lib.embeddings import READOUTS, embeddings
from m5lib.evaluation.evaluate import fit_whitening
from m5lib.model import Model
from m5lib.models import zoo
from m5lib.pretrain import Training, autocast, pretrain
from m5lib.streams import impute

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FIVE = ("image", "text", "table", "video", "audio")


def built(name: str, **settings) -> Model:
    """A row with random biases and norms too, without dropout."""
    settings = {"width": 64, "layers": 2, "heads": 4, "dropout": 0.0} | settings
    spec = zoo.build(name, **settings)
    names = tuple(n for n in FIVE if not spec.takes or n in spec.takes)
    widths = {"image": 12, "video": 10, "audio": 8}
    widths = tuple((n, width) for n, width in widths.items() if n in names)
    torch.manual_seed(0)
    model = Model(replace(spec, modalities=names, widths=widths, vocabulary=50, empty=(2, 3)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1) if parameter.ndim else None
    return model


def step(model: Model, device: str, precision: str = "float32", products: int = 6):
    """Loss, its parts, and the gradient of every parameter, on the processor."""
    batch, objective = make_five_batch(products=products), model.spec.objective
    batch = impute(batch, model.spec.empty) if model.spec.missing == "impute" else batch
    tasks, drawn = objective.tasks(model.spec.modalities), torch.Generator().manual_seed(0)
    words = FewWords()
    batch, targets = masking.mask(batch, words, drawn, 0.4, only=tasks)
    moved = {
        name: replace(t, **{k: getattr(t, k).to(device) for k in ("product", "token", "value")})
        for name, t in targets.items()
    }
    model, batch = model.to(device).train(), batch.to(device)
    model.zero_grad(set_to_none=True)
    with autocast(torch.device(device), precision):
        wanted = masking.hidden(batch, moved) if objective.reads == "fused" else {}
        loss, parts = objectives.total(model, model(batch, wanted), moved)
    loss.backward()
    gradients = {n: p.grad.float().cpu().clone() for n, p in model.named_parameters()}
    return loss.item(), {n: x.item() for n, x in parts.items()}, gradients


@pytest.mark.parametrize("name", ["scale", "released", "vilbert", "uniter"])
def test_losses_and_gradients_are_those_of_the_processor(name):
    settings = {"feature_heads": 4, "joint_heads": 4} if name == "released" else {}
    model = built(name, **settings)
    (one, parts, gradients), (two, others, found) = (step(model, d) for d in ("cpu", "cuda"))
    assert two == pytest.approx(one, rel=1e-4)
    assert others == pytest.approx(parts, rel=1e-3, abs=1e-4)
    for parameter, gradient in gradients.items():
        error = (found[parameter] - gradient).norm()
        assert error <= 1e-3 * gradient.norm() + 1e-5, (parameter, error, gradient.norm())


def test_bfloat16_is_finite_and_close():
    model = built("scale")
    (one, _, gradients), (two, _, found) = (
        step(model, "cuda", precision, products=32) for precision in ("float32", "bfloat16")
    )
    assert two == pytest.approx(one, rel=0.02)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    whole = [torch.cat([g.flatten() for g in each.values()]) for each in (gradients, found)]
    assert torch.cosine_similarity(*whole, dim=0) > 0.98


def test_dropout_in_bfloat16_is_finite_and_differs_from_draw_to_draw():
    model = built("scale", dropout=0.2)
    first, second = (step(model, "cuda", "bfloat16", products=32) for _ in range(2))
    assert np.isfinite([first[0], second[0]]).all() and first[0] != second[0]
    assert all(torch.isfinite(gradient).all() for gradient in second[2].values())


def test_what_a_batch_lacks_costs_no_number():
    """Alone, with its own lengths, a product has the states that it has in a batch."""
    model, batch = built("scale").cuda().eval(), make_five_batch().to("cuda")
    with torch.no_grad():
        every = model(batch)
        for row in range(6):
            alone = model(batch.take(row, row + 1))
            for name, valid in alone.valid.items():
                torch.testing.assert_close(
                    alone.fused[name][valid],
                    every.fused[name][row : row + 1][valid],
                    atol=1e-4,
                    rtol=1e-4,
                )


def test_attention_weights_are_those_of_the_processor():
    model, batch = built("scale").eval(), make_five_batch()
    with torch.no_grad():
        here = model(batch, attention=True)
        there = model.cuda()(batch.to("cuda"), attention=True)
        plain = model(batch.to("cuda"))
    for ours, theirs in zip(here.attention, there.attention, strict=True):
        for reader, layers in ours.items():
            for one, two in zip(layers, theirs[reader], strict=True):
                torch.testing.assert_close(two.cpu(), one, atol=1e-4, rtol=1e-3)
    for name, valid in plain.valid.items():
        torch.testing.assert_close(
            there.fused[name][valid], plain.fused[name][valid], atol=1e-4, rtol=1e-4
        )


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(stream_set, tmp_path):
    """Its dropout draws too, which come from the device's own random state."""
    training = Training(steps=6, batch_size=16, learning_rate=1e-3, precision="float32")

    def run(folder, *stops):
        for stop in stops:
            torch.manual_seed(5)  # whatever the process did before
            spec = zoo.scale(width=32, layers=1, heads=2, dropout=0.2).fit(stream_set)
            torch.manual_seed(1)
            model = Model(spec).cuda()
            history = pretrain(model, stream_set, training, tmp_path / folder, stop_after=stop)
        return model, history, torch.cuda.get_rng_state()

    (model, history, random), (other, again, state) = run("whole", 6), run("parts", 2, 4, 6)
    assert len(history) == len(again) == 6 and random.equal(state)
    for line, same in zip(history, again, strict=True):
        assert same["loss"] == pytest.approx(line["loss"], rel=1e-4)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert (one - two).abs().mean() < 1e-4


def test_embeddings_in_batches_are_those_of_the_processor(stream_set):
    torch.manual_seed(0)
    model = Model(zoo.scale(width=32, layers=1, heads=2).fit(stream_set)).eval()
    rows = np.arange(50)
    fit_whitening(model, stream_set, rows)
    for modalities in (None, ["text"]):
        given = (model, stream_set, rows, modalities, READOUTS)
        model.cpu()
        expected = embeddings(*given, batch_size=50)
        model.cuda()
        found = embeddings(*given, batch_size=7)
        for readout in READOUTS:
            assert found[readout].shape == expected[readout].shape
            np.testing.assert_allclose(
                found[readout], expected[readout], atol=2e-3, rtol=2e-3, err_msg=readout
            )


@pytest.mark.parametrize("name", ["wav2vec2", "whisper"])
def test_a_backbone_in_half_precision_is_close(name, tmp_path):
    """Several files together on the device, one by one on the processor."""
    import make_backbones

    from m5lib.data.backbones import Backbone, Prepared

    folder = make_backbones.save(name, tmp_path / name)
    torch.manual_seed(0)
    shape = (1, 80, 3000) if name == "whisper" else (1, 16_000)
    key = "input_features" if name == "whisper" else "input_values"
    files = [Prepared({key: torch.randn(shape)}, seconds=1.0) for _ in range(5)]
    device, processor = Backbone(folder, device="cuda"), Backbone(folder)
    assert device.together > processor.together == 1
    for file, made in zip(files, device.features(files), strict=True):
        expected = processor.features([file])[0].values
        np.testing.assert_allclose(made.values, expected, atol=3e-2)
