"""The synthetic shop: products with real media files, all known, written in the official layout.

A product (an *instance*) is drawn from facets (:mod:`m5lib.shop.facets`) and listed by one or
several merchants, each with other words, another view and another background; each listing is a
product of the catalogue. :func:`make` writes the listings in the layout of the official release, so
that they are read, decoded and extracted like it, and beside them ``truth.parquet``
(:data:`TRUTH`). Nothing of it is used in training.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from m5lib import home
from m5lib.catalogue import Catalogue, DataError
from m5lib.data import locked, readers, whole_file, write_json
from m5lib.shop import facets as shelf
from m5lib.shop import films, pictures, sounds
from m5lib.shop.facets import Facets

#: Listings and categories of each size; any number of listings may be given instead.
SIZES = {"tiny": (240, 12), "quick": (1000, 20), "small": (2400, 48), "full": (100_000, 624)}

#: Share of the complete listings whose sound lies in the video only.
SOUND_IN_VIDEO_ONLY = 0.2
#: Merchants that list one instance, and the splits: an instance's listings share a split, save that
#: of an instance of the fine-grained sets one listing asks (``fine_query``) and the others are to
#: be found (``fine_gallery``).
LISTED = {1: 0.74, 2: 0.13, 3: 0.07, 4: 0.04, 5: 0.02}
SHARES = {"train": 0.54, "validation": 0.11, "gallery": 0.24, "query": 0.11}
FINE = {True: 0.35, False: 0.06}  # of the instances listed several times, and once (distractors)
#: Listings of every instance with a ``fine_query`` in a shop that is asked more: one asks, and all
#: of the first ten found can be right (Prec@10).
FINE_LISTED = 11
#: What else is listed in such a shop, by the split it was drawn for.
FURTHER = {"gallery": "gallery", "query": "query", "validation": "query"}
#: Every so many categories one is never asked for: its products in the gallery are distractors.
UNASKED = 6

#: Columns of ``truth.parquet``, one row per listing. Boxes are x1, y1, x2, y2 in fractions of the
#: picture; words count in ``title.split()``, properties in the table's order; spans are seconds.
#: Empty where the modality is absent or does not tell.
TRUTH = tuple(
    "id instance merchant split category shape colour accent pattern usage material production "
    "points grams brand match image_box text_words table_pairs video_spans audio_spans".split()
)
VERSION = 1
CHUNK = 48


@dataclass(frozen=True)
class Listing:
    """One listing: which instance, by which merchant, in which split."""

    number: int
    instance: int
    merchant: int
    split: str

    @property
    def id(self) -> str:
        """Digits as in the official release; they say nothing of the product."""
        return str(int(hashlib.blake2b(str(self.number).encode(), digest_size=6).hexdigest(), 16))


def _choice(rng: np.random.Generator, shares: dict):
    weights = np.array(list(shares.values())) / sum(shares.values())
    return list(shares)[int(rng.choice(len(shares), p=weights))]


def _instance(instance: int, seed: int, weights: np.ndarray) -> tuple[int, str, int]:
    """Category, split and number of listings of an instance: a function of the three arguments."""
    rng = np.random.default_rng([seed, 1, instance])
    category, listings = int(rng.choice(len(weights), p=weights)), _choice(rng, LISTED)
    split = "fine" if rng.random() < FINE[listings > 1] else _choice(rng, SHARES)
    if category % UNASKED == UNASKED - 1 and split in ("query", "validation"):
        split = "gallery"
    return category, split, listings


def _merchants(instance: int, seed: int, products: int) -> Iterator[int]:
    """Who lists an instance, without end: few merchants list much, most a little."""
    rng = np.random.default_rng([seed, 2, instance])
    while True:
        yield int(products**0.8 * rng.power(0.5))


def _listed(products: int, kinds: int, seed: int) -> Iterator[tuple[tuple[int, int, str], int]]:
    """Instance, merchant, split and category of one listing after another, without end."""
    weights = shelf.shares(kinds, seed)
    for instance in count():
        category, split, times = _instance(instance, seed, weights)
        # the same merchant does not list an instance twice
        merchants = dict.fromkeys(islice(_merchants(instance, seed, products), times))
        for place, merchant in enumerate(merchants):
            fine = "fine_query" if place == 0 and len(merchants) > 1 else "fine_gallery"
            yield (instance, merchant, fine if split == "fine" else split), category


def _again(shop: list, seed: int) -> Iterator[tuple[tuple[int, int, str], int]]:
    """More listings of the instances with a ``fine_query``, till each has :data:`FINE_LISTED`."""
    merchants: dict[int, set] = {}
    for (instance, merchant, _), _ in shop:
        merchants.setdefault(instance, set()).add(merchant)
    for (instance, _, split), category in shop:
        if split == "fine_query":
            own, drawn = merchants[instance], _merchants(instance, seed, len(shop))
            while len(own) < FINE_LISTED:
                if (merchant := next(drawn)) not in own:
                    own.add(merchant)
                    yield (instance, merchant, "fine_gallery"), category


def listings(products: int, kinds: int, seed: int, asked: int = 0) -> Iterator[tuple[Listing, int]]:
    """The listings of a shop, each with its category, in the order of their numbers. Then ``asked``
    more, on which nothing is trained: of the fine-grained instances (:data:`FINE_LISTED`), then of
    further ones those that :data:`FURTHER` names."""
    stream = _listed(products, kinds, seed)
    shop = list(islice(stream, products))
    further = (
        ((instance, merchant, FURTHER[split]), category)
        for (instance, merchant, split), category in stream
        if split in FURTHER
    )
    more = islice(chain(_again(shop, seed), further), asked)
    for number, (listing, category) in enumerate(chain(shop, more)):
        yield Listing(number, *listing), category


def _presence(rng: np.random.Generator) -> tuple[str, bool]:
    """Modalities of a listing, joined by ``+``, and whether its sound is a file of its own."""
    gaps, whole = shelf.SHELF["gaps"], "image+text+table+video+audio"
    return _choice(rng, gaps | {whole: 1 - sum(gaps.values())}), rng.random() >= SOUND_IN_VIDEO_ONLY


def write_listing(
    folder: Path, listing: Listing, category: int, kinds: tuple, seed: int
) -> tuple[dict, dict]:
    """Write a listing's media; returns its record of the annotation and its row of the truth."""
    thing = shelf.draw(kinds, category, np.random.default_rng([seed, 3, listing.instance]))
    rng, looks = (np.random.default_rng([seed, purpose, listing.number]) for purpose in (4, 5))
    there, own_file = _presence(rng)
    seen = replace(thing, aspect=thing.aspect * float(np.exp(rng.normal(0, 0.05))))
    record = {"title": "", "pv": "", "label": kinds[category].name, "url": "", "video": ""}
    truth = {}
    if "text" in there.split("+"):
        words = shelf.title(thing, kinds, rng)
        record["title"], truth["match"] = words.text, words.match
        truth["text_words"] = list(words.words)
    if "table" in there:
        pairs, truth["table_pairs"] = shelf.table(thing, kinds, rng)
        record["pv"] = readers.format_pv(pairs)
    if "image" in there:
        second = rng.random() < 0.3  # an object that is not for sale
        other = shelf.draw(kinds, int(rng.integers(len(kinds))), rng) if second else None
        image, box = pictures.picture(seen, listing.merchant, looks, other)
        record["url"] = f"images/{listing.id}.jpg"
        truth["image_box"] = [round(side, 4) for side in box]
        pictures.save_picture(folder / record["url"], image, int(looks.integers(70, 93)))
    if "video" in there:
        own_file = own_file or "image" not in there
        truth |= _film(folder, listing, seen, looks, "audio" in there, own_file)
        record["video"] = f"videos/{listing.id}.mp4"
    return record, _truth(listing, category, kinds, thing) | truth


def _film(
    folder: Path, listing: Listing, seen: Facets, rng, sounding: bool, own_file: bool
) -> dict:
    """Write the film, with its sound or beside it; returns the seconds that tell something."""
    plan = films.timeline(rng)
    samples = sounds.track(seen, listing.merchant, plan, rng) if sounding else None
    shots = films.film(seen, listing.merchant, plan, rng)
    films.save_film(folder / "videos" / f"{listing.id}.mp4", shots, samples)
    spans = sorted([list(plan.making), list(plan.using)])
    if samples is None:
        return {"video_spans": spans}
    if own_file:
        sounds.save_track(folder / "audios" / f"{listing.id}.mp3", samples)
    return {"video_spans": spans, "audio_spans": spans}


def _truth(listing: Listing, category: int, kinds: tuple, thing: Facets) -> dict:
    facts = {name: value for name, value in asdict(thing).items() if name in TRUTH}
    empty = {name: [] for name in TRUTH if name.endswith(("_box", "_words", "_pairs", "_spans"))}
    own = {name: str(getattr(listing, name)) for name in ("id", "instance", "merchant", "split")}
    more = {"category": kinds[category].name, "points": list(thing.points)}
    return dict.fromkeys(TRUTH) | facts | empty | own | more


def _write_chunk(folder: str, place: int, chunk: list, count: int, seed: int) -> None:
    """Write some listings; the part file comes last and says that they are there."""
    kinds = shelf.categories(count)
    rows = [
        (item.id, *write_listing(Path(folder), item, kind, kinds, seed)) for item, kind in chunk
    ]
    with whole_file(_part(folder, place)) as temporary:
        temporary.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _part(folder: str | Path, place: int) -> Path:
    return Path(folder) / "parts" / f"{place:06d}.json"


def size_of(size: str | int) -> tuple[int, int]:
    """Listings and categories of a size. Raises ``DataError``: not known, or under 40 listings."""
    if isinstance(size, str) and size in SIZES:
        return SIZES[size]
    if isinstance(size, str) or size < 40:
        known = f"one of {list(SIZES)} or a number of products, 40 at least"
        raise DataError(f"shop: no size {size!r}; give {known}")
    return size, int(np.clip(size // 50, 12 if size >= 240 else 6, SIZES["full"][1]))


def folder_of(size: str | int, seed: int = 0, asked: int = 0) -> Path:
    """Where the shop of a size and seed is kept: ``cache/shop-<listings>-<seed>``, the number of
    listings with ``+<asked>`` where more are asked."""
    more = f"+{asked}" if asked else ""
    return home("cache", f"shop-{size_of(size)[0]}{more}-{seed}")


def make(
    size: str | int = "tiny",
    seed: int = 0,
    folder: str | Path | None = None,
    workers: int | None = None,
    asked: int = 0,
) -> Catalogue:
    """The shop of a size (:data:`SIZES`, or a number of listings), written on first use by all
    cores into a folder (by default :func:`folder_of`), then read. With ``asked`` so many listings
    more, for evaluation only (:func:`listings`); the others stay what they are. What was begun is
    gone on with; a second process waits. The same size and seed give the same files, whatever the
    number of workers (``benchmarks/shop.json``: times and disk space). Raises ``DataError``: the
    size is not known, or the folder holds something else."""
    products, kinds = size_of(size)
    folder = Path(folder) if folder is not None else folder_of(size, seed, asked)
    what = {"version": VERSION, "products": products, "categories": kinds, "seed": seed}
    what |= {"asked": asked} if asked else {}
    # beside it: a shop's folder must be empty, or a shop
    with locked(folder.absolute().with_name(f".{folder.name}.lock")):
        _prepare(folder, what)
        if not (folder / "truth.parquet").exists():
            _write(folder, list(listings(products, kinds, seed, asked)), kinds, seed, workers)
        shutil.rmtree(folder / "parts", ignore_errors=True)
    return read(folder)


def _prepare(folder: Path, what: dict) -> None:
    """Make the folder ready: a shop of an older version gives way, nothing else does."""
    sign, found = folder / "shop.json", None
    with suppress(OSError, ValueError):
        found = json.loads(sign.read_text(encoding="utf-8"))
    there = [path for path in folder.glob("*") if path.suffix != ".tmp"]
    if there and found != what:
        if not isinstance(found, dict) or {**found, "version": VERSION} != what:
            holds = "is not empty and holds no shop" if found is None else f"holds {found}"
            raise DataError(f"{folder}: {holds}; give another folder, or delete it")
        for path in there:  # the sign stays till all else is gone
            shutil.rmtree(path) if path.is_dir() else path == sign or path.unlink()
    if found != what:
        write_json(sign, what)
    for place in ("parts", readers.ANNOTATIONS, "images", "videos", "audios"):
        (folder / place).mkdir(parents=True, exist_ok=True)


def _write(folder: Path, plan: list, kinds: int, seed: int, workers: int | None) -> None:
    from joblib import Parallel, delayed  # its processes need no main guard in the caller's script

    for half in folder.rglob("*.tmp"):  # left by a process that was killed
        half.unlink()
    chunks = [plan[start : start + CHUNK] for start in range(0, len(plan), CHUNK)]
    left = [place for place in range(len(chunks)) if not _part(folder, place).exists()]
    work = Parallel(n_jobs=workers or -1, return_as="generator_unordered")
    jobs = (delayed(_write_chunk)(str(folder), place, chunks[place], kinds, seed) for place in left)
    done = len(chunks) - len(left)
    for _ in tqdm(work(jobs), "shop", len(chunks), initial=done, unit=f" x {CHUNK} products"):
        pass
    parts = sorted((folder / "parts").glob("*.json"))
    rows = [row for path in parts for row in json.loads(path.read_text(encoding="utf-8"))]
    place = folder / readers.ANNOTATIONS
    text = json.dumps({i: record for i, record, _ in rows}, ensure_ascii=False, indent=0)
    (place / "id_label.json").write_text(text, encoding="utf-8")
    truth = pd.DataFrame([row for *_, row in rows], columns=list(TRUTH))
    for split, ids in truth.groupby("split")["id"]:
        (place / f"{split}_ids.json").write_text(json.dumps(list(ids)), encoding="utf-8")
    with whole_file(folder / "truth.parquet") as temporary:
        truth.to_parquet(temporary, index=False)


def truth(folder: str | Path) -> pd.DataFrame:
    """What is true of each listing of a finished shop (:data:`TRUTH`), indexed by id."""
    path = Path(folder) / "truth.parquet"
    if not path.exists():
        raise DataError(f"{path}: no such file; a shop is made by m5lib.shop.listings.make")
    return pd.read_parquet(path).set_index("id", drop=False)


def read(folder: str | Path) -> Catalogue:
    """A finished shop as a catalogue: the official layout's, with the instance of each listing."""
    facts = truth(folder)
    found = readers.read_m5product(folder)
    products = tuple(replace(p, instance=facts.at[p.id, "instance"]) for p in found.products)
    return Catalogue("shop", products, found.skipped)


def main() -> None:
    """``python -m m5lib shop <size>``: make a shop and say what is in it."""
    import argparse

    about, sizes = "Make a synthetic shop.", "tiny, quick, small, full or a number of products"
    parser = argparse.ArgumentParser(prog="python -m m5lib shop", description=about)
    parser.add_argument("size", nargs="?", default="small", help=sizes)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder")
    given = parser.parse_args()
    shop = make(int(given.size) if given.size.isdigit() else given.size, given.seed, given.folder)
    lacking = 1 - shop.presence.all(axis=1).mean()
    kinds = len(set(shop.labels))
    print(f"{len(shop):,} products of {kinds:,} categories; {lacking:.0%} lack a modality")
