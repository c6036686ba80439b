"""Figures of attributions (as Figures 7, 13 and 14). Blue speaks for the number that is explained,
orange against it."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from m5lib.catalogue import MediaFile
from m5lib.data import decoding
from m5lib.data.extractors import HOP, RATE, LogMel, seconds_of
from m5lib.figures.style import PALETTE, QUIET, RIGHT, WRONG, canvas, colour, short, styled
from m5lib.figures.tokens import GAP, LINE, SIZE, TRUE, chip_width
from m5lib.modalities import MODALITIES
from m5lib.streams import Streams, word_numbers

SIGNED = LinearSegmentedColormap.from_list("signed", (WRONG, "#ffffff", RIGHT))


def _reach(values) -> float:
    """Where a colour scale ends: the largest magnitude."""
    return float(np.abs(np.asarray(values)).max(initial=0.0)) or 1.0


def _shade(value: float, reach: float):
    return SIGNED(0.5 + 0.5 * float(np.clip(value / reach, -1, 1)))


def _place(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, from the top left."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes(
        (
            x / whole_width,
            1 - (y + height) / whole_height,
            width / whole_width,
            height / whole_height,
        )
    )


def _note(figure: Figure, x: float, y: float, text: str, **settings) -> None:
    whole_width, whole_height = figure.get_size_inches()
    figure.text(
        x / whole_width,
        1 - y / whole_height,
        text,
        va="center",
        **{"fontsize": 9.5, "fontweight": "bold"} | settings,
    )


# --- one product
# ------------------------------------------------------------------------------------------------


def _chips(
    axes: Axes,
    rows: Sequence[Sequence[tuple[str, float, bool]]],
    reach: float,
    size: tuple,
    lead: float = 0.0,
) -> None:
    """Lines of word pieces, coloured; the first piece of each row is a label in front where
    ``lead`` is its width."""
    width, height = size
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    y = 0.16
    for row in rows:
        x = 0.0
        for place, (text, value, true) in enumerate(row):
            wide = chip_width(text)
            if x > lead and x + wide > width:
                x, y = lead, y + LINE
            face = _shade(value, reach)
            dark = sum(face[:3]) < 1.5
            style = "round,pad=0,rounding_size=0.04"
            axes.add_patch(
                FancyBboxPatch(
                    (x, y - 0.1),
                    wide,
                    0.2,
                    boxstyle=style,
                    fc=face,
                    ec="#cccccc",
                    lw=0.6,
                    gid="token",
                )
            )
            ink = "white" if dark else "#222222"
            axes.text(
                x + wide / 2,
                y,
                text,
                ha="center",
                va="center_baseline",
                color=ink,
                fontsize=SIZE,
                family="monospace",
            )
            if true:
                axes.plot([x, x + wide], [y + 0.13] * 2, color=TRUE, lw=2.5, solid_capstyle="butt")
            x += wide + GAP / 2
            if place == 0 and lead:
                x = max(x, lead)
        y += LINE


def _regions(
    figure: Figure, at: tuple, streams: Streams, row: int, scores: np.ndarray, told
) -> None:
    """The photograph once per scale of its regions, each region filled with its colour."""
    (x, y, width, height), name = at, "image"
    picture = np.asarray(decoding.open_image(streams.catalogue.products[row].contents[name]))
    boxes = streams.batch([row]).streams[name].boxes[0, 1 : len(scores)].numpy()
    levels = [level**2 for level in streams.settings.get(name, {}).get("levels", ())]
    groups = levels if sum(levels) == len(boxes) else [len(boxes)]
    wide, start = (width - 0.1 * (len(groups) - 1)) / len(groups), 1
    for number, count in enumerate(groups):
        axes = _place(figure, x + number * (wide + 0.1), y, wide, height)
        chosen = np.arange(start, start + count)
        start += count
        chosen = chosen[np.argsort(np.abs(scores[chosen]))][-9:]  # the strongest, drawn last
        on_photograph(axes, picture, boxes[chosen - 1], scores[chosen], _reach(scores), told)
        axes.set_title(f"{count} region{'s' * (count > 1)}", fontsize=8, fontweight="normal", pad=2)


def on_photograph(
    axes: Axes,
    picture: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    reach: float,
    told: Sequence = (),
) -> None:
    """Regions as boxes on the photograph (H, W, 3), filled with their colour; ``told``: the
    product's own box, dashed."""
    height, width = picture.shape[:2]
    axes.imshow(picture)
    axes.axis("off")
    for box, value in zip(boxes, scores, strict=True):
        x1, y1, x2, y2 = box[:4] * np.array([width, height, width, height])
        edge = RIGHT if value > 0 else WRONG
        strength = min(1.0, abs(float(value)) / reach)
        inset = 0.008 * width
        spot = (x1 + inset, y1 + inset), x2 - x1 - 2 * inset, y2 - y1 - 2 * inset
        axes.add_patch(Rectangle(*spot, fc=edge, ec="none", alpha=0.6 * strength, gid="token"))
        axes.add_patch(Rectangle(*spot, fill=False, ec=edge, lw=0.6 + 1.8 * strength))
    if len(told):
        x1, y1, x2, y2 = np.asarray(told, dtype=float) * [width, height, width, height]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=TRUE, lw=2, ls="--"))


def _pieces(streams: Streams, row: int, name: str) -> tuple[list[str], np.ndarray]:
    stream = streams.batch([row]).streams[name]
    return streams.tokenizer.convert_ids_to_tokens(stream.tokens[0]), stream.entity[0].numpy()


def _words(figure: Figure, at: tuple, streams: Streams, row: int, scores: np.ndarray, told) -> None:
    """The word pieces of the title."""
    pieces, entity = _pieces(streams, row, "text")
    numbers = word_numbers(streams.catalogue.products[row].contents["text"], streams.tokenizer)
    shown = np.flatnonzero(entity >= 0)
    line = [(pieces[n], scores[n], numbers[n - 1] in list(told)) for n in shown]
    _chips(_place(figure, *at), [line], _reach(scores), at[2:])


def _pairs(figure: Figure, at: tuple, streams: Streams, row: int, scores: np.ndarray, told) -> None:
    """Property and value of each pair, a line each; a property or value of several pieces gets
    their sum."""
    pairs = streams.catalogue.products[row].contents["table"]
    _, entity = _pieces(streams, row, "table")
    both = [
        [float(scores[entity == 2 * n + side].sum()) for side in (0, 1)] for n in range(len(pairs))
    ]
    rows = [
        [(short(t, 1, 26), v, n in list(told)) for t, v in zip(pair, both[n], strict=True)]
        for n, pair in enumerate(pairs)
    ]
    rows = rows[: int(at[3] / LINE)]  # what the page has room for
    _chips(
        _place(figure, *at),
        rows,
        _reach(both),
        at[2:],
        lead=max(chip_width(row[0][0]) for row in rows) + GAP,
    )


def _bars(
    axes: Axes, start: np.ndarray, width: float, scores: np.ndarray, told, label: str
) -> None:
    axes.axhline(0, color="#222222", lw=0.7)
    axes.bar(
        start,
        scores,
        0.86 * width,
        align="edge",
        color=[RIGHT if v > 0 else WRONG for v in scores],
        gid="token",
    )
    reach = 1.25 * _reach(scores)
    axes.set(ylim=(-reach, reach))
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.locator_params(axis="y", nbins=3)
    for a, b in told:
        axes.plot(
            [a, b], [-reach * 0.96] * 2, color=TRUE, lw=4, solid_capstyle="butt", clip_on=False
        )


def _film(figure: Figure, at: tuple, streams: Streams, row: int, scores: np.ndarray, told) -> None:
    """A strip with one frame per token, and a bar below each."""
    (x, y, width, height), file = at, streams.catalogue.products[row].contents["video"]
    values = np.asarray(scores[1:])
    frames, _ = decoding.frames(
        file, seconds_of(decoding.probe(file).video.seconds, len(values)), 160
    )
    side = width / max(len(values), 5)
    tall = min(side * frames.shape[1] / frames.shape[2], 0.55 * height)
    for n, frame in enumerate(frames[: len(values)]):
        axes = _place(figure, x + n * side, y, 0.96 * side, tall)
        axes.imshow(frame, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=_shade(values[n], _reach(values)), linewidth=3)
    axes = _place(figure, x, y + tall + 0.05, side * len(values), height - tall - 0.05)
    _bars(axes, np.arange(len(values)), 1.0, values, told, "seconds of the film")
    axes.set_xlim(0, len(values))


def _sound(figure: Figure, at: tuple, streams: Streams, row: int, scores: np.ndarray, told) -> None:
    """The spectrogram, and a bar below each second: the sum of its tokens."""
    (x, y, width, height), made = at, streams.settings.get("audio", {})
    file, bands = streams.catalogue.products[row].contents["audio"], made.get("bands", 80)
    samples = decoding.sound(file, RATE, made.get("seconds", 12.0))
    mel = LogMel(bands).spectrogram(torch.from_numpy(samples))
    end, values = len(mel) * HOP / RATE, np.asarray(scores[1:])
    above = _place(figure, x, y, width, 0.5 * height)
    above.imshow(mel.T, origin="lower", aspect="auto", extent=(0, end, 0, bands), cmap="cividis")
    above.set(xticks=[], yticks=[])
    step = streams.features["audio"].step or end / len(values)
    second = ((np.arange(len(values)) + 0.5) * step).astype(int)
    summed = np.bincount(second, weights=values, minlength=int(np.ceil(end)))
    axes = _place(figure, x, y + 0.5 * height + 0.05, width, 0.5 * height - 0.05)
    _bars(axes, np.arange(len(summed)), 1.0, summed, told, "seconds of the sound")
    axes.set_xlim(0, end)


#: How the tokens of a modality are drawn, where on the page (inches: left, top, width, height), and
#: the truth's column that is marked.
PANELS = {
    "image": (_regions, (0.05, 0.85, 4.5, 1.75), "image_box"),
    "text": (_words, (4.95, 0.75, 5.0, 0.56), "text_words"),
    "table": (_pairs, (4.95, 1.65, 5.0, 1.15), "table_pairs"),
    "video": (_film, (0.3, 3.25, 4.0, 1.5), "video_spans"),
    "audio": (_sound, (4.95, 3.25, 2.6, 1.5), "audio_spans"),
}


@styled
def product(
    streams: Streams,
    row: int,
    scores: Mapping[str, np.ndarray],
    worth: Mapping[str, float],
    title: str,
    told: Mapping | None = None,
) -> Figure:
    """One product whole: regions, words, pairs, frames and seconds in their colours, each modality
    on its own scale, and the modalities.

    Args:
        scores: modality -> (L,) of this product's tokens, its summary first
            (:attr:`m5lib.explain.attribution.Attribution.tokens`).
        worth: modality -> Shapley value.
        told: what is true of the product (:func:`m5lib.shop.listings.truth`), underlined or framed
            in green.
    """
    figure = plt.figure(figsize=(10, 5.2), layout="none")
    plt.close(figure)
    _note(figure, 0.05, 0.15, title, fontsize=11)
    key = "blue speaks for it, orange against it" + (
        ", green: carries the category" if told is not None else ""
    )
    _note(figure, 0.05, 0.37, key, fontsize=8.5, fontweight="normal", color="#444444")
    stream = streams.batch([row]).streams
    for name, (draw, at, column) in PANELS.items():
        there = name in streams.modalities and name in streams.catalogue.products[row].contents
        own = np.asarray(scores[name])[: int(stream[name].valid[0].sum())] if there else np.zeros(0)
        heading = f"{name}: {own.sum():+.2f}" if there else f"{name}: the product has none"
        _note(figure, at[0], at[1] - (0.24 if draw is _regions else 0.14), heading)
        if there:
            draw(figure, at, streams, row, own, () if told is None else told[column])
    axes = _place(figure, 8.35, 3.25, 1.55, 1.5)
    _note(figure, 8.0, 3.11, "Shapley values")
    values = np.array(list(worth.values()))
    axes.barh(
        [MODALITIES[name].code for name in worth], values, color=np.where(values > 0, RIGHT, WRONG)
    )
    axes.axvline(0, color="#222222", lw=0.7)
    axes.invert_yaxis()
    return figure


# --- many products
# ------------------------------------------------------------------------------------------------


@styled
def photographs(
    files: Sequence[MediaFile],
    boxes: np.ndarray,
    scores: Mapping[str, np.ndarray],
    titles: Sequence[str],
    told: Sequence = (),
) -> Figure:
    """Photographs of several products, a line per method: every pixel has the mean of the scores of
    its regions (:func:`spread_out`).

    Args:
        boxes: (N, L, 5); ``scores``: method -> (N, L).
        told: the box of each product.
    """
    figure, axes = canvas(
        len(scores), len(files), (1.0 + 1.35 * len(files), 0.4 + 1.45 * len(scores))
    )
    pictures = [np.asarray(decoding.open_image(file)) for file in files]
    for line, (method, values) in enumerate(scores.items()):
        for n, (place, picture) in enumerate(zip(axes[line], pictures, strict=True)):
            heat = spread_out(boxes[n], values[n], (48, 48))
            grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
            extent = (0, picture.shape[1], picture.shape[0], 0)
            place.imshow(0.35 + 0.65 * grey, extent=extent)
            reach = _reach(heat)
            paint = SIGNED(0.5 + 0.5 * heat / reach) * [1, 1, 1, 0.75]
            paint[..., 3] *= np.abs(heat) / reach
            place.imshow(paint, extent=extent, interpolation="bilinear")
            if len(told) and len(told[n]):
                x1, y1, x2, y2 = np.asarray(told[n], dtype=float) * np.array(
                    picture.shape[1::-1] * 2
                )
                place.add_patch(
                    Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=TRUE, lw=1.4, ls="--")
                )
            place.set(xticks=[], yticks=[], xlim=(0, picture.shape[1]), ylim=(picture.shape[0], 0))
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
        rows = slice(round(y1 * size[0]), max(round(y2 * size[0]), round(y1 * size[0]) + 1))
        columns = slice(round(x1 * size[1]), max(round(x2 * size[1]), round(x1 * size[1]) + 1))
        heat[rows, columns] += value / max((x2 - x1) * (y2 - y1), 1e-6)
        weight[rows, columns] += 1 / max((x2 - x1) * (y2 - y1), 1e-6)
    return heat / np.maximum(weight, 1e-12)


@styled
def modality_shares(values: pd.DataFrame, label: str) -> Figure:
    """Mean Shapley values by category, stacked: category x modality; what speaks against stands
    left of 0."""
    figure, ((axes,),) = canvas(size=(8.2, 1.3 + 0.28 * len(values)))
    ends = {sign: np.zeros(len(values)) for sign in (1, -1)}
    for name in values:
        part = values[name].fillna(0).to_numpy()
        left = np.where(part >= 0, ends[1], ends[-1])
        axes.barh(
            np.arange(len(values)),
            part,
            0.75,
            left=left,
            color=colour(name),
            label=f"{name} ({MODALITIES[name].code})",
        )
        ends = {sign: end + np.where(np.sign(part) == sign, part, 0) for sign, end in ends.items()}
    axes.axvline(0, color="#222222", lw=0.8)
    axes.set(
        yticks=range(len(values)),
        xlabel=label,
        title="What each modality adds (Shapley values, mean over products)",
    )
    axes.set_yticklabels([short(str(text), 1, 34) for text in values.index])
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


@styled
def deletion_insertion(
    found: Mapping[str, Mapping[str, np.ndarray]], shares: Sequence[float], label: str
) -> Figure:
    """Deletion above, insertion below, a column per set of modalities: ours in colour, random order
    grey. Drawn is the change from F of the whole product; bands are the 95 % interval of its mean
    over products.

    Args:
        found: title -> ``deletion``, ``insertion``, ``random deletion``, ``random insertion``, each
            (N, K).
    """
    figure, axes = canvas(2, len(found), (1.9 + 1.7 * len(found), 4.0), sharex=True, sharey="col")
    for column, (title, part) in enumerate(found.items()):
        for line, kind in enumerate(("deletion", "insertion")):
            place = axes[line, column]
            for key, paint, name in (
                (f"random {kind}", QUIET, "random order"),
                (kind, (WRONG, RIGHT)[line], "integrated gradients"),
            ):
                change = part[key] - part["deletion"][:, :1]
                mean, error = change.mean(axis=0), 1.96 * change.std(axis=0) / np.sqrt(len(change))
                place.plot(
                    100 * np.asarray(shares),
                    mean,
                    color=paint,
                    marker="o",
                    ms=3,
                    ls="--" if paint == QUIET else "-",
                    label=name,
                )
                place.fill_between(
                    100 * np.asarray(shares),
                    mean - error,
                    mean + error,
                    color=paint,
                    alpha=0.2,
                    lw=0,
                )
            place.tick_params(labelsize=8)
        axes[0, column].set_title(title, fontsize=10)
        axes[1, column].set_xlabel("% of the tokens", fontsize=8.5)
        axes[0, 0].set_ylabel(f"change of {label},\nbest deleted", fontsize=8.5)
        axes[1, 0].set_ylabel(f"change of {label},\nbest inserted", fontsize=8.5)
    for line in (0, 1):
        axes[line, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def pointing(seeds: Sequence[tuple[Mapping, Mapping]], title: str) -> Figure:
    """Pointing accuracy: a panel per modality, a bar per method, dots are seeds; the dotted line is
    chance.

    Args:
        seeds: of each, (modality, method) -> hits of its products, and modality -> chance
            (:func:`m5lib.explain.checks.pointed`).
    """
    names, methods = (list(dict.fromkeys(part)) for part in zip(*seeds[0][0], strict=True))
    size = (1.5 + 1.75 * len(names), 1.1 + 0.3 * len(methods))
    figure, axes = canvas(1, len(names), size, sharey=True)
    for place, name in zip(axes[0], names, strict=True):
        level = np.mean([chance[name].mean() for _, chance in seeds if name in chance])
        for y, method in enumerate(methods):
            values = [hits[name, method].mean() for hits, _ in seeds if (name, method) in hits]
            place.barh(y, np.mean(values), 0.62, color=colour(name), alpha=0.45)
            place.scatter(values, np.full(len(values), y), s=12, color=colour(name), zorder=3)
        place.axvline(level, color="#444444", ls=":")
        place.annotate(
            "chance", (level, -0.78), (2, 0), textcoords="offset points", fontsize=7.5, va="center"
        )
        ends = (len(methods) - 0.4, -1.05)
        place.set(xlim=(0, 1.02), title=name, ylim=ends, yticks=range(len(methods)))
        place.set_yticklabels(methods)
        place.set_xlabel("share of products", fontsize=8.5)
        place.tick_params(labelsize=8.5)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


@styled
def cascade(values: pd.DataFrame) -> Figure:
    """Rank correlation with the trained model's attribution, while ever more weights are drawn
    anew; columns are kinds of it."""
    figure, ((axes,),) = canvas(size=(8.4, 3.0))
    for number, name in enumerate(values):
        axes.plot(
            range(len(values)),
            values[name],
            marker="os^"[number % 3],
            color=PALETTE[number],
            label=name,
        )
    axes.axhline(0, color=QUIET, ls=":")
    axes.set(
        xticks=range(len(values)),
        ylabel="Spearman's rank correlation",
        title="Weights drawn anew, from the top down",
    )
    axes.set_ylim(-0.3, 1.05)
    axes.set_xticklabels(values.index, rotation=20, ha="right", fontsize=9)
    axes.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
