"""Fixtures: shapes and types checked in every call of the library, and a small shop in the public
fashion layout."""

import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
# two kernels run side by side, and threads that outnumber the cores wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from multiprocessing import parent_process

from jaxtyping import install_import_hook

# a machine that is lent for its device may lack beartype; a process of a test starts sooner without
if find_spec("beartype") and parent_process() is None:
    hook = install_import_hook("m5lib", "typecheck.check")

import csv

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

if find_spec("hypothesis"):  # no test times anything, and each run tries the same examples
    from hypothesis import settings

    settings.register_profile("m5", deadline=None, derandomize=True)
    settings.load_profile("m5")

from m5lib import streams
from m5lib.data import readers, store
from m5lib.models import zoo
from m5lib.models.words import train_tokenizer
from m5lib.spec import Spec

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]


def script_of(name):
    """A script of ``benchmarks/`` as a module."""
    spec = spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


SHARED = Path(os.environ.get("M5_SHARED", ROOT.parent / "shared"))
COLUMNS = [
    "id",
    "gender",
    "masterCategory",
    "subCategory",
    "articleType",
    "baseColour",
    "season",
    "usage",
    "productDisplayName",
]
KINDS = {"Watch": "ellipse", "Shirt": "rectangle", "Scarf": "line", "Bag": "polygon"}


def draw(kind: str, colour: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """A product picture: a shape that tells the category, at a random place, on white."""
    image = Image.new("RGB", (60, 80), "white")
    pen, x, y = ImageDraw.Draw(image), *(int(v) for v in rng.integers(5, 15, 2))
    if kind == "polygon":
        pen.polygon([(x, y + 50), (x + 20, y), (x + 40, y + 50)], fill=colour)
    elif kind == "line":
        pen.line([x, y, x + 35, y + 55], fill=colour, width=6)
    else:
        getattr(pen, kind)([x, y, x + 35, y + 45], fill=colour)
    return image


def write_shop(folder: Path, products: int = 240, seed: int = 0) -> Path:
    """``styles.csv`` and ``images/`` with ``products`` products of four categories, one label seen
    once."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    colours = {
        "Red": (200, 30, 30),
        "Blue": (30, 30, 200),
        "Green": (30, 160, 60),
        "Black": (20, 20, 20),
    }
    with open(folder / "styles.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for n in range(products):
            label = "Unicorn" if n == 7 else str(rng.choice(list(KINDS), p=[0.4, 0.3, 0.2, 0.1]))
            colour = str(rng.choice(list(colours)))
            brand = str(rng.choice(["Acme", "Bolt", "Coral", "Dune"]))
            gender = str(rng.choice(["Men", "Women"]))
            title = f"{brand} {gender} {colour} {label} {rng.integers(100)}"
            writer.writerow(
                [
                    n,
                    gender,
                    "All",
                    "All",
                    label,
                    colour,
                    rng.choice(["Summer", "Winter"]),
                    "Casual",
                    title,
                ]
            )
            draw(KINDS.get(label, "line"), colours[colour], rng).save(
                folder / "images" / f"{n}.jpg"
            )
    return folder


class FewWords:
    """What masking reads of a tokenizer: how many word pieces, and which is ``[MASK]``."""

    mask_token_id = 4

    def __init__(self, size: int = 50):
        self.size = size

    def __len__(self) -> int:
        return self.size


#: Files whose tests share something costly, which two workers would make twice.
TOGETHER = {"test_shop": "shop", "test_search": "search", "test_study": "study"}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    for item in items:
        if name := TOGETHER.get(item.path.stem):
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return write_shop(tmp_path_factory.mktemp("fashion") / "shop")


@pytest.fixture(scope="session")
def extracted(folder):
    return store.extract(readers.read(folder))


@pytest.fixture(scope="session")
def catalogue(extracted):
    return extracted[0]


@pytest.fixture(scope="session")
def stream_set(extracted):
    return streams.Streams(*extracted, train_tokenizer(extracted[0], 400))


@pytest.fixture(scope="session")
def five() -> Spec:
    """SCALE for all five modalities, for batches made by :func:`five_batch`."""
    from dataclasses import replace

    spec = zoo.scale(width=32, layers=2, heads=2)
    names = ("image", "text", "table", "video", "audio")
    return replace(
        spec, modalities=names, widths=(("image", 12), ("video", 10), ("audio", 8)), vocabulary=50
    )


@pytest.fixture
def five_batch():
    """A function: seed -> batch of six products in all five modalities, ragged, some absent
    (product 0 has all)."""
    return make_five_batch


def make_five_batch(seed: int = 0, products: int = 6) -> streams.Batch:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for place, (name, width) in enumerate(
        {"image": 12, "text": 0, "table": 0, "video": 10, "audio": 8}.items()
    ):
        longest = 9
        length = torch.randint(4, longest + 1, (products,), generator=generator)
        length[(place + 1) % products] = 0  # product `place + 1` lacks it
        length[0] = longest
        valid = torch.arange(longest)[None] < length[:, None]
        if width:
            tokens = streams.with_summary(
                torch.randn(products, longest, width, generator=generator) * valid[..., None], valid
            )
            boxes = (
                torch.rand(products, longest, 5, generator=generator) if name == "image" else None
            )
            found[name] = streams.Stream(tokens, valid, boxes=boxes)
        else:
            tokens = torch.randint(5, 50, (products, longest), generator=generator) * valid
            entity = torch.where(valid, (torch.arange(longest) - 1) // 2, -1)
            entity[:, 0] = -1
            entity[torch.arange(products), (length - 1).clamp(min=0)] = -1
            found[name] = streams.Stream(tokens, valid, entity=entity)
    return streams.Batch(found, np.arange(products))
