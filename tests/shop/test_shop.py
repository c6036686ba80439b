import hashlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from m5lib.catalogue import DataError
from m5lib.data import decoding, extractors, store
from m5lib.evaluation import evaluate, probes
from m5lib.modalities import MODALITIES
from m5lib.shop import facets, films, listings, pictures, sounds


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "shop"
    return folder, listings.make(96, 0, folder, workers=1), listings.truth(folder)


def digest(folder):
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix != ".parquet"
    )
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_same_seed_same_files_and_another_seed_other_products(made, tmp_path):
    folder, catalogue, truth = made
    again = listings.make(96, 0, tmp_path / "again", workers=2)
    assert (
        digest(tmp_path / "again") == digest(folder) and again.fingerprint == catalogue.fingerprint
    )
    assert listings.truth(tmp_path / "again").equals(truth)
    assert (
        listings.make(40, 1, tmp_path / "other", workers=1).fingerprint
        != listings.make(40, 2, tmp_path / "third", workers=1).fingerprint
    )


def test_a_shop_killed_at_a_random_moment_is_gone_on_with(made, tmp_path):
    folder, *_ = made
    cut = str(tmp_path / "cut")
    code = f"from m5lib.shop import listings; listings.make(96, 0, {cut!r}, workers=1)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, start_new_session=True
    )
    parts = tmp_path / "cut" / "parts"
    while not list(parts.glob("*.json")) and child.poll() is None:
        time.sleep(0.05)
    time.sleep(np.random.default_rng().uniform(0, 1))
    os.killpg(child.pid, 9)
    child.wait()
    listings.make(96, 0, tmp_path / "cut", workers=1)
    assert digest(tmp_path / "cut") == digest(folder)


def test_presence_splits_and_instances(made):
    folder, catalogue, truth = made
    catalogue = store.with_sound(catalogue)
    assert catalogue.modalities == tuple(MODALITIES) and not catalogue.skipped
    large = [(listing, category) for listing, category in listings.listings(6000, 48, 0)]
    counts = np.bincount([category for _, category in large])
    assert (
        counts.min() > 0 and counts.max() > 10 * counts.min()
    )  # a long tail, every category there
    by_instance: dict = {}
    for listing, category in large:
        by_instance.setdefault(listing.instance, []).append((listing, category))
    for group in by_instance.values():
        assert len({category for _, category in group}) == 1 and len(
            {listing.merchant for listing, _ in group}
        ) == len(group)
        splits = [listing.split for listing, _ in group]
        assert (
            len(set(splits)) == 1
            or sorted(set(splits)) == ["fine_gallery", "fine_query"]
            and splits.count("fine_query") == 1
        )
    assert not {category for listing, category in large if listing.split == "query"} & set(
        range(5, 48, 6)
    )  # distractors
    rng = np.random.default_rng(0)
    drawn = [listings._presence(rng)[0].split("+") for _ in range(20_000)]
    sizes = np.array([len(names) for names in drawn])
    assert abs(np.mean(sizes < 5) - 0.20) < 0.01 and abs(np.mean(sizes == 1) - 0.01) < 0.004
    rows, _ = evaluate.queries(catalogue, "fine_query")
    gallery, same = evaluate.sought(catalogue, "fine_query")
    assert len(rows) and all(same[row] in set(same[gallery]) for row in rows)


def test_a_shop_that_is_asked_more_trains_on_the_same_products(tmp_path):
    """What is added is for evaluation only: ten listings to find of each fine-grained product, then
    queries and gallery. The rest is as it was; a listing's files follow from it alone."""
    shop = list(listings.listings(600, 12, 0))
    more = list(listings.listings(600, 12, 0, asked=600))
    assert more[:600] == shop and [one.number for one, _ in more] == list(range(1200))
    assert {one.split for one, _ in more[600:]} == {"fine_gallery", "query", "gallery"}
    merchants: dict = {}
    for one, category in more:
        merchants.setdefault((one.instance, category), []).append(one.merchant)
    asked = {(one.instance, category) for one, category in shop if one.split == "fine_query"}
    again = {key: own for key, own in merchants.items() if key in asked}
    assert len(again) > 20 and {len(own) for own in again.values()} == {11}
    assert all(len(set(own)) == len(own) for own in merchants.values())
    old = {one.instance for one, _ in shop}
    further = [
        (one, category) for one, category in more[600:] if (one.instance, category) not in asked
    ]
    assert further and {one.split for one, _ in further} == {"query", "gallery"}
    # the last instance of the shop may have been cut off
    assert {one.instance for one, _ in further} & old <= {shop[-1][0].instance}
    assert not {category for one, category in further if one.split == "query"} & {5, 11}
    few = list(listings.listings(600, 12, 0, asked=7))
    assert few == more[:607]
    catalogue = listings.make(40, 0, tmp_path / "shop", workers=1, asked=6)
    plan = [one.id for one, _ in listings.listings(40, 6, 0, 6)]
    assert sorted(catalogue.ids) == sorted(plan) and len(plan) == 46
    with pytest.raises(DataError, match="holds .*'asked': 6"):
        listings.make(40, 0, tmp_path / "shop")
    assert listings.folder_of(96, 3, 10).name == "shop-96+10-3"
    assert listings.folder_of("small", 3).name == "shop-2400-3"


def test_the_truth_points_at_what_is_there(made):
    folder, catalogue, truth = made
    for product in store.with_sound(catalogue).products:
        row = truth.loc[product.id]
        assert row["category"] == product.label and row["instance"] == product.instance
        for column, name in (
            ("image_box", "image"),
            ("video_spans", "video"),
            ("audio_spans", "audio"),
        ):
            assert bool(len(row[column])) == (name in product.contents)
        if len(row["text_words"]):
            named = " ".join(product.contents["text"].split()[n] for n in row["text_words"])
            kind = next(k for k in facets.BASE if k.name == product.label)
            assert named in (kind.name, kind.synonym, kind.name.split()[-1])
        for n in row["table_pairs"]:
            assert product.contents["table"][n][0] in ("Type", "Kind", "Product type")
        if len(row["image_box"]):
            x1, y1, x2, y2 = row["image_box"]
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1


def test_media_are_what_they_seem(made):
    folder, catalogue, truth = made
    seen = 0
    for product in store.with_sound(catalogue).products[:40]:
        if "video" not in product.contents:
            continue
        track = decoding.probe(product.contents["video"])
        assert track.video.codec == "h264" and 3 <= track.video.seconds <= 6
        assert (track.audio is not None) == ("audio" in product.contents)
        spans = truth.loc[product.id, "video_spans"]
        assert max(end for _, end in spans) <= round(track.video.seconds)
        if product.contents.get("audio", product.contents["video"]).path.suffix == ".mp3":
            mine, its = (decoding.sound(product.contents[name]) for name in ("audio", "video"))
            length = (
                min(len(mine), len(its)) // 1600 - 1
            ) * 1600  # loudness by tenths of a second: the coders' delays differ
            loud = [
                np.abs(samples[:length]).reshape(-1, 1600).mean(axis=1) for samples in (mine, its)
            ]
            assert np.corrcoef(loud)[0, 1] > 0.5
            seen += 1
    assert seen > 5


def test_a_picture_shows_appearance_and_nothing_else():
    kinds = facets.categories(48)
    one = facets.draw(kinds, 3, np.random.default_rng(0))
    from dataclasses import replace

    other = replace(
        one,
        usage="garden",
        material="wood",
        production="carved",
        grams=1,
        points=("x", "y"),
        brand="z",
    )
    drawn = [
        np.asarray(pictures.picture(thing, 1, np.random.default_rng(5))[0])
        for thing in (one, other)
    ]
    assert np.array_equal(*drawn)
    plan = films.timeline(np.random.default_rng(1))
    shown = [
        np.stack(list(films.film(thing, 1, plan, np.random.default_rng(5))))
        for thing in (one, other)
    ]
    heard = [
        sounds.track(thing, 1, plan, np.random.default_rng(5))
        for thing in (one, replace(one, colour="red", shape="hat"), other)
    ]
    assert (
        not np.array_equal(*shown)
        and np.array_equal(heard[0], heard[1])
        and not np.array_equal(heard[0], heard[2])
    )
    card = [t for t in np.arange(0, plan.seconds, 0.5) if plan.at(t) == "card"]
    assert all(
        np.array_equal(shown[0][int(t * films.FPS)], shown[1][int(t * films.FPS)]) for t in card
    )


def test_larger_shops_have_more_categories_and_bad_sizes_say_what_is_known(tmp_path):
    assert (
        listings.size_of("small") == (2400, 48)
        and listings.size_of(1000)[1] == 20
        and listings.size_of(1_000_000)[1] == 624
    )
    assert len({kind.name for kind in facets.categories(624)}) == 624
    with pytest.raises(DataError, match="no size 'huge'; give one of"):
        listings.make("huge")
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="is not empty and holds no shop"):
        listings.make(40, 0, tmp_path)
    listings.make(40, 0, tmp_path / "one", workers=1)
    with pytest.raises(DataError, match="holds .*; give another folder"):
        listings.make(60, 0, tmp_path / "one")
    assert json.loads((tmp_path / "one" / "shop.json").read_text())["products"] == 40


def test_probes_are_no_oracle_and_no_noise(made):
    _, catalogue, _ = made
    catalogue, features = store.extract(catalogue, extractors.PLAIN)
    found = probes.experts(catalogue, features)
    ladder, chance = probes.ladder(found), probes.majority(found)
    assert chance < ladder["text",] < 1.0 and ladder[tuple(MODALITIES)] >= ladder["audio",]
    assert set(found.test) == set(MODALITIES) and len(ladder) == 5 + 10 + 5 + 1
    for name, part in found.train.items():  # out of fold: no surer of these than of others
        own = (found.classes[part.argmax(1)] == found.train_labels).mean()
        assert own < (found.classes[found.test[name].argmax(1)] == found.test_labels).mean() + 0.15
    uniform = {
        name: np.full_like(part, -np.log(part.shape[1])) for name, part in found.test.items()
    }
    silent = {
        name: np.full_like(part, -np.log(part.shape[1])) for name, part in found.train.items()
    }
    blind = found._replace(
        train=silent | {"text": found.train["text"]}, test=uniform | {"text": found.test["text"]}
    )
    assert probes.together(blind, MODALITIES) == probes.together(
        found, ["text"]
    )  # what tells nothing changes nothing
