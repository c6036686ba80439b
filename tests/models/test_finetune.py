import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from m5lib import streams
from m5lib.catalogue import Catalogue, DataError
from m5lib.data import backbones, store
from m5lib.data.extractors import Crops
from m5lib.embeddings import READOUTS, embeddings
from m5lib.evaluation import evaluate
from m5lib.evaluation.evaluate import fit_whitening
from m5lib.lab import recording, runs
from m5lib.model import Model
from m5lib.models import finetune, zoo
from m5lib.models.finetune import Classifier, classify, labels_of
from m5lib.pretrain import Training, pretrain

TRAINING = Training(steps=6, batch_size=32, learning_rate=1e-3, checkpoint_seconds=0.0)


def fresh(stream_set, name="scale", seed=0, **settings) -> Classifier:
    torch.manual_seed(seed)
    model = Model(
        zoo.build(name, **{"width": 16, "layers": 1, "heads": 2} | settings).fit(stream_set)
    )
    return Classifier(model, labels_of(stream_set), hidden=24)


def without_speed(history):
    return [{k: v for k, v in line.items() if k != "products_per_second"} for line in history]


def test_head_is_two_linear_layers_over_the_summaries(stream_set):
    classifier = fresh(stream_set).eval()
    batch = stream_set.batch(np.arange(8)).only(["image", "text"])
    hidden, logits = classifier(batch)
    output = classifier.model(batch)
    together = torch.cat([output.summary[name] for name in ("image", "text", "table")], 1)
    assert together[:, 32:].abs().sum() == 0  # the table is not given
    torch.testing.assert_close(
        hidden, together @ classifier.hidden.weight.T + classifier.hidden.bias
    )
    torch.testing.assert_close(logits, hidden @ classifier.out.weight.T + classifier.out.bias)
    assert Classifier(classifier.model, ["a", "b"]).hidden.out_features == 1024


def test_the_head_drops_out_in_training_only(stream_set):
    """A tenth of the hidden vector, and nothing of what is measured."""
    classifier, batch = fresh(stream_set, dropout=0.0), stream_set.batch(np.arange(8))
    one, two = (classifier.train()(batch) for _ in range(2))
    assert one[0].equal(two[0]) and not one[1].equal(two[1])
    one, two = (classify(classifier, stream_set, np.arange(8)) for _ in range(2))
    assert (one[0] == two[0]).all() and (one[1] == two[1]).all() and classifier.training


@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_whole_network_of_every_row_is_tuned(name, stream_set, tmp_path):
    classifier = fresh(stream_set, name)
    before = {n: p.clone() for n, p in classifier.named_parameters()}
    history = finetune.finetune(
        classifier, stream_set, Training(steps=2, batch_size=16, warmup=0.0), tmp_path
    )
    moved = {n for n, p in classifier.named_parameters() if not p.equal(before[n])}
    rest = {n.split(".")[1] for n in before if n not in moved}
    assert rest <= {
        "heads",
        "matchers",
        "poolers",
        "log_temperature",
    }  # of pre-training, not of this
    assert len(history) == 2 and 0 <= history[0]["accuracy"] <= 1


def test_a_killed_run_resumes(stream_set, tmp_path):
    whole, parts = fresh(stream_set), fresh(stream_set)
    expected = finetune.finetune(whole, stream_set, TRAINING, tmp_path / "whole")
    finetune.finetune(parts, stream_set, TRAINING, tmp_path / "parts", stop_after=3)
    parts = fresh(stream_set, seed=9)
    found = finetune.finetune(parts, stream_set, TRAINING, tmp_path / "parts")
    assert without_speed(found) == without_speed(expected) and len(found) == 6
    assert all(
        one.equal(two) for one, two in zip(whole.parameters(), parts.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="belongs to another run"):
        finetune.finetune(fresh(stream_set, width=32), stream_set, TRAINING, tmp_path / "parts")


def test_it_learns_and_is_evaluated_by_its_own_head(stream_set, tmp_path):
    classifier, catalogue = fresh(stream_set, width=32), stream_set.catalogue
    history = finetune.finetune(
        classifier, stream_set, Training(steps=60, batch_size=32, learning_rate=3e-3), tmp_path
    )
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    rows = evaluate.needed_rows(catalogue)
    vectors, labels = runs.tuned_vectors(classifier, stream_set, rows)
    numbers = evaluate.evaluate(catalogue, vectors, predicted=labels)
    found = {(n["task"], n["metric"], n["convention"]): n["value"] for n in numbers}
    test = catalogue.split("query")
    assert (
        found["classification", "accuracy", "fine-tuned head"]
        == np.mean(labels[test, 0] == catalogue.labels[test])
        > 0.8
    )
    top = np.mean(
        [label in five for label, five in zip(catalogue.labels[test], labels[test], strict=True)]
    )
    assert found["classification", "accuracy@5", "fine-tuned head"] == top and labels.shape == (
        len(catalogue),
        len(classifier.labels),
    )
    logits = classifier.eval()(stream_set.batch(test))[1].detach()
    assert (
        labels[test].tolist()
        == np.array(classifier.labels)[logits.argsort(descending=True).numpy()].tolist()
    )
    assert found["retrieval", "mAP@10", "min_k_r"] > 0.7
    context = {
        "notebook": "t",
        "run": "r",
        "data": "d",
        "profile": "tiny",
        "seed": 0,
        "model": "scale",
        "modalities": "I+T+Tab",
    }
    assert recording.rows(numbers, context, state="finetuned", variant="")


def test_saved_and_loaded_classifiers_are_the_same(stream_set, tmp_path):
    classifier = fresh(stream_set).eval()
    loaded = Classifier.from_pretrained(classifier.save_pretrained(tmp_path))
    rows = np.arange(10)
    for one, two in zip(
        classify(classifier, stream_set, rows), classify(loaded, stream_set, rows), strict=True
    ):
        assert (one == two).all()
    assert loaded.labels == classifier.labels and loaded.dropout.p == 0.1


def test_without_labels_nothing_is_tuned(stream_set, tmp_path):
    torch.manual_seed(0)
    other = Classifier(fresh(stream_set).model, ["no such label"])
    with pytest.raises(DataError, match="nothing to fine-tune on"):
        finetune.finetune(other, stream_set, TRAINING, tmp_path)


def test_a_run_is_tuned_once_and_then_loaded(stream_set, tmp_path, monkeypatch):
    job = runs.Job("tiny", epochs=0.2, changes=(("objective.contrast", "siglip"),))
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    run = runs.pretrained(job, stream_set)
    assert (
        run.model.spec.objective.contrast == "siglip" and job.plan(stream_set).folder == run.folder
    )
    classifier = runs.finetuned(run, job, stream_set)
    monkeypatch.setattr(runs, "finetune", None)  # not again
    again = runs.finetuned(run, job, stream_set)
    assert all(
        one.equal(two.to(one))
        for one, two in zip(classifier.parameters(), again.parameters(), strict=True)
    )
    (folder,) = run.folder.glob("finetuned-*")
    assert not (folder / "checkpoint.pt").exists()
    tiny = runs.PROFILES["tiny"]
    longer = replace(tiny, tuning=replace(tiny.tuning, epochs=9))
    monkeypatch.setitem(runs.PROFILES, "tiny", longer)
    with pytest.raises(TypeError, match="not callable"):  # tuned otherwise: it is another
        runs.finetuned(run, job, stream_set)


# --- what travels with a model
# ------------------------------------------------------------------------------------------------


def test_a_saved_model_brings_all_that_embeddings_need(stream_set, catalogue, tmp_path):
    """Weights, whitening, tokenizer and extractors: another process starts from the products
    alone."""
    extractors = {"image": Crops(levels=(1, 2), cells=3)}
    found = streams.Streams(
        *store.extract(Catalogue("some", catalogue.products[:30]), extractors), stream_set.tokenizer
    )
    torch.manual_seed(0)
    model = Model(zoo.scale(width=16, layers=1, heads=2).fit(found))
    model.tokenizer = found.tokenizer
    model.extractors = {name: store.settings(each) for name, each in extractors.items()}
    fit_whitening(model, found, range(30))
    model.save_pretrained(tmp_path / "model")
    loaded = Model.from_pretrained(tmp_path / "model")
    assert loaded.extractors == json.loads(json.dumps(model.extractors))
    made = {name: backbones.extractor_of(kept) for name, kept in loaded.extractors.items()}
    assert made == extractors
    again = store.extract(Catalogue("some", catalogue.products[:30]), made)
    anew = streams.Streams(*again, loaded.tokenizer)
    expected, got = (embeddings(m, s, range(30)) for m, s in ((model, found), (loaded, anew)))
    assert all((expected[readout] == got[readout]).all() for readout in READOUTS)
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["stages"][1]["kind"] == "joint" and config["objective"]["temperature"] == 0.05


def test_an_extractor_of_ones_own_travels_as_its_settings(stream_set, tmp_path):
    model = fresh(stream_set).model
    width = dict(model.spec.widths)["image"]
    model.extractors = {"image": {"extractor": "MyRegions", "version": 3, "width": width}}
    model.save_pretrained(tmp_path)
    assert Model.from_pretrained(tmp_path).extractors == model.extractors
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image": {"extractor": "Crops", "version": 99, "width": width}})
    )
    with pytest.raises(ValueError, match="made with version 99 of Crops, this is version"):
        backbones.extractor_of(Model.from_pretrained(tmp_path).extractors["image"])


def test_a_model_goes_to_a_hub_and_comes_back(stream_set, tmp_path, monkeypatch):
    """The mixin's own push and download, with the network replaced by a folder."""
    import shutil
    from types import SimpleNamespace

    import huggingface_hub.hub_mixin as hub

    from m5lib import model as module

    class Api:
        def __init__(self, token=None): ...

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, **_):
            shutil.copytree(folder_path, tmp_path / "hub")
            return "url"

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(
        hub, "hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / "hub" / filename)
    )
    monkeypatch.setattr(module, "snapshot_download", lambda repo_id, **_: str(tmp_path / "hub"))
    model = fresh(stream_set).model
    assert model.push_to_hub("someone/scale") == "url"
    assert "m5lib" in (tmp_path / "hub" / "README.md").read_text()
    loaded = Model.from_pretrained("someone/scale")
    assert loaded.spec == model.spec and all(
        p.equal(q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True)
    )


def test_a_classifier_that_lacks_a_weight_is_refused(stream_set, tmp_path):
    fresh(stream_set).save_pretrained(tmp_path)
    state = load_file(tmp_path / "classifier.safetensors")
    del state["out.bias"]
    save_file(state, tmp_path / "classifier.safetensors")
    with pytest.raises(ValueError, match=r"classifier\.safetensors: .*\['out\.bias'\]"):
        Classifier.from_pretrained(tmp_path)


def test_weights_of_another_width_and_unknown_keys_are_refused(stream_set, tmp_path):
    fresh(stream_set).model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"width": 32}))
    with pytest.raises(ValueError, match=r"model\.safetensors: .*size mismatch.* fit config\.json"):
        Model.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"widht": 32}))
    with pytest.raises(ValueError, match=r"Spec has no field \['widht'\]: known are"):
        Model.from_pretrained(tmp_path)


def test_a_batch_that_has_nothing_of_the_models_is_an_error(stream_set, extracted, tmp_path):
    titled = lambda n, p: {k: v for k, v in p.contents.items() if k != "text" or n > 20}  # noqa: E731
    products = [replace(p, contents=titled(n, p)) for n, p in enumerate(extracted[0].products)]
    untitled = streams.Streams(
        Catalogue("untitled", tuple(products)), extracted[1], stream_set.tokenizer
    )
    model = Model(zoo.bert(width=16, heads=2).fit(untitled))
    with pytest.raises(ValueError, match=r"no product of the batch has any of \['text'\]"):
        pretrain(model, untitled, TRAINING, tmp_path, rows=np.arange(20))


def test_a_last_batch_of_one_takes_another_along(stream_set, tmp_path):
    history = pretrain(
        fresh(stream_set).model,
        stream_set,
        Training(epochs=1, batch_size=8),
        tmp_path,
        rows=np.arange(17),
    )
    assert len(history) == 3 and history[-1]["contrast_I+T"] > 0


def test_queries_teach_nothing(stream_set, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        finetune, "run_loop", lambda model, task, *_: seen.append(set(task.rows)) or []
    )
    finetune.finetune(fresh(stream_set), stream_set, TRAINING, tmp_path)
    catalogue = stream_set.catalogue
    assert seen[0] <= set(catalogue.split("classifier"))
    for split in ("query", "gallery", "validation"):
        assert not seen[0] & set(catalogue.split(split))
