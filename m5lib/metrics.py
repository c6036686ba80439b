"""Metric mathematics on arrays: retrieval, classification, clustering, and what a difference
between two models is worth. Plumbing is in :mod:`m5lib.evaluation.evaluate`, the search itself in
:mod:`m5lib.ranking`."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse, stats
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler, normalize

from m5lib.ranking import Vectors, rank

Normalise = Literal["hits", "min_k_r"]
Protocol = Literal["usual", "released"]


def hits(
    ranking: Int[np.ndarray, "Q R"], query_labels: np.ndarray, gallery_labels: np.ndarray
) -> tuple[Bool[np.ndarray, "Q R"], Int[np.ndarray, " Q"]]:
    """Which ranked products share the query's label, and how many of the gallery do (R of each
    query)."""
    matched = (gallery_labels[np.maximum(ranking, 0)] == query_labels[:, None]) & (ranking >= 0)
    return matched, _count(query_labels, gallery_labels)


def _count(labels: np.ndarray, among: np.ndarray) -> Int[np.ndarray, " Q"]:
    """How many of ``among`` each label is."""
    counts = dict(zip(*np.unique(among.astype(str), return_counts=True), strict=True))
    return np.array([counts.get(str(label), 0) for label in labels], dtype=np.int64)


def average_precision(
    matched: Bool[np.ndarray, "Q R"],
    positives: Int[np.ndarray, " Q"],
    k: int | Int[np.ndarray, " Q"],
    normalise: Normalise,
) -> Float[np.ndarray, " Q"]:
    """AP@K of each query: the precision at each hit within the first K, summed and divided. K may
    differ from query to query.

    Conventions: ``min_k_r`` divides by min(K, R), R = relevant products in the gallery, the usual
    one: 1 only if the first min(K, R) are all hits. ``hits`` divides by the hits found within K
    (the released code): a single hit at rank 1 gives 1, so it is never lower, often much higher.
    Both are 0 without a hit.
    """
    matched = _within(matched, k)
    precision = matched.cumsum(axis=1) / np.arange(1, matched.shape[1] + 1)
    divisor = {"hits": matched.sum(axis=1), "min_k_r": np.minimum(k, positives)}[normalise]
    return (precision * matched).sum(axis=1) / np.maximum(divisor, 1)


def precision(
    matched: Bool[np.ndarray, "Q R"], k: int | Int[np.ndarray, " Q"]
) -> Float[np.ndarray, " Q"]:
    """Prec@K of each query: hits in the first K / K. Convention ``k``: a class with fewer than K
    products cannot reach 1."""
    return _within(matched, k).sum(axis=1) / np.maximum(k, 1)


def _within(matched: np.ndarray, k: int | np.ndarray) -> np.ndarray:
    return matched & (np.arange(matched.shape[1]) < np.reshape(k, (-1, 1)))


def retrieval(
    queries: Vectors,
    gallery: Vectors,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    query_ids: np.ndarray | None = None,
    gallery_ids: np.ndarray | None = None,
    protocol: Protocol = "usual",
    rows: Int[np.ndarray, " G"] | None = None,
    findable: Bool[np.ndarray, " G"] | None = None,
    cuts: tuple[int, ...] = (1, 5, 10),
    longest: int = 110,
) -> dict[tuple[str, str], Float[np.ndarray, " Q"]]:
    """What each query scores: (metric, convention) -> (Q,) values in 0..1, whose mean is the
    metric.

    ``usual``: by cosine, the query's own id taken out before the list is cut. ``mAP@K`` by the
    conventions ``min_k_r`` and ``hits`` of :func:`average_precision`, ``Prec@K`` by convention
    ``k``.

    ``released``: the authors' scripts, convention ``released``. By inner product; the list is cut
    at ``longest`` (110 in their Python, 10 in their shell scripts, so that their @10 is sometimes
    an @9) and *then* loses the query's own id; K is min(K, positives, length of the list),
    positives = all ids with the query's label, the query and other queries too, whether in the
    gallery or not; AP is divided by the hits found within K.

    Args:
        rows: as in :func:`rank`; labels and ids of the gallery are in their order.
        findable: gallery products that are not are never listed, but still count among the products
            sought.
    """
    able = np.arange(len(gallery_labels)) if findable is None else np.flatnonzero(findable)
    offered = able if rows is None else rows[able]
    ids = (
        (None, None) if query_ids is None or gallery_ids is None else (query_ids, gallery_ids[able])
    )
    offered = None if rows is None and findable is None else offered
    if protocol == "usual":
        matched, positives = hits(
            _back(rank(queries, gallery, max(cuts), *ids, rows=offered), able),
            query_labels,
            gallery_labels,
        )
        if query_ids is not None and gallery_ids is not None:
            positives = positives - np.isin(
                query_ids.astype(str), gallery_ids.astype(str)
            )  # the query is not sought
        found = {}
        for k in cuts:
            found |= {
                (f"mAP@{k}", way): average_precision(matched, positives, k, way)
                for way in ("min_k_r", "hits")
            }
            found[f"Prec@{k}", "k"] = precision(matched, k)
        return found
    ranking = _back(rank(queries, gallery, longest, cosine=False, rows=offered), able)
    everyone = np.concatenate([query_labels, gallery_labels])
    if query_ids is not None and gallery_ids is not None:
        ranking = without_own(ranking, query_ids, gallery_ids)
        everyone = everyone[
            np.unique(np.concatenate([query_ids, gallery_ids]).astype(str), return_index=True)[1]
        ]
    matched, positives = (
        hits(ranking, query_labels, gallery_labels)[0],
        _count(query_labels, everyone),
    )
    found, length = {}, (ranking >= 0).sum(axis=1)
    for k in cuts:
        cut = np.minimum(np.minimum(k, positives), length)
        found[f"mAP@{k}", "released"] = average_precision(matched, positives, cut, "hits")
        found[f"Prec@{k}", "released"] = precision(matched, cut)
    return found


def _back(ranking: np.ndarray, able: np.ndarray) -> np.ndarray:
    """Places among the findable as places in the gallery."""
    return np.where(ranking < 0, -1, able[ranking]) if len(able) else ranking


def without_own(ranking: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """The lists without the query's own id, closed up and filled with -1."""
    kept = (
        np.where(gallery_ids[ranking] == query_ids[:, None], -1, ranking)
        if len(gallery_ids)
        else ranking
    )
    return np.take_along_axis(kept, np.argsort(kept < 0, axis=1, kind="stable"), axis=1)


def linear_probe(train: Vectors, labels: np.ndarray, test: Vectors, seed: int = 0) -> np.ndarray:
    """Labels predicted for ``test`` by logistic regression (L2, C = 1) on standardised
    embeddings."""
    if not sparse.issparse(
        train
    ):  # what absent modalities leave constant says nothing and costs time; below 1e-12 it is rounding  # noqa: E501
        told = np.ptp(train, axis=0) > 1e-12
        train, test = train[:, told], test[:, told]
    scaler = StandardScaler(with_mean=not sparse.issparse(train)).fit(train)
    probe = LogisticRegression(C=1.0, max_iter=200, tol=1e-3, random_state=seed)
    return probe.fit(scaler.transform(train), labels.astype(str)).predict(scaler.transform(test))


def correct(predicted: np.ndarray, labels: np.ndarray, k: int = 1) -> Bool[np.ndarray, " N"]:
    """Whether each product's label is the predicted one (N,), or among the first ``k`` of the
    predicted ones (N, P), best first.

    A label the classifier never saw counts as wrong.
    """
    return (
        predicted.reshape(len(labels), -1)[:, :k].astype(str) == labels.astype(str)[:, None]
    ).any(axis=1)


def in_span(vectors: Vectors) -> Float[np.ndarray, "_ _"] | sparse.spmatrix | sparse.sparray:
    """Unit vectors with the same distances, in no more dimensions than there are products: what
    :func:`cluster` needs, cheaper to handle.

    Dense ones come in float64, which scikit-learn's k-means is faster with (it makes its distances
    in float64 anyway).
    """
    vectors = normalize(vectors)
    if sparse.issparse(vectors):
        return vectors
    if vectors.shape[0] < vectors.shape[1]:
        vectors = np.linalg.qr(vectors.T, mode="r").T
    return np.ascontiguousarray(vectors, dtype=np.float64)


def cluster(vectors: Vectors, k: int, seed: int = 0) -> Int[np.ndarray, " N"]:
    """k-means (one start, k-means++) on unit vectors: the cluster of each product."""
    return KMeans(k, n_init=1, random_state=seed).fit_predict(in_span(vectors)).astype(np.int64)


def nmi(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Mutual information over the arithmetic mean of the two entropies, in [0, 1]."""
    return float(
        normalized_mutual_info_score(labels.astype(str), clusters, average_method="arithmetic")
    )


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of products in the majority class of their cluster; grows with the number of clusters,
    to 1 with one each."""
    _, y = np.unique(labels.astype(str), return_inverse=True)
    _, c = np.unique(clusters, return_inverse=True)
    table = np.zeros((c.max() + 1, y.max() + 1), dtype=np.int64)
    np.add.at(table, (c, y), 1)
    return float(table.max(axis=1).sum() / len(labels))


class Difference(NamedTuple):
    """A minus B: the mean, its 95 % interval, a two-sided p, and the number of seeds."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def paired_bootstrap(
    a: Float[np.ndarray, "_ _"] | Sequence[np.ndarray],
    b: Float[np.ndarray, "_ _"] | Sequence[np.ndarray],
    draws: int = 10_000,
    seed: int = 0,
) -> Difference:
    """What one model scores more than another on the same queries, over several seeds: a
    hierarchical bootstrap.

    1. d[s, q] = a[s, q] - b[s, q]; m[s] = mean over the queries of seed s; m = mean over the seeds:
    the difference reported.
    2. Each draw takes queries with replacement, as many as there are, and means d over them: m*[s].
    An array (S, Q) says that column q
       is the same query in every seed: one sample of queries serves all seeds, so that more seeds
       do not make more queries of them. A sequence of S arrays says that each seed has queries of
       its own, and each is sampled by itself.
    3. With c = sqrt(S / (S - 1)) t / z, where t and z are the 0.975 quantiles of Student's t with S
    - 1 degrees of freedom and of the
       normal: m*[s] + (c - 1) (m[s] - m). Resampling S seeds as they are gives too narrow intervals
       when S is small (with three seeds that differ by chance alone one interval in four leaves out
       0); widened so (Hesterberg, 2015, the expanded percentile interval), one in twenty does.
    4. The draw takes S seeds with replacement; its value is the mean over them.

    The interval holds the middle 95 % of the draws; p is twice the smaller share of draws on one
    side of 0 (0 included), one more counted on each side, at most 1. p is right about 0.05, which
    is what it is for; with fewer than ten seeds much smaller values do not mean more. With one seed
    there is no spread to see: the interval is that of the queries only.

    Raises:
        ValueError: seeds or queries of the two do not match, or there are none.
    """
    if (
        len(a) != len(b)
        or not len(a)
        or any(len(x) != len(y) or not len(x) for x, y in zip(a, b, strict=True))
    ):
        raise ValueError(
            "the two models must be measured on the same queries of the same seeds, at least one "
            "of each"
        )
    shared = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    each = [
        np.asarray(x, dtype=np.float64) - np.asarray(y, dtype=np.float64)
        for x, y in zip(a, b, strict=True)
    ]
    means, rng, found = np.array([d.mean() for d in each]), np.random.default_rng(seed), []
    wide = (_widening(len(means)) - 1) * (means - means.mean())
    step = max(1, 2**21 // max(len(d) for d in each))
    for start in range(0, draws, step):
        n = min(step, draws - start)
        taken = rng.integers(len(each[0]), size=(n, len(each[0]))) if shared else None
        drawn = [
            d[rng.integers(len(d), size=(n, len(d))) if taken is None else taken].mean(axis=1)
            for d in each
        ]
        drawn = np.stack(drawn, axis=1) + wide
        found.append(
            np.take_along_axis(drawn, rng.integers(len(means), size=drawn.shape), axis=1).mean(
                axis=1
            )
        )
    values = np.concatenate(found)
    low, high = np.quantile(values, [0.025, 0.975])
    tail = min((values <= 0).sum(), (values >= 0).sum()) + 1
    return Difference(
        float(means.mean()),
        float(low),
        float(high),
        float(min(1.0, 2 * tail / (draws + 1))),
        len(means),
    )


def _widening(seeds: int) -> float:
    """By what the deviations of seeds from their mean are multiplied; 1 for one seed, which has
    none."""
    return (
        1.0
        if seeds == 1
        else float(
            np.sqrt(seeds / (seeds - 1)) * stats.t.ppf(0.975, seeds - 1) / stats.norm.ppf(0.975)
        )
    )


def paired_seeds(a: Float[np.ndarray, " _"], b: Float[np.ndarray, " _"]) -> Difference:
    """The same for metrics that have no value per query (NMI, purity): a paired t-test over the
    seeds, and seeds only.

    The interval is mean ± t s / sqrt(S), s the standard deviation (S - 1) of the differences. What
    the choice of products adds is not in it. Equal differences have p 1 if they are 0, else 0. One
    seed has no spread: interval and p are NaN.

    Raises:
        ValueError: not the same seeds, or none.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError("the two models must be measured with the same seeds, at least one")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    mean, seeds = float(difference.mean()), len(difference)
    if seeds == 1:
        return Difference(mean, np.nan, np.nan, np.nan, 1)
    error = float(difference.std(ddof=1) / np.sqrt(seeds))
    half = float(stats.t.ppf(0.975, seeds - 1)) * error
    p = float(mean == 0) if error == 0 else float(2 * stats.t.sf(abs(mean) / error, seeds - 1))
    return Difference(mean, mean - half, mean + half, p, seeds)
