"""The tables of README and docs and ``results/README.md``, of which nothing is typed by hand::

    python docs/readme.py

writes them anew from ``results/`` and ``benchmarks/``; a test holds the pages equal to them.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import findings
import pandas as pd

from m5lib import ROOT
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.files import whole_file
from m5lib.lab import claims as verdicts
from m5lib.lab import recording
from m5lib.modalities import MODALITIES
from results import FIRST

#: The column of claims that confirm what the shop was calibrated for.
CALIBRATED = "of the confirmed, calibrated"

# --- a table each, from a results file


def chosen(rows: pd.DataFrame) -> str:
    """The read-out with the best mAP@10 of validation products, averaged over sets of modalities
    and seeds; of equals the default one."""
    part = recording.pick(rows, {"convention": recording.VALIDATION, "state": "pretrained"})
    part = part[~part["variant"].str.contains(",")]  # those were seen on the way
    means = part.groupby("variant")["value"].mean()
    return DEFAULT if means.empty or means.get(DEFAULT, -1.0) >= means.max() else means.idxmax()


def _shown(rows: pd.DataFrame) -> list[str]:
    """The paper's read-out, the default and the one chosen on validation products, if recorded."""
    names = dict.fromkeys([PAPER, DEFAULT, chosen(rows)])
    return [name for name in names if name in set(rows["variant"])]


def compact(path: Path) -> pd.DataFrame:
    """mAP@10 by category: modalities against state and read-out, and the best control."""
    rows = recording.load_results(path).query("notebook == '05_downstream' and task == 'retrieval'")
    columns = {}
    for variant in _shown(rows):
        table = recording.compare(rows, "mAP@10", "min_k_r", variant)
        columns |= {f"{state}, {variant}": table[state] for state in ("untrained", "pretrained")}
    columns["best control"] = table["control"]
    return pd.DataFrame(columns).loc[table.index].rename_axis("given").round(3)


def _by_seed(rows: pd.DataFrame, variant: str, index: str, metric: str = "mAP@10") -> pd.Series:
    """``mean ± deviation`` over seeds of retrieval by category, or of the fine-tuned head."""
    convention = "min_k_r" if metric == "mAP@10" else "fine-tuned head"
    wanted = {"metric": metric, "variant": variant, "convention": convention}
    rows = recording.pick(rows.query("task != 'fine retrieval'"), wanted)
    return recording.said(rows.pivot(index=index, columns="seed", values="value"))


def ladder(path: Path) -> pd.DataFrame:
    """Models trained on more and more modalities (Table 3), in per cent; read-outs as above."""
    rows = recording.load_results(path).query("model == 'scale' and state != 'untrained'")
    columns = {f"mAP@10, {name}": _by_seed(rows, name, "modalities") for name in _shown(rows)}
    for metric in ("mAP@10", "accuracy"):
        columns[f"{metric}, fine-tuned"] = _by_seed(rows, recording.HIDDEN, "modalities", metric)
    table = pd.DataFrame(columns).rename_axis("trained on")
    sets = ("T", "I+T", "I+T+Tab", "I+T+Tab+V", "I+T+Tab+V+A")
    return table.reindex([codes for codes in sets if codes in table.index])


def losses(paths: Mapping[str, Path]) -> pd.DataFrame:
    """What each of the losses teaches (Table 6, its ticks read as losses), in per cent, by data."""
    labels, columns = ("no loss", "masked tasks only", "contrast only", "IMCL+PRE"), {}
    for data, path in paths.items():
        rows = recording.load_results(path)
        columns[f"{data}: mAP@10, {PAPER}"] = _by_seed(rows, PAPER, "model")
        columns[f"{data}: mAP@10, fine-tuned"] = _by_seed(rows, recording.HIDDEN, "model")
    table = pd.DataFrame(columns).loc[[f"scale, {label}" for label in labels]]
    names = ["nothing (random weights)", "masked tasks", "contrast", "both"]
    return table.set_axis(names).rename_axis("pre-trained with")


def released(path: Path) -> pd.DataFrame:
    """Where paper and released code part ways (``paper/differences.csv``), with a number of each of
    the audit's items."""
    table = pd.read_csv(ROOT / "paper" / "differences.csv", index_col="what")
    audit = recording.load_results(path).query("task == 'audit'")
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
    table = pd.read_csv(path.with_name(f"maps_separation_{DEFAULT}.csv"), index_col=0)
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


def extraction(path: Path, products: float = 6.3e6, cores: int = 64) -> str:
    """How long media of the release would take by these rates; nothing of it was run."""
    rows, sets = json.loads(path.read_text(encoding="utf-8")), []
    for name, words in (("the plain", "crops frames mfcc"), ("the paper's", "regions clips mfcc")):
        chosen = [f"{key}={word}" for key, word in zip(MEDIA, words.split(), strict=True)]
        seconds = sum(rows[choice]["seconds_per_1000_on_two_cores"] for choice in chosen) / 1000
        hours, listed = seconds * 2 * products / 3600, ",".join(chosen)
        sets.append(f"{hours:,.0f} core hours by {name} extractors (`{listed}`), ")
        sets[-1] += f"{hours / cores:,.1f} hours on {cores} cores"
    text = (
        f"Media of {products / 1e6} million products, a picture, a video of 8 s and a sound each, "
    )
    return f"{text}computed from `benchmarks/{path.name}`: {'; '.join(sets)}."


def paces(path: Path) -> str:
    """A training step of this code and of the authors', as ``benchmarks/step.py`` measured them: a
    table for each device."""
    text = []
    for device, runs in json.loads(path.read_text(encoding="utf-8")).items():
        rows = [row for run in runs for row in run["rows"]]
        case = ["size", "variant", "products", "micro"]
        table = pd.DataFrame(rows).set_index([*case, "of"]).unstack("of")
        shown = {}
        for of, whose in (
            ("this", ""),
            ("float32", " in float32"),
            ("authors", " of the authors'"),
        ):
            if of in table["seconds"]:
                shown[f"seconds{whose}"] = table["seconds", of].round(2)
                shown[f"GiB{whose}"] = table["memory_gib", of].round(1)
                if "weights" in table and of != "float32":
                    shown[f"million weights{whose}"] = (table["weights", of] / 1e6).round(0)
        for of, whose in (("authors", "the authors'"), ("before", "before")):
            if of in table["seconds"]:
                shown[f"times as fast as {whose}"] = table["ratio", of].round(1)
                shown[f"by processor seconds, {whose}"] = table["processor_ratio", of].round(1)
        for column, words in STEP.items():
            shown[words] = (100 * table[column, "this"]).round(0)
        shown = pd.DataFrame(shown).astype(object).map(lambda x: "" if pd.isna(x) else f"{x:g}")
        commits = {run["provenance"]["this"]["commit"] for run in runs}
        text.append(f"{markdown(shown)}\n\n{device}; commit {', '.join(sorted(commits))}.")
    return "\n\n".join(text)


def planted(path: Path) -> str:
    """What near-duplicates are found from which cosine on (``benchmarks/duplicates.py``)."""
    states = json.loads(path.read_text(encoding="utf-8"))
    rows = [{"model": state, **row} for state in states for row in states[state]["thresholds"]]
    table = pd.DataFrame(rows)
    kinds = " · ".join(rows[0]["recall"])
    recall = [" · ".join(f"{value:.2f}" for value in row["recall"].values()) for row in rows]
    columns = ["cosine", "pairs", "planted", "others", "of two labels", "different, expected"]
    table = table[["model", *columns]].assign(**{f"recall of {kinds}": recall})
    chosen = states["trained"]["thresholds"][0]
    others, alike = chosen["others"], chosen["others of one title"]
    text = f"Of the {others} others at the chosen threshold (trained) {alike} have the very same "
    text += "title: they may be products that are listed twice, which nobody has checked."
    return f"{markdown(table.set_index('model'))}\n\n{text}"


def _several(each_seed: pd.Series) -> str:
    """Of how many seeds the claims of a table are; nothing where none is tested."""
    return " or ".join(map(str, sorted({len(seeds) for seeds in each_seed.dropna()})))


def counted(path: Path) -> str:
    """How many of the paper's claims got which verdict, corrected for their number
    (:func:`m5lib.lab.claims.corrected`), and a line for each contradicted one."""
    claims = verdicts.judged(path)
    before = claims["alone"].value_counts()
    built_in = claims[claims["calibrated"] & (claims["verdict"] == "confirmed")]
    by = ["data", "table"]
    counts = claims.groupby([*by, "verdict"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=verdicts.VERDICTS, fill_value=0)
    counts.insert(0, "seeds", claims.groupby(by)["each_seed"].agg(_several))
    counts[CALIBRATED] = built_in.groupby(by).size().reindex(counts.index, fill_value=0)
    order = sorted(counts.index, key=lambda key: (key[0], *map(int, re.findall(r"\d+", key[1]))))
    now, tested = claims["verdict"].value_counts(), (claims["verdict"] != "not testable").sum()
    text = f"{tested} claims are tested. Each at 5 % by itself, {before.get('confirmed', 0)} are "
    text += f"confirmed and {before.get('contradicted', 0)} contradicted. After the correction for "
    text += f"so many tests, {now.get('confirmed', 0)} and {now.get('contradicted', 0)}. Of the "
    text += f"confirmed, {len(built_in)} are orders that the shop was calibrated for."
    sizes = claims.get("profile", pd.Series(dtype=str))[claims["verdict"] != "not testable"]
    text += "".join(f" {n} are of profile `{name}`." for name, n in sizes.value_counts().items())
    lines = ["Contradicted, in per cent with 95 % intervals:", ""]
    for row in claims.query("verdict == 'contradicted'").itertuples():
        paper = f" (paper {row.published_difference})" if row.published_difference != "" else ""
        ours, low, high = (f"{100 * value:+.1f}" for value in (row.difference, row.low, row.high))
        claim = f"{row.source}, {row.metric}: {row.better} over {row.worse}{paper}"
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
    content, times = recording.read_results(path), path.with_name("times.json")
    known = json.loads(times.read_text()) if times.exists() else {}
    sources, seeds = content["provenance"], sorted({one["seed"] for one in content["measured"]})
    own = known.get(path.stem, {"seconds": 0, "seeds": 0})
    of_all = own["seconds"] * (own["seeds"] == len(seeds))  # else of other runs than these
    seconds = of_all or sum(made["wall_seconds"] for made in sources.values())
    made, s = sources[notebook], "s" * (len(seeds) > 1)
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    return (
        f"From `results/{path.name}`: profile `{made['profile']}`, "
        f"seed{s} {', '.join(map(str, seeds))}, commit `{made['commit']}`, "
        f"{made['device']}, {versions}" + (f"; {seconds:.0f} s." if seconds else ".")
    )


#: Shares of a step.
STEP = {
    "mfu": "% of the peak",
    "linear_share": "% of it in linear layers",
    "linear_of_peak": "these, % of the peak",
}
#: What the release has in files.
MEDIA = ("image", "video", "audio")
#: A generated block, its file, what made it, its table.
TABLES = (
    ("demo", "demo.json", "05_downstream", compact),
    ("fashion", "fashion.json", "05_downstream", compact),
    ("modality_count", "modality_count.json", "06_modality_count", ladder),
    ("fused", "fused.json", "benchmarks/fused.py", fused),
    ("fused_fashion", "fused_fashion.json", "benchmarks/fused.py", fused),
    ("weights", "weights.json", "benchmarks/weights.py", fused),
    ("differences", "released.json", "14_released", released),
    ("maps", "maps.json", "11_embedding_maps", separated),
    ("attribution", "attribution.json", "12_attribution", attributed),
)


def files_of(results: Path) -> list[Path]:
    """The results files, in order; verdicts and times are none."""
    return [p for p in sorted(results.glob("*.json")) if p.stem not in ("times", "claims")]


def versions(results: Path) -> str:
    """Of which code (:func:`m5lib.lab.code_version`) the results are: that of most, and what is of
    another."""
    made = {p.stem: recording.read_results(p)["provenance"].values() for p in files_of(results)}
    codes = {name: sorted({one["code"] for one in sources}) for name, sources in made.items()}
    most = pd.Series([code for several in codes.values() for code in several]).mode()[0]
    others = [
        f"`{name}` ({', '.join(several)})" for name, several in codes.items() if several != [most]
    ]
    but = f", but for {', '.join(others)}" if others else ""
    return f"Of {len(codes)} files each is of the code `{most}`{but}."


def blocks(results: Path) -> dict[str, str]:
    """The generated parts of README and docs, name -> text: those whose files are there."""
    text = {}
    for name, file, notebook, table in TABLES:
        if not (path := results / file).exists():
            continue
        text[name] = f"`results/{file}` holds nothing of `{notebook}`."  # products without labels
        if notebook in recording.read_results(path)["provenance"]:
            text[name] = f"{markdown(table(path))}\n\n{made_by(path, notebook)}"
    paths = {"shop": results / "simcl.json", "real products": results / "simcl_fashion.json"}
    if all(path.exists() for path in paths.values()):
        made = (made_by(path, "09_simcl") for path in paths.values())
        text["losses"] = "\n\n".join([markdown(losses(paths)), *made])
    if files_of(results):
        text["versions"] = versions(results)
    if (path := results / "times.json").exists():
        times = json.loads(path.read_text(encoding="utf-8"))
        first = times.pop(FIRST, {}).get("seconds", 0)
        times = {name: own["seconds"] for name, own in times.items()}
        order = sorted(times, key=lambda name: -times[name])
        minutes = ", ".join(f"`{name}` {times[name] / 60:.0f}" for name in order)
        hours = f"together {sum(times.values()) / 3600:.1f} hours (`results/times.json`)"
        text["times"] = f"Wall time of what is recorded, all seeds, minutes: {minutes}; {hours}."
        text["times"] += f" {FIRST.capitalize()}: {first / 60:.0f} core-minutes." if first else ""
    if (path := results / "claims.json").exists():
        text["claims"] = counted(path)
        text["answers"] = "\n".join(findings.answers(results))
    if (path := results.parent / "benchmarks/step.json").exists():
        text["paces"] = paces(path)
    if (path := results.parent / "benchmarks/backbones.json").exists():
        text["extraction"] = extraction(path)
    if (path := results.parent / "benchmarks/backbones.json").exists():
        text["backbones"] = markdown(costs(path))
    if (path := results.parent / "benchmarks/duplicates.json").exists():
        text["duplicates"] = planted(path)
    return text


#: How to read the tables.
LEGEND = (
    "In tables, *paper* is the published number and *ours* ours, both in per cent, `±` the "
    "deviation over seeds. Of the [claims](#claims), *ours* is the difference of two rows in "
    "points, *low* and *high* its 95 % interval; *detectable*: the smallest true difference that "
    "such a test finds in four of five repetitions; *p*: before the correction for so many tests; "
    "*verdict*: after it. In figures of several seeds dots are seeds, diamonds and bars their mean "
    "with its deviation. `fashion`, `weights` and names that end in `_fashion` are of the real "
    "products, the others of the shop."
)


def gallery(results: Path) -> str:
    """``results/README.md``: every results file with how it was made, its tables, its figures."""
    names = [path.stem for path in files_of(results)]
    made = "Generated by `python docs/readme.py` from the files here. How long each took:"
    lines = [f"# Results\n\n{made} `times.json`.\n\n{LEGEND}\n"]
    lines.append(" · ".join(f"[{name}](#{name})" for name in (*names, "claims")) + "\n")
    for name in names:
        content = recording.read_results(results / f"{name}.json")
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
            elif path.suffix == ".parquet":
                lines += ["", f"[every query's values]({file}), of which intervals are made"]
            elif path.suffix == ".png":
                vector = f" [svg]({path.stem}.svg)" if f"{path.stem}.svg" in paths else ""
                figures.append(f"![{title}]({file}){vector}")
        lines += [*figures, ""]
    if (path := results / "claims.json").exists():
        lines += ["## claims", ""]
        for data, part in verdicts.judged(path).groupby("data"):
            lines += [f"**{data}**", "", markdown(verdicts.table(part.to_dict("records"))), ""]
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
    filled[ROOT / "docs" / "findings.md"] = findings.page(results, markdown)
    return filled | {results / "README.md": gallery(results)}


def main() -> None:
    """Write the generated tables into README, docs and results."""
    for path, text in pages().items():
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
