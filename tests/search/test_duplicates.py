"""How many pairs of different products to expect, and the threshold that follows."""

import numpy as np
import pytest

from m5lib.search.duplicates import EQUAL, calibrate, expected, nearest


def products(count: int, copies: int, seed: int = 0, noise: float = 0.05) -> np.ndarray:
    """Vectors of products in families, and of copies of the first ones."""
    rng = np.random.default_rng(seed)
    families = rng.normal(size=(count // 40, 12))
    own = families[rng.integers(len(families), size=count)] + rng.normal(size=(count, 12))
    return np.vstack([own, own[:copies] + noise * rng.normal(size=(copies, 12))]).astype("f4")


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def test_neighbours_are_those_of_a_sort():
    vectors = products(700, 0)
    slow = np.sort(cosines(vectors) - 3 * np.eye(700), axis=1)[:, ::-1]
    np.testing.assert_allclose(nearest(vectors, 30), slow[:, :30], atol=1e-5)
    assert nearest(vectors[:4], 30).shape == (4, 3) and nearest(vectors[:1], 30).shape == (1, 0)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_of_different_products_are_foretold(seed):
    """Where nothing is a copy, as many pairs are found as were expected, but for a factor."""
    vectors = products(2000, 0, seed)
    upper = cosines(vectors)[np.triu_indices(2000, 1)]
    near = nearest(vectors, 30)
    for share in (2000, 300, 50):
        cosine = float(np.sort(upper)[-share])
        assert share / 3 < expected(near, cosine) < 4 * share
    assert calibrate(vectors).pairs <= 5


@pytest.mark.parametrize("seed", range(3))
def test_copies_are_found_with_the_precision_that_is_stated(seed):
    vectors = products(2000, 200, seed)
    near = calibrate(vectors, 0.9)
    row, other = np.nonzero(np.triu(cosines(vectors) >= near.cosine, 1))
    right = (other - 2000 == row).sum()
    assert len(row) == pytest.approx(near.pairs, abs=1) and right > 150
    assert 0.9 <= near.precision and right / len(row) > 0.8
    assert calibrate(vectors, 0.5).cosine <= near.cosine


@pytest.mark.parametrize("listings", [7, 12, 28])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_product_listed_many_times_hides_no_other_copies(listings, noise):
    """Its own listings are among its neighbours of every rank that others are told by."""
    vectors = products(2000, 100)
    more = vectors[500] + noise * np.random.default_rng(1).normal(size=(listings - 1, 12))
    near = calibrate(np.vstack([vectors, more]).astype("f4"))
    alone, group = calibrate(vectors), listings * (listings - 1) // 2
    assert alone.pairs >= 90 and near.cosine < alone.cosine + 0.06
    assert near.pairs >= 85 + group and near.precision >= 0.9


def test_few_products_and_wrong_shares():
    for count in (1, 2, 3):
        near = calibrate(np.eye(count, dtype="f4"))
        assert near == (EQUAL, 0, 0.0) and np.isnan(near.precision)
    assert calibrate(np.ones((2, 4), "f4")).pairs == 1
    for wrong in (0, 1, -1, 90):
        with pytest.raises(ValueError, match="precision .*: a share of pairs; give a number"):
            calibrate(np.eye(3, dtype="f4"), wrong)
