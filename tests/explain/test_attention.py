"""Attention weights that a layer gives are those that it used; rollout is the product of its
definition."""

import pytest
import torch

from m5lib.explain import attention
from m5lib.layers import AttentionBlock, Packed
from m5lib.model import Model
from m5lib.models import zoo
from m5lib.spec import Block


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("crossing", [False, True])
def test_weights_are_those_of_the_layer(norm, crossing):
    torch.manual_seed(0)
    block = AttentionBlock(16, Block(heads=4, norm=norm)).eval()
    x, context = torch.randn(3, 5, 16), torch.randn(3, 7, 16) if crossing else None
    readable = torch.rand(3, 7 if crossing else 5) < 0.6
    readable[2] = False  # a product without any reads a zero vector
    read, seen = Packed(readable, whole=True), []
    own = Packed(torch.ones(3, 5).bool(), whole=True) if crossing else read
    rows, others = own.pack(x), read.pack(context) if crossing else None
    block(rows, own, others, read, seen=seen)
    (found,) = seen
    others = rows if others is None else others
    normed = [block.norm_attention(t) if norm == "pre" else t for t in (rows, others)]
    value = read.pad(normed[1] @ block.qkv.weight[32:].T + block.qkv.bias[32:])
    value = value.unflatten(-1, (4, 4)).transpose(1, 2)
    mixed = block.out((found @ value).transpose(1, 2).flatten(2))
    expected = block.attend(normed[0], own, normed[1] if crossing else normed[0], read)
    assert torch.allclose(own.pad(own.pack(mixed)), own.pad(expected), atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(3, 4, 5))
    assert (found[:2].transpose(1, 3)[~readable[:2]] == 0).all()
    assert torch.allclose(mixed[2], block.out.bias, atol=1e-6)


@pytest.mark.parametrize("name", ["scale", "vilbert"])
def test_each_layer_reads_what_its_stage_may(name, stream_set):
    torch.manual_seed(0)
    model = Model(zoo.build(name, width=16, layers=2, heads=2).fit(stream_set)).eval()
    batch = stream_set.batch(range(3))
    layers = attention.attention(model, batch)
    lengths = [batch.streams[n].valid.shape[1] for n in model.spec.modalities]
    stream = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    valid = torch.cat([batch.streams[n].valid for n in model.spec.modalities], dim=1)
    kinds = [stage.kind for stage in model.spec.stages for _ in range(stage.layers)]
    for kind, found in zip(kinds, layers, strict=True):
        assert torch.allclose(found.sum(-1), torch.ones(found.shape[:2]), atol=1e-5)
        same = stream[:, None] == stream
        forbidden = {"solo": ~same, "cross": same, "joint": torch.zeros_like(same)}[kind]
        assert (found[:, forbidden] == 0).all() and (found.transpose(1, 2)[~valid] == 0).all()


def test_rollout_is_the_product_of_its_layers():
    torch.manual_seed(0)
    maps = [torch.rand(2, 4, 4).softmax(-1) for _ in range(3)]
    found = attention.rollout(maps)
    for n in range(2):
        slow = torch.eye(4)
        for w in maps:
            slow = (0.5 * w[n] + 0.5 * torch.eye(4)) @ slow
        assert torch.allclose(found[n], slow, atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(2, 4))


def test_summaries_share_is_dealt_out(five, five_batch):
    torch.manual_seed(0)
    model, batch = Model(five).eval(), five_batch()
    layers = attention.attention(model, batch)
    for weights in (layers[-1], attention.rollout(layers)):
        scores = attention.read_by_summaries(model, batch, weights)
        assert all((scores[n][~attention.content(s)] == 0).all() for n, s in batch.streams.items())
        features = torch.stack([scores[n].sum(1) for n in ("image", "video", "audio")]).sum(0)
        assert (features > 0).all() and (
            torch.stack([x.sum(1) for x in scores.values()]).sum(0) < 1 + 1e-5
        ).all()
