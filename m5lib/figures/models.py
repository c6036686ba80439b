"""Figures of what a model is: stages, who reaches whom, parameters."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from m5lib.figures.style import PALETTE, QUIET, blank, canvas, codes_of, colour, heat, styled
from m5lib.modalities import MODALITIES
from m5lib.spec import Spec, Stage

BOX, GAP = 0.76, 0.46  # height of a box, and between two rows of boxes
NOTHING = 1e-9  # 0 on a logarithmic scale


def _pale(name: str) -> tuple[float, ...]:
    """A tint of the modality's colour that black words can be read on."""
    return tuple(1 - 0.32 * (1 - part) for part in to_rgb(colour(name)))


# --- stages


def folded(stages: Sequence[Stage]) -> list[tuple[tuple[Stage, ...], int]]:
    """Stages with repeats taken together: (solo, (cross, solo) x 6), as a sketch draws them."""
    groups, place = [], 0
    while place < len(stages):
        group, times = stages[place : place + 1], 1
        for period in (1, 2):
            repeats, pattern = 1, stages[place : place + period]
            while stages[place + repeats * period : place + (repeats + 1) * period] == pattern:
                repeats += 1
            if repeats > 1 and repeats * period > times * len(group):
                group, times = pattern, repeats
        groups.append((tuple(group), times))
        place += times * len(group)
    return groups


def _box(axes: Axes, left: float, right: float, y: float, label: str, face, edge) -> None:
    style = {"boxstyle": "round,pad=0,rounding_size=0.08", "fc": face, "ec": edge, "lw": 1.2}
    axes.add_patch(FancyBboxPatch((left, y), right - left, BOX, **style))
    style = {"ha": "center", "va": "center", "fontsize": 7.5, "linespacing": 1.0}
    axes.text((left + right) / 2, y + BOX / 2, label, **style)


def _stage(axes: Axes, stage: Stage, names: Sequence[str], y: float) -> None:
    """One stage: a box per modality, or one over all. What has the same weights has the same
    colour, says whose, and is tied below."""
    taken, times = stage.takes(names), f"×{stage.layers}"
    for column, name in enumerate(names):  # what a modality goes through
        top = y if name in taken else y + BOX
        axes.plot([column, column], [y - GAP, top], color=QUIET, lw=1.0, zorder=0)
    if stage.kind == "joint":
        left, right = names.index(taken[0]) - 0.44, names.index(taken[-1]) + 0.44
        _box(axes, left, right, y, f"joint {times}", "#e4e4e4", "#444444")
        return
    first: dict[str, str] = {}
    for name in taken:
        column, owner = names.index(name), first.setdefault(stage.owner(name), name)
        whose = f"\nof {MODALITIES[owner].code}" if owner != name else ""
        label = f"{stage.kind}\n{times}{whose}"
        _box(axes, column - 0.44, column + 0.44, y, label, _pale(owner), colour(owner))
        if whose:
            depth, start = y - 0.12 * (1 + list(first.values()).index(owner)), names.index(owner)
            path = [start + 0.2, start + 0.2, column - 0.2, column - 0.2], [y, depth, depth, y]
            axes.plot(*path, color=colour(owner), lw=2.0, zorder=1)
        for other in taken if stage.kind == "cross" else ():
            if other != name:
                style = {"color": colour(other), "lw": 0.8, "alpha": 0.8, "zorder": 0}
                axes.plot([names.index(other), column], [y - GAP, y], **style)


def _losses(spec: Spec, names: Sequence[str], before: float, top: float) -> dict[float, list[str]]:
    """At which height which losses read."""
    marks, masked = {}, spec.objective.tasks(names)
    if spec.objective.contrast != "none":
        marks[before] = ["contrast"]
    if masked:
        some = f"masked: {', '.join(codes_of(masked))}"
        reads = before if spec.objective.reads == "encoded" else top
        marks.setdefault(reads, []).append("masked tasks" if len(masked) == len(names) else some)
    if spec.objective.matching:
        marks.setdefault(top, []).append("matching")
    return marks


def _sketch(axes: Axes, title: str, spec: Spec, names: Sequence[str]) -> float:
    """One model from its embeddings up; returns its height."""
    y, number, before, right = BOX + GAP, 0, None, len(names) - 0.4
    for column, name in enumerate(names):
        _box(axes, column - 0.3, column + 0.3, 0.0, MODALITIES[name].code, "white", colour(name))
    for group, times in folded(spec.stages):
        bottom = y
        before = y - GAP / 2 if number == spec.fusion else before
        for stage in group:
            _stage(axes, stage, names, y)
            y += BOX + GAP
        number += times * len(group)
        if times > 1 and len(group) > 1:
            bracket = [right, right + 0.08, right + 0.08, right], [bottom, bottom, y - GAP, y - GAP]
            axes.plot(*bracket, color="black")
            axes.text(right + 0.16, (bottom + y - GAP) / 2, f"×{times}", va="center", fontsize=8)
    top = y - GAP / 2
    for place, losses in _losses(spec, names, top if before is None else before, top).items():
        style = {"color": "#222222", "lw": 1.0, "ls": (0, (4, 2))}
        axes.plot([-0.55, right - 0.05], [place, place], **style)
        axes.text(right, place, "\n".join(losses), va="center", fontsize=7.5, clip_on=False)
    axes.set_title(title, fontsize=10, loc="left")
    return y


@styled
def stages(rows: Sequence[Mapping[str, Spec]]) -> Figure:
    """Models as stages (Figure 2), rows of panels, title -> a spec whose ``modalities`` or
    ``takes`` say what it reads: columns are modalities, from the embeddings up; dashed lines are
    the states that losses read."""
    count = lambda spec: sum(len(group) for group, _ in folded(spec.stages))  # noqa: E731
    tall = [1 + max(map(count, row.values())) for row in rows]
    figure = blank(10.5, 0.7 * sum(tall) + 0.5 * len(rows))
    strips = figure.subfigures(len(rows), 1, height_ratios=tall, squeeze=False)[:, 0]
    for strip, row in zip(strips, rows, strict=True):
        sides = [tuple(spec.modalities or spec.takes or MODALITIES) for spec in row.values()]
        widths = [len(names) + 1.3 for names in sides]
        panels = strip.subplots(1, len(row), width_ratios=widths, squeeze=False)[0]
        drawn = zip(panels, row.items(), sides, strict=True)
        height = max(_sketch(axes, *item, names) for axes, item, names in drawn)
        for axes, names in zip(panels, sides, strict=True):
            axes.set(xlim=(-0.6, len(names) + 0.7), ylim=(-0.15, height))
            axes.axis("off")
    return figure


# --- who reaches whom, parameters


def _per_cent(value: float) -> str:
    if not value > 0:
        return "–" if value == 0 else ""
    return f"{value:.2g}" if value < 9.95 else f"{value:.0f}"


@styled
def shares(
    panels: Mapping[str, pd.DataFrame],
    title: str,
    label: str,
    ends: tuple[float, float],
    cmap: str = "Blues",
) -> Figure:
    """Heat maps of per cents side by side, their colours on a logarithmic scale between ``ends``. A
    dash is exactly 0; what does not exist (NaN) is grey. ``label``: of the columns."""
    figure, axes = canvas(1, len(panels), (2.9 * len(panels) + 0.25, 3.0), sharey=True)
    paint = colormaps[cmap].with_extremes(under="white", bad="#e8e8e8")
    said = lambda value: _per_cent(0.0 if value == NOTHING else value)  # noqa: E731
    for place, (name, table) in zip(axes[0], panels.items(), strict=True):
        shown = np.maximum(table.to_numpy(dtype=float), NOTHING)  # a logarithm has no 0
        look = {"cmap": paint, "norm": LogNorm(*ends), "said": said, "size": 8.5}
        heat(place, shown, table.index, table.columns, **look)
        place.set_title(name, fontsize=9.5)
        place.set_xlabel(label)
        place.tick_params(length=0)
        place.spines[:].set(visible=True, color="#cccccc")
    figure.suptitle(title, fontsize=10)
    return figure


def reach(matrices: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> Figure:
    """Who reaches whom: a heat map per model and state, rows are outputs, columns inputs; a dash
    where no gradient goes. ``matrices``: title -> reach and influence, (M, M)."""
    codes = codes_of(names)
    panels = {
        title: pd.DataFrame(np.where(reached, 100 * moved, 0.0), codes, codes)
        for title, (reached, moved) in matrices.items()
    }
    title = "Change of an output (row) per change of an input, %  (–: not reached)"
    return shares(panels, title, "input", (0.01, 300))


@styled
def ledger(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """Parameters of each component, one panel per model: what has received a gradient, and, where
    there is any, what has not. ``parts``: title -> :func:`m5lib.models.anatomy.ledger`."""
    longest = max(len(part) for part in parts.values())
    figure, axes = canvas(1, len(parts), (4.9 * len(parts), 0.9 + 0.25 * longest))
    for place, (title, part) in zip(axes[0], parts.items(), strict=True):
        y, trained, all_of = np.arange(len(part)), part["trained"], part["parameters"]
        bars = place.barh(y, trained, color=PALETTE[0], label="trained")
        if (all_of > trained).any():
            never = {"color": PALETTE[1], "label": "never trained"}
            bars = place.barh(y, all_of - trained, left=trained, **never)
            place.legend(fontsize=8)
        place.bar_label(bars, [f" {count:,}" for count in all_of], fontsize=7.5)
        total, share = all_of.sum(), trained.sum() / all_of.sum()
        place.set_title(f"{title}: {total:,}, {share:.0%} trained", fontsize=9.5)
        place.set(xlabel="parameters", xlim=(0, 1.25 * all_of.max()), ylim=(len(part) - 0.4, -0.6))
        place.set_yticks(y, part.index, fontsize=8)
        place.tick_params("x", labelsize=8)
        place.locator_params("x", nbins=4)
        place.xaxis.set_major_formatter("{x:,.0f}")
    return figure
