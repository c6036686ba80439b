"""Studies, the tables made of them, and the verdicts on the paper's claims."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from m5lib import home
from m5lib.embeddings import PAPER, READOUTS
from m5lib.evaluation import evaluate
from m5lib.lab import claims, recording, runs, study, summary, tables


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M5_HOME", str(tmp_path_factory.mktemp("home")))
        grid = {
            "I+T": {"modalities": "I+T", "epochs": 0.5},
            "random": {"modalities": "I+T", "products": "none"},
            "A": {"modalities": "A"},
        }
        yield study.studies(grid, str(folder), "tiny", [0], "t")


def fake(seed: int, better: float, queries: int = 200) -> study.Study:
    """A study of which every query has one number: ``better`` more than chance."""
    rng = np.random.default_rng(seed)
    values = rng.random(queries) * 0.2 + better
    wanted = [study.number(name) for name in ("mAP@1_finetune", "mAP@1_pretrain", "accuracy")]
    each = pd.DataFrame({"id": [str(n) for n in range(queries)], "value": values})
    frame = pd.concat([each.assign(**vars(w)) for w in wanted], ignore_index=True)
    rows = [vars(w) | {"value": float(values.mean())} for w in wanted]
    rows.append(vars(study.number("NMI")) | {"convention": "k=3", "value": better})
    return study.Study(f"run{seed}", f"data{seed % 10}", rows, frame[list(study.COLUMNS)], [], 1)


def test_a_study_is_whole_and_its_numbers_are_the_means_of_its_queries(found):
    assert set(found) == {("I+T", 0), ("random", 0)}  # the products have no sound
    one = found["I+T", 0]
    frame = pd.DataFrame(one.rows)
    assert set(frame.columns) == set(recording.COLUMNS) and set(frame["state"]) == {
        "pretrained",
        "finetuned",
    }
    assert set(frame[frame["state"] == "pretrained"]["variant"]) == set(READOUTS)
    for name in (
        "accuracy",
        "mAP@1_pretrain",
        "mAP@10_finetune",
        "Prec@10_pretrain",
        "mean cosine",
    ):
        wanted = study.number(name)
        assert one.value(wanted) == pytest.approx(one.values(wanted).mean())
    assert (
        np.isnan(one.value(study.number("mAP@1_fine")))
        and 0 <= one.value(study.number("NMI")) <= 1
        and len(one.history)
        and one.parameters > 1000
    )
    assert (
        found["random", 0].history == [] and found["random", 0].rows[0]["model"] == "scale, random"
    )
    assert one.rows[0]["model"] == "scale"


def test_a_study_is_made_once(found, folder, monkeypatch):
    monkeypatch.setattr(study, "_measure", None)
    monkeypatch.setenv("M5_HOME", str(home()))
    again = study.studies(
        {"I+T": {"modalities": "I+T", "epochs": 0.5}}, str(folder), "tiny", [0], "t"
    )
    assert again["I+T", 0].rows == found["I+T", 0].rows


def test_numbers_of_the_papers_columns():
    assert study.number("mAP@5_pretrain") == study.Number(
        "pretrained", PAPER, "retrieval", "mAP@5", "min_k_r"
    )
    assert study.number("Prec@10_fine") == study.Number(
        "finetuned", study.HIDDEN, "fine retrieval", "Prec@10", "k"
    )
    assert (
        study.number("mAP@1", "pretrained").state == "pretrained"
        and study.number("mAP@1_finetune").state == "finetuned"
    )
    with pytest.raises(ValueError, match="no table"):
        study.number("F1")


def test_every_claim_is_one_of_our_numbers_or_said_not_to_be():
    for claim in claims.load().itertuples(index=False):
        if claim.id in claims.NOT_TESTABLE:
            continue
        for side in (claim.better, claim.worse):
            label, wanted = claims._side(claim, side)
            assert label and isinstance(wanted, study.Number), claim.id


@pytest.mark.parametrize(
    "gap, expected", [(0.1, "confirmed"), (0.0, "not confirmed"), (-0.1, "contradicted")]
)
def test_verdicts_follow_the_interval(gap, expected):
    two = {
        (label, seed): fake(seed + 10 * n, 0.3 + gap * (1 - n))
        for n, label in enumerate(("MEM", "MLM"))
        for seed in range(3)
    }
    row = next(
        row for row in claims.judge(two, ["Table 7"], "shop", "n") if row["metric"] == "mAP@1"
    )
    assert row["verdict"] == expected and len(row["each_seed"]) == 3
    assert (
        row["difference"] == pytest.approx(gap, abs=0.02)
        and row["low"] <= row["difference"] <= row["high"]
    )


def test_what_was_not_run_is_not_testable():
    rows = claims.judge({("T", 0): fake(0, 0.3)}, ["Table 3"], "shop", "n")
    assert {row["verdict"] for row in rows if "finetuned" not in row["better"]} == {"not testable"}
    assert "I+T" in rows[0]["reason"]


def test_what_these_products_cannot_show_is_not_testable(found):
    both = found | {
        ("T", 0): found["I+T", 0],
        ("I+T+Tab+V+A", 0): found["I+T", 0],
        ("I+A", 0): found["I+T", 0],
        ("I+V", 0): found["I+T", 0],
    }
    verdicts = {row["id"]: row for row in claims.judge(both, ["Table 4"], "d", "n")}
    assert (
        verdicts["C20"]["verdict"] == "not testable" and "products" in verdicts["C20"]["reason"]
    )  # mAP@1_fine
    assert verdicts["C18"]["verdict"] == "not confirmed" and verdicts["C18"]["difference"] == 0


def test_verdicts_of_other_products_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("M5_RESULTS", str(tmp_path))
    two = {
        (label, seed): fake(seed + 10 * n, 0.3)
        for n, label in enumerate(("MEM", "MLM"))
        for seed in range(2)
    }
    for data in ("shop", "fashion", "shop"):
        claims.record("r", claims.judge(two, ["Table 7"], data, "n"), {"commit": data})
    kept = json.loads((tmp_path / "claims.json").read_text())
    assert (
        len(kept["claims"]) == len({(row["id"], row["data"]) for row in kept["claims"]}) == 4
        and len(kept["provenance"]) == 2
    )
    assert claims.record("", [], {}) is None
    counts = summary.claims(tmp_path / "claims.json")
    assert list(counts.columns) == list(claims.VERDICTS) and counts.to_numpy().sum() == 4
    assert (
        counts.loc[("shop", "Table 7"), "not confirmed"] == 2
        and summary.contradicted(tmp_path / "claims.json") == []
    )


def test_tables_beside_the_papers(found):
    paper = tables.published("table3_modality_addition", "modalities", data="subset").rename(
        tables.ordered_codes
    )
    table = tables.beside(found, paper, ["accuracy", "mAP@1_pretrain"])
    assert (
        table.loc["I+T", ("accuracy", "paper")] == "79.6"
        and table.loc["random", ("accuracy", "paper")] == ""
    )
    assert float(table.loc["I+T", ("accuracy", "ours")]) == pytest.approx(
        100 * found["I+T", 0].value(study.number("accuracy")), abs=0.051
    )
    assert list(tables.readouts(found).columns) == list(READOUTS)
    both = tables.differences(found, [("I+T", "random")], ["accuracy", "mAP@1_pretrain"])
    expected = found["I+T", 0].value(study.number("accuracy")) - found["random", 0].value(
        study.number("accuracy")
    )
    assert both["mean"].iloc[0] == pytest.approx(100 * expected)
    assert tables.said(pd.DataFrame({0: [0.1], 1: [0.3]}))[0] == "20.0 ± 14.1"


def test_only_complete_products_the_same_number_of_steps(stream_set):
    whole, part = (runs.Job(profile="tiny", products=products) for products in ("all", "complete"))
    assert (
        set(part.rows(stream_set)) <= set(whole.rows(stream_set))
        and evaluate.needed_rows(stream_set.catalogue).size
    )
    assert part.training(stream_set).total_steps(len(part.rows(stream_set))) == whole.training(
        stream_set
    ).total_steps(len(whole.rows(stream_set)))


def test_a_grid_leaves_out_what_the_products_cannot_tell(stream_set, capsys):
    size, catalogue, features = study.sized("tiny"), stream_set.catalogue, stream_set.features
    grid = {
        "all": {},
        "complete": {"products": "complete"},
        "zeros": {"changes": (("missing", "impute"),)},
        "T": {"modalities": "T"},
        "A": {"modalities": "A"},
    }
    found = study.jobs(grid, catalogue, features, size, 3)  # none lacks anything
    assert (
        list(found) == ["all", "T"]
        and found["T"][1].modalities == ("text",)
        and found["T"][0].seed == 3
    )
    assert "complete: left out, no product of" in capsys.readouterr().out
    with pytest.raises(ValueError, match="typo: a job has no .*modality"):
        study.jobs({"typo": {"modality": "T"}}, catalogue, features, size, 0)
    first, *others = catalogue.products
    bare = replace(
        first,
        contents={name: content for name, content in first.contents.items() if name != "text"},
    )
    lacking = replace(catalogue, products=(bare, *others))
    assert list(study.jobs(grid, lacking, features, size, 0)) == ["all", "complete", "zeros", "T"]
