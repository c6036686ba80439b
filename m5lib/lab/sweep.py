"""A grid of parameters over one notebook, run side by side; what was finished is not run again.

From Python, on this machine::

    grid = {"seed": [0, 1, 2], "model": ["scale", "released"]}
    frame = sweep("notebooks/04_pretrain.ipynb", grid, {"profile": "tiny"}, workers=2)
    rows = collect(frame)  # the result rows of all runs

From the shell::

    python -m m5lib sweep notebooks/04_pretrain.ipynb --grid seed=0,1,2 --set profile=tiny

On a cluster the call is the same, with an executor (``pip install "m5lib[cluster]"``; all machines
must see one disk, ``M5_HOME``)::

    sweep(notebook, grid, executor=distributed.Client(address).get_executor())  # Dask

    executor = submitit.AutoExecutor("sweeps/jobs")  # Slurm, or processes here where there is none
    executor.update_parameters(timeout_min=240, cpus_per_task=8, gpus_per_node=1)
    sweep(notebook, grid, executor=executor)

Any ``concurrent.futures`` executor will do; of submitit's, which is none, only ``submit`` is asked,
and ``done``, ``exception``, ``result`` and ``cancel`` of its jobs.

::

    sweeps/<notebook>-<hash of its code and the library's>/
      runs.parquet                one row for every run that ever ended here
      <point>.ipynb               the executed notebook; named by what differs from the defaults
      <point>.json                parameters, status, seconds, error; written last
      <point>/<record>.json, …    what it recorded: result rows and figures

``python -m m5lib results`` (:func:`results`) makes everything in ``results/`` by such sweeps.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import joblib
import nbformat
import pandas as pd
from tqdm.auto import tqdm

from m5lib import home
from m5lib.data import ROOMS, code_version, locked, whole_file, write_json
from m5lib.lab import notebooks
from m5lib.lab.notebooks import ParameterError

#: What :func:`sweep` says of a run, after its parameters.
OUTCOME = ("status", "seconds", "output", "error", "point")
THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")


@dataclass(frozen=True)
class Point:
    """One run of a sweep: all parameters of the notebook, and where its files lie."""

    folder: Path
    name: str
    label: str
    parameters: dict[str, object]

    @property
    def output(self) -> Path:
        """The executed notebook."""
        return self.folder / f"{self.name}.ipynb"

    @property
    def marker(self) -> Path:
        """What :func:`run_point` writes last."""
        return self.folder / f"{self.name}.json"

    def ended(self) -> dict:
        """What is known of its last run that ended; nothing, where there was none."""
        return _read(self.marker)


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=5).hexdigest()


def points(
    notebook: str | Path,
    grid: Mapping | Sequence,
    fixed: Mapping[str, object] | None = None,
    folder: str | Path | None = None,
) -> list[Point]:
    """What a sweep would run, in order, each point once. Arguments as for :func:`sweep`.

    Raises:
        ParameterError: a name that the notebook does not have, a value of the wrong type, an axis
            that is not a list or is empty, a name both in the grid and fixed.
    """
    notebook, fixed = Path(notebook), dict(fixed or {})
    known, name = notebooks.parameters_of(notebook), notebook.name
    if isinstance(grid, Mapping):
        for axis, values in grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
                raise ParameterError(
                    f"{name}: the grid's {axis} = {values!r} is not a list of values; give at least"
                    " one, in a list"
                )
        rows = itertools.product(*grid.values())
        grid = [dict(zip(grid, values, strict=True)) for values in rows]
    listed = isinstance(grid, Sequence) and not isinstance(grid, str)
    if not listed or not all(isinstance(own, Mapping) for own in grid):
        raise ParameterError(f"{name}: the grid is neither lists by name nor points in a list")
    if clash := set(OUTCOME) & set(known):
        raise ParameterError(
            f"{name}: a sweep's table has its own column {min(clash)!r}; rename that parameter"
        )
    cells = nbformat.read(notebook, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    # not the cached version: kernels start with the library as it is now
    version = _digest([code, code_version.__wrapped__(*ROOMS)])
    place = Path(folder or home("sweeps")).absolute() / f"{notebook.stem}-{version}"
    found: dict[str, Point] = {}
    for own in grid:
        if both := set(own) & set(fixed):
            raise ParameterError(f"{name}: {min(both)} is both in the grid and fixed")
        parameters = {**known, **notebooks.check(notebook, {**fixed, **own}, known)}
        changed = (f"{key}={value}" for key, value in parameters.items() if value != known[key])
        words = re.sub(r"[^A-Za-z0-9=,.+_-]+", "_", ",".join(changed))[:100] or "defaults"
        if "record" in known and not parameters["record"]:
            parameters["record"] = notebook.stem  # into the point's own folder, for `collect`
        words += f"-{_digest(parameters)}"
        label = " ".join(f"{key}={value}" for key, value in own.items()) or "defaults"
        found.setdefault(words, Point(place, words, label, parameters))
    return list(found.values())


def run_point(
    notebook: str, output: str, parameters: dict, environment: dict[str, str], begun: str
) -> dict:
    """Run one point, in whatever process the executor chose, unless it is finished or another
    process is at it. A run that fails is an outcome, not an exception.

    Args:
        environment: variables for the kernel; ``M5_RESULTS`` among them is the folder for what it
            records.
        begun: when the sweep was called. Makes each call another one, for executors that remember
            what they were asked (Dask).

    Returns:
        the marker: parameters, status (``finished``, ``failed``, or ``cached``), seconds, output,
        error, begun.
    """
    marker, folder = Path(output).with_suffix(".json"), Path(environment["M5_RESULTS"])
    with locked(folder / ".lock"):
        if (earlier := _read(marker)).get("status") == "finished":
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
        outcome = {"parameters": parameters, "status": "failed" if error else "finished"}
        outcome |= {"seconds": round(time.monotonic() - start, 2), "output": output}
        write_json(marker, outcome := outcome | {"error": error, "begun": begun})
    return outcome


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"


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
    the same call after an interruption goes on where it stopped, and a larger grid runs only what
    is new. A failed one is tried again. Ctrl-C cancels what has not started and interrupts what
    runs here, which keeps its checkpoints.

    Args:
        grid: lists of values by name, of which every combination is run; or a list of points, each
            a dict. Paths should be absolute.
        fixed: parameters that all points share. Others are the notebook's defaults.
        executor: anything with ``submit``; by default threads of this process, each of which waits
            for the kernel, a process, of a run.
        workers: runs side by side; by default one per core, or one where there is CUDA. Each kernel
            gets its share of the cores. With an executor of your own: how many of its workers share
            a machine; by default its threads are left alone.
        folder: where sweeps lie; by default ``sweeps`` below :func:`m5lib.home`.

    Returns:
        one row per point, in order: the parameters (lists and dicts as JSON), and status
        (``finished``, ``failed``, or ``cached``: finished earlier), seconds, output (the executed
        notebook), error (one line), point (its name).

    Raises:
        ParameterError: before anything starts; see :func:`points`.
        KeyboardInterrupt: after Ctrl-C, when the index is written.
    """
    todo, begun = points(notebook, grid, fixed, folder), datetime.now(UTC).isoformat()
    if not todo:
        return _frame([])
    if own := executor is None:
        workers = workers or _default_workers(len(todo))
    pool = ThreadPoolExecutor(workers) if own else executor
    base = {"M5_HOME": str(home().absolute())} | (_threads(workers) if workers else {})
    place, outcomes, futures = todo[0].folder, {}, {}
    with tqdm(total=len(todo), desc=Path(notebook).stem, unit=" runs", disable=None) as bar:

        def tell(point: Point, outcome: dict) -> None:
            outcomes[point.name] = outcome
            count = f"{len(outcomes):>{len(str(len(todo)))}}/{len(todo)}"
            line = f"{count}  {outcome['status']:8}  {outcome['seconds']:7.1f} s  {point.label}"
            line += f"  {outcome['error']}; see {outcome['output']}" if outcome["error"] else ""
            bar.write(line)
            sys.stdout.flush()
            bar.update()

        try:
            for point in todo:
                if (earlier := point.ended()).get("status") == "finished":
                    tell(point, earlier | {"status": "cached"})
                    continue
                files = (str(Path(notebook).absolute()), str(point.output))
                environment = base | {"M5_RESULTS": str(place / point.name)}
                future = pool.submit(run_point, *files, point.parameters, environment, begun)
                futures[future] = point
            _index(place)  # of what an earlier call had no time to write
            known = all(isinstance(future, Future) for future in futures)  # submitit's are not
            for future in as_completed(futures) if known else futures:
                outcome = _outcome(future, futures[future], begun)
                _index(place)
                tell(futures[future], outcome)
        except KeyboardInterrupt:
            bar.write("stopping: what runs keeps its checkpoints")
            for future in futures:
                future.cancel()
            while own and not all(future.done() for future in futures):
                notebooks.interrupt()  # again: a kernel that is just starting does not listen
                time.sleep(1)
            _index(place)
            done = sum(point.ended().get("status") == "finished" for point in todo)
            raise KeyboardInterrupt(
                f"stopped after {done} of {len(todo)} runs; the same call goes on from there"
            ) from None
        finally:
            if own:
                pool.shutdown(cancel_futures=True)
    return _frame([{"parameters": p.parameters, "point": p.name} | outcomes[p.name] for p in todo])


def _default_workers(runs: int) -> int:
    import torch  # seconds; a mistyped parameter is told before

    return 1 if torch.cuda.is_available() else min(runs, joblib.cpu_count())


def _threads(workers: int) -> dict[str, str]:
    """Variables that give a kernel its share of the cores, or what this process was given, if that
    is less."""
    share, limit = max(1, joblib.cpu_count() // workers), os.environ.get("OMP_NUM_THREADS", "")
    share = min(share, int(limit)) if limit.isdigit() and int(limit) else share
    names = [*(f"{library}_NUM_THREADS" for library in THREADS), "LOKY_MAX_CPU_COUNT"]
    return dict.fromkeys(names, str(share))


def _outcome(future, point: Point, begun: str) -> dict:
    """The marker that a run returned; or one made here, for a run whose process was lost (out of
    memory, time limit, machine)."""
    if (error := future.exception()) is None:
        return future.result()
    lost = {"parameters": point.parameters, "status": "failed", "seconds": float("nan")}
    lost |= {"output": str(point.output), "error": _line(error), "begun": begun}
    write_json(point.marker, lost)
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
    """Write ``runs.parquet`` from what lies in the folder: it holds the runs of other sweeps over
    the same notebook, too."""
    ended = [_read(path) | {"point": path.stem} for path in sorted(folder.glob("*.json"))]
    if ended:
        with whole_file(folder / "runs.parquet") as path:
            _frame(ended).to_parquet(path, index=False)


def collect(frame: pd.DataFrame) -> pd.DataFrame:
    """The result rows that the finished runs of a sweep recorded, in one table.

    Args:
        frame: as :func:`sweep` returns it, or ``pandas.read_parquet`` of a ``runs.parquet``.

    Returns:
        the columns of :data:`m5lib.lab.recording.COLUMNS`, the parameters that are not among these,
        and ``point``, in which it can be merged with the frame; without rows where the notebook
        recorded none (it needs a parameter ``record``).
    """
    from m5lib.lab.recording import COLUMNS, load_results

    more = [name for name in frame.columns if name not in (*COLUMNS, *OUTCOME, "record")]
    parts = []
    for run in frame[frame["status"] != "failed"].to_dict("records"):
        own = {name: run[name] for name in [*more, "point"]}
        for path in sorted(Path(run["output"]).with_suffix("").glob("*.json")):
            parts.append(load_results(path).assign(**own))
    empty = [pd.DataFrame(columns=[*COLUMNS, *more, "point"])]
    return pd.concat(parts or empty, ignore_index=True)


# --- from the shell


def _values(text: str, kind: type) -> list:
    """Values between commas, as the notebook's default is: text, or JSON."""
    try:
        return text.split(",") if kind is str else json.loads(f"[{text}]")
    except ValueError:
        return text.split(",")  # said by `check`, with the parameter's name


def _assignments(notebook: Path, words: Sequence[str]) -> dict[str, list]:
    known, values = notebooks.parameters_of(notebook), {}
    for word in words:
        name, _, text = word.partition("=")
        if not text or name in values:
            raise ParameterError(f"{word!r}: write each parameter once, as name=value")
        values[name] = _values(text, type(known.get(name, "")))
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m m5lib sweep``. Returns 0; 1 where a run failed; 2 where nothing was started; 130
    after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m m5lib sweep", description="Run a notebook at every point of a grid."
    )
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
        grid = _assignments(options.notebook, options.grid)
        if options.json:
            grid = json.loads(options.json.read_text(encoding="utf-8"))
        shared = _assignments(options.notebook, options.set).items()
        fixed = {name: values[0] if len(values) == 1 else values for name, values in shared}
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
    failed = int((frame["status"] == "failed").sum())
    says = f"{len(frame) - failed} of {len(frame)} runs finished"
    says += f", {failed} failed (the same call tries them again)" if failed else ""
    print(f"{says}, in {time.monotonic() - begun:.0f} s; see {todo[0].folder / 'runs.parquet'}")
    return int(failed > 0)


# --- everything in results/

#: How many real products a study takes, evenly over the splits: a run of three modalities then
#: takes about as long as one of five on the shop. The story of ``make demo`` takes all.
PRODUCTS = 6000
#: What these compare needs no second data set.
SHOP_ONLY = ("model", "released", "probes")


def results(arguments: Sequence[str] | None = None) -> int:
    """``python -m m5lib results``: run every notebook for the results files that its metadata name,
    on the shop and on real products. Returns 1 where one failed (the others still ran).

    Of a study (a notebook with a parameter ``seeds``) the seeds are first swept side by side; then
    the notebook runs once with all of them, loads what they left, and records. What is finished is
    loaded, so an interrupted call goes on.
    """
    from m5lib.lab import claims

    todo = [(path, name) for path in notebooks.find() for name in notebooks.results_of(path)]
    parser = argparse.ArgumentParser("python -m m5lib results", description="Make results/.")
    option, names = parser.add_argument, list(dict.fromkeys(name for _, name in todo))
    option("--profile", default="small", choices=("tiny", "small", "full"))
    option("--seeds", type=int, default=3)
    option("--data", default="", help="folder or file of real products, after the shop")
    option("--only", nargs="+", default=names, choices=names, help="some of the results")
    option("--workers", type=int, help="runs side by side; by default one per core, one on CUDA")
    options, begun, done = parser.parse_args(arguments), time.monotonic(), []
    notebooks.show_progress()
    for data in ("shop", *([str(Path(options.data).resolve())] if options.data else [])):
        place = "" if data == "shop" else Path(data).name.split("-")[0]
        for path, name in todo:
            if name not in options.only or (place and name in SHOP_ONLY):
                continue
            start, fine, known = time.monotonic(), True, notebooks.parameters_of(path)
            record = f"{name}_{place}" if place else name
            parameters = {"profile": options.profile, "data": data}
            if name == "demo":
                record = place or name
            elif name == "probes":
                parameters["shops"] = options.seeds
            elif "seeds" in known:
                parameters |= {"products": PRODUCTS} if place else {}
                if options.seeds > 1:
                    grid = {"seed": list(range(options.seeds))}
                    frame = sweep(path, grid, parameters, workers=options.workers)
                    fine = bool((frame["status"] != "failed").all())
                parameters["seeds"] = options.seeds
            done.append(fine and _recorded(path, parameters | {"record": record}))
            times = _read(home("results", "times.json"))  # all parts of a run that resumed
            times[record] = round(times.get(record, 0) + time.monotonic() - start)
            write_json(home("results", "times.json"), times)
    claims.main([])
    minutes = (time.monotonic() - begun) / 60
    print(f"{sum(done)} of {len(done)} results in {minutes:.0f} minutes; see {home('results')}")
    return int(not all(done))


def _recorded(notebook: Path, parameters: dict) -> bool:
    output = home("reports", f"{notebook.stem}-{parameters['record']}.ipynb")
    try:
        notebooks.run(notebook, output, parameters)
    except notebooks.NotebookError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return False
    notebooks.to_html(output)
    return True
