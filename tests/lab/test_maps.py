"""Groups that separate, groups that do not, and what a map keeps of the space."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from sklearn.neighbors import KNeighborsClassifier

from m5lib.catalogue import DataError
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.evaluation import separation
from m5lib.figures import maps as map_figures
from m5lib.lab import claims, maps, recording, study
from m5lib.shop import listings


def islands(products=60, kinds=3, width=8, noise=0.1, seed=0):
    """Unit-like vectors around a direction for each kind, and their labels."""
    rng = np.random.default_rng(seed)
    place = np.arange(products) % kinds
    return (np.eye(width)[place] + noise * rng.normal(size=(products, width))).astype(
        np.float32
    ), np.array([f"k{p}" for p in place], dtype=object)


def slow_silhouette(points, labels, distance):
    """Rousseeuw's formula, product by product."""
    found = []
    for i in range(len(points)):
        to = {}
        for j in range(len(points)):
            if j != i:
                to.setdefault(labels[j], []).append(distance(points[i], points[j]))
        a, b = np.mean(to.pop(labels[i])), min(np.mean(values) for values in to.values())
        found.append((b - a) / max(a, b))
    return np.array(found)


@pytest.mark.parametrize("space", separation.SPACES)
def test_separation_is_the_formula(space):
    points, labels = islands(noise=0.6)
    points = points[:, :2] if space != separation.SPACE else points
    cosine = lambda x, y: 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)  # noqa: E731
    euclid = lambda x, y: np.linalg.norm(x - y)  # noqa: E731
    metric = (cosine, "cosine") if space == separation.SPACE else (euclid, "euclidean")
    found = separation.separation(points, labels, space)
    np.testing.assert_allclose(
        found["silhouette"], slow_silhouette(points.astype(float), labels, metric[0]), atol=1e-5
    )
    for i in range(len(points)):  # leave one out, slowly
        others = np.arange(len(points)) != i
        near = KNeighborsClassifier(1, metric=metric[1], algorithm="brute").fit(
            points[others], labels[others]
        )
        assert found["1-NN accuracy"][i] == (near.predict(points[[i]])[0] == labels[i])


def test_separation_at_its_limits():
    points, labels = islands(noise=0.01)
    found = separation.separation(points, labels, separation.SPACE)
    assert np.nanmean(found["silhouette"]) > 0.95 and np.nanmean(found["10-NN accuracy"]) == 1
    mixed = separation.separation(
        np.random.default_rng(0).normal(size=(600, 4)), np.arange(600) % 3, separation.SPACE
    )
    assert abs(np.nanmean(mixed["silhouette"])) < 0.05 and np.nanmean(
        mixed["10-NN accuracy"]
    ) == pytest.approx(1 / 3, abs=0.06)


def test_who_is_asked_and_who_votes():
    points = np.array([[1, 0], [1, 0.1], [1, 0.05], [0, 1], [0.1, 1], [0, -1]], dtype=np.float32)
    labels = np.array(["a", "a", "alone", "b", "b", None], dtype=object)
    found = separation.separation(points, labels, separation.SPACE, votes=(1,))
    assert (
        np.isnan(found["silhouette"][[2, 5]]).all()
        and np.isfinite(found["silhouette"][[0, 1, 3, 4]]).all()
    )
    assert found["1-NN accuracy"][[0, 1, 3, 4]].tolist() == [
        0,
        0,
        1,
        1,
    ]  # the one that is alone votes, but is not asked
    only = separation.separation(
        points, labels, separation.SPACE, (1,), np.array([True, False, False, False, False, False])
    )
    assert np.flatnonzero(~np.isnan(only["1-NN accuracy"])).tolist() == [0]
    nobody = separation.separation(points, np.array([*"abcdef"], dtype=object), separation.SPACE)
    assert all(np.isnan(values).all() for values in nobody.values())


def test_the_nearest_breaks_a_tie():
    assert separation.vote(np.array([["b", "a", "a", "b"], ["a", "b", "b", "c"]])).tolist() == [
        "b",
        "b",
    ]


def test_chance_is_what_random_neighbours_get():
    labels = np.array(["a", "a", "a", "b", "b", "c", None], dtype=object)
    np.testing.assert_allclose(separation.chance(labels), [2 / 5] * 3 + [1 / 5] * 2 + [np.nan] * 2)
    within = np.array(["x", "x", "y", "y", "y", "y", "y"], dtype=object)
    np.testing.assert_allclose(
        separation.chance(labels, within), [1, 1, 0, 1 / 3, 1 / 3, np.nan, np.nan]
    )


@pytest.mark.parametrize("method", separation.METHODS)
def test_a_map_is_the_same_twice_and_keeps_islands(method):
    points, labels = islands(45)
    settings = maps.Settings(perplexity=10, neighbours=8)
    first = maps.coordinates(points, method, 3, settings)
    assert first.shape == (45, 2) and np.array_equal(
        first, maps.coordinates(4 * points, method, 3, settings)
    )
    assert np.nanmean(separation.separation(first, labels, method)["1-NN accuracy"]) == 1
    spaces = {("r", separation.SPACE): points, ("r", method): first}
    assert 0.8 < separation.trust(spaces)[0]["value"] <= 1
    with pytest.raises(ValueError, match="known are"):
        maps.coordinates(points, "PCA")


def test_settings_that_make_no_map():
    with pytest.raises(ValueError, match="perplexity"):
        maps.Settings(perplexity=0)


@pytest.fixture(scope="module")
def small_shop(tmp_path_factory):
    return listings.make(120, 0, tmp_path_factory.mktemp("maps") / "shop", workers=1)


def test_held_out_products(small_shop):
    rows = maps.held_out(small_shop)
    assert not set(rows) & set(small_shop.split("train")) and not set(rows) & set(
        small_shop.split("validation")
    )
    some = maps.held_out(small_shop, most=40)
    assert 40 <= len(some) <= 45 and set(some) <= set(rows)
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


def test_stars_join_listings_and_only_incomplete_products_are_asked(small_shop):
    table = maps.groups(small_shop, maps.held_out(small_shop))
    points = np.random.default_rng(0).normal(size=(len(table), 2)).astype(np.float32)
    each = separation.numbers({("r", "t-SNE"): points}, table).assign(state="pretrained")
    means = (
        each.groupby(["state", "variant", "task", "metric", "convention"])["value"]
        .mean()
        .reset_index()
        .to_dict("records")
    )
    found = {
        ("SCALE", 0): maps.Mapped(
            "run",
            "data",
            means,
            each,
            [],
            1,
            table,
            {("r", "t-SNE"): points},
            Path("x"),
            small_shop,
        )
    }
    (axes,) = map_figures.listings(found, 0, "r", most=3).axes
    (stars,) = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    assert len(stars.get_segments()) == table["product"].value_counts().head(3).sum()
    asked = table["missing"].map(table["missing"].value_counts()).gt(1) & (
        table["missing"] != "complete"
    )
    values = found["SCALE", 0].values(maps.value_of("missing", "1-NN accuracy", "t-SNE", "r"))
    assert set(values.index) == set(table.index[asked])
    category = maps.value_of("category", "1-NN accuracy", "t-SNE", "r")
    shares = maps.by_missing(found, category)
    assert shares.columns[0] == "complete" and shares.loc["products"].sum() == len(
        found["SCALE", 0].values(category)
    )


GRID = {
    "SCALE": {},
    "ViLBERT": {"model": "vilbert", "modalities": "I+T"},
    "untrained": {"state": "untrained"},
    "heard": {"modalities": "A"},
}


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M5_HOME", str(tmp_path_factory.mktemp("home")))
        yield maps.maps(GRID, str(folder), "tiny", [0], maps.Settings(most=80), "n"), patch


def test_the_same_products_under_every_model(found, folder, capsys):
    by_label, _ = found
    assert {label for label, _ in by_label} == {
        "SCALE",
        "ViLBERT",
        "untrained",
    }  # these products have no sound
    ids = {tuple(each.groups.index) for each in by_label.values()}
    assert len(ids) == 1 and len(next(iter(ids))) == 80
    for each in by_label.values():
        stored = pd.read_parquet(each.file)
        assert (
            list(stored) == ["id", "state", "readout", "method", "x", "y"] and len(stored) == 80 * 4
        )
        frame = pd.DataFrame(each.rows)
        assert list(frame) == list(recording.COLUMNS) and set(frame["variant"]) == {PAPER, DEFAULT}
        assert {"separation by category", "map", "removal"} == set(frame["task"])
        wanted = maps.value_of("category", "silhouette", "t-SNE", PAPER)
        assert each.value(wanted) == pytest.approx(each.values(wanted).mean())
    again = maps.maps(GRID, str(folder), "tiny", [0], maps.Settings(most=80), "n")
    for key, each in by_label.items():
        assert again[key].rows == each.rows and again[key].file == each.file
        assert all(
            np.array_equal(again[key].spaces[part], points) for part, points in each.spaces.items()
        )


def test_nothing_taken_away_changes_nothing(found):
    by_label, _ = found
    for metric in ("neighbours kept", "finds itself"):
        part = maps.removed(by_label, "SCALE", metric, DEFAULT)
        assert (
            list(part.index) == ["all of them", "without I", "without T", "without Tab"]
            and part.iloc[0, 0] == 1
        )
    assert maps.removed(by_label, "SCALE", "neighbours kept", DEFAULT).iloc[1:, 0].max() < 1


def test_the_papers_claim_is_judged(found):
    (row,) = claims.judge(found[0], ["Figure 6"])
    assert row["id"] == "C90" and row["verdict"] in ("confirmed", "not confirmed", "contradicted")
    ours, theirs = (
        found[0][label, 0].value(study.number("silhouette of the map"))
        for label in ("SCALE", "ViLBERT")
    )
    assert row["difference"] == pytest.approx(ours - theirs)


def test_figures(found):
    by_label, _ = found
    figure = map_figures.maps(by_label, 0, DEFAULT)
    assert len(figure.axes) == 6 and figure.axes[0].get_title().startswith(
        "SCALE, t-SNE\nsilhouette "
    )
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    counts = [int(name.split("(")[1][:-1]) for name in names]
    assert (
        sum(counts) == 80
        and counts[0] == by_label["SCALE", 0].groups["category"].value_counts().max()
    )
    assert (
        len(maps.separations(by_label, "category", PAPER, ["silhouette", "1-NN accuracy"]).columns)
        == 7
    )
    assert maps.by_missing(
        by_label, maps.value_of("category", "1-NN accuracy", "t-SNE", PAPER)
    ).empty
    taken = {"10-NN accuracy": maps.removed(by_label, "SCALE", "10-NN accuracy", PAPER)}
    assert map_figures.removals(taken, "t").axes[0].get_xlabel() == "10-NN accuracy"
