"""Which gallery products are nearest to a query: exact, in blocks, for catalogues of any size."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import sparse
from sklearn.preprocessing import normalize
from torch import Tensor

#: One vector per row: dense (a memory map too, of half precision too), or sparse as TF-IDF gives
#: them.
Vectors = Float[np.ndarray, "_ D"] | sparse.spmatrix | sparse.sparray

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
    first.

    Scores are cosines (0 with a zero vector), or plain inner products (released code) with
    ``cosine=False``. With ids given, a gallery product with the query's own id is never returned.
    Places that cannot be filled (a gallery smaller than ``k``) hold -1.

    Exact, whatever the blocks and the device (CUDA where there is one): products in the vectors'
    own precision (float32 for half) only tell which pairs could be among the best, by a bound on
    their rounding error; those pairs are scored in float64, each in the same order of additions.
    Two gallery products with the same vector therefore tie. Nothing is copied or normalised whole:
    memory is that of the lists and of some blocks, about 0.4 GiB at 768 dimensions
    (``benchmarks/ranking.json``).

    Args:
        rows: the rows of ``gallery`` that are ranked, by default all; a place in the list is then a
            place in ``rows``, and so are ``gallery_ids``.
        block: queries and gallery products at a time.

    Raises:
        ValueError: a vector holds a value that is not finite.
    """
    size, total = queries.shape[0], gallery.shape[0] if rows is None else len(rows)
    found, best = np.full((size, k), -1, dtype=np.int64), np.full((size, k), -np.inf)
    own = _pairs_of_one_id(query_ids, gallery_ids)
    for low in range(0, total, block[1]):
        part = slice(low, low + block[1]) if rows is None else rows[low : low + block[1]]
        offered = _Block.of(gallery[part], cosine, "gallery", low)
        mine = own[np.searchsorted(own[:, 1], low) : np.searchsorted(own[:, 1], low + block[1])]
        for start in range(0, size, block[0]):
            asked = slice(start, start + block[0])
            same = mine[(mine[:, 0] >= start) & (mine[:, 0] < start + block[0])] - (start, low)
            _merge(
                _Block.of(queries[asked], cosine, "query", start),
                offered,
                same,
                low,
                best[asked],
                found[asked],
            )
    return found


def _pairs_of_one_id(
    query_ids: np.ndarray | None, gallery_ids: np.ndarray | None
) -> Int[np.ndarray, "P 2"]:
    """Query and gallery places with the same id, by gallery place."""
    if query_ids is None or gallery_ids is None:
        return np.zeros((0, 2), dtype=np.int64)
    sides = [
        pd.DataFrame({"id": ids.astype(object), side: np.arange(len(ids))})
        for side, ids in (("query", query_ids), ("gallery", gallery_ids))
    ]
    return (
        sides[0]
        .merge(sides[1], on="id")[["query", "gallery"]]
        .sort_values("gallery")
        .to_numpy(dtype=np.int64)
    )


class _Block(NamedTuple):
    """Some vectors in float64 (sparse ones scaled too), what they are divided by, which are zero,
    as multiplied, how long these are."""

    exact: np.ndarray | sparse.csr_array
    lengths: np.ndarray
    zero: np.ndarray
    quick: Tensor | None
    longest: np.ndarray

    @classmethod
    def of(cls, vectors: Vectors, cosine: bool, side: str, first: int) -> "_Block":
        if sparse.issparse(vectors):
            exact = sparse.csr_array(vectors).astype(np.float64)
            lengths = np.sqrt(exact.multiply(exact).sum(axis=1))
        else:
            exact = np.ascontiguousarray(
                vectors, dtype=np.float64
            )  # else the order of additions would depend on the block
            lengths = np.sqrt((exact * exact).sum(axis=1))
        if not np.isfinite(lengths).all():
            raise ValueError(
                f"{side} vector {first + int(np.argmin(np.isfinite(lengths)))} holds a value that "
                "is not finite"
            )
        zero = lengths == 0
        longest = np.where(zero, 0.0, 1.0) if cosine else lengths
        lengths = np.where(zero, 1.0, lengths) if cosine else np.ones(len(lengths))
        if sparse.issparse(exact):
            return cls(normalize(exact) if cosine else exact, lengths, zero, None, longest)
        dtype = np.float64 if vectors.dtype == np.float64 else np.float32
        return cls(
            exact,
            lengths,
            zero,
            torch.from_numpy((exact / lengths[:, None]).astype(dtype)).to(_device()),
            longest,
        )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _merge(
    asked: _Block, offered: _Block, own: np.ndarray, low: int, best: np.ndarray, found: np.ndarray
) -> None:
    """Put what a block of the gallery offers into the lists of a block of queries: ``best`` and
    ``found`` change in place.

    With e the bound on the error of the quick scores: what displaces the k-th of a full list has a
    quick score above it less e; what is among the k best of the block has one of at least the
    block's k-th less 2 e.
    """
    k = best.shape[1]
    scores, error = _quick(asked, offered)
    scores[torch.from_numpy(own[:, 0]), torch.from_numpy(own[:, 1])] = -torch.inf
    full = best[:, -1] > -np.inf
    settled = full & (
        asked.zero | (asked.quick is None)
    )  # scores without error: a later tie displaces nothing
    edge = (
        best[:, -1] - error
        if full.all()
        else np.where(full, best[:, -1] - error, _edge(scores, k) - 2 * error)
    )
    limit = _just_below(edge, scores, settled)
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
    value = (
        scores.numpy()[row, column]
        if asked.quick is None
        else _exact(asked, offered, rows[row], column)
    )
    counts = np.bincount(row, minlength=len(rows))
    place = np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts)
    values, places = (
        np.full((len(rows), counts.max()), -np.inf),
        np.full((len(rows), counts.max()), -1),
    )
    values[row, place], places[row, place] = value, low + column
    values, places = np.hstack([best[rows], values]), np.hstack([found[rows], places])
    order = np.argsort(-values, axis=1, kind="stable")[
        :, :k
    ]  # earlier places stand first, and so win ties
    best[rows], found[rows] = (
        np.take_along_axis(values, order, axis=1),
        np.take_along_axis(places, order, axis=1),
    )


def _quick(asked: _Block, offered: _Block) -> tuple[Tensor, np.ndarray]:
    """Scores of all pairs, and a bound on their error for each query: D + 8 roundings of at most
    the product of the lengths."""
    if asked.quick is None or offered.quick is None:
        return torch.from_numpy((asked.exact @ offered.exact.T).toarray()), np.zeros(
            len(asked.lengths)
        )
    scores, kind = asked.quick @ offered.quick.T, torch.finfo(asked.quick.dtype)
    unit = max(
        kind.eps,
        _COARSE[torch.get_float32_matmul_precision()] if scores.dtype == torch.float32 else 0.0,
    )
    return scores, (asked.quick.shape[1] + 8) * (
        unit * asked.longest * offered.longest.max(initial=0) + kind.tiny
    )


def _exact(
    asked: _Block, offered: _Block, row: np.ndarray, column: np.ndarray
) -> Float[np.ndarray, " P"]:
    """Scores of some pairs in float64; the same for a pair whichever others are asked for."""
    value, step = np.empty(len(row)), max(1, 2**21 // asked.exact.shape[1])
    for start in range(0, len(row), step):
        r, c = row[start : start + step], column[start : start + step]
        value[start : start + step] = (asked.exact[r] * offered.exact[c]).sum(axis=1) / (
            asked.lengths[r] * offered.lengths[c]
        )
    return value


def _edge(scores: Tensor, k: int) -> np.ndarray:
    """The k-th best score of each query, or its worst where there are fewer."""
    return scores.topk(min(k, scores.shape[1])).values[:, -1].double().cpu().numpy()


def _just_below(edge: np.ndarray, scores: Tensor, untouched: np.ndarray | bool = False) -> Tensor:
    """The edge in the precision of the scores, rounded down but where it is exact already."""
    rounded = edge.astype(np.float32 if scores.dtype == torch.float32 else np.float64)
    return torch.from_numpy(
        np.where(untouched, rounded, np.nextafter(rounded, rounded.dtype.type(-np.inf)))
    ).to(scores.device)
