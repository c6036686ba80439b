"""Which products a map shows, how they are grouped, and maps of vectors good and bad."""

import numpy as np
import pandas as pd
import pytest
from test_separation import islands

from m5lib.catalogue import DataError
from m5lib.evaluation import maps, separation
from m5lib.shop import listings


@pytest.mark.parametrize("method", separation.METHODS)
def test_a_map_is_the_same_twice_and_keeps_islands(method):
    points, labels = islands(45)
    settings = {"perplexity": 10, "neighbours": 8}
    first = maps.coordinates(points, method, 3, **settings)
    assert first.shape == (45, 2) and np.array_equal(
        first, maps.coordinates(4 * points, method, 3, **settings)
    )
    assert np.nanmean(separation.separation(first, labels, method)["1-NN accuracy"]) == 1
    spaces = {("r", separation.SPACE): points, ("r", method): first}
    assert 0.8 < separation.trust(spaces)[0]["value"] <= 1
    with pytest.raises(ValueError, match="known are"):
        maps.coordinates(points, "PCA")


def test_settings_that_make_no_map():
    with pytest.raises(ValueError, match="perplexity"):
        maps.coordinates(islands(30)[0], "t-SNE", perplexity=0)


@pytest.mark.parametrize("method", separation.METHODS)
@pytest.mark.parametrize("directions", [1, 2, 3])
def test_vectors_that_are_all_alike_end_in_one_point_each(method, directions):
    place = np.arange(40) % directions
    points = maps.coordinates(np.eye(8, dtype=np.float32)[place] * 3, method)
    assert points.shape == (40, 2) and np.isfinite(points).all()
    assert len(np.unique(points.round(4), axis=0)) == directions
    assert np.isfinite(maps.coordinates(np.zeros((12, 8), dtype=np.float32), method)).all()


@pytest.mark.parametrize("method", separation.METHODS)
def test_vectors_that_are_no_numbers_are_named(method):
    points, _ = islands(30)
    points[[4, 7], 1] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 are not, the first in row 4"):
        maps.coordinates(points, method)
    with pytest.raises(ValueError, match="at least three vectors"):
        maps.coordinates(points[:2], method)


@pytest.fixture(scope="module")
def small_shop(tmp_path_factory):
    return listings.make(80, 0, tmp_path_factory.mktemp("maps") / "shop", workers=1)


def test_held_out_products(small_shop):
    rows = maps.held_out(small_shop)
    assert not set(rows) & set(small_shop.split("train")) and not set(rows) & set(
        small_shop.split("validation")
    )
    some = maps.held_out(small_shop, most=20)
    assert 20 <= len(some) <= 25 and set(some) <= set(rows)
    taken, left = (
        set(small_shop.instances[some]),
        set(small_shop.instances[np.setdiff1d(rows, some)]),
    )
    assert not taken & left, "listings of one product stay together"
    heard = maps.held_out(small_shop, [["audio"]])
    assert small_shop.presence["audio"].to_numpy()[heard].all() and len(heard) < len(rows)
    with pytest.raises(DataError, match="at least 11"):
        maps.held_out(small_shop.take(rows[:8]))


def test_groups_are_those_that_can_tell(small_shop, catalogue):
    rows = maps.held_out(small_shop)
    merchants = pd.Series([str(n % 9) for n in range(len(small_shop))], small_shop.ids)
    table = maps.groups(small_shop, rows, merchants)
    assert tuple(table) == maps.GROUPS
    lacking = small_shop.presence.iloc[rows]
    assert ((table["missing"] == "complete") == lacking.all(axis=1)).all()
    assert (
        table["missing"][~lacking["video"] & ~lacking["audio"] & lacking["table"]] == "no V+A"
    ).all()
    assert list(maps.groups(catalogue, maps.held_out(catalogue))) == ["category"]


def test_nothing_taken_away_changes_nothing():
    vectors, labels = islands(60, noise=0.6)
    table = pd.DataFrame({"category": labels}, index=pd.Index([f"p{n}" for n in range(60)]))
    places = np.arange(5, 45)
    same = maps.taken_away(vectors[places], vectors, places, table)
    assert same["neighbours kept"].all() and same["finds itself"].all()
    assert same["neighbours kept"].shape == (40, separation.K)
    others = separation.nearest(vectors, separation.K, separation.SPACE)
    right = separation.vote(labels[others]) == labels
    assert (same["10-NN accuracy"] == right[places]).all()
    moved = maps.taken_away(vectors[places][::-1].copy(), vectors, places, table)
    assert moved["neighbours kept"].mean() < 0.6 and moved["finds itself"].mean() < 0.1
