"""Metric mathematics on arrays: retrieval, classification, clustering. Plumbing is in :mod:`m5lib.evaluate`."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler, normalize

#: One vector per row: dense, or sparse as TF-IDF gives them.
Vectors = Float[np.ndarray, "_ D"] | sparse.spmatrix | sparse.sparray
Normalise = Literal["hits", "min_k_r"]


def rank(
    queries: Vectors,
    gallery: Vectors,
    k: int,
    query_ids: np.ndarray | None = None,
    gallery_ids: np.ndarray | None = None,
    cosine: bool = True,
    block: int = 1024,
) -> Int[np.ndarray, "Q R"]:
    """The ``k`` best gallery rows of each query, best first; of equal scores the lower row first. Exact, in blocks of queries.

    Scores are cosines, or plain inner products (released code) with ``cosine=False``. With ids given, a gallery product with the
    query's own id is never returned. Places that cannot be filled (a gallery smaller than ``k``) hold -1.
    """
    if cosine:
        queries, gallery = normalize(queries), normalize(gallery)
    found = np.full((queries.shape[0], k), -1, dtype=np.int64)
    own = {i: n for n, i in enumerate(gallery_ids)} if query_ids is not None else {}
    for start in range(0, queries.shape[0], block):
        score = queries[start : start + block] @ gallery.T
        score = score.toarray() if sparse.issparse(score) else score
        rows = np.arange(len(score))
        mine = np.array([own.get(i, -1) for i in query_ids[start : start + block]]) if own else np.full(len(score), -1)
        score[rows[mine >= 0], mine[mine >= 0]] = -np.inf
        for row in rows:
            found[start + row] = _best(score[row], k)
    return found


def _best(score: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k highest scores; ties by row, also at the edge of the list."""
    if k < len(score):
        edge = np.partition(score, len(score) - k)[len(score) - k]
        candidates = np.flatnonzero(score >= edge)
    else:
        candidates = np.arange(len(score))
    candidates = candidates[np.argsort(-score[candidates], kind="stable")][:k]
    candidates = candidates[np.isfinite(score[candidates])]
    return np.pad(candidates, (0, k - len(candidates)), constant_values=-1)


def hits(
    ranking: Int[np.ndarray, "Q R"], query_labels: np.ndarray, gallery_labels: np.ndarray
) -> tuple[Bool[np.ndarray, "Q R"], Int[np.ndarray, " Q"]]:
    """Which ranked products share the query's label, and how many of the gallery do (R of each query)."""
    counts = dict(zip(*np.unique(gallery_labels.astype(str), return_counts=True), strict=True))
    matched = (gallery_labels[np.maximum(ranking, 0)] == query_labels[:, None]) & (ranking >= 0)
    return matched, np.array([counts.get(str(label), 0) for label in query_labels])


def average_precision(
    matched: Bool[np.ndarray, "Q R"], positives: Int[np.ndarray, " Q"], k: int, normalise: Normalise
) -> Float[np.ndarray, " Q"]:
    """AP@K of each query: the precision at each hit within the first K, summed and divided.

    Conventions: ``min_k_r`` divides by min(K, R), R = relevant products in the gallery, the usual one: 1 only if the first
    min(K, R) are all hits. ``hits`` divides by the hits found within K (the released code): a single hit at rank 1 gives 1, so it is
    never lower, often much higher. Both are 0 without a hit.
    """
    matched = matched[:, :k]
    precision = matched.cumsum(axis=1) / np.arange(1, matched.shape[1] + 1)
    divisor = {"hits": matched.sum(axis=1), "min_k_r": np.minimum(k, positives)}[normalise]
    return (precision * matched).sum(axis=1) / np.maximum(divisor, 1)


def precision(matched: Bool[np.ndarray, "Q R"], k: int) -> Float[np.ndarray, " Q"]:
    """Prec@K of each query: hits in the first K / K. Convention ``k``: a class with fewer than K products cannot reach 1."""
    return matched[:, :k].sum(axis=1) / k


def linear_probe(train: Vectors, labels: np.ndarray, test: Vectors, seed: int = 0) -> np.ndarray:
    """Labels predicted for ``test`` by logistic regression (L2, C = 1) on standardised embeddings."""
    if not sparse.issparse(train):  # what absent modalities leave constant says nothing and costs time; below 1e-12 it is rounding
        told = np.ptp(train, axis=0) > 1e-12
        train, test = train[:, told], test[:, told]
    scaler = StandardScaler(with_mean=not sparse.issparse(train)).fit(train)
    probe = LogisticRegression(C=1.0, max_iter=200, tol=1e-3, random_state=seed)
    return probe.fit(scaler.transform(train), labels.astype(str)).predict(scaler.transform(test))


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of products whose label was predicted; a label the classifier never saw counts as wrong."""
    return float(np.mean(predicted.astype(str) == labels.astype(str)))


def cluster(vectors: Vectors, k: int, seed: int = 0) -> Int[np.ndarray, " N"]:
    """k-means (k-means++, 4 starts) on unit vectors: the cluster of each product."""
    return KMeans(k, n_init=4, random_state=seed).fit_predict(normalize(vectors)).astype(np.int64)


def nmi(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Mutual information over the arithmetic mean of the two entropies, in [0, 1]."""
    return float(normalized_mutual_info_score(labels.astype(str), clusters, average_method="arithmetic"))


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of products in the majority class of their cluster; grows with the number of clusters, to 1 with one each."""
    _, y = np.unique(labels.astype(str), return_inverse=True)
    _, c = np.unique(clusters, return_inverse=True)
    table = np.zeros((c.max() + 1, y.max() + 1), dtype=np.int64)
    np.add.at(table, (c, y), 1)
    return float(table.max(axis=1).sum() / len(labels))
