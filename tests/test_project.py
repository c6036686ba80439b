"""What holds the project's files together: one list of dependencies, a lock without addresses, a README that tells the truth."""

import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

from m5lib import summary

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_yml_repeats_pyproject():
    import yaml

    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


def test_lock_is_exact_and_holds_no_address():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock and "@" not in lock
    for line in lock.splitlines():
        assert re.match(r"^[a-zA-Z0-9_.\[\]-]+==[^ ;]+( ; .+)?$", line), line
    for pin in ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"):
        assert pin in lock.splitlines()
    for wanted in PROJECT["dependencies"]:
        name = re.match(r"[a-zA-Z0-9-]+", wanted)[0].lower()
        assert re.search(rf"^{name}==", lock, re.M | re.I), name


def test_readme_tables_are_the_generated_ones():
    changed = subprocess.run(["git", "status", "--porcelain", "--", "results"], cwd=ROOT, capture_output=True, text=True)
    if changed.stdout.strip():
        pytest.skip("results/ holds a run of your own; the README shows the recorded one")
    assert summary.fill(README, summary.blocks()) == README, "run: python -m m5lib.summary"
    assert summary.gallery() == (ROOT / "results" / "README.md").read_text(encoding="utf-8"), "run: python -m m5lib.summary"


def test_readme_tree_and_links():
    tree = README[README.index("m5lib/\n") : README.index("results/             ")]
    listed = set(re.findall(r"^  (\w+\.py)", tree, re.M))
    assert listed == {file.name for file in (ROOT / "m5lib").glob("*.py")} - {"__init__.py", "__main__.py"}
    books = set(re.findall(r"^  (\d\d_\w+)", README, re.M))
    assert books == {file.stem for file in (ROOT / "notebooks").glob("*.ipynb")}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_readme_python_runs(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    code = re.search(r"```python\n(.*?)```", README, re.S)[1].replace("products.csv", str(folder))
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    space: dict = {}
    exec(code, space)
    assert space["vectors"].shape[0] == 240


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in {a or b for a, b in re.findall(r"`make (\w+)|^make (\w+)", README, re.M)}:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_demo_runs_on_the_shop_unless_told_otherwise():
    for given, data in (([], '--data ""'), (["DATA=mine.csv"], '--data "mine.csv"')):
        shown = subprocess.run(["make", "-n", "demo", *given], cwd=ROOT, capture_output=True, text=True)
        assert "m5lib.notebooks --demo" in shown.stdout and data in shown.stdout


def test_files_stay_small_and_name_no_machine():
    for file in (ROOT / "m5lib").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 400, f"{file.name} is too long to hold"


LAZY = ("torchvision", "torchaudio", "av", "lmdb", "captum", "umap", "papermill", "nbconvert", "IPython")


def test_the_library_imports_without_what_only_some_functions_need():
    names = [f"m5lib.{file.stem}" for file in (ROOT / "m5lib").glob("*.py") if file.stem != "__init__"]
    block = f"import sys\nfor n in {LAZY!r}: sys.modules[n] = None\n"
    code = block + "\n".join(f"import {name}" for name in names)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["CITATION.cff", "LICENSE", "CONTRIBUTING.md", "LOG.md", ".ci/run"])
def test_files_that_people_look_for(path):
    assert (ROOT / path).stat().st_size > 0
