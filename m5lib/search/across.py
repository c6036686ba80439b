"""Cosines with products that have other modalities, on one scale.

Words are nearer to words than to pictures: the cosine of a title with products that have nothing
but a title is larger, whatever they are, than with products that have pictures too (the modality
gap: Liang et al., NeurIPS 2022). By plain cosines, a product loses for what it has. So cosines are
compared within a *group*, the products that have the same modalities: those of each group are
shifted and stretched until their median, and how far above it the best hundredth lies, are those of
the *usual* group, the largest whose products can ask such a query (or the largest of all). Products
of one group keep their order; where all have the same modalities, nothing changes. No label is
used. ``benchmarks/across.json`` says what it brings.
"""

import numpy as np
from jaxtyping import Float, Int

from m5lib.search.encode import unit

#: What is made alike: the median, and the best hundredth.
QUANTILES = (0.5, 0.99)
#: How far a group of few products reaches is measured badly: so many count as if they were of all.
FEW = 10
#: Of a larger group every second product, or fewer, is measured.
MOST = 5000


def one_scale(
    asked: Float[np.ndarray, "n D"],
    own: Int[np.ndarray, " n"],
    gallery: Float[np.ndarray, "N D"],
    groups: Int[np.ndarray, " N"],
) -> Float[np.ndarray, "N 2"]:
    """Slope and offset of each product: its cosine times the one plus the other is on one scale.

    Args:
        asked: vectors of some products, given the modalities of the query: what queries look like.
        own: their rows in the gallery; a product's cosine with itself does not count.
        groups: which products have the same modalities.
    """
    sizes, middle, reach = np.bincount(groups), {}, {}
    for group in np.flatnonzero(sizes):
        inside = np.flatnonzero(groups == group)[:: 1 + sizes[group] // MOST]
        cosines = (unit(asked) @ unit(gallery[inside]).T)[inside != own[:, None]]
        if len(cosines):
            middle[group], best = np.quantile(cosines, QUANTILES)
            reach[group] = best - middle[group]
    scale = np.tile((1.0, 0.0), (len(sizes), 1))
    if len(reach) > 1:
        mean = np.average(list(reach.values()), weights=sizes[list(reach)])
        reach = {g: (sizes[g] * x + FEW * mean) / (sizes[g] + FEW) for g, x in reach.items()}
        full = np.bincount(groups[own], minlength=len(sizes))
        usual = max(reach, key=lambda group: (full[group] > 0, sizes[group]))
        for group in reach:
            slope = reach[usual] / max(reach[group], 1e-6)
            scale[group] = slope, middle[usual] - slope * middle[group]
    return scale[groups].astype(np.float32)


def answering(
    gallery: Float[np.ndarray, "N D"], scale: Float[np.ndarray, "N 2"]
) -> Float[np.ndarray, "N E"]:
    """Vectors of one length whose inner product with :func:`asking` is the cosine on one scale;
    zeros stay zeros. So the exact ranking by cosines ranks by it."""
    slope, offset = scale[:, :1], scale[:, 1:]
    length = (scale**2).sum(axis=1, keepdims=True)
    rest = np.sqrt((length.max(initial=1.0) - length).clip(0))
    there = (gallery != 0).any(axis=1, keepdims=True)
    return np.hstack([unit(gallery) * slope, offset, rest]) * there


def asking(vectors: Float[np.ndarray, "Q D"]) -> Float[np.ndarray, "Q E"]:
    """The side that asks, for :func:`answering`; zeros stay zeros."""
    there = (vectors != 0).any(axis=1, keepdims=True)
    extra = np.tile(np.float32([1, 0]), (len(vectors), 1))
    return np.hstack([unit(vectors), extra]) * there
