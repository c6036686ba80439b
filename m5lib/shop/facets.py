"""What a product of the synthetic shop is, and what its title and table say: facets drawn at
random, then put into words.

A *facet* is one of the seven kinds of fact of the paper's Table 2 (category, appearance, usage,
specification, selling point, production, material). A category has a usual value of each and a
product keeps it only mostly, so that no single facet gives a
category away: a shape serves three categories, a usage seven, a material six. What each modality
shows of them is Table 2's:

=========  ==================================================  ===========================================
image      appearance                                          :func:`m5lib.shop.pictures.picture`
text       usage, selling point, production, category          :func:`title`
table      specification, production, material, category       :func:`table`
video      appearance, usage, production, material             :func:`m5lib.shop.films.film`
audio      usage, production, material                         :func:`m5lib.shop.sounds.track`
=========  ==================================================  ===========================================
"""  # noqa: E501

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Category(NamedTuple):
    """A category: its name, another word for it, its usual facets, and the usual weight in
    grams."""

    name: str
    synonym: str
    shape: str
    aspect: float
    usage: str
    material: str
    production: str
    grams: float


#: Three categories a shape, in the order in which smaller shops use them up.
BASE = tuple(
    Category(*row)
    for row in (
        ("water bottle", "sports flask", "bottle", 0.55, "sport", "steel", "forged", 300),
        ("feeding bottle", "nursing bottle", "bottle", 0.70, "baby", "plastic", "moulded", 120),
        ("perfume bottle", "fragrance flacon", "bottle", 0.85, "beauty", "glass", "blown", 180),
        ("coffee mug", "tea cup", "cup", 1.00, "kitchen", "ceramic", "thrown", 350),
        ("travel tumbler", "thermos cup", "cup", 0.75, "travel", "steel", "forged", 380),
        ("plant pot", "flower planter", "cup", 1.15, "garden", "ceramic", "thrown", 900),
        ("handbag", "tote", "bag", 1.10, "office", "leather", "sewn", 800),
        ("backpack", "rucksack", "bag", 0.80, "travel", "cotton", "sewn", 950),
        ("diaper bag", "nappy bag", "bag", 0.95, "baby", "cotton", "sewn", 700),
        ("running shoe", "trainer", "shoe", 1.25, "sport", "rubber", "moulded", 500),
        ("garden clog", "yard slipper", "shoe", 1.05, "garden", "rubber", "moulded", 400),
        ("loafer", "dress shoe", "shoe", 1.40, "office", "leather", "sewn", 650),
        ("dinner plate", "serving dish", "disc", 1.00, "kitchen", "ceramic", "thrown", 600),
        ("flying disc", "throwing disc", "disc", 1.05, "sport", "plastic", "moulded", 170),
        ("wall clock", "silent clock", "disc", 0.95, "office", "wood", "carved", 750),
        ("jersey", "training shirt", "shirt", 0.90, "sport", "cotton", "knitted", 180),
        ("apron", "cook smock", "shirt", 0.75, "kitchen", "cotton", "sewn", 250),
        ("romper", "babygrow", "shirt", 1.00, "baby", "cotton", "knitted", 110),
        ("desk lamp", "reading light", "lamp", 0.80, "office", "steel", "forged", 1400),
        ("camping lantern", "tent light", "lamp", 0.65, "travel", "plastic", "moulded", 450),
        ("night light", "nursery light", "lamp", 0.95, "baby", "glass", "blown", 300),
        ("frying pan", "skillet", "pan", 1.20, "kitchen", "steel", "forged", 1300),
        ("tennis racket", "court racquet", "pan", 1.00, "sport", "steel", "moulded", 320),
        ("hand mirror", "vanity mirror", "pan", 0.90, "beauty", "glass", "carved", 240),
        ("hair brush", "styling brush", "brush", 0.45, "beauty", "wood", "carved", 90),
        ("basting brush", "pastry brush", "brush", 0.40, "kitchen", "wood", "moulded", 70),
        ("garden trowel", "hand shovel", "brush", 0.50, "garden", "steel", "forged", 280),
        ("sun hat", "straw hat", "hat", 1.40, "garden", "cotton", "sewn", 120),
        ("cycling helmet", "bike helmet", "hat", 1.20, "sport", "plastic", "moulded", 320),
        ("beanie", "winter cap", "hat", 1.05, "travel", "cotton", "knitted", 90),
        ("phone case", "mobile cover", "slab", 0.55, "office", "rubber", "moulded", 60),
        ("travel journal", "notebook", "slab", 0.75, "travel", "leather", "sewn", 400),
        ("chopping board", "cutting board", "slab", 0.90, "kitchen", "wood", "carved", 1500),
        ("office chair", "swivel seat", "chair", 0.80, "office", "leather", "moulded", 12000),
        ("camping chair", "folding seat", "chair", 1.00, "travel", "cotton", "sewn", 2800),
        ("high chair", "toddler seat", "chair", 0.65, "baby", "wood", "carved", 6000),
        ("umbrella", "rain brolly", "shade", 1.00, "travel", "cotton", "sewn", 450),
        ("parasol", "patio shade", "shade", 1.20, "garden", "cotton", "sewn", 7000),
        ("baby mobile", "crib toy", "shade", 0.85, "baby", "wood", "carved", 350),
        ("fountain pen", "ink pen", "stick", 0.25, "office", "steel", "forged", 30),
        ("lipstick", "lip colour", "stick", 0.32, "beauty", "plastic", "moulded", 20),
        ("plant stake", "tomato stick", "stick", 0.20, "garden", "wood", "carved", 60),
        ("lunch box", "bento", "box", 1.25, "kitchen", "plastic", "moulded", 350),
        ("jewellery box", "trinket case", "box", 1.05, "beauty", "wood", "carved", 600),
        ("seed chest", "potting crate", "box", 1.40, "garden", "wood", "carved", 2500),
        ("leggings", "running tights", "trousers", 0.55, "sport", "cotton", "knitted", 210),
        ("suit trousers", "formal slacks", "trousers", 0.65, "office", "cotton", "sewn", 450),
        ("spa pants", "lounge bottoms", "trousers", 0.75, "beauty", "cotton", "knitted", 300),
    )
)
#: Further categories for larger shops: the same things in another make, with facets of their own
#: (see :func:`categories`).
MAKES = tuple(
    (
        ", vintage, kids, mini, folding, deluxe, camping, designer, handy, jumbo, festival, "
        "studio, nordic"
    ).split(", ")
)

USAGES = {
    "sport": ("for the gym", "for training", "sports"),
    "baby": ("for babies", "for newborns", "nursery"),
    "beauty": ("for make-up", "beauty", "spa"),
    "kitchen": ("for cooking", "kitchen", "for the table"),
    "travel": ("for travel", "outdoor", "for trips"),
    "garden": ("for the garden", "patio", "for plants"),
    "office": ("for work", "office", "for the desk"),
}
MATERIALS = {
    "steel": ("steel", "stainless steel", "inox"),
    "plastic": ("plastic", "ABS", "PP plastic"),
    "glass": ("glass", "borosilicate"),
    "ceramic": ("ceramic", "stoneware"),
    "cotton": ("cotton", "100% cotton", "canvas"),
    "leather": ("leather", "PU leather"),
    "rubber": ("rubber", "silicone", "EVA"),
    "wood": ("wood", "beech wood", "bamboo"),
}
PRODUCTIONS = {
    "forged": ("forged", "hammered"),
    "moulded": ("moulded", "one-piece"),
    "blown": ("mouth-blown", "blown"),
    "thrown": ("wheel-thrown", "kiln-fired"),
    "sewn": ("hand-sewn", "stitched"),
    "knitted": ("knitted", "seamless"),
    "carved": ("hand-carved", "carved"),
}
POINTS = tuple(
    (
        "waterproof, foldable, non-slip, lightweight, leak-proof, easy to clean, shockproof, "
        "breathable, scratch-resistant, quick-dry, eco-friendly, adjustable, odour-free, extra "
        "strong, dishwasher safe, windproof"
    ).split(", ")
)
SELLING = tuple(
    (
        "hot sale, 2026 new, premium, original, free shipping, best price, gift idea, top rated, "
        "limited offer, official"
    ).split(", ")
)
COLOURS = {
    "red": (196, 44, 48),
    "orange": (226, 126, 40),
    "yellow": (232, 196, 60),
    "green": (62, 140, 74),
    "teal": (40, 140, 150),
    "blue": (48, 84, 180),
    "purple": (120, 70, 160),
    "pink": (228, 130, 168),
    "brown": (122, 82, 54),
    "black": (42, 42, 46),
    "grey": (132, 134, 140),
    "cream": (226, 214, 188),
}
PATTERNS = ("plain", "stripes", "dots", "checks", "fade")
BRANDS = tuple(
    "Norvik Halden Ostra Lumio Kestrel Tamaro Bellis Quill Ferro Mika Solen Arden".split()
)
VAGUE = ("set", "item", "essential", "accessory")

#: How a product may stray from its category's usual facets: the chance that it keeps each.
KEEPS = {"usage": 0.85, "material": 0.80, "production": 0.80}
#: How well a title matches its product (the release grades captions so, without counts): as it
#: should, vaguely, or falsely.
MATCHES = {"well": 0.72, "partly": 0.19, "poorly": 0.09}


def categories(count: int) -> tuple[Category, ...]:
    """The first ``count`` categories: :data:`BASE`, then the same things in other makes, each with
    its own usage, material and weight."""
    if not 2 <= count <= len(BASE) * len(MAKES):
        raise ValueError(f"a shop has 2 to {len(BASE) * len(MAKES)} categories, not {count}")
    found = []
    for number in range(count):
        make, place = divmod(number, len(BASE))
        base = BASE[place]
        if make:
            turn = np.random.default_rng([make, place])  # the same in every shop
            base = base._replace(
                name=f"{MAKES[make]} {base.name}",
                synonym=f"{MAKES[make]} {base.synonym}",
                aspect=base.aspect * turn.uniform(0.8, 1.25),
                usage=str(turn.choice(list(USAGES))),
                material=str(turn.choice(list(MATERIALS))),
                production=str(turn.choice(list(PRODUCTIONS))),
                grams=base.grams * turn.uniform(0.4, 2.5),
            )
        found.append(base)
    return tuple(found)


def shares(count: int, seed: int) -> np.ndarray:
    """(count,) share of the products of each category: a Zipf-Mandelbrot tail, which categories are
    large is drawn by seed."""
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
    """A product of a category: its usual facets, each kept with the chance of :data:`KEEPS`, else
    any."""
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
        str(rng.choice(BRANDS)),
    )


class Title(NamedTuple):
    """A title, how well it matches (:data:`MATCHES`), and which of its words (split at spaces) name
    the category: maybe none."""

    text: str
    match: str
    words: tuple[int, ...]


def title(facets: Facets, kinds: tuple[Category, ...], rng: np.random.Generator) -> Title:
    """A product title: usage, selling points, production and category among selling words, in the
    merchant's order."""
    match = str(rng.choice(list(MATCHES), p=list(MATCHES.values())))
    kind, usage = kinds[facets.category], facets.usage
    if match == "well":
        noun = kind.name if rng.random() < 0.6 else kind.synonym
    elif match == "partly":  # a word that fits several categories, "bottle", or none
        vague = rng.random() >= 0.5
        noun = str(rng.choice(VAGUE)) if vague else kind.name.split()[-1]
    else:  # seller fraud: the words of a thing that sells better
        noun, usage = kinds[int(rng.integers(len(kinds)))].name, str(rng.choice(list(USAGES)))
    said = [str(rng.choice(USAGES[usage]))] if rng.random() < 0.35 else []
    said += [point for point in facets.points if rng.random() < 0.5]
    said += [str(rng.choice(PRODUCTIONS[facets.production]))] if rng.random() < 0.2 else []
    said += [str(word) for word in rng.choice(SELLING, rng.integers(0, 4), replace=False)]
    rng.shuffle(said)
    place = int(rng.integers(0, len(said) + 1))
    parts = [*([facets.brand] if rng.random() < 0.6 else []), *said[:place], noun, *said[place:]]
    before = len(" ".join(parts[: parts.index(noun)]).split())
    words = tuple(range(before, before + len(noun.split()))) if match == "well" else ()
    if match == "partly" and noun == kind.name.split()[-1]:
        words = (before,)
    return Title(" ".join(parts), match, words)


class Table(NamedTuple):
    """Property-value pairs, and which of them name the category."""

    pairs: tuple[tuple[str, str], ...]
    naming: tuple[int, ...]


def table(facets: Facets, kinds: tuple[Category, ...], rng: np.random.Generator) -> Table:
    """A specification table: category, specification, production and material; spellings, order and
    gaps are the merchant's."""
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
    return Table(tuple(row[:2] for row in rows), tuple(n for n, row in enumerate(rows) if row[2]))
