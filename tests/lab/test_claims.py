"""From numbers to statements: tested differences, verdicts on the paper's claims, README tables;
each against a slow transcription."""

import dataclasses
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import intervals
import numpy as np
import pandas as pd
import pytest
import readme
from scipy.special import ndtri, stdtrit
from scipy.stats import norm
from scipy.stats import t as student

from m5lib.evaluation import evaluate, stats
from m5lib.lab import claims, recording, study

FINE, PRE = study.number("mAP@1_finetune"), study.number("mAP@1_pretrain")
CONTEXT = {
    **{"notebook": "n", "run": "r", "data": "shop", "profile": "tiny"},
    **{"model": "scale", "modalities": "T"},
}


CLUSTERS = {"state": "finetuned", "variant": "hidden"}


def clustered(rng, classes: np.ndarray, better: np.ndarray) -> pd.DataFrame:
    """Five clusters of products of four classes, right as often as ``better`` says, of each."""
    count = len(classes)
    columns = {("class", "category"): classes}
    for seed in range(2):
        right = rng.random(count) < better
        columns["cluster", f"seed {seed}"] = np.where(right, classes, rng.integers(5, size=count))
    frames = [
        pd.DataFrame({"id": [str(n) for n in range(count)], "value": values.astype(float)}).assign(
            task="clustering", metric=metric, convention=how
        )
        for (metric, how), values in columns.items()
    ]
    return pd.concat(frames)


def fake(seed: int, better: float, data: str = "", queries: int = 200) -> study.Study:
    """A study of which every query has some numbers: ``better`` more than chance; before
    fine-tuning 0.3 more than that. Of the same products all seeds of a model find some easier."""
    rng, rows, parts = np.random.default_rng(seed), [], []
    easy = np.random.default_rng(99 + seed // 10).random(queries) * bool(data)
    easy -= easy.mean()
    for name in ("mAP@1_finetune", "mAP@1_pretrain", "accuracy"):
        values = rng.random(queries) * 0.2 + better + 0.3 * (name == "mAP@1_pretrain")
        values += 0.2 * easy
        ids = [str(n) for n in range(queries)]
        parts.append(pd.DataFrame({"id": ids, "value": values}).assign(**study.number(name)))
        rows.append(study.number(name) | {"value": float(values.mean())})
    classes = np.random.default_rng(0 if data else seed % 10).integers(4, size=queries)
    clusters = clustered(rng, classes, better + 0.5 * easy).assign(
        state="finetuned", variant="hidden"
    )
    parts.append(clusters)
    rows += [CLUSTERS | number for number in evaluate.clustering_of(clusters)]
    frame = pd.DataFrame([CONTEXT | {"seed": seed % 10} | row for row in rows])
    fingerprint = data or f"data{seed % 10}"
    return study.Study(f"run{seed}", fingerprint, frame, pd.concat(parts), [], 1)


def two(gap: float, seeds: int = 3, data: str = "") -> dict:
    """MEM, of which every number is ``gap`` more than MLM's."""
    return {
        (label, seed): fake(seed + 10 * n, 0.3 + gap * (1 - n), data)
        for n, label in enumerate(("MEM", "MLM"))
        for seed in range(seeds)
    }


def test_queries_that_only_one_side_could_ask_do_not_count():
    """A model of other modalities has other queries."""
    whole, fewer = two(0.1), two(0.1)
    for key, one in fewer.items():
        cut = one.queries["id"].isin([str(n) for n in range(40 if key[0] == "MEM" else 0)])
        fewer[key] = dataclasses.replace(one, queries=one.queries[~cut])
    sides = ("MEM", FINE), ("MLM", FINE)
    found = claims.tested(fewer, *sides)
    assert found["how"] == "over 3 seeds and 160, 160, 160 products"
    slow = [
        np.mean([whole["MEM", s].values(FINE)[str(n)] - whole["MLM", s].values(FINE)[str(n)]
                 for n in range(40, 200)]) for s in range(3)
    ]  # fmt: skip
    assert found["each_seed"] == pytest.approx(slow)
    assert claims.tested(whole, *sides)["each_seed"] != pytest.approx(slow)


@pytest.mark.parametrize(
    "gap, expected", [(0.1, "confirmed"), (0.0, "equivalent"), (-0.1, "contradicted")]
)
def test_verdicts_follow_the_interval(gap, expected):
    verdicts = claims.judge(two(gap), ["Table 7"])
    row = next(row for row in verdicts if row["metric"] == "mAP@1")
    assert row["verdict"] == expected and len(row["each_seed"]) == 3
    assert row["difference"] == pytest.approx(gap, abs=0.02)
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["ours"] == "finetuned, hidden, retrieval, mAP@1, min_k_r"
    assert (row["data"], row["notebook"]) == ("shop", "n")
    shown = claims.table(verdicts).loc[row["id"]]
    assert shown["ours"] == round(100 * row["difference"], 1)
    assert (shown["low"], shown["high"]) == (
        round(100 * row["low"], 1),
        round(100 * row["high"], 1),
    )


def test_a_claim_is_judged_by_the_seeds_that_both_sides_have():
    fewer = two(0.1, 5)
    for seed in (3, 4):
        del fewer["MLM", seed]
    found, whole = (claims.judge(studies, ["Table 7"]) for studies in (fewer, two(0.1, 3)))
    assert found == whole and {row["verdict"] for row in found} == {"confirmed"}
    for seed in range(3):
        del fewer["MEM", seed]
    (reason,) = {row["reason"] for row in claims.judge(fewer, ["Table 7"])}
    assert reason == "no seed that both were run with"
    lone = {key: one for key, one in fewer.items() if key[0] == "MEM"}
    (reason,) = {row["reason"] for row in claims.judge(lone, ["Table 7"])}
    assert reason == "no run of MLM on these products"


def test_the_shop_with_other_features_is_the_shop(tmp_path):
    """Margin, calibrated orders and what no seeds can decide are those of its products."""
    row = {"source": "", "notebook": "n", "published_difference": "+2.00", "p": 1e-4, "reason": ""}
    row |= {"difference": 0.1, "low": 0.05, "high": 0.15, "each_seed": [0.09, 0.11]}
    ids, several = ("C01", "C13", "C72"), ("shop (text=bert:1234)", "shop", "fashion (image=lite0)")
    rows = [row | {"id": id, "data": data, "verdict": "alone"} for id in ids for data in several]
    (tmp_path / "claims.json").write_text(json.dumps({"provenance": {}, "claims": rows}))
    frame = claims.judged(tmp_path / "claims.json").set_index(["id", "data"])
    assert frame.loc["C01", "calibrated"].tolist() == [True, True, False]
    assert not frame.loc["C13", "calibrated"].any() and frame.loc["C72", "unaffordable"].all()
    assert set(frame["alone"]) == {"alone"} and set(frame["verdict"]) == {"confirmed"}
    assert frame["table"].unique().tolist() == ["Table 3", "Table 6 (scores)"]
    assert frame["paper"].eq(0.02).all() and np.allclose(frame["detectable"], 0.1 * 2.8 / 3.92)
    assert [claims.margin(data) for data in several] == [0.05, 0.05, 0.03]
    untested = pd.DataFrame({"id": ids, "verdict": "not testable"})
    assert claims.corrected(untested).tolist() == ["not testable"] * 3
    alone = untested.assign(verdict="undecided", p=np.nan, low=np.nan, high=np.nan)  # one seed
    assert claims.corrected(alone).tolist() == ["undecided"] * 3


def test_seeds_that_one_side_lacks_do_not_count():
    whole, fewer = two(0.1, 3), two(0.1, 5)
    for seed in (3, 4):
        del fewer["MLM", seed]
    assert claims.tested(fewer, ("MEM", FINE), ("MLM", FINE)) == claims.tested(
        whole, ("MEM", FINE), ("MLM", FINE)
    )
    pairs = [("MEM", "MLM"), ("MEM", "absent")]
    assert list(claims.differences(whole, pairs, ["accuracy"]).index) == [("MEM - MLM", "accuracy")]


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (1e-9, 1.0, "confirmed"),
        (0.0, 1.0, "undecided"),
        (-1.0, 1.0, "undecided"),
        (-1.0, 0.0, "undecided"),
        (-1.0, -1e-9, "contradicted"),
        (float("nan"), float("nan"), "undecided"),
    ],
)
def test_an_interval_that_touches_zero_decides_nothing(low, high, expected):
    for mean, p in ((0.0, 0.5), (0.6, 0.04), (-0.6, 0.04)):  # whatever mean and p say
        for data in ("shop", "fashion"):
            assert claims.verdict(stats.Difference(mean, low, high, p, 3), data) == expected


@pytest.mark.parametrize(
    "low, high, shop, real",
    [
        (-0.02, 0.029, "equivalent", "equivalent"),
        (-0.029, 0.0, "equivalent", "equivalent"),
        (-0.031, 0.01, "equivalent", "undecided"),
        (-0.01, 0.049, "equivalent", "undecided"),
        (-0.051, 0.01, "undecided", "undecided"),
        (-0.04, 0.06, "undecided", "undecided"),
        (0.001, 0.01, "confirmed", "confirmed"),
        (-0.01, -0.001, "contradicted", "contradicted"),
    ],
)
def test_an_interval_between_the_margins_is_equivalent(low, high, shop, real):
    test = stats.Difference((low + high) / 2, low, high, 0.5, 3)
    assert (claims.verdict(test, "shop"), claims.verdict(test, "fashion")) == (shop, real)


@pytest.mark.parametrize("better, worse", [(FINE, FINE), (FINE, PRE), (PRE, FINE)])
@pytest.mark.parametrize("shared", [True, False])
def test_each_side_is_read_by_its_own_number_query_by_query(better, worse, shared):
    """Against a loop over seeds and products. Seeds that share their products are one sample of
    queries; else each is a sample of its own."""
    studies = two(0.1, data="one" if shared else "")
    sides = {"MEM": [], "MLM": []}
    for seed in range(3):
        for (label, values), own in zip(sides.items(), (better, worse), strict=True):
            by_product = {}
            for row in studies[label, seed].queries.to_dict("records"):
                if all(row[column] == value for column, value in own.items()):
                    by_product[row["id"]] = row["value"]
            values.append([by_product[str(product)] for product in range(200)])
    ours, theirs = sides.values()
    test = claims.tested(studies, ("MEM", better), ("MLM", worse))
    by_seed = [sum(a) / len(a) - sum(b) / len(b) for a, b in zip(ours, theirs, strict=True)]
    assert test["each_seed"] == pytest.approx(by_seed)
    assert test["difference"] == pytest.approx(sum(by_seed) / 3)
    arrays = [np.array(side) if shared else [np.array(x) for x in side] for side in (ours, theirs)]
    expected = stats.paired_queries(*arrays)
    assert (test["low"], test["high"]) == (expected.low, expected.high)
    other = claims.tested(two(0.1, data="" if shared else "one"), ("MEM", better), ("MLM", worse))
    assert other["low"] != test["low"], "the flag changes the interval"
    assert test["how"] == "over 3 seeds and 200, 200, 200 products"


@pytest.mark.parametrize("name", ["NMI", "purity"])
@pytest.mark.parametrize("shared", [True, False])
def test_clusters_are_compared_by_their_products(name, shared):
    """Both sides scored on the same products, drawn again and again."""
    studies, wanted = two(0.2, data="one" if shared else ""), study.number(name)
    test = claims.tested(studies, ("MEM", wanted), ("MLM", wanted))
    own, labels = [], []
    for seed in range(3):
        sides = [studies[label, seed].clusters(wanted) for label in ("MEM", "MLM")]
        parts = [evaluate.clusters_by_id(side) for side in sides]
        own.append(np.stack([part[2] for part in parts]))
        labels.append(parts[0][1])
    expected = stats.paired_clusters(own, labels, name, shared)
    assert (test["low"], test["high"], test["p"]) == expected[1:4]
    by_seed = [studies["MEM", s].value(wanted) - studies["MLM", s].value(wanted) for s in range(3)]
    assert test["each_seed"] == pytest.approx(by_seed)
    assert test["difference"] == pytest.approx(expected.mean) == pytest.approx(np.mean(by_seed))
    assert test["how"] == "over 3 seeds and 200, 200, 200 products"
    other = stats.paired_clusters(own, labels, name, not shared)
    assert other.low != expected.low, "the flag changes the interval"


def test_clusters_of_other_products_are_no_pair():
    studies, nmi = two(0.1), study.number("NMI")
    lacking = studies["MLM", 1].queries.query("id != '7'")
    studies["MLM", 1] = dataclasses.replace(studies["MLM", 1], queries=lacking)
    with pytest.raises(ValueError, match="not the same"):
        claims.tested(studies, ("MEM", nmi), ("MLM", nmi))


def test_verdicts_are_made_again_from_what_is_kept_of_the_queries(tmp_path, monkeypatch):
    """From the parquet file alone: nothing else of the runs is there."""
    monkeypatch.setenv("M5_RESULTS", str(tmp_path))
    sides = [study.number(name) for name in ("NMI", "purity", "mAP@1_pretrain")]
    for gap, data in ((0.1, "one"), (0.004, "")):
        studies = two(gap, data=data)
        rows, asked = study.tidy(studies), claims.asked(studies)
        recording.record("table7", rows.drop(columns="label"), {}, {}, queries=asked)
        again = intervals.read_asked(tmp_path / "table7_queries.parquet")
        assert list(again) == list(studies)
        for before, after in zip(
            *(claims.judge(x, ["Table 7"]) for x in (studies, again)), strict=True
        ):
            assert after.pop("each_seed") == pytest.approx(before.pop("each_seed"), abs=1e-6)
            for name in ("difference", "low", "high", "p"):
                assert after.pop(name) == pytest.approx(before.pop(name), abs=1e-6), name
            assert after == before and before["verdict"] in claims.VERDICTS
        for own in sides:
            tests = [claims.tested(x, ("MEM", own), ("MLM", own)) for x in (studies, again)]
            for name in ("low", "high", "p"):
                assert tests[1][name] == pytest.approx(tests[0][name], abs=1e-6), name
        frame = pd.read_parquet(tmp_path / "table7_queries.parquet")
        assert set(frame.select_dtypes("float").dtypes.astype(str)) == {"float32"}


def test_a_difference_is_the_first_label_less_the_second_in_per_cent():
    studies = two(0.1)
    pairs, names = [("MEM", "MLM"), ("MLM", "MEM")], ["mAP@1", PRE]
    table = claims.differences(studies, pairs, names)
    for (pair, shown), row in table.iterrows():
        one, other = pair.split(" - ")
        own = FINE if shown == "mAP@1" else PRE
        slow = np.mean(
            [studies[one, s].value(own) - studies[other, s].value(own) for s in range(3)]
        )
        assert row["mean"] == pytest.approx(100 * slow) and row["low"] < row["mean"] < row["high"]
        assert (row["mean"] > 5) == (one == "MEM") == (row["as a claim"] == "confirmed")
    assert table.index[1] == ("MEM - MLM", "mAP@1, min_k_r")
    plain = claims.differences(studies, pairs[:1], names[:1], scale=1.0)
    assert plain["low"].iloc[0] == pytest.approx(table["low"].iloc[0] / 100)


def test_every_claim_is_one_of_our_numbers_or_said_not_to_be():
    for claim in pd.read_csv(claims.CLAIMS, keep_default_na=False).itertuples(index=False):
        if claim.id in claims.NOT_TESTABLE:
            continue
        for side in (claim.better, claim.worse):
            label, wanted = claims.side_of(claim, side)
            assert label and set(wanted) <= set(study.KEYS), claim.id


def test_each_table_is_judged_by_the_numbers_that_it_prints():
    """Which of our numbers a claim of each table is about, as the paper's headings say."""
    tuned, before = ("finetuned", "hidden"), ("pretrained", "fused_first")
    coarse, fine = ("retrieval", "mAP@1", "min_k_r"), ("fine retrieval", "mAP@1", "min_k_r")
    heads = (*tuned, "classification", "accuracy", "fine-tuned head")
    expected = {  # claim: better, and worse where that is another number
        "C01": [heads],  # Table 3
        "C02": [(*before, *coarse)],
        "C03": [(*tuned, *coarse)],
        "C13": [(*tuned, *coarse), (*before, *coarse)],  # T finetuned, T pretrained
        "C19": [(*tuned, *coarse)],  # Table 4
        "C20": [(*tuned, *fine)],
        "C40": [(*before, *coarse)],  # Table 5: of the pre-trained model, as Table 3's
        "C41": [heads],
        "C42": [(*tuned, "clustering", "NMI")],
        "C76": [(*tuned, *coarse)],  # Table 6
        "C80": [heads],  # Table 7
        "C85": [(*before, *coarse)],  # Table 10
        "C86": [(*tuned, *coarse)],
        "C87": [(*before, "similarity", "image-text cosine", "own less other products'")],
    }
    rows = {row.id: row for row in pd.read_csv(claims.CLAIMS, keep_default_na=False).itertuples()}
    for claim, numbers in expected.items():
        sides = (rows[claim].better, rows[claim].worse)
        found = [tuple(claims.side_of(rows[claim], side)[1].values()) for side in sides]
        assert found == [numbers[0], numbers[-1]], claim
    assert claims.side_of(rows["C13"], "T finetuned")[0] == "T"
    ends = {" fine": "fine retrieval", " coarse": "retrieval"}
    for ending, task in ends.items():
        label, number = claims.side_of(rows["C39"], f"I+T{ending}")
        assert (label, number["task"], number["metric"]) == ("I+T", task, "Prec@10")


def test_table_6_is_judged_in_both_readings_of_its_ticks():
    """As scores and as losses: the same statements and published numbers, each of its own runs."""
    losses = {"none": "no loss", "IMCL": "contrast only", "PRE": "masked tasks only"}
    labels = ("IMCL+PRE", *losses, *losses.values())
    studies = {
        (label, s): fake(s + 10 * n, 0.3) for n, label in enumerate(labels) for s in range(2)
    }
    rows = claims.judge(studies, ["Table 6"])
    by_source = {
        source: [row for row in rows if row["source"] == source]
        for source in ("Table 6 (scores)", "Table 6 (losses)")
    }
    assert sorted(map(len, by_source.values())) == [8, 8] and len(rows) == 16
    for one, other in zip(*by_source.values(), strict=True):
        for side in ("better", "worse"):
            assert other[side] == losses.get(one[side], one[side])
        for same in ("statement", "metric", "published_difference"):
            assert one[same] == other[same]
        assert one["verdict"] != "not testable" != other["verdict"]


def test_what_was_not_run_is_not_testable():
    rows = claims.judge({("T", 0): fake(0, 0.3)}, ["Table 3"])
    assert {row["verdict"] for row in rows if "finetuned" not in row["better"]} == {"not testable"}
    assert "I+T" in rows[0]["reason"]


@pytest.mark.parametrize("label", ["MEM", "MLM"])
def test_a_side_that_was_not_measured_is_not_testable(label):
    """Either of the two, in one seed of three."""
    studies, wanted = two(0.1), study.number("accuracy")
    frame = studies[label, 1].rows
    lacking = frame[frame["metric"] != "accuracy"]
    studies[label, 1] = dataclasses.replace(studies[label, 1], rows=lacking)
    assert np.isnan(studies[label, 1].value(wanted))
    row = next(row for row in claims.judge(studies, ["Table 7"]) if row["metric"] == "accuracy")
    assert row["verdict"] == "not testable" and "do not have what it takes" in row["reason"]


@pytest.mark.parametrize("listed", [True, False])
def test_fine_and_coarse_are_compared_where_products_are_listed_ten_times(listed):
    """C39: one model, two kinds of queries, so seed by seed; else there is no Prec@10."""
    label, studies, gaps = "I+T+Tab+V+A", {}, (0.2, 0.25, 0.3)
    ends = {" fine": 0.2, " coarse": 0.0} if listed else {" coarse": 0.0}
    for seed, gap in enumerate(gaps):
        rows = [claims.ENDINGS[end] | {"value": 0.5 + (own and gap)} for end, own in ends.items()]
        frame = pd.DataFrame([CONTEXT | row for row in rows])
        studies[label, seed] = dataclasses.replace(fake(seed, 0.3), rows=frame)
    (row,) = (row for row in claims.judge(studies, ["Table 4"]) if row["id"] == "C39")
    if not listed:
        assert row["verdict"] == "not testable" and "do not have what it takes" in row["reason"]
        return
    slow = student.ppf(0.975, 2) * np.std(gaps, ddof=1) / np.sqrt(3)
    assert (row["low"], row["high"]) == pytest.approx((0.25 - slow, 0.25 + slow))
    assert row["verdict"] == "confirmed" and row["how"] == "t over 3 seeds"


def test_verdicts_of_other_products_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("M5_RESULTS", str(tmp_path))
    verdicts = claims.judge(two(0.0, seeds=2), ["Table 7"])
    for data in ("shop", "fashion", "shop"):
        made = {"commit": data, "profile": "quick" if data == "shop" else "small"}
        claims.record("r", [row | {"data": data} for row in verdicts], made)
    kept = json.loads((tmp_path / "claims.json").read_text())
    assert len({(row["id"], row["data"]) for row in kept["claims"]}) == len(kept["claims"]) == 4
    assert len(kept["provenance"]) == 2 and claims.record("", [], {}) is None
    text = readme.counted(tmp_path / "claims.json").splitlines()
    said = "4 claims are tested. Each at 5 % by itself, 0 are confirmed and 0 contradicted."
    assert text[0].startswith(said)
    assert text[0].endswith(" 2 are of profile `small`. 2 are of profile `quick`.")
    assert {(r["data"], r["commit"]) for r in kept["claims"]} == {
        (d, d) for d in ("shop", "fashion")
    }
    assert (
        text[2] == f"| data | table | seeds | {' | '.join(claims.VERDICTS)} | {readme.CALIBRATED} |"
    )
    assert text[5] == "| shop | Table 7 | 2 | 0 | 0 | 0 | 2 | 0 | 0 |"
    assert text[-1] == "None is contradicted."
    claims.record("r", claims.judge(two(-0.1, seeds=2), ["Table 7"]), {})
    text = readme.counted(tmp_path / "claims.json").splitlines()
    assert text[5] == "| shop | Table 7 | 2 | 0 | 2 | 0 | 0 | 0 | 0 |"
    against = [line for line in text if line.startswith("- shop, Table 7, mAP@1: MEM over MLM")]
    assert len(against) == 1 and re.search(r"ours -(10|9)\.", against[0])


def test_verdicts_recorded_side_by_side_are_all_kept(tmp_path, monkeypatch):
    """Notebooks of several tables end at the same moment."""
    monkeypatch.setenv("M5_RESULTS", str(tmp_path))
    verdicts, names = claims.judge(two(0.0, seeds=2), ["Table 7"]), [f"data {n}" for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for own in names:
            pool.submit(claims.record, "r", [row | {"data": own} for row in verdicts], {})
    kept = recording.read_results(tmp_path / "claims.json", "claims")
    assert {row["data"] for row in kept["claims"]} == set(names) and len(kept["provenance"]) == 24
    assert len(kept["claims"]) == 24 * len(verdicts)


def standing(p):
    """Benjamini and Hochberg by steps: the k smallest p stand, k the last with p <= .05 k / m."""
    order, last = np.argsort(p), 0
    for k, n in enumerate(order, 1):
        last = k if p[n] <= 0.05 * k / len(p) else last
    return set(order[:last])


def slow_level(bound, each, common):
    """By bisection: the p of the interval that ends so far from its mean. (The quantiles of
    ``special`` are those of ``stats``, in a thirtieth of the time.)"""
    S, levels = len(each), (0.0, 1.0)
    v = np.var(each, ddof=1) / S if S > 1 else 0.0
    for _ in range(60):
        middle = sum(levels) / 2
        t = stdtrit(S - 1, middle / 2) if S > 1 else 0.0
        wide = (t**2 * v + ndtri(middle / 2) ** 2 * common) ** 0.5
        levels = (middle, levels[1]) if wide > bound else (levels[0], middle)
    return levels[0]


def test_verdicts_are_corrected_for_their_number():
    """Of one to ten seeds that differ more and less, about many means, on two data sets; a claim at
    a time."""
    rng, seen = np.random.default_rng(0), Counter()
    for _ in range(30):
        rows, beyond, margins = [], [], []
        for _ in range(20):
            seeds, data = rng.choice([1, 2, 4, 10]), rng.choice(["shop", "fashion"])
            each = rng.normal(rng.normal(0, 0.03), rng.uniform(0.001, 0.02), seeds)
            mean, common = each.mean(), rng.uniform(0.001, 0.015) ** 2
            v = each.var(ddof=1) / seeds if seeds > 1 else 0.0
            t = student.isf(0.025, seeds - 1) if seeds > 1 else 0.0
            half = (t**2 * v + norm.isf(0.025) ** 2 * common) ** 0.5
            row = {"difference": mean, "low": mean - half, "high": mean + half, "data": data}
            rows.append(row | {"p": slow_level(abs(mean), each, common), "each_seed": list(each)})
            margins.append(0.05 if data == "shop" else 0.03)
            inside = margins[-1] - abs(mean)
            beyond.append(slow_level(inside, each, common) if inside > 0 else 1.0)
        frame = pd.DataFrame([*rows, {"data": "shop"}])
        frame["verdict"] = [*["of an earlier code"] * 20, "not testable"]
        differs, equal, expected = standing(frame["p"].to_numpy()[:20]), standing(beyond), []
        for n, row in enumerate(rows):
            inside = -margins[n] < row["low"] and row["high"] < margins[n]
            word = "equivalent" if n in equal and inside else ""
            word = "confirmed" if n in differs and row["low"] > 0 else word or "undecided"
            word = "contradicted" if n in differs and row["high"] < 0 else word
            expected.append(word)
        assert list(claims.corrected(frame)) == [*expected, "not testable"]
        seen.update(expected)
    assert set(seen) == set(claims.VERDICTS[:4])


def test_equal_seeds_are_as_few_as_others():
    """Their interval is of what seeds may differ by: Student's t, also for equivalence."""
    half, each = 0.02, [0.005] * 3
    row = {"difference": 0.005, "low": 0.005 - half, "high": 0.005 + half, "each_seed": each}
    frame = pd.DataFrame([row | {"data": "shop", "p": 0.5}])
    found = claims._p_equivalent(next(frame.itertuples()))
    slow = 2 * student.sf(0.045 / half * student.ppf(0.975, 2), 2)
    assert found == pytest.approx(slow, rel=1e-3) and found > norm.sf(0.045 / half * 1.96)


def test_calibrated_orders_are_counted_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("M5_RESULTS", str(tmp_path))
    row = {"source": "Table 3 (subset)", "notebook": "n", "published_difference": "", "p": 1e-4}
    row |= {"verdict": "confirmed", "reason": "", "difference": 0.1, "low": 0.05, "high": 0.15}
    row |= {"each_seed": [0.09, 0.11]}
    found = [row | {"id": id, "data": data} for id in ("C01", "C13") for data in ("shop", "d")]
    claims.record("r", found, {})
    text = readme.counted(tmp_path / "claims.json").splitlines()
    assert text[0].endswith("Of the confirmed, 1 are orders that the shop was calibrated for.")
    assert text[4] == "| d | Table 3 | 2 | 2 | 0 | 0 | 0 | 0 | 0 |"
    assert text[5] == "| shop | Table 3 | 2 | 2 | 0 | 0 | 0 | 0 | 1 |"
    shown = claims.table(found).loc["C01"]  # 2.8 standard errors; the interval holds 3.92
    assert [*shown["detectable"]] == [7.1, 7.1] and [*shown["p"]] == [0.0001, 0.0001]
