"""Figures of attributions (as Figures 7, 13, 14). Blue speaks for the number, orange against it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from m5lib.data import MediaFile, decoding
from m5lib.data.extractors import HOP, RATE, LogMel, seconds_of
from m5lib.figures.style import (
    QUIET,
    RIGHT,
    TRUE,
    WRONG,
    blank,
    canvas,
    codes_of,
    cut,
    inset,
    legend_beside,
    plain,
    short,
    styled,
)
from m5lib.figures.tokens import GAP, LINE, as_read, chip, chip_width, drawable, frame
from m5lib.modalities import MODALITIES
from m5lib.models.words import word_numbers
from m5lib.streams import Stream, Streams

Scores = Mapping[str, np.ndarray]
SIGNED = LinearSegmentedColormap.from_list("signed", (WRONG, "#ffffff", RIGHT))


def _reach(values) -> float:
    """Where a colour scale ends: the largest magnitude."""
    return float(np.abs(np.asarray(values)).max(initial=0.0)) or 1.0


def _shade(value: float, reach: float):
    return SIGNED(0.5 + 0.5 * float(np.clip(value / reach, -1, 1)))


def _sides(values) -> list[str]:
    return [RIGHT if value > 0 else WRONG for value in values]


def _note(figure: Figure, x: float, y: float, text: str, **settings) -> None:
    w, h = figure.get_size_inches()
    settings = {"fontsize": 9.5, "fontweight": "bold", "va": "center"} | settings
    figure.text(x / w, 1 - y / h, plain(text), **settings)


# --- one product


class Panel(NamedTuple):
    """What a panel draws: the tokens of one modality of one product."""

    figure: Figure
    at: tuple[float, float, float, float]  # left, top, width, height on the page, inches
    content: object
    stream: Stream
    scores: np.ndarray  # (L,), the summary first
    told: Sequence  # what is true of it (m5lib.shop.listings.truth)
    tokenizer: object
    settings: Mapping  # of the extractor that made the tokens
    step: float | None  # seconds of a token


def _chips(panel: Panel, rows: Sequence[Sequence[tuple]], reach: float, lead: float = 0.0) -> None:
    """Lines of (text, score, true), coloured; ``lead``: width of the label that begins a line."""
    axes, (width, height), y = inset(panel.figure, *panel.at), panel.at[2:], 0.16
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for row in rows:
        x = 0.0
        for place, (text, value, true) in enumerate(row):
            if x > lead and x + chip_width(text) > width:
                x, y = lead, y + LINE
            if y > height:  # what the page has no room for
                axes.text(width, height, "…", ha="right", va="bottom", gid="more")
                return
            face = _shade(value, reach)
            look = face, "#cccccc", "white" if sum(face[:3]) < 1.5 else "#222222"
            x += chip(axes, x, y, text, look, true, lw=0.6, gid="token") + GAP / 2
            if place == 0 and lead:
                x = max(x, lead)
        y += LINE


def _regions(panel: Panel) -> None:
    """The photograph once per scale of its regions, each region filled with its colour."""
    (x, y, width, height), scores = panel.at, panel.scores[1:]
    picture = np.asarray(decoding.open_image(panel.content))
    h, w = picture.shape[:2]
    margin = 0.008 * w * np.array([1, 1, -1, -1])
    boxes = panel.stream.boxes[0, 1 : len(panel.scores), :4].numpy() * [w, h, w, h] + margin
    levels = [level**2 for level in panel.settings.get("levels", ())]
    groups = levels if sum(levels) == len(boxes) else [len(boxes)]
    wide = (width - 0.1 * (len(groups) - 1)) / len(groups)
    for number, own in enumerate(np.split(np.arange(len(boxes)), np.cumsum(groups)[:-1])):
        axes = inset(panel.figure, x + number * (wide + 0.1), y, wide, height)
        axes.imshow(picture)
        axes.axis("off")
        for n in own[np.argsort(np.abs(scores[own]))][-9:]:  # the strongest, drawn last
            (x1, y1, x2, y2), edge = boxes[n], RIGHT if scores[n] > 0 else WRONG
            strength = abs(float(scores[n])) / _reach(panel.scores)
            fill = {"fc": edge, "ec": "none", "alpha": 0.6 * strength, "gid": "token"}
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **fill))
            frame(axes, boxes[n], edge, lw=0.6 + 1.8 * strength)
        if len(panel.told):
            frame(axes, np.asarray(panel.told) * [w, h, w, h], TRUE, lw=2, ls="--")
        title = f"{len(own)} region{'s' * (len(own) > 1)}"
        axes.set_title(title, fontsize=8, fontweight="normal", pad=2)


def _words(panel: Panel) -> None:
    """The word pieces."""
    pieces = panel.tokenizer.convert_ids_to_tokens(panel.stream.tokens[0])
    numbers = word_numbers(as_read(panel.content), panel.tokenizer)
    shown = np.flatnonzero(panel.stream.entity[0].numpy() >= 0)
    line = [(pieces[n], panel.scores[n], numbers[n - 1] in list(panel.told)) for n in shown]
    _chips(panel, [line], _reach(panel.scores))


def _pairs(panel: Panel) -> None:
    """Property and value of each pair, a line each; the pieces of either add up."""
    entity, told = panel.stream.entity[0].numpy(), list(panel.told)
    summed = [float(panel.scores[entity == n].sum()) for n in range(2 * len(panel.content))]
    rows = [
        [(cut(text, 1, 26), summed[2 * n + side], n in told) for side, text in enumerate(pair)]
        for n, pair in enumerate(panel.content)
    ]
    if len(rows) > (room := int(panel.at[3] / LINE)):  # the strongest, and how many more there are
        strength = [max(abs(value) for _, value, _ in row) for row in rows]
        kept = sorted(np.argsort(strength)[len(rows) - room + 1 :])
        rows = [rows[n] for n in kept] + [[(f"… {len(rows) - room + 1} more", 0.0, False)]]
    _chips(panel, rows, _reach(summed), lead=max(chip_width(row[0][0]) for row in rows) + GAP)


def _bars(axes: Axes, scores: np.ndarray, told, label: str) -> None:
    """A bar per second."""
    axes.axhline(0, color="#222222", lw=0.7)
    look = {"align": "edge", "color": _sides(scores), "gid": "token"}
    axes.bar(np.arange(len(scores)), scores, 0.86, **look)
    reach = 1.25 * _reach(scores)
    axes.set(ylim=(-reach, reach))
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.locator_params(axis="y", nbins=3)
    for span in told:
        style = {"color": TRUE, "lw": 4, "solid_capstyle": "butt", "clip_on": False}
        axes.plot(span, [-reach * 0.96] * 2, **style)


def _film(panel: Panel) -> None:
    """A strip with one frame per token, and a bar below each."""
    (x, y, width, height), file, values = panel.at, panel.content, panel.scores[1:]
    length = decoding.probe(file).video.seconds
    stamps = seconds_of(length, len(values))
    if panel.step is None and length:  # tokens of no second: spread over the film
        stamps = [length * (n + 0.5) / len(values) for n in range(len(values))]
    frames, _ = decoding.frames(file, stamps, 160)
    side = width / max(len(values), 5)
    tall = min(side * frames.shape[1] / frames.shape[2], 0.55 * height)
    for n, pixels in enumerate(frames[: len(values)]):
        axes = inset(panel.figure, x + n * side, y, 0.96 * side, tall)
        axes.imshow(pixels, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=_shade(values[n], _reach(values)), linewidth=3)
    axes = inset(panel.figure, x, y + tall + 0.05, side * len(values), height - tall - 0.05)
    _bars(axes, values, panel.told, "tokens" if panel.step is None else "seconds of the film")
    axes.set_xlim(0, len(values))


def _sound(panel: Panel) -> None:
    """The spectrogram, and a bar below each second: the sum of its tokens."""
    (x, y, width, height), values = panel.at, panel.scores[1:]
    bands, longest = panel.settings.get("bands", 80), panel.settings.get("seconds", 12.0)
    samples = decoding.sound(panel.content, RATE, longest)
    mel = LogMel(bands).spectrogram(torch.from_numpy(samples))
    end, half = len(mel) * HOP / RATE, 0.5 * height
    axes = inset(panel.figure, x, y, width, half)
    axes.imshow(mel.T, origin="lower", aspect="auto", extent=(0, end, 0, bands), cmap="cividis")
    axes.set(xticks=[], yticks=[])
    second = ((np.arange(len(values)) + 0.5) * (panel.step or end / len(values))).astype(int)
    summed = np.bincount(second, weights=values, minlength=int(np.ceil(end)))
    axes = inset(panel.figure, x, y + half + 0.05, width, half - 0.05)
    _bars(axes, summed, panel.told, "seconds of the sound")
    axes.set_xlim(0, end)


def _features(panel: Panel) -> None:
    """A bar per token of which only features are there."""
    _bars(inset(panel.figure, *panel.at), panel.scores[1:], (), "tokens")


#: In the order of the table: how the tokens of a modality are drawn, where on the page, the ending
#: of the truth's column that is marked, and how far above stands the heading.
PANELS = (
    (_regions, (0.05, 0.85, 4.5, 1.75), "box", 0.24),
    (_words, (4.95, 0.75, 5.0, 0.56), "words", 0.14),
    (_pairs, (4.95, 1.65, 5.0, 1.15), "pairs", 0.14),
    (_film, (0.3, 3.25, 4.0, 1.5), "spans", 0.14),
    (_sound, (4.95, 3.25, 2.6, 1.5), "spans", 0.14),
)


@styled
def product(
    streams: Streams, row: int, scores: Scores, worth: Mapping, title: str, told=None
) -> Figure:
    """One product whole: regions, words, pairs, frames and seconds in their colours, each modality
    on its own scale, and the modalities.

    Args:
        scores: modality -> (L,) of this product's tokens, its summary first.
        worth: modality -> Shapley value.
        told: what is true of it (:func:`m5lib.shop.listings.truth`), underlined or framed in green.
    """
    figure = blank(10, 5.2, layout="none")
    _note(figure, 0.05, 0.15, title, fontsize=11)
    key = "blue speaks for it, orange against it"
    key += ", green: carries the category" if told is not None else ""
    _note(figure, 0.05, 0.37, key, fontsize=8.5, fontweight="normal", color="#444444")
    contents, tokens = streams.catalogue.products[row].contents, streams.batch([row]).streams
    for name, (draw, at, ending, above) in zip(MODALITIES, PANELS, strict=False):
        there = name in streams.modalities and name in contents
        own = np.asarray(scores[name])[: int(tokens[name].valid[0].sum())] if there else np.zeros(0)
        none = "the model does not read it" if name in contents else "the product has none"
        sum_of = f"{own.sum():+.2f}" if there else none
        _note(figure, at[0], at[1] - above, f"{name}: {sum_of}")
        if there:
            true = () if told is None else told[f"{name}_{ending}"]
            made, feature = streams.settings.get(name, {}), streams.features.get(name)
            more = streams.tokenizer, made, getattr(feature, "step", None)
            panel = Panel(figure, at, contents[name], tokens[name], own, true, *more)
            (draw if name in drawable(streams, row) else _features)(panel)
    axes = inset(figure, 8.35, 3.25, 1.55, 1.5)
    _note(figure, 8.0, 3.11, "Shapley values")
    axes.barh(codes_of(list(worth)), list(worth.values()), color=_sides(worth.values()))
    axes.axvline(0, color="#222222", lw=0.7)
    axes.invert_yaxis()
    return figure


# --- many products


@styled
def photographs(
    files: Sequence[MediaFile], boxes: np.ndarray, scores: Scores, titles: Sequence, told=()
) -> Figure:
    """Photographs of several products, a line per method: every pixel has the mean of the scores of
    its regions (:func:`spread_out`). ``boxes``: (N, L, 5); ``scores``: method -> (N, L); ``told``:
    the box of each product."""
    size = 1.0 + 1.35 * len(files), 0.4 + 1.45 * len(scores)
    figure, axes = canvas(len(scores), len(files), size)
    pictures = [np.asarray(decoding.open_image(file)) for file in files]
    for line, (method, values) in enumerate(scores.items()):
        for n, (place, picture) in enumerate(zip(axes[line], pictures, strict=True)):
            heat, (height, width) = spread_out(boxes[n], values[n], (48, 48)), picture.shape[:2]
            extent, strength = (0, width, height, 0), heat / _reach(heat)
            grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
            place.imshow(0.35 + 0.65 * grey, extent=extent)
            paint = SIGNED(0.5 + 0.5 * strength) * [1, 1, 1, 0.75]
            paint[..., 3] *= np.abs(strength)
            place.imshow(paint, extent=extent, interpolation="bilinear")
            if len(told) and len(told[n]):
                box = np.asarray(told[n]) * [width, height, width, height]
                frame(place, box, TRUE, lw=1.4, ls="--")
            place.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
            place.spines[:].set_visible(False)
            if line == 0:
                place.set_title(short(titles[n], 2, 18), fontsize=7.5, fontweight="normal")
        axes[line, 0].set_ylabel(method.replace(" ", "\n", 1), fontsize=8)
    return figure


def spread_out(boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width) map: the mean of the scores of the regions that a pixel lies in, weighted by
    1 / area: overlaps do not add up."""
    heat, weight = np.zeros(size), np.zeros(size)
    for (x1, y1, x2, y2), value in zip(boxes[:, :4], scores, strict=True):
        top, left = round(y1 * size[0]), round(x1 * size[1])
        rows = slice(top, max(round(y2 * size[0]), top + 1))
        columns = slice(left, max(round(x2 * size[1]), left + 1))
        area = max((x2 - x1) * (y2 - y1), 1e-6)
        heat[rows, columns] += value / area
        weight[rows, columns] += 1 / area
    return heat / np.maximum(weight, 1e-12)


@styled
def deletion_insertion(
    curves: Mapping[str, Mapping[str, np.ndarray]], shares: Sequence[float], label: str
) -> Figure:
    """Deletion above, insertion below, a column per set of modalities: ours in colour, random order
    grey. Drawn is the change from F of the whole product; bands are the 95 % interval of its mean.
    ``curves``: title -> ``deletion``, ``insertion``, ``random deletion``, ``random insertion``,
    each (N, K) (of all seeds together)."""
    size, x = (1.9 + 1.7 * len(curves), 4.0), 100 * np.asarray(shares)
    figure, axes = canvas(2, len(curves), size, sharex=True, sharey="col")
    kinds = (("deletion", "deleted", WRONG), ("insertion", "inserted", RIGHT))
    for line, (kind, done, paint) in zip(axes, kinds, strict=True):
        random = f"random {kind}", QUIET, "random order", "--"
        ours = kind, paint, "integrated gradients", "-"
        for place, part in zip(line, curves.values(), strict=True):
            for key, shade, name, style in (random, ours):
                change = part[key] - part["deletion"][:, :1]
                mean, error = change.mean(axis=0), 1.96 * change.std(axis=0) / np.sqrt(len(change))
                place.plot(x, mean, marker="o", ms=3, color=shade, ls=style, label=name)
                place.fill_between(x, mean - error, mean + error, color=shade, alpha=0.2, lw=0)
            place.tick_params(labelsize=8)
        line[0].set_ylabel(f"change of {label},\nbest {done}", fontsize=8.5)
        legend_beside(line[-1], fontsize=8)
    for (above, below), title in zip(axes.T, curves, strict=True):
        above.set_title(title, fontsize=10)
        below.set_xlabel("% of the tokens", fontsize=8.5)
    return figure
