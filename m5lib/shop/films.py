"""Films of the synthetic shop: the object in use. Usage is its scene and its motion, material its
gloss, production a part of the film with a motif of its own; before and after, the merchant's card
says nothing of the product. Everything is a function of the generator given."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from m5lib.data import whole_file
from m5lib.shop.facets import MATERIALS, PRODUCTIONS, USAGES, Facets
from m5lib.shop.pictures import painted, placed, sprite
from m5lib.shop.sounds import RATE, Timeline, encode

FPS, SIDE = 8, 112


def timeline(rng: np.random.Generator) -> Timeline:
    """A film of three to six whole seconds: maybe a card, then making (1 s) and using (2 to 3 s) in
    either order, maybe a card."""
    start, using = int(rng.random() < 0.5), int(rng.integers(2, 4))
    end, first = int(rng.random() < 0.4), rng.random() < 0.5
    making = (start, start + 1) if first else (start + using, start + using + 1)
    used = (start + 1, start + 1 + using) if first else (start, start + using)
    return Timeline(start + 1 + using + end, making, used)


def _scene(usage: str, rng: np.random.Generator) -> Image.Image:
    """A place where things of a usage are used: light, wall, floor, props; another in each film."""
    turn = np.random.default_rng([5, list(USAGES).index(usage)])
    wall = turn.uniform(110, 225, 3) + rng.normal(0, 22, 3)
    floor = turn.uniform(70, 180, 3) + rng.normal(0, 22, 3)
    below = np.linspace(0, 1, SIDE) > turn.uniform(0.5, 0.75) + rng.normal(0, 0.08)
    image = painted(np.where(below[:, None, None], floor, wall), (SIDE, SIDE))
    pen, prop = ImageDraw.Draw(image), str(turn.choice(["ellipse", "rectangle"]))
    for _ in range(int(turn.integers(2, 7))):
        x, y = rng.uniform(0, SIDE, 2)
        colour = np.clip(turn.uniform(50, 230, 3) + rng.normal(0, 40, 3), 0, 255)
        w, h = turn.uniform(8, 40, 2) * rng.uniform(0.6, 1.4)
        getattr(pen, prop)([x, y, x + w, y + h], fill=tuple(int(v) for v in colour))
    return image


def _gloss(material: str, t: float | int) -> np.ndarray:
    """(SIDE, SIDE) light to add: a highlight as sharp as the material is, or its grain."""
    turn = np.random.default_rng([6, list(MATERIALS).index(material)])
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
    tone, thing = np.random.default_rng([3, merchant]), sprite(facets, 64, rng)
    card = np.full((SIDE, SIDE, 3), tone.uniform(60, 220, 3).astype(np.uint8))
    card[SIDE // 3 : -SIDE // 3, SIDE // 4 : -SIDE // 4] = tone.uniform(60, 220, 3)
    scene, usage = _scene(facets.usage, rng), list(USAGES).index(facets.usage)
    height, light = SIDE * rng.uniform(0.38, 0.65), rng.uniform(0.75, 1.15)
    start, pan, size = rng.uniform(0, 6), rng.integers(-12, 13, 2), (SIDE, SIDE)
    (left, top), lean = rng.uniform(-0.1, 0.1, 2), rng.normal(0, 0.25)
    for number in range(plan.seconds * FPS):
        t = number / FPS
        what = plan.at(t)
        if what == "card":
            yield card
            continue
        if what == "making":
            frame, (x, y, turn, grow) = Image.new("RGB", size, (70, 66, 64)), (0, 0, 0, 1)
        else:
            right, down = 11 + pan * t / plan.seconds
            view = (0.8, 0, right, 0, 0.8, down)
            frame = scene.transform(size, Image.Transform.AFFINE, view)
            x, y, turn, grow = MOTIONS[usage](t + start)
        centre = SIDE * (0.5 + left + x), SIDE * (0.52 + top + y)
        layer = placed(thing, size, centre, height * grow, facets.aspect, turn + lean)
        if what == "making":
            _motif(frame, layer, facets.production, t - plan.making[0], rng)
        else:
            frame.paste(layer, mask=layer)
        pixels = np.asarray(frame, dtype=np.float32)
        gloss = _gloss(facets.material, t + start) * (np.asarray(layer.getchannel("A")) > 40)
        pixels = (pixels + gloss[..., None]) * light + rng.integers(-6, 7, (SIDE, SIDE, 1))
        yield np.clip(pixels, 0, 255).astype(np.uint8)


def _motif(frame: Image.Image, layer: Image.Image, production: str, t: float | int, rng) -> None:
    """The thing half made, from below upwards, with the marks of its production flying about."""
    turn = np.random.default_rng([8, list(PRODUCTIONS).index(production)])
    colour = tuple(int(v) for v in turn.uniform(90, 255, 3))
    kind = str(turn.choice(["ellipse", "rectangle", "line"]))
    reach, amount = turn.uniform(4, 16, 2), int(turn.integers(6, 22))
    done = int(SIDE * (0.85 - 0.6 * t))
    frame.paste(layer.crop((0, done, SIDE, SIDE)), (0, done), layer.crop((0, done, SIDE, SIDE)))
    pen = ImageDraw.Draw(frame)
    for _ in range(amount):
        x, y = rng.normal(SIDE / 2, SIDE / 4), rng.normal(done, SIDE / 8)
        getattr(pen, kind)([x, y, x + reach[0], y + reach[1]], fill=colour)


def save_film(path: Path, frames: Iterable[np.ndarray], samples: np.ndarray | None) -> None:
    """An MP4 file: H.264, with AAC sound where there is any."""
    import av

    with whole_file(path, False) as temporary, av.open(str(temporary), "w", format="mp4") as out:
        fast = {"crf": "26", "preset": "ultrafast", "threads": "1"}
        stream = out.add_stream("libx264", rate=FPS, options=fast)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FPS)
        if samples is not None:
            aac = {"aac_coder": "fast"}
            sound = out.add_stream("aac", rate=RATE, layout="mono", options=aac)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if samples is not None:
            encode(out, sound, samples)
