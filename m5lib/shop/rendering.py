"""Pictures, films and sounds of the synthetic shop's products, drawn from their facets (see
:mod:`m5lib.shop.facets`).

The picture shows appearance only. The film shows the object in use: usage is its scene and its
motion, material its gloss, production a part of the film with a motif of its own. The sound track
has a rhythm per usage, a timbre per material and a noise per production. Before and after, the
merchant's card and jingle say nothing of the product. Everything is a function of the generator
given.
"""

import io
import os
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from m5lib.shop.facets import COLOURS, MATERIALS, PRODUCTIONS, USAGES, Facets

FPS, SIDE, RATE = 8, 112, 16_000

#: Parts of each shape in a unit box: role (body, accent, dark), kind of primitive, corners x, y.
SHAPES = {
    "bottle": (
        (
            "body",
            "polygon",
            (0.3, 0.34, 0.42, 0.2, 0.42, 0.08, 0.58, 0.08, 0.58, 0.2, 0.7, 0.34, 0.7, 1, 0.3, 1),
        ),
        ("accent", "rectangle", (0.38, 0, 0.62, 0.1)),
        ("accent", "rectangle", (0.3, 0.55, 0.7, 0.72)),
    ),
    "cup": (
        ("accent", "ring", (0.6, 0.25, 1.0, 0.75)),
        ("body", "polygon", (0.08, 0.05, 0.78, 0.05, 0.68, 1, 0.18, 1)),
        ("accent", "ellipse", (0.08, 0, 0.78, 0.12)),
    ),
    "bag": (
        ("accent", "ring", (0.25, 0, 0.75, 0.6)),
        ("body", "polygon", (0.1, 0.32, 0.9, 0.32, 1, 1, 0, 1)),
        ("accent", "rectangle", (0.42, 0.32, 0.58, 0.55)),
    ),
    "shoe": (
        ("body", "polygon", (0, 0.25, 0.3, 0.25, 0.42, 0.5, 0.8, 0.62, 1, 0.78, 1, 0.88, 0, 0.88)),
        ("dark", "rectangle", (0, 0.86, 1, 1)),
        ("accent", "polygon", (0.36, 0.42, 0.52, 0.54, 0.46, 0.66, 0.3, 0.54)),
    ),
    "disc": (("body", "ellipse", (0, 0, 1, 1)), ("accent", "ring", (0.15, 0.15, 0.85, 0.85))),
    "shirt": (
        (
            "body",
            "polygon",
            (
                0.3,
                0,
                0.7,
                0,
                1,
                0.25,
                0.85,
                0.45,
                0.75,
                0.35,
                0.75,
                1,
                0.25,
                1,
                0.25,
                0.35,
                0.15,
                0.45,
                0,
                0.25,
            ),
        ),
        ("accent", "polygon", (0.38, 0, 0.62, 0, 0.5, 0.18)),
    ),
    "lamp": (
        ("dark", "rectangle", (0.46, 0.4, 0.54, 0.9)),
        ("accent", "ellipse", (0.2, 0.86, 0.8, 1)),
        ("body", "polygon", (0.3, 0, 0.7, 0, 0.95, 0.48, 0.05, 0.48)),
    ),
    "pan": (
        ("dark", "polygon", (0.55, 0.6, 0.65, 0.5, 1, 0.92, 0.92, 1)),
        ("body", "ellipse", (0, 0, 0.72, 0.72)),
        ("accent", "ring", (0.08, 0.08, 0.64, 0.64)),
    ),
    "brush": (
        ("body", "rectangle", (0.38, 0.35, 0.62, 1)),
        ("accent", "polygon", (0.2, 0.38, 0.1, 0, 0.9, 0, 0.8, 0.38)),
    ),
    "hat": (
        ("dark", "ellipse", (0, 0.58, 1, 0.98)),
        ("body", "pieslice", (0.17, 0.05, 0.83, 1.35)),
        ("accent", "rectangle", (0.18, 0.58, 0.82, 0.7)),
    ),
    "slab": (
        ("body", "rounded", (0, 0, 1, 1)),
        ("dark", "ellipse", (0.08, 0.06, 0.3, 0.2)),
        ("accent", "rectangle", (0.15, 0.78, 0.85, 0.86)),
    ),
    "chair": (
        ("dark", "line", (0.2, 0.6, 0.1, 1)),
        ("dark", "line", (0.8, 0.6, 0.9, 1)),
        ("body", "rounded", (0.15, 0, 0.85, 0.5)),
        ("accent", "rectangle", (0.08, 0.52, 0.92, 0.66)),
    ),
    "shade": (
        ("dark", "line", (0.5, 0.3, 0.5, 1)),
        ("body", "pieslice", (0, 0, 1, 1)),
        ("accent", "polygon", (0.36, 0.5, 0.5, 0.02, 0.64, 0.5)),
    ),
    "stick": (
        ("body", "rectangle", (0.2, 0.25, 0.8, 1)),
        ("accent", "polygon", (0.2, 0.25, 0.5, 0, 0.8, 0.25)),
        ("dark", "rectangle", (0.2, 0.55, 0.8, 0.6)),
    ),
    "box": (
        ("body", "rectangle", (0, 0.3, 1, 1)),
        ("accent", "polygon", (0, 0.3, 0.12, 0.05, 0.88, 0.05, 1, 0.3)),
        ("dark", "rectangle", (0.42, 0.28, 0.58, 0.45)),
    ),
    "trousers": (
        ("body", "polygon", (0.15, 0.08, 0.85, 0.08, 1, 1, 0.62, 1, 0.5, 0.35, 0.38, 1, 0, 1)),
        ("accent", "rectangle", (0.15, 0, 0.85, 0.1)),
    ),
}
DARK = (58, 54, 56)
Span = tuple[int, int]


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(list(key))


def _pen_part(
    pen: ImageDraw.ImageDraw, kind: str, corners: tuple[float, ...], side: int, fill
) -> None:
    points = [1 + value * (side - 2) for value in corners]
    if kind == "ring":
        pen.ellipse(points, outline=fill, width=max(2, side // 14))
    elif kind == "line":
        pen.line(points, fill=fill, width=max(2, side // 14))
    elif kind == "rounded":
        pen.rounded_rectangle(points, side // 8, fill=fill)
    elif kind == "pieslice":
        pen.pieslice(points, 180, 360, fill=fill)
    else:
        getattr(pen, kind)(points, fill=fill)


@lru_cache(maxsize=64)
def _masks(shape: str, side: int) -> tuple[Image.Image, dict[str, Image.Image]]:
    """Coverage of the whole shape and of each role, drawn large and reduced."""
    whole, roles = Image.new("L", (2 * side, 2 * side)), {}
    for role, kind, corners in SHAPES[shape]:
        part = Image.new("L", whole.size)
        _pen_part(ImageDraw.Draw(part), kind, corners, 2 * side, 255)
        whole.paste(255, mask=part)
        for other in roles.values():  # a later part covers an earlier one
            other.paste(0, mask=part)
        roles.setdefault(role, Image.new("L", whole.size)).paste(255, mask=part)
    small = (side, side)
    return whole.resize(small, Image.Resampling.BOX), {
        role: mask.resize(small, Image.Resampling.BOX) for role, mask in roles.items()
    }


def _pattern(name: str, side: int, turn: float) -> np.ndarray:
    """(side, side) share of the second colour."""
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return {
        "plain": np.zeros_like(x),
        "stripes": (u * 6 % 1 < 0.4) * 0.8,
        "dots": ((u * 6 % 1 - 0.5) ** 2 + (v * 6 % 1 - 0.5) ** 2 < 0.07) * 0.9,
        "checks": ((u * 5 % 1 < 0.5) ^ (v * 5 % 1 < 0.5)) * 0.6,
        "fade": y * 0.7,
    }[name]


def sprite(facets: Facets, side: int, rng: np.random.Generator) -> Image.Image:
    """The object alone, RGBA, ``side`` x ``side`` (its proportions come with the drawing): shape,
    colours and pattern."""
    whole, roles = _masks(facets.shape, side)
    shade = rng.normal(0, 10, 3)
    body, accent = (
        np.clip(np.array(COLOURS[name]) + shade, 0, 255) for name in (facets.colour, facets.accent)
    )
    share = _pattern(facets.pattern, side, rng.uniform(0, 0.5))[..., None]
    pixels = {"body": body * (1 - share) + accent * share, "accent": accent, "dark": np.array(DARK)}
    light = 1.08 - 0.3 * np.abs(np.linspace(-0.8, 1.2, side))[None, :, None]  # from the left
    canvas = Image.new("RGB", (side, side))
    for role, mask in roles.items():
        filled = np.broadcast_to(np.clip(pixels[role] * light, 0, 255), (side, side, 3)).astype(
            np.uint8
        )
        canvas.paste(Image.fromarray(filled), mask=mask)
    canvas.putalpha(whole)
    return canvas


def _placed(
    thing: Image.Image,
    size: tuple[int, int],
    centre: tuple,
    height: float,
    aspect: float,
    turn: float | int,
) -> Image.Image:
    """The sprite on a transparent picture of ``size``: its centre and height in pixels, turned by
    radians."""
    side = thing.width
    grow, cos, sin = height / side, np.cos(turn), np.sin(turn)
    wide, high = grow * aspect, grow
    # PIL asks for the inverse: where in the sprite the pixel of the picture comes from
    a, b, d, e = cos / wide, sin / wide, -sin / high, cos / high
    c = side / 2 - a * centre[0] - b * centre[1]
    f = side / 2 - d * centre[0] - e * centre[1]
    return thing.transform(
        size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )


class Picture(NamedTuple):
    """A picture, and the box of the object in it: x1, y1, x2, y2 in fractions."""

    image: Image.Image
    box: tuple[float, float, float, float]


def _backdrop(size: tuple[int, int], merchant: int, rng: np.random.Generator) -> Image.Image:
    """A merchant's studio: wall and floor, with some clutter."""
    tone = _rng(3, merchant)
    wall = 235 - tone.uniform(0, 90) * tone.dirichlet([1, 1, 1]) + rng.normal(0, 4, 3)
    floor = wall - tone.uniform(0, 40)
    width, height = size
    rows = np.linspace(0, 1, height)[:, None] > tone.uniform(0.6, 0.95)
    pixels = np.where(rows[..., None], floor, wall) + np.linspace(6, -6, height)[:, None, None]
    image = Image.fromarray(
        np.broadcast_to(np.clip(pixels, 0, 255), (height, width, 3)).astype(np.uint8)
    )
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.04, 0.3, 2) * size
        colour = tuple(int(value) for value in rng.uniform(70, 240, 3))
        getattr(pen, str(rng.choice(["ellipse", "rectangle", "line"])))(
            [x, y, x + w, y + h], fill=colour
        )
    return image


def picture(
    facets: Facets, merchant: int, rng: np.random.Generator, second: Facets | None = None
) -> Picture:
    """A product photograph: the object, clutter, maybe a part of it cut off, a sticker, or a second
    object that is not for sale."""
    size = (int(rng.integers(120, 176)), int(rng.integers(120, 176)))
    image = _backdrop(size, merchant, rng)
    if second is not None:
        _stand(image, second, rng, small=True)
    layer = _stand(image, facets, rng)
    box = layer.getchannel("A").point(lambda a: 255 * (a > 40)).getbbox() or (0, 0, *size)
    if rng.random() < 0.3:
        pen, x, y = (
            ImageDraw.Draw(image),
            rng.uniform(0, 0.7) * size[0],
            rng.uniform(0, 0.85) * size[1],
        )
        pen.rectangle([x, y, x + 34, y + 14], fill=(220, 40, 40))
        pen.text((x + 3, y + 1), str(rng.choice(["SALE", "-50%", "NEW", "TOP"])), fill="white")
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.6)))
    return Picture(image, (box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]))


def _stand(
    image: Image.Image, facets: Facets, rng: np.random.Generator, small: bool = False
) -> Image.Image:
    """Put an object somewhere into the picture; returns its layer."""
    width, height = image.size
    tall = (
        rng.uniform(0.2, 0.35) * height
        if small
        else rng.uniform(0.45, 0.85) * height / max(1.0, facets.aspect) ** 0.5
    )
    centre = (
        rng.uniform(0.05, 0.95, 2) * (width, height)
        if small
        else rng.uniform(0.38, 0.62, 2) * (width, height)
    )
    thing = sprite(facets, 96, rng)
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = _placed(thing, image.size, tuple(centre), tall, facets.aspect, rng.normal(0, 0.2))
    image.paste(layer, mask=layer)
    return layer


# --- films
# ------------------------------------------------------------------------------------------------


class Timeline(NamedTuple):
    """Seconds of a film: its length, and the parts that tell something; before, between and after
    is the merchant's card."""

    seconds: int
    making: Span
    using: Span

    def at(self, t: float | int) -> str:
        """What is on at a time: ``making``, ``using`` or ``card``."""
        return next(
            (
                name
                for name in ("making", "using")
                if getattr(self, name)[0] <= t < getattr(self, name)[1]
            ),
            "card",
        )


def timeline(rng: np.random.Generator) -> Timeline:
    """A film of three to six whole seconds: maybe a card, then making (1 s) and using (2 to 3 s) in
    either order, maybe a card."""
    start, using = int(rng.random() < 0.5), int(rng.integers(2, 4))
    end, first = int(rng.random() < 0.4), rng.random() < 0.5
    making = (start, start + 1) if first else (start + using, start + using + 1)
    used = (start + 1, start + 1 + using) if first else (start, start + using)
    return Timeline(start + 1 + using + end, making, used)


def _scene(usage: str, rng: np.random.Generator) -> Image.Image:
    """A place where things of a usage are used: its light, wall and floor, and props; each film has
    another such place."""
    turn = _rng(5, list(USAGES).index(usage))
    wall, floor = (
        turn.uniform(110, 225, 3) + rng.normal(0, 22, 3),
        turn.uniform(70, 180, 3) + rng.normal(0, 22, 3),
    )
    pixels = np.where(
        np.linspace(0, 1, SIDE)[:, None, None] > turn.uniform(0.5, 0.75) + rng.normal(0, 0.08),
        floor,
        wall,
    )
    image = Image.fromarray(
        np.broadcast_to(np.clip(pixels, 0, 255), (SIDE, SIDE, 3)).astype(np.uint8)
    )
    pen, prop = ImageDraw.Draw(image), str(turn.choice(["ellipse", "rectangle"]))
    for _ in range(int(turn.integers(2, 7))):
        x, y, colour = (
            rng.uniform(0, SIDE),
            rng.uniform(0, SIDE),
            turn.uniform(50, 230, 3) + rng.normal(0, 40, 3),
        )
        w, h = turn.uniform(8, 40, 2) * rng.uniform(0.6, 1.4)
        getattr(pen, prop)(
            [x, y, x + w, y + h], fill=tuple(int(v) for v in np.clip(colour, 0, 255))
        )
    return image


def _gloss(material: str, t: float | int) -> np.ndarray:
    """(SIDE, SIDE) light to add: a sweeping highlight as sharp and strong as the material is, or
    its grain."""
    turn = _rng(6, list(MATERIALS).index(material))
    strength, width, grain = turn.uniform(0, 130), turn.uniform(0.02, 0.2), turn.uniform(0, 40)
    x = np.linspace(0, 1, SIDE)
    sweep = strength * np.exp(-(((x - (0.25 + 0.5 * (t * 0.7 % 1))) / width) ** 2))
    return sweep[None, :] + grain * np.sin(x * turn.uniform(20, 160))[:, None]


MOTIONS = (
    lambda t: (0.16 * np.sin(5 * t), 0.0, 0.0, 1.0),
    lambda t: (0.0, 0.12 * abs(np.sin(6 * t)) - 0.06, 0.0, 1.0),
    lambda t: (0.0, 0.0, 0.8 * np.sin(3 * t), 1.0),
    lambda t: (0.0, 0.0, 0.0, 1 + 0.3 * np.sin(4 * t)),
    lambda t: (0.1 * np.cos(4 * t), 0.1 * np.sin(4 * t), 0.0, 1.0),
    lambda t: (0.3 * (t * 0.5 % 1) - 0.15, 0.0, 0.3, 0.9),
    lambda t: (0.0, 0.05 * np.sin(12 * t), 0.15 * np.sin(12 * t), 0.9),
)


def film(
    facets: Facets, merchant: int, plan: Timeline, rng: np.random.Generator
) -> Iterable[np.ndarray]:
    """Frames (SIDE, SIDE, 3) uint8, :data:`FPS` a second."""
    tone, thing = _rng(3, merchant), sprite(facets, 64, rng)
    card = np.full((SIDE, SIDE, 3), tone.uniform(60, 220, 3).astype(np.uint8))
    card[SIDE // 3 : -SIDE // 3, SIDE // 4 : -SIDE // 4] = tone.uniform(60, 220, 3)
    scene, usage = _scene(facets.usage, rng), list(USAGES).index(facets.usage)
    height, light, start = (
        SIDE * rng.uniform(0.38, 0.65),
        rng.uniform(0.75, 1.15),
        rng.uniform(0, 6),
    )
    pan, size, (left, top), lean = (
        rng.integers(-12, 13, 2),
        (SIDE, SIDE),
        rng.uniform(-0.1, 0.1, 2),
        rng.normal(0, 0.25),
    )
    for number in range(plan.seconds * FPS):
        t = number / FPS
        what = plan.at(t)
        if what == "card":
            yield card
            continue
        frame = (
            Image.new("RGB", size, (70, 66, 64))
            if what == "making"
            else scene.transform(
                size,
                Image.Transform.AFFINE,
                (0.8, 0, 11 + pan[0] * t / plan.seconds, 0, 0.8, 11 + pan[1] * t / plan.seconds),
            )
        )
        x, y, turn, grow = (0, 0, 0, 1) if what == "making" else MOTIONS[usage](t + start)
        centre = SIDE * (0.5 + left + x), SIDE * (0.52 + top + y)
        layer = _placed(thing, size, centre, height * grow, facets.aspect, turn + lean)
        if what == "making":
            _motif(frame, layer, facets.production, t - plan.making[0], rng)
        else:
            frame.paste(layer, mask=layer)
        pixels = np.asarray(frame, dtype=np.float32)
        gloss = _gloss(facets.material, t + start) * (np.asarray(layer.getchannel("A")) > 40)
        pixels = (pixels + gloss[..., None]) * light + rng.integers(-6, 7, (SIDE, SIDE, 1))
        yield np.clip(pixels, 0, 255).astype(np.uint8)


def _motif(
    frame: Image.Image,
    layer: Image.Image,
    production: str,
    t: float | int,
    rng: np.random.Generator,
) -> None:
    """The thing half made, from below upwards, with the marks of its production flying about."""
    turn = _rng(8, list(PRODUCTIONS).index(production))
    colour, kind = (
        tuple(int(v) for v in turn.uniform(90, 255, 3)),
        str(turn.choice(["ellipse", "rectangle", "line"])),
    )
    reach, amount = turn.uniform(4, 16, 2), int(turn.integers(6, 22))
    done = int(SIDE * (0.85 - 0.6 * t))
    frame.paste(layer.crop((0, done, SIDE, SIDE)), (0, done), layer.crop((0, done, SIDE, SIDE)))
    pen = ImageDraw.Draw(frame)
    for _ in range(amount):
        x, y = rng.normal(SIDE / 2, SIDE / 4), rng.normal(done, SIDE / 8)
        getattr(pen, kind)([x, y, x + reach[0], y + reach[1]], fill=colour)


# --- sounds
# ------------------------------------------------------------------------------------------------


def _ring(material: str) -> np.ndarray:
    """One blow on a material, 0.3 s: partials that decay, and a click of noise."""
    turn = _rng(9, list(MATERIALS).index(material))
    t = np.arange(int(0.3 * RATE)) / RATE
    base, spread, decay, noise = (
        turn.uniform(120, 900),
        turn.uniform(1.3, 3.2),
        turn.uniform(6, 60),
        turn.uniform(0.05, 0.7),
    )
    hertz = [base * spread**n for n in range(4) if base * spread**n < 7000]
    tone = sum(
        np.sin(2 * np.pi * high * t) * np.exp(-decay * (1 + n) * t) / (1 + n)
        for n, high in enumerate(hertz)
    )
    return tone + noise * turn.normal(0, 1, len(t)) * np.exp(-80 * t)


def _noise(count: int, low: float | int, high: float | int, rng: np.random.Generator) -> np.ndarray:
    """Band-limited noise of unit deviation."""
    spectrum = np.fft.rfft(rng.normal(0, 1, count))
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    spectrum[(hertz < low) | (hertz > high)] = 0
    found = np.fft.irfft(spectrum, count)
    return found / (found.std() + 1e-9)


def _using(facets: Facets, count: int, rng: np.random.Generator) -> np.ndarray:
    """The thing in use: blows on its material in the rhythm of its usage, in the usage's room."""
    turn = _rng(10, list(USAGES).index(facets.usage))
    beats, low = turn.uniform(1.5, 7), turn.uniform(80, 2500)
    found = 0.12 * _noise(count, low, low * 2.2, rng)
    ring, at = _ring(facets.material), rng.uniform(0, 0.3)
    while (begin := int(at * RATE)) < count:
        part = ring[: count - begin] * rng.uniform(0.5, 1.0)
        found[begin : begin + len(part)] += part
        at += (1 / beats) * rng.uniform(0.9, 1.1)
    return found


def _making(production: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """The noise of a production: a band that swells in its own rhythm."""
    turn = _rng(12, list(PRODUCTIONS).index(production))
    low, beats, sharp = turn.uniform(150, 4000), turn.uniform(2, 16), turn.uniform(1, 8)
    swell = (0.5 + 0.5 * np.sin(2 * np.pi * beats * np.arange(count) / RATE)) ** sharp
    return 0.6 * swell * _noise(count, low, low * 1.6, rng)


def track(facets: Facets, merchant: int, plan: Timeline, rng: np.random.Generator) -> np.ndarray:
    """(seconds RATE,) float32 mono in [-1, 1]: jingle, making and using as in the film, over the
    noise of the recording."""
    tone = _rng(4, merchant)
    count = plan.seconds * RATE
    t = np.arange(count) / RATE
    chord = tone.choice([0, 2, 4, 5, 7, 9, 11], 3, replace=False)
    notes = chord[(t * tone.uniform(2, 5)).astype(int) % 3]
    found = 0.4 * np.sin(2 * np.pi * 261.6 * 2 ** (notes / 12) * t)
    for name, sound in (
        ("making", lambda n: _making(facets.production, n, rng)),
        ("using", lambda n: _using(facets, n, rng)),
    ):
        begin, end = (int(second * RATE) for second in getattr(plan, name))
        found[begin:end] = sound(end - begin)
    found = found + rng.uniform(0.15, 0.8) * _noise(count, 100, 7000, rng)
    return (0.7 * rng.uniform(0.4, 1.0) * found / np.abs(found).max()).astype(np.float32)


# --- files
# ------------------------------------------------------------------------------------------------


def _encode_sound(out, stream, samples: np.ndarray) -> None:
    import av

    resampler = av.AudioResampler(
        format=stream.format, layout="mono", rate=RATE, frame_size=stream.frame_size or 1024
    )
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        out.mux(stream.encode(part))
    out.mux(stream.encode())


def _save(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def save_picture(path: Path, image: Image.Image, quality: int = 88) -> None:
    """A JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    _save(path, buffer.getvalue())


def save_film(path: Path, frames: Iterable[np.ndarray], samples: np.ndarray | None) -> None:
    """An MP4 file: H.264, with AAC sound where there is any."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream(
            "libx264", rate=FPS, options={"crf": "26", "preset": "ultrafast", "threads": "1"}
        )
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FPS)
        sound = (
            out.add_stream("aac", rate=RATE, layout="mono", options={"aac_coder": "fast"})
            if samples is not None
            else None
        )
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if sound is not None:
            _encode_sound(out, sound, samples)
    _save(path, buffer.getvalue())


def save_track(path: Path, samples: np.ndarray) -> None:
    """An MP3 file."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3") as out:
        _encode_sound(
            out,
            out.add_stream(
                "libmp3lame", rate=RATE, layout="mono", options={"compression_level": "9"}
            ),
            samples,
        )
    _save(path, buffer.getvalue())
