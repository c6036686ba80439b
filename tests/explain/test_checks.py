"""Checks of attributions: each set of modalities against random orders; weights drawn anew start
from what was there."""

import numpy as np
import pandas as pd
import pytest
import torch

from m5lib.catalogue import DataError
from m5lib.embeddings import DEFAULT, embeddings
from m5lib.explain import attribution, faithfulness
from m5lib.model import Model
from m5lib.models import zoo
from m5lib.models.finetune import Classifier, labels_of


@pytest.fixture(scope="module")
def classifier(stream_set):
    torch.manual_seed(0)
    model = Model(zoo.scale(width=16, layers=1, heads=2).fit(stream_set))
    model.tokenizer = stream_set.tokenizer
    return Classifier(model, labels_of(stream_set)).eval()


@pytest.fixture(scope="module")
def rows(stream_set):
    return stream_set.catalogue.split("query")[:6]


def test_products_by_their_ids(stream_set):
    catalogue = stream_set.catalogue
    assert attribution.rows_of(catalogue, catalogue.ids[[4, 2]]).tolist() == [4, 2]
    with pytest.raises(DataError, match="no product"):
        attribution.rows_of(catalogue, ["nobody"])


def test_the_nearest_other_product_is_found(stream_set, classifier, rows):
    model, catalogue = classifier.model, stream_set.catalogue
    gallery = catalogue.split("gallery")
    asked = np.array([gallery[0], rows[0]])
    target, others = attribution.nearest(model, stream_set, asked)
    assert others[0] != gallery[0] and set(others) <= set(gallery)
    both = np.concatenate([asked, gallery])
    vectors = embeddings(model, stream_set, both, readouts=(DEFAULT,))[DEFAULT]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit[:2] @ unit[2:].T
    cosine[0, 0] = -2
    assert np.allclose(target.value(stream_set.batch(asked)), cosine.max(1), atol=1e-5)


def test_each_modality_and_all_are_removed(stream_set, classifier, rows):
    batch = stream_set.batch(rows)
    target = attribution.class_logit(classifier, stream_set.catalogue.labels[rows])
    scores = attribution.integrated_gradients(target, batch, steps=8).tokens
    gone = faithfulness.removed(target, batch, scores)
    assert list(gone) == ["I", "T", "Tab", "I+T+Tab"]
    for part in gone.values():
        count = len(part.scored.deletion)
        assert all(len(x) == count for x in (part.random.insertion, *part.gains.values()))
        areas, drawn = part.scored.areas(), part.random.areas()
        assert np.allclose(part.gains["deletion"], drawn[0] - areas[0], atol=1e-5)
        assert np.allclose(part.gains["insertion"], areas[1] - drawn[1], atol=1e-5)


def test_weights_drawn_anew_start_from_the_model_itself(stream_set, classifier, rows):
    labels, batch = stream_set.catalogue.labels[rows[:4]], stream_set.batch(rows[:4])
    cascade = faithfulness.cascade(classifier, labels, batch, None, steps=4)
    parts = ["nothing", "out", "hidden", "joint 1", "solo 1", "embeddings"]
    assert list(cascade.index) == parts
    assert cascade.loc["nothing"].tolist() == pytest.approx([1, 1, 1])
    assert cascade.loc["out", "rollout"] == pytest.approx(1)  # attention does not see the head
    assert cascade.loc["embeddings", "integrated gradients"] < 0.99


def test_products_without_a_choice_are_left_out(stream_set, classifier, rows):
    """Two products whose title names the category in one word, and one that does not name it."""
    rows = rows[:3]
    batch, ids = stream_set.batch(rows), stream_set.catalogue.ids[rows]
    truth = pd.DataFrame({"text_words": [[0], [0], []]}, index=ids)
    first = torch.zeros(batch.streams["text"].valid.shape)
    first[:, 1] = 1.0
    hits, chance = faithfulness.pointed(stream_set, batch, truth, {"a": {"text": first}})
    assert hits["text", "a"].tolist() == [1, 1] and len(chance["text"]) == 2
    assert (chance["text"] > 0).all() and (chance["text"] < 1).all()
