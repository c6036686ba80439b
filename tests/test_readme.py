"""The generated tables of README and docs say what was recorded."""

import ast
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import findings
import intervals
import numpy as np
import pandas as pd
import pytest
import readme
import scipy.stats
from conftest import ROOT, script_of

from m5lib.data import write_json
from m5lib.embeddings import DEFAULT
from m5lib.evaluation import stats
from m5lib.lab import claims, recording, study

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
    script = script_of("fused")
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


def test_no_number_in_the_findings_was_typed():
    """Digits stand in the page's written words only as names: of tables, metrics, notebooks."""
    names = r"mAP@10|Table 6|Figure 5|notebook \d\d|95 %|\(\\d\+\)"
    texts = [
        node.value
        for node in ast.walk(ast.parse((ROOT / "docs" / "findings.py").read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]
    assert len(texts) > 80
    assert not [text for text in texts if re.search(r"\d", re.sub(names, "", text))]


@pytest.fixture
def recorded(tmp_path):
    """A copy of the recorded results, to change."""
    (tmp_path / "results").mkdir()
    for kind in ("*.json", "*_best.csv", "baselines*_table5.csv", "baselines*_queries.parquet"):
        for path in (ROOT / "results").glob(kind):
            shutil.copy(path, tmp_path / "results")
    return tmp_path / "results"


def test_findings_follow_what_was_recorded(recorded):
    """Verdicts in sentences turn where the numbers do."""
    (recorded.parent / "benchmarks").mkdir()
    for path in (ROOT / "benchmarks").glob("*.json"):
        shutil.copy(path, recorded.parent / "benchmarks")
    before = findings.page(recorded, readme.markdown)
    assert before == findings.page(ROOT / "results", readme.markdown)
    rows, path = recording.load_results(recorded / "simcl.json"), recorded / "simcl.json"
    none = rows["model"] == "scale, none"
    rows.loc[none, "value"] -= 0.5 + 0.001 * rows.loc[none, "seed"]
    recording.save_results(path, rows, recording.read_results(path)["provenance"]["09_simcl"])
    text, table = findings.scores(recorded)
    none = table[(table["second"] == "no scores") & (table["data"] == "the shop")]
    assert list(none["the first is"]) == ["ahead", "ahead"] and "ahead in 2" in text[0]
    frame = claims.judged(recorded / "claims.json")
    for said, (_, part) in zip(findings.held(recorded)[0], frame.groupby("data"), strict=False):
        part = part[part["verdict"] != "not testable"]
        fair = part[~part["calibrated"] & ~part["unaffordable"]]
        every, left = (100 * (own["verdict"] == "undecided").mean() for own in (part, fair))
        assert f"{every:.0f} % of all, and {left:.0f} % of the {len(fair)} that" in said
    best = recorded / "baselines_fashion_best.csv"
    best.write_text(re.sub("confirmed|undecided", "contradicted", best.read_text()))
    text, table = findings.best(recorded)
    (real,) = (line for line in text if line.startswith("On the real products"))
    assert "behind in 0" not in real and "behind" in set(table["the first is"])
    (against,) = (line for line in text if line.startswith("By the paper's own") and "shop" in line)
    asked = intervals.read_asked(recorded / "baselines_queries.parquet", {"SCALE"})
    wanted = study.number("mAP@10_pretrain")
    mean = np.mean([100 * one.value(wanted) for one in asked.values()])
    assert f"mAP@10 of {mean:.1f} on the shop, the control" in against and "-16.6 [" in against
    content = recording.read_results(recorded / "claims.json", "claims")
    for row in content["claims"]:
        if row["verdict"] != "not testable":
            row |= {"low": -0.2, "high": -0.1, "p": 1e-6, "verdict": "contradicted"}
    write_json(recorded / "claims.json", content)
    (said, _), (_, against) = findings.held(recorded), findings.failed(recorded)
    tested = sum(row["verdict"] != "not testable" for row in content["claims"])
    assert "0 are confirmed" in said[0] and len(against) == tested
    known = pd.read_csv(claims.CLAIMS, index_col="id", keep_default_na=False)
    for text, data in zip(said[:2], ("fashion", "shop"), strict=True):
        own = [known.loc[r["id"]] for r in content["claims"]
               if r["data"] == data and r["verdict"] != "not testable"]  # fmt: skip
        fair = [k for k in own if k["calibrated"] != data and data not in k["unaffordable"]]
        assert not any(k["source"].startswith(("Table 6", "Table 8")) for k in fair)
        assert f" 0 % of all, and 0 % of the {len(fair)} that" in text and len(fair) < len(own)
    assert findings.page(recorded, readme.markdown) != before


def test_the_safe_readout_is_that_of_the_least_loss_not_of_the_best_mean(tmp_path):
    """``encoded_first`` gives most of picture and title, and next to nothing with the table."""
    seen = {("I+T", "encoded_first"): 0.9, ("I+T+Tab", "encoded_first"): 0.1}
    seen |= {("I+T", DEFAULT): 0.4, ("I+T+Tab", DEFAULT): 0.4, ("I+T", "a, b"): 1.0}
    shared = {"task": "retrieval", "metric": "mAP@10", "convention": recording.VALIDATION}
    rows = [
        CONTEXT | shared | {"seed": 0, "state": state, "modalities": given, "variant": variant}
        | {"model": model, "value": value - 0.01 * (model == "other") + (state == "untrained")}
        for (given, variant), value in seen.items()
        for model in ("plain", "other") for state in ("pretrained", "untrained")
    ]  # fmt: skip
    recording.save_results(tmp_path / "weights.json", rows, {})
    text, table = findings.take(tmp_path)
    assert text[0].startswith(
        "Given picture and title, best: *plain* read as `encoded_first` (90.0 %; by the default "
        f"`{DEFAULT}` 40.0 %). Given the table too, best: *plain* read as `{DEFAULT}` (40.0 %)."
    )
    assert text[0].endswith(f"is `{DEFAULT}`, the default, by which the library searches.")
    assert list(table.columns) == ["given", "model", "encoded_first", DEFAULT] and len(table) == 4


def test_of_products_without_labels_the_pages_say_that_nothing_was_measured(tmp_path):
    """``make demo`` leaves notebook 05 out there; what validation products choose is the default
    read-out where nothing was chosen, and is chosen among trained models."""
    row = CONTEXT | {"notebook": "01_explore", "seed": 0, "state": "control", "variant": "v"}
    row |= {"task": "t", "metric": "m", "convention": "", "value": 0.5}
    made = recording.provenance("tiny", 0, 1.0)
    recording.save_results(tmp_path / "demo.json", [row], made)
    said = readme.blocks(tmp_path)["demo"]
    assert said == "`results/demo.json` holds nothing of `05_downstream`."
    assert readme.chosen(recording.load_results(tmp_path / "demo.json")) == DEFAULT
    seen = {("pretrained", "a"): 0.4, ("pretrained", "b"): 0.3, ("untrained", "b"): 0.9}
    rows = [
        row | {"state": state, "variant": variant, "value": value}
        | {"convention": recording.VALIDATION} for (state, variant), value in seen.items()
    ]  # fmt: skip
    assert readme.chosen(pd.DataFrame(rows)) == "a"


def test_a_bert_start_is_told_of_models_that_have_both_starts(tmp_path):
    """Each model against itself, and SCALE against the others within a start; seed by seed."""
    level = {("SCALE", "random"): 0.5, ("SCALE", "MiniLM"): 0.7, ("CLIP", "random"): 0.4}
    level |= {("CLIP", "MiniLM"): 0.8, ("UNITER", "random"): 0.1}
    rows = [
        {"data": "fashion", "profile": "small", "steps": 7, "training": 9, "model": model}
        | {"start": start, "seed": seed, f"mAP@10, {DEFAULT}": value + 0.001 * n * seed}
        | {"mAP@10, fused_first": value - 0.001 * seed * (start == "MiniLM")}
        for n, ((model, start), value) in enumerate(level.items()) for seed in (2, 0, 1)
    ]  # fmt: skip
    results = tmp_path / "results"
    write_json(tmp_path / "benchmarks" / "starts.json", {"rows": rows})
    text, table = findings.starts(results)
    assert text[0].startswith(f"By `{DEFAULT}`: titles from MiniLM against random weights, of each")
    assert "of each model: of 2 comparisons it is ahead in 2, behind in 0," in text[0]
    assert "all from random weights: of 1 comparisons it is ahead in 1," in text[0]
    assert "All from MiniLM: of 1 comparisons it is ahead in 0, behind in 1," in text[0]
    assert "9 training products, profile `small`, 7 steps each, 3 seeds," in text[2]
    assert len(table) == 8 and not table["first"].str.contains("UNITER").any()
    line = table[(table["first"] == "SCALE, MiniLM, `fused_first`") & (table["second"] == "CLIP")]
    assert line[["of the first", "of the second"]].to_numpy().tolist() == [["69.9", "79.9"]]
    line = table[table["first"] == "CLIP, MiniLM, `fused_first`"].iloc[0]
    assert (line["of the first"], line["of the second"]) == ("79.9", "40.0")
    assert line["difference"] == findings.interval(0.399, 0.399 - 0.0024841, 0.399 + 0.0024841)
    write_json(tmp_path / "benchmarks" / "starts.json", {"rows": rows[6:]})  # without SCALE's first
    assert len(findings.starts(results)[1]) == 2


def test_of_which_code_the_results_are(tmp_path):
    for name, code in (("demo", "new"), ("model", "new"), ("weights", "old")):
        content = {"provenance": {"n": {"code": code}}, "measured": []}
        write_json(tmp_path / f"{name}.json", content)
    write_json(tmp_path / "times.json", {})
    assert readme.versions(tmp_path) == (
        "Of 3 files each is of the code `new`, but for `weights` (old)."
    )
    (tmp_path / "weights.json").unlink()
    assert readme.versions(tmp_path) == "Of 2 files each is of the code `new`."


def test_seeds_of_a_table_are_those_of_its_claims(recorded):
    content = recording.read_results(recorded / "claims.json", "claims")
    eighth = [r for r in content["claims"] if r["source"] == "Table 8" and r["data"] == "shop"]
    eighth[0]["each_seed"], eighth[1]["each_seed"] = [0.1] * 7, [0.1] * 11
    write_json(recorded / "claims.json", content)
    page = readme.counted(recorded / "claims.json")
    (line,) = re.findall(r"^\| shop \| Table 8 \| (.*?) \|", page, re.M)
    assert line == "7 or 11"
    (line,) = re.findall(r"^\| fashion \| Table 10 \| (.*?) ?\|", page, re.M)
    assert line == ""  # not tested


def test_findings_say_what_is_not_recorded_and_what_is(recorded):
    parts = {"converge": findings.converged, "more": findings.more, "nothing": findings.nothing}
    for script, part in parts.items():
        text, table = part(recorded)
        assert text == [f"Not recorded yet: `python benchmarks/{script}.py`."] and table.empty
    folder = recorded.parent / "benchmarks"
    ends = [
        {"data": "shop", "profile": "tiny", "training": 90, "seed": 0, "model": "scale",
         "epochs": n, "steps": 10 * n, "gained": gained, "accuracy": 0.5, "weighted": 0.25,
         "converged": gained < 0.01}
        for n, gained in ((5, 0.03), (10, 0.009), (20, 0.001))
    ]  # fmt: skip
    ends += [ends[0] | {"model": "clip"}, ends[1] | {"model": "bert"}]
    ends += [ends[2] | {"model": "bert", "weighted": 0.27}]  # better by more than a point
    write_json(folder / "converge.json", {"curves": [], "ends": ends})
    text, _ = findings.converged(recorded)
    assert text == [
        "The shop, tiny, 90 training products, scale, seed 0: 10 epochs (100 steps) are enough.",
        "The shop, tiny, 90 training products, clip, seed 0: no length that was tried is enough.",
        "The shop, tiny, 90 training products, bert, seed 0: 20 epochs (200 steps) are enough.",
        "One seed each: differences of a few points mean nothing.",
        "![How quality grows](../benchmarks/converge_shop.png)",
    ]
    rows = [
        {"data": "shop", "listings": 2000, "training": n, "seed": seed, "queries": 90}
        | {"profile": "tiny"}
        | {"weighted": value + by * seed, "fused_first": 0.3, "accuracy": 0.5, "steps": 15}
        for n, value, by in ((250, 0.4, 0.01), (500, 0.5, 0.01), (1000, 0.55, 0.012))
        for seed in (0, 1)
    ]  # fmt: skip
    begun = [rows[0] | {"seed": 2, "weighted": 0.9}]  # a seed that was interrupted
    other = [row | {"listings": 4000, "queries": 180, "weighted": 0.1} for row in rows]
    first = [row | {"listings": 9, "profile": p} for row in rows[:2] for p in ("tiny", "small")]
    write_json(folder / "more.json", {"rows": rows + begun + other + first})  # one number so far
    text, table = findings.more(recorded)
    assert text[0] == (
        "On the shop (2000 in all, 90 queries, profile tiny, 15 steps each, seeds: 2), 1000 "
        "training products bring, in points of mAP@10 by `weighted`: instead of 250 +15.1 "
        "[+13.8, +16.4], instead of 500 +5.1 [+3.8, +6.4]."
    )
    assert text[1].startswith("On the shop (4000 in all, 180 queries,")
    assert text[3:] == ["![How quality grows with training products](../benchmarks/more.png)"]
    near = [row for row in rows if row["training"] > 250]  # none has half as many
    near = [row | {"training": {500: 800}.get(row["training"], 1000)} for row in near]
    write_json(folder / "more.json", {"rows": near})
    text, _ = findings.more(recorded)
    assert text[0].endswith("by `weighted`: instead of 800 +5.1 [+3.8, +6.4].")  # said once
    of = table[table["listings"] == 2000]
    assert list(of["weighted"]) == ["40.5 ± 0.7", "50.5 ± 0.7", "55.6 ± 0.8"]
    assert list(of["seeds"]) == [2, 2, 2] and list(of["training"]) == [250, 500, 1000]
    write_json(folder / "more.json", {"rows": [rows[0], rows[3]]})
    text, table = findings.more(recorded)
    assert text == ["No seed has been run with every number of products yet."] and table.empty
    again = {"verdicts": 300, "decided": 12}
    known = {"seeds": 12, "data": "d", "training": 9, "queries": 8, "verdicts": 12, "decided": 1}
    write_json(folder / "nothing.json", known | {"put together anew": again})
    said = findings.nothing(recorded)[0][0]
    assert "In 1 of 12 comparisons one side" in said and said.endswith(
        "in 12 of 300 with other groups of the same seeds, where chance would give 15 (they share "
        "trainings)."
    )
    rows = [{"numbers": 100, "same": same, "most": 1 - same / 100} for same in (100, 98)]
    write_json(folder / "again.json", {"rows": rows})
    text, table = findings.again(recorded)
    assert text[0] == (
        "2 runs of an earlier recording were made again, on another machine and by a later version "
        "of the code. Of their 200 numbers 198 are the same to the last digit, the others differ "
        "by 2.00 points at most. A training on titles alone can differ by far more (`LOG.md`)."
    )
    assert len(text) == 2
    assert list(table["most"]) == pytest.approx([0, 2])
    write_json(folder / "again.json", {"rows": rows[:1]})
    (text,) = findings.again(recorded)[0]
    assert "100 numbers 100 are the same to the last digit. A training" in text


def test_a_run_made_again_is_compared_number_by_number(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    compared = script_of("again").compared
    keys = pd.DataFrame({"state": ["pretrained", "pretrained", "finetuned"]}).assign(
        variant="v", task="retrieval", metric=["mAP@1", "mAP@10", "mAP@1"], convention="k"
    )
    recorded, made = keys.assign(value=[0.1, 0.2, 0.3]), keys.assign(value=[0.1, 0.25, 0.3])
    shuffled = made[::-1]  # by name, not by place
    found = compared(recorded, shuffled)
    assert found == {"numbers": 3, "same": 2, "most": pytest.approx(0.05)}
    assert compared(recorded, made[:1]) == {"numbers": 1, "same": 1, "most": 0.0}
    with pytest.raises(ValueError, match="no number is in both"):
        compared(recorded, made.assign(variant="other"))
    with pytest.raises(ValueError, match="unique"):
        compared(pd.concat([recorded, recorded]), made)


def test_rows_with_settings_of_their_own_are_not_made_again(monkeypatch, capsys):
    """Table 5 with ``fair``: the profile's settings would be compared with the chosen ones."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = script_of("again")
    monkeypatch.setattr("sys.argv", ["again.py", "baselines_fashion", "CAPTURE"])
    monkeypatch.setattr(script.runs, "load", lambda *given: pytest.fail("nothing is loaded"))
    with pytest.raises(SystemExit):
        script.main()
    assert "settings of their own" in capsys.readouterr().err


def test_the_best_control_is_that_of_validation_products_and_reads_no_more():
    """Not what queries would choose, nor one that is given more."""
    seen = {("tfidf", "T"): 0.3, ("svd+pca", "I+T"): 0.5, ("with table", "T+Tab"): 0.9}
    rows = [
        {"model": model, "modalities": reads, "state": "control", "task": "retrieval", "seed": seed}
        | {"metric": "mAP@10", "variant": model, "convention": convention}
        | {"value": value + 0.01 * seed if "validation" in convention else 1 - value}
        for (model, reads), value in seen.items()
        for convention in ("min_k_r", recording.VALIDATION) for seed in (0, 1)
    ]  # fmt: skip
    for given, best in (("T", "tfidf"), ("I+T", "svd+pca"), ("I+T+Tab", "with table")):
        name, values = findings.control(pd.DataFrame(rows), given)
        assert name == best and values.to_dict() == dict.fromkeys((0, 1), 1 - max(
            value for (_, reads), value in seen.items() if set(reads) <= set(given)))  # fmt: skip


def test_a_comparison_is_the_first_less_the_second_over_their_seeds():
    one, other = pd.Series({0: 0.5, 1: 0.54, 2: 0.52}), pd.Series({2: 0.4, 0: 0.41, 1: 0.4, 7: 0.9})
    line = findings.row("shop", "a", one, "b", other)
    gains = np.array([0.09, 0.14, 0.12])
    half = scipy.stats.t.ppf(0.975, 2) * gains.std(ddof=1) / np.sqrt(3)
    low, high = (f"{100 * (gains.mean() + x):+.1f}" for x in (-half, half))
    assert line["difference"] == f"{100 * gains.mean():+.1f} [{low}, {high}]"
    assert line["the first is"] == "ahead" and line["of the second"] == "40.3"
    near = pd.Series({0: 0.52, 1: 0.5, 2: 0.51}), pd.Series({0: 0.5, 1: 0.5, 2: 0.5})
    test = stats.paired_seeds(near[0].to_numpy(), near[1].to_numpy())
    assert test.low < 0 and 0.03 < test.high < 0.05
    verdicts = [findings.row(data, "a", near[0], "b", near[1]) for data in ("shop", "fashion")]
    assert [line["the first is"] for line in verdicts] == ["level", "undecided"]
    assert [line["over"] for line in verdicts] == ["seeds and queries", "seeds"]
    back = findings.row("shop", "b", other, "a", one)
    assert back["the first is"] == "behind" and findings.counted([line, back]) == (
        "of 2 comparisons it is ahead in 1, behind in 1, level in 0, undecided in 0."
    )


def test_what_is_kept_of_the_queries_is_small_and_makes_the_recorded_intervals_again():
    """Whatever is recorded: some claims of each table, from the parquet file alone."""
    paths = sorted((ROOT / "results").glob("*_queries.parquet"))
    assert sum(path.stat().st_size for path in paths) < 30 * 2**20
    content = recording.read_results(ROOT / "results" / "claims.json", "claims")["claims"]
    few = pd.DataFrame({name: [row[name] for row in content] for name in ("notebook", "data")})
    tested = pd.Series([row["verdict"] != "not testable" for row in content])
    few = [content[n] for n in few[tested].groupby(["notebook", "data"]).head(3).index]
    few += [row for row in content if row["verdict"] == "not testable"]
    for path in paths:
        made = list(intervals.judged(path, few))
        for row, test in made:
            assert row["verdict"] != "not testable"
            assert not intervals.differs(row, test), (path.name, row["id"])
            assert intervals.differs(row, test | {"low": row["low"] - 0.001}) == ["low"]
            assert intervals.differs(row, test | {"high": None}) == ["high"]
            assert intervals.differs(row | {"p": (row["p"] + 0.3) % 1}, test) == ["p"]
            assert intervals.differs(row | {"verdict": "?"}, test) == ["verdict"]
            assert intervals.differs(row | {"each_seed": [0.1, 0.2]}, test) == ["each_seed"]
            none = dict.fromkeys(("low", "high", "p"))  # one seed, compared by means alone
            assert not intervals.differs(row | none, test | none)
            assert intervals.differs(row, test | none) == ["low", "high", "p"]
        assert made, path.name


def test_of_the_losses_each_sentence_counts_its_own_comparisons(recorded):
    text, table = findings.losses(recorded)
    pairs = (("both losses", "no loss"), ("contrast only", "no loss"))
    pairs += (("masked tasks only", "no loss"),)
    pairs += (("both losses", "contrast only"), ("both, GRAM's contrast", "both losses"))
    for (one, other), said in zip(pairs, text, strict=False):
        own = table[table["first"].str.startswith(f"{one}, ") & (table["second"] == other)]
        n = own["the first is"].value_counts()
        assert len(own) == 6 and f"of 6 comparisons it is ahead in {n.get('ahead', 0)}," in said
        assert f"undecided in {n.get('undecided', 0)}." in said
    rows = recording.load_results(recorded / "simcl.json")
    rows = rows[(rows["metric"] == "accuracy") & (rows["convention"] == "fine-tuned head")]
    means = 100 * rows.groupby("model")["value"].mean()
    own = table[(table["first"] == "both losses, accuracy") & (table["data"] == "the shop")]
    for line, other in zip(own.to_dict("records"), ("no loss", "contrast only"), strict=True):
        assert line["of the first"] == f"{means['scale, IMCL+PRE']:.1f}"
        assert line["of the second"] == f"{means[f'scale, {other}']:.1f}"


@pytest.fixture
def drawing(monkeypatch):
    """A function: a script of ``benchmarks/`` -> it, and a list of what it draws on."""

    def of(name):
        monkeypatch.syspath_prepend(ROOT / "benchmarks")  # some read another of these
        script, drawn = script_of(name), []
        canvas = script.canvas

        def kept(*given, **named):
            drawn.append(canvas(*given, **named))
            return drawn[-1]

        monkeypatch.setattr(script, "canvas", kept)
        return script, drawn

    return of


def test_of_benchmarks_side_by_side_every_row_is_kept(tmp_path):
    keep, file = script_of("converge").keep, tmp_path / "more.json"
    with ThreadPoolExecutor(8) as pool:
        for n in range(24):
            pool.submit(keep, file, {"rows": [{"n": n}]}, {"n": n, "data": f"d{n}"}, {})
    kept = json.loads(file.read_text())
    assert sorted(row["n"] for row in kept["rows"]) == list(range(24))
    assert len(kept["provenance"]) == 24


def test_of_each_form_and_length_a_curve_is_drawn(tmp_path, drawing):
    script, drawn = drawing("converge")
    curves = [
        {"data": "shop", "model": model, "epochs": epochs, "seen": share * epochs * 90}
        | {"seconds": share * epochs, DEFAULT: 0.2 + share / 10}
        for model in ("scale", "clip")
        for epochs in (5, 10)
        for share in (0, 1)
    ]
    first = {"profile": "small", "training": 90, "seed": 0}
    curves = [x | first for x in curves] + [x | first | {"seed": 1} for x in curves[:2]]
    write_json(tmp_path / "converge.json", {"curves": curves})
    script.draw(tmp_path / "converge.json")
    assert (tmp_path / "converge_shop.png").exists()
    (_, ((seen, seconds),)) = drawn[0]
    short, long = [0, 450], [0, 900]  # of the first form a second seed
    assert [list(x.get_xdata()) for x in seen.lines] == [short, long, short, short, long]
    assert [list(x.get_xdata()) for x in seconds.lines][3:] == [[0, 5], [0, 10]]
    assert list(seen.lines[0].get_ydata()) == pytest.approx([20, 30])
    assert [text.get_text() for text in seen.get_legend().texts] == ["scale", "clip"]


def test_of_each_catalogue_a_panel_shows_every_seed_and_their_mean(tmp_path, drawing):
    script, drawn = drawing("more")
    rows = [
        {"data": data, "listings": 900, "training": n, "seed": seed, "accuracy": 0.5}
        | {"profile": "small", "weighted": 0.2 + n / 1000 + seed / 10, "fused_first": 0.1}
        for data in ("fashion", "shop")
        for seed in (0, 1)
        for n in (100, 200)
    ]
    write_json(tmp_path / "more.json", {"rows": rows})
    script.draw(tmp_path / "more.json")
    assert (tmp_path / "more.png").exists()
    (_, ((first, second),)) = drawn[0]
    assert second.get_title() == "shop, small, 900 products"
    mean, dots, *others = first.lines
    assert len(others) == 4 and mean.get_label() == "mAP@10, weighted"
    assert list(mean.get_xdata()) == [100, 200]
    assert list(mean.get_ydata()) == pytest.approx([35, 45])
    assert sorted(dots.get_ydata()) == pytest.approx([30, 40, 40, 50])


@pytest.mark.parametrize(("of", "said"), [(2, "; 900 s."), (3, "; 12 s.")])
def test_a_file_took_what_as_many_seeds_took_else_what_its_notebook_took(of, said, tmp_path):
    """After first answers the times of an earlier recording are of other runs."""
    made = {"profile": "quick", "commit": "0", "device": "d", "versions": {}, "wall_seconds": 12.0}
    content = {"provenance": {"n": made}, "measured": [{"seed": 0}, {"seed": 1}]}
    write_json(tmp_path / "table.json", content)
    write_json(tmp_path / "times.json", {"table": {"seconds": 900, "seeds": of}})
    assert readme.made_by(tmp_path / "table.json", "n").endswith(said)
