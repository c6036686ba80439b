"""Two contrasts that the library does not have, added as one adds one's own: all modalities of a
product at once. :func:`register` makes their names known."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from m5lib import simcl
from m5lib.simcl import (
    Bias,
    Presence,
    Scores,
    Tau,
    Values,
    Vectors,
    anchor_scores,
    at_least_float32,
)


def _groups(presence: Presence) -> Iterator[tuple[list[int], Tensor, Tensor]]:
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
    vectors: Vectors, presence: Presence, temperature: Tau, scores: Scores = None, bias: Bias = None
) -> Values:
    """Symile: InfoNCE of every modality against the elementwise product of all others, which it
    meets in a multilinear product.

    Negatives are others of *different* products, so that only all modalities together tell them
    apart: of the candidates, the n-th other modality is rolled on by n (the paper shuffles; batches
    are shuffled already). With two modalities it is :func:`infonce`.
    """
    unit, weights = (
        F.normalize(at_least_float32(vectors), dim=-1).transpose(0, 1),
        None if scores is None else anchor_scores(scores, presence),
    )
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
    vectors: Vectors, presence: Presence, temperature: Tau, scores: Scores = None, bias: Bias = None
) -> Values:
    """GRAM: logits are minus the volume of what an anchor and the others of a candidate span, √det
    of their Gram matrix; both directions.

    The paper anchors on text; here every modality is the anchor in turn.
    """
    unit, weights = (
        F.normalize(at_least_float32(vectors), dim=-1).transpose(0, 1),
        None if scores is None else anchor_scores(scores, presence),
    )
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


FORMS = {"symile": symile, "gram": gram}


def register(patch) -> None:
    """Make the names known, for one test."""
    for name, form in FORMS.items():
        patch.setitem(simcl.FORMS, name, form)
    patch.setattr(simcl, "AT_ONCE", {*simcl.AT_ONCE, *FORMS})
