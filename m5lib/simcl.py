"""SIMCL (section 4.3): harmony scores S, and the contrast between modalities that they weigh.

Both are tables of small functions, :data:`HARMONY` and :data:`FORMS`; :mod:`m5lib.spec` names the
rows that a model uses. One of your own is a function and a line: ``FORMS["mine"] = mine``.

>>> s = harmony(agreement(vectors), presence)  # (B, 5, 5) from the vectors (B, 5, D) of a product
>>> values, counts = infonce(vectors, presence, torch.tensor(0.07), s)  # (10 pairs, B)
>>> loss = (values.sum(1) / counts.sum(1)).mean()
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Vectors = Float[Tensor, "B M D"]
Presence = Bool[Tensor, "B M"]
Square = Float[Tensor, "B M M"]
Matrix = Float[Tensor, "M M"]
Scalar = Float[Tensor, ""]


def at_least_float32(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Half precision is too coarse for similarities over a small temperature."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --- harmony scores -------------------------------------------------------------------------------


def cosine(vectors: Vectors) -> Square:
    """Cosines of every two vectors of each product (released code: a ReLU keeps them positive)."""
    unit = F.normalize(at_least_float32(vectors), dim=-1)
    return unit @ unit.transpose(1, 2)


def agreement(vectors: Vectors) -> Square:
    """How far a product's modalities agree, in [0, 1]: (1 + cosine) / 2 of every two vectors.

    Ours may have negative cosines, and a negative score turns a pair round: its loss then falls as
    the two vectors point away from each other, which is what happened (``LOG.md``).
    """
    return (1 + cosine(vectors)) / 2


def _softmax(s: Tensor, presence: Presence) -> tuple[Square, Bool[Tensor, "B M M"]]:
    """Softmax of each row over the modalities that are there, and which entries are."""
    both = presence[:, :, None] & presence[:, None, :]
    s = s.expand(len(presence), -1, -1).masked_fill(~both, float("-inf"))
    return s.masked_fill(~presence[:, :, None], 0.0).softmax(dim=-1), both


def _mean(x: Tensor, there: Tensor, dim) -> Tensor:
    """Mean over what is there, 0 where nothing is; the dimensions stay."""
    return (x * there).sum(dim, keepdim=True) / there.sum(dim, keepdim=True).clamp(min=1)


def harmony(similarity: Square, presence: Presence) -> Square:
    """The released code's scores: rows of S · softmax(S), scaled to unit length.

    They reward disagreement: S_ii falls from 1 to 1/√M as the modalities of a product come to
    agree, and a larger S_ii sharpens its masked task (notebook 09, ``LOG.md``). Section 4.3 has
    free parameters instead (:func:`literal`). An absent modality's row and column are zero.
    """
    weight, both = _softmax(similarity, presence)
    return F.normalize((similarity * weight).masked_fill(~both, 0.0), dim=-1)


def mutual(similarity: Square, presence: Presence) -> Square:
    """One S of a product, which no loss can change by pulling its modalities apart: the default.

    G · softmax(G), divided by its mean over the product, where G is the agreement of the vectors
    before the fusion, and G_ii the mean agreement of modality i with the others: a task weighs more
    the more the others can say about it. All ones where everything agrees alike, or nothing is
    there to agree with. There is no gradient through S: dL/dS has either sign, so that scores that
    follow the agreement *with* their gradient reward disagreement somewhere (notebook 09).
    """
    both = presence[:, :, None] & presence[:, None, :]
    own = torch.eye(both.shape[-1], dtype=torch.bool, device=both.device)
    others, g = both & ~own, similarity.detach().clamp(min=0)  # below 0 would turn a pair round
    g = torch.where(own, _mean(g, others, 2), g)
    s = g * _softmax(g, presence)[0]
    s = (s * both) / _mean(s, both, (1, 2)).clamp(min=1e-6)
    return torch.where(others.any(2).any(1)[:, None, None], s, both.to(s.dtype))


def free(matrix: Matrix, presence: Presence) -> Square:
    """Scores from free parameters in a form that trains: each row is the number of modalities
    present times softmax(S) over these, so positive and of mean one; all ones at S = 0.

    One matrix for all products (section 4.3: one per sample, of which a new product has none).
    """
    weight, both = _softmax(matrix, presence)
    return (weight * presence.sum(1)[:, None, None]).masked_fill(~both, 0.0)


def literal(matrix: Matrix, presence: Presence) -> Square:
    """Section 4.3 to the letter: S · softmax(S) of a matrix that starts at zero; it fails.

    At zero only S gets a gradient, not the encoders. It then moves to either sign, and a negative
    score rewards vectors that point away from each other.
    """
    both = presence[:, :, None] & presence[:, None, :]
    return (matrix * matrix.softmax(dim=-1)).expand(len(presence), -1, -1).masked_fill(~both, 0.0)


#: ``Objective.harmony`` -> form(start, presence) -> S. The start is the agreement of a product's
#: vectors (B, M, M), or, for those in :data:`FREE`, a matrix (M, M) of parameters.
HARMONY = {"mutual": mutual, "embedding": harmony, "free": free, "literal": literal}
FREE = ("free", "literal")
#: ``Objective.agreement``: what the scores start from.
AGREEMENT = {"shifted": agreement, "cosine": cosine}


def scores(model, vectors: Vectors, presence: Presence) -> Square | None:
    """S of each product by the objective of a model, which holds the parameters of a form in
    :data:`FREE`; None where all are one (plain IMCL)."""
    objective, names = model.spec.objective, model.spec.modalities
    if objective.harmony == "uniform" or len(names) < 2:
        return None
    start = model.scores if objective.harmony in FREE else AGREEMENT[objective.agreement](vectors)
    s = HARMONY[objective.harmony](start, presence)
    if order := objective.pair_order:  # the score of the first in this order, in both halves of S
        place = [order.index(n) if n in order else len(order) + i for i, n in enumerate(names)]
        place = torch.tensor(place, device=s.device)
        s = torch.where(place[:, None] <= place[None, :], s, s.transpose(1, 2))
    return s


def pair_scores(scores: Square) -> Float[Tensor, "P B"]:
    """One score per pair: the mean of both directions."""
    first, second = pairs_of(scores.shape[1], scores.device)
    return (scores[:, first, second] + scores[:, second, first]).T / 2


def anchor_scores(scores: Square, presence: Presence) -> Float[Tensor, "M B"]:
    """One score per modality: the mean of its scores with the others that the product has."""
    alone = torch.eye(presence.shape[1], dtype=torch.bool, device=presence.device)
    return _mean(scores, presence[:, None, :] & ~alone, 2)[:, :, 0].T


# --- contrast -------------------------------------------------------------------------------------
# Every form takes the vectors of each product's modalities, which of them are there, a temperature,
# S or None, and a bias or None. It returns a value of each pair of modalities and product, and
# which of these count. What a product lacks is neither anchor nor candidate. ``scores[b, i, j]``
# multiplies the logits of product b as the anchor of pair (i, j) (Eq. 3).

Values = tuple[Float[Tensor, "P B"], Bool[Tensor, "P B"]]
Tau, Scores, Bias = Scalar, Square | None, Scalar | None


def pairs_of(modalities: int, device=None) -> Int[Tensor, "2 P"]:
    """First and second modality of each pair, (0, 1), (0, 2), …"""
    return torch.triu_indices(modalities, modalities, offset=1, device=device)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(at_least_float32(vectors), dim=-1).transpose(0, 1)  # (M, B, D)


def _both(presence: Presence) -> Bool[Tensor, "P B"]:
    first, second = presence.T[pairs_of(presence.shape[1], presence.device)]
    return first & second


def _directions(vectors, presence, temperature, scores) -> Iterator[tuple[Tensor, Tensor]]:
    """For both directions: logits (P, B, B), lowest where absent, and who is there (P, 1, B)."""
    first, second = pairs_of(vectors.shape[1], vectors.device)
    unit = _unit(vectors)
    forth = unit[first] @ unit[second].transpose(1, 2) / temperature
    back = forth.transpose(1, 2)
    for logits, anchor, other in ((forth, first, second), (back, second, first)):
        if scores is not None:
            logits = logits * scores[:, anchor, other].T[:, :, None]
        here = presence.T[other][:, None, :]
        yield logits.masked_fill(~here, torch.finfo(logits.dtype).min), here


def infonce(
    vectors: Vectors, presence: Presence, temperature: Tau, scores: Scores = None, bias: Bias = None
) -> Values:
    """InfoNCE, the mean of both directions: -log softmax of the product's own vector among those of
    the other modality, log B at chance. The default."""
    both, values = _both(presence), 0.0
    for logits, _ in _directions(vectors, presence, temperature, scores):
        values = values - logits.log_softmax(dim=-1).diagonal(dim1=1, dim2=2) / 2
    return values.masked_fill(~both, 0.0), both


def eq2(
    vectors: Vectors, presence: Presence, temperature: Tau, scores: Scores = None, bias: Bias = None
) -> Values:
    """Eq. 2 as printed: the positive over the sum of the 2 (N - 1) negatives of both directions,
    not over itself too.

    So a value falls on, to -2 / τ + log 2 (N - 1), once every negative is further off than the
    positive. A product with no negative does not count. One score per pair (:func:`pair_scores`),
    for there is one fraction.
    """
    both, negatives = _both(presence), []
    if scores is not None:
        scores = (scores + scores.transpose(1, 2)) / 2
    own = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    for logits, here in _directions(vectors, presence, temperature, scores):
        positive = logits.diagonal(dim1=1, dim2=2)
        negatives.append(logits.masked_fill(own | ~here, float("-inf")))
    negatives = torch.cat(negatives, dim=-1)
    both = both & torch.isfinite(negatives).any(dim=-1)
    below = negatives.masked_fill(~both[:, :, None], 0.0).logsumexp(dim=-1)
    return (below - positive).masked_fill(~both, 0.0), both


def released_logits(
    vectors: Vectors, temperature: Tau, scores: Scores = None
) -> Float[Tensor, "P B2 B2"]:
    """(P, 2 B, 2 B) logits of the released form: products by the first modality, then the
    second."""
    first, second = pairs_of(vectors.shape[1], vectors.device)
    unit = _unit(vectors)
    stacked = torch.cat([unit[first], unit[second]], dim=1)
    logits = stacked @ stacked.transpose(1, 2) / temperature
    if scores is None:
        return logits
    both = torch.cat([scores[:, first, second].T, scores[:, second, first].T], dim=1)
    return logits * both[:, :, None]


def released(
    vectors: Vectors, presence: Presence, temperature: Tau, scores: Scores = None, bias: Bias = None
) -> Values:
    """The authors' code: SimCLR's form over the 2 B vectors of a pair; negatives are all others of
    *both* modalities. At chance a value is log (2 B - 1)."""
    both, count = _both(presence), len(vectors)
    logits = released_logits(vectors, temperature, scores)
    first, second = pairs_of(vectors.shape[1], vectors.device)
    here = torch.cat([presence.T[first], presence.T[second]], dim=1)[:, None, :]
    own = torch.eye(2 * count, dtype=torch.bool, device=vectors.device)
    logs = logits.masked_fill(own | ~here, torch.finfo(logits.dtype).min).log_softmax(dim=-1)
    values = -(logs.diagonal(count, 1, 2) + logs.diagonal(-count, 1, 2)) / 2
    return values.masked_fill(~both, 0.0), both


def siglip(
    vectors: Vectors, presence: Presence, temperature: Tau, scores: Scores = None, bias: Bias = None
) -> Values:
    """SigLIP (Zhai et al. 2023, arXiv 2303.15343): the sum over candidates of -log σ(±(logit +
    bias)), + for the product itself, - for others; mean of both directions."""
    both, values = _both(presence), 0.0
    kind = at_least_float32(vectors)
    sign = 2 * torch.eye(len(kind), device=kind.device, dtype=kind.dtype) - 1
    for logits, here in _directions(vectors, presence, temperature, scores):
        logits = logits if bias is None else logits + bias
        losses = F.softplus(-sign * logits.masked_fill(~here, 0.0))
        values = values + losses.masked_fill(~here, 0.0).sum(dim=-1) / 2
    return values.masked_fill(~both, 0.0), both


#: ``Objective.contrast`` -> form. A form that compares all modalities of a product at once gives a
#: value for each modality as the anchor, (M, B), and stands in :data:`AT_ONCE` too.
FORMS = {"infonce": infonce, "eq2": eq2, "released": released, "siglip": siglip}
AT_ONCE: set[str] = set()
