"""Figures of maps of embedding spaces: points in, a picture out, and one that answers to the
pointer. Directions and units of a map mean nothing: there are no axes."""

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from m5lib.catalogue import Product
from m5lib.data import MediaError
from m5lib.data.decoding import open_image
from m5lib.figures.catalogue import title_of
from m5lib.figures.style import PALETTE, canvas, cut, plain, short, styled
from m5lib.modalities import codes

#: The largest groups have a colour and a shape each, all others are grey.
SHAPES, OTHERS = "osD^vP*", "#c4c4c4"
#: Sides of the small pictures in pixels that are tried, and bytes that all may take together.
SIDES, LIMIT = (96, 80, 64, 48, 40, 32, 24), 1_200_000


def key(column: pd.Series) -> pd.DataFrame:
    """The groups that are coloured, largest first: index the group, columns ``colour``, ``shape``,
    ``count``. Products that lack nothing (``complete``) are the ground, not a group."""
    count = column[column != "complete"].value_counts().head(len(PALETTE))
    count = count[count > 1].sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    look = {"colour": PALETTE[: len(count)], "shape": list(SHAPES[: len(count)])}
    return pd.DataFrame(look | {"count": count.to_numpy()}, index=count.index)


def _panels(points: Mapping[str, np.ndarray], columns: int) -> tuple[Figure, list[Axes]]:
    rows, side = -(-len(points) // columns), 2.75 if columns > 1 else 4.4
    figure, axes = canvas(rows, columns, (side * columns, (side + 0.1) * rows + 0.9))
    for place, title in zip(axes.flat, points, strict=False):
        place.set_title(plain(title), fontsize=10)
        place.set(xticks=[], yticks=[])
        place.margins(0.04)
        place.spines[:].set(visible=True, color="#dddddd")
    return figure, list(axes.flat)


def _legend(figure: Figure, marks: Mapping[str, Mapping]) -> None:
    lines = [Line2D([], [], **{"ls": "", "ms": 6} | mark) for mark in marks.values()]
    columns = max(2, int(figure.get_figwidth() / 2.6))
    look = {"loc": "outside lower center", "fontsize": 9, "handletextpad": 0.3}
    figure.legend(lines, list(marks), ncols=columns, **look)


@styled
def maps(points: Mapping[str, np.ndarray], column: pd.Series, columns: int = 4) -> Figure:
    """Maps of the same products, title -> (N, 2), in lines of ``columns``, each group in the same
    colour (Figure 6); ``column``: (N,) the group of each product, the largest are coloured."""
    figure, axes = _panels(points, columns)
    groups, names = key(column), column.to_numpy()
    others = ~column.isin(groups.index).to_numpy()
    size = float(np.clip(5000 / len(names), 5, 26))
    for place, at in zip(axes, points.values(), strict=False):
        place.scatter(*at[others].T, s=0.6 * size, color=OTHERS, linewidths=0)
        for name, row in groups.iterrows():  # the smallest group above
            look = {"color": row["colour"], "marker": row["shape"], "alpha": 0.85}
            place.scatter(*at[names == name].T, s=size, linewidths=0, **look)
    marks = {
        f"{short(name, 1, 26)} ({row['count']})": {"marker": row["shape"], "color": row["colour"]}
        for name, row in groups.iterrows()
    }
    if others.any():
        ground = "complete" if (column == "complete").any() else "others"
        marks[f"{ground} ({others.sum()})"] = {"marker": "o", "color": OTHERS, "ms": 5}
    _legend(figure, marks)
    return figure


@styled
def listings(points: Mapping[str, np.ndarray], column: pd.Series, most: int = 30) -> Figure:
    """Whether listings of one product lie together on maps, title -> (N, 2): a star joins those of
    each of the ``most`` that are listed most often. ``column``: (N,) whose listing each is."""
    figure, axes = _panels(points, len(points))
    times = column.value_counts().sort_index(kind="stable")
    times = times.sort_values(ascending=False, kind="stable")
    joined = times[times > 1].index[:most]
    shown = column.isin(joined).to_numpy()
    for place, at in zip(axes, points.values(), strict=True):
        own = pd.DataFrame(at[shown])
        centre = own.groupby(column[shown].to_numpy()).transform("mean").to_numpy()
        lines, look = np.stack([at[shown], centre], axis=1), {"linewidths": 0.8, "alpha": 0.7}
        place.scatter(*at[~shown].T, s=3, color=OTHERS, linewidths=0)
        place.add_collection(LineCollection(lines, colors=PALETTE[1], **look))
        place.scatter(*at[shown].T, s=8, color=PALETTE[0], linewidths=0)
    star = {"ls": "-", "marker": "o", "color": PALETTE[1], "mfc": PALETTE[0], "mec": PALETTE[0]}
    text = f"listings of one product, joined ({len(joined)} products, those listed most often)"
    _legend(figure, {text: star | {"ms": 5}, "others": {"marker": "o", "color": OTHERS, "ms": 5}})
    return figure


class InteractiveMap:
    """Maps as a picture that answers to the pointer, shown by Jupyter and kept in the notebook.

    Hover a product: its picture, title and group. Click it: it stays, joined to its nearest. It
    needs no network. Where scripts do not run (GitHub, a notebook that is not trusted) a still
    picture stands in its place.

    Args:
        points: title -> (N, 2), a tab for each.
        near: title -> (N, k) the nearest of each product in the space that the map is of.
        column: (N,) the group of each of the N products.
    """

    def __init__(
        self,
        points: Mapping[str, np.ndarray],
        near: Mapping[str, np.ndarray],
        column: pd.Series,
        products: Sequence[Product],
    ):
        title = next(iter(points))
        self.still: Figure = maps({title: points[title]}, column, 1)
        self.tabs = _tabs(points, near, column, products)
        self.count = len(products)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        stream = io.BytesIO()
        self.still.savefig(stream, format="png", dpi=90)
        png = base64.b64encode(stream.getvalue()).decode()
        text = f"<a map of {self.count} products>"
        return {"text/html": self.page(png), "image/png": png, "text/plain": text}

    def page(self, png: str) -> str:
        """The HTML: the still picture, bokeh's library, and the map, which takes the picture's
        place. bokeh escapes what products say, in the page and in the hovering card."""
        from bokeh.embed import components
        from bokeh.resources import Resources

        script, map_ = components(self.tabs)
        library = Resources(mode="inline", components=["bokeh"]).render_js()
        still = f"m5map-{uuid4().hex[:8]}"
        return (
            f'<div id="{still}"><img style="max-width:100%" alt="map" '
            f'src="data:image/png;base64,{png}"><p>A still picture: run the cell, or open the '
            f"notebook's page, and the map answers to the pointer.</p></div>{library}{map_}{script}"
            f"<script>if (window.Bokeh) document.getElementById('{still}').remove()</script>"
        )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _tabs(points: Mapping, near: Mapping, column: pd.Series, products: Sequence[Product]):
    """A bokeh figure for each map. One that is clicked is kept in all."""
    from bokeh.models import ColumnDataSource, CustomJS, HoverTool, TabPanel, Tabs, TapTool
    from bokeh.plotting import figure

    groups = key(column)
    legend = {name: f"{cut(name, 1, 26)} ({row['count']})" for name, row in groups.iterrows()}
    columns = {
        "title": [title_of(product)[:200] for product in products],
        "group": [str(name) for name in column],
        "has": [codes(product.contents) for product in products],
        "picture": thumbnails([product.contents.get("image") for product in products]),
        "colour": [groups["colour"].get(name, OTHERS) for name in column],
        # two dollar signs would be set as mathematics, by a library from the network
        "legend": [legend.get(name, "others").replace("$$", "$\u200b$") for name in column],
    }
    for number, (x, y) in enumerate(at.T.tolist() for at in points.values()):
        columns |= {f"x{number}": x, f"y{number}": y}
    source, lines, tabs = ColumnDataSource(columns, name="products"), [], []
    size = 9 if len(products) <= 250 else 7 if len(products) <= 800 else 5
    for number, title in enumerate(points):
        lines.append(ColumnDataSource({"x0": [], "y0": [], "x1": [], "y1": []}))
        tools = {"tools": "pan,wheel_zoom,reset,tap", "active_scroll": "wheel_zoom"}
        plot = figure(width=860, height=480, **tools)
        plot.segment("x0", "y0", "x1", "y1", source=lines[-1], color=PALETTE[-1])
        look = {"fill_color": "colour", "line_color": None, "fill_alpha": 0.85}
        look |= {"nonselection_fill_alpha": 0.4, "selection_line_color": PALETTE[-1]}
        at = {"x": f"x{number}", "y": f"y{number}", "source": source, "size": size}
        dots = plot.scatter(**at, legend_group="legend", **look)
        plot.add_tools(HoverTool(renderers=[dots], tooltips=_beside("map_card.html")))
        plot.select(TapTool).renderers = [dots]
        plot.axis.visible = plot.grid.visible = False
        plot.add_layout(plot.legend[0], "right")
        tabs.append(TabPanel(child=plot, title=title))
    arguments = {"source": source, "lines": lines, "near": [near[t].tolist() for t in points]}
    source.selected.js_on_change("indices", CustomJS(args=arguments, code=_beside("map_join.js")))
    return Tabs(tabs=tabs)


def thumbnails(files: Sequence) -> list[str]:
    """Each picture as a small JPEG in a data URI, as large as :data:`LIMIT` allows for all, never
    below the last of :data:`SIDES`; blank without a picture, or with its features only."""
    pictures = [Image.new("RGB", (1, 1), "#eeeeee") for _ in files]
    for number, file in enumerate(files):
        if file is not None:
            with suppress(MediaError, OSError):
                pictures[number] = open_image(file, 2 * SIDES[0])
    for side in SIDES:
        small = []
        for picture in pictures:
            stream, copy = io.BytesIO(), picture.copy()
            copy.thumbnail((side, side), Image.Resampling.LANCZOS)
            copy.save(stream, "JPEG", quality=68, optimize=True)
            small.append(stream.getvalue())
        if sum(map(len, small)) <= LIMIT:
            break
    return ["data:image/jpeg;base64," + base64.b64encode(part).decode() for part in small]
