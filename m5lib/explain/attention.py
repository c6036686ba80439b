"""Who reads whom, as token scores to set beside gradients: attention maps and rollout."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from m5lib.explain.attribution import Tokens, content, summarised
from m5lib.model import Model
from m5lib.streams import Batch


@torch.no_grad()
def attention(model: Model, batch: Batch) -> list[Float[Tensor, "B T T"]]:
    """Who reads whom, layer by layer: weights, the mean over heads (``Output.attention``). Row
    reads column; T are the tokens of all streams, one after another. In a ``solo`` stage a modality
    reads only itself, in a ``cross`` stage only others; a stream passed by reads itself."""
    output, layers = model(batch, attention=True), []
    lengths = [valid.shape[1] for valid in output.valid.values()]
    places = dict(zip(output.valid, torch.arange(sum(lengths)).split(lengths), strict=True))
    nobody = torch.eye(sum(lengths), device=output.presence.device).repeat(len(batch.rows), 1, 1)
    for stage, readers in zip(model.spec.stages, output.attention, strict=True):
        names = stage.takes(output.valid)
        for layer in range(stage.layers if names else 0):
            whole = nobody.clone()
            for reader, weights in readers.items():
                others = [name for name in names if name != reader]
                own = [reader] if stage.kind == "solo" or not others else others
                rows = torch.cat([places[n] for n in (names if reader == "joint" else [reader])])
                columns = torch.cat([places[n] for n in own])
                whole[:, rows] = 0.0
                whole[:, rows[:, None], columns] = weights[layer].mean(1)
            layers.append(whole)
    return layers


def rollout(layers: Sequence[Float[Tensor, "B T T"]]) -> Float[Tensor, "B T T"]:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928): the product of (W + I) / 2 over
    the layers, the last one leftmost."""
    eye = torch.eye(layers[0].shape[-1], device=layers[0].device)
    product = eye.expand_as(layers[0])
    for weights in layers:
        product = (weights + eye) / 2 @ product
    return product


def read_by_summaries(model: Model, batch: Batch, maps: Float[Tensor, "B T T"]) -> Tokens:
    """What the first tokens of modalities that are there (a classifier's input) read of each token.

    The share of a feature stream's summary is dealt out evenly among the tokens that it is the mean
    of; that of ``[CLS]`` and ``[SEP]`` is left out.
    """
    streams = summarised(model, batch).streams
    lengths = [stream.valid.shape[1] for stream in streams.values()]
    first = [sum(lengths[:place]) for place in range(len(lengths))]
    there = torch.stack([s.valid[:, 0] for s in streams.values()], dim=1).to(maps.dtype)
    row = (maps[:, first] * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
    scores = dict(zip(streams, row.split(lengths, dim=1), strict=True))
    for name, stream in streams.items():
        own, part = content(stream), scores[name]
        if stream.entity is None:
            part = part + part[:, :1] / own.sum(1, keepdim=True).clamp(min=1)
        scores[name] = part * own
    return scores
