"""Figures of training and of the numbers that come of it: losses, tables, seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from m5lib.figures.style import (
    PALETTE,
    QUIET,
    canvas,
    dots,
    heading,
    heat,
    legend_beside,
    nothing,
    styled,
)

STATES = {
    "untrained": "#bbbbbb",
    "pretrained": PALETTE[0],
    "finetuned": PALETTE[2],
    "control": PALETTE[4],
}


@styled
def losses(history: Sequence[Mapping], batch_size: int) -> Figure:
    """Every part of the loss over the steps; the contrast beside its chance level log B."""
    masked = [key for key in history[-1] if key.isupper()]
    contrast = [key for key in history[-1] if key.startswith("contrast_")]
    panels = {name: [name] for name in masked} | ({"contrast": contrast} if contrast else {})
    panels |= {n: [n] for n in history[-1] if n == "fused" or n.startswith("matching_")}
    figure, axes = canvas(1, len(panels), (2.7 * len(panels), 2.7))
    for place, (title, parts) in zip(axes[0], panels.items(), strict=True):
        for number, part in enumerate(parts):
            values = pd.Series([entry[part] for entry in history])
            smooth = values.rolling(max(1, len(values) // 40), min_periods=1).mean()
            turn, shade = divmod(number, len(PALETTE))  # ten pairs, seven colours
            line = {"color": PALETTE[shade], "ls": ("-", "--")[turn % 2]}
            place.plot(smooth, label=part.removeprefix("contrast_"), **line)
        place.set(title=title, xlabel="step", ylim=(0, None))
        if title == "contrast":
            place.axhline(np.log(batch_size), color=QUIET, ls=":", label="chance")
            legend_beside(place, fontsize=8)
    return figure


@styled
def milestones(points: pd.DataFrame, metric: str) -> Figure:
    """A metric over training; columns ``share``, ``readout`` (each a line), ``value``."""
    figure, ((axes,),) = canvas(size=(6.2, 3.4))
    for number, (readout, part) in enumerate(points.groupby("readout", sort=False)):
        part, (turn, shade) = part.sort_values("share"), divmod(number, len(PALETTE))
        style = {"color": PALETTE[shade], "ls": ("-", "--")[turn % 2], "label": readout}
        axes.plot(100 * part["share"], part["value"], marker="o", **style)
    axes.set(xlabel="pre-training done (%)", ylabel=metric)
    axes.set_title("Pre-training and read-outs, validation products")
    if len(points):
        legend_beside(axes)
    else:
        nothing(axes, "nothing to measure: the products have no labels")
    return figure


@styled
def table(values: pd.DataFrame, ticks: pd.DataFrame | None = None, title: str = "") -> Figure:
    """A heat map of numbers, its colours from 0 to 1 at least; a frame where ``ticks`` says."""
    figure, ((axes,),) = canvas(size=(1.6 + 0.75 * values.shape[1], 1.2 + 0.45 * len(values)))
    ends = min(0.0, float(values.min(axis=None))), max(1.0, float(values.max(axis=None)))
    said = lambda value: "" if value != value else f"{value:.2f}"  # noqa: E731
    heat(axes, values.to_numpy(), values.index, values.columns, norm=ends, said=said)
    axes.set_title(title)
    for y, x in () if ticks is None else np.argwhere(ticks.to_numpy()):
        frame = {"fill": False, "edgecolor": PALETTE[1], "linewidth": 2}
        axes.add_patch(Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, **frame))
    return figure


@styled
def spread(values: pd.DataFrame, metric: str, title: str, chance: float | None = None) -> Figure:
    """Mean over seeds with its standard deviation, a bar per row; a dot per seed (column)."""
    figure, ((axes,),) = canvas(size=(6.4, 1.3 + 0.27 * len(values)))
    dots(axes, values, PALETTE[5], chance=chance)
    end = min(1.08, 1.15 * float(values.to_numpy().max()))
    axes.set(xlabel=metric, title=title, xlim=(0, end))
    return figure


@styled
def panels(values: Mapping[str, pd.DataFrame], title: str, ground: str = "") -> Figure:
    """Several numbers side by side, each label against seed (:func:`m5lib.lab.study.values`): dots
    are seeds, diamonds mean ± deviation. ``ground``: a label that the others are held against, its
    bar grey; bars from zero then."""
    labels = next(iter(values.values())).index
    size = (1.6 + (2.6 if ground else 2.2) * len(values), 1.2 + 0.3 * len(labels))
    figure, axes = canvas(1, len(values), size, sharey=True)
    for number, (place, (name, numbers)) in enumerate(zip(axes[0], values.items(), strict=True)):
        if ground:
            paint = [QUIET if label == ground else PALETTE[5] for label in labels]
            end = dots(place, numbers, paint, digits=2)
            place.set(xlabel=name, xlim=(0, 1.15 * max(end, 0.1)))
            continue
        shade = PALETTE[number % len(PALETTE)]
        dots(place, numbers, shade, point=shade, bars=False, digits=None)
        place.set_title(name)
        place.grid(axis="y", color="#eeeeee")
        place.margins(x=0.12)
        place.locator_params(axis="x", nbins=4)
    heading(figure, title)
    return figure


@styled
def bars(values: pd.DataFrame, metric: str, title: str) -> Figure:
    """Horizontal bars: a group per row, a bar per column (``untrained``, ``pretrained``,
    ``control``); blanks stay blank. Of columns (name, seed) each name is one bar with its
    deviation, and a dot per seed."""
    names = list(dict.fromkeys(values.columns.get_level_values(0)))
    figure, ((axes,),) = canvas(size=(7.0, 1.3 + 0.24 * len(values) * len(names)))
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        look = {"shift": (number - (len(names) - 1) / 2) * height, "height": 0.92 * height}
        paint = STATES.get(name, PALETTE[number % len(PALETTE)])
        dots(axes, values[[name]], paint, point="black", label=name, **look)
    end = min(1.0, 1.15 * float(np.nanmax(values.to_numpy())))
    axes.set(xlabel=metric, title=title, xlim=(0, end))
    legend_beside(axes)
    return figure
