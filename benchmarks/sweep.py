"""A sweep of twelve tiny pre-trainings: with one worker, with two, and killed twice on the way; and
one in which a run fails.

    python benchmarks/sweep.py

writes ``benchmarks/sweep.json``. Every sweep has a home of its own and shares nothing but the
shops, which are made beforehand; the one with two workers is timed before and after the one with a
single one, and the two times are averaged.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from m5lib import data as files
from m5lib.lab import recording, runs
from m5lib.lab.sweep import collect

HERE = Path(__file__).resolve()
NOTEBOOK = HERE.parent.parent / "notebooks" / "04_pretrain.ipynb"
GRID = ["--grid", "seed=0,1,2", "model=scale,bert,clip,uniter"]
KEYS = ["model", "seed", "state", "variant", "task", "metric", "convention"]


def home(shops: Path) -> Path:
    """A new home with the shops in its cache."""
    folder = Path(tempfile.mkdtemp())
    (folder / "cache").symlink_to(shops)
    return folder


def start(folder: Path, workers: int, grid=GRID) -> subprocess.Popen:
    """The command of the shell, in a group of its own."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "m5lib",
        "sweep",
        str(NOTEBOOK),
        *grid,
        "--set",
        "profile=tiny",
    ]
    environment = os.environ | {"M5_HOME": str(folder)}
    return subprocess.Popen(
        [*command, "--workers", str(workers)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        cwd=NOTEBOOK.parent.parent,
    )


def index(folder: Path) -> pd.DataFrame:
    """What the sweep says of its runs."""
    return pd.read_parquet(next(folder.glob("sweeps/*/runs.parquet")))


def rows(folder: Path) -> pd.Series:
    """All numbers of a sweep."""
    return collect(index(folder)).set_index(KEYS)["value"].sort_index()


def timed(folder: Path, workers: int) -> float:
    """Seconds of a sweep that is left alone."""
    begun = time.monotonic()
    assert start(folder, workers).wait() == 0
    return time.monotonic() - begun


def killed_twice(folder: Path) -> list[int]:
    """Killed after its first run and again two runs later, then left alone; how many runs were
    finished before each start."""
    before = []
    for lines in (1, 3, None):
        process, seen = start(folder, 2), 0
        before.append(len(index(folder)) if list(folder.glob("sweeps/*/runs.parquet")) else 0)
        for line in process.stdout:
            seen += "finished" in line
            if lines and seen == lines:
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    return before


def main() -> None:
    """Measure and write."""
    shops, began = Path(tempfile.mkdtemp()), time.monotonic()
    os.environ["M5_HOME"] = str(shops.parent / f"{shops.name}-home")
    (Path(os.environ["M5_HOME"])).mkdir()
    (Path(os.environ["M5_HOME"]) / "cache").symlink_to(shops)
    for seed in range(3):
        runs.load("shop", runs.profile_of("tiny"), seed)
    alone, two, again, cut = (home(shops) for _ in range(4))
    seconds = {"two workers": [timed(two, 2)], "one worker": [timed(alone, 1)]}
    seconds["two workers"].append(timed(again, 2))
    before = killed_twice(cut)
    expected = rows(
        again
    )  # with as many workers, and so as many threads a run, as the one that is killed
    given = [
        {"seed": seed, "model": model}
        for seed in range(3)
        for model in ("scale", "bert", "clip", "uniter")
    ]
    points = two / "points.json"
    points.write_text(json.dumps([*given[:-1], {"seed": 2, "model": "nonesuch"}]))
    start(two, 2, ["--json", str(points)]).wait()
    found = index(two)
    content = {
        "provenance": recording.provenance("tiny", 0, time.monotonic() - began),
        "seconds": {
            name: [round(value, 1) for value in values] for name, values in seconds.items()
        },
        "one worker / two workers": round(
            seconds["one worker"][0] * 2 / sum(seconds["two workers"]), 2
        ),
        "numbers": len(expected),
        "largest difference, twice left alone": float((rows(two) - expected).abs().max()),
        "largest difference, killed twice against left alone": float(
            (rows(cut) - expected).abs().max()
        ),
        "largest difference, one worker against two (other threads, other rounding)": float(
            (rows(alone) - expected).abs().max()
        ),
        "finished before each start of the one that was killed": before,
        "in the index after a sweep whose last point names an unknown model": found["status"]
        .value_counts()
        .to_dict(),
        "its report": sorted(set(found.loc[found["status"] == "failed", "error"])),
    }
    files.write_json(HERE.with_suffix(".json"), content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
