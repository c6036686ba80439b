"""Contrastive losses behind one interface: vectors of every modality in, one value per pair (or
anchor) and product out.

======== ==========================================================================================================
infonce  pairs; the positive in the denominator, negatives of the other modality: the default
eq2      pairs; Eq. 2 as printed, negatives of both directions in one denominator and the positive in none
released pairs; the authors' code, negatives of both modalities
siglip   pairs; a sigmoid for each product and candidate (Zhai et al. 2023, arXiv 2303.15343)
symile   all modalities of a product at once, by their multilinear product (Saporta et al. 2024, arXiv 2411.01053)
gram     all modalities of a product at once, by the volume they span (Cicchetti et al. 2024, arXiv 2412.11959)
======== ==========================================================================================================

Every form is ``form(vectors (B, M, D), presence (B, M), temperature, scores (B, M, M) or None, bias
or None)`` and returns values and which of them count, both (P, B) for pairs of modalities or (M, B)
for modalities as anchors. What a product lacks is neither anchor nor candidate. ``scores[b, i, j]``
multiplies the logits of product ``b`` as the anchor of pair (i, j) (Eq. 3).
"""  # noqa: E501

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Values = tuple[Float[Tensor, "P B"], Bool[Tensor, "P B"]]
Scores = Float[Tensor, "B M M"] | None


def at_least_float32(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Half precision is too coarse for a similarity that is divided by a small temperature; double
    stays double."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pairs_of(modalities: int, device=None) -> Int[Tensor, "2 P"]:
    """First and second modality of each pair, (0, 1), (0, 2), …"""
    return torch.triu_indices(modalities, modalities, offset=1, device=device)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(at_least_float32(vectors), dim=-1).transpose(0, 1)  # (M, B, D)


def _directions(vectors, presence, temperature, scores) -> Iterator[tuple[Tensor, Tensor]]:
    """For both directions: logits (P, B, B) with absent candidates at the lowest number, and which
    candidates are there (P, 1, B)."""
    first, second = pairs_of(vectors.shape[1], vectors.device)
    unit = _unit(vectors)
    similarity = unit[first] @ unit[second].transpose(1, 2) / temperature
    for logits, anchor, other in (
        (similarity, first, second),
        (similarity.transpose(1, 2), second, first),
    ):
        if scores is not None:
            logits = logits * scores[:, anchor, other].T[:, :, None]
        here = presence.T[other][:, None, :]
        yield logits.masked_fill(~here, torch.finfo(logits.dtype).min), here


def _both(presence: Bool[Tensor, "B M"]) -> Bool[Tensor, "P B"]:
    first, second = pairs_of(presence.shape[1], presence.device)
    return presence.T[first] & presence.T[second]


def pair_scores(scores: Float[Tensor, "B M M"]) -> Float[Tensor, "P B"]:
    """One score per pair: the mean of both directions."""
    first, second = pairs_of(scores.shape[1], scores.device)
    return (scores[:, first, second] + scores[:, second, first]).T / 2


def anchor_scores(
    scores: Float[Tensor, "B M M"], presence: Bool[Tensor, "B M"]
) -> Float[Tensor, "M B"]:
    """One score per modality: the mean of its scores with the others that the product has."""
    others = presence[:, None, :] & ~torch.eye(
        presence.shape[1], dtype=torch.bool, device=presence.device
    )
    return ((scores * others).sum(2) / others.sum(2).clamp(min=1)).T


def infonce(
    vectors: Float[Tensor, "B M D"],
    presence: Bool[Tensor, "B M"],
    temperature: Float[Tensor, ""],
    scores: Scores = None,
    bias: Float[Tensor, ""] | None = None,
) -> Values:
    """InfoNCE, the mean of both directions: -log softmax of the product's own vector among those of
    the other modality.

    At chance a value is log of the candidates (log B). Without the positive in the denominator (Eq.
    2 as printed, :func:`eq2`) the loss is unbounded below.
    """
    both = _both(presence)
    values = 0.0
    for logits, _ in _directions(vectors, presence, temperature, scores):
        values = values - logits.log_softmax(dim=-1).diagonal(dim1=1, dim2=2) / 2
    return values.masked_fill(~both, 0.0), both


def eq2(
    vectors: Float[Tensor, "B M D"],
    presence: Bool[Tensor, "B M"],
    temperature: Float[Tensor, ""],
    scores: Scores = None,
    bias: Float[Tensor, ""] | None = None,
) -> Values:
    """Eq. 2 as printed: the positive over the sum of the 2 (N - 1) negatives of both directions,
    not over itself too.

    So a value may be negative: once every negative is further off than the positive it goes on
    falling, to -2 / τ + log 2 (N - 1), and a product that is told apart pulls as hard as one that
    is not. A product with no negative does not count. One score per pair (:func:`pair_scores`), for
    there is one fraction.
    """
    both, negatives = _both(presence), []
    if scores is not None:
        scores = (scores + scores.transpose(1, 2)) / 2
    own = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    for logits, here in _directions(vectors, presence, temperature, scores):
        positive = logits.diagonal(dim1=1, dim2=2)
        negatives.append(logits.masked_fill(own | ~here, float("-inf")))
    both = both & torch.isfinite(torch.cat(negatives, dim=-1)).any(dim=-1)
    below = torch.cat(negatives, dim=-1).masked_fill(~both[:, :, None], 0.0).logsumexp(dim=-1)
    return (below - positive).masked_fill(~both, 0.0), both


def released_logits(
    vectors: Float[Tensor, "B M D"], temperature: Float[Tensor, ""], scores: Scores = None
) -> Float[Tensor, "P B2 B2"]:
    """(P, 2 B, 2 B) logits of the released form: rows and columns are the products in the first
    modality, then in the second."""
    first, second = pairs_of(vectors.shape[1], vectors.device)
    unit = _unit(vectors)
    stacked = torch.cat([unit[first], unit[second]], dim=1)
    logits = stacked @ stacked.transpose(1, 2) / temperature
    if scores is not None:
        logits = (
            logits
            * torch.cat([scores[:, first, second].T, scores[:, second, first].T], dim=1)[:, :, None]
        )
    return logits


def released(
    vectors: Float[Tensor, "B M D"],
    presence: Bool[Tensor, "B M"],
    temperature: Float[Tensor, ""],
    scores: Scores = None,
    bias: Float[Tensor, ""] | None = None,
) -> Values:
    """The authors' code: SimCLR's form over the 2 B vectors of a pair; negatives are all others of
    *both* modalities.

    At chance a value is log (2 B - 1).
    """
    both, count = _both(presence), len(vectors)
    logits = released_logits(vectors, temperature, scores)
    first, second = pairs_of(vectors.shape[1], vectors.device)
    here = torch.cat([presence.T[first], presence.T[second]], dim=1)[:, None, :]
    own = torch.eye(2 * count, dtype=torch.bool, device=vectors.device)
    logs = logits.masked_fill(own | ~here, torch.finfo(logits.dtype).min).log_softmax(dim=-1)
    values = -(logs.diagonal(count, 1, 2) + logs.diagonal(-count, 1, 2)) / 2
    return values.masked_fill(~both, 0.0), both


def siglip(
    vectors: Float[Tensor, "B M D"],
    presence: Bool[Tensor, "B M"],
    temperature: Float[Tensor, ""],
    scores: Scores = None,
    bias: Float[Tensor, ""] | None = None,
) -> Values:
    """Sum over candidates of -log σ(±(logit + bias)), + for the product itself and - for the
    others; the mean of both directions."""
    both = _both(presence)
    sign = (
        2 * torch.eye(len(vectors), device=vectors.device, dtype=at_least_float32(vectors).dtype)
        - 1
    )
    values = 0.0
    for logits, here in _directions(vectors, presence, temperature, scores):
        logits = logits if bias is None else logits + bias
        values = (
            values
            + F.softplus(-sign * logits.masked_fill(~here, 0.0)).masked_fill(~here, 0.0).sum(dim=-1)
            / 2
        )
    return values.masked_fill(~both, 0.0), both


def _groups(presence: Bool[Tensor, "B M"]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """For each set of two and more modalities that some product has: the set, the products with
    just this set, and those with these at least. A product is compared by what it has, with all
    that have it too."""
    for pattern in presence.unique(dim=0):
        members = pattern.nonzero()[:, 0].tolist()
        if len(members) > 1:
            yield (
                members,
                (presence == pattern).all(1).nonzero()[:, 0],
                (presence | ~pattern).all(1).nonzero()[:, 0],
            )


def symile(
    vectors: Float[Tensor, "B M D"],
    presence: Bool[Tensor, "B M"],
    temperature: Float[Tensor, ""],
    scores: Scores = None,
    bias: Float[Tensor, ""] | None = None,
) -> Values:
    """Symile: InfoNCE of every modality against the elementwise product of all others, which it
    meets in a multilinear product.

    Negatives are others of *different* products, so that only all modalities together tell them
    apart: of the candidates, the n-th other modality is rolled on by n (the paper shuffles; batches
    are shuffled already). With two modalities it is :func:`infonce`.
    """
    unit, weights = _unit(vectors), None if scores is None else anchor_scores(scores, presence)
    values = torch.zeros_like(unit[:, :, 0])
    for members, anchors, candidates in _groups(presence):
        own = candidates == anchors[:, None]
        for m in members:
            others = [unit[o] for o in members if o != m]
            rolled = torch.stack(
                [other[candidates.roll(-n)] for n, other in enumerate(others)]
            ).prod(dim=0)
            matched = (unit[m] * torch.stack(others).prod(dim=0)).sum(-1)[anchors]
            logits = torch.where(own, matched[:, None], unit[m][anchors] @ rolled.T) / temperature
            if weights is not None:
                logits = logits * weights[m, anchors, None]
            values = values.index_put(
                (torch.tensor(m, device=own.device), anchors), -logits.log_softmax(-1)[own]
            )
    return values, presence.T & (presence.sum(1) > 1)


def gram(
    vectors: Float[Tensor, "B M D"],
    presence: Bool[Tensor, "B M"],
    temperature: Float[Tensor, ""],
    scores: Scores = None,
    bias: Float[Tensor, ""] | None = None,
) -> Values:
    """GRAM: logits are minus the volume of what an anchor and the others of a candidate span, √det
    of their Gram matrix; both directions.

    The paper anchors on text; here every modality is the anchor in turn.
    """
    unit, weights = _unit(vectors), None if scores is None else anchor_scores(scores, presence)
    values = torch.zeros_like(unit[:, :, 0])
    for members, anchors, candidates in _groups(presence):
        place = (candidates == anchors[:, None]).long().argmax(dim=1)
        for m in members:
            logits = (
                -volumes(
                    unit[m][candidates],
                    torch.stack([unit[o][candidates] for o in members if o != m], dim=1),
                )
                / temperature
            )
            value = 0.0
            for rows in (logits[place], logits.T[place]):
                rows = rows if weights is None else rows * weights[m, anchors, None]
                value = value - rows.log_softmax(-1).gather(1, place[:, None])[:, 0] / 2
            values = values.index_put((torch.tensor(m, device=place.device), anchors), value)
    return values, presence.T & (presence.sum(1) > 1)


def volumes(
    anchors: Float[Tensor, "K D"], others: Float[Tensor, "K m D"], ridge: float = 1e-4
) -> Float[Tensor, "K K"]:
    """Volume spanned by anchor i and the others of candidate j, unit vectors all. ``ridge`` on the
    diagonal of the Gram matrix keeps the gradient finite where vectors coincide and the volume is
    zero, which is the aim."""
    count, size = len(anchors), others.shape[1] + 1
    across = torch.einsum("id,jmd->ijm", anchors, others).to(anchors.dtype)[
        :, :, None
    ]  # autocast may have made it coarser
    between = (others @ others.transpose(1, 2)).to(anchors.dtype).expand(count, -1, -1, -1)
    top = torch.cat([across.new_ones(count, count, 1, 1), across], dim=-1)
    matrix = torch.cat([top, torch.cat([across.transpose(2, 3), between], dim=-1)], dim=-2)
    matrix = matrix + ridge * torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.det(matrix).clamp(min=torch.finfo(matrix.dtype).tiny).sqrt()


#: Form -> function; those in :data:`AT_ONCE` give a value per modality instead of per pair.
FORMS = {
    "infonce": infonce,
    "eq2": eq2,
    "released": released,
    "siglip": siglip,
    "symile": symile,
    "gram": gram,
}
AT_ONCE = ("symile", "gram")
