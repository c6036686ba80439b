import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from m5lib.evaluation import metrics


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
    np.testing.assert_allclose(
        metrics.average_precision(matched, positives, k, normalise),
        slow_ap(matched, positives, k, normalise),
    )


def test_average_precision_by_hand_and_at_its_limits():
    matched = np.array(
        [[1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=bool
    )
    positives = np.array([3, 9, 4, 7])
    usual = metrics.average_precision(matched, positives, 5, "min_k_r")
    released = metrics.average_precision(matched, positives, 5, "hits")
    np.testing.assert_allclose(usual, [(1 + 2 / 3) / 3, 1, 0, 1 / 5])
    np.testing.assert_allclose(released, [(1 + 2 / 3) / 2, 1, 0, 1])  # one hit at rank 1 gives 1
    assert (released >= usual).all()
    np.testing.assert_allclose(metrics.precision(matched, 5), [0.4, 1, 0, 0.2])
    full = np.array(
        [[0, 1, 1, 0, 1, 0]], dtype=bool
    )  # the whole gallery ranked: scikit-learn's definition
    expected = average_precision_score(full[0], -np.arange(6))
    np.testing.assert_allclose(
        metrics.average_precision(full, np.array([3]), 6, "min_k_r"), expected
    )
    cut = average_precision_score(
        full[0, :4], -np.arange(4)
    )  # and by the hits found: that of the list cut off at K
    np.testing.assert_allclose(metrics.average_precision(full, np.array([3]), 4, "hits"), cut)


def test_the_cut_may_differ_from_query_to_query():
    matched, positives = np.random.default_rng(0).random((20, 10)) < 0.4, np.full(20, 6)
    cut = np.arange(20) % 11
    for way in ("hits", "min_k_r"):
        apart = [
            metrics.average_precision(matched[q : q + 1], positives[q : q + 1], int(c), way)[0]
            for q, c in enumerate(cut)
        ]
        np.testing.assert_array_equal(
            metrics.average_precision(matched, positives, cut, way), apart
        )
    apart = [matched[q, :c].sum() / c if c else 0 for q, c in enumerate(cut)]
    np.testing.assert_array_equal(metrics.precision(matched, cut), apart)


def test_released_protocol_by_hand():
    """Three products of one label, the query among the gallery; by inner product the query's own
    long vector comes first."""
    vectors = np.array([[9.0, 0], [4, 0], [3, 0], [2, 0], [1, 0]])
    labels, ids = np.array(["a", "b", "a", "c", "a"], object), np.array(list("vwxyz"), object)
    found = metrics.retrieval(
        vectors[:1], vectors, labels[:1], labels, ids[:1], ids, "released", longest=4
    )
    # cut to v w x y, v dropped: w x y = - a -; positives v x z
    assert (
        found["mAP@1", "released"] == [0]
        and found["Prec@5", "released"] == [1 / 3]
        and found["mAP@5", "released"] == [1 / 2]
    )
    usual = metrics.retrieval(vectors[:1], vectors, labels[:1], labels, ids[:1], ids)
    assert usual["Prec@5", "k"] == [2 / 5] and usual["mAP@5", "min_k_r"] == [
        (1 / 2 + 2 / 4) / 2
    ]  # all tie: w x y z


def test_what_cannot_be_found_is_not_listed_but_counts():
    vectors, labels = (
        np.array([[1.0, 0], [1, 0], [0.9, 0.1], [0, 1]]),
        np.array(["a", "a", "a", "b"], object),
    )
    for protocol, name in (("usual", ("mAP@5", "min_k_r")), ("released", ("Prec@5", "released"))):
        whole = metrics.retrieval(vectors[:1], vectors, labels[:1], labels, protocol=protocol)
        part = metrics.retrieval(
            vectors[:1],
            vectors,
            labels[:1],
            labels,
            protocol=protocol,
            findable=np.array([1, 0, 1, 1], bool),
        )
        rows = np.array([3, 2, 1, 0])  # the same gallery in another order
        turned = metrics.retrieval(
            vectors[:1],
            vectors,
            labels[:1],
            labels[rows],
            None,
            None,
            protocol,
            rows,
            np.array([1, 1, 0, 1], bool),
        )
        assert part[name] == turned[name] and whole[name] == (1 if protocol == "usual" else 3 / 4)
        assert part[name] == pytest.approx(
            2 / 3
        )  # of three sought two are found; of the three listed two are hits


def test_hits_count_what_the_gallery_holds():
    ranking = np.array([[0, 2, -1]])
    matched, positives = metrics.hits(
        ranking, np.array(["a"], object), np.array(["a", "a", "b", "a"], object)
    )
    assert matched.tolist() == [[True, False, False]] and positives.tolist() == [3]
    _, positives = metrics.hits(ranking, np.array(["None"]), np.array(["None", None, None, "a"]))
    assert positives.tolist() == [1]  # of a category of that name, not of those without one
