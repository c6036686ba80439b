import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import readme

from m5lib import figures, simcl
from m5lib.catalogue import split_of
from m5lib.data import write_json
from m5lib.embeddings import DEFAULT
from m5lib.figures import style
from m5lib.lab import notebooks, recording, runs
from m5lib.models.words import train_tokenizer
from m5lib.streams import Ragged

CONTEXT = {
    "notebook": "05_downstream",
    "run": "r",
    "data": "d",
    "profile": "tiny",
    "seed": 0,
    "model": "scale",
    "modalities": "I+T",
}
NUMBER = {"task": "retrieval", "metric": "mAP@1", "convention": "min_k_r", "value": 0.5}


def test_rows_have_every_column_and_only_these():
    (row,) = recording.rows([NUMBER], CONTEXT, state="pretrained", variant="v")
    assert tuple(row) == recording.COLUMNS
    for wrong, says in (
        ({"state": "pretrained"}, "missing .'variant'."),
        ({"state": "trained", "variant": "v"}, "state 'trained'"),
        ({"state": "control", "variant": "v", "mood": 1}, "unknown .'mood'."),
    ):
        with pytest.raises(ValueError, match=says):
            recording.rows([NUMBER], CONTEXT, **wrong)
    with pytest.raises(ValueError, match="mAP@1 is nan"):
        recording.rows([NUMBER | {"value": float("nan")}], CONTEXT, state="control", variant="v")


def test_results_of_one_notebook_replace_its_own_and_keep_the_others(tmp_path):
    def made(notebook, value):
        return recording.rows(
            [NUMBER | {"value": value}],
            CONTEXT | {"notebook": notebook},
            state="control",
            variant="v",
        )

    path = tmp_path / "demo.json"
    for notebook, value in (("04", 0.1), ("05", 0.2), ("04", 0.3)):
        recording.save_results(path, made(notebook, value), {"by": notebook})
    frame = recording.load_results(path)
    assert dict(zip(frame["notebook"], frame["value"], strict=True)) == {"05": 0.2, "04": 0.3}
    assert set(json.loads(path.read_text())["provenance"]) == {"04", "05"} and not list(
        tmp_path.glob("*.tmp")
    )
    with ThreadPoolExecutor(8) as pool:  # side by side: all are kept
        for name in map(str, range(10, 34)):
            pool.submit(recording.save_results, path, made(name, 0.5), {})
    assert len(recording.load_results(path)) == len(recording.read_results(path)["provenance"])
    assert set(recording.load_results(path)["notebook"]) == {"04", "05", *map(str, range(10, 34))}


@pytest.mark.parametrize("kind", [list, pd.DataFrame])
def test_results_come_back_as_they_were_each_vector_named_once(kind, tmp_path):
    numbers = [NUMBER, NUMBER | {"metric": "mAP@10", "value": 1 / 3}]
    sides = [("pretrained", "v"), ("finetuned", "hidden"), ("pretrained", "v")]  # v twice, apart
    given = [
        row
        for state, variant in sides
        for row in recording.rows(numbers, CONTEXT, state=state, variant=variant)
    ]
    path = recording.save_results(tmp_path / "demo.json", kind(given), {"commit": "c"})
    pd.testing.assert_frame_equal(recording.load_results(path), pd.DataFrame(given))
    content = recording.read_results(path)
    first, second, third = content["measured"]
    shared = {name: given[0][name] for name in recording.MEASURED}
    kept = ["retrieval", "mAP@1", "min_k_r", 0.5], ["retrieval", "mAP@10", "min_k_r", 1 / 3]
    assert first == third == shared | {"numbers": list(kept)}
    assert second["state"] == "finetuned"
    assert content["provenance"] == {"05_downstream": {"commit": "c"}}
    del first["variant"]
    write_json(path, content)
    with pytest.raises(ValueError, match=r"demo\.json: KeyError: 'variant'; delete it"):
        recording.load_results(path)


def test_tables_are_made_from_rows():
    found = []
    for state, variant, value in (
        ("untrained", DEFAULT, 0.1),
        ("pretrained", DEFAULT, 0.9),
        ("control", "svd", 0.4),
    ):
        found += recording.rows([NUMBER | {"value": value}], CONTEXT, state=state, variant=variant)
    frame = pd.DataFrame(found)
    assert recording.compare(frame, "mAP@1", "min_k_r", DEFAULT).loc["I+T"].tolist() == [
        0.1,
        0.9,
        0.4,
    ]
    wide = recording.wide(frame)
    assert wide["mAP@1"].tolist() == [0.1, 0.9, 0.4]
    assert (
        readme.markdown(wide)
        .splitlines()[2]
        .startswith(f"| untrained | scale | I+T | {DEFAULT} | 0.100 |")
    )
    assert (
        readme.fill("a <!-- x -->old<!-- /x --> b", {"x": "new"})
        == "a <!-- x -->\nnew\n<!-- /x --> b"
    )
    for text in ("<!-- x --> not closed", "<!-- y --><!-- /y -->"):
        with pytest.raises(ValueError, match="not one of x"):
            readme.fill(text, {"x": "new"})
    assert readme.fill("nothing", {"x": "new"}) == "nothing"


def test_a_finished_run_is_loaded_and_another_seed_is_another_run(
    stream_set, tmp_path, monkeypatch
):
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    job = runs.Job(profile="tiny", epochs=1)
    first = runs.pretrained(job, stream_set)
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    again = runs.pretrained(job, stream_set)
    assert (
        again.folder == first.folder
        and (again.folder / "model.safetensors").stat().st_mtime_ns == stamp
    )
    assert again.history == first.history and not (first.folder / "checkpoint.pt").exists()
    for one, two in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert one.equal(two)
    assert runs.Job(profile="tiny", epochs=1, seed=1).plan(stream_set).folder != first.folder
    assert runs.Job(profile="tiny", epochs=2).plan(stream_set).folder != first.folder
    steps = [entry["step"] + 1 for entry in first.history if "validation" in entry]
    shares = [round(step / len(first.history), 2) for step in steps]
    assert shares == [0.25, 0.5, 0.75, 1.0] and first.history[0]["before"]["validation"]


def test_an_interrupted_run_resumes(stream_set, tmp_path, monkeypatch):
    from m5lib import pretrain as module

    tiny = runs.PROFILES["tiny"]
    tiny = replace(tiny, training=replace(tiny.training, checkpoint_seconds=0))
    monkeypatch.setitem(runs.PROFILES, "tiny", tiny)
    job = runs.Job(profile="tiny", epochs=1)
    monkeypatch.setenv("M5_HOME", str(tmp_path / "whole"))
    whole = runs.pretrained(job, stream_set)
    monkeypatch.setenv("M5_HOME", str(tmp_path / "cut"))
    real, count = module.train_step, []

    def dies(*arguments):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        runs.pretrained(job, stream_set)
    resumed = runs.pretrained(job, stream_set)
    assert len(count) == len(whole.history) + 1  # none of the steps before it again
    assert [x["loss"] for x in resumed.history] == [x["loss"] for x in whole.history]
    seen = [[entry.get("validation") for entry in run.history] for run in (resumed, whole)]
    assert seen[0] == seen[1] and any(seen[0])


def test_products_without_labels_pretrain_but_are_not_measured(extracted, tmp_path, monkeypatch):

    from m5lib import streams
    from m5lib.catalogue import DataError
    from m5lib.evaluation import evaluate

    monkeypatch.setenv("M5_HOME", str(tmp_path))
    bare = replace(
        extracted[0], products=tuple(replace(p, label=None) for p in extracted[0].products)
    )
    run = runs.pretrained(
        runs.Job(profile="tiny", epochs=1),
        streams.Streams(bare, extracted[1], train_tokenizer(bare, 300)),
    )
    assert not run.history[0]["before"]["validation"] and not run.history[-1].get("validation")
    assert figures.milestones(pd.DataFrame(columns=["share", "readout", "value"]), "mAP").axes
    assert figures.long_tail(bare.labels).axes and "harmony" in run.history[-1]
    with pytest.raises(DataError, match="give the category of each product in a column 'label'"):
        evaluate.require_labels(bare)


def test_unknown_names_list_the_known_ones(stream_set):
    with pytest.raises(ValueError, match="known are .'scale'"):
        runs.Job(model="bigger").plan(stream_set)
    with pytest.raises(ValueError, match="known are .'tiny', 'quick', 'small', 'full'"):
        runs.profile_of("huge")


def test_a_run_knows_the_lines_of_a_form_of_ones_own(stream_set, monkeypatch):
    def mine(vectors, presence, temperature, scores=None, bias=None):
        return simcl.infonce(vectors, presence, temperature / 2, scores, bias)

    def other(vectors, presence, temperature, scores=None, bias=None):
        return simcl.infonce(vectors, presence, temperature / 3, scores, bias)

    names = []
    for form in (mine, other, mine, simcl.siglip):
        monkeypatch.setitem(simcl.FORMS, "mine", form)
        job = runs.Job(changes=(("objective.contrast", "mine"),))
        names.append(job.plan(stream_set).folder.name)
    assert names[0] == names[2] and len(set(names)) == 3


def test_numbers_that_are_equal_name_the_same_run(stream_set):
    """Notebook 05 says 0.0 epochs, a script 0."""
    one = runs.Job(epochs=0, learning_rate=0, seed=3, bert_layers=0)
    other = runs.Job(epochs=0.0, learning_rate=0.0, seed=3)
    assert one.plan(stream_set).folder == other.plan(stream_set).folder
    assert runs.Job(epochs=2.0).epochs == 2 and runs.Job(epochs=0.5).epochs == 0.5
    assert runs.Job(epochs=0.5).plan(stream_set).folder != one.plan(stream_set).folder


def test_a_table_called_shop_is_not_the_shop(tmp_path, monkeypatch):
    """Other margins count there, and other claims are calibrated."""
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    (tmp_path / "shop.csv").write_text("id,title\n" + "".join(f"{n},shoe {n}\n" for n in range(9)))
    catalogue, _ = runs.load(tmp_path / "shop.csv", runs.profile_of("tiny"))
    assert catalogue.name == "products" and len(catalogue) == 9


def test_thinning_keeps_the_splits(catalogue):
    thin = runs.thin(catalogue, 60)
    assert len(thin) == 60 and runs.thin(catalogue, 0) is catalogue
    for name in ("train", "gallery"):
        assert abs(len(thin.split(name)) / 60 - len(catalogue.split(name)) / len(catalogue)) < 0.05
    assert [split_of(p) for p in thin.products] == [split_of(p) for p in thin.products]


def test_strict_parameters(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    cell = new_code_cell(
        'n = 3  # how many\nrate = 0.5\nname = "x"\nflag = False', metadata={"tags": ["parameters"]}
    )
    book = tmp_path / "book.ipynb"
    nbformat.write(new_notebook(cells=[cell, new_code_cell("print(n)")]), book)
    assert notebooks.parameters_of(book) == {"n": 3, "rate": 0.5, "name": "x", "flag": False}
    checked = notebooks.check(book, {"rate": 1})
    assert checked == {"rate": 1.0} and type(checked["rate"]) is float
    for given, says in (
        ({"m": 1}, "no parameter 'm'; it has n, rate, name, flag"),
        ({"n": "3"}, "n = '3' is str"),
        ({"n": True}, "is bool"),
    ):
        with pytest.raises(notebooks.ParameterError, match=says):
            notebooks.run(book, tmp_path / "out.ipynb", given)
    assert not (tmp_path / "out.ipynb").exists()  # before the kernel starts
    nbformat.write(
        new_notebook(cells=[new_code_cell("n = f()", metadata={"tags": ["parameters"]})]), book
    )
    with pytest.raises(notebooks.ParameterError, match="line 1 of the parameters cell"):
        notebooks.parameters_of(book)
    nbformat.write(new_notebook(cells=[]), book)
    with pytest.raises(notebooks.ParameterError, match="0 cells are tagged"):
        notebooks.parameters_of(book)


def test_a_failing_notebook_is_named_and_kept(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    cells = [new_code_cell("n = 1", metadata={"tags": ["parameters"]}), new_code_cell("1 / 0")]
    meta = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=meta), tmp_path / "bad.ipynb")
    with pytest.raises(
        notebooks.NotebookError, match=r"bad\.ipynb: cell \d: ZeroDivisionError.*out\.ipynb"
    ):
        notebooks.run(tmp_path / "bad.ipynb", tmp_path / "out.ipynb", quiet=True)
    assert (tmp_path / "out.ipynb").exists()
    cells[1] = new_code_cell("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    nbformat.write(new_notebook(cells=cells, metadata=meta), tmp_path / "bad.ipynb")
    with pytest.raises(notebooks.NotebookError, match=r"bad\.ipynb: .*died.*out of memory\?"):
        notebooks.run(tmp_path / "bad.ipynb", tmp_path / "out.ipynb", quiet=True)


def test_neighbours_are_framed_by_being_right(catalogue):
    import numpy as np
    from matplotlib.colors import to_hex

    picture = figures.neighbours(
        catalogue, [0], np.array([[1, 2, -1]]), np.array([[True, False, False]])
    )
    frames = [to_hex(axes.spines["left"].get_edgecolor()).upper() for axes in picture.axes[:3]]
    assert frames[1:] == [style.RIGHT, style.WRONG] and not picture.axes[3].axison


def test_tables_and_pictures_are_kept_as_they_can_be_read_again(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    monkeypatch.setenv("M5_RESULTS", str(tmp_path))
    named = pd.DataFrame(
        {"hits": [0.5]},
        pd.MultiIndex.from_tuples([("image", "rollout")], names=["modality", "method"]),
    )
    plain = pd.DataFrame(
        [[1.0, 3]],
        [("silhouette", "t-SNE")],
        pd.MultiIndex.from_tuples([("mAP", "ours"), ("seeds", "")]),
    )
    plain.index = pd.MultiIndex.from_tuples(plain.index)
    matrix, photograph = Figure(), Figure()
    matrix.subplots().imshow(np.eye(300))
    photograph.subplots().imshow(np.zeros((4, 4, 3)))
    recording.record(
        "n", [], {}, {"matrix": matrix, "photograph": photograph}, {"named": named, "plain": plain}
    )
    assert pd.read_csv(tmp_path / "n_named.csv")["modality"].tolist() == ["image"]
    again = pd.read_csv(tmp_path / "n_plain.csv", index_col=0)
    assert again.index.tolist() == ["silhouette, t-SNE"]
    assert again.columns.tolist() == ["mAP, ours", "seeds"]
    assert (
        sorted(path.name for path in tmp_path.glob("*.svg")) == ["n_matrix.svg"]
        and len(list(tmp_path.glob("*.png"))) == 2
    )


def test_what_a_kill_leaves_beside_a_finished_model_goes(stream_set, tmp_path, monkeypatch):
    """Between the model and the removal of the checkpoint; and half a file."""
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    job = runs.Job(profile="tiny", epochs=1)
    run = runs.pretrained(job, stream_set)
    kept = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    for name in ("checkpoint.pt", "checkpoint.pt.1-2.tmp", "model.safetensors.1-2.tmp"):
        (run.folder / name).write_bytes(b"half")
    runs.pretrained(job, stream_set)
    assert {p.name: p.read_bytes() for p in run.folder.iterdir() if p.is_file()} == kept
    (run.folder / "history.jsonl").write_bytes(kept["history.jsonl"][:-9])
    with pytest.raises(ValueError, match=r"history\.jsonl: .*put it back, or delete .* train anew"):
        runs.pretrained(job, stream_set)


def test_what_earlier_weights_gave_goes_when_a_run_is_trained_again(
    stream_set, tmp_path, monkeypatch
):
    """Or a table would show the fine-tuning of a model that is no longer there."""
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    job = runs.Job(profile="tiny", epochs=1)
    run = runs.pretrained(job, stream_set)
    monkeypatch.setattr(runs, "finetune", lambda *_: None)
    runs.finetuned(run, job, stream_set)
    made = [run.folder / name for name in ("metrics-0.json", "queries-0.parquet", "map-x.parquet")]
    for path in made:
        path.write_bytes(b"of these weights")
    made += run.folder.glob("finetuned-*")
    runs.pretrained(job, stream_set)
    assert len(made) == 4 and all(path.exists() for path in made)
    (run.folder / "model.safetensors").unlink()
    again = runs.pretrained(job, stream_set)
    assert again.folder == run.folder and not any(path.exists() for path in made)


def test_another_way_to_fine_tune_is_another_classifier(stream_set, tmp_path, monkeypatch):
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    tuned = []
    monkeypatch.setattr(runs, "finetune", lambda *given: tuned.append(given[2].epochs))
    job = runs.Job(profile="tiny", products="none")
    run, tiny = runs.pretrained(job, stream_set), runs.PROFILES["tiny"]
    for epochs in (4, 4, 7):
        other = replace(tiny, tuning=replace(tiny.tuning, epochs=epochs))
        monkeypatch.setitem(runs.PROFILES, "tiny", other)
        runs.finetuned(run, job, stream_set)
    assert tuned == [4, 7] and len(list(run.folder.glob("finetuned-*"))) == 2


def test_streams_are_those_that_a_row_of_the_zoo_reads(extracted):
    def built(*given, **named):
        return runs.streams_of(*extracted, runs.profile_of("tiny"), *given, **named).modalities

    everything = extracted[0].modalities
    assert built() == built(model="scale") == everything
    assert built(model="clip") == ("image", "text") and built(model="bert") == ("text",)
    assert built("T+Tab", model="clip") == ("text", "table")  # as asked
    many = Ragged(np.zeros((80, 3), np.float16), np.array([0, 37, 73, 80]))
    few = extracted[0].take(range(3))
    with pytest.warns(UserWarning, match="image: of 1 products only the first 36 tokens are read"):
        runs.streams_of(few, {"image": many}, runs.profile_of("tiny"), "I")


def test_a_run_killed_at_any_write_of_its_end_ends_as_one_left_alone(
    stream_set, tmp_path, monkeypatch
):
    """After the last step: history, configuration, tokenizer, weights, removal."""
    from test_kills import Disk

    job = runs.Job(profile="tiny", epochs=1)
    monkeypatch.setenv("M5_HOME", str(tmp_path / "whole"))
    whole = runs.pretrained(job, stream_set)
    monkeypatch.setattr(runs, "glance", lambda *_: {})
    monkeypatch.setattr(runs, "fit_readouts", lambda *_: None)
    disk = Disk(monkeypatch)
    monkeypatch.setattr(runs, "pretrain", lambda *_, **__: [dict(x) for x in whole.history])
    card = {"README.md"}  # the mixin of the hub writes it last, if there is time
    names = {path.name for path in whole.folder.iterdir()} - card
    plan = job.plan(stream_set)
    for at in range(1, 99):
        folder = tmp_path / f"{at}"
        monkeypatch.setattr(runs.Job, "plan", lambda *_, to=folder: replace(plan, folder=to))
        ended = [disk.run(lambda: runs.pretrained(job, stream_set), at) for _ in range(2)]
        runs.pretrained(job, stream_set)
        assert {path.name for path in folder.iterdir()} - card == names
        lines = (folder / "history.jsonl").read_text().splitlines()
        assert len(lines) == len(whole.history)
        if all(ended):
            break
    assert at > 6


def test_results_that_are_none_are_named(tmp_path):
    path = tmp_path / "demo.json"
    none = '{"rows": []}', '{"measured": 3}', '{"measured": [], "provenance": 3}', "<html>"
    for content in ("", "{", "[]", *none):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"demo\.json: .*; delete it"):
            recording.load_results(path)
        with pytest.raises(ValueError, match=r"demo\.json: .*; delete it"):
            recording.save_results(path, [], {})
        assert path.read_text() == content


def test_titles_in_tables_are_neither_mathematics_nor_markup():
    frame = pd.DataFrame({"title": ["from $5 to $9", "<b>new</b>", "a|b\nc"]})
    page = frame._repr_html_()
    assert "tex2jax_ignore" in page and "mathjax_ignore" in page and "<b>" not in page
    lines = readme.markdown(frame.set_index("title").assign(n=1)).splitlines()
    assert len(lines) == 5 and lines[-1] == r"| a\|b c | 1 |"


def test_two_devices_train_the_run_of_one(stream_set, tmp_path, monkeypatch):
    """A process starts them, and loads what they trained; so does one that finds it there."""
    job = runs.Job(profile="tiny", epochs=0.5, settings=(("dropout", 0.0),))
    monkeypatch.setenv("M5_HOME", str(tmp_path / "one"))
    one = runs.pretrained(job, stream_set)
    monkeypatch.setenv("M5_HOME", str(tmp_path / "two"))
    several = replace(job, devices=2, micro=5, loaders=1)
    two = runs.pretrained(several, stream_set)
    assert two.name == one.name and len(two.history) == len(one.history) == 2
    for found, expected in zip(two.history, one.history, strict=True):
        assert set(found) == set(expected)
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)  # bf16 where it pays
    monkeypatch.setattr(runs, "launch", None)
    assert runs.pretrained(several, stream_set).history == two.history
