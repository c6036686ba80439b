"""What a difference between two models is worth: paired tests over queries and seeds."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from m5lib.evaluation.metrics import scores_drawn


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

    1. d[s, q] = a[s, q] - b[s, q]; m[s] = mean over the queries of seed s; m = mean over the
       seeds: the difference reported.
    2. Each draw takes queries with replacement, as many as there are, and means d over them:
       m*[s]. An array (S, Q) says that column q is the same query in every seed: one sample serves
       all seeds. Of a sequence of S arrays, queries of their own, each is sampled by itself.
    3. With c = sqrt(S / (S - 1)) t / z, where t and z are the 0.975 quantiles of Student's t with
       S - 1 degrees of freedom and of the normal: m*[s] + (c - 1) (m[s] - m). Few seeds resampled
       as they are give too narrow intervals (of three that differ by chance alone one in four
       leaves out 0); widened so (Hesterberg, 2015, the expanded percentile interval), one in
       twenty does.
    4. The draw takes S seeds with replacement; its value is the mean over them.

    The interval holds the middle 95 % of the draws; p is twice the smaller share of draws on one
    side of 0 (0 included), one more counted on each side, at most 1. p is right about 0.05; with
    fewer than ten seeds much smaller values do not mean more. With one seed the interval is that of
    the queries only.

    Raises ``ValueError``: seeds or queries of the two do not match, or there are none.
    """
    if not len(a) or [len(x) for x in a] != [len(y) for y in b] or not all(len(x) for x in a):
        what = "the two models must be measured on the same queries of the same seeds"
        raise ValueError(f"{what}, at least one of each")
    shared = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    gains = [np.asarray(x, float) - np.asarray(y, float) for x, y in zip(a, b, strict=True)]
    means, sizes = np.array([gain.mean() for gain in gains]), [len(gain) for gain in gains]
    several = [lambda taken, gain=gain: gain[taken].mean(axis=1) for gain in gains]
    return _hierarchical(means, several, sizes, shared, draws, seed)


def paired_clusters(
    clusters: Sequence[Int[np.ndarray, "2 _ _"]],
    labels: Sequence[Int[np.ndarray, " _"]],
    metric: Literal["NMI", "purity"],
    shared: bool,
    draws: int = 4_000,
    seed: int = 0,
) -> Difference:
    """The same for NMI and purity, which have no value per product: of each seed the clusters of
    two models, k-means started K times, (2, K, P), and the classes of the P products; a score is
    the mean over the K. In step 2 the products are drawn, and both models scored on them. Products
    that are there twice agree with themselves, which lifts both scores: so the draws of each seed
    are moved to have its own difference as their mean. ``shared``: all seeds have the same
    products, in one order.
    """

    def gain(taken: np.ndarray, own: np.ndarray, classes: np.ndarray) -> np.ndarray:
        each = [[scores_drawn(part, classes, taken, metric) for part in side] for side in own]
        ours, theirs = np.mean(each, axis=1)
        return ours - theirs

    several = [partial(gain, own=x, classes=y) for x, y in zip(clusters, labels, strict=True)]
    sizes = [len(classes) for classes in labels]
    means = [of(np.arange(size)[None])[0] for of, size in zip(several, sizes, strict=True)]
    return _hierarchical(np.array(means), several, sizes, shared, draws, seed, centred=True)


def _hierarchical(
    means: Float[np.ndarray, " S"],
    several: Sequence[Callable[[np.ndarray], np.ndarray]],
    sizes: Sequence[int],
    shared: bool,
    draws: int,
    seed: int,
    centred: bool = False,
) -> Difference:
    """Steps 2 to 4 of :func:`paired_bootstrap`; ``several``: of each seed, from what is drawn of
    its queries (n, Q) to their differences (n,)."""
    rng, drawn, seeds, step = np.random.default_rng(seed), [], [], max(1, 2**21 // max(sizes))
    for start in range(0, draws, step):
        n = min(step, draws - start)
        taken = rng.integers(sizes[0], size=(n, sizes[0])) if shared else None
        part = [
            of(rng.integers(size, size=(n, size)) if taken is None else taken)
            for of, size in zip(several, sizes, strict=True)
        ]
        drawn.append(np.stack(part, axis=1))
        seeds.append(rng.integers(len(means), size=drawn[-1].shape))
    drawn = np.concatenate(drawn)
    if centred:
        drawn += means - drawn.mean(axis=0)
    drawn += (_widening(len(means)) - 1) * (means - means.mean())
    values = np.take_along_axis(drawn, np.concatenate(seeds), axis=1).mean(axis=1)
    low, high = np.quantile(values, [0.025, 0.975])
    tail = min((values <= 0).sum(), (values >= 0).sum()) + 1
    p = float(min(1.0, 2 * tail / (draws + 1)))
    return Difference(float(means.mean()), float(low), float(high), p, len(means))


def _widening(seeds: int) -> float:
    """By what the deviations of seeds from their mean are multiplied; 1 for one seed."""
    if seeds == 1:
        return 1.0
    t, z = stats.t.ppf(0.975, seeds - 1), stats.norm.ppf(0.975)
    return float(np.sqrt(seeds / (seeds - 1)) * t / z)


def paired_seeds(a: Float[np.ndarray, " _"], b: Float[np.ndarray, " _"]) -> Difference:
    """The same where the two were not measured on the same queries: a paired t-test over the seeds,
    mean ± t s / sqrt(S), s the standard deviation (S - 1) of the differences. What the
    choice of products adds is not in it. Equal differences have p 1 if they are 0, else 0. One seed
    has no spread: interval and p are NaN. Raises ``ValueError``: not the same seeds, or none."""
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
