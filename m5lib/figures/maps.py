"""Figures of maps of embedding spaces: takes what :mod:`m5lib.lab.maps` found, returns a
matplotlib Figure."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from m5lib.evaluation.separation import METHODS
from m5lib.figures.style import PALETTE, QUIET, canvas, short, styled
from m5lib.lab.maps import Mapped, value_of

#: The largest groups have a colour and a shape each, all others are grey.
SHAPES = "osD^vP*"
OTHERS = "#c4c4c4"


def key(column: pd.Series) -> pd.DataFrame:
    """The groups that are coloured, largest first: index the group, columns ``colour``, ``shape``,
    ``count``.

    The same for the same products, and so for all panels. Products that lack nothing (``complete``)
    are the ground, not a group.
    """
    count = column[column != "complete"].value_counts().head(len(PALETTE))
    count = count[count > 1].sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    part = slice(None, len(count))
    return pd.DataFrame(
        {"colour": PALETTE[part], "shape": list(SHAPES[part]), "count": count.to_numpy()},
        index=count.index,
    )


def _panel(axes, points: np.ndarray, column: pd.Series, groups: pd.DataFrame) -> None:
    """One map: grey products below, those of a coloured group above, the smallest group last."""
    size = float(np.clip(5000 / len(points), 5, 26))
    names = column.to_numpy()
    others = ~np.isin(names.astype(str), groups.index.astype(str))
    axes.scatter(*points[others].T, s=0.6 * size, color=OTHERS, linewidths=0)
    for name, row in groups.iterrows():
        axes.scatter(
            *points[names == name].T,
            s=size,
            color=row["colour"],
            marker=row["shape"],
            linewidths=0,
            alpha=0.85,
        )
    _frame(axes)


def _frame(axes) -> None:
    """No axes: directions and units of a map mean nothing."""
    axes.set(xticks=[], yticks=[])
    axes.margins(0.04)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color("#dddddd")


def _legend(figure: Figure, groups: pd.DataFrame, column: pd.Series, others: str) -> None:
    """The coloured groups with their numbers of products, below the panels."""
    names = [f"{short(str(name), 1, 26)} ({row['count']})" for name, row in groups.iterrows()]
    marks = [
        Line2D([], [], ls="", marker=row["shape"], color=row["colour"], ms=6)
        for _, row in groups.iterrows()
    ]
    left = len(column) - int(groups["count"].sum())
    if left:
        names.append(f"{others} ({left})")
        marks.append(Line2D([], [], ls="", marker="o", color=OTHERS, ms=5))
    figure.legend(
        marks,
        names,
        loc="outside lower center",
        ncols=max(2, int(figure.get_figwidth() / 2.6)),
        fontsize=9,
        handletextpad=0.2,
    )


@styled
def maps(
    found: Mapping[tuple[str, int], Mapped],
    seed: int,
    readout: str,
    by: str = "category",
    labels: Iterable[str] = (),
    methods: Sequence[str] = METHODS,
) -> Figure:
    """The maps of several models side by side, a row for each method (Figure 6): the same products
    in the same colours.

    Args:
        by: what is coloured, a column of :func:`m5lib.lab.maps.groups`; over each panel
            stands its silhouette in the map.
        labels: which models, by default all.
    """
    labels = list(labels) or [label for label, s in found if s == seed]
    column = found[labels[0], seed].groups[by]
    groups = key(column)
    single = len(labels) == 1  # its methods side by side
    rows, columns = (1, len(methods)) if single else (len(methods), len(labels))
    figure, axes = canvas(rows, columns, (2.75 * max(2, columns), 2.85 * rows + 0.9))
    for line, method in zip(axes.T if single else axes, methods, strict=True):
        for place, label in zip(line, labels, strict=True):
            study = found[label, seed]
            _panel(place, study.spaces[readout, method], column, groups)
            apart = study.value(value_of(by, "silhouette", method, readout))
            place.set_title(f"{label}, {method}\nsilhouette {apart:.2f}", fontsize=10)
    _legend(figure, groups, column, "complete" if by == "missing" else "others")
    return figure


@styled
def listings(
    found: Mapping[tuple[str, int], Mapped],
    seed: int,
    readout: str,
    method: str = METHODS[0],
    most: int = 30,
) -> Figure:
    """Whether listings of one product by several merchants lie together: a star joins those of each
    product in the map.

    Over each panel: how often the nearest product in the map is another listing of the same, asked
    of all that are listed again.

    Args:
        most: so many products are joined, those that are listed most often.
    """
    labels = [label for label, s in found if s == seed]
    figure, axes = canvas(1, len(labels), (2.75 * max(2, len(labels)), 3.4))
    whose = found[labels[0], seed].groups["product"]
    times = (
        whose.value_counts().sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    )
    joined = times[times > 1].index[:most]
    shown = whose.isin(joined).to_numpy()
    for place, label in zip(axes[0], labels, strict=True):
        points = found[label, seed].spaces[readout, method]
        centre = (
            pd.DataFrame(points[shown])
            .groupby(whose[shown].to_numpy())
            .transform("mean")
            .to_numpy()
        )
        place.scatter(*points[~shown].T, s=3, color=OTHERS, linewidths=0)
        place.add_collection(
            LineCollection(
                np.stack([points[shown], centre], axis=1),
                colors=PALETTE[1],
                linewidths=0.8,
                alpha=0.7,
            )
        )
        place.scatter(*points[shown].T, s=8, color=PALETTE[0], linewidths=0)
        _frame(place)
        near = found[label, seed].value(value_of("product", "1-NN accuracy", method, readout))
        place.set_title(f"{label}, {method}\nnearest is the same: {near:.0%}", fontsize=10)
    marks = [
        Line2D([], [], ls="-", marker="o", color=PALETTE[1], mfc=PALETTE[0], mec=PALETTE[0], ms=5),
        Line2D([], [], ls="", marker="o", color=OTHERS, ms=5),
    ]
    names = [
        f"listings of one product, joined ({len(joined)} products, those listed most often)",
        "others",
    ]
    figure.legend(marks, names, loc="outside lower center", ncols=2, fontsize=9)
    return figure


@styled
def removals(values: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """What taking a modality away does to complete products: a panel for each number, a dot for
    each seed."""
    figure, axes = canvas(
        1,
        len(values),
        (1.0 + 2.8 * len(values), 1.4 + 0.3 * len(next(iter(values.values())))),
        sharey=True,
    )
    for place, (name, part) in zip(axes[0], values.items(), strict=True):
        height, mean = np.arange(len(part)), part.mean(axis=1)
        shade = [QUIET if label == part.index[0] else PALETTE[5] for label in part.index]
        place.barh(height, mean, 0.7, color=shade)
        for column in part:
            place.scatter(part[column], height, s=9, color=PALETTE[0], zorder=3)
        for y, value in enumerate(mean):
            place.annotate(
                f"{value:.2f}",
                (part.iloc[y].max(), y),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        place.set(yticks=height, xlabel=name, xlim=(0, 1.15 * max(part.to_numpy().max(), 0.1)))
        place.set_yticklabels(part.index)
    axes[0, 0].invert_yaxis()
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure
