"""The five masked tasks (section 4.2): what is hidden of each stream, and what is to be predicted.

=====  ========  ==========================================================================================
MLM    text      15 % of word pieces; of these 80 % ``[MASK]``, 10 % a random piece, 10 % kept (BERT)
MEM    table     15 % of pairs; of each all pieces of the property or all of the value (1/2 each) ``[MASK]``
MRP    image     15 % of regions set to zero; the target is the feature
MFP    video     the same on frames
MAM    audio     the same on audio tokens
=====  ========  ==========================================================================================

Which of them a modality has is in its row of the table. Paper and released code agree on the 15 %;
the released code zeroes only 90 % of the chosen regions and all chosen frames and audio tokens.
Here every chosen feature is zeroed. The summary of a feature stream is computed again from what is
left, so that it does not give the hidden tokens away.
"""  # noqa: E501

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from m5lib.modalities import MODALITIES
from m5lib.streams import Batch, Stream, with_summary


@dataclass(frozen=True)
class Target:
    """What is to be predicted of one stream: ``product`` and ``token`` (S,) are positions in the
    batch, ``value`` (S,) word pieces or (S, F) features, or class probabilities where
    ``probability`` says so."""

    product: Int[Tensor, " S"]
    token: Int[Tensor, " S"]
    value: Int[Tensor, " S"] | Float[Tensor, "S F"]
    probability: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """What masking has to know of a tokenizer."""

    size: int
    mask: int

    @classmethod
    def of(cls, tokenizer) -> "Vocabulary":
        """Of a ``transformers`` tokenizer."""
        return cls(len(tokenizer), tokenizer.mask_token_id)


def _choose_tokens(stream: Stream, rate: float, generator: torch.Generator) -> Bool[Tensor, "B L"]:
    draw = torch.rand(stream.valid.shape, generator=generator, device=stream.valid.device) < rate
    may = stream.valid.clone()
    if stream.entity is None:
        may[:, 0] = False  # the summary is computed, never predicted
    else:
        may &= stream.entity >= 0
    return draw & may


def _choose_entities(
    stream: Stream, rate: float, generator: torch.Generator
) -> Bool[Tensor, "B L"]:
    """Pairs are chosen; of a chosen pair the property (even number) or the value (odd number) is
    hidden whole."""
    pairs = stream.entity.clamp(min=0) // 2
    shape = (len(pairs), int(pairs.shape[1]))
    chosen = torch.rand(shape, generator=generator, device=pairs.device) < rate
    side = torch.rand(shape, generator=generator, device=pairs.device) < 0.5
    hidden_side = side.gather(1, pairs).long()
    return (
        chosen.gather(1, pairs)
        & (stream.entity % 2 == hidden_side)
        & stream.valid
        & (stream.entity >= 0)
    )


def _hide_words(stream, chosen, vocabulary: Vocabulary, generator, entities: bool) -> Stream:
    masked = torch.full_like(stream.tokens, vocabulary.mask)
    if not entities:
        draw = torch.rand(chosen.shape, generator=generator, device=chosen.device)
        other = torch.randint(
            vocabulary.size, chosen.shape, generator=generator, device=chosen.device
        )
        masked = torch.where(draw < 0.8, masked, torch.where(draw < 0.9, other, stream.tokens))
    return replace(stream, tokens=torch.where(chosen, masked, stream.tokens))


def mask(
    batch: Batch,
    vocabulary: Vocabulary,
    generator: torch.Generator,
    rate: float = 0.15,
    hides: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    classes: Sequence[str] = (),
) -> tuple[Batch, dict[str, Target]]:
    """Hide a part of every stream.

    Args:
        batch: on the device of the generator.
        hides: modality -> ``token`` or ``entity``, instead of what its row says (``{"table":
            "token"}`` is Table 7's MLM).
        only: streams to hide something of; all, if not given.
        classes: streams whose target is the class probabilities.

    Returns:
        the batch with the chosen tokens hidden, and for each modality its target; a stream may have
        nothing chosen (S = 0).
    """
    streams, targets = {}, {}
    for name, stream in batch.streams.items():
        if only is not None and name not in only:
            streams[name] = stream
            continue
        row = MODALITIES[name]
        entities = (hides or {}).get(name, row.hides) == "entity"
        chosen = (_choose_entities if entities else _choose_tokens)(stream, rate, generator)
        product, token = chosen.nonzero(as_tuple=True)
        source = stream.classes if name in classes else stream.tokens
        targets[name] = Target(product, token, source[product, token], name in classes)
        if row.kind == "words":
            streams[name] = _hide_words(stream, chosen, vocabulary, generator, entities)
        else:
            left = stream.tokens.masked_fill(chosen[..., None], 0.0)
            # the released loader divides the sum of what is left by the number of valid tokens,
            # hidden ones included
            streams[name] = replace(stream, tokens=with_summary(left, stream.valid))
    return replace(batch, streams=streams), targets


def hidden(batch: Batch, targets: Mapping[str, Target]) -> dict[str, Bool[Tensor, "B L"]]:
    """Which tokens of each stream were chosen: what has a target. A word piece that was chosen may
    have kept its look."""
    found = {}
    for name, target in targets.items():
        found[name] = torch.zeros_like(batch.streams[name].valid)
        found[name][target.product, target.token] = True
    return found


def rates(
    batch: Batch,
    masked: Batch,
    targets: Mapping[str, Target],
    vocabulary: Vocabulary,
    rate: float = 0.15,
    hides: Mapping[str, str] | None = None,
) -> list[dict]:
    """What :func:`mask` did to a batch beside what it declares, one line per rate, counted on what
    went in and what came out.

    ``rate`` and ``hides`` are those given to :func:`mask`. Keys: ``modality``, ``task``, ``what``,
    ``of`` (how many things the share is taken of), ``declared``, ``measured``.
    """
    found, chosen = [], hidden(batch, targets)
    for name, there in chosen.items():
        row, before, after = MODALITIES[name], batch.streams[name], masked.streams[name]
        may = before.valid.clone() if before.entity is None else before.valid & (before.entity >= 0)
        if before.entity is None:
            may[:, 0] = False
        counts = [("tokens chosen", int(may.sum()), rate, int((there & may).sum()))]
        entities = (hides or {}).get(name, row.hides) == "entity"
        if entities:
            counts = _entity_counts(before, there & (after.tokens == vocabulary.mask), rate)
        elif row.kind == "words":
            new, old, n = after.tokens[there], before.tokens[there], int(there.sum())
            swapped = (new != vocabulary.mask) & (new != old)
            counts += [
                ("… of these [MASK]", n, 0.8, int((new == vocabulary.mask).sum())),
                ("… another piece", n, 0.1, int(swapped.sum())),
            ]
            counts += [("… kept", n, 0.1, int((new == old).sum()))]
        else:
            left = with_summary(after.tokens, after.valid)[:, 0]
            same = (after.tokens[:, 0] - left).abs().amax(1) < 1e-5
            zero = (after.tokens[there] == 0).all(-1)
            counts += [("… of these zeros", len(zero), 1.0, int(zero.sum()))]
            counts += [
                (
                    "summaries that saw the rest only",
                    int(before.valid[:, 0].sum()),
                    1.0,
                    int(same[before.valid[:, 0]].sum()),
                )
            ]
        task = row.task if entities == (row.hides == "entity") else "MLM"
        for what, of, declared, count in counts:
            line = {"modality": name, "task": task, "what": what, "of": of, "declared": declared}
            found.append(line | {"measured": count / max(1, of)})
    return found


def _entity_counts(
    stream: Stream, gone: Bool[Tensor, "B L"], rate: float
) -> list[tuple[str, int, float, int]]:
    """Rates of pairs that have both a property and a value among the tokens that are read."""
    numbers, empty = (
        stream.entity.clamp(min=0),
        torch.zeros(len(gone), gone.shape[1] + gone.shape[1] % 2, dtype=torch.long),
    )
    pieces = empty.scatter_add(1, numbers, (stream.entity >= 0).long())
    lost = empty.scatter_add(1, numbers, gone.long())
    both = (pieces[:, 0::2] > 0) & (pieces[:, 1::2] > 0)
    properties, values = (lost[:, 0::2] > 0) & both, (lost[:, 1::2] > 0) & both
    pairs, touched = int(both.sum()), int((properties | values).sum())
    whole = int(((lost == pieces) & (lost > 0)).sum())
    return [
        ("pairs chosen", pairs, rate, touched),
        ("… of these the property", touched, 0.5, int(properties.sum())),
        ("… property and value", touched, 0.0, int((properties & values).sum())),
        ("entities hidden whole", int((lost > 0).sum()), 1.0, whole),
        ("pieces hidden", int((stream.entity >= 0).sum()), rate / 2, int(gone.sum())),
    ]
