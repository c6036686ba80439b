"""Pictures of the synthetic shop's products, drawn from their facets (see
:mod:`m5lib.shop.facets`): appearance only. Everything is a function of the generator given."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from m5lib.data import whole_file
from m5lib.shop.facets import COLOURS, SHELF, Facets

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
    for role, kind, *corners in map(str.split, SHELF["shapes"][shape]):
        part = Image.new("L", whole.size)
        _pen_part(ImageDraw.Draw(part), kind, list(map(float, corners)), 2 * side, 255)
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
    """The object alone, RGBA, ``side`` x ``side`` (stretched later): shape, colours, pattern."""
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
    """The sprite on a transparent picture of ``size``: centre, height (pixels), turn (radians)."""
    side, cos, sin = thing.width, np.cos(turn), np.sin(turn)
    wide, high = height / side * aspect, height / side
    # PIL asks for the inverse: where in the sprite the pixel of the picture comes from
    a, b, d, e = cos / wide, sin / wide, -sin / high, cos / high
    c = side / 2 - a * centre[0] - b * centre[1]
    f = side / 2 - d * centre[0] - e * centre[1]
    affine, smooth = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return thing.transform(size, affine, (a, b, c, d, e, f), smooth)


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
) -> tuple[Image.Image, tuple]:
    """A product photograph: the object, clutter, maybe a part of it cut off, a sticker, or a second
    object that is not for sale; and the box of the object: x1, y1, x2, y2 in fractions."""
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
    return image, tuple(side / whole for side, whole in zip(box, size * 2, strict=True))


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
    with whole_file(path, sync=False) as temporary:
        image.save(temporary, "JPEG", quality=quality)
