import math

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from m5lib.evaluation import metrics


def slow_nmi(clusters, labels):
    def entropy(values):
        return -sum(p * math.log(p) for p in (np.mean(values == v) for v in set(values)))

    joint = np.array([f"{c}|{y}" for c, y in zip(clusters, labels, strict=True)])
    mutual = entropy(clusters) + entropy(labels) - entropy(joint)
    return mutual / ((entropy(clusters) + entropy(labels)) / 2)


def test_clustering_scores():
    rng = np.random.default_rng(0)
    labels, clusters = rng.choice(list("abc"), 60), rng.integers(0, 4, 60)
    assert metrics.nmi(clusters, labels) == pytest.approx(slow_nmi(clusters, labels))
    slow = sum(max(np.sum((clusters == c) & (labels == y)) for y in "abc") for c in range(4)) / 60
    assert metrics.purity(clusters, labels) == pytest.approx(slow)
    perfect = np.searchsorted(["a", "b", "c"], labels)
    assert metrics.nmi(perfect, labels) == pytest.approx(1) and metrics.purity(perfect, labels) == 1
    assert metrics.purity(np.arange(60), labels) == 1 and metrics.nmi(
        np.zeros(60), labels
    ) == pytest.approx(0)
    assert metrics.purity(np.zeros(60), labels) == pytest.approx(
        max(np.mean(labels == y) for y in "abc")
    )
    points = np.repeat(np.eye(3), 20, 0) + 0.01 * rng.normal(size=(60, 3))
    assert metrics.purity(metrics.cluster(points, 3), np.repeat(list("abc"), 20)) == 1


def test_clusters_are_those_of_the_plain_vectors():
    rng = np.random.default_rng(1)
    vectors = (rng.normal(size=(90, 200)) + 3 * np.repeat(rng.normal(size=(5, 200)), 18, 0)).astype(
        np.float32
    )
    loose = rng.normal(size=(90, 200)).astype(
        np.float32
    )  # no clusters: only the same distances give the same answer
    for x in (vectors, loose, loose[:, :20]):
        part = metrics.in_span(x)
        np.testing.assert_allclose(part @ part.T, normalize(x) @ normalize(x).T, atol=1e-6)
        assert part.shape[1] <= 90
        plain = KMeans(5, n_init=1, random_state=3).fit_predict(normalize(x.astype(np.float64)))
        assert (
            metrics.nmi(metrics.cluster(x, 5, 3), plain)
            == metrics.nmi(metrics.cluster(part, 5, 3), plain)
            == pytest.approx(1)
        )


def test_accuracy_at_one_and_at_five():
    predicted = np.array([["a", "b", "c"], ["b", "a", "c"], ["c", "b", "d"]], object)
    labels = np.array(["a", "a", "a"], object)
    assert [metrics.correct(predicted, labels, k).mean() for k in (1, 2, 5)] == pytest.approx(
        [1 / 3, 2 / 3, 2 / 3]
    )
    assert metrics.correct(predicted[:, 0], labels, 5).mean() == pytest.approx(1 / 3)


def test_linear_probe_learns_what_is_linear():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5))
    y = np.where(x[:, 0] + x[:, 1] > 0, "p", "n").astype(object)
    assert metrics.correct(metrics.linear_probe(x[:200], y[:200], x[200:]), y[200:]).mean() > 0.95
    noise = metrics.linear_probe(x[:200], rng.permutation(y[:200]), x[200:])
    assert 0.3 < metrics.correct(noise, y[200:]).mean() < 0.7


def test_a_probe_answers_for_each_product_whatever_else_is_tested():
    """Nothing is fitted on the tested products, their scale neither."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(220, 4)) * [0.001, 5, 0.1, 1] + 3  # what tells is small: scale decides
    y = np.where(x[:, 0] > 3, "p", "n").astype(object)
    together = metrics.linear_probe(x[:200], y[:200], x[200:])
    alone = [metrics.linear_probe(x[:200], y[:200], x[n : n + 1])[0] for n in range(200, 220)]
    assert list(together) == alone and set(alone) == {"p", "n"}


def test_linear_probe_leaves_out_what_is_constant_up_to_rounding():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = np.where(x[:, 0] > 0, "a", "b")
    dust = np.concatenate([x, 1.5e-45 * (np.arange(60) == 0)[:, None]], axis=1).astype(
        np.float32
    )  # its deviation is 0 in single precision
    assert np.array_equal(metrics.linear_probe(dust, y, dust), metrics.linear_probe(x, y, x))
