import json
from dataclasses import replace

import pytest
import torch
from conftest import FewWords, make_five_batch
from padded import run as padded_run
from torch import nn

from m5lib import masking, objectives, simcl
from m5lib.embeddings import READOUTS, read_out
from m5lib.layers import AttentionBlock, Packed, Whitening, attention
from m5lib.masking import mask
from m5lib.model import EXTRACTORS, Model
from m5lib.models import zoo
from m5lib.spec import Block, Objective, Spec, Stage
from m5lib.streams import Batch, Stream

NAMES = ("image", "text", "table", "video", "audio")


def build(spec, seed=0) -> Model:
    torch.manual_seed(seed)
    model = Model(spec)
    for parameter in model.parameters():  # biases and norms too, so that a missing one shows
        nn.init.normal_(parameter, std=0.15) if parameter.ndim else None
    for whitening in model.whitening.modules():
        if isinstance(whitening, Whitening):
            whitening.fit(torch.randn(99, len(whitening.mean)) + 1.0)
    return model.eval()


def step(model, batch, seed=0):
    hidden, targets = mask(batch, FewWords(), torch.Generator().manual_seed(seed), 0.4)
    return objectives.total(model, model(hidden), targets)


@pytest.mark.parametrize(
    "settings", [{}, {"pool": "mean"}, {"objective": Objective(harmony="uniform")}]
)
def test_every_parameter_receives_a_gradient(five, settings):
    model = build(replace(five, **settings))
    loss, parts = step(model, make_five_batch())
    loss.backward()
    dead = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not dead
    assert [part for part in parts if part.isupper()] == ["MRP", "MLM", "MEM", "MFP", "MAM"]
    assert len([part for part in parts if part.startswith("contrast")]) == 10


STAGES = {
    "solo": ((Stage("solo", 2),), torch.eye(5, dtype=torch.bool)),
    "joint": ((Stage("joint", 1),), torch.ones(5, 5, dtype=torch.bool)),
    "scale": (zoo.scale(width=32, heads=2).stages, torch.ones(5, 5, dtype=torch.bool)),
    "cross": ((Stage("cross", 1),), torch.ones(5, 5, dtype=torch.bool)),
    "released": (
        zoo.released(width=32, layers=1, heads=2).stages,
        torch.ones(5, 5, dtype=torch.bool),
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_reach_matrix_is_the_declared_one(five, name):
    """Which input modality moves which output, read from gradients."""
    stages, declared = STAGES[name]
    model, batch = (
        build(replace(five, stages=stages, objective=Objective(masked=False, contrast="none"))),
        make_five_batch(),
    )
    embedded = {n: x.detach().requires_grad_() for n, x in model.embed(batch).items()}
    output = model.forward_from_embeddings(embedded, {n: batch.streams[n].valid for n in NAMES})
    reach = torch.zeros(5, 5, dtype=torch.bool)
    for row, reader in enumerate(NAMES):
        grads = torch.autograd.grad(
            output.fused[reader][0].square().sum(),
            list(embedded.values()),
            retain_graph=True,
            allow_unused=True,
        )
        reach[row] = torch.tensor([g is not None and g[0].abs().sum() > 0 for g in grads])
    assert reach.equal(declared)


def padded(batch: Batch, extra: int, seed: int = 1) -> Batch:
    """The same batch with nonsense behind every stream."""
    torch.manual_seed(seed)
    streams = {}
    for name, s in batch.streams.items():
        shape = (len(s.valid), extra)
        noise = (
            torch.randint(5, 50, shape)
            if s.boxes is None and s.entity is not None
            else torch.randn(*shape, s.tokens.shape[-1])
        )
        streams[name] = Stream(
            torch.cat([s.tokens, noise], 1),
            torch.cat([s.valid, torch.zeros(shape, dtype=torch.bool)], 1),
            None
            if s.entity is None
            else torch.cat([s.entity, -torch.ones(shape, dtype=torch.long)], 1),
            None if s.boxes is None else torch.cat([s.boxes, torch.rand(*shape, 5)], 1),
        )
    return replace(batch, streams=streams)


def scrambled(batch: Batch) -> Batch:
    """The same batch with nonsense wherever nothing is valid: padding and absent modalities."""
    torch.manual_seed(2)
    streams = {}
    for name, s in batch.streams.items():
        if s.tokens.ndim == 2:
            tokens = torch.where(s.valid, s.tokens, torch.randint(5, 50, s.tokens.shape))
        else:
            tokens = torch.where(s.valid[..., None], s.tokens, 50 * torch.randn_like(s.tokens))
        streams[name] = replace(s, tokens=tokens)
    return replace(batch, streams=streams)


def values(model, batch):
    output = model(batch)
    vectors = torch.stack(list(output.pooled.values()), 1)
    scores = simcl.harmony(simcl.agreement(vectors), output.presence)
    found, _ = simcl.infonce(vectors, output.presence, torch.tensor(0.1), scores)
    states = {
        f"fused_{n}": x[:, :9] * v[:, :9, None]
        for (n, x), v in zip(output.fused.items(), output.valid.values(), strict=True)
    }
    return (
        {r: read_out(model, output, r) for r in READOUTS}
        | {"scores": scores, "contrast": found}
        | states
    )


@pytest.mark.parametrize("change", [lambda b: padded(b, 3), scrambled])
@pytest.mark.parametrize("stages", ["scale", "cross", "released"])
def test_padding_and_absent_modalities_change_nothing(five, change, stages):
    model, batch = build(replace(five, stages=STAGES[stages][0])), make_five_batch()
    before, after = values(model, batch), values(model, change(batch))
    for name in before:
        assert torch.isfinite(before[name]).all()
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-5, msg=name)


def test_an_absent_modality_gets_no_gradient_and_no_vector(five):
    model, batch = build(five), make_five_batch()
    embedded = {n: x.detach().requires_grad_() for n, x in model.embed(batch).items()}
    output = model.forward_from_embeddings(embedded, {n: batch.streams[n].valid for n in NAMES})
    sum(v.float().square().sum() for v in values_of(model, output)).backward()
    for place, name in enumerate(NAMES):
        lacking = (place + 1) % 6
        assert not output.presence[lacking, place]
        assert embedded[name].grad[lacking].abs().sum() == 0
        assert output.pooled[name][lacking].abs().sum() == 0
        assert embedded[name].grad[0].abs().sum() > 0


def values_of(model, output):
    return [read_out(model, output, readout) for readout in READOUTS]


def test_given_only_some_modalities_equals_a_batch_that_has_no_others(five):
    model, batch = build(five), make_five_batch()
    only = model(batch.only(["text", "table"]))
    gone = {
        n: replace(s, valid=s.valid & (n in ("text", "table")))
        for n, s in make_five_batch().streams.items()
    }
    for readout in READOUTS:
        expected = read_out(model, model(replace(batch, streams=gone)), readout)
        torch.testing.assert_close(read_out(model, only, readout), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(
        read_out(model, only, "fused_first"), read_out(model, model(batch), "fused_first")
    )


def test_products_of_a_batch_do_not_see_each_other(five):
    model, batch = build(five), make_five_batch()
    turned = Batch(
        {
            n: replace(s, **{k: v.flip(0) for k, v in vars(s).items() if v is not None})
            for n, s in batch.streams.items()
        },
        batch.rows,
    )
    torch.testing.assert_close(
        read_out(model, model(turned), "fused_mean").flip(0),
        read_out(model, model(batch), "fused_mean"),
    )


@pytest.mark.parametrize("row", [zoo.scale, zoo.released])
def test_the_order_of_modalities_changes_nothing(five, row):
    """Nor that of the released scores, which name theirs (``pair_order``)."""
    spec = replace(
        row(width=32, layers=1, heads=2),
        modalities=five.modalities,
        widths=five.widths,
        vocabulary=50,
        empty=(2, 3),
    )
    model, turned = build(spec), build(replace(spec, modalities=spec.modalities[::-1]), seed=1)
    turned.load_state_dict(model.state_dict())
    (one, parts), (two, other) = (step(m, make_five_batch()) for m in (model, turned))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    assert sorted(round(v.item(), 3) for v in parts.values()) == sorted(
        round(v.item(), 3) for v in other.values()
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_equals_a_slow_transcription(norm):
    """Multi-head attention written product by product, head by head, token by token."""
    torch.manual_seed(0)
    block = AttentionBlock(8, Block(heads=2, hidden=2.0, norm=norm)).double().eval()
    x, valid = torch.randn(2, 4, 8).double(), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    slow = torch.zeros_like(x)
    for b in range(2):
        y = x[b]
        read = block.norm_attention(y) if norm == "pre" else y
        q, k, v = block.qkv(read).chunk(3, -1)
        mixed = torch.zeros_like(y)
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            for i in range(4):
                there = [j for j in range(4) if valid[b, j]]
                weight = torch.stack([q[i, part] @ k[j, part] / 2.0 for j in there]).softmax(0)
                mixed[i, part] = sum(w * v[j, part] for w, j in zip(weight, there, strict=True))
        y = y + block.out(mixed)
        if norm == "post":
            y = block.norm_attention(y)
            slow[b] = block.norm_feed(y + block.down(nn.functional.gelu(block.up(y))))
        else:
            slow[b] = y + block.down(nn.functional.gelu(block.up(block.norm_feed(y))))
    packed = Packed(valid)
    found = packed.pad(block(packed.pack(x), packed))
    torch.testing.assert_close(found[valid], slow[valid])
    assert (found[~valid] == 0).all()


def test_whitening_decorrelates_what_it_was_fitted_on():
    torch.manual_seed(0)
    x = torch.randn(5000, 6) @ torch.randn(6, 6) + 3
    whitening = Whitening(6, shrink=0.0)
    assert whitening(x).equal(x)  # the identity until fitted
    whitening.fit(x)
    torch.testing.assert_close(torch.cov(whitening(x).T), torch.eye(6), atol=1e-3, rtol=1e-3)
    assert whitening(x).mean(0).abs().max() < 1e-3
    flat = Whitening(6)
    flat.fit(torch.cat([x[:, :1], torch.zeros(5000, 5)], 1))
    assert torch.isfinite(flat(x)).all()  # directions without content stay finite


def test_whitening_leaves_something_of_how_much_directions_differ():
    """Along each axis of the covariance by its own: x / sqrt(λ_k + 0.3 mean λ)."""
    torch.manual_seed(0)
    x = torch.randn(5000, 3) * torch.tensor([5.0, 1.0, 0.1]) - 2
    (whitening := Whitening(3)).fit(x)
    values, axes = torch.linalg.eigh(torch.cov(x.T))
    for row in x[:20]:
        for k in range(3):
            along = (row - x.mean(0)) @ axes[:, k]
            slow = along / (values[k] + 0.3 * sum(values) / 3).sqrt()
            torch.testing.assert_close(whitening(row[None])[0, k].abs(), slow.abs())


def test_saved_and_loaded_models_give_identical_embeddings(five, tmp_path):
    model, batch = build(replace(five, pool="mean")), make_five_batch()
    model.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path)
    assert loaded.spec == model.spec
    for readout in READOUTS:
        assert read_out(loaded, loaded(batch), readout).equal(
            read_out(model, model(batch), readout)
        )
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        Model.from_pretrained(tmp_path)


def test_specs_round_trip_and_refuse_unknown_keys(five):
    assert Spec.from_dict(five.to_dict()) == five
    config = five.to_dict()
    config["stages"][0]["block"]["headz"] = 3
    with pytest.raises(ValueError, match="Block has no field .'headz'."):
        Spec.from_dict(config)


def test_bad_specs_and_batches_are_errors(five):
    with pytest.raises(ValueError, match="not a multiple of 3 heads"):
        Model(replace(five, stages=zoo.scale(heads=3).stages))
    with pytest.raises(ValueError, match=r"call spec\.fit"):
        Model(zoo.scale())
    with pytest.raises(ValueError, match="unknown read-out 'best'"):
        read_out(Model(five), Model(five)(make_five_batch()), "best")
    batch = make_five_batch()
    with pytest.raises(ValueError, match="no stream .'audio'."):
        Model(five)(
            replace(batch, streams={n: s for n, s in batch.streams.items() if n != "audio"})
        )


def test_attention_on_other_devices_is_not_left_to_cudnn(monkeypatch):
    """cuDNN plans every new shape, and each batch has its own: seven times the step."""
    allowed = []

    def fused(q, k, v, **_):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return torch.empty_like(q)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused)
    x = torch.empty(3, 2, 5, 8, device="meta")
    attention(x, x, x, None)
    assert allowed == [False]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_plain_attention_is_the_fused_one(dropout):
    """Forward and backward; with dropout, the same share of weights is dropped and the mean
    stays."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(3, 2, length, 8, generator=generator, requires_grad=True)
        for length in (5, 7, 7)
    )
    readable = torch.rand(3, 7, generator=generator) > 0.4
    readable[:, 0] = True
    fused = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=readable[:, None, None]
    )
    if dropout:
        torch.manual_seed(0)
        mean = torch.stack([attention(q, k, v, readable, dropout) for _ in range(4000)]).mean(0)
        assert torch.allclose(mean, fused, atol=0.12)
        return
    plain = attention(q, k, v, readable)
    assert torch.allclose(plain, fused, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(plain.square().sum(), (q, k, v)),
        torch.autograd.grad(fused.square().sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_only_the_wanted_fused_tokens_are_computed_and_they_are_the_same(five, name):
    model, batch = build(replace(five, stages=STAGES[name][0])), make_five_batch()
    every = model(batch)
    marks = {
        n: torch.rand(valid.shape, generator=torch.Generator().manual_seed(3)) < 0.3
        for n, valid in every.valid.items()
    }
    for wanted in ({}, marks):
        some = model(batch, wanted)
        for n in NAMES:
            torch.testing.assert_close(some.summary[n], every.summary[n], atol=1e-5, rtol=1e-4)
            if wanted:
                torch.testing.assert_close(
                    some.fused[n][marks[n]], every.fused[n][marks[n]], atol=1e-5, rtol=1e-4
                )


def test_a_loss_and_its_gradients_need_only_the_wanted_tokens(five):
    model = build(five)
    hidden, targets = mask(make_five_batch(), FewWords(), torch.Generator().manual_seed(0), 0.4)
    found = []
    for wanted in (None, masking.hidden(hidden, targets)):
        model.zero_grad()
        loss, _ = objectives.total(model, model(hidden, wanted), targets)
        loss.backward()
        found.append(
            [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_what_there_is_before_the_fusion_is_what_the_whole_model_says(five):
    model, batch = build(five), make_five_batch()
    part, every = model.encode(batch), model(batch)
    assert not part.fused and not part.summary
    assert all(
        torch.equal(part.encoded[n], every.encoded[n])
        and torch.equal(part.pooled[n], every.pooled[n])
        for n in NAMES
    )


@pytest.mark.parametrize("name", STAGES)
def test_attention_is_given_when_asked_and_changes_nothing(five, name):
    """By stage and by who reads; one (B, heads, L, K) per layer."""
    model, batch = build(replace(five, stages=STAGES[name][0])), make_five_batch()
    plain, asked = model(batch), model(batch, wanted={}, attention=True)
    assert plain.attention == () and len(asked.attention) == len(model.spec.stages)
    lengths = {n: valid.shape[1] for n, valid in plain.valid.items()}
    whole = sum(lengths.values())
    for stage, weights in zip(model.spec.stages, asked.attention, strict=True):
        assert tuple(weights) == (("joint",) if stage.kind == "joint" else NAMES)
        for reader, layers in weights.items():
            own = whole if reader == "joint" else lengths[reader]
            read = whole - own if stage.kind == "cross" else own
            assert len(layers) == stage.layers
            for layer in layers:
                assert layer.shape[0] == 6 and layer.shape[2:] == (own, read)
                torch.testing.assert_close(layer.sum(-1), torch.ones(layer.shape[:-1]))
    for n in NAMES:
        torch.testing.assert_close(asked.fused[n], plain.fused[n])


def test_read_outs_are_what_their_names_say(five):
    """Product by product, from the states of the tokens that are there."""
    model, batch = build(five), make_five_batch()
    output = model(batch)
    for readout in ("fused_first", "fused_mean", "encoded_first", "encoded_mean"):
        states = output.fused if readout.startswith("fused") else output.encoded
        for b, vector in enumerate(read_out(model, output, readout)):
            expected = torch.zeros_like(vector)
            for name, x in states.items():
                here = output.valid[name][b]
                if here[0]:
                    token = x[b, 0] if readout.endswith("first") else x[b][here].mean(0)
                    expected += token if readout == "fused_first" else token / token.norm()
            torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-5)
    parts = [read_out(model, output, name) for name in ("fused_first", "layered")]
    both = torch.cat([part / part.norm(dim=1, keepdim=True).clamp(min=1e-12) for part in parts], 1)
    torch.testing.assert_close(read_out(model, output, "fused_layered"), both)
    model.importance.copy_(torch.tensor([0.5, 2.0, 1.0, 4.0, 0.25]))
    for b, vector in enumerate(read_out(model, output, "weighted")):
        fused, beside = 0, []
        for states in ("pooled", "embedded"):
            for weight, name in zip(model.importance, model.spec.modalities, strict=True):
                x = getattr(output, states)[name][b]
                here = output.valid[name][b]
                x = x[here].mean(0) if states == "embedded" and here[0] else x
                x = model.whitening[states][name](x[None] if x.ndim == 1 else x[:1])[0]
                beside.append(weight * x / x.norm() * here[0])
                if states == "pooled" and here[0]:
                    fused = fused + weight * output.fused[name][b, 0]
        beside = torch.cat(beside)
        expected = torch.cat([fused / fused.norm(), beside / beside.norm()])
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-5)


def double(spec, mean=False) -> Model:
    return build(replace(spec, pool="mean") if mean else spec).double()


def zoo_spec(name, five, **settings):
    spec = zoo.build(name, width=32, layers=2, heads=2, **settings)
    names = tuple(n for n in NAMES if not spec.takes or n in spec.takes)
    widths = tuple((n, width) for n, width in five.widths if n in names)
    return replace(spec, modalities=names, widths=widths, vocabulary=50, empty=(2, 3))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", [*zoo.MODELS, "titles and tables together", "mean"])
def test_packed_tokens_are_what_padded_ones_are(five, name, given):
    """States, vectors and every gradient in float64, for streams of any length, and where a product
    has nothing, or nothing but one modality."""
    extra = {"text_table": "one"} if name == "titles and tables together" else {}
    row = "scale" if extra or name == "mean" else name
    model = double(zoo_spec(row, five, **extra), mean=name == "mean")
    batch, names = make_five_batch(products=9), model.spec.modalities
    sees = torch.rand(9, len(names), generator=torch.Generator().manual_seed(1)) < 0.6
    alone = torch.arange(9) == 8
    valid = {
        n: batch.streams[n].valid & (sees[:, i, None] | alone[:, None]) for i, n in enumerate(names)
    }
    for number, n in enumerate(names):
        valid[n][7] &= number == 0
        valid[n][6] = False
    inputs = {
        n: torch.randn(*there.shape, 32).double().requires_grad_() for n, there in valid.items()
    }
    sees = sees.roll(1, 0) if given else None
    output = model.forward_from_embeddings(inputs, valid, given=sees)
    encoded, pooled, fused = padded_run(model, inputs, valid, sees)
    found, expected, generator = 0.0, 0.0, torch.Generator().manual_seed(2)
    for n in names:
        for ours, theirs, there in (
            (output.encoded[n], encoded[n], valid[n]),
            (output.fused[n], fused[n], valid[n]),
            (output.pooled[n][:, None], pooled[n][:, None], torch.ones(9, 1, dtype=torch.bool)),
        ):
            torch.testing.assert_close(ours[there], theirs[there], atol=1e-9, rtol=1e-9)
            direction = torch.randn(theirs[there].shape, generator=generator).double()
            found = found + (ours[there] * direction).sum()
            expected = expected + (theirs[there] * direction).sum()
    leaves = [*inputs.values(), *model.stages.parameters(), *model.poolers.parameters()]
    one, two = (torch.autograd.grad(x, leaves, allow_unused=True) for x in (found, expected))
    for leaf, ours, theirs in zip(leaves, one, two, strict=True):
        ours, theirs = (torch.zeros_like(leaf) if g is None else g for g in (ours, theirs))
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_given_only_a_title_nothing_else_of_the_product_is_read(five, name):
    """Where nothing is left to be read, a modality that reads others reads a zero vector."""
    model, batch = build(zoo_spec(name, five)), make_five_batch()
    given = model.spec.modalities[0]
    others = {n: replace(s, tokens=s.tokens.roll(1, dims=0)) for n, s in batch.streams.items()}
    others[given] = batch.streams[given]
    one, two = (model(b.only([given])) for b in (batch, replace(batch, streams=others)))
    for readout in READOUTS:
        assert read_out(model, one, readout).equal(read_out(model, two, readout))


HTML = b"<!DOCTYPE html><html><body>404</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", EXTRACTORS])
@pytest.mark.parametrize("fault", ["cut", "empty", "html", "lfs", "noise", "list"])
def test_of_a_damaged_folder_the_file_the_fault_and_the_mend_are_said(five, tmp_path, name, fault):
    model = build(five)
    model.extractors = {"image": {"extractor": "Crops", "width": dict(five.widths)["image"]}}
    model.save_pretrained(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    content = {"cut": whole[: len(whole) // 2], "empty": b"", "html": HTML, "lfs": LFS}
    path.write_bytes((content | {"noise": bytes(range(256)), "list": b"[3]"})[fault])
    says = {"html": "a web page", "lfs": "Git LFS .*; fetch it with git lfs pull", "empty": "empty"}
    with pytest.raises(ValueError, match=rf"{name}: .*{says.get(fault, '; ')}"):
        Model.from_pretrained(tmp_path)


def test_every_field_of_a_configuration_is_checked(five, tmp_path):
    """Left out, or of another type: an error that names file and field, or a model."""
    model = build(five)
    model.save_pretrained(tmp_path)
    path, built = tmp_path / "config.json", 0
    config = json.loads(path.read_text())
    for field in config:
        for changed in (
            {key: value for key, value in config.items() if key != field},
            config | {field: "128"},
            config | {field: None},
            config | {field: [["x"]]},
        ):
            path.write_text(json.dumps(changed))
            try:
                built += Model.from_pretrained(tmp_path) is not None
            except ValueError as error:
                assert "config.json" in str(error), error
    assert built < len(config) * 2
    path.write_text(json.dumps(config | {"width": "16"}))
    with pytest.raises(ValueError, match="config.json: .*Spec"):  # and width: hostile/arguments
        Model.from_pretrained(tmp_path)
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "stages"}))
    with pytest.raises(ValueError, match="config.json: .*stages"):
        Model.from_pretrained(tmp_path)


def test_a_tokenizer_and_extractors_that_do_not_fit_are_named(five, stream_set, tmp_path):
    model = build(five)
    model.save_pretrained(tmp_path)
    stream_set.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer_config.json: .* word pieces, config.json has"):
        Model.from_pretrained(tmp_path)
    for path in tmp_path.glob("*token*"):
        path.unlink()
    (tmp_path / EXTRACTORS).write_text(json.dumps({"image": {"extractor": "Mine", "width": 3}}))
    with pytest.raises(ValueError, match=rf"{EXTRACTORS}: image is 3 wide, in config.json \d+"):
        Model.from_pretrained(tmp_path)


def test_equal_weights_are_equal_bytes(five, tmp_path):
    """Tied weights too: the file's header has an order of its own."""
    model, seen = build(five), set()
    for _ in range(8):
        model.save_pretrained(tmp_path)
        seen.add((tmp_path / "model.safetensors").read_bytes())
    Model.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert seen == {(tmp_path / "again" / "model.safetensors").read_bytes()}
