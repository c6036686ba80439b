"""Maps are drawn with their groups; the one that answers to the pointer holds everything, and no
title becomes markup."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from bokeh.models import HoverTool
from matplotlib.collections import LineCollection
from PIL import Image

from m5lib.figures import maps as map_figures

EVIL = '</script><img src=x onerror="alert(1)"> & "quotes" $$x$$ {{y}}'


def points(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32)


def test_the_largest_groups_are_coloured_and_all_are_counted():
    column = pd.Series(["mug"] * 9 + ["lamp"] * 5 + ["$ and $", *"abc", None, None])
    figure = map_figures.maps({"one": points(20), "two": points(20, 1)}, column, 2)
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["mug (9)", "lamp (5)", "others (6)"]
    lacks = pd.Series(["complete"] * 9 + ["no V"] * 5)
    names = map_figures.maps({"one": points(14)}, lacks, 1).legends[0].get_texts()
    assert [text.get_text() for text in names] == ["no V (5)", "complete (9)"]
    dear = map_figures.maps({"one": points(4)}, pd.Series(["$5 or $6_"] * 4), 1)
    dear.savefig(io.BytesIO(), format="png")


def test_stars_join_listings():
    whose = pd.Series(["a", "a", "b", "b", "b", "c", None])
    (axes,) = map_figures.listings({"SCALE": points(7)}, whose, most=1).axes
    (stars,) = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    ends = np.array([segment[1] for segment in stars.get_segments()])
    np.testing.assert_allclose(ends, [points(7)[2:5].mean(axis=0)] * 3, rtol=1e-5)


@pytest.fixture(scope="module")
def shown(catalogue):
    products = list(catalogue.products[:30])
    products[0] = replace(products[0], contents={"text": EVIL})  # a title from outside, no picture
    titles, column = ("SCALE, $$", "SCALE, UMAP"), pd.Series([EVIL] * 8 + list("ab") * 11)
    near = np.random.default_rng(0).integers(0, 30, (30, 6))
    maps_ = {title: points(30, seed) for seed, title in enumerate(titles)}
    return map_figures.InteractiveMap(maps_, dict.fromkeys(titles, near), column, products), near


def test_the_bundle_has_a_page_and_a_picture(shown):
    bundle = shown[0]._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).format == "PNG"
    page = bundle["text/html"]
    assert bundle["image/png"] in page and len(page) < 4_000_000
    tags = re.findall(
        r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?([^\"' >]{0,40})", page
    )
    assert all(tag.startswith("data:") or tag.startswith("@") for tag in tags), "nothing from afar"
    again = shown[0].page("")
    assert len(set(re.findall(r'id="(m5map-\w+)"', page + again))) == 2, "two outputs, two ids"


def test_no_title_becomes_markup(shown):
    page = shown[0].page("")
    own = page[page.rindex("Bokeh.safely") :]
    assert "onerror" in own and "<img src=x" not in own and "</script><img" not in page
    assert own.count("</script>") == 2  # of the map, and of the line that removes the picture


def test_what_the_map_knows(shown):
    drawn, near = shown
    tabs, source = drawn.tabs, drawn.tabs.select_one({"name": "products"})
    card = next(iter(tabs.select({"type": HoverTool}))).tooltips
    assert [tab.title for tab in tabs.tabs] == ["SCALE, $$", "SCALE, UMAP"]
    data = source.data
    assert data["title"][0] == EVIL and data["has"][0] == "T" and "{safe}" not in card
    assert data["y1"] == points(30, 1)[:, 1].tolist() and len(set(data["colour"])) == 3
    assert all("$$" not in name for name in data["legend"]), "no mathematics from the network"
    (callback,) = source.selected.js_property_callbacks["change:indices"]
    assert callback.args["near"] == [near.tolist()] * 2


def test_many_pictures_become_smaller(catalogue, monkeypatch):
    files = [product.contents.get("image") for product in catalogue.products[:20]]

    def sides(uris):
        for uri in uris:
            yield max(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size)

    assert max(sides(map_figures.thumbnails(files))) > 48
    monkeypatch.setattr(map_figures, "LIMIT", 0)
    assert max(sides(map_figures.thumbnails(files))) <= map_figures.SIDES[-1]
    assert list(sides(map_figures.thumbnails([None]))) == [1]
