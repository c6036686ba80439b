"""Every row of the zoo: it builds, it is what it says it is, and all of it trains."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, FewWords, make_five_batch
from torch import nn

from m5lib import objectives
from m5lib.lab import runs
from m5lib.masking import mask
from m5lib.modalities import MODALITIES
from m5lib.model import Model
from m5lib.models import anatomy, zoo
from m5lib.models.zoo import MODELS, change
from m5lib.spec import Spec, Stage

WIDTHS = {"image": 12, "video": 10, "audio": 8}


class Tokenizer:
    cls_token_id, sep_token_id = 2, 3

    def __len__(self):
        return 50


STREAMS = SimpleNamespace(
    modalities=tuple(MODALITIES), widths=WIDTHS, classes={}, tokenizer=Tokenizer()
)


def fitted(name: str, streams=STREAMS, changes=(), **settings) -> Spec:
    return change(
        zoo.build(name, **{"width": 32, "layers": 1, "heads": 2} | settings), changes
    ).fit(streams)


def build(spec, spread=0.15) -> Model:
    """Random biases and norms too, so that a missing one shows."""
    torch.manual_seed(0)
    model = Model(spec)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=spread) if parameter.ndim else None
    return model.eval()


def hidden_batch(spec, rate=0.4, seed=0):
    batch, objective = make_five_batch(), spec.objective
    if spec.missing == "impute":
        from m5lib.streams import impute

        batch = impute(batch, spec.empty)
    return mask(
        batch,
        FewWords(),
        torch.Generator().manual_seed(seed),
        rate,
        None,
        objective.tasks(spec.modalities),
    )


def step(model, rate=0.4):
    hidden, targets = hidden_batch(model.spec, rate)
    return objectives.total(model, model(hidden), targets)


PAIR, FIVE = ("image", "text"), tuple(MODALITIES)
TAKES = {
    "scale": FIVE,
    "scale_fused": FIVE,
    "released": FIVE,
    "m5_mmt": FIVE,
    "bert": ("text",),
    "image_based": ("image",),
}
ONE = torch.ones(5, 5, dtype=torch.bool)
#: name -> which modality reads which after the last stage, and before the fusion
REACH = {name: ONE for name in ("scale", "scale_fused", "released", "m5_mmt")} | {
    "clip": torch.eye(2, dtype=torch.bool)
}
TASKS = {
    "scale": 5,
    "scale_fused": 5,
    "released": 5,
    "m5_mmt": 5,
    "clip": 0,
    "bert": 1,
    "image_based": 1,
    "visualbert": 1,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_row_trains_every_parameter_and_reaches_what_it_says(name):
    spec = fitted(name)
    assert spec.modalities == TAKES.get(name, PAIR)
    model = build(spec)
    loss, parts = step(model)
    loss.backward()
    rows = anatomy.ledger(model)
    assert all(row["trained"] == row["parameters"] for row in rows), rows
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in model.parameters())
    assert len([part for part in parts if part.isupper()]) == TASKS.get(name, 2)
    sides = len(spec.modalities)
    declared = REACH.get(name, torch.ones(sides, sides, dtype=torch.bool))
    budget = {5: 231, 2: 73}.get(sides, 36 + (name == "image_based"))
    assert sum(MODALITIES[n].slots for n in spec.modalities) == budget
    assert anatomy.reach(model, make_five_batch()).equal(declared)
    assert anatomy.reach(model, make_five_batch(), "encoded").equal(
        torch.eye(sides, dtype=torch.bool)
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_row_overfits_one_batch(name):
    spec = fitted(name)
    torch.manual_seed(0)
    model, (hidden, targets) = Model(spec), hidden_batch(spec, rate=0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    while len(losses) < 60 and (not losses or losses[-1] >= 0.35 * losses[0]):
        loss, _ = objectives.total(model, model(hidden), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]


@pytest.mark.parametrize("profile", runs.PROFILES)
@pytest.mark.parametrize("name", MODELS)
def test_every_row_builds_at_every_size(name, profile):
    size = runs.profile_of(profile)
    spec = fitted(name, width=size.width, layers=size.layers, heads=size.heads)
    with torch.device("meta"):
        model = Model(spec)
    parameters = sum(p.numel() for p in model.parameters())
    assert spec.width == size.width and parameters > 12 * size.layers * size.width**2
    read = {"vilbert": 3, "capture": 3}.get(
        name, 2
    )  # stages that a title runs through, each ``layers`` deep in all
    depth = sum(stage.layers for stage in spec.stages if "text" in stage.takes(spec.modalities))
    assert (
        depth == (3 * max(1, 2 * size.layers // 3) if name == "capture" else read * size.layers)
        or name == "image_based"
    )


def differences(one: Spec, two: Spec) -> dict:
    flat = [
        spec.to_dict() | {f"objective.{k}": v for k, v in spec.to_dict()["objective"].items()}
        for spec in (one, two)
    ]
    return {
        key: (flat[0][key], flat[1][key])
        for key in flat[0]
        if flat[0][key] != flat[1][key] and key not in ("name", "objective")
    }


def test_scale_fused_is_scale_with_a_loss_on_its_fused_vector():
    scale, fused = fitted("scale"), fitted("scale_fused")
    assert set(differences(scale, fused)) == {"objective.drop", "objective.fused"}
    assert scale.objective.fused == scale.objective.drop == 0 < fused.objective.drop < 1
    assert "fused" in step(build(fused))[1] and "fused" not in step(build(scale))[1]


def test_single_stream_rows_differ_as_their_papers_say():
    uniter, vl_bert, visualbert = (fitted(name) for name in ("uniter", "vl_bert", "visualbert"))
    assert differences(uniter, vl_bert) == {"objective.matching": (("text",), ())}
    assert differences(uniter, visualbert) == {
        "boxes": (True, False),
        "objective.masked": (True, ("text",)),
    }


def test_title_and_table_in_one_encoder():
    """T+Tab: they read each other before the fusion, with one set of weights; the others as
    before."""
    two, one = build(fitted("scale")), build(fitted("scale", text_table="one"))
    expected = torch.eye(5, dtype=torch.bool)
    text, table = FIVE.index("text"), FIVE.index("table")
    expected[text, table] = expected[table, text] = True
    assert anatomy.reach(one, make_five_batch(), "encoded").equal(expected)
    assert anatomy.reach(one, make_five_batch()).all()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (two, one)]
    block = sum(p.numel() for p in two.stages[0].blocks["text"].parameters()) + 64  # and its norm
    assert sizes[0] - sizes[1] == block
    step(one)[0].backward()
    assert all(row["trained"] == row["parameters"] for row in anatomy.ledger(one))
    shared = build(fitted("scale", text_table="shared"))
    assert sum(p.numel() for p in shared.parameters()) == sizes[1] and anatomy.reach(
        shared, make_five_batch(), "encoded"
    ).equal(torch.eye(5) > 0)
    with pytest.raises(ValueError, match="unknown text_table 'three': known are"):
        zoo.scale(text_table="three")


def test_bad_settings_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown model 'scael': known are \['scale', 'released'"):
        zoo.build("scael")
    with pytest.raises(ValueError, match=r"Spec has no field \['misssing'\]: known are"):
        change(zoo.scale(), (("misssing", "impute"),))
    with pytest.raises(ValueError, match=r"Objective has no field \['temprature'\]: known are"):
        change(zoo.scale(), (("objective.temprature", 0.1),))
    with pytest.raises(ValueError, match=r"unknown modality \['titel'\]: known are"):
        change(zoo.scale(), (("objective.masked", ("titel",)),))
    with pytest.raises(ValueError, match=r"unknown modality \['titel'\]: known are"):
        Stage("solo", 1, only=("titel",))
    with pytest.raises(ValueError, match="cannot change 'stages.layers'"):
        change(zoo.scale(), (("stages.layers", 3),))
    with pytest.raises(ValueError, match=r"takes \('text',\); these .* \('image',\)$"):
        fitted(
            "bert",
            SimpleNamespace(
                modalities=("image",), widths=WIDTHS, classes={}, tokenizer=Tokenizer()
            ),
        )
    with pytest.raises(
        ValueError,
        match=r"vl_bert predicts class probabilities of \['image'\], but their extractor gives none",  # noqa: E501
    ):
        fitted("vl_bert", changes=(("objective.classes", ("image",)),))
    with pytest.raises(ValueError, match="empty string: call spec.fit"):
        Model(replace(fitted("scale"), missing="impute", empty=()))
    changed = change(zoo.scale(), (("missing", "impute"), ("objective.contrast", "eq2")))
    assert changed.missing == "impute" and changed.objective == replace(
        zoo.scale().objective, contrast="eq2"
    )


def test_an_unknown_choice_lists_the_known_ones():
    """In a process of its own: the type checks of the tests would speak first."""
    code = """
from m5lib.models import zoo
from m5lib.models.zoo import change
for changes in ({"objective.contrast": "simclr"}, {"objective.harmony_on": ("loss",)}, {"missing": "zeros"}):
    try:
        change(zoo.scale(), changes.items())
    except ValueError as error:
        print(error)
"""  # noqa: E501
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    assert found == [
        "Objective: unknown contrast 'simclr': known are ['infonce', 'eq2', 'released', 'siglip', "
        "'none']",
        "Objective: unknown harmony_on ['loss']: known are ['contrast', 'masked']",
        "Spec: unknown missing 'zeros': known are ['mask', 'impute']",
    ]
