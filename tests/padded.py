"""The stages on padded rows, as the formulas have them: every token computed, also those that are
not there, and hidden from whoever reads. Slow, and the oracle of the packed path."""

import torch
import torch.nn.functional as F

from m5lib.layers import ACTIVATIONS


def block(own, x, context, readable):
    """One :class:`m5lib.layers.AttentionBlock` on (B, L, D), reading (B, K, D). A product that can
    read nothing reads a zero vector."""
    pre, heads = own.block.norm == "pre", own.block.heads
    asks, read = ((own.norm_attention(t) if pre else t) for t in (x, context))
    q = own.qkv(asks)[..., : x.shape[-1]]
    k, v = own.qkv(read)[..., x.shape[-1] :].chunk(2, -1)
    mixed = torch.zeros_like(x)
    for part in torch.arange(x.shape[-1]).chunk(heads):
        logits = q[..., part] @ k[..., part].transpose(1, 2) / len(part) ** 0.5
        logits = logits.masked_fill(~readable[:, None], -1e30)
        weights = logits.softmax(-1) * readable[:, None]
        mixed[..., part] = weights @ v[..., part]
    x = x + own.out(mixed)
    x = x if pre else own.norm_attention(x)
    activation = ACTIVATIONS[own.block.activation]
    x = x + own.down(activation(own.up(own.norm_feed(x) if pre else x)))
    return x if pre else own.norm_feed(x)


def stack(own, states, valid):
    """One stage (:class:`m5lib.model.Stack`)."""
    stage, names = own.stage, own.stage.takes(states)
    now = {name: states[name] for name in names}
    for name, positions in own.positions.items():
        now[name] = now[name] + positions.weight[: now[name].shape[1]]
    for layer in range(stage.layers):
        read = {}
        for name in names:
            others = [n for n in names if n != name] if stage.kind == "cross" else []
            read[name] = list(names) if stage.kind == "joint" else others or [name]
        now = {
            name: block(
                own.blocks[stage.owner(name)][layer],
                now[name],
                torch.cat([now[n] for n in read[name]], 1),
                torch.cat([valid[n] for n in read[name]], 1),
            )
            for name in names
        }
    return states | {name: own.norms[stage.owner(name)](x) for name, x in now.items()}


def run(model, embedded, valid, given=None):
    """States before and after the fusion, and the vectors of each modality."""
    states = dict(embedded)
    for own in model.stages[: model.spec.fusion]:
        states = stack(own, states, valid)
    encoded, pooled = states, {}
    for name, x in encoded.items():
        there = valid[name][..., None]
        mean = (x * there).sum(1) / there.sum(1).clamp(min=1)
        pooled[name] = x[:, 0] * there[:, 0] if model.spec.pool == "first" else mean
        if name in model.poolers:
            pooled[name] = F.relu(model.poolers[name](pooled[name])) * there[:, 0]
    read = valid
    if given is not None:  # of the fusion; a modality always reads itself
        read = {n: there & given[:, i, None] for i, (n, there) in enumerate(valid.items())}
    for own in model.stages[model.spec.fusion :]:
        states = stack(own, states, valid if own.stage.kind == "solo" else read)
    return encoded, pooled, states
