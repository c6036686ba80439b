"""Result rows, the files of ``results/``, and how they came to be (provenance)."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from m5lib import ROOT, home
from m5lib.data import locked, write_json
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.files import reading, whole_file
from m5lib.lab import code_version
from m5lib.lab.runs import best_device
from m5lib.models.pretrained import read_bert

#: Of a result row: what was measured.
MEASURED = tuple("notebook run data profile seed model state modalities variant".split())
#: The columns of a result row: one tidy row per number, everywhere in the project.
COLUMNS = (*MEASURED, "task", "metric", "convention", "value")
STATES = ("untrained", "pretrained", "finetuned", "control")
#: Variant of the rows of a fine-tuned model: its hidden vector.
HIDDEN = "hidden"
#: Convention of mAP@10 of validation products: what choices are made by.
VALIDATION = "min_k_r, validation queries"
#: Columns of what choices of rate and temperature tried (``<record>_rates.csv``).
TRIED = ["row", "learning rate", "temperature", "seed", VALIDATION]
RECORD_AGAIN = "delete it; what it held is recorded again by its notebook"

# What notebooks show of products in tables is text: two dollar signs in a title are no mathematics.
pd.set_option("display.html.use_mathjax", False)

# --- writing


def rows(numbers: Iterable[dict], context: dict, **more) -> list[dict]:
    """Result rows from numbers (:func:`m5lib.evaluation.evaluate.evaluate`) and what they share
    (:meth:`m5lib.lab.runs.Run.context`, and ``more``). Raises ``ValueError``: a column is unknown
    or missing, a state is not one of :data:`STATES`, or a value is not a finite number."""
    result = []
    for number in numbers:
        row = {**context, **more, **number}
        if set(row) != set(COLUMNS):
            missing, unknown = sorted(set(COLUMNS) - set(row)), sorted(set(row) - set(COLUMNS))
            raise ValueError(f"result row: missing {missing}, unknown {unknown}")
        if row["state"] not in STATES:
            raise ValueError(f"result row: state {row['state']!r} is not one of {STATES}")
        if not -1e300 < row["value"] < 1e300:
            raise ValueError(f"result row: {row['metric']} is {row['value']}")
        result.append({column: row[column] for column in COLUMNS})
    return result


def save_results(path: str | Path, rows: list[dict] | pd.DataFrame, made: dict) -> Path:
    """Write rows with their provenance in place of this notebook's own; those of other notebooks
    stay, which may write at the same time. The file has an object for each model and vector that
    was measured (:data:`MEASURED`), its numbers in a list: names once, not in every row."""
    path, content = Path(path), {"provenance": {}, "measured": []}
    each, n = pd.DataFrame(rows, columns=list(COLUMNS)).itertuples(index=False), len(MEASURED)
    measured = [
        dict(zip(MEASURED, same, strict=True)) | {"numbers": [row[n:] for row in several]}
        for same, several in groupby(each, lambda row: row[:n])
    ]
    with locked(path.with_suffix(".lock")):
        if path.exists():
            content = read_results(path)
        own = {one["notebook"] for one in measured}
        sources = content["provenance"] | dict.fromkeys(sorted(own), made)
        others = [one for one in content["measured"] if one["notebook"] not in own]
        return write_json(path, {"provenance": sources, "measured": others + measured})


def keep_only(path: Path, notebooks: Iterable[str]) -> None:
    """Leave in a results file what these notebooks recorded."""
    wanted = set(notebooks)
    with locked(path.with_suffix(".lock")):
        content = read_results(path)
        sources = {name: made for name, made in content["provenance"].items() if name in wanted}
        rows = [one for one in content["measured"] if one["notebook"] in wanted]
        write_json(path, {"provenance": sources, "measured": rows})


def load_results(path: str | Path) -> pd.DataFrame:
    """The rows of a results file. Raises ``ValueError``: it is none; the file and why."""
    found = read_results(path)["measured"]
    with reading(path, RECORD_AGAIN):
        rows = [[*(one[x] for x in MEASURED), *row] for one in found for row in one["numbers"]]
        return pd.DataFrame(rows, columns=list(COLUMNS))


def read_results(path: str | Path, part: str = "measured") -> dict:
    """A results file as it is, with a list of that name. Raises as :func:`load_results`."""
    with reading(path, RECORD_AGAIN):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        dict(content["provenance"]), [dict(one) for one in content[part]]  # or it is none
        return content


def load_tried(name: str) -> dict[tuple[str, float, float, int], float]:
    """What the choices of a record in ``results/`` tried: (row, learning rate, temperature, seed)
    -> mAP@10 of validation products; nothing of no name. Raises ``ValueError``: it has none."""
    if not name:
        return {}
    path = home("results") / f"{name}_rates.csv"
    with reading(path, "give a record in results/ that was made with fair, such as 'baselines'"):
        frame = pd.read_csv(path)[TRIED]
        return {tuple(key): reached for *key, reached in frame.itertuples(index=False)}


def results_folder() -> Path:
    """``results``, or what ``M5_RESULTS`` says: each run of a sweep has a folder of its own."""
    return Path(os.environ.get("M5_RESULTS", home("results")))


def record(
    name: str,
    rows: list[dict] | pd.DataFrame,
    made: dict,
    pictures: Mapping[str, Figure],
    tables: Mapping[str, pd.DataFrame] | None = None,
    queries: pd.DataFrame | None = None,
) -> None:
    """Keep what a notebook measured in the folder of the results; nothing, where the name is empty.

    Rows go to ``<name>.json``, tables as shown to ``<name>_<table>.csv``, what every query
    contributed (:func:`m5lib.lab.claims.asked`) to ``<name>_queries.parquet``, figures to
    ``<name>_<figure>.png`` and, for print, ``.svg``: not those of photographs, which would be the
    same pixels, many times as large.
    """
    if not name:
        return
    folder = results_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if len(rows):
        save_results(folder / f"{name}.json", rows, made)
    if queries is not None:
        with whole_file(folder / f"{name}_queries.parquet") as path:
            queries.to_parquet(path, index=False, compression="zstd")
    for title, frame in (tables or {}).items():
        flat = frame.set_axis(_flat(frame.columns), axis=1)
        if not any(flat.index.names):  # named levels are columns of their own
            flat = flat.set_axis(_flat(flat.index), axis=0)
        with whole_file(folder / f"{name}_{title}.csv") as path:
            flat.to_csv(path)
    for title, figure in pictures.items():
        path = folder / f"{name}_{title}.png"
        with whole_file(path) as part:
            figure.savefig(part, format="png", bbox_inches="tight", dpi=120)
        if any(image.get_array().ndim > 2 for image in figure.findobj(AxesImage)):  # photographs
            continue
        with matplotlib.rc_context({"svg.hashsalt": title}):  # the same figure, the same file
            with whole_file(path.with_suffix(".svg")) as part:
                figure.savefig(part, format="svg", bbox_inches="tight", metadata={"Date": None})


def _flat(names: pd.Index) -> list:
    return [", ".join(str(x) for x in n if x != "") if isinstance(n, tuple) else n for n in names]


# --- provenance

#: What numbers come from.
CODE = ("m5lib", "notebooks", "benchmarks/*.py", "paper")


@cache  # a commit while a notebook runs is not the code that it runs
def _git(*words: str) -> str | None:
    command, quiet = ["git", "-C", str(ROOT), *words], {"stderr": subprocess.DEVNULL}
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(command, text=True, timeout=60, **quiet).strip()
    return None


def device_name(device: torch.device) -> str:
    """What computed: the accelerator's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, file = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if file.exists() and (match := re.search(r"^model name\s*: (.+)$", file.read_text(), re.M)):
        name = match[1].strip()
    return f"{name}, {torch.get_num_threads()} threads"


def provenance(
    profile: str, seed: int, seconds: float, extractors: str = "", bert: str = ""
) -> dict:
    """How numbers came to be: commit (``+`` where code was changed since, or nobody can say; of a
    copy without git, or in another project's repository, none), versions, device, profile, seed,
    the choice of extractors, the weights of the BERT that titles started from, wall time in
    seconds."""
    packages = ("torch", "transformers", "scikit-learn", "numpy")
    ours = _git("ls-files", "--", *CODE)
    commit = ours and _git("rev-parse", "--short=12", "HEAD") or ""
    changed = "+" if commit and _git("status", "--porcelain", "--", *CODE) != "" else ""
    return {
        "commit": commit + changed,
        "code": code_version(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "device": device_name(best_device()),
        "profile": profile,
        "seed": seed,
        "extractors": extractors or "plain",
        **({"bert": read_bert(bert).version} if bert else {}),
        "wall_seconds": round(seconds, 1),
    }


def line(made: dict) -> str:
    """A provenance in one line, for the setup cell of a notebook."""
    packages = " ".join(f"{name} {number}" for name, number in made["versions"].items())
    words = (made["commit"] or "?", made["device"], packages, made["profile"], made["seed"])
    return "commit {} · {} · {} · profile {} · seed {}".format(*words)


# --- tables of result rows


def pick(frame: pd.DataFrame, wanted: Mapping[str, str]) -> pd.DataFrame:
    """The rows with these values."""
    return frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1)]


def said(values: pd.DataFrame, scale: float = 100.0, digits: int = 1) -> pd.Series:
    """``mean ± deviation`` over the columns (seeds); the value alone where there is one, nothing
    where there is none."""
    texts, means, deviations = [], scale * values.mean(axis=1), scale * values.std(axis=1)
    for mean, deviation in zip(means, deviations, strict=True):
        spread = "" if deviation != deviation else f" ± {deviation:.{digits}f}"
        texts.append("" if mean != mean else f"{mean:.{digits}f}{spread}")
    return pd.Series(texts, values.index)


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """Result rows as state x model x modalities x variant against the usual metrics, mean over
    seeds. Retrieval is that by category."""
    keys, columns = ["state", "model", "modalities", "variant"], {}
    rows = rows.query("task != 'fine retrieval'")
    shown = {"mAP@1": "min_k_r", "mAP@10": "min_k_r", "mAP@10 (hits)": "hits", "Prec@10": "k"}
    for name in (*shown, "accuracy", "NMI", "purity"):
        wanted = {"metric": name.removesuffix(" (hits)")}
        wanted |= {"convention": shown[name]} if name in shown else {}
        columns[name] = pick(rows, wanted).groupby(keys, sort=False)["value"].mean()
    order = pd.MultiIndex.from_frame(rows[keys].drop_duplicates())
    return pd.DataFrame(columns).reindex(order).dropna(how="all")


def compare(rows: pd.DataFrame, metric: str, convention: str, variant: str) -> pd.DataFrame:
    """Modalities against state: one metric of retrieval by category and one read-out, mean over
    seeds. A control stands beside the modalities that it reads, the best of several."""
    part = pick(rows, {"task": "retrieval", "metric": metric, "convention": convention})
    part = part.query("variant == @variant or state == 'control'")
    keys = ["modalities", "state"]
    means = part.groupby([*keys, "variant"], sort=False)["value"].mean()
    best = means.groupby(keys, sort=False).max().unstack()
    order = list(rows["modalities"].unique())
    labels = sorted(best.index, key=lambda codes: (codes.count("+"), order.index(codes)))
    return best.loc[labels, [state for state in STATES if state in best]]


def headline(path: Path) -> pd.DataFrame:
    """What ``make demo`` prints: by state the default and the paper's read-out, and controls."""
    rows = load_results(path).query("notebook == '05_downstream'")
    shown = rows["variant"].isin([DEFAULT, PAPER]) | (rows["state"] == "control")
    return wide(rows[shown]).round(3)
