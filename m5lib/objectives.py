"""Losses and harmony scores: pure functions of outputs; :func:`total` is the one place that reduces and adds them up."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from m5lib.masking import Target
from m5lib.modalities import MODALITIES, codes
from m5lib.model import Model, Output


def agreement(vectors: Float[Tensor, "B M D"]) -> Float[Tensor, "B M M"]:
    """How far the modalities of each product agree, in [0, 1]: (1 + cosine) / 2 of every two of its vectors.

    The released code takes the cosine of vectors that end in a ReLU, which is never negative. Ours may be, and a negative score turns
    a pair round: its loss then falls as the two vectors point away from each other, which is what happened (``LOG.md``).
    """
    unit = F.normalize(vectors.float(), dim=-1)
    return (1 + unit @ unit.transpose(1, 2)) / 2


def harmony(similarity: Float[Tensor, "B M M"], presence: Bool[Tensor, "B M"]) -> Float[Tensor, "B M M"]:
    """Self-harmony scores of each product: rows of S · softmax(S), scaled to unit length.

    The abstract says "learned from the modality embeddings" and the released code does this; section 4.3 speaks of free
    parameters that start at zero, which cannot start to learn. An absent modality has no part: its row and column are zero.
    """
    both = presence[:, :, None] & presence[:, None, :]
    weight = similarity.masked_fill(~both, float("-inf")).masked_fill(~presence[:, :, None], 0.0).softmax(dim=-1)
    return F.normalize((similarity * weight).masked_fill(~both, 0.0), dim=-1)


def pairwise_infonce(
    vectors: Float[Tensor, "B M D"],
    presence: Bool[Tensor, "B M"],
    temperature: Float[Tensor, ""],
    scores: Float[Tensor, "B M M"] | None = None,
) -> tuple[Float[Tensor, "P B"], Bool[Tensor, "P B"]]:
    """InfoNCE of every pair of modalities, both directions averaged: one value per pair and product.

    The positive is the same product in the other modality, negatives are the other products in that modality that have it (Eq. 2's
    cross-modal negatives, with the positive in the denominator; without it the loss is unbounded below). ``scores[b, i, j]``
    multiplies the logits of product ``b`` as the anchor of pair (i, j) (Eq. 3). At chance a value is log B.

    Returns:
        values (P, B), zero where a product lacks one of the two, and which of them count.
    """
    first, second = torch.triu_indices(vectors.shape[1], vectors.shape[1], offset=1, device=vectors.device)
    unit = F.normalize(vectors.float(), dim=-1).transpose(0, 1)  # (M, B, D)
    here = presence.T
    similarity = unit[first] @ unit[second].transpose(1, 2) / temperature  # (P, B, B)
    values = 0.0
    for logits, anchor, other in ((similarity, first, second), (similarity.transpose(1, 2), second, first)):
        if scores is not None:
            logits = logits * scores[:, anchor, other].T[:, :, None]
        logits = logits.masked_fill(~here[other][:, None, :], torch.finfo(logits.dtype).min)
        values = values - logits.log_softmax(dim=-1).diagonal(dim1=1, dim2=2) / 2
    count = here[first] & here[second]
    return values.masked_fill(~count, 0.0), count


def masked_values(
    predictions: Mapping[str, Float[Tensor, "S F"]],
    targets: Mapping[str, Target],
    scores: Float[Tensor, "B M"] | None = None,
) -> dict[str, Float[Tensor, " S"]]:
    """Eq. 1 for every modality: one value per masked token. Cross-entropy for words, mean squared error for features.

    ``scores[b, m]`` multiplies the predictions of modality ``m`` for product ``b`` (Eq. 3's diagonal).
    """
    values = {}
    for column, (name, prediction) in enumerate(predictions.items()):
        prediction, target = prediction.float(), targets[name]
        if scores is not None:
            prediction = prediction * scores[target.product, column, None]
        if MODALITIES[name].kind == "words":
            values[name] = F.cross_entropy(prediction, target.value, reduction="none")
        else:
            values[name] = (prediction - target.value).square().mean(dim=-1)
    return values


def _mean(values: Tensor, count: Tensor) -> Tensor:
    """Mean over what counts; zero, with a gradient path, where nothing does (a batch without a masked token)."""
    return values.sum() / count.clamp(min=1)


def total(model: Model, output: Output, targets: Mapping[str, Target]) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 3: the masked tasks summed, plus the mean over pairs of the contrast.

    Returns:
        the loss, and its parts by name: the masked task of each modality (``MLM`` …) and ``contrast_I+T`` of each pair.
    """
    objective, names, parts = model.spec.objective, tuple(output.pooled), {}
    embedded = objective.harmony == "embedding"
    if objective.masked:
        on = embedded and "masked" in objective.harmony_on and len(names) > 1
        fused = torch.stack([output.summary[name] for name in names], dim=1)
        diagonal = harmony(agreement(fused), output.presence).diagonal(dim1=1, dim2=2) if on else None
        for name, values in masked_values(model.predict(output, targets), targets, diagonal).items():
            parts[MODALITIES[name].task] = _mean(values, torch.tensor(len(values)))
    loss = sum(parts.values(), start=torch.zeros((), device=output.presence.device))
    if objective.contrast != "none" and len(names) > 1:
        vectors = torch.stack([output.pooled[name] for name in names], dim=1)
        on = embedded and "contrast" in objective.harmony_on
        scores = harmony(agreement(vectors), output.presence) if on else None
        values, count = pairwise_infonce(vectors, output.presence, model.log_temperature.exp(), scores)
        per_pair = values.sum(1) / count.sum(1).clamp(min=1)
        loss = loss + _mean(per_pair, count.any(dim=1).sum())
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        parts |= {f"contrast_{codes(pair)}": value for pair, value in zip(pairs, per_pair, strict=True)}
    return loss, parts
