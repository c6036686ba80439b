"""Search, near-duplicates and explanations over products of one's own: what a user relies on."""

import json
import shutil
from collections import Counter
from copy import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from make_media import file_of, write_video
from make_products import spoiled
from matplotlib.colors import to_rgba
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from m5lib import search
from m5lib.catalogue import DataError
from m5lib.data import MediaFile, readers
from m5lib.data.backbones import choose
from m5lib.data.decoding import MediaError, open_image
from m5lib.embeddings import ACROSS, DEFAULT, embeddings
from m5lib.evaluation import evaluate
from m5lib.figures.style import QUIET, RIGHT, WRONG
from m5lib.lab import runs
from m5lib.modalities import MODALITIES
from m5lib.model import Model
from m5lib.models import zoo
from m5lib.search import encode, intake
from m5lib.search.across import answering, asking, one_scale
from m5lib.search.encode import unit
from m5lib.search.index import WAYS
from m5lib.search.reasons import _words, explain
from m5lib.streams import Streams


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def index(folder, home):
    """Adapted on 120 products, of which some lack something, for long enough to have learned what a
    word is."""
    tiny = runs.PROFILES["tiny"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M5_HOME", str(home))
        patch.setitem(
            runs.PROFILES, "tiny", replace(tiny, training=replace(tiny.training, steps=120))
        )
        spoiled(folder, home / "shop", broken=6, limit=120)
        return search.build(home / "shop" / "products.csv", profile="tiny")


def with_products(index, products):
    """The same index, whose products are called otherwise."""
    streams = copy(index.streams)
    streams.catalogue = replace(index.catalogue, products=products)
    return replace(index, streams=streams)


def test_vectors_in_parquet_and_back(index, tmp_path):
    path = index.save(tmp_path / "out")
    table = pq.read_table(path)
    assert table["id"].to_pylist() == list(index.catalogue.ids) and table.num_rows == 120
    for readout in (DEFAULT, ACROSS):
        assert str(table.schema.field(readout).type).startswith("fixed_size_list")
        np.testing.assert_array_equal(np.stack(table[readout].to_numpy()), index.vectors[readout])
    made = json.loads(table.schema.metadata[b"m5lib"])
    assert (
        made["model"].startswith("scale_fused-I+T+Tab-")
        and made["fingerprint"] == index.catalogue.fingerprint
        and made["profile"] == "tiny"
    )
    assert {"report.csv", "rows.csv", "report.json", "embeddings.parquet"} == {
        file.name for file in (tmp_path / "out").iterdir()
    }


def test_words_find_what_they_say(index):
    hits = index.search(5, text="Acme Men Red Watch")
    assert list(index.catalogue.labels[hits.rows]).count("Watch") >= 4
    assert (np.diff(hits.cosines) <= 1e-12).all() and hits.query.contents == {
        "text": "Acme Men Red Watch"
    }
    table = index.table(hits)
    assert list(table.index) == [1, 2, 3, 4, 5] and table["title"].str.contains("Watch").sum() >= 4


@pytest.mark.parametrize("way", WAYS)
def test_a_product_that_asks_with_all_it_has_finds_itself(index, way):
    place = int(np.flatnonzero(index.catalogue.presence[["image", "text", "table"]].all(axis=1))[0])
    product = index.catalogue.products[place]
    contents = {
        name: dict(content) if isinstance(content, tuple) else content
        for name, content in product.contents.items()
    }
    hits = index.search(3, way, **contents)
    assert hits.rows[0] == place and hits.cosines[0] == pytest.approx(1.0, abs=1e-4)
    assert product.id not in index.catalogue.ids[index.like(product.id, way=way).rows]


def on_one_scale(cosines, asked, own, gallery, sets):
    """Slowly: each set's median, and how far its best hundredth is from it, become those of the
    most frequent set."""
    named = ["".join(map(str, row.astype(int))) for row in sets]
    by_set = {name: [] for name in named}
    for vector, row in zip(unit(asked), own, strict=True):
        for other, product in enumerate(unit(gallery)):
            if other != row:
                by_set[named[other]].append(float(vector @ product))
    middle = {name: np.quantile(x, 0.5) for name, x in by_set.items()}
    reach = {name: np.quantile(x, 0.99) - middle[name] for name, x in by_set.items()}
    usual = np.mean([reach[name] for name in named])
    for name, count in Counter(named).items():
        reach[name] = (count * reach[name] + 10 * usual) / (count + 10)
    most = max(reach, key=named.count)
    shares = [(x - middle[n]) / reach[n] for x, n in zip(cosines, named, strict=True)]
    return middle[most] + np.array(shares) * reach[most]


def test_the_ways_are_what_their_table_says(index):
    names, rows = ("text",), np.arange(len(index.catalogue))
    query = index.catalogue.products[5].contents["text"]
    mine = embeddings(index.model, index.streams, rows, names, (DEFAULT, ACROSS))
    every = embeddings(index.model, index.streams, rows, readouts=[ACROSS])[ACROSS]
    gallery = {DEFAULT: mine[DEFAULT], ACROSS: every}
    for vectors in (mine, gallery):
        vectors["both"] = np.hstack([unit(vectors[DEFAULT]), unit(vectors[ACROSS])])
    presence = index.catalogue.presence[list(index.streams.modalities)].to_numpy()
    words = rows[index.catalogue.presence["text"].to_numpy()]
    assert len(words) < 300 and len(np.unique(presence, axis=0)) > 2
    for way in WAYS:
        cosine = unit(gallery[way]) @ unit(mine[way][5:6])[0]
        if way != DEFAULT:
            cosine = on_one_scale(cosine, mine[way][words], words, gallery[way], presence)
        best = np.argsort(-cosine, kind="stable")[:6]
        found = index.search(6, way, text=query)
        np.testing.assert_allclose(found.cosines, cosine[best], atol=1e-4)
        assert (np.diff(found.cosines) <= 0).all()
    listed = index.search(200, DEFAULT, text=query).rows
    assert set(listed) == set(words)  # no words, not found by words
    assert len(index.search(200, ACROSS, text=query).rows) == 120


def test_who_lacks_something_does_not_win_by_it():
    """Titles beside what two thirds of the products show as well: by plain cosines the bare third
    takes nearly all places, on one scale its share; each keeps its order."""
    rng = np.random.default_rng(0)
    what, gap = rng.normal(size=(900, 32)), 4 * rng.normal(size=(2, 32))
    groups = np.arange(900) % 3
    titles = what + gap[0]
    shown = (titles + what + gap[1]) / 2
    gallery = np.where(groups[:, None] == 0, titles, shown)
    own = np.arange(0, 900, 5)
    scale = one_scale(titles[own], own, gallery, groups)
    plain = unit(titles[own]) @ unit(gallery).T
    fair = asking(titles[own]) @ answering(gallery, scale).T
    np.testing.assert_allclose(fair, plain * scale[:, 0] + scale[:, 1], atol=1e-5)
    shares = []
    for scores in (plain, fair):
        scores[np.arange(len(own)), own] = -9
        shares.append((groups[np.argsort(-scores, axis=1)[:, :9]] == 0).mean())
    assert shares[0] > 0.9 and 0.25 < shares[1] < 0.42, shares
    for group in range(3):
        inside = groups == group
        one, other = (np.argsort(-x[:, inside], axis=1) for x in (plain, fair))
        np.testing.assert_array_equal(one, other)
    lengths = np.linalg.norm(answering(gallery, scale), axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)
    gallery[7] = 0
    assert not answering(gallery, scale)[7].any() and not asking(gallery)[7].any()


@pytest.mark.parametrize("bare, usual", [(400, 1), (0, 1), (600, 0)])
def test_the_scale_is_that_of_products_that_can_ask(bare, usual):
    """The largest group shows no titles: no query of titles looks like it."""
    x, groups = np.random.default_rng(0).normal(size=(600, 8)), np.arange(600) % 3
    groups = np.where(np.arange(600) < bare, 0, 1 + (groups == 0))
    own = np.arange(590, 600) if bare == 600 else np.flatnonzero(groups)[::5]
    scale = one_scale(x[own], own, x, groups)
    np.testing.assert_allclose(
        scale[groups == usual], [[1, 0]] * (groups == usual).sum(), atol=1e-6
    )


def test_where_all_have_the_same_modalities_a_cosine_stays_as_it_is(index):
    x, rows = index.vectors[ACROSS], np.arange(len(index.streams))
    for groups in (np.zeros(len(x), int), np.full(len(x), 3)):
        np.testing.assert_array_equal(one_scale(x[:9], rows[:9], x, groups), [[1, 0]] * len(x))
    alone = one_scale(x[:1], rows[:1], x[:1], np.array([0]))  # no other to compare with
    np.testing.assert_array_equal(alone, [[1, 0]])


def test_the_best_way_is_the_one_of_validation_products(index):
    found = index.evidence(("text",))
    assert set(found) == set(WAYS) and all(0 < value <= 1 for value in found.values())
    assert index.best(("text",)) == max(found, key=found.get)
    v = runs.vectors(index.model, index.streams, range(120), ("text",), [DEFAULT])[DEFAULT]
    slow = evaluate.retrieval(index.catalogue, v, "validation", given=(("text",), ("text",)))
    assert found[DEFAULT] == pytest.approx(
        next(n["value"] for n in slow if (n["metric"], n["convention"]) == ("mAP@10", "min_k_r"))
    )
    bare = replace(
        index.catalogue, products=tuple(replace(p, label=None) for p in index.catalogue.products)
    )
    streams = Streams(bare, index.streams.features, index.model.tokenizer, spec=index.model.spec)
    unlabelled = search.Index(index.encoder, streams, index.vectors, index.made)
    assert (
        unlabelled.best(("text",)) == "both"
        and unlabelled.picture(unlabelled.search(text="Red Watch")).axes
    )


def test_bad_questions_get_one_clear_error(index, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    for contents, error, says in (
        ({}, ValueError, "the query is empty; give one or more of image, text, table"),
        ({"text": ""}, ValueError, "the query is empty"),
        ({"smell": "x"}, ValueError, "unknown modality"),
        ({"video": "a.mp4"}, ValueError, "no video: the model reads only image, text, table"),
        ({"image": "gone.jpg"}, DataError, "gone.jpg: no such file"),
        ({"image": broken}, DataError, r"^nothing can be read of the query \(not a picture"),
        ({"image": broken, "text": "x"}, DataError, "broken.jpg: not a picture"),
        (
            {"table": {"colour": "Red"}},
            ValueError,
            "no product has an attribute .'colour'.; the most frequent are",
        ),
        (
            {"text": "x", "way": "sideways"},
            ValueError,
            "unknown way 'sideways' to compare: known are",
        ),
    ):
        with pytest.raises(error, match=says):
            index.search(**contents)
    with pytest.raises(KeyError, match="no product 'x'"):
        index.like("x")


def test_near_duplicates_are_all_pairs_above_the_threshold(index):
    v = index.details.astype(np.float64)
    u = v / np.linalg.norm(v, axis=1, keepdims=True)
    cosine, ids = u @ u.T, index.catalogue.ids
    for threshold in (0.5, 0.8, 2.0):
        one, other = np.nonzero(np.triu(cosine >= threshold, 1))
        found = index.duplicates(threshold)
        assert set(zip(found["id"], found["other"], strict=True)) == set(
            zip(ids[one], ids[other], strict=True)
        )
        assert list(found["cosine"]) == sorted(found["cosine"], reverse=True)
    every, few = index.duplicates(0.5), index.duplicates(0.5, most=5)
    assert few.equals(every.head(5)) and every.attrs["pairs"] == len(every) > 5
    assert few.attrs["pairs"] == pytest.approx(
        len(every), abs=5
    )  # some cosines are 0.5 but for rounding
    copies = index.copies(count=64)
    assert (
        len(copies) == 64
        and (copies <= 1 + 1e-9).all()
        and np.array_equal(copies, index.copies(count=64))
    )
    assert np.median(index.copies(0.1, 64)) > np.median(index.copies(0.6, 64))
    assert index.copies(0.0, 8) == pytest.approx(np.ones(8), abs=1e-5)


def test_a_model_from_a_folder_and_for_more_than_the_products_have(
    index, home, folder, tmp_path, monkeypatch
):
    """Products with words only, a model that reads pictures too."""
    monkeypatch.setenv("M5_HOME", str(home))
    frame = (
        pd.read_csv(home / "shop" / "products.csv", dtype=str)
        .dropna(subset=["id"])
        .drop_duplicates("id")
        .head(30)
    )
    frame[["id", "title", "gender"]].to_csv(tmp_path / "words.csv", index=False)
    where = runs.home("runs", index.made["model"])
    other = search.build(tmp_path / "words.csv", where, profile="tiny")
    assert (
        other.made["model"] == where.name
        and other.streams.modalities == ("text", "table")
        and len(other.catalogue) <= 30
    )
    picture = next(p.contents["image"] for p in index.catalogue.products if "image" in p.contents)
    assert len(other.search(3, ACROSS, image=picture.path).rows) == 3
    with_title = [p.contents["text"] for p in other.catalogue.products if "text" in p.contents]
    assert (
        other.catalogue.products[other.search(1, DEFAULT, text=with_title[0]).rows[0]].contents[
            "text"
        ]
        == with_title[0]
    )


def test_a_model_that_reads_less_than_the_products_have(index, home, folder, tmp_path, monkeypatch):
    """Their films are not opened, nor said to be read; products are asked for by what it reads."""
    monkeypatch.setenv("M5_HOME", str(home))
    frame = pd.read_csv(home / "shop" / "products.csv", dtype=str).dropna(subset=["id", "title"])
    frame = frame.drop_duplicates("id").head(30)[["id", "title"]].assign(video="bad.mp4")
    frame.iloc[3:5, 1] = None
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    frame.to_csv(tmp_path / "films.csv", index=False)
    where = runs.home("runs", index.made["model"])
    other = search.build(tmp_path / "films.csv", where, profile="tiny", seed=7)
    own = other.report.products
    assert set(own["video"]) == {intake.UNREAD} and set(own["text"]) == {"read", ""}
    assert list(other.report.modalities.loc["video"][:3]) == [0, 0, len(own)]
    first = other.catalogue.products[0]
    np.testing.assert_allclose(
        other.similarity(other.encode([first])[0], other.vectors[DEFAULT][0]), 1, atol=1e-4
    )
    assert len(other.like(first.id).query.contents) == 1
    text = other.picture(other.like(first.id, 2)), explain(other, other.like(first.id)).picture()
    assert "video: the model does not read it" in {t.get_text() for t in text[1].texts}
    with pytest.raises(ValueError, match="the product 0 is empty"):
        other.encode(other.catalogue.products[3])
    made = {name: other.made[name] for name in ("profile", "seed", "extractors")}
    assert made == {"profile": "tiny", "seed": 0, "extractors": "image=Crops"}


def test_a_film_whose_sound_is_of_no_use_is_encoded_without_it(index, tmp_path):
    """Nobody gave the sound, so it is no fault of the query; a film that is broken is one."""
    made = choose("")
    spec = replace(zoo.scale(width=16, layers=1, heads=2), modalities=("text", "video", "audio"))
    widths = tuple((name, made[name].width) for name in ("video", "audio"))
    model = Model(replace(spec, widths=widths, vocabulary=len(index.model.tokenizer))).eval()
    model.tokenizer = index.model.tokenizer
    encoder = search.Encoder(model, made)
    film = write_video(tmp_path / "film.mkv", 20, 10, samples=300)
    streams = encoder.streams([encoder.product({"video": film})])
    assert list(streams.catalogue.products[0].contents) == ["video"]
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    with pytest.raises(DataError, match="bad.mp4 of product 1: "):
        encoder.encode([{"video": film}, {"video": tmp_path / "bad.mp4"}])


def test_a_product_may_be_called_query(index):
    """Nothing that is asked has the name of a product."""
    names = ("query", "product 0")
    products = (*(replace(p, id=n) for p, n in zip(index.catalogue.products, names, strict=False)),
                *index.catalogue.products[2:])  # fmt: skip
    other = with_products(index, products)
    for place in range(2):
        contents = {k: getattr(x, "path", x) for k, x in products[place].contents.items()}
        hits = other.search(3, DEFAULT, **contents)
        assert place in hits.rows and hits.cosines[list(hits.rows).index(place)] > 0.99


def test_a_property_may_have_two_values(index):
    given = [("gender", "Men"), ("gender", "Women")]
    one, two, other = index.encode([{"table": x} for x in (given, tuple(given), given[1:])])
    assert index.similarity(one, two).item() == pytest.approx(1, abs=1e-5)
    assert index.similarity(one, other).item() < 0.9999
    assert index.encoder.product({"table": given}).contents["table"] == tuple(given)


def test_other_readouts_are_not_truncated_in_silence(index):
    assert index.encode({"text": "red"}, "layered").shape == index.details.shape[1:]
    with pytest.raises(ValueError, match="truncate_dim with read-out 'layered': give one of"):
        index.encode({"text": "red"}, "layered", 8)


def test_a_query_of_modalities_that_no_product_has_together(index, monkeypatch):
    """Cosines are put on one scale by the products that have some of them."""
    there = index.catalogue.presence.copy()
    there.loc[:, "image"] = np.arange(len(there)) % 2 == 0
    there.loc[:, "text"] = np.arange(len(there)) % 2 == 1
    monkeypatch.setitem(index.catalogue.__dict__, "presence", there)
    part = replace(index, _scale={})
    scale = part.scale(("image", "text"), ACROSS)
    assert not np.allclose(scale, [1, 0]) and np.isfinite(scale).all()


def test_the_report_says_that_a_profile_took_a_part(index, tmp_path):
    whole = index.report
    assert "left aside" not in str(whole) and whole.most == 400
    part = replace(whole, most=len(whole.products))
    assert f"takes {len(whole.products)} products: any others were left aside" in str(part)
    part.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["at most"] == len(whole.products)


def test_too_few_products_and_models_that_do_not_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    pd.DataFrame({"id": list("abcdef"), "title": ["tea pot"] * 6}).to_csv(
        tmp_path / "few.csv", index=False
    )
    with pytest.raises(
        DataError,
        match="few: . of its .+ are for training .*give some 40 products, or `model`",
    ):
        search.build(tmp_path / "few.csv", profile="tiny")
    with pytest.raises(DataError, match="no such folder"):
        search.build(tmp_path / "few.csv", tmp_path / "gone")


def test_a_query_is_a_file_on_disk_or_a_file_of_the_catalogue(index):
    file = next(p.contents["image"] for p in index.catalogue.products if "image" in p.contents)
    assert isinstance(file, MediaFile)
    np.testing.assert_array_equal(
        index.search(image=file).rows, index.search(image=str(file.path)).rows
    )
    assert readers.read(file.path.parent.parent / "products.csv").fingerprint != ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", ["hit", "query"])
def test_an_explanation_adds_up_to_the_cosine_of_the_hit(index, way, side):
    table = {"gender": "Men", "baseColour": "Red"}
    hits = index.search(2, way, text="Acme Men Red Watch", table=table)
    why = explain(index, hits, 1, side)
    assert why.cosine == pytest.approx(
        hits.cosines[1], abs=1e-5
    ) and why.modalities.sum() == pytest.approx(why.cosine, abs=1e-5)
    assert why.error < 0.05 and set(why.tokens["modality"]) <= set(why.modalities.index)
    summed = sum(x.sum() for x in why.scores.values())
    assert summed == pytest.approx(why.cosine - why.hidden, rel=0.05)
    if side == "query":
        words = why.tokens[why.tokens["modality"] == "text"]["token"]
        assert sorted(words) == ["Acme", "Men", "Red", "Watch"]
        assert sorted(why.tokens[why.tokens["modality"] == "table"]["token"]) == [
            "Men",
            "Red",
            "baseColour",
            "gender",
        ]
    if way == DEFAULT:  # by what both have: the rest takes no part
        assert why.modalities.drop(["text", "table"], errors="ignore").abs().sum() == pytest.approx(
            0, abs=1e-6
        )


def test_figures(index):
    hits = index.search(3, text="Blue Scarf")
    assert len(index.picture(hits, index.search(2, text="x")).axes) == 8
    assert [
        explain(index, hits, 0, side).picture("why").axes != [] for side in ("query", "hit")
    ] == [True, True]
    with pytest.raises(ValueError, match="known are hit, query"):
        explain(index, hits, 0, "both")
    asked = index.catalogue.products[hits.rows[0]]
    of = index.like(asked.id, 3)
    unlabelled = tuple(
        replace(p, label=None) if n == of.rows[1] else p
        for n, p in enumerate(index.catalogue.products)
    )
    part = with_products(index, unlabelled)
    colours = [axes.spines["top"].get_edgecolor() for axes in part.picture(of).axes[1:]]
    same = [p.label == asked.label for p in (unlabelled[row] for row in of.rows)]
    expected = [RIGHT if same[0] else WRONG, QUIET, RIGHT if same[2] else WRONG]
    assert colours == [to_rgba(shade) for shade in expected]


def test_products_of_the_catalogue_are_asked_for_and_explained_without_their_files(index, tmp_path):
    def moved(file):
        return replace(file, path=tmp_path / "gone") if isinstance(file, MediaFile) else file

    gone = with_products(
        index,
        tuple(
            replace(p, contents={name: moved(x) for name, x in p.contents.items()})
            for p in index.catalogue.products
        ),
    )
    rows = np.flatnonzero(index.catalogue.presence[["image", "text"]].all(axis=1))
    assert len(rows) > 2
    for row in rows[:2]:
        asked, encoder = index.catalogue.products[row], index.encoder
        read, kept = encoder.streams([asked]), gone.query(gone.catalogue.products[row])
        for readout, own in encoder.embed(kept, [0]).items():
            np.testing.assert_allclose(own, encoder.embed(read, [0])[readout], atol=1e-3)
            np.testing.assert_allclose(own[0], index.vectors[readout][row], atol=1e-3)
        other = index.query(replace(asked, contents={"text": "red mug"}))  # another by its name
        assert other.modalities == ("text",)
        before, after = index.like(asked.id, 4), gone.like(asked.id, 4)
        np.testing.assert_array_equal(before.rows, after.rows)
        np.testing.assert_allclose(before.cosines, after.cosines, atol=1e-4)
        why = [explain(one, hits, 0, "query") for one, hits in ((index, before), (gone, after))]
        np.testing.assert_allclose(*(one.modalities for one in why), atol=1e-3)
        assert why[1].picture().axes and gone.picture(after).axes
    with pytest.raises(DataError, match="gone"):  # a product of no catalogue is read
        gone.nearest(replace(gone.catalogue.products[rows[0]], id=" query"))


def test_a_model_that_imputes_is_not_explained(index):
    hits, spec = index.search(1, text="Blue Scarf"), index.model.spec
    try:
        index.model.spec = replace(spec, missing="impute")
        with pytest.raises(ValueError, match="no modality can be taken away .*; give one with"):
            explain(index, hits)
    finally:
        index.model.spec = spec


def test_words_of_a_title_are_whole_whatever_the_tokenizer():
    """Bytes instead of word pieces: a leading blank is no letter, and no character falls apart."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(["red mug"] * 9, vocab_size=270)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made._tokenizer)
    text = "red handbag 红色"
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert count > 9
    groups, words = _words(text, tokenizer, count)
    assert words == ["red", "handbag", "红色"] and len(groups) == count
    groups, words = _words(text, tokenizer, 3)  # a title that was cut off
    assert len(groups) == 3 and words[0] == "red" and text.startswith(" ".join(words))


def test_words_of_a_title_longer_than_the_model_reads(index):
    """A run of letters that the model reads cut off is other pieces than the whole run."""
    text, tokenizer = " ".join(["shirt" * 22] * 7), index.model.tokenizer
    row = MODALITIES["text"]
    read = tokenizer(text[: 20 * row.max_tokens], add_special_tokens=False)["input_ids"]
    groups, words = _words(text, tokenizer, len(read[: row.max_tokens]))
    assert len(groups) == len(read[: row.max_tokens]) and words[0] == "shirt" * 22


def test_planted_copies_are_found(index, home, tmp_path, monkeypatch):
    """Other ids, a word less in the title, a picture that was saved anew: they are found at the
    label-free threshold, among the first."""
    monkeypatch.setenv("M5_HOME", str(home))
    shutil.copytree(home / "shop" / "media", tmp_path / "media")
    frame = (
        pd.read_csv(home / "shop" / "products.csv", dtype=str)
        .dropna(subset=["id", "title", "image"])
        .drop_duplicates("id")
    )
    whole = frame[frame["id"].isin(index.catalogue.ids[index.catalogue.presence["image"]])]
    twins = whole.head(6).assign(
        id=lambda f: "twin-" + f["id"], title=lambda f: f["title"].str.rsplit(n=1).str[0]
    )
    for name in whole["image"].head(6):
        Image.open(tmp_path / name).save(
            tmp_path / "media" / f"twin-{name.split('/')[1]}", quality=60
        )
    twins["image"] = twins["image"].str.replace("media/", "media/twin-")
    pd.concat([whole, twins]).to_csv(tmp_path / "twice.csv", index=False)
    other = search.build(
        tmp_path / "twice.csv", runs.home("runs", index.made["model"]), profile="tiny"
    )
    pairs = other.duplicates(float(np.quantile(other.copies(), 0.05)))
    found = {a for a, b in zip(pairs["id"], pairs["other"], strict=True) if b == f"twin-{a}"}
    assert len(found) >= 5 and len(pairs) < len(other.catalogue) ** 2 / 8
    first = pairs.head(12)
    assert sum(b == f"twin-{a}" for a, b in zip(first["id"], first["other"], strict=True)) >= 3


def test_queries_as_people_type_them(index, tmp_path):
    assert index.product(text=501).contents == {"text": "501"}
    attribute = index.report.attributes.index[0]
    typed = index.product(table=json.dumps({attribute: 5}))
    assert typed.contents == index.product(table={attribute: "5"}).contents
    assert typed.contents == {"table": ((attribute, "5"),)}
    for empty in ("", "{}", {}, None):
        assert index.product(text="x", table=empty).contents == {"text": "x"}
    for words in ("{colour: red}", "[1, 2]", "red", '"red"', 3, ["red"], ["XL"], '["XL"]'):
        with pytest.raises(ValueError, match='table of the query .*; give attributes as {"colour"'):
            index.product(table=words)
    for picture in (b"bytes", 7):
        with pytest.raises(DataError, match="image of the query is of type .* give the path"):
            index.product(image=picture)
    for array in (np.zeros((9, 9, 3)), np.zeros((3, 9, 9), np.uint8), np.zeros(9, np.uint8)):
        with pytest.raises(DataError, match="image of the query .* give uint8, .H, W. or .H, W, 3"):
            index.product(image=array)
    for top in (0, -1):
        with pytest.raises(ValueError, match="top .*: give a whole number from 1"):
            index.search(top, text="x")


@pytest.mark.parametrize("mode, most", [("I;16", 65535), ("I", 65535), ("I", 200), ("F", 0.5)])
def test_a_picture_of_deep_grey_in_memory_is_what_its_file_is(mode, most, tmp_path):
    """Scaled, not clipped; numbers whose white nobody knows are refused."""
    ramp = np.linspace(0, most, 64, dtype=np.float32).reshape(8, 8)
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    picture = Image.fromarray(ramp.astype(kind))
    assert picture.mode == mode
    picture.save(tmp_path / "a.tiff")
    files = encode._held(picture, "image of the query"), file_of(tmp_path / "a.tiff")
    if mode == "F":
        with pytest.raises(MediaError, match="floating-point"):
            open_image(files[0])
    else:
        held, read = (np.asarray(open_image(file)) for file in files)
        assert (held == read).all() and held.max() > 190 and len(np.unique(held)) > 50


def test_a_single_product_can_be_asked_for_but_finds_no_other(index):
    one = search.Index(
        index.encoder,
        Streams(
            index.catalogue.take([0]),
            {n: f._replace(offsets=f.offsets[:2]) for n, f in index.streams.features.items()},
            index.model.tokenizer,
            spec=index.model.spec,
        ),
        {name: vectors[:1] for name, vectors in index.vectors.items()},
        index.made,
    )
    hits = one.search(text="red shirt")
    assert list(hits.rows) == [0] and one.picture(hits).axes and not len(one.duplicates(0.5))
    with pytest.raises(DataError, match="no other product to compare the query with"):
        one.like(one.catalogue.ids[0])


def test_encode_takes_products_as_they_come(index, tmp_path):
    """A dict, a list with other modalities in each, a product of the catalogue; a picture by path,
    in Pillow or as an array: the vectors of the same products one by one, of unit length."""
    place = int(np.flatnonzero(index.catalogue.presence[["image", "text", "table"]].all(axis=1))[0])
    own = index.catalogue.products[place]
    picture, table = own.contents["image"].path, dict(own.contents["table"])
    shown = Image.open(picture)
    shown.save(tmp_path / "same.png")
    many = [
        {"text": own.contents["text"], "table": table, "image": str(picture)},
        {"text": "red watch"},
        {"image": shown},
        {"image": np.asarray(shown), "text": "", "table": None},
        {"image": tmp_path / "same.png"},
        {"table": json.dumps(table)},
        own,
    ]
    for readout in (DEFAULT, ACROSS):
        vectors = index.encode(many, readout)
        assert vectors.shape == (7, index.vectors[readout].shape[1]) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        for product, vector in zip(many, vectors, strict=True):
            np.testing.assert_allclose(index.encode(product, readout), vector, atol=1e-5)
        stored = index.vectors[readout][place]
        cosines = index.similarity(vectors, stored)[:, 0]
        assert cosines[[0, 6]] == pytest.approx(1.0, abs=1e-4) and cosines[1] < 0.99
        np.testing.assert_allclose(vectors[2], vectors[3], atol=1e-5)
        np.testing.assert_allclose(vectors[2], vectors[4], atol=1e-5)
    slow = [[float(a @ b) for b in vectors[:3]] for a in vectors]
    np.testing.assert_allclose(index.similarity(vectors, vectors[:3]), slow, atol=1e-5)
    for product, error, says in (
        ([{"text": "x"}, {}], ValueError, "the product 1 is empty"),
        ([{"text": "x"}, {"image": "gone.jpg"}], DataError, "gone.jpg: no such file"),
        (["a title"], ValueError, "the product 0 is of type str; give a dict of modalities"),
        ([], ValueError, "no product to encode"),
    ):
        with pytest.raises(error, match=says):
            index.encode(product)


def test_an_encoder_without_products_gives_the_same_vectors(index, home, monkeypatch):
    monkeypatch.setenv("M5_HOME", str(home))
    encoder = search.Encoder.from_pretrained(runs.home("runs", index.made["model"]))
    some = [{"text": "blue scarf"}, {"table": {"gender": "Men"}}]
    np.testing.assert_array_equal(encoder.encode(some), index.encode(some))


def test_truncated_vectors_keep_what_can_be_kept(index):
    """All directions change no cosine; d of them keep more of the inner products than any others;
    search, vectors and explanations are those of the truncated vectors."""
    width = index.vectors[ACROSS].shape[1]
    rows = index.catalogue.split("train")
    x = unit(index.vectors[ACROSS][rows])
    lost = []
    for d in (2, 8, width):
        cut = index.truncate(d)
        assert [cut.vectors[name].shape[1] for name in (ACROSS, DEFAULT)] == [d, d]
        y = index.encode([index.catalogue.products[row] for row in rows], ACROSS, d)
        part = x @ cut.encoder.turned[ACROSS]
        np.testing.assert_allclose(y, unit(part), atol=1e-4)
        lost.append(np.linalg.norm(x @ x.T - part @ part.T))
        best = np.linalg.svd(x)[1] ** 2
        assert lost[-1] == pytest.approx(np.linalg.norm(best[d:]), abs=1e-3)
    assert lost[0] > lost[1] > lost[2]
    names = ("text",)
    whole, cut = index.search(5, ACROSS, text="Red Watch"), index.truncate(width)
    np.testing.assert_allclose(
        whole.cosines, cut.search(5, ACROSS, text="Red Watch").cosines, atol=1e-4
    )
    small = index.truncate(4)
    hits = small.search(3, "both", text="Red Watch")
    for side in ("hit", "query"):
        why = explain(small, hits, 0, side)
        assert why.modalities.sum() == pytest.approx(hits.cosines[0], abs=1e-4)
    assert set(small.evidence(names)) == set(WAYS) and small.made["truncate_dim"] == 4
    twice = small.truncate(2)  # of vectors that are truncated already
    own = index.catalogue.products[3]
    np.testing.assert_allclose(
        index.similarity(twice.encode(own), twice.vectors[DEFAULT][3]), 1, atol=1e-3
    )
    for wrong in (0, -1, index.vectors[DEFAULT].shape[1] + 1):
        with pytest.raises(ValueError, match="truncate_dim .*: give a whole number from"):
            index.truncate(wrong)
