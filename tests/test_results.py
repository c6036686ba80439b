"""``make results``: which notebooks, in which order, and how long it says that it takes."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import ROOT

import results
from m5lib import home
from m5lib.data import write_json
from m5lib.lab import notebooks, sweep


def ends(point, status="finished", seconds=60.0):
    marker = {"parameters": point.parameters, "status": status, "seconds": seconds}
    write_json(point.output.with_suffix(".json"), marker | {"output": "", "error": ""})


@pytest.fixture
def made(tmp_path, monkeypatch):
    """``make results`` without its work: what was recorded, and which points ran, in order."""
    ran, swept = [], []
    monkeypatch.setenv("M5_HOME", str(tmp_path))

    def fake_run(points, workers=None, results=None):
        own = [(p.notebook.stem, p.parameters) for p in points]
        if results:
            assert results == home("results")
            ran.extend(own)
        else:
            swept.append((workers, own))
        for point in points:
            broken = point.notebook.stem == "09_simcl" and not results
            ends(point, "failed" if broken else "finished")

    monkeypatch.setattr(sweep, "run", fake_run)
    monkeypatch.setattr(results.subprocess, "run", lambda command, check: None)
    return ran, swept


def test_results_are_made_of_what_the_notebooks_name(made, tmp_path):
    """Each at one profile, on real products under the data's name, and only where these tell more;
    what failed is not recorded, the others are."""
    ran, swept = made
    real = str(tmp_path / "fashion-products")
    Path(real).mkdir()
    assert results.main(["--seeds", "2", "--data", real, "--products", "70"]) == 1
    first = [given["record"] for _, given in ran if given["profile"] == "quick"]
    assert {"simcl", "simcl_fashion", "probes", "fashion"} <= set(first)
    assert first[:3] == ["modality_count", "modality_count_fashion", "mem_vs_mlm"]  # one renders
    ran[:] = [(stem, given) for stem, given in ran if given["profile"] == "small"]
    records = {(stem, given["record"]) for stem, given in ran}
    assert {
        ("01_explore", "probes"),
        ("01_explore", "demo"),
        ("05_downstream", "fashion"),
    } < records
    both = {"modality_count", "modality_count_fashion"}
    assert {("06_modality_count", name) for name in both} < records
    absent = ("model_fashion", "probes_fashion", "simcl", "simcl_fashion")
    assert not {name for _, name in records} & set(absent)
    by_name = {given["record"]: given for _, given in ran}
    expected = {"profile": "small", "data": real, "products": 70, "record": "mem_vs_mlm_fashion"}
    assert by_name["mem_vs_mlm_fashion"] == expected | {"seeds": 2}
    shop = {"profile": "small", "data": "shop", "record": "mem_vs_mlm"}
    assert by_name["mem_vs_mlm"] == shop | {"seeds": 2}
    assert by_name["probes"]["shops"] == 2 and by_name["fashion"]["data"] == real
    for stem, given in ran:
        (path,) = [path for path in notebooks.find() if path.stem == stem]
        notebooks.check(path, given)
    assert "simcl" not in results.times() and "mem_vs_mlm" in results.times()  # the former failed
    studies = [p for p in notebooks.find() if "seeds" in notebooks.parameters_of(p)]
    assert studies and all(notebooks.results_of(path) for path in studies)


def test_every_table_has_a_first_answer_before_any_is_sharpened(made, tmp_path, capsys):
    """One seed of all, recorded; then up to three; then all: each seed of each runs once."""
    ran, swept = made
    words = ["--seeds", "5", "--only", "mem_vs_mlm", "text_table", "demo", "--workers", "3"]
    results.main([*words, "--dry-run"])
    before = capsys.readouterr().out
    assert not ran and not swept and "2 studies, 3 side by side" in before
    assert results.main([*words, "--first", "none"]) == 0
    of = ("07_mem_vs_mlm", "08_text_table_split")
    for (workers, points), seeds in zip(swept, ([0], [1, 2], [3, 4]), strict=True):
        assert workers == 3
        assert [(n, p["seed"]) for n, p in points] == [(n, seed) for n in of for seed in seeds]
    several = [(stem, given["seeds"]) for stem, given in ran if "seeds" in given]
    assert several == [(stem, count) for count in (1, 3, 5) for stem in of]
    assert sum(given["record"] == "demo" for _, given in ran) == 3  # three notebooks, once each
    known = results.times()
    assert known["mem_vs_mlm"] == known["text_table"] == {"seconds": 300, "seeds": 5}
    assert known["demo"] == {"seconds": 180, "seeds": 1}
    after = capsys.readouterr().out  # 60 s a seed of two studies, three side by side
    assert "1 seed in 0 min, 3 seeds in 1 min, 5 seeds in 3 min" in after
    results.main([*words, "--dry-run"])
    after = capsys.readouterr().out
    assert "5 seeds in 0 min" in after and results.FIRST not in after  # better ones are there
    results.main(words)  # again: recorded anew, no run counted twice
    assert results.times()["text_table"] == known["text_table"]


def test_first_answers_come_before_any_seed_is_trained_in_full(made, tmp_path, capsys, monkeypatch):
    """Once everything at ``quick``, of real products as few as that reads, at SCALE's rate; said
    before how long, by what it took; not again when a study of the profile has finished."""
    ran, swept = made
    real, elsewhere = str(tmp_path / "fashion-products"), tmp_path / "repository"
    Path(real).mkdir()
    monkeypatch.setattr(results, "ROOT", elsewhere)
    todo = [(p, name) for p, name in results._todo() if name in ("baselines", "demo", "probes")]
    monkeypatch.setattr(results, "_todo", lambda: todo)
    words = ["--seeds", "2", "--data", real, "--products", "600", "--fair", "--workers", "2"]
    results.main([*words, "--dry-run"])
    assert f"not known of {results.FIRST}, baselines" in capsys.readouterr().out and not swept
    clock = iter([0.0, *[600.0] * 99])
    monkeypatch.setattr(results, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert results.main(words) == 0
    names = ("baselines", "probes", "demo", "baselines_fashion", "fashion")
    quick = [given for _, given in ran if given["profile"] == "quick"]
    assert {given["record"] for given in quick} == set(names) and ran[len(quick) :]
    assert all(given["profile"] == "quick" for _, given in ran[: len(quick)])
    places = [("seeds" in given, given["data"]) for given in quick]  # the longest begin first
    assert places[:3] == [(True, "shop"), (True, real), (False, "shop")]
    for given in quick:
        assert given.get("seeds", 1) == given.get("shops", 1) == 1
        assert not {"fair", "products"} & set(given)
    full = [given for _, given in ran[len(quick) :] if given["record"] == "baselines_fashion"]
    assert [(g["seeds"], g["products"], g["fair"]) for g in full] == [
        (1, 600, True),
        (2, 600, True),
    ]
    assert [[p["seed"] for _, p in points] for _, points in swept] == [[0, 0], [1, 1]]
    known = results.times()
    assert known[results.FIRST] == {"seconds": 1200, "seeds": 1}  # two workers, ten minutes
    assert known["baselines"] == {"seconds": 120, "seeds": 2}  # without the quick one
    count = len(ran)
    results.main(words)
    assert {given["profile"] for _, given in ran[count:]} == {"small"}
    monkeypatch.setenv("M5_HOME", str(tmp_path / "other"))
    known[results.FIRST] = {"seconds": 2400, "seeds": 2}
    write_json(elsewhere / "results" / "times.json", known)
    capsys.readouterr()
    results.main([*words, "--dry-run"])
    assert f"{results.FIRST} in 10 min, then 1 seed in" in capsys.readouterr().out


def test_first_answers_of_which_some_are_missing_are_not_timed(made, monkeypatch, tmp_path):
    """What is left of stopped ones, or some of all, take less time; one that failed is said."""
    words = ["--seeds", "1"]
    assert results.main([*words, "--only", "mem_vs_mlm"]) == 0
    assert list(results.times()) == ["mem_vs_mlm"]
    monkeypatch.setenv("M5_HOME", str(tmp_path / "other"))
    todo = [(p, name) for p, name in results._todo() if name in ("baselines", "maps")]
    monkeypatch.setattr(results, "_todo", lambda: todo)

    def ended(status, then):
        def run(points, workers=None, results=None):
            for point in points:
                ends(point, "finished" if point is points[0] else status)
            if then:
                raise then

        return run

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "run", ended("finished", KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            results.main(words)
    assert results.main(words) == 0 and set(results.times()) == {"baselines", "maps"}
    monkeypatch.setenv("M5_HOME", str(tmp_path / "another"))
    monkeypatch.setattr(sweep, "run", ended("failed", None))
    assert results.main(words) == 1 and results.FIRST not in results.times()


def test_first_answers_alone_are_made_once(made):
    ran, _ = made
    assert results.main(["--profile", "quick", "--seeds", "1", "--only", "baselines"]) == 0
    assert [given["profile"] for _, given in ran] == ["quick"]
    assert list(results.times()) == ["baselines, quick"]


def test_wall_time_is_said_from_what_earlier_runs_took(made, capsys, monkeypatch, tmp_path):
    file = tmp_path / "repository" / "results" / "times.json"
    write_json(file, {"mem_vs_mlm": {"seconds": 3600, "seeds": 2}})
    monkeypatch.setattr(results, "ROOT", tmp_path / "repository")
    words = ["--seeds", "4", "--first", "none", "--dry-run"]
    words += ["--only", "mem_vs_mlm", "text_table", "--workers"]
    results.main([*words, "2"])
    said = capsys.readouterr().out
    assert "1 seed in 15 min, 3 seeds in 45 min, 4 seeds in 60 min" in said
    assert said.rstrip().endswith("not known of text_table")
    results.main([*words, "1"])
    assert "4 seeds in 120 min" in capsys.readouterr().out
    results.main([*words, "1", "--profile", "tiny"])  # small ones say nothing of it
    assert "not known of mem_vs_mlm, text_table" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        results.main(["--data", str(tmp_path / "nowhere")])
    assert "nowhere: no such file or folder" in capsys.readouterr().err


def test_a_run_whose_process_was_lost_has_no_seconds_to_count(made, monkeypatch, capsys):
    def run(points, workers=None, results=None):
        assert not results or [p.label for p in points] == ["text_table"]  # the other is broken
        for point, took in zip(points, (float("nan"), 60.0)[-len(points) :], strict=True):
            ends(point, "finished" if took == 60.0 else "failed", took)

    monkeypatch.setattr(sweep, "run", run)
    words = ["--seeds", "1", "--first", "none", "--only", "mem_vs_mlm", "text_table"]
    assert results.main([*words, "--workers", "2"]) == 1
    assert results.times() == {"text_table": {"seconds": 60, "seeds": 1}}
    capsys.readouterr()
    write_json(home("results", "times.json"), {"mem_vs_mlm": {"seconds": 0, "seeds": 0}})
    assert results.main([*words, "--workers", "2", "--dry-run"]) == 0
    assert "not known of mem_vs_mlm" in capsys.readouterr().out

    def run_single(points, workers=None, results=None):
        for point, took in zip(points, (60.0, float("nan"), 60.0)[: len(points)], strict=True):
            ends(point, "finished" if took == 60.0 else "failed", took)

    monkeypatch.setattr(sweep, "run", run_single)
    assert results.main(["--first", "none", "--only", "demo"]) == 1
    assert "demo" not in results.times()  # the others would be too short for all three


def test_what_make_is_told_reaches_the_script():
    def told(*words):
        command = ["make", "-n", "results", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.replace("\\\n", " ").split()

    def given(*words):
        return {*told(*words)} - {*told()}

    assert not {"--fair", "--first", "--workers"} & {*told()}
    assert given("FAIR=1") == {"--fair"} and given("FIRST=none") == {"--first", "none"}
    assert given("WORKERS=7") == {"--workers", "7"} and given("SEEDS=10") == {"10"}


def test_seconds_of_calls_side_by_side_are_all_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        for n in range(24):
            pool.submit(results._timed, f"r{n % 3}", [10.0])
    assert results.times() == {f"r{n}": {"seconds": 80, "seeds": 8} for n in range(3)}


def test_what_was_recorded_can_be_read_as_a_page(tmp_path, monkeypatch):
    """Each notebook among the reports, with a page; all record into one folder of results."""
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    todo, seen = [(path, {"record": "r"}) for path in notebooks.find()[:2]], []

    def fake_run(notebook, output, parameters, quiet, environment):
        seen.append((parameters, environment["M5_RESULTS"]))
        nbformat.write(nbformat.read(notebook, as_version=4), output)

    monkeypatch.setattr(notebooks, "run", fake_run)
    ended = results.recorded(todo, workers=2)
    assert [one["status"] for one in ended] == ["finished"] * 2
    assert seen == [({"record": "r"}, str(tmp_path / "results"))] * 2
    for path, _ in todo:
        page = tmp_path / "reports" / f"{path.stem}-r.html"
        assert page.exists() and page.with_suffix(".ipynb").exists()


def test_studies_with_titles_from_a_bert_are_recorded_beside_the_others(made, tmp_path):
    ran, _ = made
    (tmp_path / "words").mkdir()
    given = {"bert": str(tmp_path / "words"), "seeds": 1, "record": "baselines_bert"}
    words = ["--seeds", "1", "--only", "baselines", "demo", "maps", "--bert", given["bert"]]
    assert results.main(words) == 0
    both = ("10_baselines", "baselines_bert"), ("11_embedding_maps", "maps_bert")
    shop = {"data": "shop"} | given
    assert ran == [
        (stem, {"profile": p} | shop | {"record": record})
        for p in ("quick", "small")
        for stem, record in both
    ]


@pytest.mark.parametrize(
    "cuda, cores, gib, profile, jobs",
    [
        (False, 6, 0, "small", 6),
        (True, 16, 80, "small", 8),
        (True, 16, 80, "full", 1),
        (True, 16, 10, "tiny", 2),
        (True, 1, 80, "small", 1),
    ],
)
def test_as_many_runs_side_by_side_as_pay(cuda, cores, gib, profile, jobs, monkeypatch):
    device = type("Device", (), {"total_memory": gib * 2**30})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(results.joblib, "cpu_count", lambda: cores)
    assert results.side_by_side(profile) == jobs


@pytest.mark.parametrize("name", ["demo", "maps-2", "-x", "claims"])
def test_products_named_like_a_results_file_record_into_files_of_their_own(name, made, tmp_path):
    ran, _ = made
    Path(tmp_path / "data" / name).mkdir(parents=True)
    real, words = str(tmp_path / "data" / name), ["--seeds", "1", "--only", "maps", "demo"]
    results.main([*words, "--first", "none", "--data", real])
    own = {given["record"] for _, given in ran if given["data"] == real}
    place = f"{name.split('-')[0]}_products"
    assert own == {place, f"maps_{place}"}


@pytest.mark.parametrize("words", [("--seeds", "0"), ("--seeds", "-1"), ("--workers", "-2")])
def test_no_seeds_and_no_workers_are_said(words, made, capsys):
    with pytest.raises(SystemExit):
        results.main(words)
    assert "give 1 or more" in capsys.readouterr().err and not made[0]
