"""Attention maps and attention rollout: who reads whom in a model, as token scores to set beside
gradients."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from m5lib.explain.attribution import Tokens, content, summarised
from m5lib.layers import AttentionBlock
from m5lib.model import Model
from m5lib.streams import Batch


class Attention(NamedTuple):
    """Weights (B, T, T) of one layer, the mean over its heads: row reads column; T are the tokens
    of all streams, one after another."""

    kind: str
    weights: Float[Tensor, "B T T"]


@torch.no_grad()
def attention(model: Model, batch: Batch) -> list[Attention]:
    """Who reads whom, layer by layer. Fused kernels keep their weights to themselves: they are
    computed again from what a block is given.

    In a ``solo`` stage a modality reads only itself, in a ``cross`` stage only others; a stream
    that a stage passes by reads itself.
    """
    batch, seen = summarised(model, batch), []
    blocks = [module for module in model.modules() if isinstance(module, AttentionBlock)]
    hooks = [
        block.register_forward_pre_hook(lambda block, given: seen.append(weights(block, *given)))
        for block in blocks
    ]
    try:
        model.forward_from_embeddings(
            model.embed(batch), {name: s.valid for name, s in batch.streams.items()}
        )
    finally:
        for hook in hooks:
            hook.remove()
    called, widths, found = (
        iter(seen),
        {name: s.valid.shape[1] for name, s in batch.streams.items()},
        [],
    )
    places = dict(
        zip(widths, torch.arange(sum(widths.values())).split(list(widths.values())), strict=True)
    )
    for stage in model.spec.stages:
        names = stage.takes(batch.streams)
        for _ in range(stage.layers if names else 0):
            whole = torch.eye(sum(widths.values()), device=batch.presence.device).repeat(
                len(batch.rows), 1, 1
            )
            for name in names if stage.kind != "joint" else ("",):
                readers = torch.cat([places[n] for n in ([name] if name else names)])
                others = [n for n in names if n != name] if stage.kind != "solo" else []
                read = torch.cat([places[n] for n in others or [name]])
                whole[:, readers] = 0.0
                whole[:, readers[:, None], read] = next(called).mean(1)
            found.append(Attention(stage.kind, whole))
    return found


def weights(
    block: AttentionBlock,
    x: Float[Tensor, "B L D"],
    readable: Bool[Tensor, "B K"],
    context: Float[Tensor, "B K D"] | None = None,
) -> Float[Tensor, "B H L K"]:
    """The attention weights of a block, from what it is given: softmax(q kᵀ / √E) over the readable
    keys."""
    read, width = x if context is None else context, x.shape[-1]
    if block.block.norm == "pre":
        x, read = block.norm_attention(x), block.norm_attention(read)
    part = [
        F.linear(t, w, b)
        for t, w, b in zip(
            (x, read), block.qkv.weight.split(width), block.qkv.bias.split(width), strict=False
        )
    ]
    q, k = (t.unflatten(-1, (block.block.heads, -1)).transpose(1, 2) for t in part)
    readable = readable | ~readable.any(dim=1, keepdim=True)
    return (
        (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
        .masked_fill(~readable[:, None, None], float("-inf"))
        .softmax(dim=-1)
    )


def rollout(layers: Sequence[Attention]) -> Float[Tensor, "B T T"]:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928): the product of (W + I) / 2 over
    the layers, the last one leftmost."""
    eye = torch.eye(layers[0].weights.shape[-1], device=layers[0].weights.device)
    found = eye.expand_as(layers[0].weights)
    for layer in layers:
        found = (layer.weights + eye) / 2 @ found
    return found


def read_by_summaries(model: Model, batch: Batch, maps: Float[Tensor, "B T T"]) -> Tokens:
    """What the first tokens of the modalities that are there read of each token, on average: these
    are what a classifier is given.

    The share of a feature stream's summary is dealt out evenly among the tokens that it is the mean
    of; that of ``[CLS]`` and ``[SEP]`` is left out.
    """
    streams = summarised(model, batch).streams
    first = np.cumsum([0, *(s.valid.shape[1] for s in streams.values())])[:-1]
    there = torch.stack([s.valid[:, 0] for s in streams.values()], dim=1).to(maps.dtype)
    row = (maps[:, first] * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
    found = {}
    for (name, stream), part in zip(
        streams.items(), row.split([s.valid.shape[1] for s in streams.values()], dim=1), strict=True
    ):
        own = content(stream)
        dealt = (
            part[:, :1] / own.sum(1, keepdim=True).clamp(min=1) if stream.entity is None else 0.0
        )
        found[name] = (part + dealt) * own
    return found


def attention_scores(model: Model, batch: Batch) -> dict[str, Tokens]:
    """Scores by ``attention``, the last layer's weights, and ``rollout``, from the embeddings to
    the last layer."""
    layers = attention(model, batch)
    maps = {"attention": layers[-1].weights, "rollout": rollout(layers)}
    return {method: read_by_summaries(model, batch, found) for method, found in maps.items()}
