"""Masked losses and matching; :func:`total` is the one place that reduces and adds up (Eq. 3).
Contrast and harmony scores: :mod:`m5lib.simcl`.

>>> batch, targets = mask(batch, tokenizer, generator)
>>> loss, parts = total(model, model(batch), targets)  # parts: MLM, MEM, …, contrast_I+T, …
>>> loss.backward()
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from m5lib import simcl
from m5lib.masking import Targets
from m5lib.modalities import MODALITIES, codes
from m5lib.model import Model, Output
from m5lib.simcl import at_least_float32

#: States and ``valid`` of a title of each product, by modality.
Titles = Mapping[str, tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]] | None


def masked_values(
    predictions: Mapping[str, Float[Tensor, "S F"]],
    targets: Targets,
    scores: Float[Tensor, "B M"] | None = None,
) -> dict[str, Float[Tensor, " S"]]:
    """Eq. 1 for every modality: one value per masked token. Cross-entropy for words, mean squared
    error for features, and for class probabilities p the divergence KL(p ‖ softmax(prediction)).

    ``scores[b, m]`` multiplies the predictions of modality ``m`` for product ``b`` (Eq. 3's
    diagonal).
    """
    values = {}
    for column, (name, prediction) in enumerate(predictions.items()):
        prediction, target = at_least_float32(prediction), targets[name]
        if scores is not None:
            prediction = prediction * scores[target.product, column, None]
        if target.probability:
            logs, goal = prediction.log_softmax(-1), target.value.to(prediction.dtype)
            values[name] = F.kl_div(logs, goal, reduction="none").sum(-1)
        elif MODALITIES[name].kind == "words":
            values[name] = F.cross_entropy(prediction, target.value, reduction="none")
        else:
            values[name] = (prediction - target.value).square().mean(dim=-1)
    return values


def matched(presence: simcl.Presence, column: int, before: Bool[Tensor, " B"]) -> Tensor:
    """(2 B,) which values of matching count: the title is there, the own or that of the product
    ``before``, and something to match it with."""
    rest = presence.sum(1) > presence[:, column].long()
    return torch.cat([presence[:, column] & rest, before & rest])


def matching_values(
    model: Model, output: Output, before: Titles = None
) -> dict[str, tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]]:
    """Image-text matching: cross-entropy of telling a product's own title from its neighbour's (of
    ``before``; by default that before it in the batch). For each modality of
    ``Objective.matching``: values (2 B,), first the own, then the other's, and which of them count
    (:func:`matched`)."""
    values, names = {}, model.spec.modalities
    for name, own in model.match(output).items():
        rolled = (x[name].roll(1, dims=0) for x in (output.embedded, output.valid))
        title, there = before[name] if before else rolled
        swapped, valid = {**output.embedded, name: title}, {**output.valid, name: there}
        other = model.match(model.forward_from_embeddings(swapped, valid, wanted={}))[name]
        counts = matched(output.presence, names.index(name), there[:, 0])
        values[name] = F.softplus(at_least_float32(torch.cat([-own, other]))), counts
    return values


def stacked(summaries: Mapping[str, Float[Tensor, "B D"]]) -> simcl.Vectors:
    """The vectors of all modalities, (B, M, D)."""
    return torch.stack(list(summaries.values()), dim=1)


def _mean(values: Tensor, count: Tensor) -> Tensor:
    """Mean over what counts; zero, with a gradient path, where nothing does."""
    return values.sum() / count.clamp(min=1)


def _masked(model: Model, output: Output, predictions, targets) -> dict[str, Tensor]:
    """The masked tasks by name, scores applied: the diagonal of S."""
    objective, names, parts, diagonal = model.spec.objective, model.spec.modalities, {}, None
    if "masked" in objective.harmony_on and predictions:
        summaries = output.pooled if objective.diagonal == "encoded" else output.summary
        s = simcl.scores(model, stacked(summaries), output.presence)
        columns = [names.index(name) for name in predictions]
        diagonal = None if s is None else s.diagonal(dim1=1, dim2=2)[:, columns]
    on_logits = diagonal if objective.acts_on == "logits" else None
    several = masked_values(predictions, targets, on_logits)
    for column, (name, values) in enumerate(several.items()):
        if diagonal is not None and on_logits is None:
            values = values * diagonal[targets[name].product, column]
        parts[MODALITIES[name].task] = _mean(values, torch.tensor(len(values)))
    return parts


def apart(model: Model, output: Output, targets: Targets, before: Titles = None) -> dict:
    """The masked tasks and matching (``before``: :func:`matching_values`) by name, each a mean."""
    predictions = model.predict(output, targets)
    matching = matching_values(model, output, before)
    # a product of unit vectors, over a small temperature, is too coarse in bf16
    with torch.autocast(output.presence.device.type, enabled=False):
        parts = _masked(model, output, predictions, targets)
        for name, (values, count) in matching.items():
            parts[f"matching_{codes([name])}"] = _mean(values * count, count.sum())
    return parts


def contrast(model: Model, vectors: simcl.Vectors, presence: simcl.Presence) -> tuple[Tensor, dict]:
    """Mean or sum over the pairs (or anchors), and each by name."""
    objective, names = model.spec.objective, model.spec.modalities
    at_once = objective.contrast in simcl.AT_ONCE
    s = simcl.scores(model, vectors, presence) if "contrast" in objective.harmony_on else None
    on_logits = s if objective.acts_on == "logits" else None
    bias = getattr(model, "contrast_bias", None)
    form = simcl.FORMS[objective.contrast]
    values, count = form(vectors, presence, model.temperature, on_logits, bias)
    if s is not None and on_logits is None:
        weights = simcl.anchor_scores(s, presence) if at_once else simcl.pair_scores(s)
        values = values * weights
    means, there = values.sum(1) / count.sum(1).clamp(min=1), count.any(dim=1)
    sides = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    if at_once:
        sides = [(name,) for name in names]
    elif objective.pairs == "neighbours":
        kept = [n for n, (a, b) in enumerate(sides) if names.index(b) == names.index(a) + 1]
        sides, means, there = [sides[n] for n in kept], means[kept], there[kept]
    parts = {f"contrast_{codes(side)}": value for side, value in zip(sides, means, strict=True)}
    return means.sum() if objective.over_pairs == "sum" else _mean(means, there.sum()), parts


def fused_loss(output: Output) -> Float[Tensor, ""]:
    """1 - cosine of the fused vector (the sum of its first tokens) and the sum of the summaries
    before the fusion, each of unit length.

    The fused vector learns to be what the contrast has taught the summaries, which get no gradient;
    with ``Objective.drop`` it has seen some of the modalities and foretells the rest.
    """
    # of an absent modality it is the zero vector
    target = sum(F.normalize(at_least_float32(x.detach()), dim=-1) for x in output.pooled.values())
    fused = at_least_float32(sum(output.summary.values()))
    return 1 - F.cosine_similarity(fused, target, dim=-1).mean()


def total(model: Model, output: Output, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 3: the masked tasks summed, plus matching, plus the contrast, the mean over the
    pairs (``Objective.over_pairs``), plus the weighted :func:`fused_loss` where a row has one.

    Returns the loss, and its parts by name: the masked task of each modality (``MLM`` …),
    ``matching_T``, and ``contrast_I+T`` of each pair (``contrast_I`` of each anchor, for forms that
    take all modalities at once), ``fused`` before its weight.

    Raises ``ValueError``: contrast or matching of one product.
    """
    presence = output.presence
    if (model.spec.contrasted or model.matchers) and len(presence) < 2:
        raise ValueError("contrast and matching compare products: give two or more in a batch")
    parts = apart(model, output, targets)
    loss = sum(parts.values(), start=torch.zeros((), device=presence.device))
    if model.spec.contrasted:
        with torch.autocast(presence.device.type, enabled=False):
            value, pairs = contrast(model, stacked(output.pooled), presence)
        loss, parts = loss + value, parts | pairs
    if weight := model.spec.objective.fused:
        parts["fused"] = fused_loss(output)
        loss = loss + weight * parts["fused"]
    return loss, parts
