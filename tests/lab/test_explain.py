"""Products are chosen, compared and tested as said; numbers of a run become result rows."""

import numpy as np
import pytest
import torch

from m5lib.catalogue import DataError
from m5lib.embeddings import DEFAULT, embeddings
from m5lib.explain import attribution
from m5lib.explain.faithfulness import Curves
from m5lib.lab import explain, recording
from m5lib.model import Model
from m5lib.models import zoo
from m5lib.models.finetune import Classifier, labels_of


@pytest.fixture(scope="module")
def found(stream_set):
    """Six products explained by an untrained model."""
    torch.manual_seed(0)
    model = Model(zoo.scale(width=16, layers=1, heads=2).fit(stream_set))
    model.tokenizer = stream_set.tokenizer
    classifier = Classifier(model, labels_of(stream_set)).eval()
    rows = explain.chosen(stream_set, classifier, 6, 0)
    batch, target = (
        stream_set.batch(rows),
        attribution.class_logit(classifier, stream_set.catalogue.labels[rows]),
    )
    scores = attribution.integrated_gradients(target, batch, steps=8)
    methods = {
        "integrated gradients": scores.tokens,
        "gradient × input": attribution.gradient_times_input(target, batch),
    }
    methods |= explain.attention.attention_scores(model, batch)
    context = {
        "notebook": "12_attribution",
        "run": "x",
        "data": "fashion",
        "profile": "tiny",
        "seed": 0,
        "model": "scale",
    }
    context |= {"modalities": "I+T+Tab", "state": "finetuned"}
    worth = attribution.shapley(target, batch)
    return explain.Explained(
        context, classifier, model, stream_set, batch, target, scores, methods, worth, {}, None
    )


def test_products_are_queries_with_a_known_label_or_those_asked_for(found):
    catalogue = found.streams.catalogue
    assert set(found.batch.rows) <= set(catalogue.split("query")) and len(found.batch.rows) == 6
    assert set(found.labels) <= set(found.classifier.labels)
    assert explain.chosen(
        found.streams, found.classifier, list(catalogue.ids[[4, 2]]), 0
    ).tolist() == [4, 2]
    with pytest.raises(DataError, match="no product"):
        explain.rows_of(found.streams, ["nobody"])
    with pytest.raises(ValueError, match="known are"):
        explain.explained("shop", "tiny", 0, target="price")


def test_the_nearest_other_product_is_found(found):
    gallery = found.streams.catalogue.split("gallery")
    asked = np.array([gallery[0], found.batch.rows[0]])
    target, others = explain.alike(found.model, found.streams, asked)
    assert others[0] != gallery[0] and set(others) <= set(gallery)
    vectors = embeddings(
        found.model, found.streams, np.concatenate([asked, gallery]), readouts=(DEFAULT,)
    )[DEFAULT]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit[:2] @ unit[2:].T
    cosine[0, 0] = -2
    assert np.allclose(target.value(found.streams.batch(asked)), cosine.max(1), atol=1e-5)
    own, same = explain.alike(
        found.model, found.streams, asked[:1], [found.streams.catalogue.ids[gallery[0]]]
    )
    assert same[0] == gallery[0] and own.value(found.streams.batch(asked[:1]))[0] == pytest.approx(
        1.0, abs=1e-5
    )


def test_checks_become_rows(found):
    gone, sound = explain.removed(found, draws=2), explain.soundness(found, products=4, steps=4)
    assert list(gone) == ["I", "T", "Tab", "I+T+Tab"]
    assert list(sound["cascade"].index) == [
        "nothing",
        "out",
        "hidden",
        "joint 1",
        "solo 1",
        "embeddings",
    ]
    assert sound["cascade"].loc["nothing"].tolist() == pytest.approx([1, 1, 1]) and sound[
        "cascade"
    ].loc["out", "rollout"] == pytest.approx(1)
    rows = explain.numbers(found, 8, "absent", gone, sound, None)
    assert all(set(row) == set(recording.COLUMNS) and row["task"] == "attribution" for row in rows)
    assert {row["metric"] for row in rows} >= {
        "class logit",
        "deletion area",
        "insertion area",
        "infidelity",
        "rank correlation",
    }
    keys = [(row["metric"], row["variant"], row["convention"], row["modalities"]) for row in rows]
    assert len(set(keys)) == len(keys), "two numbers with one name"
    areas = {
        row["variant"]: row["value"]
        for row in rows
        if row["metric"] == "deletion area" and row["modalities"] == "I"
    }
    assert areas["integrated gradients"] == pytest.approx(gone["I"].scored.areas()[0].mean())


def test_tests_are_over_seeds_and_products():
    flat, rng = Curves(np.zeros((4, 6)), np.zeros((4, 6))), np.random.default_rng(0)
    seeds = [
        {
            "I": explain.Removed(
                flat, flat, {"deletion": 1 + rng.random(4), "insertion": -1 - rng.random(4)}
            )
        }
        for _ in range(3)
    ]
    verdicts = explain.tested(seeds)["verdict"]
    assert (
        verdicts["I", "deletion"] == "beats random"
        and verdicts["I", "insertion"] == "worse than random"
    )
    assert explain.pooled(seeds)["I"]["random deletion"].shape == (12, 6)
    points = [
        ({("image", "a"): np.array([1.0, 1, 1, 0])}, {"image": np.full(4, 0.25)}) for _ in range(3)
    ]
    line = explain.pointing_table(points).loc["image", "a"]
    assert (line["hits"], line["chance"], line["products"]) == (0.75, 0.25, 12) and line[
        "low"
    ] < 0.5 < line["high"]


def test_shares_and_means(found):
    shares = explain.shares_by_method(found)
    assert np.allclose(shares.sum(axis=1), 1) and list(shares.index) == [
        *explain.METHODS,
        "Shapley",
    ]
    by_category = explain.by_category([found, found])
    label = by_category.index[0]
    expected = found.worth.values[torch.tensor(found.labels == label)].mean(0)
    assert np.allclose(by_category.loc[label], expected)
    assert set(explain.agreement(found).index) == set(explain.METHODS[1:])
