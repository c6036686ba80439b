"""A grid of parameters over one notebook, run side by side; what was finished is not run again.

From Python, on this machine::

    frame = sweep("notebooks/04_pretrain.ipynb", {"seed": [0, 1, 2], "model": ["scale", "released"]}, {"profile": "tiny"}, workers=2)
    rows = collect(frame)  # the result rows of all runs

From the shell::

    python -m m5lib.lab.sweep notebooks/04_pretrain.ipynb --grid seed=0,1,2 model=scale,released --set profile=tiny --workers 2

On a cluster the call is the same, with an executor (``pip install "m5lib[cluster]"``; all machines
must see one disk, ``M5_HOME``)::

    sweep(notebook, grid, executor=distributed.Client(address).get_executor())  # Dask

    executor = submitit.AutoExecutor("sweeps/jobs")  # Slurm, or processes here where there is none
    executor.update_parameters(timeout_min=240, cpus_per_task=8, gpus_per_node=1)
    sweep(notebook, grid, executor=executor)

Any ``concurrent.futures`` executor will do; submitit's is none, but has the same ``submit``, and
its jobs ``done``, ``exception``, ``result`` and ``cancel``, which is all that is asked for.

::

    sweeps/<notebook>-<hash of its code and the library's>/
      runs.parquet                one row for every run that ever ended here
      <point>.ipynb               the executed notebook; a point is named by what differs from the defaults, and a hash of all
      <point>.json                parameters, status, seconds, error; written last
      <point>/<record>.json, …    what it recorded: result rows and figures
"""  # noqa: E501

import argparse
import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import joblib
import nbformat
import pandas as pd
from tqdm.auto import tqdm

from m5lib import home
from m5lib.data import files
from m5lib.lab import notebooks
from m5lib.lab.notebooks import ParameterError

#: What :func:`sweep` says of a run, after its parameters.
OUTCOME = ("status", "seconds", "output", "error", "point")
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
)


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
        return _marker(self.marker)


def _marker(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _digest(what: object) -> str:
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=5).hexdigest()


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
    known = notebooks.parameters_of(notebook)
    if isinstance(grid, Mapping):
        for name, values in grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
                raise ParameterError(
                    f"{notebook.name}: the grid's {name} = {values!r} is not a list of values; "
                    "give at least one, in a list"
                )
        grid = [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
    if (
        isinstance(grid, str)
        or not isinstance(grid, Sequence)
        or not all(isinstance(given, Mapping) for given in grid)
    ):
        raise ParameterError(
            f"{notebook.name}: the grid is neither lists of values by name nor a list of points by "
            "name"
        )
    if clash := set(OUTCOME) & set(known):
        raise ParameterError(
            f"{notebook.name}: a sweep's table has its own column {min(clash)!r}; give that "
            "parameter another name"
        )
    code = [
        cell.source
        for cell in nbformat.read(notebook, as_version=4).cells
        if cell.cell_type == "code"
    ]
    # not the cached version: in Jupyter the library may have been edited since, and kernels start
    # with what is there now
    place = (
        Path(folder or home("sweeps")).absolute()
        / f"{notebook.stem}-{_digest([code, files.code_version.__wrapped__()])}"
    )
    found: dict[str, Point] = {}
    for given in grid:
        if both := set(given) & set(fixed):
            raise ParameterError(
                f"{notebook.name}: {min(both)} is both in the grid and fixed; give it once"
            )
        parameters = {**known, **notebooks.check(notebook, {**fixed, **given}, known)}
        changed = ",".join(
            f"{name}={value}" for name, value in parameters.items() if value != known[name]
        )
        if "record" in known and not parameters["record"]:
            parameters["record"] = notebook.stem  # into the point's own folder, for `collect`
        name = f"{re.sub(r'[^A-Za-z0-9=,.+_-]+', '_', changed)[:100] or 'defaults'}-{_digest(parameters)}"  # noqa: E501
        label = " ".join(f"{key}={value}" for key, value in given.items()) or "defaults"
        found.setdefault(name, Point(place, name, label, parameters))
    return list(found.values())


def run_point(
    notebook: str, output: str, parameters: dict, environment: dict[str, str], begun: str
) -> dict:
    """Run one point, in whatever process the executor chose, unless it is finished or another
    process is at it.

    A run that fails is an outcome, not an exception.

    Args:
        environment: variables for the kernel; ``M5_RESULTS`` among them is the folder for what it
            records.
        begun: when the sweep was called. Makes each call another one, for executors that remember
            what they were asked (Dask).

    Returns:
        the marker: parameters, status (``finished``, ``failed``, or ``cached``), seconds, output,
            error, begun.
    """
    marker, results = Path(output).with_suffix(".json"), Path(environment["M5_RESULTS"])
    with files.locked(results / ".lock"):
        if (earlier := _marker(marker)).get("status") == "finished":
            return earlier | {"status": "cached"}
        for old in results.glob("*.json"):  # of a run that failed or was killed
            old.unlink()
        start, error = time.monotonic(), ""
        try:
            notebooks.run(notebook, output, parameters, quiet=True, environment=environment)
        except notebooks.NotebookError as failure:
            error = failure.brief
        except (
            Exception
        ) as failure:  # the kernel was killed, the disk is full, …: no reason to stop the others
            error = _line(failure)
        outcome = {"parameters": parameters, "status": "failed" if error else "finished"}
        outcome |= {
            "seconds": round(time.monotonic() - start, 2),
            "output": output,
            "error": error,
            "begun": begun,
        }
        files.write_json(marker, outcome)
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

    A point that is finished (same parameters, same code of notebook and library) is not run again,
    so that the same call after an interruption goes on where it stopped, and a larger grid runs
    only what is new. A failed one is tried again. Ctrl-C cancels what has not started and
    interrupts what runs here, which keeps its checkpoints.

    Args:
        grid: lists of values by name, of which every combination is run; or a list of points, each
            a dict. Paths should be absolute.
        fixed: parameters that all points share. Others are the notebook's defaults.
        executor: anything with ``submit``; by default threads of this process, each of which waits
            for the kernel, a process, of a run.
        workers: runs side by side; by default one per core, or one where there is CUDA. Each kernel
            gets its share of the cores.
            With an executor of your own: how many of its workers share a machine; by default its
                threads are left alone.
        folder: where sweeps lie; by default ``sweeps`` below :func:`m5lib.data.files.home`.

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
    own = executor is None
    workers = workers or (_default_workers(len(todo)) if own else None)
    pool = ThreadPoolExecutor(workers) if own else executor
    base = {"M5_HOME": str(home().absolute())} | (_threads(workers) if workers else {})
    place, outcomes, futures = todo[0].folder, {}, {}
    with tqdm(total=len(todo), desc=Path(notebook).stem, unit=" runs", disable=None) as bar:

        def tell(point: Point, outcome: dict) -> None:
            outcomes[point.name] = outcome
            line = f"{len(outcomes):>{len(str(len(todo)))}}/{len(todo)}  {outcome['status']:8}  {outcome['seconds']:7.1f} s  {point.label}"  # noqa: E501
            line += f"  {outcome['error']}; see {outcome['output']}" if outcome["error"] else ""
            bar.write(line)
            sys.stdout.flush()
            bar.update()

        try:
            for point in todo:
                if (earlier := point.ended()).get("status") == "finished":
                    tell(point, earlier | {"status": "cached"})
                    continue
                environment = base | {"M5_RESULTS": str(place / point.name)}
                future = pool.submit(
                    run_point,
                    str(Path(notebook).absolute()),
                    str(point.output),
                    point.parameters,
                    environment,
                    begun,
                )
                futures[future] = point
            _index(place)  # of what an earlier call had no time to write
            for future in _as_completed(futures):
                outcome = _outcome(future, futures[future], begun)
                _index(place)
                tell(futures[future], outcome)
        except KeyboardInterrupt:
            bar.write("stopping: what runs keeps its checkpoints")
            _stop(futures, own)
            _index(place)
            done = sum(point.ended().get("status") == "finished" for point in todo)
            raise KeyboardInterrupt(
                f"stopped after {done} of {len(todo)} runs; the same call goes on from there"
            ) from None
        finally:
            if own:
                pool.shutdown(cancel_futures=True)
    return _frame([{"parameters": p.parameters, "point": p.name} | outcomes[p.name] for p in todo])


def _default_workers(wanted: int) -> int:
    import torch  # seconds; a mistyped parameter is told before

    return 1 if torch.cuda.is_available() else min(wanted, joblib.cpu_count())


def _threads(workers: int) -> dict[str, str]:
    """Variables that give a kernel its share of the cores, or what this process was given, if that
    is less."""
    share = max(1, joblib.cpu_count() // workers)
    given = os.environ.get("OMP_NUM_THREADS", "")
    return dict.fromkeys(
        THREADS, str(min(share, int(given)) if given.isdigit() and int(given) else share)
    )


def _as_completed(futures) -> Iterator:
    """Futures as they end. Asks them now and then: what submitit hands out has ``done``, but is not
    of ``concurrent.futures``."""
    waiting, pause = list(futures), 0.05
    while waiting:
        ended = [future for future in waiting if future.done()]
        yield from ended
        waiting = [future for future in waiting if future not in ended]
        pause = 0.05 if ended else min(1.0, 1.3 * pause)
        time.sleep(pause if waiting else 0)


def _outcome(future, point: Point, begun: str) -> dict:
    """The marker that a run returned; or one made here, for a run whose process was lost (out of
    memory, time limit, machine)."""
    if (error := future.exception()) is None:
        return future.result()
    lost = {"parameters": point.parameters, "status": "failed", "seconds": float("nan")}
    lost |= {"output": str(point.output), "error": _line(error), "begun": begun}
    files.write_json(point.marker, lost)
    return lost


def _stop(futures, own: bool) -> None:
    for future in futures:
        if not future.done():
            future.cancel()
    while own and not all(
        future.done() for future in futures
    ):  # again: a kernel that was just starting does not listen
        notebooks.interrupt()
        time.sleep(1)


def _frame(outcomes: Sequence[dict]) -> pd.DataFrame:
    """One row per outcome: parameters, then :data:`OUTCOME`."""

    def cell(value):
        return (
            json.dumps(value, ensure_ascii=False)
            if isinstance(value, list | dict | tuple)
            else value
        )

    rows = [
        {n: cell(v) for n, v in o["parameters"].items()} | {n: o[n] for n in OUTCOME}
        for o in outcomes
    ]
    return pd.DataFrame(rows, columns=None if rows else list(OUTCOME))


def _index(folder: Path) -> None:
    """Write ``runs.parquet`` from what lies in the folder: it holds the runs of other sweeps over
    the same notebook, too."""
    found = [_marker(path) | {"point": path.stem} for path in sorted(folder.glob("*.json"))]
    if found:
        temporary = folder / f"runs.{os.getpid()}.tmp"
        _frame(found).to_parquet(temporary, index=False)
        os.replace(temporary, folder / "runs.parquet")


def collect(frame: pd.DataFrame) -> pd.DataFrame:
    """The result rows that the finished runs of a sweep recorded, in one table.

    Args:
        frame: as :func:`sweep` returns it, or ``pandas.read_parquet`` of a ``runs.parquet``.

    Returns:
        the columns of :data:`m5lib.lab.recording.COLUMNS`, the parameters that are not among these,
        and ``point``, in which it can be merged with the frame; without rows where the notebook
        recorded none (it needs a parameter ``record``).
    """

    from m5lib.lab import recording

    more = [
        name for name in frame.columns if name not in (*recording.COLUMNS, *OUTCOME, "record")
    ] + ["point"]
    found = [pd.DataFrame(columns=[*recording.COLUMNS, *more])]
    for run in frame[frame["status"] != "failed"].to_dict("records"):
        for path in sorted(Path(run["output"]).with_suffix("").glob("*.json")):
            found.append(recording.load_results(path).assign(**{name: run[name] for name in more}))
    return pd.concat(found[1:] or found, ignore_index=True)


def _value(text: str, wanted: type) -> object:
    """A value of the command line: JSON, or text as it stands where it is none or the notebook
    wants text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if wanted is str and not isinstance(value, str) else value


def _values(text: str, wanted: type) -> list:
    """Several values between commas; JSON's own commas, in lists and quotes, do not count."""
    try:
        values = json.loads(f"[{text}]")
    except ValueError:
        values = None
    if values is None or (wanted is str and not all(isinstance(value, str) for value in values)):
        values = [_value(part, wanted) for part in text.split(",")]
    return values


def _assignments(notebook: Path, given: Sequence[str], read) -> dict:
    known, found = notebooks.parameters_of(notebook), {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value or name in found:
            raise ParameterError(f"{text!r}: write each parameter once, as name=value")
        found[name] = read(value, type(known.get(name, "")))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0; 1 where a run failed; 2 where nothing was started; 130 after
    Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m m5lib.lab.sweep", description="Run a notebook at every point of a grid."
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument(
        "--grid", nargs="+", default=[], metavar="NAME=A,B,…", help="values to combine"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="the grid as JSON: lists by name, or a list of points",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=A", help="parameters that all runs share"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="runs side by side; by default one per core, or one where there is CUDA",
    )
    parser.add_argument("--folder", type=Path, help="where sweeps lie; by default sweeps/")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run")
    options = parser.parse_args(arguments)
    if bool(options.grid) == bool(options.json):
        parser.error("give the points by --grid or by --json, one of them")
    try:
        grid = (
            json.loads(options.json.read_text(encoding="utf-8"))
            if options.json
            else _assignments(options.notebook, options.grid, _values)
        )
        fixed = _assignments(options.notebook, options.set, _value)
        todo = points(options.notebook, grid, fixed, options.folder)
        if options.dry_run:
            for point in todo:
                print(f"{point.ended().get('status', 'to run'):8}  {point.label}  {point.output}")
            return 0
        begun = time.monotonic()
        frame = sweep(options.notebook, grid, fixed, workers=options.workers, folder=options.folder)
    except (OSError, ValueError) as error:
        print(
            f"{options.json}: {error}" if isinstance(error, json.JSONDecodeError) else error,
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as error:
        print(error, file=sys.stderr)
        return 130
    failed = (frame["status"] == "failed").sum()
    says = f"{len(frame) - failed} of {len(frame)} runs finished"
    says += f", {failed} failed (the same call tries them again)" if failed else ""
    print(f"{says}, in {time.monotonic() - begun:.0f} s; see {todo[0].folder / 'runs.parquet'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
