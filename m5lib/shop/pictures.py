"""Pictures of the synthetic shop's products, drawn from their facets (see
:mod:`m5lib.shop.facets`): appearance only. Everything is a function of the generator given."""

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from m5lib.shop.facets import COLOURS, Facets

#: Parts of each shape in a unit box: role (body, accent, dark), kind of primitive, corners x, y.
SHAPES: dict[str, list[tuple[str, str, list[float]]]] = {}
for _line in """
bottle body polygon 0.3 0.34 0.42 0.2 0.42 0.08 0.58 0.08 0.58 0.2 0.7 0.34 0.7 1 0.3 1
bottle accent rectangle 0.38 0 0.62 0.1
bottle accent rectangle 0.3 0.55 0.7 0.72
cup accent ring 0.6 0.25 1 0.75
cup body polygon 0.08 0.05 0.78 0.05 0.68 1 0.18 1
cup accent ellipse 0.08 0 0.78 0.12
bag accent ring 0.25 0 0.75 0.6
bag body polygon 0.1 0.32 0.9 0.32 1 1 0 1
bag accent rectangle 0.42 0.32 0.58 0.55
shoe body polygon 0 0.25 0.3 0.25 0.42 0.5 0.8 0.62 1 0.78 1 0.88 0 0.88
shoe dark rectangle 0 0.86 1 1
shoe accent polygon 0.36 0.42 0.52 0.54 0.46 0.66 0.3 0.54
disc body ellipse 0 0 1 1
disc accent ring 0.15 0.15 0.85 0.85
shirt body polygon 0.3 0 0.7 0 1 0.25 0.85 0.45 0.75 0.35 0.75 1 0.25 1 0.25 0.35 0.15 0.45 0 0.25
shirt accent polygon 0.38 0 0.62 0 0.5 0.18
lamp dark rectangle 0.46 0.4 0.54 0.9
lamp accent ellipse 0.2 0.86 0.8 1
lamp body polygon 0.3 0 0.7 0 0.95 0.48 0.05 0.48
pan dark polygon 0.55 0.6 0.65 0.5 1 0.92 0.92 1
pan body ellipse 0 0 0.72 0.72
pan accent ring 0.08 0.08 0.64 0.64
brush body rectangle 0.38 0.35 0.62 1
brush accent polygon 0.2 0.38 0.1 0 0.9 0 0.8 0.38
hat dark ellipse 0 0.58 1 0.98
hat body pieslice 0.17 0.05 0.83 1.35
hat accent rectangle 0.18 0.58 0.82 0.7
slab body rounded 0 0 1 1
slab dark ellipse 0.08 0.06 0.3 0.2
slab accent rectangle 0.15 0.78 0.85 0.86
chair dark line 0.2 0.6 0.1 1
chair dark line 0.8 0.6 0.9 1
chair body rounded 0.15 0 0.85 0.5
chair accent rectangle 0.08 0.52 0.92 0.66
shade dark line 0.5 0.3 0.5 1
shade body pieslice 0 0 1 1
shade accent polygon 0.36 0.5 0.5 0.02 0.64 0.5
stick body rectangle 0.2 0.25 0.8 1
stick accent polygon 0.2 0.25 0.5 0 0.8 0.25
stick dark rectangle 0.2 0.55 0.8 0.6
box body rectangle 0 0.3 1 1
box accent polygon 0 0.3 0.12 0.05 0.88 0.05 1 0.3
box dark rectangle 0.42 0.28 0.58 0.45
trousers body polygon 0.15 0.08 0.85 0.08 1 1 0.62 1 0.5 0.35 0.38 1 0 1
trousers accent rectangle 0.15 0 0.85 0.1
""".strip().splitlines():
    _shape, _role, _kind, *_corners = _line.split()
    SHAPES.setdefault(_shape, []).append((_role, _kind, [float(number) for number in _corners]))
DARK = (58, 54, 56)


def _pen_part(pen: ImageDraw.ImageDraw, kind: str, corners: list[float], side: int, fill) -> None:
    points, thick = [1 + value * (side - 2) for value in corners], max(2, side // 14)
    if kind == "ring":
        pen.ellipse(points, outline=fill, width=thick)
    elif kind == "line":
        pen.line(points, fill=fill, width=thick)
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
    small, box = (side, side), Image.Resampling.BOX
    return whole.resize(small, box), {role: m.resize(small, box) for role, m in roles.items()}


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
    names = facets.colour, facets.accent
    body, accent = (np.clip(np.array(COLOURS[name]) + shade, 0, 255) for name in names)
    share = _pattern(facets.pattern, side, rng.uniform(0, 0.5))[..., None]
    pixels = {"body": body * (1 - share) + accent * share, "accent": accent, "dark": np.array(DARK)}
    light = 1.08 - 0.3 * np.abs(np.linspace(-0.8, 1.2, side))[None, :, None]  # from the left
    canvas = Image.new("RGB", (side, side))
    for role, mask in roles.items():
        canvas.paste(painted(pixels[role] * light, (side, side)), mask=mask)
    canvas.putalpha(whole)
    return canvas


def painted(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A picture of a size (width, height) from RGB that broadcasts to it."""
    pixels = np.broadcast_to(np.clip(pixels, 0, 255), (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def placed(
    thing: Image.Image, size: tuple[int, int], centre: tuple, height: float, aspect: float, turn
) -> Image.Image:
    """The sprite on a transparent picture of ``size``: its centre and height in pixels, turned by
    radians."""
    side, cos, sin = thing.width, np.cos(turn), np.sin(turn)
    wide, high = height / side * aspect, height / side
    # PIL asks for the inverse: where in the sprite the pixel of the picture comes from
    a, b, d, e = cos / wide, sin / wide, -sin / high, cos / high
    c = side / 2 - a * centre[0] - b * centre[1]
    f = side / 2 - d * centre[0] - e * centre[1]
    affine, smooth = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return thing.transform(size, affine, (a, b, c, d, e, f), smooth)


class Picture(NamedTuple):
    """A picture, and the box of the object in it: x1, y1, x2, y2 in fractions."""

    image: Image.Image
    box: tuple[float, float, float, float]


def _backdrop(size: tuple[int, int], merchant: int, rng: np.random.Generator) -> Image.Image:
    """A merchant's studio: wall and floor, with some clutter."""
    tone = np.random.default_rng([3, merchant])
    wall = 235 - tone.uniform(0, 90) * tone.dirichlet([1, 1, 1]) + rng.normal(0, 4, 3)
    floor = wall - tone.uniform(0, 40)
    width, height = size
    rows = np.linspace(0, 1, height)[:, None] > tone.uniform(0.6, 0.95)
    pixels = np.where(rows[..., None], floor, wall) + np.linspace(6, -6, height)[:, None, None]
    image = painted(pixels, size)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.04, 0.3, 2) * size
        colour = tuple(int(value) for value in rng.uniform(70, 240, 3))
        draw = getattr(pen, str(rng.choice(["ellipse", "rectangle", "line"])))
        draw([x, y, x + w, y + h], fill=colour)
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
        pen, x, y = ImageDraw.Draw(image), *(rng.uniform(0, 1, 2) * (0.7, 0.85) * size)
        pen.rectangle([x, y, x + 34, y + 14], fill=(220, 40, 40))
        pen.text((x + 3, y + 1), str(rng.choice(["SALE", "-50%", "NEW", "TOP"])), fill="white")
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.6)))
    return Picture(image, tuple(side / whole for side, whole in zip(box, size * 2, strict=True)))


def _stand(
    image: Image.Image, facets: Facets, rng: np.random.Generator, small: bool = False
) -> Image.Image:
    """Put an object somewhere into the picture; returns its layer."""
    width, height = image.size
    tall = height * rng.uniform(*((0.2, 0.35) if small else (0.45, 0.85)))
    tall = tall if small else tall / max(1.0, facets.aspect) ** 0.5
    centre = rng.uniform(*((0.05, 0.95) if small else (0.38, 0.62)), 2) * (width, height)
    thing = sprite(facets, 96, rng)
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = placed(thing, image.size, tuple(centre), tall, facets.aspect, rng.normal(0, 0.2))
    image.paste(layer, mask=layer)
    return layer


def save_picture(path: Path, image: Image.Image, quality: int = 88) -> None:
    """A JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    save(path, buffer)


def save(path: Path, buffer: io.BytesIO) -> None:
    """A whole file of what was written to memory."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
