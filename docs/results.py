"""Everything in ``results/``, hours of it.

    python docs/results.py --seeds 10 --data FOLDER --fair
    python docs/results.py --seeds 10 --data FOLDER --dry-run  # only says how long it takes

The same call goes on where it was stopped.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import joblib
import torch

from m5lib import ROOT, home
from m5lib.data import locked, write_json
from m5lib.files import reading
from m5lib.lab import notebooks, recording, runs, sweep

#: What these compare needs no second data set.
SHOP_ONLY = ("model", "released", "probes")
#: A notebook that records, and what it is given: ``record``, and a study its ``seeds``.
Task = tuple[Path, dict]
#: Files of ``results/`` that no notebook of these records.
OTHERS = ("claims", "times", "fused", "weights")
#: The first answers to everything in ``times.json``, seconds of all workers.
FIRST = "first answers"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every notebook for the results files that its metadata name, on the shop and on real
    products. Returns 1 where one failed (the others still ran).

    First of all with one seed and little training (``--first``), so that every table has an answer
    soon. Then studies (a notebook with a parameter ``seeds``) run side by side, seed by seed: each
    table is recorded anew after the first seed, after the third, and at the end. How long it takes
    is said before, by what each took before, and again whenever tables are recorded. An interrupted
    call goes on.
    """
    parser = argparse.ArgumentParser("python docs/results.py", description="Make results/.")
    option, names = parser.add_argument, list(dict.fromkeys(name for _, name in _todo()))
    option("--profile", default="small", choices=list(runs.PROFILES))
    option("--first", default="quick", choices=[*runs.PROFILES, "none"], help="of first answers")
    option("--seeds", type=int, default=3, help="of every study; 1 or more")
    option("--data", default="", help="folder or file of real products, after the shop")
    option("--products", type=int, default=0, help="of the real ones at most so many; 0: all")
    option("--fair", action="store_true", help="each rival at its own rate and temperature")
    option("--only", nargs="+", default=names, choices=names, help="some of the results")
    option("--bert", default="", help="a BERT that titles start from: studies only, as <name>_bert")
    option("--workers", type=int, help="runs side by side; by default as many as pay")
    option("--dry-run", action="store_true", help="only say how long it takes")
    options, begun = parser.parse_args(arguments), time.monotonic()
    if options.data and not Path(options.data).exists():
        parser.error(f"--data {options.data}: no such file or folder")
    if options.seeds < 1 or (options.workers or 1) < 1:
        parser.error("--seeds, --workers: give 1 or more")
    notebooks.show_progress()
    workers = options.workers or side_by_side(options.profile)
    rounds = sorted({1, min(3, options.seeds), options.seeds})
    todo, done = planned(options, options.profile, options.seeds), []
    points = seeds_of(todo)
    if soon := options.first not in ("none", options.profile) and not _finished(points):
        quick = planned(options, options.first, 1, first=True)
    _expected(points, rounds, workers, soon)
    if options.dry_run:
        return 0
    if soon:
        earlier = [as_point(*task).ended().get("parameters", {}) for task in quick]
        fresh = options.first not in (given.get("profile") for given in earlier)
        done += [one["status"] == "finished" for one in recorded(quick, workers)]
        _pages()
        if fresh and options.only == names and all(done):
            _timed(FIRST, [workers * (time.monotonic() - begun)])
        _expected(points, rounds, workers)
    for first, last in zip([0, *rounds[:-1]], rounds, strict=True):
        done += made(todo, points, first, last, workers)
        if last < options.seeds:
            _expected(points, rounds, workers)
    minutes = (time.monotonic() - begun) / 60
    print(f"{sum(done)} of {len(done)} results in {minutes:.0f} minutes; see {home('results')}")
    return int(not all(done))


def planned(
    options: argparse.Namespace, profile: str, seeds: int, first: bool = False
) -> list[Task]:
    """What the options ask for, studies first, the shop's beside those of real products. ``first``:
    with every rival at SCALE's rate, and as many real products as the profile reads."""
    todo, taken = [], {"", *OTHERS, *(name for _, name in _todo())}
    places = ("shop", *([str(Path(options.data).resolve())] if options.data else []))
    for (path, name), data in itertools.product(_todo(), places):
        place = "" if data == "shop" else Path(data).name.split("-")[0]
        if data != "shop" and place in taken:
            place += "_products"
        if name not in options.only or (place and name in SHOP_ONLY):
            continue
        known, given = notebooks.parameters_of(path), {"profile": profile, "data": data}
        given |= {"shops": seeds} if name == "probes" else {}
        given |= {"fair": True} if options.fair and "fair" in known and not first else {}
        record = f"{name}_{place}" if place and name != "demo" else place or name
        if options.bert:  # by name, or by a path that other processes find
            record, bert = f"{record}_bert", Path(options.bert)
            given["bert"] = str(bert.resolve() if bert.exists() else options.bert)
        if options.bert and not {"seeds", "bert"} <= set(known):
            continue
        if "seeds" in known:
            given |= {"products": options.products} if place and not first else {}
            given["seeds"] = seeds
        todo.append((path, given | {"record": record}))
    return sorted(todo, key=lambda task: "seeds" not in task[1])


def seeds_of(todo: Sequence[Task]) -> dict[str, list[sweep.Point]]:
    """Of each study, by its name in ``results/``, the run of every seed."""
    return {
        given["record"]: sweep.points(
            path,
            {"seed": list(range(given["seeds"]))},
            {name: value for name, value in given.items() if name not in ("seeds", "record")},
        )
        for path, given in todo
        if "seeds" in given
    }


def _finished(points: Mapping[str, Sequence[sweep.Point]]) -> bool:
    """Whether any has."""
    return any(p.ended().get("status") == "finished" for own in points.values() for p in own)


def _todo() -> list[tuple[Path, str]]:
    """The notebooks that record, with each of their names."""
    return [(path, name) for path in notebooks.find() for name in notebooks.results_of(path)]


def made(
    todo: Sequence[Task],
    points: Mapping[str, Sequence[sweep.Point]],
    first: int,
    last: int,
    workers: int,
) -> list[bool]:
    """Run the seeds from ``first`` up to ``last`` of all studies, record these, and with the first
    seed what has none; whether each record is there."""
    part = {
        record: [p for p in own[first:last] if p.ended().get("status") != "finished"]
        for record, own in points.items()
    }  # finished ones took their time in an earlier call
    sweep.run([point for own in part.values() for point in own], workers=workers)
    for record, own in part.items():  # before the recording, which may be stopped
        ended = [p.ended() for p in own]
        took = [one["seconds"] for one in ended if one.get("status") == "finished"]
        _timed(_kept(points[record][0].parameters, record), took)
    broken = [
        record
        for record, own in points.items()
        if any(p.ended()["status"] == "failed" for p in own[first:last])
    ]
    now = [
        (path, given | ({"seeds": last} if "seeds" in given else {}))
        for path, given in todo
        if given["record"] not in broken and ("seeds" in given or not first)
    ]
    ended, single = recorded(now, workers), {}
    for (_, given), one in zip(now, ended, strict=True):
        if "seeds" not in given:
            single.setdefault(_kept(given, given["record"]), []).append(one)
    for record, own in single.items():  # several notebooks may record into one file
        if all(one["status"] == "finished" for one in own):
            _timed(record, [sum(one["seconds"] for one in own)])
    _pages()
    return [one["status"] == "finished" for one in ended] + [False] * len(broken)


def as_point(notebook: Path, given: dict) -> sweep.Point:
    """The run that records, its notebook among the reports."""
    output = home("reports", f"{notebook.stem}-{given['record']}.ipynb").absolute()
    return sweep.Point(output.stem, given["record"], given, output, notebook)


def recorded(todo: Sequence[Task], workers: int) -> list[dict]:
    """Run notebooks that record, side by side, into ``results/`` and the reports; how each ended
    (:meth:`m5lib.lab.sweep.Point.ended`)."""
    points, folder = [as_point(*task) for task in todo], recording.results_folder().absolute()
    sweep.run(points, workers=workers, results=folder)
    for point in points:
        if point.output.exists():
            notebooks.to_html(point.output)
    return [point.ended() for point in points]


def _pages() -> None:
    subprocess.run([sys.executable, ROOT / "docs" / "readme.py"], check=True)


def side_by_side(profile: str) -> int:
    """How many runs of a profile pay at once: one for each core; where there is CUDA, models of
    ``full`` one after another, smaller ones, which wait for the host, one for two cores as long as
    each has 4 GiB of the device."""
    if not torch.cuda.is_available():
        return joblib.cpu_count()
    room = torch.cuda.get_device_properties(0).total_memory // 2**32
    return 1 if profile == "full" else max(1, min(joblib.cpu_count() // 2, room))


def _kept(given: Mapping, record: str) -> str:
    """The name in ``times.json``: that of the file, and the profile, where it is not ``small``."""
    return record if given["profile"] == "small" else f"{record}, {given['profile']}"


def times() -> dict[str, dict]:
    """What ``times.json`` says: results file -> ``seconds`` of its runs, and of how many ``seeds``.
    Raises ``ValueError``: it says something else; the file and why."""
    file = home("results", "times.json")
    with reading(file, "delete it: it only says how long each took"):
        known = json.loads(file.read_text()) if file.exists() else {}
        return {
            name: {"seconds": own["seconds"], "seeds": own["seeds"]} for name, own in known.items()
        }


def _timed(record: str, took: Sequence[float]) -> None:
    """Add seconds of so many seeds to it, all parts of what resumed; another call may do so at the
    same time."""
    if not took:
        return
    file = home("results", "times.json")
    with locked(file.with_suffix(".lock")):
        known = times()
        own = known.get(record, {"seconds": 0, "seeds": 0})
        seconds, seeds = round(own["seconds"] + sum(took)), own["seeds"] + len(took)
        known[record] = {"seconds": seconds, "seeds": seeds}
        write_json(file, known)


def _expected(
    points: Mapping[str, Sequence], rounds: Sequence[int], workers: int, soon: bool = False
) -> None:
    """Say how long studies will take until each recording: by their seeds that ended here, else by
    what ``times.json`` of this home or of the repository says. With ``soon`` first answers."""
    file = ROOT / "results" / "times.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known, left = known | times(), dict.fromkeys(rounds, 0.0)
    unknown = [FIRST] if soon and FIRST not in known else []
    for record, own in points.items():
        ended = [p.ended() for p in own]
        here = [p["seconds"] for p in ended if p.get("status") == "finished"]
        before = known.get(_kept(own[0].parameters, record), {"seeds": 0})
        pace = before["seconds"] / before["seeds"] if before["seeds"] else 0.0
        pace = sum(here) / len(here) if here else pace
        unknown += [record] if not pace else []
        for last in rounds:
            count = sum(p.get("status") != "finished" for p in ended[:last])
            left[last] += pace * count / workers
    says = ", ".join(
        f"{last} seed{'s' * (last > 1)} in {left[last] / 60:.0f} min" for last in rounds
    )
    if soon and FIRST in known:
        pace = known[FIRST]["seconds"] / known[FIRST]["seeds"]
        says = f"{FIRST} in {pace / workers / 60:.0f} min, then {says}"
    says += f"; not known of {', '.join(unknown)}" if unknown else ""
    print(f"{len(points)} studies, {workers} side by side; by what earlier runs took: {says}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt as stopped:
        print(stopped or "stopped", file=sys.stderr)
        sys.exit(130)
