"""A sweep: strict before it starts, side by side, resumed after a kill, and the same through any
executor."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import nbformat
import pandas as pd
import pytest
import torch
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_notebook

from m5lib import data as files
from m5lib.data import write_json
from m5lib.lab import notebooks, recording, runs, sweep
from m5lib.shop import listings

PARAMETERS = """n = 0  # which
pause = 0.0  # seconds
name = "x"  # any
fail_below = 0.0  # n under this fails until the file `mended` is there
record = ""  # name of the rows"""
WORK = """import json, os, pathlib, time
home, results = pathlib.Path(os.environ["M5_HOME"]), pathlib.Path(os.environ["M5_RESULTS"])
with open(home / "started.txt", "a") as file: file.write(f"{n}\\n")
time.sleep(pause)
if n < fail_below and not (home / "mended").exists(): raise ValueError("first line\\nlast line")
row = dict(notebook="book", run="r", data="d", profile="tiny", seed=n, model=name, state="control", modalities="T", variant="", numbers=[["t", "m", "", n / 2]])
results.joinpath(record + ".json").write_text(json.dumps({"provenance": {}, "measured": [row]}))
results.joinpath("claims.json").write_text(json.dumps({"provenance": {}, "claims": []}))
print(os.environ.get("OMP_NUM_THREADS", ""))"""  # noqa: E501


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A notebook without torch, in a home of its own; what started is counted in a file."""
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    meta = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(WORK)]
    nbformat.write(new_notebook(cells=cells, metadata=meta), tmp_path / "book.ipynb")
    return tmp_path / "book.ipynb"


def started(book) -> list[int]:
    path = book.with_name("started.txt")
    return sorted(int(line) for line in path.read_text().split()) if path.exists() else []


def test_points_of_a_grid_and_of_a_list(book):
    grid = sweep.points(book, {"n": [1, 2], "name": ["a", "b/c"]}, {"pause": 1})
    assert [(p.parameters["n"], p.parameters["name"]) for p in grid] == [
        (1, "a"),
        (1, "b/c"),
        (2, "a"),
        (2, "b/c"),
    ]
    assert all(p.parameters["pause"] == 1.0 and p.parameters["record"] == "book" for p in grid)
    assert grid[0].label == "n=1 name=a" and grid[1].name.startswith("n=1,pause=1.0,name=b_c-")
    assert len({p.name for p in grid}) == 4 and len({p.output.parent for p in grid}) == 1
    listed = sweep.points(
        book, [{"n": 2, "name": "a"}, {"n": 1, "name": "a"}, {"n": 1, "name": "a"}], {"pause": 1.0}
    )
    assert [p.name for p in listed] == [
        grid[2].name,
        grid[0].name,
    ]  # each once; the same points wherever they come from
    text = nbformat.read(book, as_version=4)
    text.cells[1].source += "\nprint()"
    nbformat.write(text, book)
    assert (
        sweep.points(book, {"n": [1]})[0].output.parent != grid[0].output.parent
    )  # other code, other runs


def test_strict_before_anything_starts(book):
    for grid, fixed, says in (
        ({"m": [1]}, {}, "no parameter 'm'"),
        ({"n": [1, 2, "3"]}, {}, "n = '3' is str"),
        ({"n": [1]}, {"name": 3.5}, "name = 3.5 is float"),
        ({"n": 3}, {}, "n = 3 is not a list"),
        ({"n": []}, {}, "at least one"),
        ({"name": "abc"}, {}, "not a list"),
        ({"n": [1]}, {"n": 2}, "both in the grid and fixed"),
        ([1], {}, "neither"),
    ):
        with pytest.raises(notebooks.ParameterError, match=says):
            sweep.sweep(book, grid, fixed)
    assert not started(book) and not book.with_name("sweeps").exists()


def test_finished_failed_cached_retried_and_collected(book, capsys):
    """One failing run of three leaves two results and a report; the next call runs that one
    alone."""
    frame = sweep.sweep(book, {"n": [0, 1, 2]}, {"fail_below": 1.0}, workers=2)
    assert frame["status"].tolist() == ["failed", "finished", "finished"] and frame[
        "n"
    ].tolist() == [0, 1, 2]
    assert frame["error"].tolist() == [
        "cell 3: ValueError: last line",
        "",
        "",
    ]  # papermill adds a cell
    assert list(frame.columns) == ["n", "pause", "name", "fail_below", "record", *sweep.OUTCOME]
    said = capsys.readouterr().out
    assert (
        said.count("  finished  ") == 2
        and f"ValueError: last line; see {frame['output'][0]}" in said
        and "3/3" in said
    )
    rows = sweep.collect(frame)
    assert rows["seed"].tolist() == [1, 2] and rows["value"].tolist() == [0.5, 1.0]
    assert list(rows.columns) == [*recording.COLUMNS, "n", "pause", "name", "fail_below", "point"]
    assert len(rows.merge(frame, on="point")) == 2
    place = book.with_name("sweeps").joinpath(os.path.basename(os.path.dirname(frame["output"][0])))
    index = pd.read_parquet(place / "runs.parquet").sort_values("n")
    assert index["status"].tolist() == ["failed", "finished", "finished"]
    book.with_name("mended").touch()
    again = sweep.sweep(book, {"n": [0, 1, 2]}, {"fail_below": 1.0})
    assert again["status"].tolist() == ["finished", "cached", "cached"] and started(book) == [
        0,
        0,
        1,
        2,
    ]
    assert again["seconds"].tolist()[1:] == frame["seconds"].tolist()[1:]
    assert sweep.collect(pd.read_parquet(place / "runs.parquet"))[
        "seed"
    ].sort_values().tolist() == [0, 1, 2]


def test_kernels_side_by_side_share_the_cores(book, monkeypatch):
    """Eight cores and two workers: four threads a kernel, as the kernels themselves say."""
    monkeypatch.setattr(sweep.joblib, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    frame = sweep.sweep(book, {"n": [1, 2]}, workers=2)
    for output in frame["output"]:
        outputs = nbformat.read(output, as_version=4).cells[-1].outputs
        assert outputs[0].text.strip() == "4"
    for given, workers, threads in (("", 1, 8), ("", 3, 2), ("", 16, 1), ("2", 2, 2), ("9", 4, 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert set(sweep._threads(workers).values()) == {str(threads)}


def three_runs(book, pause):
    """The command of a sweep of three runs, one after another."""
    words = f"--grid n=1,2,3 --set pause={pause} --workers 1".split()
    return [sys.executable, "-m", "m5lib", "sweep", str(book), *words]


def test_a_killed_sweep_goes_on(book):
    """SIGKILL after the first run has ended: its kernels end too, the next call runs what is
    left."""
    command = three_runs(book, 1.5)
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert "finished" in killed.stdout.readline()
    while len(started(book)) < 2 and killed.poll() is None:
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    frame = sweep.sweep(book, {"n": [1, 2, 3]}, {"pause": 1.5}, workers=2)
    assert frame["status"].tolist() == ["cached", "finished", "finished"]
    assert started(book) == [1, 2, 2, 3] and sweep.collect(frame)["seed"].tolist() == [1, 2, 3]
    assert (
        len(pd.read_parquet(os.path.join(os.path.dirname(frame["output"][0]), "runs.parquet"))) == 3
    )


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(book):
    command = three_runs(book, 600)
    sweep.sweep(book, {"n": [1]}, {"pause": 600.0}, executor=_Finishes())
    heard = {
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    }  # a shell's background jobs are deaf to Ctrl-C
    stopped = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heard
    )
    while len(started(book)) < 1 and stopped.poll() is None:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate()
    assert stopped.returncode == 130
    assert (
        "1/3  cached" in out
        and "stopped after 1 of 3 runs; the same call goes on from there" in err
    )
    statuses = [
        p.ended().get("status") for p in sweep.points(book, {"n": [1, 2, 3]}, {"pause": 600.0})
    ]
    assert statuses == ["finished", None, None] and started(book) == [2]


class _Finishes:
    """Not of `concurrent.futures`, like submitit's; says at once that a run is finished."""

    def submit(self, function, notebook, output, parameters, environment, begun):
        outcome = {
            "parameters": parameters,
            "status": "finished",
            "seconds": 1.0,
            "output": output,
            "error": "",
            "begun": begun,
        }
        files.write_json(output.replace(".ipynb", ".json"), outcome)
        return _Job(outcome)


class _Lost:
    """A job whose process is lost; the threads of such an executor are left alone."""

    def submit(self, function, notebook, output, parameters, environment, begun):
        assert "OMP_NUM_THREADS" not in environment
        return _Job(None, RuntimeError("the job\nran out of memory"))


class _Job:
    def __init__(self, outcome, error=None):
        self.outcome, self.error = outcome, error

    def done(self):
        return True

    def exception(self):
        return self.error

    def result(self):
        return self.outcome


def test_other_executors(book):
    """Processes, and jobs like submitit's; a job that is lost is a failed run."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert sweep.sweep(book, {"n": [1]}, executor=pool, workers=1)["status"].tolist() == [
            "finished"
        ]
    frame = sweep.sweep(book, {"n": [1, 2]}, executor=_Lost())
    assert (
        frame["status"].tolist() == ["cached", "failed"]
        and frame["error"][1] == "RuntimeError: ran out of memory"
    )
    with ThreadPoolExecutor(2) as pool:
        assert sweep.sweep(book, {"n": [1, 2]}, executor=pool)["status"].tolist() == [
            "cached",
            "finished",
        ]


def test_dask(book):
    distributed = pytest.importorskip(
        "distributed", reason="needs the extra: pip install 'm5lib[cluster]'"
    )
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        frame = sweep.sweep(
            book, {"n": [0, 1, 2]}, {"fail_below": 1.0}, executor=client.get_executor()
        )
        assert frame["status"].tolist() == ["failed", "finished", "finished"]
        book.with_name(
            "mended"
        ).touch()  # the same arguments once more: Dask must not answer from memory
        frame = sweep.sweep(
            book, {"n": [0, 1, 2]}, {"fail_below": 1.0}, executor=client.get_executor()
        )
        assert frame["status"].tolist() == ["finished", "cached", "cached"] and started(book) == [
            0,
            0,
            1,
            2,
        ]


def test_submitit(book):
    submitit = pytest.importorskip(
        "submitit", reason="needs the extra: pip install 'm5lib[cluster]'"
    )
    executor = submitit.AutoExecutor(book.with_name("jobs"), cluster="local")
    frame = sweep.sweep(book, {"n": [0, 1]}, {"fail_below": 1.0}, executor=executor)
    assert frame["status"].tolist() == ["failed", "finished"] and sweep.collect(frame)[
        "seed"
    ].tolist() == [1]


def test_shell(book, capsys, tmp_path):
    """Values by the notebook's types, dry run, exit codes."""

    def call(*words):
        code = sweep.main([str(book), *words])
        return code, capsys.readouterr()

    code, said = call("--grid", "n=0,1", "name=1,true", "--set", "pause=0", "--dry-run")
    assert code == 0 and [line[:8].strip() for line in said.out.splitlines()] == ["to run"] * 4
    assert "n=0 name=1 " in said.out and not started(book)
    code, said = call("--grid", "n=0,1", "--set", "fail_below=1", "--workers", "1")
    assert code == 1 and "1 of 2 runs finished, 1 failed" in said.out and "see " in said.out
    code, said = call("--grid", "n=0,1", "--set", "fail_below=1", "--dry-run")
    assert [line.split()[0] for line in said.out.splitlines()] == ["failed", "finished"]
    (tmp_path / "grid.json").write_text(json.dumps([{"n": 1, "fail_below": 1.0}]))
    assert call("--json", str(tmp_path / "grid.json"))[0] == 0
    for words, says in (
        (("--grid", "m=1"), "no parameter 'm'"),
        (("--grid", "n=a"), "n = 'a' is str"),
        (("--grid", "n"), "name=value"),
        (("--grid", "n=1", "n=2"), "once"),
        (("--json", str(tmp_path / "none.json")), "none.json"),
        (("--json", str(book.with_name("started.txt"))), "started.txt"),
    ):
        code, said = call(*words)
        assert code == 2 and says in said.err, words
    with pytest.raises(SystemExit):
        call("--grid", "n=1", "--json", "x")


def test_commands_of_the_pages(monkeypatch, tmp_path):
    """Each would run: its notebook is there and has these parameters."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    for text in ((ROOT / "docs" / "running.md").read_text(encoding="utf-8"), sweep.__doc__):
        commands = re.findall(r"python -m m5lib sweep (.*)", text)
        assert commands
        for words in commands:
            assert sweep.main([*shlex.split(words, comments=True), "--dry-run"]) == 0, words


def test_values_of_the_command_line(book):
    def read(words, several=True):
        return notebooks.assignments(book, words, several)

    assert read(["n=0,1", "name=I,I+T", "pause=1"]) == {
        **{"n": [0, 1], "name": ["I", "I+T"], "pause": [1]},
    }
    assert read(["n=7", "name=a,true"], several=False) == {"n": 7, "name": "a,true"}
    fair = notebooks.find()[9]  # as papermill writes it, and as JSON does
    assert notebooks.assignments(fair, ["fair=True,false"], several=True) == {"fair": [True, False]}
    assert notebooks.assignments(fair, ["record=True"], several=False) == {"record": "True"}
    assert read(["n=a,1"]) == {"n": ["a", "1"]}  # said by the check, with the parameter's name
    for words in ("n=0,1", "pause=0,5"):  # a grid, a decimal comma
        with pytest.raises(
            notebooks.ParameterError, match=f"'{words}': one value is needed here; several"
        ):
            read([words], several=False)


def test_results_may_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("M5_RESULTS", str(tmp_path / "here"))
    row = dict.fromkeys(recording.COLUMNS, "") | {"value": 1.0}
    recording.record("rows", [row], {}, {})
    assert len(recording.load_results(tmp_path / "here" / "rows.json")) == 1


HOLD = """import sys, time
from m5lib.data import locked
from pathlib import Path
with locked(Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(600)
"""


def test_a_run_is_trained_once(stream_set, tmp_path, monkeypatch):
    """Two ask for it while another process holds it: both wait; then one trains, the other loads
    the same."""
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    job, trained, real = runs.Job(epochs=1), [], runs.pretrain
    monkeypatch.setattr(
        runs, "pretrain", lambda *given, **named: (trained.append(1), real(*given, **named))[1]
    )
    lock = job.plan(stream_set).folder / ".lock"
    lock.parent.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert holder.stdout.read(1) == b"1"
    waiting, said = threading.Semaphore(0), "builtins.print"
    monkeypatch.setattr(said, lambda *words, **_: "waiting" in str(words) and waiting.release())
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(runs.pretrained, job, stream_set) for _ in range(2)]
        assert all(waiting.acquire() for _ in futures)  # both say that they wait
        assert not trained and not any(future.done() for future in futures)
        holder.kill()  # its lock goes with it
        first, second = (future.result() for future in futures)
    holder.wait()
    assert trained == [1] and first.history == second.history
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_two_make_a_shop_once(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(
            lambda _: listings.make(40, folder=tmp_path / "shop", workers=1), range(2)
        )
    assert first.fingerprint == second.fingerprint and len(first) == 40


DEEP = pytest.param("[" * 100_000, id="deep")


@pytest.mark.parametrize("content", ["", '{"status": "fini', "[1]", '{"a": 1}', DEEP])
def test_a_marker_that_is_none_costs_a_run_and_another_file_nothing(book, content):
    (point,) = sweep.points(book, {"n": [1]})
    point.output.parent.mkdir(parents=True)
    point.output.with_suffix(".json").write_text(content)
    for name in ("notes.json", "other.json"):
        (point.output.parent / name).write_text(content or "null")
    assert point.ended() == {}
    frame = sweep.sweep(book, {"n": [1]}, executor=_Finishes())
    assert frame["status"].tolist() == ["finished"]
    assert len(pd.read_parquet(point.output.parent / "runs.parquet")) == 1
    assert sweep.sweep(book, {"n": [1]}, executor=_Finishes())["status"].tolist() == ["cached"]


def test_words_may_look_like_numbers(book):
    """``-p name 501``: papermill hands on a number."""
    (point,) = sweep.points(book, {"name": [501]})
    assert point.parameters["name"] == "501"
    with pytest.raises(notebooks.ParameterError, match="name = 5.5 is float"):
        sweep.points(book, {"name": [5.5]})


def test_points_of_several_notebooks_run_side_by_side(book, tmp_path, monkeypatch):
    """Each in its own sweep's place, with its own marker and index."""
    other = tmp_path / "other.ipynb"
    other.write_text(book.read_text(encoding="utf-8"), encoding="utf-8")
    ran = []
    monkeypatch.setattr(
        sweep.notebooks,
        "run",
        lambda path, output, given, **_: ran.append((path.rsplit("/", 1)[1], given)),
    )
    todo = [p for path in (book, other) for p in sweep.points(path, {"n": [0, 1]})]
    frame = sweep.run(todo, workers=2)
    assert list(frame["status"]) == ["finished"] * 4 and list(frame["n"]) == [0, 1, 0, 1]
    assert sorted((name, given["n"]) for name, given in ran) == sorted(
        (path.name, seed) for path in (book, other) for seed in (0, 1)
    )
    places = {point.output.parent for point in todo}
    assert len(places) == 2
    for place in places:
        assert len(pd.read_parquet(place / "runs.parquet")) == 2
    assert set(sweep.run(todo)["status"]) == {"cached"}


def test_runs_that_record_into_one_folder_are_made_anew(book, tmp_path):
    """What others recorded there stays; a run that was finished is run again, nothing is cached."""
    folder, point = tmp_path / "results", sweep.points(book, {"n": [2]}, {"record": "two"})[0]
    write_json(folder / "other.json", {"provenance": {}, "measured": []})
    for _ in range(2):
        assert list(sweep.run([point], results=folder)["status"]) == ["finished"]
    assert started(book) == [2, 2] and not list(point.output.with_suffix("").glob("*.json"))
    assert recording.load_results(folder / "two.json")["value"].tolist() == [1.0]
    assert (folder / "other.json").exists() and point.ended()["status"] == "finished"
    point.output.with_suffix(".json").unlink()
    assert list(sweep.run([point])["status"]) == ["finished"]  # into its own
    assert {p.name for p in point.output.with_suffix("").glob("*.json")} == {
        "two.json",
        "claims.json",
    }


def test_products_that_were_changed_are_run_again(book, tmp_path):
    """A table, a folder by what lies in it, and a file that a longer text names."""
    table, folder = tmp_path / "products.csv", tmp_path / "products"
    table.write_text("id,title\n1,a\n")
    (folder / "images").mkdir(parents=True)

    def name(value):
        return sweep.points(book, {"name": [value]})[0].name

    for value, change in (
        (str(table), lambda: table.write_text("id,title\n1,b c\n")),
        (str(folder), lambda: (folder / "styles.csv").write_text("id\n")),
        (str(folder), lambda: os.utime(folder / "images", ns=(1, 1))),
        (f"image=regions:{table},video=x", lambda: table.write_text("weights")),
    ):
        before = name(value)
        assert name(value) == before
        change()
        assert name(value) != before, value
    (folder / ".DS_Store").touch()
    assert name("x" * 5000) and name("\0")


def test_code_that_changes_while_a_point_runs_is_not_filed_under_the_old(book, monkeypatch):
    def run(notebook, *_, **__):
        text = nbformat.read(notebook, as_version=4)
        text.cells[1].source += "\nprint()"
        nbformat.write(text, notebook)

    monkeypatch.setattr(sweep.notebooks, "run", run)
    frame = sweep.sweep(book, {"n": [1]}, workers=1)
    assert frame["status"].tolist() == ["failed"] and "code was changed" in frame["error"][0]


def test_a_sweep_that_was_moved_is_named(book):
    frame = sweep.sweep(book, {"n": [1]}, executor=_Finishes())
    with pytest.raises(ValueError, match="n=1-.*: gone or moved; .* delete (n=1-.*json)") as said:
        sweep.collect(frame)
    named = re.search(r"delete (\S+) beside", str(said.value))[1]
    (point,) = sweep.points(book, {"n": [1]})
    (point.output.parent / named).unlink()  # as it says
    assert sweep.sweep(book, {"n": [1]}, workers=1)["status"].tolist() == ["finished"]
    assert sweep.collect(frame)["seed"].tolist() == [1]


def test_what_a_failed_run_recorded_is_not_collected(book):
    frame = sweep.sweep(book, {"n": [1, 2]}, workers=2)
    assert sweep.collect(frame)["seed"].tolist() == [1, 2]
    assert sweep.collect(frame.assign(status=["failed", "finished"]))["seed"].tolist() == [2]


def test_other_code_of_the_library_is_another_sweep(book, monkeypatch):
    before = sweep.points(book, {"n": [1]})[0].output.parent
    other = type("Version", (), {"__wrapped__": lambda *rooms: "other"})
    monkeypatch.setattr(sweep, "code_version", other)
    assert sweep.points(book, {"n": [1]})[0].output.parent != before
