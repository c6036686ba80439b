"""Figures of what a model is, and of what sets the released form apart: one function per figure, as
in :mod:`m5lib.figures.style`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from m5lib.figures.style import PALETTE, QUIET, canvas, colour, styled
from m5lib.modalities import MODALITIES
from m5lib.spec import Spec, Stage

BOX, GAP = 0.76, 0.46  # height of a box, and between two rows of boxes
PAINT = {"released": PALETTE[1], "scale": PALETTE[0]}


def _codes(names: Sequence[str]) -> list[str]:
    return [MODALITIES[name].code for name in names]


def _pale(name: str) -> tuple[float, ...]:
    """A tint of the modality's colour that black words can be read on."""
    return tuple(1 - 0.32 * (1 - part) for part in to_rgb(colour(name)))


def _paint(name: str):
    """A colour map that leaves what is nothing white and what does not exist grey."""
    return colormaps[name].with_extremes(under="white", bad="#e8e8e8")


def folded(stages: Sequence[Stage]) -> list[tuple[tuple[Stage, ...], int]]:
    """Stages with repeats taken together: (solo, (cross, solo) x 6), as a sketch draws them."""
    found, place = [], 0
    while place < len(stages):
        part, times = stages[place : place + 1], 1
        for period in (1, 2):
            repeats, pattern = 1, stages[place : place + period]
            while stages[place + repeats * period : place + (repeats + 1) * period] == pattern:
                repeats += 1
            if repeats > 1 and repeats * period > times * len(part):
                part, times = pattern, repeats
        found.append((tuple(part), times))
        place += times * len(part)
    return found


def _box(axes: Axes, left: float, right: float, y: float, label: str, face, edge) -> None:
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch((left, y), right - left, BOX, boxstyle=style, fc=face, ec=edge, lw=1.2)
    )
    axes.text(
        (left + right) / 2,
        y + BOX / 2,
        label,
        ha="center",
        va="center",
        fontsize=7.5,
        linespacing=1.0,
    )


def _stage(axes: Axes, stage: Stage, names: Sequence[str], y: float) -> None:
    """One stage: a box per modality, or one over all; what has the same weights has the same
    colour, says whose, and is tied below."""
    taken, times = stage.takes(names), f"×{stage.layers}"
    for column, name in enumerate(names):  # what a modality goes through
        axes.plot(
            [column, column],
            [y - GAP, y if name in taken else y + BOX],
            color=QUIET,
            lw=1.0,
            zorder=0,
        )
    if stage.kind == "joint":
        _box(
            axes,
            names.index(taken[0]) - 0.44,
            names.index(taken[-1]) + 0.44,
            y,
            f"joint {times}",
            "#e4e4e4",
            "#444444",
        )
        return
    first: dict[str, str] = {}
    for name in taken:
        column, owner = names.index(name), first.setdefault(stage.owner(name), name)
        whose = f"\nof {MODALITIES[owner].code}" if owner != name else ""
        _box(
            axes,
            column - 0.44,
            column + 0.44,
            y,
            f"{stage.kind}\n{times}{whose}",
            _pale(owner),
            colour(owner),
        )
        if whose:
            depth, start = y - 0.12 * (1 + list(first.values()).index(owner)), names.index(owner)
            axes.plot(
                [start + 0.2, start + 0.2, column - 0.2, column - 0.2],
                [y, depth, depth, y],
                color=colour(owner),
                lw=2.0,
                zorder=1,
            )
        if stage.kind == "cross":
            for other in (names.index(o) for o in taken if o != name):
                axes.plot(
                    [other, column],
                    [y - GAP, y],
                    color=colour(MODALITIES[taken[other]].name),
                    lw=0.8,
                    alpha=0.8,
                    zorder=0,
                )


def _sketch(axes: Axes, title: str, spec: Spec, names: Sequence[str]) -> float:
    """One model from its embeddings up; returns its height."""
    fusion = next(
        (n for n, stage in enumerate(spec.stages) if stage.kind != "solo" and not stage.only),
        len(spec.stages),
    )
    y, number, notes = 0.0, 0, {}
    for column, name in enumerate(names):
        _box(axes, column - 0.3, column + 0.3, y, MODALITIES[name].code, "white", colour(name))
    y += BOX + GAP
    for part, times in folded(spec.stages):
        bottom = y
        if number == fusion:
            notes["contrast"] = y - GAP / 2
        for stage in part:
            _stage(axes, stage, names, y)
            y += BOX + GAP
        number += times * len(part)
        if times > 1 and len(part) > 1:
            axes.plot(
                [len(names) - 0.4, len(names) - 0.32, len(names) - 0.32, len(names) - 0.4],
                [bottom, bottom, y - GAP, y - GAP],
                color="black",
            )
            axes.text(
                len(names) - 0.24, (bottom + y - GAP) / 2, f"×{times}", va="center", fontsize=8
            )
    top = y - GAP / 2
    contrast, masked = spec.objective.contrast != "none", spec.objective.tasks(names)
    before = notes.get("contrast", top)
    marks = {}
    if contrast:
        marks[before] = ["contrast"]
    if masked:
        marks.setdefault(before if spec.objective.reads == "encoded" else top, []).append(
            "masked tasks" if len(masked) == len(names) else f"masked: {', '.join(_codes(masked))}"
        )
    if spec.objective.matching:
        marks.setdefault(top, []).append("matching")
    for place, losses in marks.items():
        axes.plot(
            [-0.55, len(names) - 0.45], [place, place], color="#222222", lw=1.0, ls=(0, (4, 2))
        )
        axes.text(
            len(names) - 0.4, place, "\n".join(losses), va="center", fontsize=7.5, clip_on=False
        )
    axes.set_title(title, fontsize=10, loc="left")
    return y


@styled
def stages(rows: Sequence[Mapping[str, Spec]]) -> Figure:
    """Models as stages (Figure 2): columns are modalities, from the embeddings up; dashed lines are
    the states that losses read.

    Args:
        rows: of panels, each title -> a spec whose ``modalities`` or ``takes`` say what it reads.
    """
    sides = [
        [tuple(spec.modalities or spec.takes or MODALITIES) for spec in row.values()]
        for row in rows
    ]
    columns = [[len(names) + 1.3 for names in row] for row in sides]
    tall = [
        max(len([s for part, _ in folded(spec.stages) for s in part]) for spec in row.values()) + 1
        for row in rows
    ]
    figure, _ = canvas(size=(10.5, 0.7 * sum(tall) + 0.5 * len(rows)))
    figure.clear()
    for strip, row, names, widths in zip(
        figure.subfigures(len(rows), 1, height_ratios=tall, squeeze=False)[:, 0],
        rows,
        sides,
        columns,
        strict=True,
    ):
        places = strip.subplots(1, len(row), width_ratios=widths, squeeze=False)[0]
        heights = [
            _sketch(axes, title, spec, n)
            for axes, (title, spec), n in zip(places, row.items(), names, strict=True)
        ]
        for axes, n in zip(places, names, strict=True):
            axes.set(xlim=(-0.6, len(n) + 0.7), ylim=(-0.15, max(heights)))
            axes.axis("off")
    return figure


@styled
def reach(found: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> Figure:
    """Who reaches whom: a heat map per model and state, rows are outputs, columns inputs; blank
    where no gradient goes.

    Args:
        found: title -> the boolean matrix and the influence, both (M, M)
            (:func:`m5lib.models.anatomy.reach`, :func:`m5lib.models.anatomy.influence`).
    """
    figure, axes = canvas(1, len(found), (2.75 * len(found), 3.0), sharey=True)
    for place, (title, (reached, moved)) in zip(axes[0], found.items(), strict=True):
        shown = np.where(reached, 100 * np.asarray(moved, dtype=float), 0.0)
        place.imshow(
            np.maximum(shown, 1e-9), cmap=_paint("Blues"), norm=LogNorm(0.01, 300), aspect="auto"
        )
        for (y, x), value in np.ndenumerate(shown):
            word = (
                "–"
                if value == 0
                else ""
                if value != value
                else f"{value:.2f}"
                if value < 9.95
                else f"{value:.0f}"
            )
            place.text(
                x,
                y,
                word,
                ha="center",
                va="center",
                fontsize=8.5,
                color="white" if value > 10 else "black",
            )
        place.set(
            xticks=range(len(names)),
            yticks=range(len(names)),
            xticklabels=_codes(names),
            yticklabels=_codes(names),
            xlabel="input",
        )
        place.set_title(title, fontsize=9.5)
        place.tick_params(length=0)
        place.spines[:].set(visible=True, color="#cccccc")
    axes[0, 0].set_ylabel("output")
    figure.suptitle("Change of an output per change of an input, %  (–: not reached)", fontsize=10)
    return figure


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
        y, never = np.arange(len(part)), part["parameters"] - part["trained"]
        place.barh(y, part["trained"], color=PALETTE[0], label="trained")
        if never.any():
            place.barh(y, never, left=part["trained"], color=PALETTE[1], label="never trained")
            place.legend(fontsize=8)
        for line, count in zip(y, part["parameters"], strict=True):
            place.annotate(f" {count:,}", (count, line), va="center", fontsize=7.5)
        total, share = part["parameters"].sum(), part["trained"].sum() / part["parameters"].sum()
        place.set_title(f"{title}: {total:,}, {share:.0%} trained", fontsize=9.5)
        place.set(yticks=y, xlabel="parameters", xlim=(0, 1.25 * part["parameters"].max()))
        place.set_yticklabels(part.index, fontsize=8)
        place.tick_params("x", labelsize=8)
        place.locator_params("x", nbins=4)
        place.xaxis.set_major_formatter("{x:,.0f}")
        place.set_ylim(len(part) - 0.4, -0.6)
    return figure


@styled
def removal(found: Mapping[str, pd.DataFrame]) -> Figure:
    """What taking a modality away does to the masked losses: a heat map per model of the mean
    absolute change per token, in % of the loss.

    Args:
        found: title -> lines of :func:`m5lib.models.audit.removal`.
    """
    figure, axes = canvas(1, len(found), (3.4 * len(found) + 0.6, 2.9), sharey=True)
    for place, (title, lines) in zip(axes[0], found.items(), strict=True):
        share = lines.assign(share=100 * lines["moved"] / lines["loss"])
        wide = share.pivot(index="task", columns="removed", values="share")
        order = [row.name for row in MODALITIES.values() if row.name in wide.columns]
        wide = wide.reindex(
            index=[MODALITIES[name].task for name in order if MODALITIES[name].task in wide.index],
            columns=order,
        )
        place.imshow(
            np.maximum(wide.to_numpy(), 1e-9),
            cmap=_paint("Oranges"),
            norm=LogNorm(1e-3, 30),
            aspect="auto",
        )
        for (y, x), value in np.ndenumerate(wide.to_numpy()):
            word = (
                ""
                if value != value
                else "0"
                if value == 0
                else f"{value:.2g}"
                if value < 1000
                else f"{value:.0f}"
            )
            place.text(
                x,
                y,
                word,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 6 else "black",
            )
        place.set(
            xticks=range(len(order)),
            yticks=range(len(wide)),
            xticklabels=_codes(order),
            yticklabels=wide.index,
            xlabel="taken away",
        )
        place.set_title(title, fontsize=9.5)
        place.tick_params(length=0)
        place.spines[:].set(visible=True, color="#cccccc")
    figure.suptitle(
        "How much each masked loss moves when another modality is taken away, %", fontsize=10
    )
    return figure


@styled
def temperatures(found: Mapping[str, np.ndarray], fixed: Mapping[str, float]) -> Figure:
    """Effective temperatures τ/s of all pairs, one panel per model on a logarithmic axis, with τ
    and the share of pairs at s = 0.

    Args:
        found: model -> scores s of the pairs; ``fixed``: model -> τ.
    """
    figure, axes = canvas(len(found), 1, (6.4, 1.7 * len(found)), sharex=True)
    ends = np.log10(min(fixed.values())) - 0.1, 1.0
    for place, (model, scores) in zip(axes[:, 0], found.items(), strict=True):
        none, paint = float((scores == 0).mean()), PAINT.get(model, PALETTE[2])
        values = fixed[model] / np.maximum(scores[scores > 0], 1e-12)
        place.hist(
            np.clip(values, 10 ** ends[0], 10 ** ends[1]), bins=np.logspace(*ends, 60), color=paint
        )
        place.axvline(fixed[model], color="black", ls=":", lw=1.2)
        note = f"τ = {fixed[model]:.3f} (dotted)" + (
            f"; s = 0, no gradient: {none:.1%} of the pairs" if none else ""
        )
        place.set(xscale="log", ylabel="pairs", xlim=(10 ** ends[0], 10 ** ends[1]))
        place.set_title(f"{model}: {note}", fontsize=9.5)
    axes[-1, 0].set_xlabel("effective temperature τ/s (10: and above)")
    return figure


@styled
def harmony(mean: np.ndarray, diagonals: Mapping[str, np.ndarray], title: str) -> Figure:
    """S over a batch: the mean matrix as a heat map, and beside it the spread of its diagonal over
    the products.

    Args:
        mean: (M, M); ``diagonals``: modality -> the scores of the products that have it.
    """
    names = list(diagonals)
    figure, axes = canvas(1, 2, (7.6, 3.4), width_ratios=(1, 1.15))
    map_, spread = axes[0]
    map_.imshow(mean, cmap="cividis", vmin=min(0.0, float(mean.min())), vmax=1.0)
    for (y, x), value in np.ndenumerate(mean):
        map_.text(
            x,
            y,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=9,
            color="black" if value > 0.6 else "white",
        )
    map_.set(
        xticks=range(len(names)),
        yticks=range(len(names)),
        xticklabels=_codes(names),
        yticklabels=_codes(names),
        title="mean of S",
    )
    map_.spines[:].set_visible(False)
    drawn = spread.boxplot(
        list(diagonals.values()),
        whis=(0, 100),
        patch_artist=True,
        widths=0.55,
        medianprops={"color": "black"},
    )
    for box, name in zip(drawn["boxes"], names, strict=True):
        box.set(facecolor=_pale(name), edgecolor=colour(name))
    spread.axhline(1 / np.sqrt(len(names)), color=QUIET, ls=":", lw=1.2)
    spread.annotate(
        "all modalities agree",
        (0.55, 1 / np.sqrt(len(names))),
        (0, 3),
        textcoords="offset points",
        fontsize=8,
        color="#555555",
    )
    spread.set(
        xticks=range(1, len(names) + 1),
        xticklabels=_codes(names),
        ylim=(0.35, 1.03),
        ylabel="score",
        title="diagonal, over products",
    )
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


@styled
def toy(histories: Mapping[str, Sequence[pd.DataFrame]]) -> Figure:
    """The paper's S taken literally: what is minimised, the lowest score of a pair and R@1 over the
    steps; a line per seed.

    Args:
        histories: case -> histories of :func:`m5lib.models.audit.toy`, one per seed.
    """
    figure, axes = canvas(1, 3, (11.0, 3.3))
    panels = {"total": "what is minimised", "lowest": "lowest score of a pair", "recall": "R@1"}
    for place, (column, title) in zip(axes[0], panels.items(), strict=True):
        for number, (case, parts) in enumerate(histories.items()):
            for seed, part in enumerate(parts):
                label = case if seed == 0 else None
                line = {
                    "color": PALETTE[number],
                    "ls": "--" if number == len(histories) - 1 else "-",
                    "alpha": 1 - 0.4 * (seed > 0),
                }
                place.plot(part["step"], part[column], lw=1.4, label=label, **line)
        place.set(title=title, xlabel="step")
        if column != "recall":
            place.axhline(0, color=QUIET, lw=0.8)
    axes[0, 2].set_ylim(0, 1.02)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
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
    height, furthest = 0.8 / len(models), 0.0
    for number, model in enumerate(models):
        part, place = (
            values[model],
            np.arange(len(values)) + (number - (len(models) - 1) / 2) * height,
        )
        mean, error = part.mean(axis=1), part.std(axis=1) if part.shape[1] > 1 else None
        axes.barh(
            place,
            mean,
            0.92 * height,
            color=PAINT.get(model, PALETTE[number]),
            alpha=0.75,
            xerr=error,
            label=model,
        )
        for column in part:
            axes.scatter(part[column], place, s=10, color="black", zorder=3)
        ends = np.maximum(part.max(axis=1), mean + (0.0 if error is None else error))
        furthest = max(furthest, float(ends.max()))
        for y, value, end in zip(place, mean, ends, strict=True):
            axes.annotate(
                f"{value:.3f}",
                (end, y),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.set(yticks=range(len(values)), xlabel=metric, title=title, xlim=(0, 1.2 * furthest))
    axes.set_yticklabels(values.index)
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
