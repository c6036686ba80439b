"""Extractors chosen by words, carried by features and models, made again elsewhere."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from make_media import pictures, put
from make_products import spoiled
from make_release import write_features
from torch import nn

from m5lib import figures, search
from m5lib.catalogue import Catalogue, DataError, Product
from m5lib.data import networks, store
from m5lib.data.backbones import absolute, agreed, choose, extractor_of
from m5lib.data.extractors import PLAIN, Crops, LogMel, Mfcc, described, settings
from m5lib.data.m5features import OFFICIAL
from m5lib.data.networks import Regions
from m5lib.figures import attribution
from m5lib.figures.maps import thumbnails
from m5lib.figures.tokens import drawable
from m5lib.lab import runs
from m5lib.model import Model
from m5lib.streams import Ragged, Streams, computed

WIDTHS = {"image": 2048, "video": 1024}


class Backbone(nn.Module):
    """One convolution, so that a detector takes milliseconds."""

    out_channels = 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=8)

    def forward(self, x):
        return {"0": self.conv(x)}


def small_detector(state: dict):
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.rpn import AnchorGenerator

    return FasterRCNN(
        Backbone(),
        num_classes=None,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        box_head=TwoMLPHead(8 * 7 * 7, 1024),
        box_predictor=FastRCNNPredictor(1024, len(state["roi_heads.box_predictor.cls_score.bias"])),
        rpn_post_nms_top_n_test=20,
    )


#: What a state dict says of the number of classes.
FOUR = {"roi_heads.box_predictor.cls_score.bias": [0] * 4}


@pytest.fixture
def detector(tmp_path, monkeypatch) -> Path:
    """Weights of a small detector in place of the library's large one."""
    monkeypatch.setattr(networks, "_faster_rcnn", small_detector)
    torch.manual_seed(0)
    torch.save(small_detector(FOUR).state_dict(), tmp_path / "detector.pt")
    return tmp_path / "detector.pt"


def test_words_choose_extractors(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"1")
    assert choose("") == PLAIN and choose("image=crops,audio=mfcc") == PLAIN
    assert choose("audio=logmel") == PLAIN | {"audio": LogMel()} and choose("", {}) == {}
    assert choose("image=official, video=official,audio=official") == OFFICIAL
    assert choose("audio=mfcc:coefficients=13:seconds=3")["audio"] == Mfcc(
        coefficients=13, seconds=3.0
    )
    chosen = choose(f"image=regions:{tmp_path / 'w.pt'}:side=64:device=cuda")["image"]
    assert chosen == Regions(side=64, weights=tmp_path / "w.pt") and chosen.device == "cuda"
    own = {"image": Crops(levels=(1,))}
    assert choose(own) == own
    for words, says in (
        (
            "image=cropss",
            "'image=cropss' is unknown; known are image=crops|pixels|regions",
        ),
        ("smell=nose", "known are image="),
        ("crops", "known are image="),
        ("image=crops:there", "'there' in 'image=crops:there' is no setting of Crops, which has"),
        ("image=regions:none.pt", "none.pt: no such file or folder; give the path of the weights"),
        ("audio=mfcc:bands=many", "bands in 'audio=mfcc:bands=many' must be int"),
        ("image=crops,image=pixels", "image is chosen twice"),
    ):
        with pytest.raises(DataError, match=says.replace("|", r"\|")):
            choose(words)


def test_a_process_that_works_elsewhere_finds_the_weights(tmp_path, monkeypatch):
    (tmp_path / "w.pt").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    found = absolute("image=regions:w.pt:side=64,audio=logmel")
    assert found == f"image=regions:{tmp_path / 'w.pt'}:side=64,audio=logmel"


def test_an_extractor_is_made_again_from_its_settings(tmp_path):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"a" * 100_000)
    for extractor in (*PLAIN.values(), *OFFICIAL.values(), Regions(side=64, weights=weights)):
        made = json.loads(json.dumps(described(extractor)))
        assert extractor_of(made) == extractor and computed(made) == settings(extractor)
    # Hints say nothing of what is computed; the whole file of weights counts, and only its content.
    other = shutil.copy(weights, tmp_path / "copy.pt")
    moved = described(Regions(side=64, weights=other))
    assert moved != made and computed(moved) == computed(made)
    weights.write_bytes(b"a" * 50_000 + b"b" + b"a" * 49_999)
    with pytest.raises(DataError, match=r"w\.pt: weights of checksum .* but Regions was used with"):
        extractor_of(made)
    weights.unlink()
    with pytest.raises(DataError, match=r"they were at .*w\.pt, where nothing is now"):
        extractor_of(made)
    there = agreed({"image": made, "audio": described(Mfcc())}, f"image=regions:{other}:side=64")
    assert there == {"image": Regions(side=64, weights=other), "audio": Mfcc()}
    with pytest.raises(DataError, match=r"are those of Regions\(.*side=64.*not of Crops\("):
        agreed({"image": made}, "image=crops")
    with pytest.raises(DataError, match=r"Mine is not one of the library's extractors \(Crops"):
        extractor_of(made | {"extractor": "Mine"})


def test_features_say_what_made_them(tmp_path):
    catalogue = pictures(tmp_path, 3)
    stored = store.extract(catalogue, PLAIN)[1]["image"]
    assert stored.settings == described(PLAIN["image"]) and stored.step is None
    assert store.Ragged(stored.values, stored.offsets).step is None


def test_a_model_refuses_the_features_of_another_extractor(catalogue, stream_set):
    def streams(**given):
        some = replace(catalogue, products=catalogue.products[:24])
        return Streams(*store.extract(some, {"image": Crops(**given)}), stream_set.tokenizer)

    ours = streams()
    model = runs.untrained(runs.Job(), ours)
    assert model.extractors == {"image": described(Crops())}
    model(ours.batch([0, 1]))
    with pytest.raises(ValueError, match=r"of Crops\(.*levels=\[1\].*trained on.*\[1, 2, 3\]"):
        model(streams(levels=(1,)).batch([0, 1]))
    with pytest.raises(ValueError, match=r"99, 3.* 99 wide|99 wide, but the model was trained on"):
        model(streams(cells=3).batch([0, 1]))
    with pytest.raises(DataError, match=r"those of Crops\(.*not of Pixels\("):
        runs.untrained(runs.Job(extractors="image=pixels"), ours)


def test_a_detector_by_its_path_trains_a_model_that_is_asked_with_a_picture(
    folder, detector, tmp_path, monkeypatch
):
    """Weights by path, rows that say so, a saved model that is asked with a new picture, and what
    happens when the weights move."""
    monkeypatch.setenv("M5_HOME", str(tmp_path / "home"))
    tiny = runs.PROFILES["tiny"]
    short = replace(tiny, training=replace(tiny.training, epochs=1))
    monkeypatch.setitem(runs.PROFILES, "tiny", short)
    spoiled(folder, tmp_path / "shop", broken=3, limit=60)
    table, words = tmp_path / "shop" / "products.csv", f"image=regions:{detector}:side=64"
    index = search.build(table, profile="tiny", extractors=words)
    made = index.model.extractors["image"]
    assert made["extractor"] == "Regions" and made["side"] == 64
    assert made["hints"] == {"weights": str(detector)}
    job = runs.Job("tiny", "scale_fused", extractors=words, epochs=0.0)  # as notebook 05 says it
    run = runs.pretrained(job, index.streams)
    assert run.name == index.made["model"]  # loaded: the same run
    named = run.context("05_downstream", job, index.catalogue)["data"]
    assert named == f"products (image=Regions:{made['weights'][:8]})" == index.made["data"]
    assert index.made["extractors"] == words
    plain = runs.Job("tiny").plan(runs.streams_of(*runs.load(table, short), short)).folder
    assert plain.name != run.name

    saved = shutil.copytree(run.folder, tmp_path / "saved")
    loaded = search.build(table, model=saved, profile="tiny")
    picture = sorted((tmp_path / "shop" / "media").glob("*"))[5]
    hits, again = (i.search(image=picture, top=3) for i in (index, loaded))
    assert hits.rows.tolist() == again.rows.tolist() and np.allclose(hits.cosines, again.cosines)

    moved = detector.rename(tmp_path / "moved.pt")
    with pytest.raises(DataError, match=r"detector\.pt, where nothing is now; say where"):
        search.build(table, model=saved, profile="tiny")
    there = search.build(
        table, model=saved, profile="tiny", extractors=f"image=regions:{moved}:side=64"
    )
    assert there.search(image=picture, top=3).rows.tolist() == hits.rows.tolist()
    assert Model.from_pretrained(saved).extractors["image"]["weights"] == made["weights"]


def draws_without_media(catalogue, streams):
    """Features in their place cannot be decoded: said, and the rest is drawn."""
    (place,) = figures.gallery(catalogue, [0], columns=1).axes
    assert re.fullmatch(r"no picture\n\([\w+]+\)", place.texts[0].get_text())
    below = figures.neighbours(catalogue, [0], np.array([[1]]), None).axes[1].texts[0].get_text()
    title = "\n\n" + figures.catalogue.title_of(catalogue.products[1])  # once: else it is above
    assert below.endswith(title if catalogue.labels[1] else ")")
    front = figures.front(catalogue, 0, [1], np.eye(len(catalogue)), [True], "r")
    said = [text.get_text() for axes in front.axes for text in axes.texts]
    assert said.count("features") == 2 and "absent" in said
    assert len(set(thumbnails([p.contents["image"] for p in catalogue.products]))) == 1
    assert not {"image", "video"} & set(drawable(streams, 0)) and "text" in drawable(streams, 0)
    scores = {n: np.ones(s.valid.shape[1]) for n, s in streams.batch([0]).streams.items()}
    bars = attribution.product(streams, 0, scores, {"image": 1.0}, "t")
    drawn = [len(axes.containers[0]) for axes in bars.axes if axes.containers]
    assert drawn == [3, 3, 1]  # of image, of video; Shapley values


@pytest.mark.parametrize("annotated", [False, True])
def test_official_features_are_a_choice(annotated, tmp_path, monkeypatch):
    """Where there are no media, with and without the annotation; what is not chosen is decoded."""
    monkeypatch.setenv("M5_HOME", str(tmp_path / "home"))
    rng, ids = np.random.default_rng(0), [f"6{n:05}" for n in range(40)]
    products = tuple(Product(i, {"text": f"bag {n % 4}"}) for n, i in enumerate(ids))
    offsets = np.arange(41) * 3
    values = {n: rng.normal(size=(120, w)).astype(np.float16) for n, w in WIDTHS.items()}
    boxes = np.tile(np.array([0, 0, 0.5, 0.5, 0.25], np.float16), (120, 1))
    given = {n: Ragged(v, offsets, boxes if n == "image" else None) for n, v in values.items()}
    write_features(tmp_path / "release", Catalogue("c", products), given)
    if annotated:
        record = {"title": "bag", "pv": "colour#:#red", "label": "bags"}
        put(tmp_path / "release" / "product5m_v2" / "id_label.json", dict.fromkeys(ids, record))
    tiny, words = runs.profile_of("tiny"), "image=official,video=official"
    catalogue, features = runs.load(tmp_path / "release", tiny, 0, words)
    assert len(catalogue) == 40 and ("table" in catalogue.modalities) == annotated
    for name, ragged in features.items():
        assert ragged.settings == described(OFFICIAL[name])
        assert np.array_equal(np.asarray(ragged.values), values[name])
    assert features["video"].step == 1.0 and "audio" not in features
    streams = runs.streams_of(catalogue, features, tiny)
    draws_without_media(catalogue, streams)
    job = runs.Job("tiny", epochs=0.1, extractors=words)
    named = runs.pretrained(job, streams).context("05", job, catalogue)["data"]
    assert named == f"{catalogue.name} (image=StoredRegions, video=StoredRows)"
    monkeypatch.setattr(runs.listings, "make", None)  # hours of rendering, for nothing
    with pytest.raises(DataError, match="the shop has media.*leave out 'official'"):
        runs.load("shop", tiny, 0, words)
