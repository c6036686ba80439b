"""Embeddings of products that lack some modalities: what is absent counts nowhere. Each number
against a loop over products."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_five_batch

from m5lib import embeddings, simcl
from m5lib.evaluation.evaluate import fit_whitening
from m5lib.evaluation.separation import mean_harmony, modality_cosines
from m5lib.layers import Whitening
from m5lib.model import Model
from m5lib.streams import Streams

ROWS = np.arange(6)


@pytest.fixture
def model(five):
    torch.manual_seed(0)
    model = Model(replace(five, dropout=0.3)).eval()
    for p in model.parameters():  # BERT's start is nearly linear: nothing could go wrong
        if p.ndim > 1:
            p.data *= 5
    return model


@pytest.fixture
def products():
    """Streams of six products; each of the last five lacks one of the modalities."""
    found, whole = object.__new__(Streams), make_five_batch()
    found.batch = lambda rows: whole if len(rows) == 6 else pytest.fail("all six are asked for")
    return found


def test_whitening_is_fitted_on_the_products_that_have_the_modality(model, products):
    fit_whitening(model, products, ROWS)
    output, fitted = model.encode(products.batch(ROWS)), 0
    for states, by_name in model.whitening.items():
        for name, found in by_name.items():
            rows = []
            for b in ROWS:
                here = output.valid[name][b]
                x = getattr(output, states)[name][b]
                if here[0]:
                    rows.append(x if x.ndim == 1 else x[here].mean(0))
            slow = Whitening(len(found.mean))
            slow.fit(torch.stack(rows))
            assert len(rows) == 5
            torch.testing.assert_close(found.mean, slow.mean)
            torch.testing.assert_close(found.matrix, slow.matrix, rtol=1e-3, atol=1e-4)
            fitted += 1
    assert fitted >= 5


def test_an_absent_modality_adds_nothing_and_each_that_is_there_has_length_one(model, products):
    """Also after whitening, which moves zero vectors away from zero."""
    fit_whitening(model, products, ROWS)
    output = model(products.batch(ROWS))
    sides = {"concat": ["pooled"], "whitened": ["pooled"], "layered": ["pooled", "embedded"]}
    for readout, wanted in (sides | {"pooled": ["pooled"]}).items():
        for b, vector in enumerate(embeddings.read_out(model, output, readout)):
            parts = []
            for states in wanted:
                for name, x in getattr(output, states).items():
                    here = output.valid[name][b]
                    part = x[b] if x.ndim == 2 else x[b][here].sum(0) / max(1, here.sum())
                    if readout in ("whitened", "layered"):
                        part = model.whitening[states][name](part[None])[0]
                    parts.append(part / part.norm().clamp(min=1e-12) * here[0])
            slow = sum(parts) if readout == "pooled" else torch.cat(parts)
            torch.testing.assert_close(vector, slow, msg=readout)


def test_embeddings_given_some_modalities_know_nothing_of_the_others(model, products):
    """As if the products had only these; the model is left in the mode it was in."""
    model.train()
    found = embeddings.embeddings(model, products, ROWS, ["text", "audio"])
    assert model.training
    output = model.eval()(products.batch(ROWS).only(["text", "audio"]))
    for readout, vectors in found.items():
        slow = embeddings.read_out(model, output, readout).detach().numpy()
        np.testing.assert_allclose(vectors, slow, atol=1e-5, err_msg=readout)
    everything = embeddings.embeddings(model, products, ROWS)["fused_first"]
    assert not np.allclose(everything, found["fused_first"], atol=0.01)


def test_similarity_takes_off_the_mean_over_the_other_products(model, products):
    output = model(products.batch(ROWS))
    both = [b for b in ROWS if output.presence[b, 0] and output.presence[b, 1]]
    rows, own_of, others_of = modality_cosines(model, products, ROWS, ("image", "text"))
    assert list(rows) == both and len(both) == 4
    image, text = output.summary["image"], output.summary["text"]
    for b, value, others in zip(both, own_of, others_of, strict=True):
        cosines = {o: F.cosine_similarity(image[b], text[o], dim=0).item() for o in both}
        own = cosines.pop(b)
        assert value == pytest.approx(own, abs=1e-6)
        assert others == pytest.approx(np.mean(list(cosines.values())), abs=1e-6)
    assert np.abs(own_of - others_of).min() > 1e-4, "else the test could not tell"


def test_mean_harmony_is_over_the_products_that_have_both(model, products):
    output = model.encode(products.batch(ROWS))
    pooled = torch.stack(list(output.pooled.values()), dim=1)
    scores = simcl.scores(model, pooled, output.presence)
    found = mean_harmony(model, products, ROWS)
    for i in range(5):
        for j in range(5):
            there = [b for b in ROWS if output.presence[b, i] and output.presence[b, j]]
            assert len(there) == (5 if i == j else 4)
            slow = np.mean([scores[b, i, j].item() for b in there])
            assert found[i, j] == pytest.approx(slow, abs=1e-6)
