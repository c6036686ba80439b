"""A grid of parameters over one notebook, run side by side; what was finished is not run again.

::

    grid = {"seed": [0, 1, 2], "model": ["scale", "released"]}
    frame = sweep("notebooks/04_pretrain.ipynb", grid, {"profile": "tiny"}, workers=2)
    rows = collect(frame)  # the result rows of all runs

    python -m m5lib sweep notebooks/04_pretrain.ipynb --grid seed=0,1,2 --set profile=tiny

On a cluster the call is the same, with an executor of Dask or submitit (``docs/running.md``).

A sweep lies in ``sweeps/<notebook>-<hash of its code and the library's>``: of each point (by its
parameters, and the files that they name) the executed notebook, what it recorded in a folder, and
last ``<point>.json`` with parameters, status, seconds and error; ``runs.parquet`` has a row for
every run that ever ended there.
"""

import argparse
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import joblib
import nbformat
import pandas as pd

from m5lib import ROOT, home
from m5lib.data import locked, whole_file, write_json
from m5lib.files import reading
from m5lib.lab import ROOMS, checked, code_version, digest, notebooks
from m5lib.lab.notebooks import ParameterError

#: What :func:`sweep` says of a run, after its parameters: ``finished``, ``failed`` or ``cached``
#: (finished earlier), the executed notebook, one line of an error, and the point's name.
OUTCOME = ("status", "seconds", "output", "error", "point")
THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    label: str  # what differs from the other runs
    parameters: dict[str, object]  # all of the notebook
    output: Path  # the executed notebook, beside which its other files lie
    notebook: Path

    def ended(self) -> dict:
        """What is known of its last run that ended; nothing, where there was none."""
        return _read(self.output.with_suffix(".json"))


def _read(path: Path) -> dict:
    """A marker; nothing where there is none, or something else in its place: to be run again."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("parameters"), dict):
            return found if set(OUTCOME[:-1]) <= set(found) else {}
    return {}


@checked
def points(
    notebook: str | Path,
    grid: Mapping | Sequence,
    fixed: Mapping[str, object] | None = None,
    folder: str | Path | None = None,
) -> list[Point]:
    """What a sweep would run, in order, each point once. Arguments as for :func:`sweep`. Raises
    ``ParameterError``: a name that the notebook does not have, a value of the wrong type, an axis
    that is not a list or is empty, a name both in the grid and fixed."""
    with reading(f"{notebook}: fixed", "give a dict of parameters"):
        notebook, fixed = Path(notebook), dict(fixed or {})
    known, name = notebooks.parameters_of(notebook), notebook.name
    if isinstance(grid, Mapping):
        for axis, values in grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
                mend = "is not a list of values; give at least one, in a list"
                raise ParameterError(f"{name}: the grid's {axis} = {values!r} {mend}")
        grid = [dict(zip(grid, own, strict=True)) for own in itertools.product(*grid.values())]
    if not isinstance(grid, Sequence) or not all(isinstance(own, Mapping) for own in grid):
        raise ParameterError(f"{name}: the grid is neither lists by name nor points in a list")
    if clash := set(OUTCOME) & set(known):
        own = f"a sweep's table has its own column {min(clash)!r}; rename that parameter"
        raise ParameterError(f"{name}: {own}")
    place = Path(folder or home("sweeps")).absolute() / f"{notebook.stem}-{_version(notebook)}"
    found: dict[str, Point] = {}
    lying = cache(_files)  # once for all points that name the same
    for own in grid:
        if both := set(own) & set(fixed):
            raise ParameterError(f"{name}: {min(both)} is both in the grid and fixed")
        parameters = {**known, **notebooks.check(notebook, {**fixed, **own}, known)}
        changed = (f"{key}={value}" for key, value in parameters.items() if value != known[key])
        words = re.sub(r"[^A-Za-z0-9=,.+_-]+", "_", ",".join(changed))[:100] or "defaults"
        if "record" in known and not parameters["record"]:
            parameters["record"] = notebook.stem  # into the point's own folder, for `collect`
        texts = frozenset(text for text in parameters.values() if isinstance(text, str))
        words += f"-{digest([parameters, lying(texts)])}"
        label = " ".join(f"{key}={value}" for key, value in own.items()) or "defaults"
        found.setdefault(words, Point(words, label, parameters, place / f"{words}.ipynb", notebook))
    return list(found.values())


def _version(notebook: Path) -> str:
    """Of the code of a notebook and of the library, as they are now: not the cached version."""
    cells = nbformat.read(notebook, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    return digest([code, code_version.__wrapped__(*ROOMS)])


def _files(texts: frozenset[str]) -> list:
    """Sizes and times of the files and folders that parameters name, and of what lies in these:
    products that were changed are others. What lies deeper counts by its folder's time."""
    words = {word for text in texts for word in (text, *re.split("[,=:]", text)) if word}
    roots = [Path(word) for word in sorted(words) if os.path.exists(word)]
    inside = (path for root in roots if root.is_dir() for path in sorted(root.glob("[!.]*")))
    found = ((path, path.stat()) for path in (*roots, *inside) if path.exists())
    return [[str(path), now.st_size, now.st_mtime_ns] for path, now in found]


def run_point(
    notebook: str, output: str, parameters: dict, environment: dict[str, str], begun: str
) -> dict:
    """Run one point, in whatever process the executor chose, unless another is at it or it is
    finished and has a folder of results of its own; returns its marker. A run that fails is an
    outcome, not an exception. ``begun``, when the sweep was called, makes each call another one,
    for executors that remember what they were asked (Dask)."""
    marker, folder = Path(output).with_suffix(".json"), Path(output).with_suffix("")
    with locked(folder / ".lock"):
        earlier, own = _read(marker), environment["M5_RESULTS"] == str(folder)
        if own and earlier.get("status") == "finished":
            return earlier | {"status": "cached"}
        for old in folder.glob("*.json"):  # of a run that failed or was killed
            old.unlink()
        start, error = time.monotonic(), ""
        try:
            notebooks.run(notebook, output, parameters, quiet=True, environment=environment)
        except notebooks.NotebookError as failure:
            error = failure.brief
        except Exception as failure:  # a killed kernel, a full disk: no reason to stop the others
            error = _line(failure)
        if own and not error and not folder.parent.name.endswith(_version(Path(notebook))):
            error = "code was changed while it ran; the same call runs it by the new one"
        outcome = {"parameters": parameters, "status": "failed" if error else "finished"}
        outcome |= {"seconds": round(time.monotonic() - start, 2), "output": output}
        write_json(marker, outcome := outcome | {"error": error, "begun": begun})
    return outcome


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"


@checked
def sweep(
    notebook: str | Path,
    grid: Mapping | Sequence,
    fixed: Mapping[str, object] | None = None,
    executor=None,
    workers: int | None = None,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Run a notebook at every point of a grid; one line of progress as each run ends.

    A point that is finished (same parameters, same code of notebook and library) is not run again:
    an interrupted call goes on, a larger grid runs only what is new; a failed one is tried again.
    Ctrl-C cancels what has not started and interrupts what runs here, which keeps its checkpoints.

    Args:
        grid: lists of values by name, of which every combination is run; or a list of points, each
            a dict. Paths should be absolute.
        fixed: parameters that all points share. Others are the notebook's defaults.
        executor: any of ``concurrent.futures``, or with such a ``submit`` (submitit); by default
            threads of this process, each of which waits for the kernel of a run.
        workers: runs side by side, which share the cores; by default one per core, or one where
            there is CUDA. With an executor of your own: how many of its workers share a machine; by
            default its threads are left alone.
        folder: where sweeps lie; by default ``sweeps`` below :func:`m5lib.home`.

    Returns one row per point, in order: the parameters (lists and dicts as JSON), then
    :data:`OUTCOME`. Raises ``ParameterError`` as :func:`points`, before anything starts.
    """
    return run(points(notebook, grid, fixed, folder), executor, workers)


def run(
    todo: Sequence[Point], executor=None, workers: int | None = None, results: Path | None = None
) -> pd.DataFrame:
    """The same for :func:`points`, of several notebooks too, side by side as they come.
    ``results``: a folder into which all record, each anew; by default each has its own."""
    begun = datetime.now(UTC).isoformat()
    if not todo:
        return _frame([])
    if own := executor is None:
        import torch  # seconds; a mistyped parameter is told before

        most = 1 if torch.cuda.is_available() else joblib.cpu_count()
        workers = workers or min(len(todo), most)
    pool = ThreadPoolExecutor(workers) if own else executor
    base = {"M5_HOME": str(home().absolute())} | (_threads(workers) if workers else {})
    places, outcomes, futures = {point.output.parent for point in todo}, {}, {}

    def tell(point: Point, outcome: dict) -> None:
        outcomes[point.output] = outcome
        count = f"{len(outcomes):>{len(str(len(todo)))}}/{len(todo)}"
        line = f"{count}  {outcome['status']:8}  {outcome['seconds']:7.1f} s  "
        line += f"{point.notebook.stem} " * (len(places) > 1) + point.label
        line += f"  {outcome['error']}; see {outcome['output']}" if outcome["error"] else ""
        print(line, flush=True)

    try:
        for point in todo:
            if not results and (earlier := point.ended()).get("status") == "finished":
                tell(point, earlier | {"status": "cached"})
                continue
            files = (str(point.notebook.absolute()), str(point.output))
            environment = base | {"M5_RESULTS": str(results or point.output.with_suffix(""))}
            future = pool.submit(run_point, *files, point.parameters, environment, begun)
            futures[future] = point
        for place in places:
            _index(place)  # of what an earlier call had no time to write
        known = all(isinstance(future, Future) for future in futures)  # submitit's are not
        for future in as_completed(futures) if known else futures:
            outcome = _outcome(future, futures[future], begun)
            _index(futures[future].output.parent)
            tell(futures[future], outcome)
    except KeyboardInterrupt:
        print("stopping: what runs keeps its checkpoints", flush=True)
        for future in futures:
            future.cancel()
        while own and not all(future.done() for future in futures):
            notebooks.interrupt()  # again: a kernel that is just starting does not listen
            time.sleep(1)
        for place in places:
            _index(place)
        done = sum(point.ended().get("status") == "finished" for point in todo)
        said = f"stopped after {done} of {len(todo)} runs; the same call goes on from there"
        raise KeyboardInterrupt(said) from None
    finally:
        if own:
            pool.shutdown(cancel_futures=True)
    return _frame(
        [{"parameters": p.parameters, "point": p.name} | outcomes[p.output] for p in todo]
    )


def _threads(workers: int) -> dict[str, str]:
    """Variables that give a kernel its share of the cores, at most this process's own."""
    share, limit = max(1, joblib.cpu_count() // workers), os.environ.get("OMP_NUM_THREADS", "")
    share = min(share, int(limit)) if limit.isdigit() and int(limit) else share
    names = [*(f"{library}_NUM_THREADS" for library in THREADS), "LOKY_MAX_CPU_COUNT"]
    return dict.fromkeys(names, str(share))


def _outcome(future, point: Point, begun: str) -> dict:
    """The marker of a run; made here, where its process was lost (out of memory, time limit)."""
    if (error := future.exception()) is None:
        return future.result()
    lost = {"parameters": point.parameters, "status": "failed", "seconds": float("nan")}
    lost |= {"output": str(point.output), "error": _line(error), "begun": begun}
    write_json(point.output.with_suffix(".json"), lost)
    return lost


def _frame(outcomes: Sequence[dict]) -> pd.DataFrame:
    """One row per outcome: parameters, then :data:`OUTCOME`."""
    rows = []
    for outcome in outcomes:
        row = outcome["parameters"] | {name: outcome[name] for name in OUTCOME}
        for name, value in row.items():
            if isinstance(value, list | dict | tuple):
                row[name] = json.dumps(value, ensure_ascii=False)
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else list(OUTCOME))


def _index(folder: Path) -> None:
    """Write ``runs.parquet`` of all that lies there: other sweeps over the notebook, too."""
    paths = sorted(folder.glob("*.json"))
    ended = [marker | {"point": path.stem} for path in paths if (marker := _read(path))]
    if ended:
        with whole_file(folder / "runs.parquet") as path:
            _frame(ended).to_parquet(path, index=False)


@checked
def collect(frame: pd.DataFrame) -> pd.DataFrame:
    """The result rows that the finished runs of a sweep recorded (:func:`sweep`, or a
    ``runs.parquet``), with the parameters that are no columns of theirs, and ``point``. Raises
    ``ValueError``: a run's folder is not there."""
    from m5lib.lab.recording import COLUMNS, load_results

    more = [name for name in frame.columns if name not in (*COLUMNS, *OUTCOME, "record")]
    parts = []
    for run in frame[frame["status"] != "failed"].to_dict("records"):
        own = {name: run[name] for name in [*more, "point"]}
        if not (folder := Path(run["output"]).with_suffix("")).is_dir():
            mend = f"put it back, or delete {folder.name}.json beside it and call sweep again"
            raise ValueError(f"{folder}: gone or moved; {mend}")
        for path in sorted(folder.glob("*.json")):
            if path.name != "claims.json":  # verdicts, no rows
                parts.append(load_results(path).assign(**own))
    return pd.concat(parts or [pd.DataFrame(columns=[*COLUMNS, *more, "point"])], ignore_index=True)


# --- from the shell


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m m5lib sweep``. Returns 1: a run failed, 2: nothing started, 130: Ctrl-C."""
    parser = argparse.ArgumentParser("python -m m5lib sweep", description=__doc__.split(";")[0])
    option = parser.add_argument
    option("notebook", type=Path)
    option("--grid", nargs="+", default=[], metavar="NAME=A,B,…", help="values to combine")
    option("--json", type=Path, help="the grid: lists by name, or a list of points")
    option("--set", nargs="+", default=[], metavar="NAME=A", help="parameters that all runs share")
    option("--workers", type=int, help="runs side by side; by default one per core, one on CUDA")
    option("--folder", type=Path, help="where sweeps lie; by default sweeps/")
    option("--dry-run", action="store_true", help="only say what would run")
    options = parser.parse_args(arguments)
    if bool(options.grid) == bool(options.json):
        parser.error("give the points by --grid or by --json, one of them")
    try:
        grid = notebooks.assignments(options.notebook, options.grid, several=True)
        if options.json:
            grid = json.loads(options.json.read_text(encoding="utf-8"))
        fixed = notebooks.assignments(options.notebook, options.set, several=False)
        todo, begun = points(options.notebook, grid, fixed, options.folder), time.monotonic()
        if options.dry_run:
            for point in todo:
                print(f"{point.ended().get('status', 'to run'):8}  {point.label}  {point.output}")
            return 0
        frame = sweep(options.notebook, grid, fixed, workers=options.workers, folder=options.folder)
    except (OSError, ValueError) as error:
        file = f"{options.json}: " * isinstance(error, json.JSONDecodeError)
        print(f"{file}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(error, file=sys.stderr)
        return 130
    failed, index = int((frame["status"] == "failed").sum()), todo[0].output.parent / "runs.parquet"
    says = f", {failed} failed (the same call tries them again)" if failed else ""
    says = f"{len(frame) - failed} of {len(frame)} runs finished{says}"
    print(f"{says}, in {time.monotonic() - begun:.0f} s; see {index}")
    return int(failed > 0)


def pretrain(arguments: Sequence[str] | None = None) -> int:
    """``python -m m5lib pretrain``, alone or by torchrun: the run that notebook 04 then loads."""
    from m5lib.lab import runs
    from m5lib.models.parallel import joined, meet
    from m5lib.pretrain import world

    parser = argparse.ArgumentParser("python -m m5lib pretrain", description="one pre-training run")
    notebook = ROOT / "notebooks" / "04_pretrain.ipynb"
    parser.add_argument("set", nargs="*", metavar="NAME=A", help=f"parameters of {notebook.name}")
    try:
        words = notebooks.assignments(notebook, parser.parse_args(arguments).set, several=False)
        given = notebooks.parameters_of(notebook) | notebooks.check(notebook, words)
        job = runs.Job(**{f.name: given[f.name] for f in fields(runs.Job) if f.name in given})
    except ValueError as error:
        parser.error(str(error))
    size = runs.profile_of(job.profile)
    with joined() if "RANK" in os.environ else nullcontext():
        for others in (False, True):  # the first process fills the caches
            if (world()[0] > 0) == others:
                read = runs.load(given["data"], size, job.seed, job.extractors)
                words = job.tokenizer or job.bert
                streams = runs.streams_of(*read, size, given["modalities"], words)
            meet()
        run = runs.pretrained(job, streams)
        if world()[0] == 0:
            print(f"{len(run.history)} steps in {run.folder}")
    return 0
