"""Every notebook is found by glob, has the anatomy of the others, and runs on the tiny profile in
this environment's kernel."""

import ast
import base64
import io
import json
import os
import re
import statistics
from urllib.parse import unquote

import nbformat
import numpy as np
import pytest
from PIL import Image

from m5lib import ROOT
from m5lib.data import locked
from m5lib.embeddings import PAPER, READOUTS
from m5lib.lab import notebooks, recording

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
    assert all(not c.outputs and c.execution_count is None for c in code), (
        "commit notebooks without outputs"
    )
    assert all(part in book.cells[0].source for part in TITLE)
    assert "parameters" in code[0].metadata.tags and "recording.line(" in code[1].source
    assert {"profile", "data", "seed", "record"} <= set(notebooks.parameters_of(path))
    assert all("#" in line for line in code[0].source.splitlines()), (
        "a comment is the parameter's help"
    )
    lengths = [len([line for line in c.source.splitlines() if line.strip()]) for c in code[2:]]
    assert statistics.median(lengths) < 8 and max(lengths) <= 25
    trees = [node for c in code for node in ast.walk(ast.parse(c.source))]
    defined = [n for n in trees if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert all(isinstance(n, ast.FunctionDef) for n in defined), "a class belongs into the library"
    assert all(n.end_lineno - n.lineno < 20 for n in defined), (
        "a cell shows an idea, in a few lines"
    )
    assert "Paper · ours · why they may differ" in "".join(c.source for c in book.cells)
    last = book.cells[-1].source
    assert last.startswith("*To change this, edit")
    files = re.findall(r"`(m5lib/[\w/]+\.py)`", last)
    assert files and all((ROOT / name).exists() for name in files)


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.stem)
@pytest.mark.xdist_group("notebooks")
def test_runs_on_tiny(path, folder, home, monkeypatch):
    """On a small shop in the fashion layout; what it wrote is checked, never its text."""
    monkeypatch.setenv("M5_HOME", str(home))
    for name in (
        "M5_RESULTS",
        "MPLBACKEND",
    ):  # as for a user: results in their own folder, figures in the notebook
        monkeypatch.delenv(name, raising=False)
    output = notebooks.run(
        path,
        home / "reports" / path.name,
        {"profile": "tiny", "data": str(folder), "record": "check"},
        quiet=True,
    )
    book = nbformat.read(output, as_version=4)
    assert all(c.execution_count for c in book.cells if c.cell_type == "code")
    results, rows = home / "results" / "check.json", ()
    if results.exists():
        frame = recording.load_results(results)
        rows = frame[frame["notebook"] == path.stem]
        assert rows["value"].notna().all() and (rows["profile"] == "tiny").all()
        made = json.loads(results.read_text())["provenance"]
        assert set(made) == set(frame["notebook"])
        for entry in made.values():
            assert {
                "commit",
                "code",
                "versions",
                "device",
                "profile",
                "seed",
                "wall_seconds",
            } <= set(entry)
    assert len(rows) or not notebooks.results_of(path)
    if path.stem == "12_attribution":
        check_attribution(rows)
    if path.stem == "14_released":
        check_released(rows)
    if path.stem == "05_downstream":
        check_downstream(rows)


def check_downstream(rows):
    assert {"untrained", "pretrained", "finetuned", "control"} == set(rows["state"])
    assert {"T", "I", "Tab", "I+T", "I+T+Tab", "I→T", "Tab→I"} <= set(rows["modalities"])
    assert {"retrieval", "classification", "clustering"} == set(rows["task"])
    assert {
        "fused_first",
        "fused_mean",
        "encoded_first",
        "encoded_mean",
        "concat",
        "whitened",
        "layered",
    } <= set(rows["variant"])
    best = rows.query("metric == 'mAP@10' and convention == 'min_k_r' and task == 'retrieval'")
    states = best.query("modalities == 'I+T'").groupby("state")["value"].first()
    assert states["untrained"] != states["pretrained"] != states["finetuned"]
    tuned = best.query("variant == 'hidden'").set_index("modalities")["value"]
    assert tuned["I+T"] != tuned["T"] != tuned["I→T"], "each is given its own modalities"
    assert tuned["T→T"] == pytest.approx(tuned["T"]), "all of these products have a title"
    across = best.query("variant == 'pooled'").set_index("modalities")["value"]
    assert len(set(across[["I→I", "I→T", "T→I", "T→T"]])) == 4, "who asks, and who answers"


def check_attribution(rows):
    assert (rows["task"] == "attribution").all() and (rows["state"] == "finetuned").all()
    numbers = rows[["metric", "variant", "convention", "modalities"]]
    assert not numbers.duplicated().any(), "two numbers with one name"
    assert set(rows["metric"]) >= {"class logit", "infidelity", "rank correlation"}
    areas = rows[(rows["metric"] == "deletion area") & (rows["variant"] != "random order")]
    assert {"I", "T", "Tab"} < set(areas["modalities"])


def check_released(rows):
    """Each item is what it must be where the fault is, and something else where it is not."""
    table = rows[rows["task"] == "audit"].pivot(index="metric", columns="model", values="value")
    (theirs, ours), near = (table[model] for model in ("released", "scale")), pytest.approx
    places = "change of it with the places in the batch"
    assert ours[places] < 1e-5 < 1e-4 < theirs[places]
    assert theirs["change of the fused vector by the wrong mask"] > 1e-3
    title = "change of the title's masked loss without the picture"
    assert theirs[title] == 0 < ours[title] and theirs[f"{title}, with the scores"] > 0
    fusion = "gradient on the fusion {} the diagonal scores".format
    assert theirs[fusion("without")] == 0 < theirs[fusion("with")] and ours[fusion("without")] > 0
    assert ours["effective temperature: without gradient"] == 0
    lowest = "diagonal of S: lowest possible"
    assert theirs[lowest] == near(5**-0.5) and ours[lowest] == near(0)
    follows = "diagonal of S: correlation with agreement"
    assert theirs[follows] < 0 < ours[follows], "only ours pays for agreement"
    chance = "its chance level"
    random = table[table.index.str.startswith("contrast of random vectors")].iloc[0]
    assert np.allclose(random, table.loc[chance], atol=0.02) and theirs[chance] > ours[chance] + 0.6
    same = "difference of the same tokens as text and as table"
    assert theirs[same] == 0 and ours[same] > 0.1
    assert ours["products that share the vector of what they lack"] == 0
    for k in (5, 10):
        assert theirs[f"mAP@{k} of the same ranking"] >= ours[f"mAP@{k} of the same ranking"]
    assert theirs["K used for 10, mean"] < ours["K used for 10, mean"] == 10
    best = rows.query("metric == 'mAP@10' and convention == 'min_k_r' and task == 'retrieval'")
    both = best.pivot(index=["model", "variant"], columns="state", values="value")
    assert (both["untrained"] != both["pretrained"]).any(), "the control is another model"
    validated = rows[rows["convention"] == recording.VALIDATION]
    assert set(validated["variant"]) == set(READOUTS)
    assert set(rows[rows["convention"] == "released"]["variant"]) == {PAPER}
    toy = rows[rows["task"] == "literal S"]
    toy = toy.pivot(index="variant", columns="metric", values="value")
    start, literal = "encoder gradient at the start", "literal, on losses"
    assert (toy.loc[[literal, "literal, on logits"], start] == 0).all()
    assert toy.at[literal, "negative pairs"] == 10 and toy.at[literal, "at the end: minimised"] < 0
    assert toy.at[literal, "lowest dL/dS at the start"] > 0 and toy.at[literal, "contrast"] > 4
    for case in ("M · softmax(S), on logits", "no scores"):
        assert toy.at[case, start] > 0 and toy.at[case, "R@1"] > 0.6


def executed(path, figure=True, error=""):
    """A notebook as papermill leaves it."""
    from nbformat import v4

    outputs = (
        [v4.new_output("error", ename="ValueError", evalue=error, traceback=[])] if error else []
    )
    if figure:
        picture = io.BytesIO()
        Image.new("RGB", (900, 300), "#0072B2").save(picture, "PNG")
        outputs.append(
            v4.new_output(
                "display_data", {"image/png": base64.b64encode(picture.getvalue()).decode()}
            )
        )
    card = "# 05 · What <is> it?\n\n**Question.** Does it\nwork?\n\n**Regenerates.** Nothing."
    book = v4.new_notebook(
        cells=[v4.new_markdown_cell(card), v4.new_code_cell("1", outputs=outputs)]
    )
    book.metadata["papermill"] = {"duration": 12.3, "parameters": {"profile": "tiny", "record": ""}}
    nbformat.write(book, path)


def test_index_links_every_executed_notebook_and_needs_no_server(tmp_path, capsys):
    reports, results = tmp_path / "reports", tmp_path / "results"
    reports.mkdir(), results.mkdir()
    executed(reports / "01 a+b.ipynb")
    executed(reports / "02_b.ipynb", figure=False, error="no & such file")
    Image.new("RGB", (9, 9)).save(results / "demo_front.png")
    page = notebooks.write_index(
        reports, "<table><tr><td>0.5</td></tr></table>", [results / "demo_front.png"]
    ).read_text()
    for address in re.findall(r'(?:href|src)="([^"]+)"', page):
        if address.startswith("data:image/png;base64,"):
            assert Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).width == 900
        else:
            assert ":" not in address and not address.startswith("/"), "nothing that needs a server"
            assert (reports / unquote(address)).exists(), address
    assert page.count('class="card"') == 2 and page.count("data:image/png") == 1
    for said in (
        "What &lt;is&gt; it?",
        "Does it work?",
        "finished",
        "12 s",
        "profile=tiny",
        "failed: ValueError: no &amp; such file",
        "0.5",
    ):
        assert said in page, said
    assert "Question." in (reports / "01 a+b.html").read_text()
    before = (reports / "02_b.html").read_bytes()
    executed(reports / "02_b.ipynb")  # run again: its page is made again
    (reports / "03_c.ipynb").write_text('{"cells": [')
    old = (reports / "02_b.html").stat().st_mtime
    os.utime(reports / "02_b.ipynb", (old + 5, old + 5))
    page = notebooks.write_index(reports).read_text()
    said = capsys.readouterr().out
    assert page.count('class="card"') == 2 and "03_c.ipynb: " in said and "delete it, or" in said
    assert (reports / "02_b.html").read_bytes() != before


def test_tables_that_are_judged_name_the_products_alike():
    """By all features, whatever a row reads (:meth:`m5lib.lab.runs.Run.context`)."""
    texts = [path.read_text("utf-8") for path in FOUND]
    judged = [text for text in texts if "claims.judge(" in text]
    assert len(judged) >= 6 and all(
        "studies(" in text or ".context(" in text and "streams.features)" in text for text in judged
    )


@pytest.mark.xdist_group("notebooks")
def test_a_second_call_waits_for_the_first(tmp_path, monkeypatch):
    """Two ``make demo`` in one folder: notebooks are written in place."""
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    free = []

    def run(notebook, output, parameters):
        with locked(tmp_path / "reports" / ".lock", wait=False) as mine:
            free.append(mine)

    monkeypatch.setattr(notebooks, "run", run)
    assert notebooks.main([str(notebooks.find()[0])]) == 0 and free == [False]


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere.ipynb"], "no notebook nowhere.ipynb; in notebooks/ are 01_explore, 02_"),
        (["--data", "nowhere.csv"], "--data nowhere.csv: no such file or folder"),
        (["--profile", "tinny"], "unknown profile 'tinny': known are"),
        (["--extractors", "image=crop"], "extractors: 'image=crop' is unknown; known are"),
        ([str(FOUND[1]), "--set", "rite=0.2"], "02_tokens_and_masks.ipynb has no parameter 'rite'"),
        ([str(FOUND[1]), "--set", "rate=high"], "rate = 'high' is str, but the default"),
        ([str(FOUND[3]), "--set", "model=scal"], "04_pretrain.ipynb: unknown model 'scal': known"),
        ([str(FOUND[3]), "--set", "modalities=I+X"], "unknown modality code ['X'] in 'I+X': known"),
        ([str(FOUND[1]), "--set", "rate"], "'rate': write each parameter once, as name=value"),
    ],
)
def test_a_mistyped_call_ends_in_a_line(words, said, monkeypatch, capsys):
    """Before anything starts."""
    monkeypatch.setattr(notebooks, "run", None)
    code = 0
    try:
        code = notebooks.main(words)
    except SystemExit as stop:  # of argparse
        code = stop.code
    printed = capsys.readouterr().err
    assert code == 2 and said in printed and "Traceback" not in printed


def test_parameters_of_one_call(tmp_path, monkeypatch, capsys):
    """Each as the notebook's default is; Ctrl-C ends in a line, too."""
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    ran = []

    def run(notebook, output, parameters):
        ran.append(parameters)
        raise KeyboardInterrupt(f"{notebook.name}: interrupted")

    monkeypatch.setattr(notebooks, "run", run)
    words = ["--profile", "tiny", "--set", "rate=0.2", "product=007"]
    assert notebooks.main([str(FOUND[1]), *words]) == 130
    assert ran == [{"profile": "tiny", "rate": 0.2, "product": "007"}]
    said = "02_tokens_and_masks.ipynb: interrupted; the same call goes on from there"
    assert said in capsys.readouterr().err


@pytest.mark.xdist_group("notebooks")
@pytest.mark.parametrize("labelled", [False, True])
def test_a_demo_shows_nothing_of_an_earlier_one(labelled, tmp_path, monkeypatch, capsys):
    """Products without labels, of which nothing is measured by category; a notebook that fails."""
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    monkeypatch.delenv("M5_RESULTS", raising=False)
    results, row = tmp_path / "results", dict.fromkeys(recording.COLUMNS, "x")
    row |= {"seed": 0, "state": "pretrained", "variant": PAPER, "modalities": "T"}
    row |= {"task": "retrieval", "metric": "mAP@10", "convention": "min_k_r", "value": 0.657}
    results.mkdir()
    for stem in ("04_pretrain", "05_downstream"):
        recording.save_results(results / "demo.json", [row | {"notebook": stem}], {})
    Image.new("RGB", (9, 9)).save(results / "demo_old.png")
    os.utime(results / "demo_old.png", (1, 1))
    lines = (f"{n},red mug {n},{'mugs' * labelled}" for n in range(40))
    (tmp_path / "mine.csv").write_text("\n".join(["id,title,label", *lines]))

    def run(notebook, output, parameters):
        if notebook.stem == "05_downstream":
            raise notebooks.NotebookError(notebook.name, 3, "ValueError", "05 failed", output)
        if notebook.stem == "04_pretrain":
            own = row | {"notebook": notebook.stem, "data": "mine", "value": 0.25}
            recording.save_results(results / "demo.json", [own], {})
            Image.new("RGB", (9, 9)).save(results / "demo_new.png")

    monkeypatch.setattr(notebooks, "run", run)
    code = notebooks.main(["--demo", "--data", str(tmp_path / "mine.csv")])
    said, page = capsys.readouterr(), (tmp_path / "reports" / "index.html").read_text()
    assert code == labelled and ("05 failed" in said.err) == labelled
    assert ("left out is what measures by category" in said.out) == (not labelled)
    assert "0.657" not in said.out + page and "mAP@10" not in said.out
    assert "demo_new" in page and "demo_old" not in page
    kept = recording.load_results(results / "demo.json")
    assert list(kept["notebook"]) == ["04_pretrain"] and list(kept["value"]) == [0.25]
    assert list(recording.read_results(results / "demo.json")["provenance"]) == ["04_pretrain"]
    (explore,) = (str(path) for path in FOUND if path.stem == "01_explore")
    assert notebooks.main(["--demo", explore]) == 0  # alone: what the others recorded stays
    assert list(recording.load_results(results / "demo.json")["value"]) == [0.25]


@pytest.mark.xdist_group("notebooks")
def test_index_of_what_ran(home):
    done = sorted((home / "reports").glob("*.ipynb"))
    if not done:
        pytest.skip("no notebook was executed in this process")
    found = [notebooks.outcome(path) for path in done]
    for about in found:
        assert about["title"] and about["question"] and about["seconds"] > 0 and not about["error"]
        assert about["parameters"]["profile"] == "tiny"
        assert about["picture"], "every notebook shows a figure"
