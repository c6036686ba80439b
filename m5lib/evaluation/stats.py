"""What a difference between two models is worth: paired tests over queries and seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats


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
    means, rng, values = np.array([gain.mean() for gain in gains]), np.random.default_rng(seed), []
    wide = (_widening(len(means)) - 1) * (means - means.mean())
    step = max(1, 2**21 // max(len(gain) for gain in gains))
    for start in range(0, draws, step):
        n = min(step, draws - start)
        taken = rng.integers(len(gains[0]), size=(n, len(gains[0]))) if shared else None
        drawn = [
            gain[rng.integers(len(gain), size=(n, len(gain))) if taken is None else taken].mean(1)
            for gain in gains
        ]
        drawn = np.stack(drawn, axis=1) + wide
        seeds = rng.integers(len(means), size=drawn.shape)
        values.append(np.take_along_axis(drawn, seeds, axis=1).mean(axis=1))
    values = np.concatenate(values)
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
    """The same for metrics that have no value per query (NMI, purity): a paired t-test over the
    seeds, mean ± t s / sqrt(S), s the standard deviation (S - 1) of the differences. What the
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
