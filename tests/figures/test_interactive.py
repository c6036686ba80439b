"""The map that answers to the pointer: what the page holds, and that no title becomes markup."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from m5lib.evaluation.separation import METHODS, SPACE
from m5lib.figures import interactive
from m5lib.lab import maps

EVIL = '</script><img src=x onerror="alert(1)"> & "quotes"'


@pytest.fixture(scope="module")
def shown(catalogue):
    rows = maps.held_out(catalogue, most=30)
    products = list(catalogue.products)
    products[rows[0]] = replace(
        products[rows[0]], contents={"text": EVIL}
    )  # a title from outside, and no picture
    changed = replace(catalogue, products=tuple(products))
    rng, n = np.random.default_rng(0), len(rows)
    spaces = {("r", SPACE): rng.normal(size=(n, 8)).astype(np.float32)} | {
        ("r", m): rng.normal(size=(n, 2)).astype(np.float32) for m in METHODS
    }
    queries = pd.DataFrame(
        columns=["state", "variant", "id", "task", "metric", "convention", "value"]
    )
    one = maps.Mapped(
        "run", "data", [], queries, [], 1, maps.groups(changed, rows), spaces, Path("x"), changed
    )
    return interactive.InteractiveMap(
        {("SCALE", 0): one, ("ViLBERT", 0): one, ("SCALE", 1): one}, 0, "r"
    )


def test_the_bundle_has_a_page_and_a_picture(shown):
    bundle = shown._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).format == "PNG"
    page = bundle["text/html"]
    assert bundle["image/png"] in page and len(page) < 2_000_000
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//|fetch\(|import\(", page), (
        "nothing from a network"
    )
    assert len(set(re.findall(r'data-m5map="(m5map-\w+)"', page + shown.page("")))) == 2, (
        "two outputs do not share an id"
    )


def test_no_title_becomes_markup(shown):
    page = shown._repr_mimebundle_()["text/html"]
    assert (
        EVIL not in page
        and page.count("<script>") == page.count("</script>") == 1
        and "onerror" in page
    )
    data = json.loads(re.search(r"const data = (\{.*?\});\n", page)[1])
    assert EVIL in [product["title"] for product in data["products"]] and "innerHTML" not in page


def test_what_the_page_knows(shown):
    data = shown.data
    count = len(data["products"])
    assert [one["name"] for one in data["layouts"]] == [
        f"{label}, {m}" for label in ("SCALE", "ViLBERT") for m in METHODS
    ]
    for layout in data["layouts"]:
        at = np.array(layout["at"])
        assert (
            at.shape == (count, 2)
            and at.min() >= 0
            and at.max() <= 1
            and np.ptp(at, axis=0).max() == pytest.approx(1, abs=1e-3)
        )
    near = np.array(data["near"]["SCALE"])
    assert near.shape == (count, interactive.SHOWN) and (near != np.arange(count)[:, None]).all()
    bare = next(product for product in data["products"] if product["title"] == EVIL)
    assert bare["tile"] == -1 and bare["has"] == "T"
    tiles = data["tiles"]
    sheet = Image.open(io.BytesIO(base64.b64decode(tiles["uri"].split(",")[1])))
    assert sheet.format == "JPEG" and sheet.size == (
        tiles["columns"] * tiles["side"],
        tiles["rows"] * tiles["side"],
    )
    assert sorted(p["tile"] for p in data["products"] if p["tile"] >= 0) == list(range(count - 1))


def test_many_pictures_become_smaller(shown, monkeypatch, catalogue):
    files = [product.contents.get("image") for product in catalogue.products[:20]]
    monkeypatch.setattr(interactive, "LIMIT", 9_000)
    assert interactive.tiled(files)["side"] < interactive.SIDES[0]
    nothing = interactive.tiled([None, None])
    assert nothing["places"] == [-1, -1] and nothing["uri"].startswith("data:image/jpeg")
