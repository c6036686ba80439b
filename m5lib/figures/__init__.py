"""Figures: each function takes arrays and returns a matplotlib Figure.

The ones of products, training and numbers are handed on here, so that a notebook says
``from m5lib import figures``; those of one subject are in ``tokens``, ``models``, ``maps``,
``attribution`` and ``front``. How they look is decided in ``style``.
"""

from m5lib.figures.catalogue import (
    cosines,
    gallery,
    histograms,
    lengths,
    long_tail,
    neighbours,
    player,
    presence,
)
from m5lib.figures.training import (
    bars,
    costs,
    losses,
    milestones,
    panels,
    score_matrix,
    spread,
    table,
)

__all__ = [
    "bars",
    "cosines",
    "costs",
    "gallery",
    "histograms",
    "lengths",
    "long_tail",
    "losses",
    "milestones",
    "neighbours",
    "panels",
    "player",
    "presence",
    "score_matrix",
    "spread",
    "table",
]
