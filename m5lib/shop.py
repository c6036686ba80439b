"""A small synthetic shop, so that every notebook runs anywhere: pictures, titles and tables drawn from known facets.

A category fixes the shape of the picture and, loosely, its colours and the words of the title; brands, numbers and the rest of the
table say nothing about it. The shop is written in the public fashion layout and read back by :mod:`m5lib.readers`, like real products.
"""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from m5lib.data import Catalogue, DataError

PRODUCTS = {"tiny": 400, "small": 4000, "full": 40_000}
COLUMNS = ("id", "gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "usage", "productDisplayName")
COLOURS = {
    "Red": (200, 40, 40), "Blue": (40, 60, 190), "Green": (40, 150, 70), "Black": (30, 30, 30),
    "Yellow": (230, 200, 50), "Grey": (130, 130, 130), "Pink": (230, 140, 170), "Brown": (120, 80, 50),
}  # fmt: skip
BRANDS = ("Acme", "Bolt", "Coral", "Dune", "Elm", "Fjord")
#: Category -> shape, corners in a unit box (None: an ellipse), and the words that may name it in a title; a shape serves two categories.
CATEGORIES = {
    "Shirts": (((0.2, 0), (0.8, 0), (1, 0.3), (0.8, 0.4), (0.8, 1), (0.2, 1), (0.2, 0.4), (0, 0.3)), ("Shirt", "Casual Shirt")),
    "Tshirts": (((0.2, 0), (0.8, 0), (1, 0.3), (0.8, 0.4), (0.8, 1), (0.2, 1), (0.2, 0.4), (0, 0.3)), ("T-shirt", "Tee")),
    "Watches": (None, ("Watch", "Analogue Watch")),
    "Sunglasses": (((0, 0.4), (1, 0.4), (0.9, 0.65), (0.6, 0.65), (0.5, 0.5), (0.4, 0.65), (0.1, 0.65)), ("Shades", "Sunglasses")),
    "Trousers": (((0.25, 0), (0.75, 0), (0.85, 1), (0.6, 1), (0.5, 0.3), (0.4, 1), (0.15, 1)), ("Trousers", "Slim Pants")),
    "Jeans": (((0.25, 0), (0.75, 0), (0.85, 1), (0.6, 1), (0.5, 0.3), (0.4, 1), (0.15, 1)), ("Jeans", "Denim Pants")),
    "Bags": (((0.1, 0.35), (0.9, 0.35), (1, 1), (0, 1)), ("Bag", "Tote")),
    "Shoes": (((0, 0.5), (0.35, 0.5), (0.6, 0.75), (1, 0.8), (1, 1), (0, 1)), ("Shoes", "Sneakers")),
    "Scarves": (((0.4, 0), (0.6, 0), (0.65, 1), (0.35, 1)), ("Scarf", "Stole")),
    "Caps": (((0.1, 0.6), (0.3, 0.3), (0.7, 0.3), (0.8, 0.6), (1, 0.7), (0.1, 0.7)), ("Cap", "Hat")),
}


def _picture(shape, colour: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """A shape of the colour at a random place and size on a light background with a little clutter."""
    image = Image.new("RGB", (60, 80), tuple(int(v) for v in rng.integers(225, 256, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 4)):
        x, y = rng.integers(0, 56), rng.integers(0, 76)
        pen.rectangle([int(x), int(y), int(x + rng.integers(2, 10)), int(y + 3)], fill=tuple(int(v) for v in rng.integers(150, 256, 3)))
    width, height = rng.integers(28, 50), rng.integers(35, 65)
    left, top = rng.integers(2, 58 - width), rng.integers(2, 78 - height)
    shade = tuple(int(np.clip(c + rng.normal(0, 20), 0, 255)) for c in colour)
    if shape is None:
        pen.ellipse([int(left), int(top), int(left + width), int(top + width)], fill=shade, outline=(90, 90, 90))
    else:
        pen.polygon([(float(left + x * width), float(top + y * height)) for x, y in shape], fill=shade)
    return image


def _product(number: int, seed: int) -> tuple[list[str], Image.Image]:
    """Record and picture of product ``number``: a function of number and seed only."""
    rng = np.random.default_rng([seed, number])
    names = list(CATEGORIES)
    tail = 1.0 / np.arange(1, len(names) + 1)  # Zipf's law
    place = int(rng.choice(len(names), p=tail / tail.sum()))
    liking = np.roll(np.linspace(3, 1, len(COLOURS)), place)
    shape, words = CATEGORIES[names[place]]
    colour = str(rng.choice(list(COLOURS), p=liking / liking.sum()))
    gender, season = str(rng.choice(["Men", "Women"])), str(rng.choice(["Summer", "Winter", "Fall"]))
    word = str(rng.choice(words)) if rng.random() < 0.8 else "Product"  # a fifth of the titles do not name the thing
    title = f"{rng.choice(BRANDS)} {gender} {colour if rng.random() < 0.7 else ''} {word} {rng.integers(1000)}".split()
    record = [str(number), gender, "", "", names[place], colour, season, str(rng.choice(["Casual", "Sports"])), " ".join(title)]
    return record, _picture(shape, COLOURS[colour], rng)


def make(size: str | int = "tiny", seed: int = 0, folder: str | Path | None = None) -> Catalogue:
    """The shop of a size (a profile's name or a number of products), written on first use, then read.

    Args:
        folder: by default ``cache/shop-<products>-<seed>`` below the project.

    Raises:
        DataError: the size is not known.
    """
    from m5lib import readers, runs

    count = PRODUCTS.get(size, size) if isinstance(size, str) else size
    if not isinstance(count, int):
        raise DataError(f"shop: unknown size {size!r}; give one of {list(PRODUCTS)} or a number of products")
    folder = Path(folder) if folder is not None else runs.home("cache", f"shop-{count}-{seed}")
    if not (folder / "styles.csv").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "images").mkdir(parents=True)
        with open(folder / "styles.tmp", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for number in range(count):
                record, picture = _product(number, seed)
                picture.save(folder / "images" / f"{number}.jpg", quality=90)
                writer.writerow(record)
        os.replace(folder / "styles.tmp", folder / "styles.csv")  # last: a folder that has it is whole
    catalogue = readers.read_fashion(folder)
    return Catalogue("shop", catalogue.products, catalogue.skipped)
