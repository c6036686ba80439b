from itertools import product

import numpy as np
import pytest
import scipy.stats

from m5lib.evaluation import metrics, stats


def slow_interval(means, common):
    """From the spread of the seeds and what queries have in common, by loops."""
    S, m = len(means), sum(means) / len(means)
    v = sum((x - m) ** 2 for x in means) / ((S - 1) * S) if S > 1 else 0.0
    t = scipy.stats.t.ppf(0.975, S - 1) if S > 1 else 0.0
    half = (t**2 * v + scipy.stats.norm.ppf(0.975) ** 2 * common) ** 0.5
    return m, m - half, m + half


def slow_common(values):
    """Mean covariance of the rows of two seeds; of one seed its variance."""
    S, n = len(values), len(values[0])
    pairs = [(s, r) for s in range(S) for r in range(S) if s != r or S == 1]
    total = 0.0
    for s, r in pairs:
        one, other = sum(values[s]) / n, sum(values[r]) / n
        total += sum((values[s][q] - one) * (values[r][q] - other) for q in range(n)) / (n - 1)
    return max(0.0, total / len(pairs))


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_queries_are_compared_as_written(seeds):
    rng = np.random.default_rng(seeds)
    for common in (0.0, 0.5):
        a = rng.normal(size=(seeds, 60)) + common * rng.normal(size=60) + 0.3
        b = rng.normal(size=(seeds, 60))
        d, means = a - b, (a - b).mean(axis=1)
        found = stats.paired_queries(a, b)
        assert found[:3] == pytest.approx(slow_interval(means, slow_common(d) / 60))
        assert found.seeds == seeds
        if seeds > 1:  # queries of each seed's own: the t-test over seeds
            apart = stats.paired_queries(list(a), list(b))
            assert apart[:3] == pytest.approx(slow_interval(means, 0.0))
            assert apart.p == pytest.approx(scipy.stats.ttest_1samp(means, 0).pvalue)
        else:
            error = d.std(ddof=1) / np.sqrt(60)
            assert found.p == pytest.approx(2 * scipy.stats.norm.sf(abs(d.mean()) / error))


def test_p_is_where_the_interval_ends_at_zero():
    """Of intervals of every level, by bisection; both parts of the variance are there."""
    rng = np.random.default_rng(3)
    d = rng.normal(0.1, 0.3, (4, 80)) + 0.5 * rng.normal(size=80) + rng.normal(0, 0.1, (4, 1))
    found, v = stats.paired_queries(d, 0 * d), d.mean(axis=1).var(ddof=1) / 4
    w, levels = slow_common(d) / 80, (0.0, 1.0)
    for _ in range(60):
        middle = sum(levels) / 2
        t, z = scipy.stats.t.isf(middle / 2, 3), scipy.stats.norm.isf(middle / 2)
        inside = (t**2 * v + z**2 * w) ** 0.5 > abs(found.mean)
        levels = (middle, levels[1]) if inside else (levels[0], middle)
    assert found.p == pytest.approx(levels[0], abs=1e-9) and 0.001 < found.p < 0.9


def test_the_comparison_at_its_limits():
    rng = np.random.default_rng(0)
    a = rng.random((3, 200))
    assert stats.paired_queries(a, a.copy()) == pytest.approx((0, -3 / 200, 3 / 200, 1, 3))
    shift = stats.paired_queries(a + 0.2 + 0.01 * rng.normal(size=a.shape), a)
    assert shift.mean == pytest.approx(0.2, abs=0.01) and 0.18 < shift.low < shift.high < 0.22
    assert shift.p < 0.002
    back = stats.paired_queries(a, a + 0.2)
    assert back.mean == pytest.approx(-0.2) and back.high < 0 and back.p < 1e-6
    for one in (a[:, :1], a[:1, :1]):  # a query says nothing of others
        found = stats.paired_queries(one, 0 * one)
        assert found.mean == one.mean() and np.isnan([found.low, found.high, found.p]).all()
    with pytest.raises(ValueError, match="same queries of the same seeds"):
        stats.paired_queries([a[0], a[1]], [a[0], a[1, :9]])
    with pytest.raises(ValueError, match="same queries of the same seeds"):
        stats.paired_queries(a[:2], a)


def test_seeds_that_differ_alike_by_chance_are_not_sure():
    """Hits and misses are few values: each seed one query more of 200 is no proof."""
    d = np.zeros((3, 200))
    d[[0, 1, 2], [5, 60, 7]] = 1
    found = stats.paired_queries(list(d), list(0 * d))
    slow = (
        scipy.stats.t.ppf(0.975, 2)
        * (np.mean([(x**2).mean() - x.mean() ** 2 for x in d]) / 600) ** 0.5
    )
    assert found[:3] == pytest.approx((0.005, 0.005 - slow, 0.005 + slow)) and found.p > 0.1
    same = stats.paired_queries(d, 0 * d)  # the same queries in every seed: they say no more
    assert same == pytest.approx(found)
    one = np.repeat(d[:1], 3, 0)  # what all seeds find alike is in w, no seed has more
    assert stats.paired_queries(one, 0 * one)[:3] == pytest.approx(
        slow_interval(one.mean(axis=1), slow_common(one) / 200)
    )
    called, rng = 0, np.random.default_rng(0)
    for _ in range(400):  # no difference: a query in twenty goes one way or the other
        d = rng.choice([-1.0, 0.0, 1.0], size=(2, 60), p=[0.025, 0.95, 0.025])
        called += stats.paired_queries(list(d), list(0 * d)).p < 0.05
    assert called < 34


def test_seeds_that_differ_by_rounding_alone_differ_alike():
    """The same values in another order have another sum in the last digit."""
    one = np.array([0.1, 0.2, 0.3] * 5)
    both = [one, one[::-1].copy()]
    assert 0 < abs(both[0].mean() - both[1].mean()) < 1e-15
    nothing = [0 * one, 0 * one]
    same = stats.paired_queries([one, one], nothing)
    assert stats.paired_queries(both, nothing) == pytest.approx(same) and same.high > same.low
    ends = np.array([0.1 + 0.2, 0.3]), np.zeros(2)
    assert np.isnan(stats.paired_seeds(*ends)[1:4]).all()


@pytest.mark.parametrize("shared", [True, False])
def test_of_what_was_never_seen_a_share_is_known_all_the_same(shared):
    """Two models alike on every query asked: others may still tell them apart. Were as many of them
    to do so as the interval allows, none of these would show it once in twenty cases."""
    d, count = np.zeros((2, 11)), 11 if shared else 22
    found = stats.paired_queries(*((d, d) if shared else (list(d), list(d))))
    assert found == pytest.approx((0, -3 / count, 3 / count, 1, 2))
    assert 0.03 < (1 - found.high) ** count < 0.05
    lost, rng = 0, np.random.default_rng(0)
    for _ in range(400):
        one = (rng.random((1, 22)) < 0.1).astype(float)
        found = stats.paired_queries(one, 0 * one)
        lost += not one.any() and not found.low <= 0.1 <= found.high
    assert not lost


def test_more_seeds_of_the_same_queries_are_not_more_queries():
    rng = np.random.default_rng(0)
    d = np.repeat(rng.normal(0, 1, (1, 100)), 8, 0) + 0.01 * rng.normal(size=(8, 100))
    shared = stats.paired_queries(d, np.zeros_like(d))
    apart = stats.paired_queries(list(d), list(np.zeros_like(d)))
    assert shared.high - shared.low == pytest.approx(2 * 1.96 * d.std() / 10, rel=0.1)
    assert apart.high - apart.low < 0.1 * (shared.high - shared.low)


@pytest.mark.parametrize("seeds", [2, 3, 4, 10])
@pytest.mark.parametrize("seed, query, both", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.1, 0.5, 1)])
def test_chance_alone_is_called_a_difference_once_in_twenty_or_less(seeds, seed, query, both):
    """Whatever varies it: the seed's luck (hundreds of queries do not help), queries that are alike
    for all seeds (more seeds do not help), a seed's luck with a query, or all three."""
    rng, called, tries = np.random.default_rng(seeds), {True: 0, False: 0}, 400
    for shared in called:
        for _ in range(tries):
            shape = (1, 50) if shared else (seeds, 50)
            d = seed * rng.normal(size=(seeds, 1)) + query * rng.normal(size=shape)
            d = d + both * rng.normal(size=(seeds, 50)) + 1e-6 * rng.normal(size=(seeds, 50))
            sides = (d, 0 * d) if shared else (list(d), list(0 * d))
            called[shared] += stats.paired_queries(*sides).p < 0.05
    assert max(called.values()) < 0.085 * tries  # 20 expected, 34 by chance once in a thousand
    assert called[False] > 0.02 * tries  # of own queries it is exact


def test_paired_seeds_is_the_paired_t_test():
    a, b = np.array([0.5, 0.6, 0.58, 0.55]), np.array([0.45, 0.57, 0.58, 0.5])
    found, expected = stats.paired_seeds(a, b), scipy.stats.ttest_rel(a, b)
    low, high = expected.confidence_interval()
    assert found == pytest.approx((np.mean(a - b), low, high, expected.pvalue, 4))
    for x, y in ((a, a), (np.full(3, 2.0), np.ones(3)), (a[:1], b[:1])):  # nothing varied
        found = stats.paired_seeds(x, y)
        assert found.mean == pytest.approx(np.mean(x - y)) and np.isnan(found[1:4]).all()
    with pytest.raises(ValueError, match="same seeds"):
        stats.paired_seeds(a, b[:2])


@pytest.mark.parametrize("metric", ["NMI", "purity"])
def test_scores_of_drawn_products(metric):
    rng, measure = np.random.default_rng(0), getattr(metrics, metric.lower())
    for classes, clusters, count in ((3, 4, 40), (1, 3, 20), (5, 1, 20), (1, 1, 6), (9, 9, 12)):
        labels, own = rng.integers(classes, size=count), rng.integers(clusters, size=count)
        taken = rng.integers(count, size=(30, count))
        slow = [measure(own[rows], labels[rows]) for rows in taken]
        assert metrics.scores_drawn(own, labels, taken, metric) == pytest.approx(slow, abs=1e-9)


@pytest.mark.parametrize("metric, shared", [*product(["NMI", "purity"], [True, False])])
def test_clusters_are_compared_as_by_loops(metric, shared):
    """Products drawn again and again, the same for all seeds, each model scored on them."""
    rng, measure = np.random.default_rng(1), getattr(metrics, metric.lower())
    labels = [rng.integers(3, size=30 if shared else 25 + s) for s in range(3)]
    labels = labels[:1] * 3 if shared else labels
    easy = rng.random((2, 1, 30))  # for a model, whatever the seed
    clusters = [
        np.stack([np.where(rng.random((2, len(y))) < q[:, : len(y)], y, 3) for q in easy])
        for y in labels
    ]

    def gain(s, rows):
        one, other = (
            np.mean([measure(part[rows], labels[s][rows]) for part in side]) for side in clusters[s]
        )
        return one - other

    means = [gain(s, np.arange(len(own))) for s, own in enumerate(labels)]
    taken, common = np.random.default_rng(5).integers(30, size=(100, 30)), 0.0
    if shared:
        common = slow_common([[gain(s, rows) for rows in taken] for s in range(3)])
    found = stats.paired_clusters(clusters, labels, metric, shared, draws=100, seed=5)
    assert found[:3] == pytest.approx(slow_interval(means, common)) and found.seeds == 3
    assert not shared or common > 0


def test_the_choice_of_products_is_in_the_interval_of_clusters():
    """One seed: as wide as the differences of many other choices of products; equal models
    tell nothing of others."""
    rng, ours, count = np.random.default_rng(2), [], 300

    def drawn():
        y = rng.integers(6, size=count)
        sides = [
            np.where(rng.random((1, count)) < q, y, rng.integers(6, size=count)) for q in (0.7, 0.6)
        ]
        return np.stack(sides), y

    for _ in range(200):
        own, y = drawn()
        ours.append(metrics.purity(own[0, 0], y) - metrics.purity(own[1, 0], y))
    found = [
        stats.paired_clusters([x], [y], "purity", False, 500)
        for x, y in (drawn() for _ in range(20))
    ]
    spread = np.mean([one.high - one.low for one in found])
    assert spread == pytest.approx(2 * 1.96 * np.std(ours), rel=0.25)
    own, y = drawn()
    same = stats.paired_clusters([own[[0, 0]]], [y], "NMI", False, 200)
    assert same.mean == 0 and np.isnan(same[1:4]).all()


def test_what_a_curve_gains_over_its_last_quarter():
    seen, values = [0, 100, 200, 300, 400], [0.1, 0.5, 0.6, 0.64, 0.645]
    assert stats.last_quarter(seen, values) == pytest.approx(0.005) and 0.005 < stats.CONVERGED
    assert stats.last_quarter(seen[:-1], values[:-1]) == pytest.approx(0.64 - 0.61)  # at 225
    assert stats.last_quarter([0, 4], [0.0, 0.4]) == pytest.approx(0.1)
    assert stats.last_quarter([10, 30, 40], [0.5, 0.9, 0.7]) == pytest.approx(-0.2)  # fell
    for wrong in (([1], [0.1]), ([0, 1], [0.1]), ([0, 0], [0, 1]), ([9, 10], [0, 1])):
        with pytest.raises(ValueError, match="curve"):
            stats.last_quarter(*wrong)
