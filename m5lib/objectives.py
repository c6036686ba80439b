"""Masked losses and matching; :func:`total` is the one place that reduces and adds up (Eq. 3).
Contrast and harmony scores: :mod:`m5lib.simcl`.

>>> batch, targets = mask(batch, Vocabulary.of(tokenizer), generator)
>>> loss, parts = total(model, model(batch), targets)  # parts: MLM, MEM, …, contrast_I+T, …
>>> loss.backward()
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from m5lib import simcl
from m5lib.masking import Target
from m5lib.modalities import MODALITIES, codes
from m5lib.model import Model, Output
from m5lib.simcl import at_least_float32
from m5lib.streams import Stream


@dataclass(frozen=True)
class Whole:
    """What losses of a part of a batch have to know of all of it (:mod:`m5lib.models.parallel`), so
    that those of its parts add up to its own.

    Attributes:
        counts: how many values each loss is the mean of, by its name.
        variances: of the features to be predicted, by modality, for unit targets.
        before: for matching, the words of the product before each of the part's.
    """

    counts: Mapping[str, Tensor]
    variances: Mapping[str, Tensor]
    before: Mapping[str, Stream]


def masked_values(
    predictions: Mapping[str, Float[Tensor, "S F"]],
    targets: Mapping[str, Target],
    scores: Float[Tensor, "B M"] | None = None,
    unit: bool = False,
    variances: Mapping[str, Tensor] | None = None,
) -> dict[str, Float[Tensor, " S"]]:
    """Eq. 1 for every modality: one value per masked token. Cross-entropy for words, mean squared
    error for features, and for class probabilities p the divergence KL(p ‖ softmax(prediction)).

    ``scores[b, m]`` multiplies the predictions of modality ``m`` for product ``b`` (Eq. 3's
    diagonal). ``unit`` divides squared errors by the variance of the features that are predicted,
    so that modalities with small features count as much as the others (``variances``, if given).
    """
    values, variances = {}, variances or {}
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
            if unit and (name in variances or len(target.value) > 1):
                spread = variances.get(name)
                spread = at_least_float32(target.value).var(0).mean() if spread is None else spread
                values[name] = values[name] / spread.clamp(min=1e-6)
    return values


def matched(
    presence: Bool[Tensor, "B M"], column: int, before: Bool[Tensor, " B"]
) -> Bool[Tensor, " N"]:
    """Which of the 2 B values of matching count: the title is there, the own or that of the product
    ``before``, and something to match it with."""
    others = torch.arange(presence.shape[1], device=presence.device) != column
    rest = (presence & others).any(dim=1)
    return torch.cat([presence[:, column] & rest, before & rest])


def matching_values(
    model: Model, output: Output, before: Mapping[str, Stream] | None = None
) -> dict[str, tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]]:
    """Image-text matching: cross-entropy of telling a product's own title from its neighbour's.

    Returns:
        for each modality of ``Objective.matching``: values (2 B,), first the own, then the other's,
        and which of them count (:func:`matched`).
    """
    values, names = {}, model.spec.modalities
    for name, own in model.match(output).items():
        title, there = output.embedded[name].roll(1, dims=0), output.valid[name].roll(1, dims=0)
        if before is not None:
            title, there = (
                model.embeddings[model.spec.owner(name)](before[name]),
                before[name].valid,
            )
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


def _masked(model: Model, output: Output, predictions, targets, whole) -> dict[str, Tensor]:
    """The masked tasks by name, scores applied: the diagonal of S."""
    objective, names, parts, diagonal = model.spec.objective, model.spec.modalities, {}, None
    if "masked" in objective.harmony_on and predictions:
        summaries = output.pooled if objective.diagonal == "encoded" else output.summary
        s = model.harmony(stacked(summaries), output.presence)
        columns = [names.index(name) for name in predictions]
        diagonal = None if s is None else s.diagonal(dim1=1, dim2=2)[:, columns]
    on_logits = diagonal if objective.acts_on == "logits" else None
    unit, variances = objective.targets == "unit", whole and whole.variances
    several = masked_values(predictions, targets, on_logits, unit, variances)
    for column, (name, values) in enumerate(several.items()):
        if diagonal is not None and on_logits is None:
            values = values * diagonal[targets[name].product, column]
        task, own = MODALITIES[name].task, torch.tensor(len(values))
        parts[task] = _mean(values, whole.counts[task] if whole else own)
    return parts


def contrast(
    model: Model, vectors: simcl.Vectors, presence: simcl.Presence
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean or sum over the pairs (or anchors), and each by name."""
    objective, names = model.spec.objective, model.spec.modalities
    at_once = objective.contrast in simcl.AT_ONCE
    s = model.harmony(vectors, presence) if "contrast" in objective.harmony_on else None
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


def fused_loss(output: Output, count: Tensor | None = None) -> Float[Tensor, ""]:
    """1 - cosine of the fused vector (the sum of its first tokens) and the sum of the summaries
    before the fusion, each of unit length.

    The fused vector learns to be what the contrast has taught the summaries; with
    ``Objective.drop`` it has seen some of the modalities and foretells the rest. The target gets
    no gradient, and there are no negatives that could be learned by heart. ``count``: the products
    of the whole batch, of which these are some.
    """
    # of an absent modality it is the zero vector
    target = sum(F.normalize(at_least_float32(x.detach()), dim=-1) for x in output.pooled.values())
    fused = at_least_float32(sum(output.summary.values()))
    cosines = F.cosine_similarity(fused, target, dim=-1)
    return 1 - cosines.mean() if count is None else (1 - cosines).sum() / count


def total(
    model: Model, output: Output, targets: Mapping[str, Target], whole: Whole | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 3: the masked tasks summed, plus matching, plus the contrast, the mean over the
    pairs (``Objective.over_pairs``), plus the weighted :func:`fused_loss` where a row has one. With
    ``whole``, of a part of a batch: without the contrast, which takes all of it.

    Returns:
        the loss, and its parts by name: the masked task of each modality (``MLM`` …),
        ``matching_T``, and ``contrast_I+T`` of each pair (``contrast_I`` of each anchor, for forms
        that take all modalities at once), ``fused`` before its weight.

    Raises:
        ValueError: contrast or matching of one product, which has nothing to be told from.
    """
    device, compares = output.presence.device, model.spec.contrasted or model.matchers
    if whole is None and compares and len(output.presence) < 2:
        raise ValueError("contrast and matching compare products: give two or more in a batch")
    predictions = model.predict(output, targets)
    matching = matching_values(model, output, whole and whole.before)
    # a product of unit vectors, over a small temperature, is too coarse in bf16
    with torch.autocast(device.type, enabled=False):
        parts = _masked(model, output, predictions, targets, whole)
        for name, (values, count) in matching.items():
            part = f"matching_{codes([name])}"
            parts[part] = _mean(values * count, whole.counts[part] if whole else count.sum())
        loss = sum(parts.values(), start=torch.zeros((), device=device))
        if model.spec.contrasted and whole is None:
            value, pairs = contrast(model, stacked(output.pooled), output.presence)
            loss, parts = loss + value, parts | pairs
        if weight := model.spec.objective.fused:
            parts["fused"] = fused_loss(output, whole and whole.counts["fused"])
            loss = loss + weight * parts["fused"]
    return loss, parts
