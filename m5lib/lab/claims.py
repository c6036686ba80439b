"""From numbers to statements: tested differences, and verdicts on the paper's claims.

A claim (``paper/claims.csv``) says that one row of a table is better than another by some metric.
Ours is the difference with a 95 % interval over seeds and queries. ``confirmed``: the interval lies
above 0; ``contradicted``: below; ``equivalent``: it holds 0 and nothing as large as the
:func:`margin`; ``undecided``: it holds both; ``not testable``: says why. Counts are after a
correction for so many tests, and apart where the shop was calibrated for the order.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from m5lib import ROOT
from m5lib.data import locked, write_json
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.evaluation import evaluate, stats
from m5lib.lab import recording, study
from m5lib.lab.recording import HIDDEN, results_folder
from m5lib.lab.study import Studies, number

CLAIMS = ROOT / "paper" / "claims.csv"
VERDICTS = ("confirmed", "contradicted", "equivalent", "undecided", "not testable")
#: Endings of a claim's sides -> the number that they mean: "T finetuned", "I+T coarse".
ENDINGS = {
    " finetuned": number("mAP@1_finetune"),
    " pretrained": number("mAP@1_pretrain"),
    " fine": number("Prec@10_fine"),
    " coarse": number("Prec@10_coarse"),
}
#: Claims that no study of ours can test.
NOT_TESTABLE = {"C91": "needs products of two sizes, the smaller a part of the larger"}
#: Table 6 stands twice among the sources, by how its ticks are read.
TABLE = r"^(\w+ [0-9.]+(?: \((?:scores|losses)\))?)"
#: Of the width of a 95 % interval: the difference that such a test finds in four of five cases, 2.8
#: standard errors, 1.96 + 0.84.
DETECTABLE = 2.8 / 3.92


def tested(
    studies: Studies, better: tuple[str, Mapping[str, str]], worse: tuple[str, Mapping[str, str]]
) -> dict:
    """What the first of two sides, each a label and its number, has more than the second: the
    difference over all seeds, its 95 % interval and the verdict. Both are compared query by query
    where both have the same queries, else seed by seed (:mod:`m5lib.evaluation.stats`). Seeds that
    one of them lacks are left out."""
    seeds = list(dict.fromkeys(seed for _, seed in studies))
    seeds = [seed for seed in seeds if {(better[0], seed), (worse[0], seed)} <= studies.keys()]
    sides = [[(studies[label, seed], own) for seed in seeds] for label, own in (better, worse)]
    task = better[1]["task"]
    shared = len({one.data for one, _ in sides[0]}) == 1
    if task == worse[1]["task"] == "clustering":
        pairs = [tuple(one.clusters(own) for one, own in pair) for pair in zip(*sides, strict=True)]
        test = evaluate.clusters_difference(pairs, better[1]["metric"], shared)
        by_seed = [
            one.value(x) - other.value(y) for (one, x), (other, y) in zip(*sides, strict=True)
        ]
        sizes = [pair[0]["id"].nunique() for pair in pairs]
    elif task == worse[1]["task"]:
        pairs = [
            pd.concat({"ours": one.values(x), "theirs": other.values(y)}, axis=1, join="inner")
            for (one, x), (other, y) in zip(*sides, strict=True)
        ]  # a query that only one of the two could ask (other modalities) is left out
        test = evaluate.difference(pairs, shared=shared)
        by_seed = [float(pair["ours"].mean() - pair["theirs"].mean()) for pair in pairs]
        sizes = [len(pair) for pair in pairs]
    else:  # other queries
        means = [np.array([one.value(own) for one, own in side]) for side in sides]
        test, by_seed, sizes = stats.paired_seeds(*means), (means[0] - means[1]).tolist(), []
    products = f" and {', '.join(map(str, sizes))} products"
    how = f"over {len(seeds)} seeds{products}" if sizes else f"t over {len(seeds)} seeds"
    numbers = {"difference": test.mean, "each_seed": by_seed, "low": test.low, "high": test.high}
    for name, value in (numbers | {"p": test.p}).items():
        numbers[name] = value if name == "each_seed" or np.isfinite(value) else None
    data = sides[0][0][0].rows["data"].iloc[0]
    return numbers | {"how": how, "verdict": verdict(test, data), "reason": ""}


def kind(data: str) -> str:
    """Whose products: ``shop (text=bert:…)``, with other features, is the shop."""
    return data.partition(" (")[0]


def margin(data: str) -> float:
    """Smaller differences do not matter: 3 points, on the shop 5 (``LOG.md``, before it was
    recorded)."""
    return 0.05 if kind(data) == "shop" else 0.03


def verdict(test: stats.Difference, data: str) -> str:
    """By the 95 % interval; one seed without queries has none, and decides nothing. Equivalence is
    stricter so than by two one-sided tests at 5 % (Schuirmann, 1987), an interval of 90 %."""
    if test.low > 0 or test.high < 0:
        return "confirmed" if test.low > 0 else "contradicted"
    return "equivalent" if max(-test.low, test.high) < margin(data) else "undecided"


def differences(
    studies: Studies,
    pairs: Iterable[tuple[str, str]],
    names: Iterable[str | Mapping[str, str]],
    state: str = "finetuned",
    scale: float = 100.0,
) -> pd.DataFrame:
    """What the first of two labels has more than the second, in per cent, with its 95 % interval: a
    row per pair and number. A pair of which a side was not run is left out."""
    rows, run = [], {label for label, _ in studies}
    for one, other in (pair for pair in pairs if run.issuperset(pair)):
        for name in names:
            wanted = number(name, state) if isinstance(name, str) else name
            test = tested(studies, (one, wanted), (other, wanted))
            shown = name if isinstance(name, str) else f"{name['metric']}, {name['convention']}"
            values = (test[key] for key in ("difference", "low", "high"))
            mean, low, high = (scale * float("nan" if x is None else x) for x in values)
            rows.append((f"{one} - {other}", shown, mean, low, high, test["p"], test["verdict"]))
    columns = ["difference", "number", "mean", "low", "high", "p", "as a claim"]
    return pd.DataFrame(rows, columns=columns).set_index(["difference", "number"])


def side_of(claim, side: str) -> tuple[str, dict[str, str]]:
    """Label of a study, and which of its numbers a side of a claim is. Table 5's retrieval is that
    of the pre-trained model, as it equals Table 3's; elsewhere it is the fine-tuned one's."""
    for ending, wanted in ENDINGS.items():
        if side.endswith(ending):
            return side.removesuffix(ending), wanted
    state = "pretrained" if claim.source.startswith("Table 5") else "finetuned"
    return side, number(claim.metric, state)


def judge(studies: Studies, sources: Iterable[str]) -> list[dict]:
    """The verdict on every claim of the given tables and figures (beginnings of ``source``), by
    studies whose labels are the paper's names of its rows."""
    verdicts, seeds = [], dict.fromkeys(seed for _, seed in studies)
    first = next(iter(studies.values())).rows.iloc[0]
    for claim in pd.read_csv(CLAIMS, keep_default_na=False).itertuples(index=False):
        if not claim.source.startswith(tuple(sources)):
            continue
        names = ("id", "source", "statement", "metric", "better", "worse", "published_difference")
        row = {name: getattr(claim, name) for name in names}
        row |= {"data": first["data"], "notebook": first["notebook"]}
        untested = {"verdict": "not testable", "reason": NOT_TESTABLE.get(claim.id, "")}
        if untested["reason"]:
            verdicts.append(row | untested)
            continue
        sides = [side_of(claim, claim.better), side_of(claim, claim.worse)]
        row["ours"] = " - ".join(dict.fromkeys(", ".join(own.values()) for _, own in sides))
        there = [{s for s in seeds if (label, s) in studies} for label, _ in sides]
        if missing := [label for (label, _), own in zip(sides, there, strict=True) if not own]:
            untested["reason"] = f"no run of {' or '.join(missing)} on these products"
        elif not (common := set.intersection(*there)):
            untested["reason"] = "no seed that both were run with"
        elif any(np.isnan(studies[label, s].value(own)) for label, own in sides for s in common):
            untested["reason"] = "these products do not have what it takes to measure it"
        verdicts.append(row | (untested if untested["reason"] else tested(studies, *sides)))
    return verdicts


def table(verdicts: Iterable[dict]) -> pd.DataFrame:
    """The verdicts for people: differences in per cent, as the paper prints them, with their 95 %
    interval, p, and what such a test detects (:data:`DETECTABLE`)."""
    shown = "id source metric better worse published_difference difference low high detectable p"
    frame = pd.DataFrame(list(verdicts)).reindex(columns=[*shown.split(), "verdict", "reason"])
    frame["detectable"] = (frame["high"] - frame["low"]).astype(float) * DETECTABLE
    for column in ("difference", "low", "high", "detectable"):
        frame[column] = (100 * frame[column].astype(float)).round(1)
    frame["p"] = frame["p"].astype(float).round(4)
    frame = frame.rename(columns={"published_difference": "paper", "difference": "ours"})
    return frame.set_index("id").astype(object).where(frame.set_index("id").notna(), "")


def corrected(claims: pd.DataFrame) -> pd.Series:
    """The verdicts after the correction of Benjamini and Hochberg (1995) over every claim tested:
    of those that differ, and of those that are equivalent, at most 5 % are expected to be so by
    chance. The p of equivalence is that of the widest interval that fits between the margins."""
    known = claims.get("p", pd.Series(np.nan, claims.index)).notna()
    rows = claims[known & (claims["verdict"] != "not testable")]
    if rows.empty:
        return claims["verdict"]
    low, high, p = (rows[name].astype(float) for name in ("low", "high", "p"))
    differs = false_discovery_control(p) <= 0.05
    same = false_discovery_control([_p_equivalent(row) for row in rows.itertuples()]) <= 0.05
    within = same & (np.maximum(-low, high) < rows["data"].map(margin))
    several = [differs & (low > 0), differs & (high < 0), within]
    found = pd.Series(np.select(several, VERDICTS[:3], "undecided"), rows.index, dtype=object)
    return found.reindex(claims.index).fillna(claims["verdict"])


def _p_equivalent(row) -> float:
    """Of a claim's row: v from its seeds, w from what its interval holds beside them."""
    seeds, spread = len(row.each_seed), stats.spread_of(np.array(row.each_seed, float))
    if seeds > 1 and np.ptp(row.each_seed) < 1e-12:  # all of it is what seeds may differ by
        spread = ((row.high - row.low) / 2 / stats.half_width(0.05, 1.0, 0.0, seeds)) ** 2
    beside = ((row.high - row.low) / 2) ** 2 - stats.half_width(0.05, spread, 0.0, seeds) ** 2
    common = max(0.0, beside) / stats.half_width(0.05, 0.0, 1.0, seeds) ** 2
    inside = margin(row.data) - abs(row.difference)
    return stats.level(inside, spread, common, seeds) if inside > 0 else 1.0


def judged(path: str | Path) -> pd.DataFrame:
    """The claims of a ``claims.json``, their verdicts corrected (``alone``: each by itself), with
    what ``paper/claims.csv`` knows: source, statement, metric, ``table``; whether these products
    were ``calibrated`` for it or no seeds suffice (``unaffordable``); as fractions the published
    difference, ``paper``, and the ``detectable`` one."""
    frame = pd.DataFrame(recording.read_results(path, "claims")["claims"])
    known = pd.read_csv(CLAIMS, index_col="id", keep_default_na=False)
    for column in ("source", "statement", "metric", "calibrated", "unaffordable"):
        frame[column] = frame["id"].map(known[column])
    for mark in ("calibrated", "unaffordable"):
        pairs = zip(frame["data"].map(kind), frame[mark], strict=True)
        frame[mark] = [data in several.split() for data, several in pairs]
    frame["alone"], frame["verdict"] = frame["verdict"], corrected(frame)
    frame["detectable"] = (frame["high"] - frame["low"]).astype(float) * DETECTABLE
    frame["paper"] = pd.to_numeric(frame["published_difference"], errors="coerce").abs() / 100
    return frame.assign(table=frame["source"].str.extract(TABLE, expand=False))


def record(name: str, verdicts: list[dict], made: dict) -> Path | None:
    """Keep verdicts in ``results/claims.json``, those of the same claim and data replaced; nothing,
    where the name is empty. Other notebooks may do so at the same time. Each says of which profile
    and commit it is."""
    path, content = results_folder() / "claims.json", {"provenance": {}, "claims": []}
    if not name:
        return None
    of = {name: made.get(name) for name in ("profile", "commit")}
    verdicts = [row | of for row in verdicts]
    new = {(row["id"], row["data"]) for row in verdicts}
    sources = {f"{row['notebook']}, {row['data']}": made for row in verdicts}
    with locked(path.with_suffix(".lock")):
        if path.exists():
            content = recording.read_results(path, "claims")
        kept = [row for row in content["claims"] if (row["id"], row["data"]) not in new]
        rows = sorted(kept + verdicts, key=lambda row: (row["data"], row["id"]))
        return write_json(path, {"provenance": content["provenance"] | sources, "claims": rows})


# --- what is kept of every query

#: Read-outs and conventions of the numbers in tables and claims.
KEPT = (PAPER, DEFAULT, HIDDEN)


def asked(studies: Studies, similarity: bool = False) -> pd.DataFrame:
    """What every query contributed to the numbers of tables and claims: a row for each study and
    product, a column for each number, its name the values of :data:`.study.KEYS`; NaN where a
    product took no part. Clusters and classes too; ``similarity``, of every gallery product, is as
    large as all else together."""
    parts = []
    for (label, seed), one in studies.items():
        queries = one.queries[one.queries["variant"].isin(KEPT)]
        left_out = queries["convention"].str.contains("hits|released")
        left_out |= (queries["task"] == "similarity") & (not similarity)
        queries = queries[~left_out].astype({"value": np.float32}).reset_index(drop=True)
        first, *rest = (queries[key] for key in study.KEYS)
        names = first.str.cat(rest, sep=", ")
        wide = queries.assign(name=names).pivot(index="id", columns="name", values="value")
        # in the order that each number has them: the same draws, the same interval
        most = names.map(names.value_counts()).sort_values(ascending=False, kind="stable").index
        wide = wide.loc[queries["id"][most].unique()]
        first = one.rows.iloc[0]
        known = {"label": label, "seed": seed, "products": one.data}
        known |= {name: first[name] for name in ("data", "notebook", "model")}
        parts.append(wide[names.unique()].reset_index().assign(**known))
    frame = pd.concat(parts, ignore_index=True)
    keys = [*known, "id"]
    frame = frame[[*keys, *(name for name in frame if name not in keys)]]
    half = {name: np.float16 for name in frame if name.split(", ")[2:3] == ["similarity"]}
    return frame.astype({key: "category" for key in keys if key != "seed"} | half)
