"""Figures of what a model is (notebook 03), and of what sets the released form apart (14)."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from m5lib.figures.style import (
    PALETTE,
    QUIET,
    canvas,
    codes_of,
    colour,
    dots,
    heading,
    heat,
    legend_beside,
    styled,
)
from m5lib.modalities import MODALITIES
from m5lib.spec import Spec, Stage

BOX, GAP = 0.76, 0.46  # height of a box, and between two rows of boxes
NOTHING = 1e-9  # 0 on a logarithmic scale
PAINT = {"released": PALETTE[1], "scale": PALETTE[0]}


def _pale(name: str) -> tuple[float, ...]:
    """A tint of the modality's colour that black words can be read on."""
    return tuple(1 - 0.32 * (1 - part) for part in to_rgb(colour(name)))


def _paint(name: str):
    """A colour map that leaves what is nothing white and what does not exist grey."""
    return colormaps[name].with_extremes(under="white", bad="#e8e8e8")


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
    fuses = [stage.kind != "solo" and not stage.only for stage in spec.stages]
    fusion = fuses.index(True) if any(fuses) else len(fuses)
    y, number, before, right = BOX + GAP, 0, None, len(names) - 0.4
    for column, name in enumerate(names):
        _box(axes, column - 0.3, column + 0.3, 0.0, MODALITIES[name].code, "white", colour(name))
    for group, times in folded(spec.stages):
        bottom = y
        before = y - GAP / 2 if number == fusion else before
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
    """Models as stages (Figure 2): columns are modalities, from the embeddings up; dashed lines are
    the states that losses read.

    Args:
        rows: of panels, each title -> a spec whose ``modalities`` or ``takes`` say what it reads.
    """
    specs = [list(row.values()) for row in rows]
    sides = [[tuple(spec.modalities or spec.takes or MODALITIES) for spec in row] for row in specs]
    groups = [[sum(len(group) for group, _ in folded(s.stages)) for s in row] for row in specs]
    tall = [max(row) + 1 for row in groups]
    figure, _ = canvas(size=(10.5, 0.7 * sum(tall) + 0.5 * len(rows)))
    figure.clear()
    strips = figure.subfigures(len(rows), 1, height_ratios=tall, squeeze=False)[:, 0]
    for strip, row, side in zip(strips, rows, sides, strict=True):
        widths = [len(names) + 1.3 for names in side]
        panels = strip.subplots(1, len(row), width_ratios=widths, squeeze=False)[0]
        drawn = zip(panels, row.items(), side, strict=True)
        height = max(_sketch(axes, *item, names) for axes, item, names in drawn)
        for axes, names in zip(panels, side, strict=True):
            axes.set(xlim=(-0.6, len(names) + 0.7), ylim=(-0.15, height))
            axes.axis("off")
    return figure


# --- who reaches whom, parameters


def _maps(
    panels: Mapping[str, pd.DataFrame], width: float, title: str, said: Callable, **look
) -> Iterator[Axes]:
    """A figure with a heat map on a logarithmic scale per panel. What is 0 stays white, what does
    not exist grey."""
    figure, axes = canvas(1, len(panels), (width * len(panels) + 0.25, 3.0), sharey=True)
    written = lambda value: said(0.0 if value == NOTHING else value)  # noqa: E731
    for place, (name, table) in zip(axes[0], panels.items(), strict=True):
        shown = np.maximum(table.to_numpy(dtype=float), NOTHING)  # a logarithm has no 0
        heat(place, shown, table.index, table.columns, said=written, **look)
        place.set_title(name, fontsize=9.5)
        place.tick_params(length=0)
        place.spines[:].set(visible=True, color="#cccccc")
        yield place
    figure.suptitle(title, fontsize=10)


def _per_cent(value: float) -> str:
    if not value > 0:
        return "–" if value == 0 else ""
    return f"{value:.2f}" if value < 9.95 else f"{value:.0f}"


@styled
def reach(matrices: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> Figure:
    """Who reaches whom: a heat map per model and state, rows are outputs, columns inputs; a dash
    where no gradient goes.

    Args:
        matrices: title -> the boolean matrix and the influence, both (M, M)
            (:func:`m5lib.models.anatomy.reach`, :func:`m5lib.models.anatomy.influence`).
    """
    codes, panels = codes_of(names), {}
    for title, (reached, moved) in matrices.items():
        share = np.where(reached, 100 * np.asarray(moved, dtype=float), 0.0)
        panels[title] = pd.DataFrame(share, index=codes, columns=codes)
    title = "Change of an output per change of an input, %  (–: not reached)"
    look = {"cmap": _paint("Blues"), "norm": LogNorm(0.01, 300), "said": _per_cent, "size": 8.5}
    places = list(_maps(panels, 2.7, title, **look))
    for place in places:
        place.set_xlabel("input")
    places[0].set_ylabel("output")
    return places[0].figure


@styled
def removal(changes: Mapping[str, pd.DataFrame]) -> Figure:
    """What taking a modality away does to the masked losses: a heat map per model of the mean
    absolute change per token, in % of the loss.

    Args:
        changes: title -> lines with ``task``, ``removed``, ``loss`` and ``moved`` (notebook 14).
    """
    panels = {}
    for title, lines in changes.items():
        share = lines.assign(share=100 * lines["moved"] / lines["loss"])
        wide = share.pivot(index="task", columns="removed", values="share")
        rows = [row for row in MODALITIES.values() if row.name in wide.columns]
        wide = wide.reindex(columns=[row.name for row in rows])
        wide = wide.reindex(index=[row.task for row in rows if row.task in wide.index])
        panels[title] = wide.set_axis([row.code for row in rows], axis=1)
    said = lambda x: f"{x:.2g}" if 0 < x < 1000 else f"{x:.0f}" if x == x else ""  # noqa: E731
    title = "How much each masked loss moves when another modality is taken away, %"
    look = {"cmap": _paint("Oranges"), "norm": LogNorm(1e-3, 30), "said": said, "size": 8}
    places = list(_maps(panels, 3.5, title, **look))
    for place in places:
        place.set_xlabel("taken away")
    return places[0].figure


@styled
def ledger(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """Parameters of each component, one panel per model: what has received a gradient, and, where
    there is any, what has not.

    Args:
        parts: title -> columns ``parameters`` and ``trained``, indexed by component
            (:func:`m5lib.models.anatomy.ledger`).
    """
    longest = max(len(part) for part in parts.values())
    figure, axes = canvas(1, len(parts), (4.9 * len(parts), 0.9 + 0.25 * longest))
    for place, (title, part) in zip(axes[0], parts.items(), strict=True):
        y, trained, all_of = np.arange(len(part)), part["trained"], part["parameters"]
        place.barh(y, trained, color=PALETTE[0], label="trained")
        if (all_of > trained).any():
            never = {"color": PALETTE[1], "label": "never trained"}
            place.barh(y, all_of - trained, left=trained, **never)
            place.legend(fontsize=8)
        for line, count in zip(y, all_of, strict=True):
            place.annotate(f" {count:,}", (count, line), va="center", fontsize=7.5)
        total, share = all_of.sum(), trained.sum() / all_of.sum()
        place.set_title(f"{title}: {total:,}, {share:.0%} trained", fontsize=9.5)
        place.set(yticks=y, xlabel="parameters", xlim=(0, 1.25 * all_of.max()))
        place.set_yticklabels(part.index, fontsize=8)
        place.tick_params("x", labelsize=8)
        place.locator_params("x", nbins=4)
        place.xaxis.set_major_formatter("{x:,.0f}")
        place.set_ylim(len(part) - 0.4, -0.6)
    return figure


# --- scores


@styled
def temperatures(scores: Mapping[str, np.ndarray], fixed: Mapping[str, float]) -> Figure:
    """Effective temperatures τ/s of all pairs, one panel per model on a logarithmic axis, with τ
    and the share of pairs at s = 0.

    Args:
        scores: model -> scores s of the pairs; ``fixed``: model -> τ.
    """
    figure, axes = canvas(len(scores), 1, (6.4, 1.7 * len(scores)), sharex=True)
    low = np.log10(min(fixed.values())) - 0.1
    ends, bins = (10**low, 10.0), np.logspace(low, 1.0, 60)
    for place, (model, s) in zip(axes[:, 0], scores.items(), strict=True):
        tau, none = fixed[model], float((s == 0).mean())
        values = np.clip(tau / np.maximum(s[s > 0], 1e-12), *ends)
        place.hist(values, bins=bins, color=PAINT.get(model, PALETTE[2]))
        place.axvline(tau, color="black", ls=":", lw=1.2)
        zero = f"; s = 0, no gradient: {none:.1%} of the pairs" if none else ""
        place.set(xscale="log", ylabel="pairs", xlim=ends)
        place.set_title(f"{model}: τ = {tau:.3f} (dotted){zero}", fontsize=9.5)
    axes[-1, 0].set_xlabel("effective temperature τ/s (10: and above)")
    return figure


@styled
def harmony(mean: np.ndarray, diagonals: Mapping[str, np.ndarray], title: str) -> Figure:
    """S over a batch: the mean matrix as a heat map, and beside it the spread of its diagonal over
    the products.

    Args:
        mean: (M, M); ``diagonals``: modality -> the scores of the products that have it.
    """
    names, codes = list(diagonals), codes_of(list(diagonals))
    figure, ((matrix, spread),) = canvas(1, 2, (7.6, 3.4), width_ratios=(1, 1.15))
    heat(matrix, mean, codes, codes, cmap="cividis", norm=(min(0.0, float(mean.min())), 1.0))
    matrix.set_title("mean of S")
    look = {"whis": (0, 100), "patch_artist": True, "medianprops": {"color": "black"}}
    drawn = spread.boxplot(list(diagonals.values()), widths=0.55, **look)
    for box, name in zip(drawn["boxes"], names, strict=True):
        box.set(facecolor=_pale(name), edgecolor=colour(name))
    level = 1 / np.sqrt(len(names))
    spread.axhline(level, color=QUIET, ls=":", lw=1.2)
    at = {"textcoords": "offset points", "fontsize": 8, "color": "#555555"}
    spread.annotate("all modalities agree", (0.55, level), (0, 3), **at)
    spread.set(xticks=range(1, len(names) + 1), xticklabels=codes, ylim=(0.35, 1.03))
    spread.set(ylabel="score", title="diagonal, over products")
    heading(figure, title)
    return figure


@styled
def toy(histories: Mapping[str, Sequence[pd.DataFrame]]) -> Figure:
    """The paper's S taken literally: what is minimised, the lowest score of a pair and R@1 over the
    steps; a line per seed.

    Args:
        histories: case -> frames with ``step``, ``total``, ``lowest``, ``recall``, one per seed.
    """
    figure, axes = canvas(1, 3, (11.0, 3.3))
    panels = {"total": "what is minimised", "lowest": "lowest score of a pair", "recall": "R@1"}
    for place, (column, title) in zip(axes[0], panels.items(), strict=True):
        for number, (case, seeds) in enumerate(histories.items()):
            line = {"color": PALETTE[number], "ls": "--" if number == len(histories) - 1 else "-"}
            for seed, part in enumerate(seeds):
                more = {"label": case if seed == 0 else None, "alpha": 1 - 0.4 * (seed > 0)}
                place.plot(part["step"], part[column], lw=1.4, **line, **more)
        place.set(title=title, xlabel="step")
        if column != "recall":
            place.axhline(0, color=QUIET, lw=0.8)
    axes[0, 2].set_ylim(0, 1.02)
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=3, fontsize=9)
    return figure


@styled
def against(values: pd.DataFrame, metric: str, title: str) -> Figure:
    """Two models side by side for each index entry: mean over seeds, its deviation, and a dot per
    seed.

    Args:
        values: columns (model, seed).
    """
    models = list(values.columns.get_level_values(0).unique())
    figure, ((axes,),) = canvas(size=(6.8, 1.3 + 0.5 * len(values)))
    height, ends = 0.8 / len(models), []
    for number, model in enumerate(models):
        shift = (number - (len(models) - 1) / 2) * height
        look = {"shift": shift, "height": 0.92 * height, "label": model, "point": "black"}
        ends.append(dots(axes, values[model], PAINT.get(model, PALETTE[number]), **look))
    axes.set(xlabel=metric, title=title, xlim=(0, 1.2 * max(ends)))
    legend_beside(axes)
    return figure
