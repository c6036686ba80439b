"""From numbers to statements: tested differences, verdicts on the paper's claims, and the tables of
README and docs (``python -m m5lib readme``), of which nothing is typed by hand.

A claim (``paper/claims.csv``) says that one row of a table is better than another by some metric.
Ours is the difference with a 95 % interval over seeds and queries. ``confirmed``: the interval lies
above 0; ``contradicted``: below; ``not confirmed``: it holds 0; ``not testable``: says why. Counts
are after a correction for so many tests, and apart where the shop was calibrated for the order.
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from m5lib import ROOT
from m5lib.data import write_json
from m5lib.evaluation import evaluate, stats
from m5lib.files import whole_file
from m5lib.lab import recording
from m5lib.lab.recording import load_results, results_folder
from m5lib.lab.study import Studies, number
from m5lib.modalities import MODALITIES

CLAIMS = ROOT / "paper" / "claims.csv"
VERDICTS = ("confirmed", "not confirmed", "contradicted", "not testable")
CALIBRATED = "of the confirmed, calibrated"
#: Endings of a claim's sides -> the number that they mean: "T finetuned", "I+T coarse".
ENDINGS = {
    " finetuned": number("mAP@1_finetune"),
    " pretrained": number("mAP@1_pretrain"),
    " fine": number("Prec@10_fine"),
    " coarse": number("Prec@10_coarse"),
}
#: Claims that no study of ours can test.
NOT_TESTABLE = {
    "C39": "needs products with ten listings or more: ours have a few, and ten found cannot all be "
    "right",
    "C91": "needs products of two sizes, the smaller a part of the larger",
}


def tested(
    studies: Studies, better: tuple[str, Mapping[str, str]], worse: tuple[str, Mapping[str, str]]
) -> dict:
    """What the first of two sides, each a label and its number, has more than the second: the
    difference over all seeds, its 95 % interval and the verdict. Both are compared query by query
    where both have the same queries, else seed by seed (:mod:`m5lib.evaluation.stats`)."""
    seeds = list(dict.fromkeys(seed for _, seed in studies))
    sides = [[(studies[label, seed], own) for seed in seeds] for label, own in (better, worse)]
    task = better[1]["task"]
    if task != "clustering" and task == worse[1]["task"]:
        pairs = [
            evaluate.paired(*(study.values(own) for study, own in pair))
            for pair in zip(*sides, strict=True)
        ]
        test = evaluate.difference(pairs, shared=len({study.data for study, _ in sides[0]}) == 1)
        by_seed = [float(pair["ours"].mean() - pair["theirs"].mean()) for pair in pairs]
        products = ", ".join(str(len(pair)) for pair in pairs)
        how = f"bootstrap over {len(seeds)} seeds and {products} products"
    else:  # no values by query, or other queries
        means = [np.array([study.value(own) for study, own in side]) for side in sides]
        test, by_seed = stats.paired_seeds(*means), (means[0] - means[1]).tolist()
        how = f"t over {len(seeds)} seeds"
    numbers = {"difference": test.mean, "each_seed": by_seed, "low": test.low, "high": test.high}
    for name, value in (numbers | {"p": test.p}).items():
        numbers[name] = value if name == "each_seed" or np.isfinite(value) else None
    return numbers | {"how": how, "verdict": verdict(test), "reason": ""}


def verdict(test: stats.Difference) -> str:
    """By the 95 % interval; one seed without queries has none, and confirms nothing."""
    return "confirmed" if test.low > 0 else "contradicted" if test.high < 0 else "not confirmed"


def differences(
    studies: Studies,
    pairs: Iterable[tuple[str, str]],
    names: Iterable[str | Mapping[str, str]],
    state: str = "finetuned",
    scale: float = 100.0,
) -> pd.DataFrame:
    """What the first of two labels has more than the second, in per cent, with its 95 % interval: a
    row per pair and number."""
    rows = []
    for one, other in pairs:
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
    verdicts, seeds = [], {seed for _, seed in studies}
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
        missing = [label for label, _ in sides if any((label, s) not in studies for s in seeds)]
        if missing:
            untested["reason"] = f"no run of {' or '.join(missing)} on these products"
        elif any(np.isnan(studies[label, s].value(own)) for label, own in sides for s in seeds):
            untested["reason"] = "these products do not have what it takes to measure it"
        verdicts.append(row | (untested if untested["reason"] else tested(studies, *sides)))
    return verdicts


def table(verdicts: Iterable[dict]) -> pd.DataFrame:
    """The verdicts for people: differences in per cent, as the paper prints them, with their 95 %
    interval, p, and the smallest difference that such a test finds in four of five cases: 2.8
    standard errors, (1.96 + 0.84) (high - low) / (2 x 1.96)."""
    shown = "id source metric better worse published_difference difference low high detectable p"
    frame = pd.DataFrame(list(verdicts)).reindex(columns=[*shown.split(), "verdict", "reason"])
    frame["detectable"] = (frame["high"] - frame["low"]).astype(float) * 2.8 / 3.92
    for column in ("difference", "low", "high", "detectable"):
        frame[column] = (100 * frame[column].astype(float)).round(1)
    frame["p"] = frame["p"].astype(float).round(4)
    frame = frame.rename(columns={"published_difference": "paper", "difference": "ours"})
    return frame.set_index("id").astype(object).where(frame.set_index("id").notna(), "")


def corrected(claims: pd.DataFrame) -> pd.Series:
    """The verdicts after the correction of Benjamini and Hochberg (1995) over every claim tested:
    of those decided, at most 5 % are expected to be so by chance."""
    tested = claims["p"].notna() & (claims["verdict"] != "not testable")
    decided = tested.copy()
    decided[tested] = false_discovery_control(claims.loc[tested, "p"].astype(float)) <= 0.05
    return claims["verdict"].where(decided | ~tested, "not confirmed")


def record(name: str, verdicts: list[dict], made: dict) -> Path | None:
    """Keep verdicts in ``results/claims.json``, those of the same claim and data replaced; nothing,
    where the name is empty."""
    path, content = results_folder() / "claims.json", {"provenance": {}, "claims": []}
    if not name:
        return None
    if path.exists():
        content = recording.read_results(path, "claims")
    new = {(row["id"], row["data"]) for row in verdicts}
    kept = [row for row in content["claims"] if (row["id"], row["data"]) not in new]
    sources = content["provenance"] | {
        f"{row['notebook']}, {row['data']}": made for row in verdicts
    }
    rows = sorted(kept + verdicts, key=lambda row: (row["data"], row["id"]))
    return write_json(path, {"provenance": sources, "claims": rows})


def released(path: Path) -> pd.DataFrame:
    """Where paper and released code part ways (``paper/differences.csv``), with a number of each of
    the audit's items."""
    table = pd.read_csv(ROOT / "paper" / "differences.csv", index_col="what")
    audit = load_results(path).query("task == 'audit'")
    means = audit.groupby(["variant", "metric", "model"])["value"].mean()
    for column, model in (("released", "released"), ("ours", "scale")):
        keys = [(f"item {row.item}", row.measured, model) for row in table.itertuples()]
        table[column] = [f"{means[key]:.3g}" if key in means else "" for key in keys]
    return table.drop(columns="item")


def attributed(path: Path) -> pd.DataFrame:
    """By modality: how often a method's highest score is on what carries the category, and what
    deleting and inserting by integrated gradients gains over random order."""
    pointing = pd.read_csv(path.with_name("attribution_pointing.csv"))
    names, methods = pointing["modality"].unique(), pointing["method"].unique()
    table = pointing.pivot(index="modality", columns="method", values="hits")
    table = table.loc[names, methods].add_suffix(" points at it")
    table["chance"] = pointing.groupby("modality")["chance"].first()
    table = table.round(2).map("{:.2f}".format)
    areas = pd.read_csv(path.with_name("attribution_areas.csv"))
    name_of = {MODALITIES[name].code: name for name in names}
    for row in areas.rename(columns={"tokens of": "code"}).itertuples():
        if name := name_of.get(row.code):  # not that of all together
            table.loc[name, f"{row.curve} gain"] = f"{row.gain:.2f} [{row.low:.2f}, {row.high:.2f}]"
    return table


def separated(path: Path) -> pd.DataFrame:
    """How well categories separate, as notebook 11 recorded it."""
    table = pd.read_csv(path.with_name("maps_separation_layered.csv"), index_col=0)
    return table.rename_axis("metric, space")


def fused(path: Path) -> pd.DataFrame:
    """What fused vectors are worth, as ``benchmarks/fused.py`` wrote it."""
    return pd.read_csv(path.with_name(f"{path.stem}_table.csv"), index_col=0)


def costs(path: Path) -> pd.DataFrame:
    """What an extractor costs, as ``benchmarks/backbones.py`` measured it."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    order = sorted(rows, key=lambda words: list(MODALITIES).index(words.partition("=")[0]))
    table = pd.DataFrame({f"`{words}`": rows[words] for words in order}).T.rename_axis("choice")
    return table.set_axis([*table.columns[:-1], "seconds per 1,000 products, two cores"], axis=1)


def planted(path: Path) -> pd.DataFrame:
    """What near-duplicates are found from which cosine on (``benchmarks/duplicates.py``)."""
    found = json.loads(path.read_text(encoding="utf-8"))["trained"]["thresholds"]
    table = pd.DataFrame(found)[["cosine", "pairs", "planted", "others", "different, expected"]]
    recall = [" · ".join(f"{value:.2f}" for value in row["recall"].values()) for row in found]
    table[f"recall of {' · '.join(found[0]['recall'])}"] = recall
    return table.set_index("cosine")


def counted(path: Path) -> str:
    """How many of the paper's claims got which verdict after :func:`corrected`, and a line for each
    contradicted one."""
    claims = pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["claims"])
    claims["table"] = claims["source"].str.extract(r"^(\w+ [0-9.]+)", expand=False)
    known, before = pd.read_csv(CLAIMS, index_col="id"), claims["verdict"].value_counts()
    claims["verdict"] = corrected(claims)
    built_in = claims["id"].map(known["calibrated"]) == claims["data"]
    built_in = claims[built_in & (claims["verdict"] == "confirmed")]
    by = ["data", "table"]
    counts = claims.groupby([*by, "verdict"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=VERDICTS, fill_value=0)
    counts[CALIBRATED] = built_in.groupby(by).size().reindex(counts.index, fill_value=0)
    order = sorted(counts.index, key=lambda key: (key[0], *map(int, re.findall(r"\d+", key[1]))))
    now, tested = claims["verdict"].value_counts(), (claims["verdict"] != "not testable").sum()
    text = f"{tested} claims are tested. Each at 5 % by itself, {before.get('confirmed', 0)} are "
    text += f"confirmed and {before.get('contradicted', 0)} contradicted. After the correction for "
    text += f"so many tests, {now.get('confirmed', 0)} and {now.get('contradicted', 0)}. Of the "
    text += f"confirmed, {len(built_in)} are orders that the shop was calibrated for."
    lines = ["Contradicted, in per cent with 95 % intervals:", ""]
    for row in claims.query("verdict == 'contradicted'").itertuples():
        paper = f" (paper {row.published_difference})" if row.published_difference != "" else ""
        ours, low, high = (f"{100 * value:+.1f}" for value in (row.difference, row.low, row.high))
        claim = f"{row.source}, {known.metric[row.id]}: {row.better} over {row.worse}{paper}"
        lines.append(f"- {row.data}, {claim}: ours {ours} [{low}, {high}]")
    lines = lines if lines[2:] else ["None is contradicted."]
    return "\n".join([text, "", markdown(counts.loc[order]), "", *lines])


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, index first."""
    frame = frame.reset_index().astype(object)
    rows = [map(str, frame.columns)]
    for values in frame.itertuples(index=False):
        cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in values)
        cells = (cell.replace("|", r"\|").replace("\n", " ") for cell in cells)
        rows.append("" if cell == "nan" else cell for cell in cells)
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([lines[0], "|" + "---|" * len(frame.columns), *lines[1:]])


def made_by(path: Path, notebook: str) -> str:
    """How a results file was made."""
    content, times = json.loads(path.read_text(encoding="utf-8")), path.with_name("times.json")
    known = json.loads(times.read_text()) if times.exists() else {}
    sources, seeds = content["provenance"], sorted({row["seed"] for row in content["rows"]})
    seconds = known.get(path.stem) or sum(made["wall_seconds"] for made in sources.values())
    made, s = sources[notebook], "s" * (len(seeds) > 1)
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    return (
        f"From `results/{path.name}`: profile `{made['profile']}`, "
        f"seed{s} {', '.join(map(str, seeds))}, commit `{made['commit']}`, "
        f"{made['device']}, {versions}" + (f"; {seconds:.0f} s." if seconds else ".")
    )


#: A generated block, its file, the notebook that made it (14 was once 03), its table.
TABLES = (
    ("demo", "demo.json", "05_downstream", recording.compact),
    ("fashion", "fashion.json", "05_downstream", recording.compact),
    ("modality_count", "ladder.json", "06_modality_count", recording.ladder),
    ("fused", "fused.json", "benchmarks/fused.py", fused),
    ("fused_fashion", "fused_fashion.json", "benchmarks/fused.py", fused),
    ("weights", "weights.json", "benchmarks/weights.py", fused),
    ("differences", "model.json", "03_model", released),
    ("differences", "released.json", "14_released", released),
    ("maps", "maps.json", "11_embedding_maps", separated),
    ("attribution", "attribution.json", "12_attribution", attributed),
)


def blocks(results: Path) -> dict[str, str]:
    """The generated parts of README and docs, name -> text: those whose files are there."""
    text = {}
    for name, file, notebook, table in TABLES:
        if (path := results / file).exists():
            text[name] = f"{markdown(table(path))}\n\n{made_by(path, notebook)}"
    paths = {"shop": results / "simcl.json", "real products": results / "simcl_fashion.json"}
    if all(path.exists() for path in paths.values()):
        made = (made_by(path, "09_simcl") for path in paths.values())
        text["losses"] = "\n\n".join([markdown(recording.losses(paths)), *made])
    if (path := results / "times.json").exists():
        times = json.loads(path.read_text(encoding="utf-8"))
        order = sorted(times, key=lambda name: -times[name])
        minutes = ", ".join(f"`{name}` {times[name] / 60:.0f}" for name in order)
        hours = f"together {sum(times.values()) / 3600:.1f} hours (`results/times.json`)"
        text["times"] = f"Wall time of what is recorded, all seeds, minutes: {minutes}; {hours}."
    if (path := results / "claims.json").exists():
        text["claims"] = counted(path)
    for name, shown in (("backbones", costs), ("duplicates", planted)):
        if (path := results.parent / "benchmarks" / f"{name}.json").exists():
            text[name] = markdown(shown(path))
    return text


def gallery(results: Path) -> str:
    """``results/README.md``: every results file with how it was made, its tables, its figures."""
    names = {path.stem for path in results.glob("*.json")} - {"times", "claims"}
    made = "Generated by `python -m m5lib readme` from the files here. How long each took:"
    lines = [f"# Results\n\n{made} `times.json`.\n"]
    for name in sorted(names):
        content = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        longer = tuple(f"{other}_" for other in names if other.startswith(f"{name}_"))
        paths = sorted(results.glob(f"{name}_*"))
        paths = {path.name: path for path in paths if not path.name.startswith(longer)}
        lines += [f"## {name}", ""]
        for book, m in content["provenance"].items():
            how = f"profile {m['profile']}, commit `{m['commit']}`, {m['device']}"
            lines.append(f"- `{book}`: {how}")
        figures = [""]
        for file, path in paths.items():
            title = path.stem.removeprefix(f"{name}_").replace("_", " ")
            if path.suffix == ".csv":
                frame = pd.read_csv(path, index_col=0, keep_default_na=False)
                lines += ["", f"**{title}** ([csv]({file}))", "", markdown(frame)]
            elif path.suffix == ".png":
                vector = f" [svg]({path.stem}.svg)" if f"{path.stem}.svg" in paths else ""
                figures.append(f"![{title}]({file}){vector}")
        lines += [*figures, ""]
    if (path := results / "claims.json").exists():
        frame = pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["claims"])
        frame["metric"] = frame["id"].map(pd.read_csv(CLAIMS, index_col="id")["metric"])
        frame["verdict"], lines = corrected(frame), [*lines, "## claims", ""]
        for data, part in frame.groupby("data"):
            lines += [f"**{data}**", "", markdown(table(part.to_dict("records"))), ""]
    return "\n".join(lines)


def fill(text: str, blocks: Mapping[str, str]) -> str:
    """The text with what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` generated. Raises
    ``ValueError`` where a block is not known, or not closed."""
    for name in re.findall(r"<!-- (\w+) -->", text):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if name not in blocks or end not in text:
            raise ValueError(f"{start}: no {end} after it, or not one of {', '.join(blocks)}")
        head, tail = text[: text.index(start)], text[text.index(end) :]
        text = f"{head}{start}\n{blocks[name]}\n{tail}"
    return text


def pages() -> dict[Path, str]:
    """README, the pages of ``docs`` and ``results/README.md`` as they should be. Raises
    ``ValueError`` where no page has the marker of a block."""
    results, generated = ROOT / "results", blocks(ROOT / "results")
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    if lost := [n for n in generated if f"<!-- {n} -->" not in "".join(texts.values())]:
        raise ValueError(f"no page has a marker for {lost}; add <!-- {lost[0]} --> to one")
    filled = {path: fill(text, generated) for path, text in texts.items()}
    return filled | {results / "README.md": gallery(results)}


def main(arguments: list[str] | None = None) -> int:
    """``python -m m5lib readme``: write the generated tables into README, docs and results."""
    argparse.ArgumentParser("python -m m5lib readme", description=__doc__).parse_args(arguments)
    for path, text in pages().items():
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return 0
