import math
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import normalize

from m5lib import metrics
from m5lib.catalogue import Catalogue, Product
from m5lib.evaluation import controls, evaluate, stats
from m5lib.lab import runs


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


def test_linear_probe_leaves_out_what_is_constant_up_to_rounding():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = np.where(x[:, 0] > 0, "a", "b")
    dust = np.concatenate([x, 1.5e-45 * (np.arange(60) == 0)[:, None]], axis=1).astype(
        np.float32
    )  # its deviation is 0 in single precision
    assert np.array_equal(metrics.linear_probe(dust, y, dust), metrics.linear_probe(x, y, x))


def test_controls_know_words_and_pixels(catalogue):
    found = controls.controls(catalogue, runs.pixels(catalogue))
    assert set(found) == {"tfidf", "tfidf_title+table", "pca_pixels", "svd+pca"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = {
            name: evaluate.evaluate(catalogue, vectors, ["retrieval"])
            for name, (_, vectors) in found.items()
        }
    at_one = {
        name: next(n["value"] for n in part if n["metric"] == "mAP@1")
        for name, part in numbers.items()
    }
    labels = catalogue.labels[catalogue.split("gallery")]
    chance = max(np.mean(labels == label) for label in set(labels))
    assert all(value > chance for value in at_one.values()), at_one
    assert found["svd+pca"][0] == ("image", "text")


def test_evaluate_gives_every_number_with_its_convention(catalogue):
    label_of = {label: n for n, label in enumerate(sorted(set(catalogue.labels)))}
    perfect = np.eye(len(label_of))[[label_of[label] for label in catalogue.labels]]
    found = {
        (n["task"], n["metric"], n["convention"]): n["value"]
        for n in evaluate.evaluate(catalogue, perfect)
    }
    assert found["retrieval", "mAP@10", "min_k_r"] == found["retrieval", "mAP@10", "hits"] == 1
    assert (
        found["retrieval", "Prec@1", "k"] == 1
        and found["classification", "accuracy", "linear probe"] > 0.95
    )
    assert len(found) == 9 + 1 + 2 and all(0 <= value <= 1 + 1e-9 for value in found.values())
    k = len(set(catalogue.labels[catalogue.split("query")]))
    assert found["clustering", "NMI", f"k-means k={k}, mean of seeds 0 1 2"] == pytest.approx(1)


def test_per_query_values_average_to_the_numbers(catalogue):
    vectors = (
        np.random.default_rng(0).normal(size=(len(catalogue), 6))
        + (catalogue.labels == "Watch")[:, None]
    )
    both = ("usual", "released")
    rows = evaluate.per_query(catalogue, vectors, protocols=both)
    assert list(rows.columns) == list(evaluate.PER_QUERY)
    means = rows.groupby(["task", "metric", "convention"])["value"].mean()
    numbers = evaluate.evaluate(
        catalogue, vectors, ["retrieval", "fine retrieval", "classification"], protocols=both
    )
    assert len(numbers) == len(means) == 9 + 6 + 1 and {n["convention"] for n in numbers} == {
        "min_k_r",
        "hits",
        "k",
        "released",
        "linear probe",
    }
    assert all(
        means[n["task"], n["metric"], n["convention"]] == pytest.approx(n["value"], abs=1e-12)
        for n in numbers
    )
    queries, _ = catalogue.queries()
    assert (
        rows.query("metric == 'mAP@5' and convention == 'released'")["id"].tolist()
        == catalogue.ids[queries].tolist()
    )
    predicted = np.stack(
        [np.full(len(catalogue), label, dtype=object) for label in ("Shirt", "Watch")], axis=1
    )
    found = {
        n["metric"]: n["value"]
        for n in evaluate.evaluate(catalogue, vectors, ["classification"], predicted=predicted)
    }
    test = catalogue.labels[catalogue.split("query")]
    assert found == pytest.approx(
        {
            "accuracy": np.mean(test == "Shirt"),
            "accuracy@5": np.mean((test == "Shirt") | (test == "Watch")),
        }
    )
    assert evaluate.per_query(catalogue, vectors, ["clustering"]).empty


def crossed_catalogue():
    """Queries by image, answers by text: q2 has no image, g1 no text."""
    has = {"q0": "IT", "q1": "IT", "q2": "T", "g0": "IT", "g1": "I", "g2": "T", "g3": "IT"}
    names = {"I": "image", "T": "text"}
    labels = {"q0": "a", "q1": "b", "q2": "a", "g0": "b", "g1": "a", "g2": "a", "g3": "c"}
    split = {"q": "query", "g": "gallery"}
    return Catalogue(
        "crossed",
        tuple(
            Product(i, {names[code]: "x" for code in codes}, labels[i], split[i[0]])
            for i, codes in has.items()
        ),
    )


def test_retrieval_from_one_modality_to_another():
    catalogue = crossed_catalogue()
    image = np.array([[1.0, 0], [0, 1], [0, 0], [0, 1], [1, 0], [0, 0], [1, 1]])
    text = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1], [0, 0], [1, 0.1], [1, 1]])
    given = (["image"], ["text"])
    found = {
        (n["metric"], n["convention"]): n["value"]
        for n in evaluate.retrieval(catalogue, image, gallery=text, given=given)
    }
    assert found["queries left out", "none of the modalities asked with"] == 1  # q2
    assert found["mAP@1", "min_k_r"] == 1  # q0 -> g2, q1 -> g0
    assert found["mAP@5", "min_k_r"] == pytest.approx(
        (1 / 2 + 1) / 2
    )  # q0 seeks g1 and g2, and g1 cannot be found
    rows = evaluate.per_query(catalogue, image, ["retrieval"], gallery=text, given=given)
    assert set(rows["id"]) == {"q0", "q1"} and not rows["metric"].eq("queries left out").any()
    back = {
        (n["metric"], n["convention"]): n["value"]
        for n in evaluate.retrieval(catalogue, text, gallery=image, given=given[::-1])
    }
    assert back["queries left out", "none of the modalities asked with"] == 0
    assert back["mAP@5", "min_k_r"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)  # here g2 cannot
    plain = evaluate.retrieval(
        catalogue, image, gallery=text
    )  # nobody is left out; q2 asks with zeros, and all tie
    assert "queries left out" not in {n["metric"] for n in plain}
    assert next(n["value"] for n in plain if n["metric"] == "mAP@1") == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="unknown modality"):
        evaluate.retrieval(catalogue, image, given=(["smell"], ["text"]))
    nobody = evaluate.retrieval(catalogue, image, given=(["audio"], ["text"]))
    assert nobody == []


def test_two_models_are_compared_query_by_query():
    rng = np.random.default_rng(0)
    pairs = []
    for seed in range(3):
        values = pd.Series(rng.random(80), [f"q{n}" for n in range(80)])
        ours, theirs = (values + more + 0.01 * rng.normal(size=80) for more in (0.1, 0.0))
        pairs.append(evaluate.paired(ours.sample(frac=1, random_state=seed), theirs.iloc[:-5]))
    assert all(len(p) == 75 for p in pairs)
    own = evaluate.difference(pairs, shared=False, draws=500)
    assert own.mean == pytest.approx(0.1, abs=0.005) and own.seeds == 3 and own.p < 0.01
    together = evaluate.difference(pairs, shared=True, draws=500)
    assert together.mean == pytest.approx(own.mean)
    rows = [p.loc[pairs[0].index] for p in pairs]
    slow = stats.paired_bootstrap(
        np.stack([p["ours"] for p in rows]), np.stack([p["theirs"] for p in rows]), 500
    )
    assert together == slow
    with pytest.raises(ValueError, match="differ from seed to seed"):
        evaluate.difference([pairs[0], pairs[1].iloc[1:]], shared=True)
    with pytest.raises(ValueError, match="at least one of each"):
        evaluate.difference([p.iloc[:0] for p in pairs], shared=False)
