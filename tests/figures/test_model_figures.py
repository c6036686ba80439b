"""The figures of models draw what they are given: stages, reach, parameters, spreads."""

import numpy as np
import pandas as pd
import pytest

from m5lib.figures import models as model_figures
from m5lib.modalities import MODALITIES
from m5lib.models import zoo

NAMES = list(MODALITIES)


def texts(figure):
    return [text.get_text() for axes in figure.get_axes() for text in axes.texts]


def full(name):
    return zoo.build(name, width=768, layers=6, heads=12)


def test_repeated_stages_are_drawn_once():
    found = model_figures.folded(full("vilbert").stages)
    assert [([stage.kind for stage in part], times) for part, times in found] == [
        (["solo"], 1),
        (["cross", "solo"], 6),
    ]
    assert [times for _, times in model_figures.folded(full("scale").stages)] == [1, 1]
    assert sum(len(part) * times for part, times in found) == len(full("vilbert").stages)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_row_is_drawn_with_its_stages_and_losses(name):
    spec = full(name)
    said = texts(model_figures.stages([{name: spec}]))
    sides = len(spec.takes or NAMES)
    assert sum(text.startswith("joint") for text in said) == sum(
        s.kind == "joint" for s in spec.stages
    )
    if name != "vilbert":
        assert sum(text.startswith("solo") for text in said) == sum(
            len(s.takes(spec.takes or NAMES)) for s in spec.stages if s.kind == "solo"
        )
    assert sum(text in {row.code for row in MODALITIES.values()} for text in said) == sides
    assert any("contrast" in text for text in said) == (spec.objective.contrast != "none")
    assert any("matching" in text for text in said) == bool(spec.objective.matching)


def test_shared_weights_and_the_state_that_losses_read_are_shown():
    said = texts(model_figures.stages([{"released": full("released"), "scale": full("scale")}]))
    assert (
        "solo\n×6\nof T" in said and "solo\n×6\nof I" in said and "contrast\nmasked tasks" in said
    )
    assert said.count("solo\n×6") == 3 + 5 and {"contrast", "masked tasks"} <= set(said)


def test_reach_shows_a_dash_where_nothing_goes():
    reached, moved = np.eye(5, dtype=bool), np.eye(5) + 0.001
    said = texts(
        model_figures.reach({"encoded": (reached, moved), "fused": (reached | True, moved)}, NAMES)
    )
    assert said.count("–") == 20 and said.count("100") == 10 and said.count("0.1") == 20


def test_ledger_names_never_trained_only_where_something_is():
    part = pd.DataFrame({"parameters": [10, 20], "trained": [10, 20]}, index=["words", "joint"])
    (axes,) = model_figures.ledger({"all": part}).axes
    assert axes.get_legend() is None and "30, 100% trained" in axes.get_title()
    (axes,) = model_figures.ledger({"some": part.assign(trained=[10, 5])}).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "trained",
        "never trained",
    ]
    assert "50% trained" in axes.get_title()


def test_shares_tell_zero_from_nothing():
    table = pd.DataFrame({"I": [np.nan, 0.0], "T": [1.04, 57.3]}, index=["MRP", "MLM"])
    figure = model_figures.shares({"scale": table}, "t", "taken away", (1e-3, 30))
    assert texts(figure) == ["", "1", "–", "57"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["MRP", "MLM"]
