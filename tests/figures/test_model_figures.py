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
    assert said.count("–") == 20 and said.count("100") == 10 and said.count("0.10") == 20


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


def test_removal_tells_zero_from_nothing():
    lines = [("MLM", "image", 2.0, 0.0), ("MRP", "text", 1.0, 0.01)]
    frame = pd.DataFrame(
        [dict(zip(("task", "removed", "loss", "moved"), line, strict=True)) for line in lines]
    )
    figure = model_figures.removal({"scale": frame})
    assert sorted(texts(figure)) == ["", "", "0", "1"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["MRP", "MLM"]


def test_temperatures_say_how_many_pairs_have_none():
    scores = {"released": np.array([0.0, 0.0, 0.5, 1.0]), "scale": np.zeros(3)}
    figure = model_figures.temperatures(scores, {"released": 0.07, "scale": 0.015})
    above, below = figure.axes
    assert "50.0% of the pairs" in above.get_title() and "100.0% of the pairs" in below.get_title()
    assert (
        sum(bar.get_height() for bar in above.patches) == 2
        and sum(bar.get_height() for bar in below.patches) == 0
    )


def test_harmony_toy_and_comparison_draw_everything():
    drawn = model_figures.harmony(
        np.eye(5), {name: np.array([0.5, 0.7, 1.0]) for name in NAMES}, "S"
    )
    assert texts(drawn).count("1.00") == 5 and len(drawn.axes) == 2
    history = pd.DataFrame(
        {"step": [0, 1], "total": [1.0, -1.0], "lowest": [0.0, -0.1], "recall": [0.0, 0.5]}
    )
    drawn = model_figures.toy({"literal": [history, history], "none": [history]})
    assert [len(axes.lines) for axes in drawn.axes] == [4, 4, 3]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["literal", "none"]
    values = pd.DataFrame(
        [[0.1, 0.3, 0.4, 0.6]],
        index=["layered"],
        columns=pd.MultiIndex.from_product([("released", "scale"), (0, 1)]),
    )
    axes = model_figures.against(values, "mAP@10", "title").axes[0]
    assert texts(axes.figure) == ["0.200", "0.500"] and [
        bar.get_width() for bar in axes.patches
    ] == pytest.approx([0.2, 0.5])
    assert model_figures.against(
        values.xs(0, axis=1, level=1, drop_level=False), "mAP@10", "one seed"
    ).axes
