"""The figures of tokens and masks draw what the masks say."""

import numpy as np
import torch

from m5lib import masking
from m5lib.figures import tokens as token_figures
from m5lib.models.words import word_numbers


def marks(figure):
    """Marks of hidden tokens, legends left out."""
    return sum(
        artist.get_gid() == "hidden" for axes in figure.axes for artist in axes.get_children()
    )


def test_fates_of_pieces():
    pieces = token_figures.fates(
        "abcde", ["a", "[M]", "x", "d", "e"], [0, 1, 1, 1, 0], [-1, 0, 0, 1, 1], "[M]"
    )
    assert pieces.fate == ["special", "masked", "random", "kept", "seen"] and pieces.read[2] == "x"


def test_words_and_tables_mark_each_hidden_piece():
    before, entity = ["[CLS]", "red", "mug", "[SEP]"], [-1, 0, 1, -1]
    draws = [
        token_figures.fates(before, ["[CLS]", "[M]", "mug", "[SEP]"], [0, 1, 0, 0], entity, "[M]"),
        token_figures.fates(before, ["[CLS]", "blue", "mug", "[SEP]"], [0, 1, 1, 0], entity, "[M]"),
    ]
    assert marks(token_figures.words(before, draws, [False, False, True, False])) == 3
    assert (
        marks(
            token_figures.tables(
                entity, {"MEM": (before, draws[0]), "MLM": (before, draws[1])}, [0]
            )
        )
        == 3
    )


def test_regions_frames_and_sound_mark_each_hidden_token():
    picture = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5]])
    hidden = np.array([False, True, True])
    one, none = (
        token_figures.regions(picture, boxes, where, [1, 2]) for where in (hidden, ~hidden & False)
    )
    assert marks(one) % 2 == 0 and marks(one) >= 2 and marks(none) == 0
    frames = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    assert marks(token_figures.film(frames, np.array([0.5, 1.5, 2.5]), hidden)) >= 2
    figure = token_figures.spectrogram(
        np.zeros((30, 8)), 0.016, np.zeros((3, 4)), 0.16, hidden, [(0.0, 0.3)]
    )
    assert marks(figure) == hidden.sum()


def test_hidden_says_what_was_chosen(stream_set):
    batch = stream_set.batch(np.arange(200))
    generator = torch.Generator().manual_seed(0)
    _, targets = masking.mask(batch, stream_set.tokenizer, generator, 0.15)
    for name, where in masking.hidden(batch, targets).items():
        assert (
            int(where.sum()) == len(targets[name].product)
            and not (where & ~batch.streams[name].valid).any()
        )


def test_word_numbers_follow_the_spaces(stream_set):
    text = "non-slip garden clog"
    numbers = word_numbers(text, stream_set.tokenizer)
    pieces = stream_set.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (
        len(numbers) == len(pieces)
        and numbers[0] == 0
        and numbers[-1] == 2
        and (np.diff(numbers) >= 0).all()
    )
