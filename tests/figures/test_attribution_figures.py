"""The figures of attributions draw every token that has a score, in its colour."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from m5lib.figures import attribution as figures
from m5lib.figures.style import RIGHT, WRONG
from m5lib.modalities import MODALITIES
from m5lib.streams import word_pieces


def tokens(figure):
    return [
        artist
        for axes in figure.axes
        for artist in axes.get_children()
        if artist.get_gid() == "token"
    ]


def test_a_product_has_a_mark_for_every_token_with_content(stream_set):
    row, stream = 0, stream_set.batch([0]).streams
    scores = {name: np.linspace(-1, 1, s.valid.shape[1]) for name, s in stream.items()}
    told = {"image_box": [0.1, 0.1, 0.5, 0.5], "text_words": [0], "table_pairs": [1]}
    worth = {"image": 1.0, "text": -0.5, "table": 0.2}
    figure = figures.product(stream_set, row, scores, worth, "a title", told)
    pairs, pieces = (
        len(stream_set.catalogue.products[row].contents["table"]),
        int((stream["text"].entity >= 0).sum()),
    )
    assert pairs <= int(figures.PANELS[2][1][3] / figures.LINE)
    assert len(tokens(figure)) == 14 + pieces + 2 * pairs
    said = [text.get_text() for text in figure.texts]
    assert "video: the product has none" in said and any(
        text.startswith("image: ") for text in said
    )


def test_what_a_page_has_no_room_for_is_said():
    scores = np.array([9.0, 0, 8, 0, 0, -1, 2, 0, 0, -7, 1, 1, 0, 0, 0, 0])
    stream = SimpleNamespace(entity=torch.arange(16)[None], tokens=torch.arange(16)[None])
    content = [(f"p{n}", f"v{n}") for n in range(8)]
    given = {"stream": stream, "scores": scores, "told": [], "settings": {}, "step": None}
    figure = plt.figure()
    panel = figures.Panel(figure, (0, 0, 5.0, 1.15), content, tokenizer=None, **given)
    figures._pairs(panel)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["p0", "v0", "p1", "v1", "p4", "v4", "… 5 more"]  # of four lines
    line = [(f"word{n}", 1.0, False) for n in range(80)]
    figures._chips(panel, [line], 1.0)
    words, (axes, more) = tokens(figure)[7:], (figure.axes[1], figure.axes[1].texts[-1])
    assert more.get_text() == "…" and 5 < len(words) < 80
    assert all(text.get_position()[1] <= axes.get_ylim()[0] for text in axes.texts)


def test_a_title_longer_than_the_model_reads_is_drawn(stream_set):
    """What the model reads of it may end in a run of letters that is other pieces when whole."""
    text, tokenizer = " ".join(["shirt" * 22] * 7), stream_set.tokenizer
    made, _ = word_pieces([text], MODALITIES["text"], tokenizer)
    pieces, entity = torch.as_tensor(made.T.copy())
    stream = SimpleNamespace(tokens=pieces[None], entity=entity[None])
    given = {"told": [6], "tokenizer": tokenizer, "settings": {}, "step": None}
    figure = plt.figure()
    scores = np.ones(len(pieces))
    figures._words(figures.Panel(figure, (0, 0, 60.0, 60.0), text, stream, scores, **given))
    assert len(tokens(figure)) == int((entity >= 0).sum()) > 7  # the last word in pieces


def test_colours_have_the_sign_of_the_score():
    assert figures._shade(2.0, 1.0) == figures.SIGNED(1.0) and figures._shade(
        -2.0, 1.0
    ) == figures.SIGNED(0.0)
    assert figures._shade(0.0, 1.0)[:3] == pytest.approx((1, 1, 1), abs=0.01)
    assert np.allclose(
        figures.SIGNED(1.0)[:3], [int(RIGHT[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    )
    assert np.allclose(
        figures.SIGNED(0.0)[:3], [int(WRONG[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    )


def test_overlaps_do_not_add_up():
    boxes = np.array([[0, 0, 1, 1, 1], [0, 0, 0.5, 1, 0.5]])
    heat = figures.spread_out(boxes, np.array([1.0, 4.0]), (4, 4))
    assert np.allclose(heat[:, 2:], 1.0) and np.allclose(heat[:, :2], (1 * 1 + 4 * 2) / 3)
    assert np.allclose(figures.spread_out(boxes, np.ones(2), (6, 6)), 1.0)


def test_photographs_and_film_and_sound(stream_set, tmp_path):
    files = [stream_set.catalogue.products[row].contents["image"] for row in range(3)]
    boxes = stream_set.batch(range(3)).streams["image"].boxes[:, 1:].numpy()
    maps = {"one": np.random.default_rng(0).normal(size=(3, 14)), "other": np.zeros((3, 14))}
    figure = figures.photographs(files, boxes, maps, ["a", "b", "c"], [[0, 0, 1, 1], [], []])
    assert len(figure.axes) == 6 and sum(len(axes.patches) for axes in figure.axes) == 2


def test_curves_draw_each_line():
    rng = np.random.default_rng(0)
    part = {
        side + kind: rng.normal(size=(5, 6))
        for side in ("", "random ")
        for kind in ("deletion", "insertion")
    }
    curves = figures.deletion_insertion(
        {"I": part, "I+T": part}, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "F"
    )
    lines = [line for axes in curves.axes for line in axes.lines]
    assert len(lines) == 8 and np.allclose(
        lines[1].get_ydata(), (part["deletion"] - part["deletion"][:, :1]).mean(0)
    )
