"""Figures: each function takes arrays and returns a matplotlib Figure.

Those of products, training and numbers are handed on here, so that a notebook says ``from m5lib
import figures``. Those of one subject stay in ``tokens``, ``models``, ``maps`` and
``attribution``; how all look is decided in ``style``.
"""

from m5lib.figures.catalogue import front, gallery, histograms, long_tail, neighbours, presence
from m5lib.figures.training import bars, losses, milestones, panels, spread, table
