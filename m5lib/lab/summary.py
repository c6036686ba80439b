"""Tables made from results files: what ``make demo`` prints and what the README shows. Nothing in
them is typed by hand."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from m5lib import ROOT
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.lab import recording
from m5lib.lab.claims import VERDICTS
from m5lib.lab.study import HIDDEN
from m5lib.lab.tables import said
from m5lib.modalities import MODALITIES

#: Column of the table -> metric and convention.
SHOWN = {
    "mAP@1": ("mAP@1", "min_k_r"),
    "mAP@10": ("mAP@10", "min_k_r"),
    "mAP@10 (hits)": ("mAP@10", "hits"),
    "Prec@10": ("Prec@10", "k"),
    "accuracy": ("accuracy", None),
    "NMI": ("NMI", None),
    "purity": ("purity", None),
}


#: Sets of modalities of Table 3.
LADDER = ("T", "I+T", "I+T+Tab", "I+T+Tab+V", "I+T+Tab+V+A")
#: Model of the rows of ``simcl`` -> the losses that it was trained with.
LOSSES = {
    "scale, no loss": "nothing (random weights)",
    "scale, masked tasks only": "masked tasks",
    "scale, contrast only": "contrast",
    "scale, IMCL+PRE": "both",
}
KEYS = ["state", "model", "modalities", "variant"]


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of a results file as state x model x modalities x variant against the metrics of
    :data:`SHOWN`; the mean over seeds.

    Retrieval is that by category; retrieval of other listings of the same product has the same
    metrics, and is left out.
    """
    columns, frame = {}, frame[frame["task"] != "fine retrieval"]
    for name, (metric, convention) in SHOWN.items():
        part = frame[
            (frame["metric"] == metric)
            & ((frame["convention"] == convention) | (convention is None))
        ]
        columns[name] = part.groupby(KEYS, sort=False)["value"].mean()
    order = pd.MultiIndex.from_frame(frame[KEYS].drop_duplicates())
    return pd.DataFrame(columns).reindex(order).dropna(how="all")


def compare(frame: pd.DataFrame, metric: str, convention: str, variant: str) -> pd.DataFrame:
    """Modalities against state for one metric of retrieval by category and read-out; a control
    stands beside the modalities that it reads, the best of several."""
    part = frame[
        (frame["task"] == "retrieval")
        & (frame["metric"] == metric)
        & (frame["convention"] == convention)
    ]
    part = part[(part["variant"] == variant) | (part["state"] == "control")]
    best = part.groupby(["modalities", "state"], sort=False)["value"].max().unstack()
    best = best.loc[
        sorted(
            best.index,
            key=lambda codes: (codes.count("+"), list(frame["modalities"].unique()).index(codes)),
        )
    ]
    return best[
        [state for state in ("untrained", "pretrained", "finetuned", "control") if state in best]
    ]


def table(path: str | Path, notebook: str = "05_downstream") -> pd.DataFrame:
    """The headline of a results file: for each state the default and the paper's read-out, then the
    controls, rounded."""
    frame = recording.load_results(path)
    frame = frame[
        (frame["notebook"] == notebook)
        & (frame["variant"].isin([DEFAULT, PAPER]) | (frame["state"] == "control"))
    ]
    return wide(frame).round(3)


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, index first."""
    frame = frame.reset_index().astype(object)
    cells = [[str(c) for c in frame.columns]] + [
        ["" if v != v else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row]
        for row in frame.itertuples(index=False)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def made_by(path: str | Path, notebook: str) -> str:
    """The sentence that says how a results file was made."""
    content, times = (
        json.loads(Path(path).read_text(encoding="utf-8")),
        Path(path).with_name("times.json"),
    )
    known = json.loads(times.read_text(encoding="utf-8")) if times.exists() else {}
    made, seeds = content["provenance"], sorted({row["seed"] for row in content["rows"]})
    one, seconds = (
        made[notebook],
        known.get(Path(path).stem) or sum(entry["wall_seconds"] for entry in made.values()),
    )
    word = "seed" if len(seeds) == 1 else "seeds"
    versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
    return (
        f"From `results/{Path(path).name}`: profile `{one['profile']}`, {word} "
        f"{', '.join(map(str, seeds))}, commit `{one['commit']}`, "
        f"{one['device']}, {versions}; {seconds:.0f} s."
    )


def chosen(frame: pd.DataFrame) -> str:
    """The read-out with the best mAP@10 of validation products, averaged over sets of modalities
    and seeds."""
    part = frame[
        frame["convention"].str.contains("validation")
        & (frame["state"] == "pretrained")
        & ~frame["variant"].str.contains(",")
    ]
    return part.groupby("variant")["value"].mean().idxmax()


def compact(path: str | Path, metric: str = "mAP@10", convention: str = "min_k_r") -> pd.DataFrame:
    """One metric of retrieval by category: modalities against state and read-out, and the best
    control.

    Read-outs: the paper's, the library's default, and the one that validation products choose
    (:func:`chosen`).
    """
    frame = recording.load_results(path)
    frame = frame[(frame["notebook"] == "05_downstream") & (frame["task"] == "retrieval")]
    parts = {}
    for variant in dict.fromkeys([PAPER, DEFAULT, chosen(frame)]):
        part = compare(frame, metric, convention, variant)
        parts |= {f"{state}, {variant}": part[state] for state in ("untrained", "pretrained")}
    found = pd.DataFrame(parts | {"best control": part["control"]})
    return found.loc[part.index].rename_axis("given").round(3)


def _spread(frame: pd.DataFrame, metric: str, convention: str, variant: str) -> pd.Series:
    """A number of the tasks by category, by model, modalities and seed."""
    keep = (
        (frame["metric"] == metric)
        & (frame["convention"] == convention)
        & (frame["variant"] == variant)
    )
    part = frame[keep & frame["task"].isin(["retrieval", "classification"])]
    return part.set_index(["model", "modalities", "seed"])["value"]


def ladder(path: str | Path) -> pd.DataFrame:
    """Retrieval by category (mAP@10) and accuracy of models trained on more and more modalities:
    mean ± deviation over seeds, per cent.

    Before fine-tuning by the paper's read-out, the library's default and the one that validation
    products choose; then after it.
    """
    frame = recording.load_results(path)
    frame = frame[(frame["model"] == "scale") & (frame["state"] != "untrained")]
    shown = {
        f"mAP@10, {variant}": ("mAP@10", "min_k_r", variant)
        for variant in dict.fromkeys([PAPER, DEFAULT, chosen(frame)])
    }
    shown |= {
        "mAP@10, fine-tuned": ("mAP@10", "min_k_r", HIDDEN),
        "accuracy, fine-tuned": ("accuracy", "fine-tuned head", HIDDEN),
    }
    columns = {
        name: said(_spread(frame, *wanted).unstack("seed").droplevel("model"))
        for name, wanted in shown.items()
    }
    found = pd.DataFrame(columns).rename_axis("trained on")
    return found.loc[[sets for sets in LADDER if sets in found.index]]


def losses(paths: Mapping[str, Path]) -> pd.DataFrame:
    """What each of the losses teaches (Table 6, its ticks read as losses): mean ± deviation over
    seeds, per cent, for each data set.

    Before fine-tuning by the paper's read-out, and after it.
    """
    shown = {
        f"mAP@10, {PAPER}": ("mAP@10", "min_k_r", PAPER),
        "mAP@10, fine-tuned": ("mAP@10", "min_k_r", HIDDEN),
    }
    columns = {}
    for data, path in paths.items():
        frame = recording.load_results(path)
        for name, wanted in shown.items():
            columns[f"{data}: {name}"] = said(
                _spread(frame, *wanted).unstack("seed").droplevel("modalities")
            )
    found = pd.DataFrame(columns).rename(index=LOSSES).rename_axis("pre-trained with")
    return found.loc[list(LOSSES.values())]


def claims(path: str | Path) -> pd.DataFrame:
    """How many of the paper's claims got which verdict: data and table against verdict."""
    frame = pd.DataFrame(json.loads(Path(path).read_text(encoding="utf-8"))["claims"])
    frame["table"] = frame["source"].str.extract(
        r"^((?:Table|Figure|Section) [0-9.]+)", expand=False
    )
    found = (
        frame.groupby(["data", "table", "verdict"])
        .size()
        .unstack(fill_value=0)
        .reindex(columns=VERDICTS, fill_value=0)
    )
    order = sorted(
        found.index, key=lambda key: (key[0], [int(n) for n in re.findall(r"\d+", key[1])])
    )
    return found.loc[order]


def contradicted(path: str | Path) -> list[str]:
    """A line for each claim that what was measured here contradicts."""
    lines = []
    for row in json.loads(Path(path).read_text(encoding="utf-8"))["claims"]:
        if row["verdict"] == "contradicted":
            paper = (
                ""
                if row["published_difference"] == ""
                else f" (paper {row['published_difference']})"
            )
            ours = f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"  # noqa: E501
            lines.append(
                f"- {row['data']}, {row['source']}, {row['metric']}: {row['better']} over "
                f"{row['worse']}{paper}: ours {ours}"
            )
    return lines


#: Item of the audit (:mod:`m5lib.models.audit`, notebook 03) -> what it is about; the paper; the
#: released code; the number that shows it.
DIFFERENCES = {
    "item 1": (
        "mask of the joint encoder",
        "not said",
        "another product's",
        "change of it with the places in the batch",
    ),
    "item 2": (
        "masked tasks read",
        "all modalities",
        "one modality",
        "change of the title's masked loss without the picture",
    ),
    "item 3": (
        "joint encoder learns from",
        "masked tasks",
        "diagonal of S only",
        "gradient on the fusion without the diagonal scores",
    ),
    "item 4": (
        "scores S",
        "free, from zero",
        "cosines after a ReLU",
        "effective temperature: without gradient",
    ),
    "item 7": (
        "title and table",
        "an encoder each",
        "the same one",
        "difference of the same tokens as text and as table",
    ),
    "item 8": (
        "sound in pre-training",
        "MFCC",
        "zeros",
        "products with the same audio vector, no sound loaded",
    ),
    "item 10": (
        "missing modality",
        "zeros",
        "zeros, compared too",
        "products that share the vector of what they lack",
    ),
    "item 11": ("AP@K is divided by", "not said", "hits within K", "mAP@10 of the same ranking"),
}


def differences(path: str | Path) -> pd.DataFrame:
    """Where paper and released code part ways, with a number for each (:data:`DIFFERENCES`): of the
    released form, and of ours."""
    frame = recording.load_results(path)
    frame, lines = frame[frame["task"] == "audit"], []
    for item, (what, paper, released, metric) in DIFFERENCES.items():
        part = (
            frame[(frame["variant"] == item) & (frame["metric"] == metric)]
            .groupby("model")["value"]
            .mean()
        )
        lines.append(
            (
                what,
                paper,
                released,
                metric,
                *(f"{part[model]:.3g}" if model in part else "" for model in ("released", "scale")),
            )
        )
    return pd.DataFrame(
        lines, columns=["what", "paper", "released code", "measured", "released", "ours"]
    ).set_index("what")


def attributed(folder: Path) -> pd.DataFrame:
    """Of each modality: how often the highest score points at a token that carries the category, by
    method, beside chance; and what deleting and inserting tokens in the order of integrated
    gradients gains over random order, with its 95 % interval."""
    pointing = pd.read_csv(folder / "attribution_pointing.csv")
    found = pointing.pivot(index="modality", columns="method", values="hits")[
        list(dict.fromkeys(pointing["method"]))
    ]
    found = found.add_suffix(" points at it").assign(
        chance=pointing.groupby("modality")["chance"].first()
    )
    found = found.loc[list(dict.fromkeys(pointing["modality"]))].round(2)
    areas = pd.read_csv(folder / "attribution_areas.csv").set_index("tokens of")
    for curve, part in areas.groupby("curve"):
        text = [f"{row.gain:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in part.itertuples()]
        found[f"{curve} gain"] = (
            pd.Series(text, part.index)
            .reindex([MODALITIES[name].code for name in found.index])
            .to_numpy()
        )
    return found.map(lambda value: f"{value:.2f}" if isinstance(value, float) else value)


def wall_time(path: str | Path) -> str:
    """The sentence that says how long ``make results`` took, and what of it."""
    known = json.loads(Path(path).read_text(encoding="utf-8"))
    parts = ", ".join(
        f"`{name}` {seconds / 60:.0f}"
        for name, seconds in sorted(known.items(), key=lambda item: -item[1])
    )
    hours = sum(known.values()) / 3600
    return f"Wall time of what is recorded, all seeds, minutes: {parts}; together {hours:.1f} hours (`results/times.json`)."  # noqa: E501


def blocks() -> dict[str, str]:
    """Generated parts of README and docs: marker -> text."""
    results, found = ROOT / "results", {}
    for name in ("demo", "fashion"):
        if (path := results / f"{name}.json").exists():
            found[name] = f"{markdown(compact(path))}\n\n{made_by(path, '05_downstream')}"
    if (path := results / "modality_count.json").exists():
        found["modality_count"] = (
            f"{markdown(ladder(path))}\n\n{made_by(path, '06_modality_count')}"
        )
    parts = {"shop": results / "simcl.json", "real products": results / "simcl_fashion.json"}
    if parts := {data: path for data, path in parts.items() if path.exists()}:
        made = "\n\n".join(made_by(path, "09_simcl") for path in parts.values())
        found["losses"] = f"{markdown(losses(parts))}\n\n{made}"
    if (path := results / "model.json").exists():
        found["differences"] = f"{markdown(differences(path))}\n\n{made_by(path, '03_model')}"
    if (path := results / "maps_separation_layered.csv").exists():
        table = pd.read_csv(path, index_col=0).rename_axis("metric, space")
        found["maps"] = (
            f"{markdown(table)}\n\n{made_by(results / 'maps.json', '11_embedding_maps')}"
        )
    if (path := results / "attribution.json").exists():
        found["attribution"] = (
            f"{markdown(attributed(results))}\n\n{made_by(path, '12_attribution')}"
        )
    if (path := results / "times.json").exists():
        found["times"] = wall_time(path)
    if (path := results / "claims.json").exists():
        against = contradicted(path)
        lines = (
            "\n".join(["Contradicted, in per cent with 95 % intervals:", "", *against])
            if against
            else "None is contradicted."
        )
        found["claims"] = f"{markdown(claims(path))}\n\n{lines}"
    return found


def gallery() -> str:
    """``results/README.md``: every results file with how it was made, its tables and its
    figures."""
    results = ROOT / "results"
    lines = [
        "# Results",
        "",
        "Generated by `python -m m5lib.lab.summary` from the files here. How long each took: "
        "`times.json`.",
        "",
    ]
    names = sorted(
        path.stem for path in results.glob("*.json") if path.stem not in ("times", "claims")
    )
    for name in names:
        made = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))["provenance"]
        longer = tuple(f"{other}_" for other in names if other.startswith(f"{name}_"))
        own = [
            path
            for path in sorted(results.glob(f"{name}_*"))
            if not (longer and path.name.startswith(longer))
        ]
        lines += [f"## {name}", ""]
        lines += [
            f"- `{book}`: profile {m['profile']}, commit `{m['commit']}`, {m['device']}"
            for book, m in made.items()
        ]
        for path in own:
            title = path.stem.removeprefix(f"{name}_").replace("_", " ")
            if path.suffix == ".csv":
                frame = pd.read_csv(path, index_col=0, keep_default_na=False)
                lines += ["", f"**{title}** ([csv]({path.name}))", "", markdown(frame)]
        lines.append("")
        for path in own:
            if path.suffix == ".png":
                title = path.stem.removeprefix(f"{name}_").replace("_", " ")
                lines += [
                    f"![{title}]({path.name})"
                    + (f" [svg]({path.stem}.svg)" if path.with_suffix(".svg") in own else "")
                ]
        lines.append("")
    return "\n".join(lines)


def pages() -> list[Path]:
    """The pages that hold generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fill(text: str, found: dict[str, str]) -> str:
    """The text with each part between ``<!-- NAME -->`` and ``<!-- /NAME -->`` replaced."""
    for name, block in found.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if start in text:
            text = text[: text.index(start) + len(start)] + f"\n{block}\n" + text[text.index(end) :]
    return text


def main() -> int:
    """Write the generated parts into README and docs, and ``results/README.md``.

    Raises:
        ValueError: no page has the marker of a part.
    """
    found, texts = blocks(), {page: page.read_text(encoding="utf-8") for page in pages()}
    if lost := [name for name in found if f"<!-- {name} -->" not in "".join(texts.values())]:
        raise ValueError(f"no page has a marker for {lost}; add <!-- {lost[0]} --> to one")
    for page, text in texts.items():
        page.write_text(fill(text, found), encoding="utf-8")
    (ROOT / "results" / "README.md").write_text(gallery(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
