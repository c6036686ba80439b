"""Near-duplicates: pairs of products above a cosine, and above which.

Different products are near too, and the more there are, the nearer some pairs of them come. So the
threshold is not a number of cosine but one of pairs: :func:`calibrate` extrapolates from every
product's neighbours of rank 6 to 30, which a handful of copies does not touch, how many pairs of
*different* products to expect above a cosine, and takes the lowest at which they are few among
those that are found. No label is needed.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from m5lib.search.encode import cosine, unit

#: Ranks of the neighbours that are taken to be other products, whatever the first ones are.
RANKS = (5, 30)
#: The cosine of equal vectors, but for rounding.
EQUAL = 1 - 1e-6
#: The least power of a product, as a share of the median: listed more often than RANKS[0] times, it
#: would seem to have different products at every distance.
LEAST = 0.25


class Near(NamedTuple):
    """Where near-duplicates begin.

    Attributes:
        cosine: pairs at or above it count as near-duplicates.
        pairs: how many there are, of each product with its nearest ``RANKS[1]`` others.
        different: how many pairs of different products to expect among them.
    """

    cosine: float
    pairs: int
    different: float

    @property
    def precision(self) -> float:
        """Expected share of the pairs that are near-duplicates; NaN where there is no pair."""
        return max(0.0, 1 - self.different / self.pairs) if self.pairs else float("nan")


def calibrate(vectors: Float[np.ndarray, "N D"], precision: float = 0.9) -> Near:
    """The lowest cosine at which ``precision`` of the pairs are expected to be no different
    products; where there is none, the one above which half a pair of those is expected; where there
    is none of that, pairs of equal vectors.

    The others of a product that lie within a distance are expected to grow as a power of it: with
    ``d(r) = 1 - cosine`` at rank r, ``K (d / d(K))^p`` of them lie within d, ``p = (1/(m+1) + … +
    1/(K-1)) / log(d(K) / d(m+1))`` (the spacings of the logarithms are exponential; p is half the
    local intrinsic dimension; at least :data:`LEAST` of the median), m and K of :data:`RANKS`.
    Groups of more than K listings of one product pass for different products.

    Raises ``ValueError``: ``precision`` is not between 0 and 1, or a vector that is not finite.
    """
    if not 0 < precision < 1:
        raise ValueError(f"precision {precision}: a share of pairs; give a number between 0 and 1")
    near = nearest(vectors, RANKS[1])
    found = np.sort(near, axis=None)

    def at(cosine: float) -> Near:
        count = int(len(found) - np.searchsorted(found, cosine) + 1) // 2
        return Near(cosine, count, expected(near, cosine))

    if near.shape[1] < 3:  # no others to tell a copy from
        return at(EQUAL)
    tried = [at(float(cosine)) for cosine in np.arange(np.median(near[:, -1]), 1.0, 0.005)]
    good = [near for near in tried if near.precision >= precision]
    return (good or [near for near in tried if near.different <= 0.5] or [at(EQUAL)])[0]


def expected(near: Float[np.ndarray, "N K"], cosine: float) -> float:
    """How many pairs of different products to expect at or above a cosine (:func:`calibrate`), by
    each one's :func:`nearest`; 0 where there are fewer than three."""
    if (count := near.shape[1]) < 3:
        return 0.0
    first = min(RANKS[0], count - 2)
    far = np.log((1 - near.astype(np.float64)).clip(1e-6))
    power = (1 / np.arange(first + 1, count)).sum() / (far[:, -1] - far[:, first]).clip(1e-4)
    power = np.maximum(power, LEAST * np.median(power))
    share = np.exp(power * (np.log(max(1 - cosine, 1e-6)) - far[:, -1]).clip(max=0))
    return float(count * share.sum() / 2)


def nearest(vectors: Float[np.ndarray, "N D"], count: int) -> Float[np.ndarray, "N K"]:
    """Cosines of every product with its ``count`` nearest others (at most all), nearest first."""
    x = unit(vectors.astype(np.float32))
    if not np.isfinite(x).all():
        raise ValueError("vectors that are not finite have no neighbours: has training diverged?")
    count, parts = min(count, len(x) - 1), [np.empty((0, 0), np.float32)]
    for start in range(0, len(x) if count else 0, 512):
        cosines = x[start : start + 512] @ x.T
        cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -2.0  # itself
        parts.append(-np.sort(-np.partition(cosines, len(x) - count)[:, len(x) - count :]))
    return np.concatenate(parts[1:] or [np.empty((len(x), 0), np.float32)])


def pairs(
    vectors: Float[np.ndarray, "N D"], threshold: float, most: int = 200_000
) -> tuple[np.ndarray, int]:
    """The ``most`` nearest pairs at or above a cosine, and how many there are (in single precision
    where some were dropped).

    Exact: single precision finds the pairs, double precision decides. Fields of a pair: the
    ``distance`` (the cosine, negative), ``row`` and ``of``.
    """
    x, total, edge = unit(vectors.astype(np.float32)), 0, threshold
    best = np.zeros(0, dtype=[("distance", "f8"), ("row", "i8"), ("of", "i8")])
    for start in range(0, len(x), 512):
        cosines = x[start : start + 512] @ x[start:].T
        cosines[np.tril_indices(len(cosines), m=cosines.shape[1])] = -2.0  # each pair once
        total += int((cosines >= threshold).sum())
        rows, others = start + np.array(np.nonzero(cosines >= edge - 1e-5))
        for low in range(0, len(rows), 2**16):  # bounds the memory of low thresholds
            row, of = rows[low : low + 2**16], others[low : low + 2**16]
            near = np.empty(len(row), dtype=best.dtype)
            near["row"], near["of"] = row, of
            near["distance"] = -cosine(vectors[row], vectors[of])
            best = np.sort(np.concatenate([best, near[near["distance"] <= -edge]]))[:most]
            edge = -best["distance"][-1] if len(best) == most else edge
    return best, len(best) if len(best) < most else max(total, len(best))
