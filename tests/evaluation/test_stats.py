import numpy as np
import pytest
import scipy.stats

from m5lib.evaluation import stats


def test_bootstrap_at_its_limits():
    rng = np.random.default_rng(0)
    a = rng.random((3, 200))
    same = stats.paired_bootstrap(a, a.copy(), 500)
    assert same == (0, 0, 0, 1, 3)
    shift = stats.paired_bootstrap(a + 0.2 + 0.01 * rng.normal(size=a.shape), a, 2000)
    assert (
        shift.mean == pytest.approx(0.2, abs=0.01)
        and shift.low > 0.18
        and shift.high < 0.22
        and shift.p < 0.002
    )
    back = stats.paired_bootstrap(a, a + 0.2, 500)
    assert back.mean == pytest.approx(-0.2) and back.high < 0 and back.p < 0.01
    assert stats.paired_bootstrap(a, a[::-1], 500, seed=4) == stats.paired_bootstrap(
        a, a[::-1], 500, seed=4
    )
    with pytest.raises(ValueError, match="same queries of the same seeds"):
        stats.paired_bootstrap([a[0], a[1]], [a[0], a[1, :9]])
    with pytest.raises(ValueError, match="same queries of the same seeds"):
        stats.paired_bootstrap(a[:2], a)


def test_bootstrap_of_one_seed_is_that_of_the_queries():
    d = np.random.default_rng(0).normal(0.1, 1, (1, 400))
    found = stats.paired_bootstrap(d, np.zeros_like(d))
    half = 1.96 * d.std() / 20
    assert (found.low, found.high) == pytest.approx(
        (d.mean() - half, d.mean() + half), abs=0.1 * half
    )
    assert found.p == pytest.approx(2 * scipy.stats.norm.sf(d.mean() / (d.std() / 20)), abs=0.02)


def test_more_seeds_of_the_same_queries_are_not_more_queries():
    rng = np.random.default_rng(0)
    d = np.repeat(rng.normal(0, 1, (1, 100)), 8, 0) + 0.01 * rng.normal(size=(8, 100))
    shared = stats.paired_bootstrap(d, np.zeros_like(d), 2000)
    apart = stats.paired_bootstrap(list(d), list(np.zeros_like(d)), 2000)
    assert shared.high - shared.low == pytest.approx(2 * 1.96 * d.std() / 10, rel=0.1)
    assert apart.high - apart.low < 0.6 * (shared.high - shared.low)


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_few_seeds_that_disagree_prove_nothing(seeds):
    """Models that differ by the seed's luck alone: hundreds of queries do not help, and about one
    in twenty is called different."""
    rng, called = np.random.default_rng(seeds), 0
    for _ in range(200):
        luck = rng.normal(size=(seeds, 1)) + 0.01 * rng.normal(size=(seeds, 50))
        called += stats.paired_bootstrap(luck, np.zeros_like(luck), 300).p < 0.05
    assert called <= 22, called  # without the widening about 52, 26 and 14 of 100


def test_paired_seeds_is_the_paired_t_test():
    a, b = np.array([0.5, 0.6, 0.58, 0.55]), np.array([0.45, 0.57, 0.58, 0.5])
    found, expected = stats.paired_seeds(a, b), scipy.stats.ttest_rel(a, b)
    low, high = expected.confidence_interval()
    assert found == pytest.approx((np.mean(a - b), low, high, expected.pvalue, 4))
    assert (
        stats.paired_seeds(a, a) == (0, 0, 0, 1, 4)
        and stats.paired_seeds(np.full(3, 2.0), np.ones(3)).p == 0
    )
    one = stats.paired_seeds(a[:1], b[:1])
    assert one.mean == pytest.approx(0.05) and np.isnan(one.p)
    with pytest.raises(ValueError, match="same seeds"):
        stats.paired_seeds(a, b[:2])
