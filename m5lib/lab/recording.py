"""Result rows, results files, the pictures beside them, and how they came to be (provenance)."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from m5lib import ROOT, home
from m5lib.data.files import code_version, write_json
from m5lib.lab.runs import best_device

#: One tidy row per number, everywhere in the project.
COLUMNS = (
    "notebook",
    "run",
    "data",
    "profile",
    "seed",
    "model",
    "state",
    "modalities",
    "variant",
    "task",
    "metric",
    "convention",
    "value",
)
STATES = ("untrained", "pretrained", "finetuned", "control")


def rows(numbers: Iterable[dict], context: dict, **more) -> list[dict]:
    """Result rows from numbers (:func:`m5lib.evaluation.evaluate.evaluate`) and what they share
    (:meth:`Run.context`, and ``more``).

    Raises:
        ValueError: a column is unknown or missing, a state is not one of :data:`STATES`, or a value
            is not a finite number.
    """
    found = []
    for number in numbers:
        row = {**context, **more, **number}
        if set(row) != set(COLUMNS):
            raise ValueError(
                f"result row: missing {sorted(set(COLUMNS) - set(row))}, unknown "
                f"{sorted(set(row) - set(COLUMNS))}"
            )
        if row["state"] not in STATES:
            raise ValueError(f"result row: state {row['state']!r} is not one of {STATES}")
        if not -1e300 < row["value"] < 1e300:
            raise ValueError(f"result row: {row['metric']} is {row['value']}")
        found.append({column: row[column] for column in COLUMNS})
    return found


def save_results(
    path: str | Path, found: list[dict], provenance: dict, append: bool = False
) -> Path:
    """Write rows with their provenance; ``append`` adds to those of other notebooks and replaces
    this notebook's own."""
    path = Path(path)
    content = {"provenance": {}, "rows": []}
    if append and path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
    notebooks = {row["notebook"] for row in found}
    kept = [row for row in content["rows"] if row["notebook"] not in notebooks]
    sources = {
        name: entry for name, entry in content["provenance"].items() if name not in notebooks
    }
    return write_json(
        path,
        {
            "provenance": sources | dict.fromkeys(sorted(notebooks), provenance),
            "rows": kept + found,
        },
    )


def load_results(path: str | Path) -> pd.DataFrame:
    """The rows of a results file as a frame."""
    return pd.DataFrame(
        json.loads(Path(path).read_text(encoding="utf-8"))["rows"], columns=list(COLUMNS)
    )


def results_folder() -> Path:
    """Where results are kept: ``results``, or what ``M5_RESULTS`` in the environment says: a sweep
    gives each of its runs its own."""
    return Path(os.environ.get("M5_RESULTS", home("results")))


def record(
    name: str,
    found: list[dict],
    made: dict,
    pictures: Mapping[str, Figure],
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> None:
    """Keep what a notebook found in the folder of the results; nothing, where the name is empty.

    Rows in ``<name>.json``; figures in ``<name>_<figure>.png`` and, for print, ``.svg``; tables in
    ``<name>_<table>.csv``, as they are shown. A figure of photographs is not drawn as SVG: it would
    be the same pixels, many times as large.
    """
    if not name:
        return
    results = results_folder()
    if found:
        save_results(results / f"{name}.json", found, made, append=True)
    results.mkdir(parents=True, exist_ok=True)
    for title, frame in (tables or {}).items():
        flat = frame.set_axis(_flat(frame.columns), axis=1)
        flat = (
            flat if any(flat.index.names) else flat.set_axis(_flat(flat.index), axis=0)
        )  # named levels are columns of their own
        flat.to_csv(results / f"{name}_{title}.csv")
    for title, figure in pictures.items():
        figure.savefig(results / f"{name}_{title}.png", bbox_inches="tight", dpi=120)
        if not _photographs(figure):
            with matplotlib.rc_context(
                {"svg.hashsalt": title}
            ):  # the same figure gives the same file
                figure.savefig(
                    results / f"{name}_{title}.svg", bbox_inches="tight", metadata={"Date": None}
                )


def _flat(names: pd.Index) -> list:
    return [", ".join(map(str, key)) if isinstance(key, tuple) else key for key in names]


def _photographs(figure: Figure) -> bool:
    """Whether an image of it has colours of its own; matrices have numbers."""
    return any(image.get_array().ndim > 2 for image in figure.findobj(AxesImage))


def _git(*words: str) -> str:
    try:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def device_name(device: torch.device) -> str:
    """What computed: the accelerator's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        model = next(
            (x.split(":")[1].strip() for x in open("/proc/cpuinfo") if x.startswith("model name")),
            model,
        )
    return f"{model}, {torch.get_num_threads()} threads"


def provenance(profile: str, seed: int, seconds: float) -> dict:
    """How numbers came to be: commit (``+`` where files were changed since), versions, device,
    profile, seed, wall time in seconds."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "scikit-learn", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    commit = _git("rev-parse", "--short=12", "HEAD") + (
        "+" if _git("status", "--porcelain", "--", "m5lib", "notebooks") else ""
    )
    return {
        "commit": commit,
        "code": code_version(),
        "versions": versions,
        "device": device_name(best_device()),
        "profile": profile,
        "seed": seed,
        "wall_seconds": round(seconds, 1),
    }


def line(content: dict) -> str:
    """A provenance in one line, for the setup cell of a notebook."""
    packages = " ".join(f"{name} {number}" for name, number in content["versions"].items())
    return f"commit {content['commit'] or '?'} · {content['device']} · {packages} · profile {content['profile']} · seed {content['seed']}"  # noqa: E501
