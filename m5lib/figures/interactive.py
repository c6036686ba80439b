"""A map that answers: hover a product to see its picture, title and category; click it to keep it
and to see its nearest products.

One piece of HTML with everything in it: no network, no server, no extension. Where scripts do not
run (GitHub, a notebook that is not trusted) the still picture stays.
"""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from m5lib.data.decoding import open_image
from m5lib.evaluation.separation import METHODS, SPACE, nearest
from m5lib.figures import maps as map_figures
from m5lib.figures.style import PALETTE
from m5lib.lab.maps import Mapped
from m5lib.modalities import MODALITIES, codes

#: The page's part of it; the words between double underscores are filled in.
PAGE = Path(__file__).with_suffix(".html")
#: Sides of the small pictures in pixels that are tried, and bytes that all of them together may
#: take.
SIDES, LIMIT = (112, 96, 80, 64, 48, 40, 32, 24), 900_000
SHOWN = 6


class InteractiveMap:
    """The maps of some models as a picture that answers to the pointer; shown by Jupyter, kept in
    the notebook.

    In a MIME bundle: ``text/html``, and ``image/png`` for whatever shows no HTML.

    Args:
        found: (label, seed) -> maps (:func:`m5lib.lab.maps.maps`); those of every label and
            method can be chosen in the picture.
        seed: whose maps.
        readout: whose space and maps.
        by: what is coloured, a column of :func:`m5lib.lab.maps.groups`.
    """

    def __init__(
        self, found: Mapping[tuple[str, int], Mapped], seed: int, readout: str, by: str = "category"
    ):
        studies = {label: study for (label, own), study in found.items() if own == seed}
        self.still: Figure = map_figures.maps(found, seed, readout, by, list(studies)[:1])
        self.data = contents(studies, readout, by)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        picture = io.BytesIO()
        self.still.savefig(picture, format="png", dpi=90)
        png = base64.b64encode(picture.getvalue()).decode()
        return {
            "text/html": self.page(png),
            "image/png": png,
            "text/plain": f"<a map of {len(self.data['products'])} products>",
        }

    def page(self, png: str) -> str:
        """The HTML: the still picture, and the script that takes its place. No text of a product
        can become markup."""
        said = json.dumps(self.data, separators=(",", ":")).replace("<", "\\u003c")
        filled = {
            "UID": f"m5map-{uuid4().hex[:8]}",
            "STILL": png,
            "ALT": html.escape("map: " + self.data["layouts"][0]["name"]),
        }
        page = PAGE.read_text(encoding="utf-8")
        for name, value in filled.items():
            page = page.replace(f"__{name}__", value)
        return page.replace("__DATA__", said)


def contents(studies: Mapping[str, Mapped], readout: str, by: str) -> dict:
    """What the page knows: products (title, group, modalities, place in the tiles), layouts with
    coordinates in 0..1, and neighbours."""
    table, catalogue = (first := next(iter(studies.values()))).groups, first.catalogue
    rows = {id_: row for row, id_ in enumerate(catalogue.ids)}
    products = [catalogue.products[rows[id_]] for id_ in table.index]
    groups = map_figures.key(table[by])
    place = {name: n for n, name in enumerate(groups.index)}
    tiles = tiled([product.contents.get(next(iter(MODALITIES))) for product in products])
    legend = [
        {"name": str(name), "colour": row["colour"], "count": int(row["count"])}
        for name, row in groups.iterrows()
    ]
    layouts, around = [], {}
    for label, study in studies.items():
        around[label] = nearest(study.spaces[readout, SPACE], SHOWN, SPACE).tolist()
        layouts += [
            {
                "name": f"{label}, {method}",
                "near": label,
                "at": _fitted(study.spaces[readout, method]),
            }
            for method in METHODS
        ]
    shown = [
        {
            "title": _title(product.contents) or product.id,
            "group": str(name),
            "legend": place.get(name, -1),
            "has": codes(product.contents),
        }
        for product, name in zip(products, table[by], strict=True)
    ]
    for product, tile in zip(shown, tiles.pop("places"), strict=True):
        product["tile"] = tile
    return {
        "by": by,
        "products": shown,
        "legend": legend,
        "layouts": layouts,
        "near": around,
        "tiles": tiles,
        "pinned": PALETTE[-1],
    }


def _title(contents_: Mapping) -> str:
    return next((content for content in contents_.values() if isinstance(content, str)), "")[:200]


def _fitted(points: np.ndarray) -> list[list[float]]:
    """Coordinates from 0 to 1, the longer side filled, y downwards as on a screen."""
    points = points.astype(float)
    low, high = points.min(axis=0), points.max(axis=0)
    middle, half = (low + high) / 2, max((high - low).max() / 2, 1e-9)
    return np.round(((points - middle) / half * (1, -1) + 1) / 2, 4).tolist()


def tiled(files: Iterable) -> dict:
    """The pictures of products side by side in one JPEG, as large as :data:`LIMIT` allows, on
    white; never below the last of :data:`SIDES`.

    Returns:
        ``side`` of a tile in pixels, tiles in a row (``columns``), ``rows``, ``uri``; ``places``:
        the number of each product's tile, -1 without a picture.
    """
    files = list(files)
    pictures = [open_image(file, 2 * SIDES[0]) for file in files if file is not None]
    count = iter(range(len(pictures)))
    places = [-1 if file is None else next(count) for file in files]
    columns = max(1, int(np.ceil(np.sqrt(len(pictures)))))
    rows = max(1, -(-len(pictures) // columns))
    for side in SIDES:
        sheet = Image.new("RGB", (columns * side, rows * side), "white")
        for number, picture in enumerate(pictures):
            small = picture.copy()
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            y, x = divmod(number, columns)
            sheet.paste(
                small, (x * side + (side - small.width) // 2, y * side + (side - small.height) // 2)
            )
        stream = io.BytesIO()
        sheet.save(stream, "JPEG", quality=68, optimize=True)
        if stream.tell() <= LIMIT:
            break
    uri = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    return {"side": side, "columns": columns, "rows": rows, "uri": uri, "places": places}
