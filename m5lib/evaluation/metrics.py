"""Metrics on arrays: nearest products, retrieval, classification, clustering. No model, no
catalogue: :mod:`m5lib.evaluation.evaluate` brings them together.

>>> places = rank(vectors[queries], vectors[gallery], 10)  # (Q, 10), best first
>>> matched, positives = hits(places, labels[queries], labels[gallery])
>>> average_precision(matched, positives, 10, "min_k_r").mean()  # mAP@10
"""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.special import xlogy
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor

Normalise = Literal["hits", "min_k_r"]
Protocol = Literal["usual", "released"]
#: One vector per row: dense (a memory map too, of half precision too), or sparse like TF-IDF.
Vectors = Float[np.ndarray, "_ D"] | sparse.spmatrix | sparse.sparray

# --- retrieval ------------------------------------------------------------------------------------


def hits(
    ranking: Int[np.ndarray, "Q R"], query_labels: np.ndarray, gallery_labels: np.ndarray
) -> tuple[Bool[np.ndarray, "Q R"], Int[np.ndarray, " Q"]]:
    """Which ranked products share the query's label, and how many of the gallery do (R)."""
    matched = (gallery_labels[np.maximum(ranking, 0)] == query_labels[:, None]) & (ranking >= 0)
    return matched, _count(query_labels, gallery_labels)


def _count(labels: np.ndarray, among: np.ndarray) -> Int[np.ndarray, " Q"]:
    """How many of ``among`` each label is; no label is none."""
    among = among[np.not_equal(among, None)].astype(str)
    counts = dict(zip(*np.unique(among, return_counts=True), strict=True))
    return np.array([counts.get(str(label), 0) for label in labels], dtype=np.int64)


def average_precision(
    matched: Bool[np.ndarray, "Q R"],
    positives: Int[np.ndarray, " Q"],
    k: int | Int[np.ndarray, " Q"],
    normalise: Normalise,
) -> Float[np.ndarray, " Q"]:
    """AP@K of each query: the precision at each hit within the first K, summed and divided. K may
    differ from query to query.

    ``min_k_r``, the usual convention, divides by min(K, R), R = relevant products in the gallery;
    ``hits`` by the hits found within K (the released code): a single hit at rank 1 gives 1, so it
    is never lower, often much higher. Both are 0 without a hit.
    """
    matched = _within(matched, k)
    precision = matched.cumsum(axis=1) / np.arange(1, matched.shape[1] + 1)
    divisor = {"hits": matched.sum(axis=1), "min_k_r": np.minimum(k, positives)}[normalise]
    return (precision * matched).sum(axis=1) / np.maximum(divisor, 1)


def precision(
    matched: Bool[np.ndarray, "Q R"], k: int | Int[np.ndarray, " Q"]
) -> Float[np.ndarray, " Q"]:
    """Prec@K of each query: hits in the first K / K; below 1 where a class is smaller than K."""
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
    """What each query scores: (metric, convention) -> (Q,) values in 0..1, their mean the metric.

    ``usual``: by cosine, the query's own id taken out before the list is cut. ``mAP@K`` by the
    conventions of :func:`average_precision`, ``Prec@K`` by convention ``k``.

    ``released``: the authors' scripts, convention ``released``. By inner product; the list is cut
    at ``longest`` (110 in their Python, 10 in their shell scripts, so that their @10 is sometimes
    an @9) and *then* loses the query's own id; K is min(K, positives, length of the list),
    positives = all ids with the query's label, the query and other queries too, whether in the
    gallery or not; AP is divided by the hits found within K.

    Args:
        rows: as in :func:`rank`; labels and ids of the gallery are in their order.
        findable: the others are never listed, but still count among the products sought.
    """
    known = query_ids is not None and gallery_ids is not None
    able = np.arange(len(gallery_labels)) if findable is None else np.flatnonzero(findable)
    offered = able if rows is None else rows[able]
    offered = None if rows is None and findable is None else offered
    able, values = np.append(able, -1), {}  # places among the findable -> in the gallery; -1 stays
    if protocol == "usual":
        ids = (query_ids, gallery_ids[able[:-1]]) if known else (None, None)
        ranking = able[rank(queries, gallery, max(cuts), *ids, rows=offered)]
        matched, positives = hits(ranking, query_labels, gallery_labels)
        if known:  # the query itself is not sought
            positives = positives - np.isin(query_ids.astype(str), gallery_ids.astype(str))
        for k in cuts:
            for way in ("min_k_r", "hits"):
                values[f"mAP@{k}", way] = average_precision(matched, positives, k, way)
            values[f"Prec@{k}", "k"] = precision(matched, k)
        return values
    ranking = able[rank(queries, gallery, longest, cosine=False, rows=offered)]
    everyone = np.concatenate([query_labels, gallery_labels])
    if known:
        ranking = without_own(ranking, query_ids, gallery_ids)
        ids = np.concatenate([query_ids, gallery_ids]).astype(str)
        everyone = everyone[np.unique(ids, return_index=True)[1]]
    matched, _ = hits(ranking, query_labels, gallery_labels)
    positives = _count(query_labels, everyone)
    length = (ranking >= 0).sum(axis=1)
    for k in cuts:
        cut = np.minimum(np.minimum(k, positives), length)
        values[f"mAP@{k}", "released"] = average_precision(matched, positives, cut, "hits")
        values[f"Prec@{k}", "released"] = precision(matched, cut)
    return values


def without_own(ranking: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """The lists without the query's own id, closed up and filled with -1."""
    own = np.append(gallery_ids.astype(object), None)[ranking] == query_ids[:, None]
    kept = np.where(own, -1, ranking)
    return np.take_along_axis(kept, np.argsort(kept < 0, axis=1, kind="stable"), axis=1)


# --- nearest products, exact, in blocks -----------------------------------------------------------

#: Relative error of one product or sum by the precision that torch is told to use for float32 (TF32
#: and bfloat16 have fewer bits).
_COARSE = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}


def rank(
    queries: Vectors,
    gallery: Vectors,
    k: int,
    query_ids: np.ndarray | None = None,
    gallery_ids: np.ndarray | None = None,
    cosine: bool = True,
    rows: Int[np.ndarray, " G"] | None = None,
    block: tuple[int, int] = (1024, 4096),
) -> Int[np.ndarray, "Q R"]:
    """The ``k`` best gallery places of each query, best first; of equal scores the lower place
    first. Places that cannot be filled (a gallery smaller than ``k``) hold -1.

    Scores are cosines (0 with a zero vector), or plain inner products (released code) with
    ``cosine=False``. With ids given, a gallery product with the query's own id is never returned.

    Exact, whatever the blocks and the device (CUDA where there is one): products in the vectors'
    own precision (float32 for half) only tell which pairs could be among the best, by a bound on
    their rounding error; those pairs are scored in float64, each in the same order of additions,
    so that equal vectors tie. Memory is that of the lists and of some blocks, 0.4 GiB at 768
    dimensions. All in float64 is shorter and five times as slow (``benchmarks/ranking.json``).

    Args:
        rows: the rows of ``gallery`` that are ranked, by default all; a place in the list is then a
            place in ``rows``, and so are ``gallery_ids``.
        block: queries and gallery products at a time.

    Raises ``ValueError``: a vector holds a value that is not finite.
    """
    size, total = queries.shape[0], gallery.shape[0] if rows is None else len(rows)
    places, best = np.full((size, k), -1, dtype=np.int64), np.full((size, k), -np.inf)
    own = _pairs_of_one_id(query_ids, gallery_ids)
    for low in range(0, total, block[1]):
        span = slice(low, low + block[1])
        offered = _Block.of(gallery[span if rows is None else rows[span]], cosine, "gallery", low)
        mine = own[slice(*np.searchsorted(own[:, 1], (low, low + block[1])))]
        for start in range(0, size, block[0]):
            asked = slice(start, start + block[0])
            same = mine[(mine[:, 0] >= start) & (mine[:, 0] < start + block[0])] - (start, low)
            some = _Block.of(queries[asked], cosine, "query", start)
            _merge(some, offered, same, low, best[asked], places[asked])
    return places


def _pairs_of_one_id(query_ids: np.ndarray | None, gallery_ids: np.ndarray | None) -> np.ndarray:
    """(P, 2) query and gallery places with the same id, by gallery place."""
    if query_ids is None or gallery_ids is None:
        return np.zeros((0, 2), dtype=np.int64)
    asked = pd.DataFrame({"id": query_ids.astype(object), "query": np.arange(len(query_ids))})
    there = pd.DataFrame({"id": gallery_ids.astype(object), "place": np.arange(len(gallery_ids))})
    pairs = asked.merge(there, on="id").sort_values("place")
    return pairs[["query", "place"]].to_numpy(dtype=np.int64)


class _Block(NamedTuple):
    exact: np.ndarray | sparse.csr_array  # in float64; sparse ones are scaled too
    divisor: np.ndarray
    zero: np.ndarray  # which are
    quick: Tensor | None  # as multiplied, and how long these are
    lengths: np.ndarray

    @classmethod
    def of(cls, vectors: Vectors, cosine: bool, side: str, first: int) -> "_Block":
        if scattered := sparse.issparse(vectors):
            exact = sparse.csr_array(vectors).astype(np.float64)
        else:  # contiguous, else the order of additions would depend on the block
            exact = np.ascontiguousarray(vectors, dtype=np.float64)
        lengths = np.sqrt((exact * exact).sum(axis=1))
        if not (finite := np.isfinite(lengths)).all():
            row = first + int(np.argmin(finite))
            raise ValueError(f"{side} vector {row} holds a value that is not finite")
        zero, divisor = lengths == 0, np.ones(len(lengths))
        if cosine:
            lengths, divisor = np.where(zero, 0.0, 1.0), np.where(zero, 1.0, lengths)
        if scattered:
            return cls(normalize(exact) if cosine else exact, divisor, zero, None, lengths)
        dtype = np.float64 if vectors.dtype == np.float64 else np.float32
        quick = torch.from_numpy((exact / divisor[:, None]).astype(dtype))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(exact, divisor, zero, quick.to(device), lengths)


def _merge(
    asked: _Block, offered: _Block, own: np.ndarray, low: int, best: np.ndarray, places: np.ndarray
) -> None:
    """Put what a block of the gallery offers into the lists of a block of queries: ``best`` and
    ``places`` change in place.

    With e the bound on the error of the quick scores: what displaces the k-th of a full list has a
    quick score above it less e; what is among the k best of the block has one of at least the
    block's k-th less 2 e.
    """
    k = best.shape[1]
    scores, error = _quick(asked, offered)
    scores[torch.from_numpy(own[:, 0]), torch.from_numpy(own[:, 1])] = -torch.inf
    full, edge = best[:, -1] > -np.inf, best[:, -1] - error
    if not full.all():
        edge = np.where(full, edge, _edge(scores, k) - 2 * error)
    # scores without error: a later tie displaces nothing
    limit = _just_below(edge, scores, full & (asked.zero | (asked.quick is None)))
    touched = torch.nonzero(scores.amax(dim=1) > limit).flatten()
    if not len(touched):
        return
    rows = touched.cpu().numpy()
    if len(rows) < len(scores):
        scores, limit = scores[touched], limit[touched]
    pairs = torch.nonzero(scores > limit[:, None])
    if full.any() and len(pairs) > 4 * k * len(rows):  # a gallery that gets better and better
        limit = torch.maximum(limit, _just_below(_edge(scores, k) - 2 * error[rows], scores))
        pairs = torch.nonzero(scores > limit[:, None])
    row, column = pairs.cpu().numpy().T
    exact = asked.quick is None
    value = scores.numpy()[row, column] if exact else _exact(asked, offered, rows[row], column)
    counts = np.bincount(row, minlength=len(rows))
    slot = np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts)
    shape = (len(rows), counts.max())
    new_best, new_places = np.full(shape, -np.inf), np.full(shape, -1)
    new_best[row, slot], new_places[row, slot] = value, low + column
    new_best, new_places = np.hstack([best[rows], new_best]), np.hstack([places[rows], new_places])
    # stable: earlier places stand first, and so win ties
    order = np.argsort(-new_best, axis=1, kind="stable")[:, :k]
    best[rows] = np.take_along_axis(new_best, order, axis=1)
    places[rows] = np.take_along_axis(new_places, order, axis=1)


def _quick(asked: _Block, offered: _Block) -> tuple[Tensor, np.ndarray]:
    """Scores of all pairs, and a bound on their error for each query: D + 8 roundings of at most
    the product of the lengths."""
    if asked.quick is None or offered.quick is None:
        scores = torch.from_numpy((asked.exact @ offered.exact.T).toarray())
        return scores, np.zeros(len(asked.lengths))
    scores, kind = asked.quick @ offered.quick.T, torch.finfo(asked.quick.dtype)
    coarse = _COARSE[torch.get_float32_matmul_precision()] if kind.bits == 32 else 0.0
    largest = max(kind.eps, coarse) * asked.lengths * offered.lengths.max(initial=0)
    return scores, (asked.quick.shape[1] + 8) * (largest + kind.tiny)


def _exact(asked: _Block, offered: _Block, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """(P,) scores of some pairs in float64; the same for a pair whichever others are asked for."""
    value, step = np.empty(len(row)), max(1, 2**21 // asked.exact.shape[1])
    for start in range(0, len(row), step):
        r, c = row[start : start + step], column[start : start + step]
        products = (asked.exact[r] * offered.exact[c]).sum(axis=1)
        value[start : start + step] = products / (asked.divisor[r] * offered.divisor[c])
    return value


def _edge(scores: Tensor, k: int) -> np.ndarray:
    """The k-th best score of each query, or its worst where there are fewer."""
    return scores.topk(min(k, scores.shape[1])).values[:, -1].double().cpu().numpy()


def _just_below(edge: np.ndarray, scores: Tensor, untouched: np.ndarray | bool = False) -> Tensor:
    """The edge in the precision of the scores, rounded down but where it is exact already."""
    rounded = edge.astype(np.float32 if scores.dtype == torch.float32 else np.float64)
    below = np.nextafter(rounded, rounded.dtype.type(-np.inf))
    return torch.from_numpy(np.where(untouched, rounded, below)).to(scores.device)


# --- classification and clustering ----------------------------------------------------------------


def linear_probe(train: Vectors, labels: np.ndarray, test: Vectors, seed: int = 0) -> np.ndarray:
    """Labels predicted for ``test`` by logistic regression (L2, C = 1) on standardised
    embeddings; of a collapsed model, whose embeddings are all the same, the most frequent label."""
    if (labels == labels[0]).all():
        return np.full(test.shape[0], str(labels[0]), dtype=object)
    if not sparse.issparse(train):
        # what absent modalities leave constant says nothing and costs time; below 1e-12 is rounding
        told = np.ptp(train, axis=0) > 1e-12
        train, test = train[:, told], test[:, told]
        if not told.any():
            return np.full(len(test), pd.Series(labels.astype(str)).mode()[0], dtype=object)
    scaler = StandardScaler(with_mean=not sparse.issparse(train)).fit(train)
    probe = LogisticRegression(C=1.0, max_iter=200, tol=1e-3, random_state=seed)
    return probe.fit(scaler.transform(train), labels.astype(str)).predict(scaler.transform(test))


def correct(predicted: np.ndarray, labels: np.ndarray, k: int = 1) -> Bool[np.ndarray, " N"]:
    """Whether each product's label is the predicted one (N,), or among the first ``k`` of the
    predicted ones (N, P), best first. A label the classifier never saw counts as wrong."""
    first = predicted.reshape(len(labels), -1)[:, :k].astype(str)
    return (first == labels.astype(str)[:, None]).any(axis=1)


def in_span(vectors: Vectors) -> Float[np.ndarray, "_ _"] | sparse.spmatrix | sparse.sparray:
    """Unit vectors with the same distances, in no more dimensions than there are products: all
    that :func:`cluster` needs, and cheaper. Dense ones in float64, with which k-means is faster."""
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
    return float(normalized_mutual_info_score(labels.astype(str), clusters))


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of products in the majority class of their cluster; grows with their number."""
    table = pd.crosstab(np.asarray(clusters), labels.astype(str))
    return float(table.to_numpy().max(axis=1).sum() / len(labels))


def scores_drawn(
    clusters: Int[np.ndarray, " P"],
    labels: Int[np.ndarray, " P"],
    taken: Int[np.ndarray, "n P"],
    metric: Literal["NMI", "purity"],
) -> Float[np.ndarray, " n"]:
    """NMI or purity of the products of each row of ``taken``, places of products, one as often as
    it is there: what a bootstrap over products asks thousands of times."""
    count, classes = taken.shape[1], labels.max() + 1
    pairs, place = np.unique(clusters * classes + labels, return_inverse=True)
    spots = place[taken] + len(pairs) * np.arange(len(taken))[:, None]
    both = np.bincount(spots.ravel(), minlength=len(taken) * len(pairs)).reshape(-1, len(pairs))

    def starts(names: np.ndarray) -> np.ndarray:
        return np.unique(names, return_index=True)[1]

    by_cluster = starts(pairs // classes)  # cluster by cluster, they stand in order
    if metric == "purity":
        return np.maximum.reduceat(both, by_cluster, axis=1).sum(axis=1) / count
    order = np.argsort(pairs % classes, kind="stable")
    of_class = np.add.reduceat(both[:, order], starts(pairs[order] % classes), axis=1)
    table = xlogy(np.arange(count + 1) / count, np.arange(count + 1) / count)
    parts = (np.add.reduceat(both, by_cluster, axis=1), of_class, both)
    one, other, joint = (-table[part].sum(axis=1) for part in parts)
    mean = (one + other) / 2
    return np.where(mean > 1e-12, (one + other - joint) / np.maximum(mean, 1e-12), 1.0)
