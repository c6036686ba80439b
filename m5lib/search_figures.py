"""Figures of near-duplicates and of explained hits."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from m5lib.explain import Explanation
from m5lib.figures import PALETTE, QUIET, _axes, colour, short, styled
from m5lib.modalities import MODALITIES


@styled
def cosines(nearest: np.ndarray, copies: np.ndarray, threshold: float) -> Figure:
    """Cosine of each product with its nearest, and with a copy of itself that lacks something; a line at the threshold."""
    figure, ((axes,),) = _axes(size=(6.4, 3.2))
    bins = np.linspace(min(nearest.min(), copies.min()), 1.0, 50)
    for values, shade, label in ((nearest, QUIET, "its nearest product"), (copies, PALETTE[0], "a copy of itself that lacks a quarter")):
        axes.hist(values, bins=bins, weights=np.full(len(values), 100 / len(values)), color=shade, alpha=0.7, label=label)
    axes.axvline(threshold, color=PALETTE[1])
    axes.annotate(f"threshold {threshold:.2f}", (threshold, 1.0), (-4, -4), xycoords=("data", "axes fraction"), textcoords="offset points",
                  ha="right", va="top", color=PALETTE[1], fontsize=9)  # fmt: skip
    axes.set(xlabel="cosine of a product with …", ylabel="products (%)", title="How near is a near-duplicate?")
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def explanation(sides: Sequence[Explanation], most: int = 12) -> Figure:
    """For each side a line: Shapley values of its modalities, and the tokens with the largest scores; colours are the modalities'."""
    lines = [max(3, min(most, len(side.tokens))) for side in sides]
    figure, axes = _axes(len(sides), 2, (8.4, 0.9 + 0.24 * sum(lines)), width_ratios=(1, 1.6), height_ratios=lines)
    for (left, right), side in zip(axes, sides, strict=True):
        names = list(side.modalities.index)
        left.barh(range(len(names)), side.modalities, color=[colour(name) for name in names])
        left.set(yticks=range(len(names)), title=f"{side.side}: {' + '.join(MODALITIES[n].code for n in names)}", xlabel="Shapley value")
        left.set_yticklabels(names)
        for y, value in enumerate(side.modalities):
            left.annotate(f" {value:+.2f} ", (value, y), ha="left" if value >= 0 else "right", va="center", fontsize=8)
        left.margins(x=0.3)
        part = side.tokens.head(most)
        right.barh(range(len(part)), part["score"], color=[colour(name) for name in part["modality"]])
        right.set(yticks=range(len(part)), title="its tokens", xlabel="integrated gradient")
        right.set_yticklabels([short(token, 1, 30) for token in part["token"]], fontsize=8)
        for place in (left, right):
            place.axvline(0, color="black", linewidth=0.8)
            place.invert_yaxis()
    figure.suptitle(f"cosine {sides[0].cosine:.2f}", fontsize=11, fontweight="bold")
    return figure
