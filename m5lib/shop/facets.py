"""What a product of the synthetic shop is, and its title and table: facets drawn, put into words.

A *facet* is one of the seven kinds of fact of the paper's Table 2 (category, appearance, usage,
specification, selling point, production, material). A category has a usual value of each and a
product keeps it only mostly, so that no single facet gives a category away: a shape serves three
categories, a usage seven, a material six. What each modality shows of them is Table 2's:

=========  ==================================================  ===========================================
image      appearance                                          :func:`m5lib.shop.pictures.picture`
text       usage, selling point, production, category          :func:`title`
table      specification, production, material, category       :func:`table`
video      appearance, usage, production, material             :func:`m5lib.shop.films.film`
audio      usage, production, material                         :func:`m5lib.shop.sounds.track`
=========  ==================================================  ===========================================
"""  # noqa: E501

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Category(NamedTuple):
    """A category: name, another word for it, usual facets, usual weight in grams."""

    name: str
    synonym: str
    shape: str
    aspect: float
    usage: str
    material: str
    production: str
    grams: float


#: ``shelf.toml``: categories, the words for them and their facets, colours, and shapes.
SHELF = tomllib.loads(Path(__file__).with_name("shelf.toml").read_text(encoding="utf-8"))
BASE = tuple(Category(*row) for row in SHELF["categories"])
USAGES, MATERIALS, PRODUCTIONS = SHELF["usages"], SHELF["materials"], SHELF["productions"]
COLOURS, PATTERNS, POINTS = SHELF["colours"], SHELF["patterns"], SHELF["points"]

#: How a product may stray from its category's usual facets: the chance that it keeps each.
KEEPS = {"usage": 0.85, "material": 0.80, "production": 0.80}
#: How a title matches its product, graded as in the release: as it should, vaguely, or falsely.
MATCHES = {"well": 0.72, "partly": 0.19, "poorly": 0.09}


def categories(count: int) -> tuple[Category, ...]:
    """The first ``count`` categories: :data:`BASE`, then the same in other makes."""
    makes, found = SHELF["makes"], []
    if not 2 <= count <= len(BASE) * len(makes):
        raise ValueError(f"a shop has 2 to {len(BASE) * len(makes)} categories, not {count}")
    for number in range(count):
        make, place = divmod(number, len(BASE))
        base = BASE[place]
        if make:
            turn = np.random.default_rng([make, place])  # the same in every shop
            base = base._replace(
                name=f"{makes[make]} {base.name}",
                synonym=f"{makes[make]} {base.synonym}",
                aspect=base.aspect * turn.uniform(0.8, 1.25),
                usage=str(turn.choice(list(USAGES))),
                material=str(turn.choice(list(MATERIALS))),
                production=str(turn.choice(list(PRODUCTIONS))),
                grams=base.grams * turn.uniform(0.4, 2.5),
            )
        found.append(base)
    return tuple(found)


def shares(count: int, seed: int) -> np.ndarray:
    """(count,) shares of the categories: a Zipf-Mandelbrot tail, whose order is drawn by seed."""
    tail = 1.0 / (np.arange(count) + 3.0)
    return np.random.default_rng([seed, 11]).permutation(tail / tail.sum())


@dataclass(frozen=True)
class Facets:
    """The facts of one product, whoever lists it."""

    category: int
    shape: str
    aspect: float
    colour: str
    accent: str
    pattern: str
    usage: str
    material: str
    production: str
    points: tuple[str, str]
    grams: int
    brand: str


def draw(kinds: tuple[Category, ...], category: int, rng: np.random.Generator) -> Facets:
    """A product of a category: usual facets, each kept by the chance of :data:`KEEPS`, else any."""
    kind = kinds[category]
    taste = np.random.default_rng([7, category])  # what a category likes is the same in every shop
    liking = np.exp(taste.normal(0, 1.0, len(COLOURS)))
    pattern_liking = np.exp(taste.normal(0, 1.0, len(PATTERNS)))
    favoured = taste.permutation(len(POINTS))[:3]

    def kept(facet: str, values) -> str:
        usual = rng.random() < KEEPS[facet]
        return getattr(kind, facet) if usual else str(rng.choice(list(values)))

    colour, accent = rng.choice(list(COLOURS), 2, replace=False, p=liking / liking.sum())
    points = [
        POINTS[rng.choice(favoured) if rng.random() < 0.55 else rng.integers(len(POINTS))]
        for _ in range(2)
    ]
    return Facets(
        category,
        kind.shape,
        kind.aspect * float(np.exp(rng.normal(0, 0.08))),
        str(colour),
        str(accent),
        str(rng.choice(PATTERNS, p=pattern_liking / pattern_liking.sum())),
        kept("usage", USAGES),
        kept("material", MATERIALS),
        kept("production", PRODUCTIONS),
        (points[0], points[1]),
        int(kind.grams * np.exp(rng.normal(0, 0.35))),
        str(rng.choice(SHELF["brands"])),
    )


class Title(NamedTuple):
    """A title, how well it matches (:data:`MATCHES`), and which of its words (split at spaces) name
    the category: maybe none."""

    text: str
    match: str
    words: tuple[int, ...]


def title(facets: Facets, kinds: tuple[Category, ...], rng: np.random.Generator) -> Title:
    """A product title: usage, selling points, production and category among selling words."""
    match = str(rng.choice(list(MATCHES), p=list(MATCHES.values())))
    kind, usage = kinds[facets.category], facets.usage
    if match == "well":
        noun = kind.name if rng.random() < 0.6 else kind.synonym
    elif match == "partly":  # a word that fits several categories, "bottle", or none
        vague = rng.random() >= 0.5
        noun = str(rng.choice(SHELF["vague"])) if vague else kind.name.split()[-1]
    else:  # seller fraud: the words of a thing that sells better
        noun, usage = kinds[int(rng.integers(len(kinds)))].name, str(rng.choice(list(USAGES)))
    said = [str(rng.choice(USAGES[usage]))] if rng.random() < 0.35 else []
    said += [point for point in facets.points if rng.random() < 0.5]
    said += [str(rng.choice(PRODUCTIONS[facets.production]))] if rng.random() < 0.2 else []
    said += [str(word) for word in rng.choice(SHELF["selling"], rng.integers(0, 4), replace=False)]
    rng.shuffle(said)
    place = int(rng.integers(0, len(said) + 1))
    parts = [*([facets.brand] if rng.random() < 0.6 else []), *said[:place], noun, *said[place:]]
    before = len(" ".join(parts[: parts.index(noun)]).split())
    words = tuple(range(before, before + len(noun.split()))) if match == "well" else ()
    if match == "partly" and noun == kind.name.split()[-1]:
        words = (before,)
    return Title(" ".join(parts), match, words)


def table(facets: Facets, kinds: tuple[Category, ...], rng: np.random.Generator) -> tuple:
    """A specification table: category, specification, production and material; spellings, order and
    gaps are the merchant's. Returns its pairs, and which of them name the category."""
    kind = kinds[facets.category]

    def spelt(*spellings: str) -> str:
        return spellings[int(rng.integers(len(spellings)))]

    grams = float(f"{facets.grams:.1g}") if rng.random() < 0.7 else float(f"{facets.grams:.2g}")
    weight = f"{grams:.0f} g" if grams < 1000 else f"{grams / 1000:g} kg"
    size, places = round((facets.grams**0.4) * 1.5), "Portugal Vietnam China Poland Turkey".split()
    kinds_word = spelt("Type", "Kind", "Product type")
    noun = kind.name.split()[-1] if rng.random() < 0.75 else kind.synonym
    rows = [
        (0.45, kinds_word, noun, True),
        (0.55, spelt("Material", "Made of", "material"), spelt(*MATERIALS[facets.material]), False),
        (0.40, spelt("Process", "Craft"), spelt(*PRODUCTIONS[facets.production]), False),
        (0.60, spelt("Weight", "Net weight"), weight, False),
        (0.50, spelt("Size", "Dimensions"), f"{size} cm", False),
        (0.60, spelt("Brand", "brand"), facets.brand, False),
        (0.40, "Model", f"{spelt('A', 'X', 'GT', 'M')}{rng.integers(100, 999)}", False),
        (0.40, "Warranty", spelt("1 year", "2 years", "none"), False),
        (0.40, spelt("Origin", "Made in"), spelt(*places), False),
    ]
    rows = [row[1:] for row in rows if rng.random() < row[0]] or [rows[5][1:]]
    order = rng.permutation(len(rows)) if rng.random() < 0.5 else np.arange(len(rows))
    rows = [rows[place] for place in order]
    return tuple(row[:2] for row in rows), [n for n, row in enumerate(rows) if row[2]]
