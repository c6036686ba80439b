"""Integrated gradients and Shapley values against slow transcriptions; what the tokens get adds up;
memory that does not suffice."""

from dataclasses import replace
from functools import cache
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m5lib.embeddings import DEFAULT, embeddings
from m5lib.explain import attribution
from m5lib.model import Model
from m5lib.models.finetune import Classifier

LABELS = ("mug", "shoe", "lamp")


@pytest.fixture
def classifier(five):
    torch.manual_seed(0)
    model = Model(five)
    for p in model.parameters():  # BERT's start is nearly linear: nothing could go wrong
        if p.ndim > 1:
            p.data *= 3
    model.tokenizer = SimpleNamespace(mask_token_id=4)
    return Classifier(model, LABELS).eval()


@pytest.fixture
def logit(classifier):
    return attribution.class_logit(classifier, [LABELS[n % 3] for n in range(6)])


def test_targets_are_the_models_own_numbers(classifier, logit, five_batch):
    batch = five_batch()
    with torch.no_grad():
        logits = classifier(batch)[1]
    assert torch.allclose(logit.value(batch), logits[torch.arange(6), torch.arange(6) % 3])
    with pytest.raises(ValueError, match="knows no class"):
        attribution.class_logit(classifier, ["spoon"])


def test_similarity_to_itself_is_one(classifier, stream_set):
    from m5lib.models import zoo

    model = Model(zoo.scale(width=16, layers=1, heads=2).fit(stream_set)).eval()
    vectors = embeddings(model, stream_set, range(3), readouts=(DEFAULT,))[DEFAULT]
    target = attribution.similarity(model, vectors)
    assert torch.allclose(target.value(stream_set.batch(range(3))), torch.ones(3), atol=1e-5)


def test_scores_add_up_and_only_content_gets_any(logit, five_batch):
    batch = five_batch()
    found = attribution.integrated_gradients(logit, batch)
    assert found.error.max() < 0.02 and (found.value - found.base).abs().min() > 1e-3
    assert torch.allclose(found.value, logit.value(batch), atol=1e-5)
    for name, scores in found.tokens.items():
        own = attribution.content(batch.streams[name])
        assert (scores[~own] == 0).all() and (scores[own] != 0).any()
    summed = sum(x.sum(1) for x in found.tokens.values())
    assert torch.allclose(summed, found.value - found.base + found.delta, atol=1e-5)


def test_error_is_the_share_of_the_rise_that_the_scores_miss():
    """F rises from 8 to 10; the scores add up to 1.5."""
    tokens = {"text": torch.tensor([[0.5, 0.75]]), "image": torch.tensor([[0.25]])}
    found = attribution.Attribution(tokens, torch.tensor([10.0]), torch.tensor([8.0]))
    assert found.delta.item() == pytest.approx(-0.5) and found.error.item() == pytest.approx(0.25)


def test_integrated_gradients_are_the_integral(logit, five_batch):
    """attribution = (x - x') times the mean gradient on the way, by a loop over the points of the
    quadrature; features first become their summary and are embedded, words start from
    embeddings."""
    batch, steps = five_batch(), 6
    model, whole = logit.model, attribution.path(logit, batch)
    points, weights = np.polynomial.legendre.leggauss(steps)
    summed = {name: torch.zeros_like(x) for name, x in zip(whole.names, whole.inputs, strict=True)}
    for point, weight in zip(points, weights, strict=True):
        at = {}
        for name, x, base in zip(whole.names, whole.inputs, whole.baselines, strict=True):
            at[name] = (base + (point + 1) / 2 * (x - base)).detach().requires_grad_()
        embedded = {}
        for name, value in at.items():
            stream = batch.streams[name]
            if stream.entity is None:
                count = stream.valid[:, 1:].sum(1).clamp(min=1)[:, None]
                summary = (value[:, 1:] * stream.valid[:, 1:, None]).sum(1) / count
                value = model.embeddings[name](
                    replace(stream, tokens=torch.cat([summary[:, None], value[:, 1:]], 1))
                )
            embedded[name] = value
        output = model.forward_from_embeddings(
            embedded, {name: s.valid for name, s in batch.streams.items()}
        )
        logit.read(output, logit.sought).sum().backward()
        for name, value in at.items():
            summed[name] += weight / 2 * value.grad
    found = attribution.integrated_gradients(logit, batch, steps=steps, at_once=7)
    for name, x, base in zip(whole.names, whole.inputs, whole.baselines, strict=True):
        assert torch.allclose(found.tokens[name], (summed[name] * (x - base)).sum(-1), atol=1e-5), (
            name
        )


def test_baselines_are_what_they_say(logit, five_batch):
    batch, model = five_batch(), logit.model
    mean = {
        name: torch.full((x.shape[-1],), 0.5)
        for name, x in attribution._values(model, batch).items()
    }
    absent, meant = attribution.path(logit, batch), attribution.path(logit, batch, mean)
    masked = replace(batch.streams["text"], tokens=torch.full_like(batch.streams["text"].tokens, 4))
    hidden = model.embeddings["text"](masked)
    for place, name in enumerate(absent.names):
        own = attribution.content(batch.streams[name])
        expected = (
            hidden[own]
            if name == "text"
            else None
            if name == "table"
            else torch.zeros_like(absent.baselines[place][own])
        )
        if expected is not None:
            assert torch.equal(absent.baselines[place][own], expected)
        assert (meant.baselines[place][own] == 0.5).all()
        for chosen in (absent, meant):
            assert torch.equal(chosen.baselines[place][~own], chosen.inputs[place][~own])


def test_means_are_of_the_tokens_with_content(classifier, stream_set):
    from m5lib.models import zoo

    model = Model(zoo.scale(width=16, layers=1, heads=2).fit(stream_set)).eval()
    found = attribution.means(model, stream_set, range(5), batch_size=2)
    one = [stream_set.batch([row]).streams["image"] for row in range(5)]
    assert torch.allclose(
        found["image"], torch.cat([s.tokens[0, 1:] for s in one]).mean(0), atol=1e-5
    )
    with torch.no_grad():
        words = torch.cat(
            [model.embed(stream_set.batch([row]))["text"][0, 1:-1] for row in range(5)]
        )
    assert torch.allclose(found["text"], words.mean(0), atol=1e-5)


def test_too_little_memory_halves_what_is_done_at_once(logit, five_batch, monkeypatch, capsys):
    batch, tried = five_batch(), []
    whole = attribution.integrated_gradients(logit, batch, steps=4)
    real = attribution.integrated

    def scarce(part, steps, at_once):
        tried.append(at_once)
        if at_once > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        assert len(part.inputs[0]) <= 2
        return real(part, steps, at_once)

    monkeypatch.setattr(attribution, "integrated", scarce)
    found = attribution.integrated_gradients(logit, batch, steps=4, at_once=16)
    assert tried == [16, 8, 4, 2, 2, 2] and "2 copies at once" in capsys.readouterr().out
    assert all(torch.allclose(found.tokens[n], x, atol=1e-6) for n, x in whole.tokens.items())
    monkeypatch.setattr(
        attribution,
        "integrated",
        lambda *given: 1 / 0 if given[2] == 1 else (_ for _ in ()).throw(RuntimeError("a fault")),
    )
    with pytest.raises(RuntimeError, match="a fault"):
        attribution.integrated_gradients(logit, batch)


def test_a_model_without_tokenizer_says_so(logit, five_batch):
    logit.model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        attribution.integrated_gradients(logit, five_batch())


def test_any_method_of_captum_follows_the_path(logit, five_batch):
    """Gradient times input; special tokens have a gradient, and no score."""
    from captum.attr import InputXGradient

    def method(path, at_once):
        inputs = tuple(x.clone().requires_grad_() for x in path.inputs)
        return InputXGradient(path.forward).attribute(inputs, additional_forward_args=path.rest)

    batch, whole = five_batch(), attribution.path(logit, five_batch())
    inputs = [x.clone().requires_grad_() for x in whole.inputs]
    whole.forward(*inputs, *whole.rest).sum().backward()
    for at_once in (512, 4):
        found = attribution.attributed(whole, method, at_once).tokens
        for name, x in zip(whole.names, inputs, strict=True):
            own = attribution.content(batch.streams[name])
            assert torch.allclose(found[name], (x.grad * x).sum(-1) * own, atol=1e-6)


def test_captums_shapley_values_are_ours(logit, five_batch):
    from captum.attr import ShapleyValues

    batch, names = five_batch(), logit.model.spec.modalities

    @cache  # Captum asks for each of the 32 coalitions many times
    def value(kept):
        return logit.value(batch.only([n for n, k in zip(names, kept, strict=True) if k]))

    theirs = ShapleyValues(lambda kept: value(tuple(kept[0].tolist())))
    theirs = theirs.attribute(torch.ones(6, 5))
    assert torch.allclose(theirs.double(), attribution.shapley(logit, batch).values, atol=1e-5)


def test_shapley_values_are_means_over_orders(logit, five_batch):
    """The definition: what a modality adds when it comes, over all orders in which modalities can
    come."""
    batch, names = five_batch(), logit.model.spec.modalities
    found, slow = attribution.shapley(logit, batch), torch.zeros(6, 5, dtype=torch.float64)
    orders = list(permutations(range(5)))
    worth = {}
    for size in range(6):
        for coalition in {frozenset(order[:size]) for order in orders}:
            worth[coalition] = logit.value(batch.only([names[n] for n in coalition])).double()
    for order in orders:
        for place, newcomer in enumerate(order):
            slow[:, newcomer] += (
                worth[frozenset(order[: place + 1])] - worth[frozenset(order[:place])]
            ) / len(orders)
    assert torch.allclose(found.values, slow, atol=1e-6)
    assert found.error.max() < 1e-4 and (found.values[~batch.presence] == 0).all()
    assert torch.allclose(found.full.float(), logit.value(batch), atol=1e-5)


def test_imputed_modalities_are_explained_too(five, five_batch):
    torch.manual_seed(0)
    model = Model(replace(five, missing="impute", empty=(2, 3)))
    model.tokenizer = SimpleNamespace(mask_token_id=4)
    target = attribution.class_logit(Classifier(model, LABELS), ["mug"] * 6)
    found = attribution.integrated_gradients(target, five_batch(), steps=16)
    assert found.delta.abs().max() < 1e-4 and torch.allclose(
        found.value, target.value(five_batch()), atol=1e-5
    )
