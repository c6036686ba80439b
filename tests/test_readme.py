"""The generated tables of README and docs say what was recorded."""

import importlib.util

import pandas as pd
import pytest
import readme
from conftest import ROOT

from m5lib.embeddings import DEFAULT
from m5lib.lab import recording, study

CONTEXT = {
    **{"notebook": "n", "run": "r", "data": "shop", "profile": "tiny"},
    **{"model": "scale", "modalities": "T"},
}


def test_what_each_loss_teaches_stands_in_its_own_row(tmp_path):
    labels = ("IMCL+PRE", "contrast only", "no loss", "masked tasks only")
    shown = ("both", "contrast", "nothing (random weights)", "masked tasks")
    rows = []
    for place, label in enumerate(labels):
        for seed in (0, 1):
            for more, column in ((0.0, "mAP@10_pretrain"), (0.5, "mAP@10_finetune")):
                row = CONTEXT | study.number(column) | {"model": f"scale, {label}", "seed": seed}
                rows.append(row | {"value": 0.1 * place + 0.01 * seed + more})
    path = recording.save_results(tmp_path / "s.json", rows, recording.provenance("tiny", 0, 1.0))
    table = readme.losses({"shop": path})
    for place, name in enumerate(shown):
        before, after = table.loc[name]
        assert (
            before == f"{10 * place + 0.5:.1f} ± 0.7" and after == f"{10 * place + 50.5:.1f} ± 0.7"
        )
    assert list(table.columns) == ["shop: mAP@10, fused_first", "shop: mAP@10, fine-tuned"]


def test_attributions_table_says_what_was_measured(tmp_path):
    pointing = pd.DataFrame(
        [("image", "IG", 0.7, 0.4), ("image", "random", 0.41, 0.4), ("text", "IG", 0.9, 0.2)],
        columns=["modality", "method", "hits", "chance"],
    )
    pointing.to_csv(tmp_path / "attribution_pointing.csv", index=False)
    areas = pd.DataFrame(
        [("I", "deletion", 1.27, 1.02, 1.56), ("I", "insertion", 0.95, 0.78, 1.14)],
        columns=["tokens of", "curve", "gain", "low", "high"],
    )
    areas.to_csv(tmp_path / "attribution_areas.csv", index=False)
    table = readme.attributed(tmp_path / "attribution.json")
    assert (
        table.loc["image", "IG points at it"] == "0.70" and table.loc["image", "chance"] == "0.40"
    )
    assert table.loc["text", "IG points at it"] == "0.90"
    assert table.loc["image", "deletion gain"] == "1.27 [1.02, 1.56]"
    assert table.loc["image", "insertion gain"] == "0.95 [0.78, 1.14]"


def test_compact_and_ladder_tables(tmp_path):
    base = {
        "notebook": "05_downstream",
        "run": "r",
        "data": "d",
        "profile": "tiny",
        "model": "scale",
        "task": "retrieval",
        "metric": "mAP@10",
    }
    rows = []
    for seed in (0, 1):
        for state in ("untrained", "pretrained"):
            for number, variant in enumerate(("fused_first", DEFAULT, "encoded_first")):
                for convention in ("min_k_r", "min_k_r, validation queries"):
                    value = 0.1 * (state == "pretrained") + 0.2 * number + 0.01 * seed
                    rows.append(
                        base
                        | {
                            "seed": seed,
                            "state": state,
                            "modalities": "I+T",
                            "variant": variant,
                            "convention": convention,
                            "value": value,
                        }
                    )
    control = base | {
        "seed": 0,
        "state": "control",
        "modalities": "T",
        "variant": "tfidf",
        "convention": "min_k_r",
        "value": 0.3,
    }
    made = recording.provenance("tiny", 0, 1.0)
    fine = [
        row | {"task": "fine retrieval", "value": 0.99} for row in rows
    ]  # the same metrics of another task
    path = recording.save_results(tmp_path / "x.json", [*rows, control, *fine], made)
    wide = recording.headline(path)
    assert wide.loc[("pretrained", "scale", "I+T", DEFAULT), "mAP@10"] == pytest.approx(0.305)
    frame = recording.load_results(path)
    assert recording.compare(frame, "mAP@10", "min_k_r", DEFAULT).loc[
        "I+T", "pretrained"
    ] == pytest.approx(0.305)
    table = readme.compact(path)
    assert readme.chosen(pd.DataFrame(rows)) == "encoded_first"
    assert table.loc["I+T", "pretrained, encoded_first"] == pytest.approx(0.505) and table.loc[
        "T", "best control"
    ] == pytest.approx(0.3)
    tuned = [
        row | {"variant": "hidden", "state": "finetuned"}
        for row in rows
        if row["state"] == "pretrained" and row["variant"] == DEFAULT
    ]
    tuned = [row for row in tuned if row["convention"] == "min_k_r"]
    tuned += [
        row | {"task": "classification", "metric": "accuracy", "convention": "fine-tuned head"}
        for row in tuned
    ]
    path = recording.save_results(
        tmp_path / "y.json", [r for r in rows + fine if r["state"] == "pretrained"] + tuned, made
    )
    steps = readme.ladder(path)
    assert (
        steps.loc["I+T", "mAP@10, encoded_first"] == "50.5 ± 0.7"
        and steps.loc["I+T", "accuracy, fine-tuned"] == "30.5 ± 0.7"
    )
    assert "profile `tiny`, seeds 0, 1, commit" in readme.made_by(path, "05_downstream")


def test_the_table_of_fused_vectors_takes_what_validation_products_choose():
    path = ROOT / "benchmarks" / "fused.py"
    spec = importlib.util.spec_from_file_location("fused", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    base = {"task": "retrieval", "metric": "mAP@10", "state": "pretrained"}
    conventions = (recording.VALIDATION, "min_k_r")
    values = {  # form, read-out, given: validation, query; a deviation of 0.1 between two seeds
        ("scale_fused", "encoded_first", "I+T"): (0.5, 0.2),
        ("scale_fused", "whitened", "I+T"): (0.4, 0.9),
        ("scale_fused", "fused_first", "I+T"): (0.6, 0.3),
        ("scale_fused", "encoded_first", "T"): (0.1, 0.1),
        ("tfidf", "tfidf", "T"): (0.3, 0.3),
        ("svd+pca", "svd+pca", "I+T"): (0.2, 0.8),
    }
    rows = [
        base
        | {"model": form, "variant": readout, "modalities": given, "seed": seed}
        | {"convention": convention, "value": value + 0.1 * seed}
        | ({"state": "control"} if form == readout else {})
        for (form, readout, given), pair in values.items()
        for convention, value in zip(conventions, pair, strict=True)
        for seed in (0, 1)
    ]
    table = script.table(pd.DataFrame(rows))
    assert list(table.columns) == ["T", "I+T"]
    assert table.loc["scale_fused, before the fusion", "I+T"] == "0.550 ± 0.071 / 0.250 ± 0.071"
    assert table.loc["scale_fused, fused vector", "I+T"].startswith("0.650 ± 0.071 / 0.350")
    assert table.loc["best control", "I+T"].startswith("0.350")  # not what queries would choose
    assert table.loc["scale_fused, fused vector", "T"] == ""
