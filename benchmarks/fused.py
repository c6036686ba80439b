"""Does the fused vector earn its place? SCALE with and without a loss on it, by seed.

    python benchmarks/fused.py run FOLDER [--data PRODUCTS] [--seeds 3] [--workers 2]
    python benchmarks/fused.py collect FOLDER fused [--data PRODUCTS]  # -> results/fused.json, …

Each form is pre-trained by the profile ``small`` with 1,500 steps on each seed (``shop``: another
shop; else the same 6,000 products with another order, masks and weights), then read out given some
of the modalities and all: mAP@10 of validation products and of queries, by every read-out. What is
there already is not run again, and runs are shared with the notebooks'.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from m5lib.data import readers, write_json
from m5lib.embeddings import ACROSS, DEFAULT, PAPER, READOUTS
from m5lib.evaluation import evaluate
from m5lib.evaluation.controls import controls
from m5lib.lab import recording, runs, study
from m5lib.modalities import codes, from_codes

#: What result rows say they come from.
SCRIPT = "benchmarks/fused.py"
#: Rows of the zoo.
FORMS = ("scale", "scale_fused")
SETS = ("T", "I", "I+T", "I+T+Tab", "I+T+Tab+V+A")
CONVENTIONS = (recording.VALIDATION, "min_k_r")
PRODUCTS = 6000


def load(data: str, seed: int):
    """Products and streams of a seed."""
    size = study.sized("small", PRODUCTS)
    catalogue, features = runs.load(data, size, seed)
    return catalogue, runs.streams_of(catalogue, features, size)


def retrieved(catalogue, vectors) -> list[dict]:
    """mAP@10 (min(K, R)) of validation products and of queries, as numbers of result rows."""
    number = {"task": "retrieval", "metric": "mAP@10", "convention": "min_k_r"}
    queries = number | {"value": evaluate.value(evaluate.retrieval(catalogue, vectors))}
    return [*study.choosing(catalogue, vectors), queries]


def measured(run: runs.Run, streams, context: dict, readouts=(*READOUTS, ACROSS)) -> list[dict]:
    """The rows of a run: the read-outs given each of SETS."""
    catalogue, found = streams.catalogue, []
    rows = evaluate.needed_rows(catalogue, "validation")
    for given in SETS:
        names = from_codes(given)
        if not set(names) <= set(streams.modalities):
            continue
        by_name = runs.vectors(run.model, streams, rows, names, readouts)
        for readout, vectors in by_name.items():
            more = {"state": "pretrained", "variant": readout, "modalities": given}
            found += recording.rows(retrieved(catalogue, vectors), context, **more)
    return found


def one(data: str, seed: int, label: str, path: Path) -> None:
    """Train a form on a seed, measure it, and write its rows."""
    begun, (catalogue, streams) = time.monotonic(), load(data, seed)
    job = runs.Job(profile="small", seed=seed, model=label)
    run = runs.pretrained(job, streams)
    context = run.context(SCRIPT, job, catalogue)
    write(path, run, measured(run, streams, context), seed, begun)


def write(path: Path, run: runs.Run, rows: list[dict], seed: int, begun: float) -> None:
    """The rows of a run, what made them, and how much each modality counts."""
    made = recording.provenance("small", seed, time.monotonic() - begun)
    counts = dict(zip(run.model.spec.modalities, run.model.importance.tolist(), strict=True))
    write_json(path, {"rows": rows, "made": made, "importance": counts})


def baseline(data: str, seed: int) -> list[dict]:
    """The controls of a seed as result rows."""
    catalogue, _ = load(data, seed)
    context = {"notebook": SCRIPT, "run": "", "data": catalogue.name, "profile": "small"}
    context |= {"seed": seed, "state": "control"}
    found = []
    for name, (read, vectors) in controls(catalogue, runs.pixels(catalogue), seed).items():
        more = {"model": name, "variant": name, "modalities": codes(read)}
        found += recording.rows(retrieved(catalogue, vectors), context, **more)
    return found


def run(script: str, forms, data: str, seeds: int, folder: Path, workers: int) -> int:
    """Every form on every seed, a process of ``script`` each; how many failed."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [(label, seed) for seed in range(seeds) for label in forms]

    def start(item) -> int:
        label, seed = item
        name = f"{Path(data).stem}-{label}-{seed}".replace(", ", "-").replace(" ", "_")
        path = folder / f"{name}.json"
        if path.exists():
            return 0
        words = [sys.executable, script, "one", str(path), f"--data={data}"]
        words += [f"--seeds={seed}", f"--form={label}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with open(path.with_suffix(".log"), "w") as log:
            done = subprocess.run(words, env=environment, stderr=log, stdout=log)
        print(f"{label}, seed {seed}: {'FAILED' if done.returncode else 'done'}", flush=True)
        return done.returncode

    with ThreadPoolExecutor(workers) as pool:
        return sum(bool(code) for code in pool.map(start, todo))


#: Rows of :func:`table`: what it is called, the form and its read-outs (of several the best).
ROWS = {
    "scale, fused vector": ("scale", (PAPER,)),
    "scale_fused, fused vector": ("scale_fused", (PAPER,)),
    "scale_fused, before the fusion": ("scale_fused", ("encoded_first", "concat", "whitened")),
    f"scale, {DEFAULT}": ("scale", (DEFAULT,)),
    f"scale_fused, {DEFAULT}": ("scale_fused", (DEFAULT,)),
    "best control": (None, None),
}


def table(rows: pd.DataFrame, lines=ROWS) -> pd.DataFrame:
    """mAP@10 of validation products / of queries, ``mean ± deviation`` over seeds, against what is
    given. Of several read-outs or controls the one that validation products choose."""
    rows = rows[rows["task"] == "retrieval"]
    control, columns = rows["state"] == "control", {}
    for given in [s for s in SETS if s in set(rows.loc[~control, "modalities"])]:
        columns[given] = {}
        for label, (form, readouts) in lines.items():
            read = [set(m.split("+")) <= set(given.split("+")) for m in rows["modalities"]]
            part = rows[control & np.array(read)]
            if form:
                part = rows[(rows["modalities"] == given) & (rows["model"] == form)]
                part = part[part["variant"].isin(readouts)]
            if part.empty:
                continue
            by_seed = part.pivot(index=["convention", "variant"], columns="seed", values="value")
            best = by_seed.loc[recording.VALIDATION].mean(axis=1).idxmax()
            shown = (recording.said(by_seed.loc[[(c, best)]], 1, 3) for c in CONVENTIONS)
            columns[given][label] = " / ".join(text.item() for text in shown)
    return pd.DataFrame(columns).rename_axis("validation / query").fillna("")


def collect(folder: Path, data: str, name: str) -> None:
    """The parts of a folder whose data is this, and the controls, in ``results/<name>.json``; its
    table in ``results/<name>_table.csv``."""
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    parts = [part for part in parts if part["rows"][0]["data"] == data_name(data)]
    rows = [row for part in parts for row in part["rows"]]
    for seed in sorted({row["seed"] for row in rows}):
        rows += baseline(data, seed)
    record(name, parts, rows, table(pd.DataFrame(rows)))


def record(name: str, parts: list[dict], rows: list[dict], shown: pd.DataFrame) -> None:
    """Rows of several parts as one file of ``results/``, which says all that made them."""
    made = dict(parts[0]["made"])
    for key in ("commit", "code", "device"):
        made[key] = " and ".join(sorted({part["made"][key] for part in parts}))
    made["wall_seconds"] = sum(part["made"]["wall_seconds"] for part in parts)
    recording.record(name, rows, made, {}, {"table": shown})
    print(shown.to_string())


def data_name(data: str) -> str:
    """What result rows call the data."""
    return data if data == "shop" else readers.read(data).name


def asked(doc: str, forms, name: str) -> argparse.Namespace:
    """The command line of this script, and of those like it."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("verb", choices=("run", "collect", "one"))
    parser.add_argument("folder", type=Path, help="where each run's rows are kept")
    parser.add_argument("name", nargs="?", default=name, help="of the file in results/")
    parser.add_argument("--data", default="shop", help="products; the shop if not given")
    parser.add_argument("--seeds", type=int, default=3, help="how many; of `one`: which")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, a thread each")
    parser.add_argument("--form", choices=forms, help="of `one`, which `run` starts")
    return parser.parse_args()


def main(script: str, given: argparse.Namespace, forms, one: Callable, collect: Callable) -> None:
    """Do what the command line says, by a script's own two functions."""
    if given.verb == "one":
        one(given.data, given.seeds, given.form, given.folder)
    elif given.verb == "run":
        how = (given.data, given.seeds, given.folder, given.workers)
        sys.exit(bool(run(script, forms, *how)))
    else:
        collect(given.folder, given.data, given.name)


if __name__ == "__main__":
    main(__file__, asked(__doc__, FORMS, "fused"), FORMS, one, collect)
