import math
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import average_precision_score

from m5lib import controls, evaluate, runs, tasks


def slow_rank(queries, gallery, k, query_ids, gallery_ids):
    lists = []
    for q, i in zip(queries, query_ids, strict=True):
        cosine = [-float(q @ g) / (np.linalg.norm(q) * np.linalg.norm(g)) for g in gallery]
        order = sorted((n for n in range(len(gallery)) if gallery_ids[n] != i), key=lambda n: (cosine[n], n))[:k]
        lists.append(order + [-1] * (k - len(order)))
    return np.array(lists)


@pytest.mark.parametrize("k", [3, 12, 20])
def test_ranking_is_exact_and_never_returns_the_query(k):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(9, 4)), rng.normal(size=(12, 4))
    gallery[3] = queries[2]
    query_ids, gallery_ids = np.arange(9).astype(object), (100 + np.arange(12)).astype(object)
    gallery_ids[3] = query_ids[2]
    fast = tasks.rank(queries, gallery, k, query_ids, gallery_ids, block=(4, 5))
    assert (fast == slow_rank(queries, gallery, k, query_ids, gallery_ids)).all()
    assert 3 not in fast[2] and fast[2, 0] != -1
    same = tasks.rank(sparse.csr_matrix(queries), sparse.csr_matrix(gallery), k, query_ids, gallery_ids)
    assert (same == fast).all()


def test_ties_go_to_the_lower_row_also_at_the_edge():
    gallery = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0], [1, 0]])
    assert tasks.rank(np.array([[1.0, 0]]), gallery, 3)[0].tolist() == [0, 2, 3]


def test_inner_product_is_not_cosine():
    gallery = np.array([[10.0, 9], [1, 0]])
    assert tasks.rank(np.array([[1.0, 0]]), gallery, 1, cosine=False)[0, 0] == 0
    assert tasks.rank(np.array([[1.0, 0]]), gallery, 1)[0, 0] == 1


def slow_ap(matched, positives, k, normalise):
    found = []
    for row, relevant in zip(matched, positives, strict=True):
        hits, total = 0, 0.0
        for place, hit in enumerate(row[:k], start=1):
            hits += hit
            total += hit * hits / place
        divisor = hits if normalise == "hits" else min(k, relevant)
        found.append(total / divisor if divisor else 0.0)
    return np.array(found)


@pytest.mark.parametrize("normalise", ["hits", "min_k_r"])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_average_precision_equals_its_formula(k, normalise):
    rng = np.random.default_rng(k)
    matched = rng.random((50, 10)) < 0.3
    positives = np.maximum(matched.sum(1), rng.integers(0, 30, 50))
    np.testing.assert_allclose(tasks.average_precision(matched, positives, k, normalise), slow_ap(matched, positives, k, normalise))


def test_average_precision_by_hand_and_at_its_limits():
    matched = np.array([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=bool)
    positives = np.array([3, 9, 4, 7])
    usual = tasks.average_precision(matched, positives, 5, "min_k_r")
    released = tasks.average_precision(matched, positives, 5, "hits")
    np.testing.assert_allclose(usual, [(1 + 2 / 3) / 3, 1, 0, 1 / 5])
    np.testing.assert_allclose(released, [(1 + 2 / 3) / 2, 1, 0, 1])  # one hit at rank 1 gives 1
    assert (released >= usual).all()
    np.testing.assert_allclose(tasks.precision(matched, 5), [0.4, 1, 0, 0.2])
    full = np.array([[0, 1, 1, 0, 1, 0]], dtype=bool)  # the whole gallery ranked: scikit-learn's definition
    expected = average_precision_score(full[0], -np.arange(6))
    np.testing.assert_allclose(tasks.average_precision(full, np.array([3]), 6, "min_k_r"), expected)


def test_hits_count_what_the_gallery_holds():
    ranking = np.array([[0, 2, -1]])
    matched, positives = tasks.hits(ranking, np.array(["a"], object), np.array(["a", "a", "b", "a"], object))
    assert matched.tolist() == [[True, False, False]] and positives.tolist() == [3]


def slow_nmi(clusters, labels):
    def entropy(values):
        return -sum(p * math.log(p) for p in (np.mean(values == v) for v in set(values)))

    joint = np.array([f"{c}|{y}" for c, y in zip(clusters, labels, strict=True)])
    mutual = entropy(clusters) + entropy(labels) - entropy(joint)
    return mutual / ((entropy(clusters) + entropy(labels)) / 2)


def test_clustering_scores():
    rng = np.random.default_rng(0)
    labels, clusters = rng.choice(list("abc"), 60), rng.integers(0, 4, 60)
    assert tasks.nmi(clusters, labels) == pytest.approx(slow_nmi(clusters, labels))
    slow = sum(max(np.sum((clusters == c) & (labels == y)) for y in "abc") for c in range(4)) / 60
    assert tasks.purity(clusters, labels) == pytest.approx(slow)
    perfect = np.searchsorted(["a", "b", "c"], labels)
    assert tasks.nmi(perfect, labels) == pytest.approx(1) and tasks.purity(perfect, labels) == 1
    assert tasks.purity(np.arange(60), labels) == 1 and tasks.nmi(np.zeros(60), labels) == pytest.approx(0)
    assert tasks.purity(np.zeros(60), labels) == pytest.approx(max(np.mean(labels == y) for y in "abc"))
    points = np.repeat(np.eye(3), 20, 0) + 0.01 * rng.normal(size=(60, 3))
    assert tasks.purity(tasks.cluster(points, 3), np.repeat(list("abc"), 20)) == 1


def test_linear_probe_learns_what_is_linear():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5))
    y = np.where(x[:, 0] + x[:, 1] > 0, "p", "n").astype(object)
    assert tasks.accuracy(tasks.linear_probe(x[:200], y[:200], x[200:]), y[200:]) > 0.95
    noise = tasks.linear_probe(x[:200], rng.permutation(y[:200]), x[200:])
    assert 0.3 < tasks.accuracy(noise, y[200:]) < 0.7


def test_controls_know_words_and_pixels(catalogue):
    found = controls.controls(catalogue, runs.pixels(catalogue))
    assert set(found) == {"tfidf", "tfidf_title+table", "pca_pixels", "svd+pca"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = {name: evaluate.evaluate(catalogue, vectors, ["retrieval"]) for name, (_, vectors) in found.items()}
    at_one = {name: next(n["value"] for n in part if n["metric"] == "mAP@1") for name, part in numbers.items()}
    labels = catalogue.labels[catalogue.split("gallery")]
    chance = max(np.mean(labels == label) for label in set(labels))
    assert all(value > chance for value in at_one.values()), at_one
    assert found["svd+pca"][0] == ("image", "text")


def test_evaluate_gives_every_number_with_its_convention(catalogue):
    label_of = {label: n for n, label in enumerate(sorted(set(catalogue.labels)))}
    perfect = np.eye(len(label_of))[[label_of[label] for label in catalogue.labels]]
    found = {(n["task"], n["metric"], n["convention"]): n["value"] for n in evaluate.evaluate(catalogue, perfect)}
    assert found["retrieval", "mAP@10", "min_k_r"] == found["retrieval", "mAP@10", "hits"] == 1
    assert found["retrieval", "Prec@1", "k"] == 1 and found["classification", "accuracy", "linear probe"] > 0.95
    assert len(found) == 9 + 1 + 2 and all(0 <= value <= 1 + 1e-9 for value in found.values())
