"""Recorded numbers made again, here and by the code of today: how far from the record do they lie?

    python benchmarks/again.py mem_vs_mlm_fashion MEM --data FOLDER --products 6000
    python benchmarks/again.py modality_count_fashion I+T --modalities I+T --data FOLDER …

SCALE with the profile's own settings is trained, fine-tuned and measured, and each number is
compared with the one in ``results/``. Another processor or number of threads rounds otherwise,
and a training enlarges that: only on one machine do equal numbers say that the code is equal.
Adds to ``benchmarks/again.json``. Where each row chose settings of its own (``fair``), which result
rows do not tell, there is nothing to compare.
"""

import time

import pandas as pd
from converge import keep, parser_of

from m5lib import ROOT
from m5lib.lab import recording, runs, study

FILE = ROOT / "benchmarks" / "again.json"
#: What names a number of a run.
KEYS = ["state", "variant", "task", "metric", "convention"]


def compared(recorded: pd.DataFrame, made: pd.DataFrame) -> dict[str, float]:
    """Of two recordings of one run: how many numbers both have, how many of them are the same to
    the last digit, and by how much the others differ at most. Raises ``ValueError``: none is in
    both, or one is there twice."""
    both = recorded.merge(made, on=KEYS, suffixes=("", " again"), validate="one_to_one")
    if both.empty:
        raise ValueError("no number is in both: another row, seed or set of modalities?")
    apart = (both["value"] - both["value again"]).abs()
    return {"numbers": len(both), "same": int((apart == 0).sum()), "most": float(apart.max())}


def main() -> None:
    """Train, measure, compare, write."""
    parser = parser_of(__doc__)
    option = parser.add_argument
    option("record", help="of results/, without .json")
    option("label", help="the row's name in its table")
    option("--modalities", default="", help="codes; all, if not given")
    option("--seed", type=int, default=0)
    asked, begun = parser.parse_args(), time.monotonic()
    path = ROOT / "results" / f"{asked.record}.json"
    if path.with_name(f"{asked.record}_rates.csv").exists():
        parser.error(f"{asked.record}: its rows have settings of their own; another record")
    size, grid = study.sized(asked.profile, asked.products), {"modalities": asked.modalities}
    loaded = runs.load(asked.data, size, asked.seed)
    job, streams = study.jobs({asked.label: grid}, *loaded, size, asked.seed)[asked.label]
    made = study.study(job, streams, "again").rows
    sources = recording.read_results(path)["provenance"].values()
    rows = recording.load_results(path).query("seed == @asked.seed")
    rows = rows[rows["model"].isin(["scale", f"scale, {asked.label}"])]
    rows = rows[rows["modalities"].isin(made["modalities"])]
    same = {"record": asked.record, "row": asked.label, "seed": asked.seed}
    same |= {"data": loaded[0].name, "modalities": made["modalities"].iloc[0]}
    found = same | compared(rows, made)
    found |= {"recorded by": " and ".join(source["code"] for source in sources)}
    by = recording.provenance(asked.profile, asked.seed, time.monotonic() - begun)
    keep(FILE, {"rows": [found | {"again by": by["code"]}]}, same, by)
    print(found)


if __name__ == "__main__":
    main()
