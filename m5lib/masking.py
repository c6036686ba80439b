"""The five masked tasks (section 4.2): what is hidden of each stream, and what is to be predicted.

=====  =====  ==================================================================================
MLM    text   15 % of word pieces; of these 80 % ``[MASK]``, 10 % a random piece, 10 % kept (BERT)
MEM    table  15 % of pairs; of each, all of the property or all of the value (1/2 each) ``[MASK]``
MRP    image  15 % of regions set to zero; the target is the feature
MFP    video  the same on frames
MAM    audio  the same on audio tokens
=====  =====  ==================================================================================

Every chosen feature is zeroed (released: 90 % of the regions, all frames and audio tokens). The
summary of a feature stream is computed again from what is left, so as not to give them away.

>>> generator = torch.Generator().manual_seed(0)
>>> masked, targets = mask(batch, tokenizer, generator)
>>> targets["text"].value.shape, masked.streams["text"].tokens.shape  # (S,), (B, L)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from m5lib.modalities import MODALITIES
from m5lib.simcl import Presence
from m5lib.streams import Batch, Part, Stream, with_summary


@dataclass(frozen=True)
class Target:
    """What is to be predicted of one stream: ``product`` and ``token`` (S,) are positions in the
    batch, ``value`` (S,) word pieces or (S, F) features, or class probabilities where
    ``probability`` says so."""

    product: Int[Tensor, " S"]
    token: Int[Tensor, " S"]
    value: Int[Tensor, " S"] | Float[Tensor, "S F"]
    probability: bool = False


Targets = Mapping[str, Target]


def maskable(stream: Stream) -> Bool[Tensor, "B L"]:
    """What may be hidden: what is there, save ``[CLS]``, ``[SEP]`` and the summary of features."""
    if stream.entity is not None:
        return stream.valid & (stream.entity >= 0)
    summary = torch.arange(stream.valid.shape[1], device=stream.valid.device) == 0
    return stream.valid & ~summary


def _draw(generator: torch.Generator, part: Part, *shape: int, high: int = 0) -> Tensor:
    """Uniform numbers (B, …) in [0, 1), or below ``high``, for the products of a batch. A part of
    one (``Batch.part``) has those that it has in the whole."""
    first, count = part or (0, shape[0])
    settings = {"size": (count, *shape[1:]), "generator": generator, "device": generator.device}
    draw = torch.randint(high, **settings) if high else torch.rand(**settings)
    return draw[first : first + shape[0]]


def _choose(stream: Stream, rate: float, draw: Callable, entities: bool) -> Tensor:
    """Tokens to hide; of ``entities`` a pair at a time, all of its property or of its value."""
    if not entities:
        return (draw(*stream.valid.shape) < rate) & maskable(stream)
    pair = stream.entity.clamp(min=0) // 2  # (B, L), fewer pairs than tokens
    chosen, odd = ((draw(*pair.shape) < share).gather(1, pair) for share in (rate, 0.5))
    return chosen & (stream.entity % 2 == odd.long()) & maskable(stream)  # values have odd numbers


def _hide_words(stream, chosen, tokenizer, draw: Callable, entities: bool) -> Stream:
    hidden = torch.full_like(stream.tokens, tokenizer.mask_token_id)
    if not entities:
        kind, other = draw(*chosen.shape), draw(*chosen.shape, high=len(tokenizer))
        hidden = torch.where(kind < 0.8, hidden, torch.where(kind < 0.9, other, stream.tokens))
    return replace(stream, tokens=torch.where(chosen, hidden, stream.tokens))


def mask(
    batch: Batch,
    tokenizer,
    generator: torch.Generator,
    rate: float = 0.15,
    hides: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    classes: Sequence[str] = (),
) -> tuple[Batch, dict[str, Target]]:
    """Hide a part of every stream.

    Args:
        batch: on the device of the generator.
        tokenizer: that of the streams; its ``[MASK]`` and its size are read.
        hides: modality -> ``token`` or ``entity``, instead of what its row says (``{"table":
            "token"}`` is Table 7's MLM).
        only: streams to hide something of; all, if not given.
        classes: streams whose target is the class probabilities.

    Returns the batch with the chosen tokens hidden, and for each modality its target; a stream may
    have nothing chosen (S = 0).
    """
    streams, targets, draw = {}, {}, partial(_draw, generator, batch.part)
    for name, stream in batch.streams.items():
        if only is not None and name not in only:
            streams[name] = stream
            continue
        row = MODALITIES[name]
        entities = (hides or {}).get(name, row.hides) == "entity"
        chosen = _choose(stream, rate, draw, entities)
        product, token = chosen.nonzero(as_tuple=True)
        source = stream.classes if name in classes else stream.tokens
        targets[name] = Target(product, token, source[product, token], name in classes)
        if row.kind == "words":
            streams[name] = _hide_words(stream, chosen, tokenizer, draw, entities)
        else:
            # the released loader divides by the number of valid tokens, hidden ones included
            left = stream.tokens.masked_fill(chosen[..., None], 0.0)
            streams[name] = replace(stream, tokens=with_summary(left, stream.valid))
    return replace(batch, streams=streams), targets


def hidden(batch: Batch, targets: Targets) -> dict[str, Bool[Tensor, "B L"]]:
    """Which tokens of each stream were chosen, word pieces that kept their look among them."""
    marks = {name: torch.zeros_like(batch.streams[name].valid) for name in targets}
    for name, target in targets.items():
        marks[name][target.product, target.token] = True
    return marks


def drawn_modalities(
    presence: Presence, share: float, generator: torch.Generator, part: Part = None
) -> Presence:
    """Which modalities the fusion sees (``Objective.drop``): of this share of the products each
    with probability 1/2, but at least one; of the others all. ``part`` is that of the batch."""
    draw = _draw(generator, part, *presence.shape).masked_fill(~presence, -1.0)
    some = presence & ((draw > 0.5) | (draw == draw.amax(1, keepdim=True)))
    dropped = _draw(generator, part, len(presence), 1) < share
    return torch.where(dropped, some, presence)
