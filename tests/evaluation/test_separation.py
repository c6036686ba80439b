"""Groups that separate and groups that do not: the numbers are their formulas."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier

from m5lib.catalogue import Catalogue, Product
from m5lib.data import columns
from m5lib.evaluation import probes, separation


def islands(products=60, kinds=3, width=8, noise=0.1, seed=0):
    """Unit-like vectors around a direction for each kind, and their labels."""
    rng = np.random.default_rng(seed)
    place = np.arange(products) % kinds
    return (np.eye(width)[place] + noise * rng.normal(size=(products, width))).astype(
        np.float32
    ), np.array([f"k{p}" for p in place], dtype=object)


def slow_silhouette(points, labels, distance):
    """Rousseeuw's formula, product by product."""
    found = []
    for i in range(len(points)):
        to = {}
        for j in range(len(points)):
            if j != i:
                to.setdefault(labels[j], []).append(distance(points[i], points[j]))
        a, b = np.mean(to.pop(labels[i])), min(np.mean(values) for values in to.values())
        found.append((b - a) / max(a, b))
    return np.array(found)


@pytest.mark.parametrize("space", separation.SPACES)
def test_separation_is_the_formula(space):
    points, labels = islands(noise=0.6)
    points = points[:, :2] if space != separation.SPACE else points
    cosine = lambda x, y: 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)  # noqa: E731
    euclid = lambda x, y: np.linalg.norm(x - y)  # noqa: E731
    metric = (cosine, "cosine") if space == separation.SPACE else (euclid, "euclidean")
    found = separation.separation(points, labels, space)
    np.testing.assert_allclose(
        found["silhouette"], slow_silhouette(points.astype(float), labels, metric[0]), atol=1e-5
    )
    for i in range(len(points)):  # leave one out, slowly
        others = np.arange(len(points)) != i
        near = KNeighborsClassifier(1, metric=metric[1], algorithm="brute").fit(
            points[others], labels[others]
        )
        assert found["1-NN accuracy"][i] == (near.predict(points[[i]])[0] == labels[i])


def test_separation_at_its_limits():
    points, labels = islands(noise=0.01)
    found = separation.separation(points, labels, separation.SPACE)
    assert np.nanmean(found["silhouette"]) > 0.95 and np.nanmean(found["10-NN accuracy"]) == 1
    mixed = separation.separation(
        np.random.default_rng(0).normal(size=(600, 4)), np.arange(600) % 3, separation.SPACE
    )
    assert abs(np.nanmean(mixed["silhouette"])) < 0.05 and np.nanmean(
        mixed["10-NN accuracy"]
    ) == pytest.approx(1 / 3, abs=0.06)


def test_who_is_asked_and_who_votes():
    points = np.array([[1, 0], [1, 0.1], [1, 0.05], [0, 1], [0.1, 1], [0, -1]], dtype=np.float32)
    labels = np.array(["a", "a", "alone", "b", "b", None], dtype=object)
    found = separation.separation(points, labels, separation.SPACE, votes=(1,))
    assert (
        np.isnan(found["silhouette"][[2, 5]]).all()
        and np.isfinite(found["silhouette"][[0, 1, 3, 4]]).all()
    )
    assert found["1-NN accuracy"][[0, 1, 3, 4]].tolist() == [
        0,
        0,
        1,
        1,
    ]  # the one that is alone votes, but is not asked
    only = separation.separation(
        points, labels, separation.SPACE, (1,), np.array([True, False, False, False, False, False])
    )
    assert np.flatnonzero(~np.isnan(only["1-NN accuracy"])).tolist() == [0]
    nobody = separation.separation(points, np.array([*"abcdef"], dtype=object), separation.SPACE)
    assert all(np.isnan(values).all() for values in nobody.values())


def test_the_nearest_breaks_a_tie():
    assert separation.vote(np.array([["b", "a", "a", "b"], ["a", "b", "b", "c"]])).tolist() == [
        "b",
        "b",
    ]


def test_chance_is_what_random_neighbours_get():
    labels = np.array(["a", "a", "a", "b", "b", "c", None], dtype=object)
    np.testing.assert_allclose(separation.chance(labels), [2 / 5] * 3 + [1 / 5] * 2 + [np.nan] * 2)
    within = np.array(["x", "x", "y", "y", "y", "y", "y"], dtype=object)
    np.testing.assert_allclose(
        separation.chance(labels, within), [1, 1, 0, 1 / 3, 1 / 3, np.nan, np.nan]
    )


def test_only_incomplete_products_are_asked_what_they_lack():
    missing = np.array(["complete"] * 6 + ["no V"] * 3 + ["no A"], dtype=object)
    table = pd.DataFrame({"category": list("aabbaabbaa"), "missing": missing})
    points = np.random.default_rng(0).normal(size=(10, 2))
    each = separation.numbers({("r", "t-SNE"): points}, table)
    wanted = separation.number_of("missing", "1-NN accuracy", "t-SNE", "r")
    asked = each[(each[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    assert list(asked["id"]) == [6, 7, 8], "a lack that occurs once cannot be found again"


def test_raw_summaries_in_parts_are_those_of_all_at_once(extracted, monkeypatch):
    """And learn of so many training products at most."""
    catalogue, features = extracted
    whole, train = probes.summaries(catalogue, features), catalogue.split("train")
    monkeypatch.setattr(probes, "LIMIT", len(train))
    parts = probes.summaries(catalogue, features)
    np.testing.assert_allclose(parts["image"], whole["image"], atol=1e-6)
    others = [n for n in range(len(catalogue)) if n not in set(train[80:])]
    monkeypatch.setattr(probes, "LIMIT", 80)
    few = columns.some(features, np.array(others))
    same = probes.summaries(catalogue.take(others), few)["image"]
    np.testing.assert_allclose(
        probes.summaries(catalogue, features)["image"][others], same, atol=1e-4
    )


def test_probes_of_a_handful_of_products():
    """A fold that leaves one category has nothing to learn."""
    _, held = next(KFold(3, shuffle=True, random_state=0).split(range(4)))
    labels = ["a" if n in held else "b" for n in range(4)] + ["a", "b"]
    products = [Product(f"{n}", {"text": f"{x * 3} {n}"}, x) for n, x in enumerate(labels)]
    splits = ["train"] * 4 + ["query"] * 2
    products = [replace(p, split=split) for p, split in zip(products, splits, strict=True)]
    found = probes.experts(Catalogue("c", tuple(products)), {})
    assert found.train["text"].shape == (4, 2) and probes.together(found, ["text"]) == 1.0
