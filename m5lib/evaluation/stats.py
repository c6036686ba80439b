"""What a difference between two models is worth: paired tests over queries and seeds."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special
from scipy.optimize import brentq

from m5lib.evaluation.metrics import scores_drawn


class Difference(NamedTuple):
    """A minus B: the mean, its 95 % interval, a two-sided p, and the number of seeds."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def paired_queries(
    a: Float[np.ndarray, "_ _"] | Sequence[np.ndarray],
    b: Float[np.ndarray, "_ _"] | Sequence[np.ndarray],
) -> Difference:
    """What one model scores more than another on the same queries, over several seeds.

    1. d[s, q] = a[s, q] - b[s, q]; m[s] = mean over the queries of seed s; m = mean over the S
       seeds: the difference reported.
    2. v = (sum over s of (m[s] - m)²) / ((S - 1) S): what seeds vary it, and with them each seed's
       own luck with its queries.
    3. An array (S, Q) says that column q is the same query in every seed. What all seeds find hard
       or easy alike moves all m[s] together, unseen in v: w = the mean covariance over the queries
       of d of one seed and of another, at least 0, / Q. A sequence of S arrays has queries of each
       seed's own: w = 0.
    4. The 95 % interval is m ± sqrt(t² v + z² w), with the 0.975 quantiles t of Student's t with
       S - 1 degrees of freedom and z of the normal; p is where such an interval ends at 0. With one
       seed it is that of the queries only: v = 0, w = the variance of d / Q. One query that all
       seeds share says nothing of others: interval and p are NaN.
    5. Where all m[s] are equal, as hits and misses of few can be, v is what other queries would
       vary a mean: the mean over s of the variance of d[s] / Q, less w, at least 0, / S. Where all
       d are equal, w is such that the interval reaches 3 / (number of queries) to each side: what
       one knows of a share of which nothing was seen (Hanley and Lippman-Hand, 1983).

    This is the test of two readings by the same readers of the same cases (Obuchowski and Rockette,
    1995), seeds for readers. Of models that differ by chance alone it calls one in twenty
    different, or fewer, whatever seeds, queries and both together bring: from some thirty queries
    on; of fewer, more (ten queries of one seed: one in twelve).

    Raises ``ValueError``: seeds or queries of the two do not match, or there are none.
    """
    if not len(a) or [len(x) for x in a] != [len(y) for y in b] or not all(len(x) for x in a):
        what = "the two models must be measured on the same queries of the same seeds"
        raise ValueError(f"{what}, at least one of each")
    gains = [np.asarray(x, float) - np.asarray(y, float) for x, y in zip(a, b, strict=True)]
    shared = len(gains) == 1 or isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    common = _common(np.stack(gains, axis=1)) / len(gains[0]) if shared else 0.0
    alike = max(0.0, np.mean([gain.var() / len(gain) for gain in gains]) - common) / len(gains)
    if np.ptp(every := np.concatenate(gains)) < 1e-12 and common == common:
        common = (3 / (len(gains[0]) if shared else len(every)) / special.ndtri(0.025)) ** 2
    return _tested(np.array([gain.mean() for gain in gains]), common, alike)


def paired_clusters(
    clusters: Sequence[Int[np.ndarray, "2 _ _"]],
    labels: Sequence[Int[np.ndarray, " _"]],
    metric: Literal["NMI", "purity"],
    shared: bool,
    draws: int = 2_000,
    seed: int = 0,
) -> Difference:
    """The same for NMI and purity, which have no value per product: of each seed the clusters of
    two models, k-means started K times, (2, K, P), and the classes of the P products; a score is
    the mean over the K. w is the mean covariance of two seeds' differences over draws of the
    products with replacement, the same for all seeds (a bootstrap). ``shared``: all seeds have the
    same products, in one order.
    """

    def gain(taken: np.ndarray, own: np.ndarray, classes: np.ndarray) -> np.ndarray:
        each = [[scores_drawn(part, classes, taken, metric) for part in side] for side in own]
        ours, theirs = np.mean(each, axis=1)
        return ours - theirs

    pairs, common = list(zip(clusters, labels, strict=True)), 0.0
    means = np.array([gain(np.arange(len(y))[None], x, y)[0] for x, y in pairs])
    if shared or len(pairs) == 1:
        size = len(labels[0])
        taken = np.random.default_rng(seed).integers(size, size=(draws, size))
        common = _common(np.stack([gain(taken, x, y) for x, y in pairs], axis=1))
    return _tested(means, common)


def paired_seeds(a: Float[np.ndarray, " _"], b: Float[np.ndarray, " _"]) -> Difference:
    """The same where the two were not measured on the same queries: a paired t-test over the seeds,
    w = 0. What the choice of products adds is not in it. Interval and p are NaN of one seed, and of
    several that differ alike. Raises ``ValueError``: not the same seeds, or none."""
    if len(a) != len(b) or not len(a):
        raise ValueError("the two models must be measured with the same seeds, at least one")
    return _tested(np.asarray(a, float) - np.asarray(b, float), 0.0)


def _common(values: Float[np.ndarray, "n S"]) -> float:
    """The mean covariance of two columns, at least 0; of one column its variance. NaN of a row."""
    if len(values) < 2:
        return float("nan")
    covariance, seeds = np.atleast_2d(np.cov(values.T)), values.shape[1]
    others = covariance.sum() - (seeds > 1) * np.trace(covariance)
    return max(0.0, float(others) / max(1, seeds * (seeds - 1)))


def level(bound: float, spread: float, common: float, seeds: int) -> float:
    """The p of the interval of step 4 of :func:`paired_queries`, from v and w, that ends ``bound``
    from its mean: from 1, where that is 0, down to 1e-12."""
    if bound == 0:
        return 1.0

    def beyond(p: float) -> float:
        return half_width(p, spread, common, seeds) - bound

    return float(brentq(beyond, 1e-12, 1)) if beyond(1e-12) > 0 else 1e-12


def half_width(p: float, spread: float, common: float, seeds: int) -> float:
    """sqrt(t² v + z² w) of that interval, with the quantiles 1 - p / 2."""
    t = special.stdtrit(seeds - 1, p / 2) if spread else 0.0
    return float(np.sqrt(t**2 * spread + special.ndtri(p / 2) ** 2 * common))


def _tested(means: Float[np.ndarray, " S"], common: float, alike: float = 0.0) -> Difference:
    """Step 4 of :func:`paired_queries`: differences of seeds, w, and v where they are equal. Where
    nothing varied, nothing is known of what would: interval and p are NaN."""
    mean, seeds, spread = float(means.mean()), len(means), spread_of(means)
    spread = spread if np.ptp(means) > 1e-12 or seeds == 1 else float(alike)
    half = half_width(0.05, spread, common, seeds) if spread + common else np.nan
    p = level(abs(mean), spread, common, seeds) if half == half else np.nan
    return Difference(mean, mean - half, mean + half, p, seeds)


def spread_of(means: Float[np.ndarray, " S"]) -> float:
    """v of step 2; 0 of one seed."""
    return float(means.var(ddof=1) / len(means)) if len(means) > 1 else 0.0


#: A training has converged where its validation curve gains less than this in the last quarter.
CONVERGED = 0.01


def last_quarter(seen: Sequence[float], values: Sequence[float]) -> float:
    """What a curve gains over the last quarter of what was seen, by straight lines between its
    points: ``values`` after so many products (or steps, or seconds), rising from 0 or the first
    look. Raises ``ValueError``: fewer than two points, or none before the last quarter."""
    seen, values = np.asarray(seen, float), np.asarray(values, float)
    if len(seen) != len(values) or len(seen) < 2 or (np.diff(seen) <= 0).any():
        raise ValueError("a curve is two points or more, each after more products than the last")
    if seen[0] > 0.75 * seen[-1]:
        raise ValueError("the curve has no look before its last quarter")
    return float(values[-1] - np.interp(0.75 * seen[-1], seen, values))
