"""Do two states of the code give the same numbers? Every notebook at ``tiny``, row by row.

    M5_HOME=/tmp/before python benchmarks/parity.py run [04 05 …]   # with the one code
    M5_HOME=/tmp/after python benchmarks/parity.py run [04 05 …]    # with the other
    python benchmarks/parity.py compare /tmp/before /tmp/after

Rows are the same where everything but the run's name is, to the last digit. What is measured in
seconds is not compared. Exits with 1 where a notebook failed or a row differs.
"""

import sys
from pathlib import Path

from m5lib import home
from m5lib.lab import notebooks
from m5lib.lab.recording import COLUMNS, load_results

KEYS = [column for column in COLUMNS if column not in ("value", "run")]


def run(numbers: list[str]) -> int:
    """Run the notebooks of these numbers, by default all; how many failed."""
    failed = 0
    for path in notebooks.find():
        number = path.stem[:2]
        if numbers and number not in numbers:
            continue
        known = notebooks.parameters_of(path)
        wanted = {"profile": "tiny", "record": f"parity_{number}"}
        given = {name: value for name, value in wanted.items() if name in known}
        try:
            notebooks.run(path, home("reports", path.name), given, quiet=True)
            print(f"{path.stem}: done", flush=True)
        except notebooks.NotebookError as error:
            failed += 1
            print(f"{path.stem}: FAILED {error}", flush=True)
    return failed


def compare(before: Path, after: Path) -> int:
    """Print what is the same, differs, is gone or was added, by notebook; how many rows are not the
    same."""
    bad = 0
    for file in sorted((before / "results").glob("parity_*.json")):
        other = after / "results" / file.name
        if not other.exists():
            print(f"{file.name}: not there")
            bad += 1
            continue
        old, new = (load_results(path).astype({"seed": str}) for path in (file, other))
        for frame in (old, new):  # rows of one name are told apart by their order
            frame["place"] = frame.groupby(KEYS, dropna=False).cumcount()
        both = old.merge(new, how="outer", on=[*KEYS, "place"], indicator=True)
        shared = both[both["_merge"] == "both"]
        timed = shared["metric"].str.contains("second")
        differ = shared[~timed & (shared["value_x"] != shared["value_y"])]
        gone, added = ((both["_merge"] == side).sum() for side in ("left_only", "right_only"))
        bad += len(differ) + gone
        print(f"{file.name}: {len(shared) - len(differ)} same, {len(differ)} differ,", end=" ")
        print(f"{gone} gone, {added} added")
        columns = ["model", "state", "variant", "metric", "modalities", "value_x", "value_y"]
        print(differ[columns].head(8).to_string(), end="\n") if len(differ) else None
    return bad


if __name__ == "__main__":
    verb, *words = sys.argv[1:] or [""]
    if verb not in ("run", "compare") or (verb == "compare" and len(words) != 2):
        sys.exit(__doc__)
    sys.exit(bool(run(words) if verb == "run" else compare(*map(Path, words))))
