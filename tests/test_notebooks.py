"""Every notebook is found by glob, has the anatomy of the others, and runs on the tiny profile in this environment's kernel."""

import ast
import json
import statistics

import nbformat
import pytest

from m5lib import notebooks, recording

FOUND = notebooks.find()
TITLE = ("**Question.**", "**Regenerates.**", "| reads | writes | time")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def test_notebooks_are_found():
    assert {"01_explore", "04_pretrain", "05_downstream"} <= {path.stem for path in FOUND}


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.stem)
def test_anatomy(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    code = [c for c in book.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code), "commit notebooks without outputs"
    assert all(part in book.cells[0].source for part in TITLE)
    assert "parameters" in code[0].metadata.tags and "recording.line(" in code[1].source
    assert {"profile", "data", "seed", "record"} <= set(notebooks.parameters_of(path))
    assert all("#" in line for line in code[0].source.splitlines()), "a comment is the parameter's help"
    lengths = [len([line for line in c.source.splitlines() if line.strip()]) for c in code[2:]]
    assert statistics.median(lengths) < 8 and max(lengths) <= 25
    defined = [n for c in code for n in ast.walk(ast.parse(c.source)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert not defined, "notebooks import, they do not define"
    assert "Paper · ours · why they may differ" in "".join(c.source for c in book.cells)


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.stem)
@pytest.mark.xdist_group("notebooks")
def test_runs_on_tiny(path, folder, home, monkeypatch):
    """On a small shop in the fashion layout; what it wrote is checked, never its text."""
    monkeypatch.setenv("M5_HOME", str(home))
    output = notebooks.run(path, home / "reports" / path.name, {"profile": "tiny", "data": str(folder), "record": "check"}, quiet=True)
    book = nbformat.read(output, as_version=4)
    assert all(c.execution_count for c in book.cells if c.cell_type == "code")
    results = home / "results" / "check.json"
    if results.exists():
        frame = recording.load_results(results)
        rows = frame[frame["notebook"] == path.stem]
        assert rows["value"].notna().all() and (rows["profile"] == "tiny").all()
        made = json.loads(results.read_text())["provenance"]
        assert set(made) == set(frame["notebook"])
        for entry in made.values():
            assert {"commit", "code", "versions", "device", "profile", "seed", "wall_seconds"} <= set(entry)
    if path.stem == "05_downstream":
        assert {"untrained", "pretrained", "finetuned", "control"} == set(rows["state"])
        assert {"T", "I", "Tab", "I+T", "I+T+Tab", "I→T", "Tab→I"} <= set(rows["modalities"])
        assert {"retrieval", "classification", "clustering"} == set(rows["task"])
        assert {"fused_first", "fused_mean", "encoded_first", "encoded_mean", "concat", "whitened", "layered"} <= set(rows["variant"])


@pytest.mark.xdist_group("notebooks")
def test_index_and_pages(home, tmp_path):
    import shutil

    done = sorted((home / "reports").glob("*.ipynb"))
    if not done:
        pytest.skip("no notebook was executed in this process")
    shutil.copy(done[0], tmp_path / done[0].name)
    page = notebooks.to_html(tmp_path / done[0].name)
    index = notebooks.write_index(tmp_path, [page], "<table></table>", [])
    assert page.name in index.read_text() and "<table>" in index.read_text() and "Question." in page.read_text()
