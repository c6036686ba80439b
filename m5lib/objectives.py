"""Masked losses, matching and harmony scores; :func:`total` is the one place that reduces and adds
up. Contrast: :mod:`m5lib.simcl`."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from m5lib import simcl
from m5lib.masking import Target
from m5lib.modalities import MODALITIES, codes
from m5lib.model import Model, Output
from m5lib.simcl import at_least_float32
from m5lib.streams import Batch


def cosine(vectors: Float[Tensor, "B M D"]) -> Float[Tensor, "B M M"]:
    """Cosines of every two vectors of each product (released code, whose vectors are never
    negative)."""
    unit = F.normalize(at_least_float32(vectors), dim=-1)
    return unit @ unit.transpose(1, 2)


def agreement(vectors: Float[Tensor, "B M D"]) -> Float[Tensor, "B M M"]:
    """How far the modalities of each product agree, in [0, 1]: (1 + cosine) / 2 of every two of its
    vectors.

    The released code takes the cosine of vectors that end in a ReLU, which is never negative. Ours
    may be, and a negative score turns
    a pair round: its loss then falls as the two vectors point away from each other, which is what
    happened (``LOG.md``).
    """
    return (1 + cosine(vectors)) / 2


def harmony(
    similarity: Float[Tensor, "B M M"], presence: Bool[Tensor, "B M"]
) -> Float[Tensor, "B M M"]:
    """Self-harmony scores of each product: rows of S · softmax(S), scaled to unit length.

    The abstract says "learned from the modality embeddings" and the released code does this;
    section 4.3 speaks of free parameters that start at zero, which cannot start to learn. An absent
    modality has no part: its row and column are zero.
    """
    both = presence[:, :, None] & presence[:, None, :]
    weight = (
        similarity.masked_fill(~both, float("-inf"))
        .masked_fill(~presence[:, :, None], 0.0)
        .softmax(dim=-1)
    )
    return F.normalize((similarity * weight).masked_fill(~both, 0.0), dim=-1)


def free_harmony(
    matrix: Float[Tensor, "M M"], presence: Bool[Tensor, "B M"]
) -> Float[Tensor, "B M M"]:
    """Scores from free parameters in a form that trains: each row is the number of modalities
    present times softmax(S) over these.

    All ones at S = 0, positive, and of mean one in every row, so that no score can turn a pair
    round or switch everything off. One matrix for all products, where section 4.3 has one per
    sample: a product never seen has no parameters.
    """
    both = presence[:, :, None] & presence[:, None, :]
    weight = (
        matrix.expand(len(presence), -1, -1)
        .masked_fill(~both, float("-inf"))
        .masked_fill(~presence[:, :, None], 0.0)
        .softmax(dim=-1)
    )
    return (weight * presence.sum(1)[:, None, None]).masked_fill(~both, 0.0)


def literal_harmony(
    matrix: Float[Tensor, "M M"], presence: Bool[Tensor, "B M"]
) -> Float[Tensor, "B M M"]:
    """Section 4.3 to the letter: S · softmax(S) of a matrix that starts at zero. Kept to be seen to
    fail.

    At zero every logit is multiplied by zero: the encoders get no gradient, only S does. It then
    moves to either sign, and a negative score rewards vectors that point away from each other; on
    losses the total is unbounded below (the audit's toy, notebook 03).
    """
    both = presence[:, :, None] & presence[:, None, :]
    return (matrix * matrix.softmax(dim=-1)).expand(len(presence), -1, -1).masked_fill(~both, 0.0)


def scores(
    model: Model, vectors: Float[Tensor, "B M D"], presence: Bool[Tensor, "B M"]
) -> Float[Tensor, "B M M"] | None:
    """The model's harmony scores S of each product from its modalities' vectors; None where all are
    one (plain IMCL).

    ``Objective.pair_order`` puts the score of the row that comes first in it into both halves of
    the matrix.
    """
    objective, names = model.spec.objective, model.spec.modalities
    if objective.harmony == "uniform" or len(names) < 2:
        return None
    if objective.harmony == "embedding":
        found = harmony(
            {"shifted": agreement, "cosine": cosine}[objective.agreement](vectors), presence
        )
    else:
        found = {"free": free_harmony, "literal": literal_harmony}[objective.harmony](
            model.scores, presence
        )
    if objective.pair_order:
        order = objective.pair_order
        place = torch.tensor(
            [
                order.index(name) if name in order else len(order) + n
                for n, name in enumerate(names)
            ],
            device=found.device,
        )
        found = torch.where(place[:, None] <= place[None, :], found, found.transpose(1, 2))
    return found


def masked_values(
    predictions: Mapping[str, Float[Tensor, "S F"]],
    targets: Mapping[str, Target],
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
            values[name] = F.kl_div(
                prediction.log_softmax(-1), target.value.to(prediction.dtype), reduction="none"
            ).sum(-1)
        elif MODALITIES[name].kind == "words":
            values[name] = F.cross_entropy(prediction, target.value, reduction="none")
        else:
            values[name] = (prediction - target.value).square().mean(dim=-1)
    return values


def matching_values(
    model: Model, output: Output
) -> dict[str, tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]]:
    """Image-text matching: cross-entropy of telling a product's own title from that of the product
    before it in the batch.

    Returns:
        for each modality of ``Objective.matching``: values (2 B,), first the own, then the other's,
        and which of them count: the title is there, and something to match it with.
    """
    found, names = {}, model.spec.modalities
    own = model.match(output)
    for name, logit in own.items():
        rest = output.presence[:, [n for n, other in enumerate(names) if other != name]].any(dim=1)
        swapped = {**output.embedded, name: output.embedded[name].roll(1, dims=0)}
        valid = {**output.valid, name: output.valid[name].roll(1, dims=0)}
        other = model.match(model.forward_from_embeddings(swapped, valid, wanted={}))[name]
        values = F.softplus(torch.cat([-logit, other]).float())
        found[name] = values, torch.cat([output.valid[name][:, 0] & rest, valid[name][:, 0] & rest])
    return found


def masked_tokens(
    model: Model, targets: Mapping[str, Target], batch: Batch
) -> dict[str, Bool[Tensor, "B L"]]:
    """Which fused tokens the masked tasks will read: ``wanted`` of
    :meth:`m5lib.model.Model.forward`."""
    if model.spec.objective.reads != "fused":
        return {}
    found = {name: torch.zeros_like(batch.streams[name].valid) for name in targets}
    for name, target in targets.items():
        found[name][target.product, target.token] = True
    return found


def _mean(values: Tensor, count: Tensor) -> Tensor:
    """Mean over what counts; zero, with a gradient path, where nothing does (a batch without a
    masked token)."""
    return values.sum() / count.clamp(min=1)


def _masked(model: Model, output: Output, predictions, targets) -> dict[str, Tensor]:
    """The masked tasks by name, scores applied."""
    objective, names, parts = model.spec.objective, model.spec.modalities, {}
    diagonal = None
    if "masked" in objective.harmony_on and predictions:
        found = scores(
            model, torch.stack([output.summary[name] for name in names], dim=1), output.presence
        )
        diagonal = (
            None
            if found is None
            else found.diagonal(dim1=1, dim2=2)[:, [names.index(name) for name in predictions]]
        )
    on_logits = diagonal if objective.acts_on == "logits" else None
    for column, (name, values) in enumerate(masked_values(predictions, targets, on_logits).items()):
        if diagonal is not None and on_logits is None:
            values = values * diagonal[targets[name].product, column]
        parts[MODALITIES[name].task] = _mean(values, torch.tensor(len(values)))
    return parts


def _contrast(model: Model, output: Output) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the pairs (or anchors), and each by name."""
    objective, names = model.spec.objective, model.spec.modalities
    vectors = torch.stack([output.pooled[name] for name in names], dim=1)
    found = scores(model, vectors, output.presence) if "contrast" in objective.harmony_on else None
    on_logits = found if objective.acts_on == "logits" else None
    bias = getattr(model, "contrast_bias", None)
    values, count = simcl.FORMS[objective.contrast](
        vectors, output.presence, model.temperature, on_logits, bias
    )
    at_once = objective.contrast in simcl.AT_ONCE
    if found is not None and on_logits is None:
        values = values * (
            simcl.anchor_scores(found, output.presence) if at_once else simcl.pair_scores(found)
        )
    per_pair, here = values.sum(1) / count.sum(1).clamp(min=1), count.any(dim=1)
    sides = (
        [(name,) for name in names]
        if at_once
        else [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    )
    if objective.pairs == "neighbours" and not at_once:
        kept = [n for n, (a, b) in enumerate(sides) if names.index(b) == names.index(a) + 1]
        sides, per_pair, here = [sides[n] for n in kept], per_pair[kept], here[kept]
    return _mean(per_pair, here.sum()), {
        f"contrast_{codes(side)}": value for side, value in zip(sides, per_pair, strict=True)
    }


def total(
    model: Model, output: Output, targets: Mapping[str, Target]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 3: the masked tasks summed, plus matching, plus the mean over pairs of the contrast.

    Returns:
        the loss, and its parts by name: the masked task of each modality (``MLM`` …),
        ``matching_T``, and ``contrast_I+T`` of each pair (``contrast_I`` of each anchor, for forms
        that take all modalities at once).

    Raises:
        ValueError: contrast or matching of one product, which has nothing to be told from.
    """
    objective, device = model.spec.objective, output.presence.device
    contrasted = objective.contrast != "none" and len(model.spec.modalities) > 1
    if (contrasted or model.matchers) and len(output.presence) < 2:
        raise ValueError(
            "contrast and matching compare products: a batch of one has nothing to be told from; "
            "give two or more"
        )
    predictions = model.predict(output, targets)
    matched = matching_values(model, output)
    with torch.autocast(
        device.type, enabled=False
    ):  # a product of unit vectors, over a temperature of 0.015, is too coarse in bf16
        parts = _masked(model, output, predictions, targets)
        parts |= {
            f"matching_{codes([name])}": _mean(values * count, count.sum())
            for name, (values, count) in matched.items()
        }
        loss = sum(parts.values(), start=torch.zeros((), device=device))
        if contrasted:
            mean, pairs = _contrast(model, output)
            loss, parts = loss + mean, parts | pairs
    return loss, parts
