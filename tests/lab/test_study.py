"""Studies: whole, made once, and their numbers; what is measured on the way; tables beside the
paper's."""

from dataclasses import replace
from types import SimpleNamespace

import intervals
import numpy as np
import pandas as pd
import pytest

from m5lib import home
from m5lib.catalogue import Catalogue, Product
from m5lib.data import locked
from m5lib.embeddings import DEFAULT, PAPER, READOUTS
from m5lib.evaluation import controls, evaluate
from m5lib.lab import claims, recording, runs, study
from m5lib.streams import Streams


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M5_HOME", str(tmp_path_factory.mktemp("home")))
        grid = {
            "I+T": {"modalities": "I+T", "epochs": 0.5},
            "random": {"modalities": "I+T", "products": "none"},
            "A": {"modalities": "A"},
        }
        yield study.studies(grid, str(folder), "tiny", [0], "t")


def test_a_study_is_whole_and_its_numbers_are_the_means_of_its_queries(found):
    assert set(found) == {("I+T", 0), ("random", 0)}  # the products have no sound
    one = found["I+T", 0]
    frame = one.rows
    assert set(frame.columns) == set(recording.COLUMNS) and set(frame["state"]) == {
        "pretrained",
        "finetuned",
    }
    assert set(frame[frame["state"] == "pretrained"]["variant"]) == set(READOUTS)
    for name in (
        "accuracy",
        "mAP@1_pretrain",
        "mAP@10_finetune",
        "Prec@10_pretrain",
        "cosine less other products'",
        "cosine",
    ):
        wanted = study.number(name)
        assert one.value(wanted) == pytest.approx(one.values(wanted).mean())
    assert (
        np.isnan(one.value(study.number("mAP@1_fine")))
        and 0 <= one.value(study.number("NMI")) <= 1
        and len(one.history)
        and one.parameters > 1000
    )
    assert found["random", 0].history == []
    assert set(found["random", 0].rows["model"]) == {"scale, random"}
    assert set(one.rows["model"]) == {"scale"}


def test_a_study_is_made_once(found, folder, monkeypatch):
    monkeypatch.setattr(study, "_measure", None)
    monkeypatch.setenv("M5_HOME", str(home()))
    again = study.studies(
        {"I+T": {"modalities": "I+T", "epochs": 0.5}}, str(folder), "tiny", [0], "t"
    )
    assert again["I+T", 0].rows.equals(found["I+T", 0].rows)


def test_every_row_of_a_table_names_the_products_alike(found, folder, monkeypatch):
    """By every extractor, whatever a row reads: else what is said of titles alone is said of the
    plain products, and claims by their first row."""
    monkeypatch.setenv("M5_HOME", str(home()))
    catalogue, features = runs.load(str(folder), runs.profile_of("tiny"))
    other = features["image"].settings | {"extractor": "other", "weights": "0123456789"}
    features = features | {"image": features["image"]._replace(settings=other)}
    monkeypatch.setattr(runs, "load", lambda *_: (catalogue, features))
    monkeypatch.setattr(study, "_measure", lambda *_: ([], pd.DataFrame({"id": ["a"]})))
    monkeypatch.setattr(recording, "rows", lambda _, context: [context])
    grid = {name: {"modalities": name, "products": "none"} for name in ("T", "I+T")}
    seen = study.studies(grid, str(folder), "tiny", [0], "t").values()
    assert [one.rows["data"].iloc[0] for one in seen] == [
        f"{catalogue.name} (image=other:01234567)"
    ] * 2


def test_nobody_tidies_a_run_while_it_is_measured(found, folder, monkeypatch):
    """What another process has half written would be taken for a dead one's."""
    monkeypatch.setenv("M5_HOME", str(home()))
    locks = []

    def measured(run, *_):
        with locked(run.folder / ".lock", wait=False) as mine:
            locks.append(mine)
        return [], pd.DataFrame({"id": ["a"]})

    monkeypatch.setattr(study, "_measure", measured)
    grid = {"T": {"modalities": "T", "products": "none", "settings": (("width", 16),)}}
    study.studies(grid, str(folder), "tiny", [0], "t")
    assert locks == [False]


def test_a_study_reports_the_query_split(found, folder):
    """Nothing was chosen on these products; made again here from the run's vectors."""
    catalogue, features = runs.load(str(folder), runs.profile_of("tiny"))
    streams = runs.streams_of(catalogue, features, runs.profile_of("tiny"), "I+T")
    run = runs.pretrained(runs.Job(epochs=0.5), streams)
    one, queries = found["I+T", 0], evaluate.queries(catalogue, "query")[0]
    assert one.run == run.name and set(catalogue.ids[queries]) != set(catalogue.ids)
    assert list(one.values(study.number("mAP@1_pretrain")).index) == list(catalogue.ids[queries])
    everything = np.arange(len(catalogue))
    vectors = runs.vectors(run.model, streams, everything)[PAPER]
    for split, convention in (("query", "min_k_r"), ("validation", recording.VALIDATION)):
        slow = evaluate.retrieval(catalogue, vectors, split)
        slow = next(n for n in slow if (n["metric"], n["convention"]) == ("mAP@10", "min_k_r"))
        wanted = study.number("mAP@10_pretrain") | {"convention": convention}
        assert one.value(wanted) == pytest.approx(slow["value"], abs=1e-6), split
    classifier = runs.finetuned(run, runs.Job(epochs=0.5), streams)
    _, labels = runs.tuned_vectors(classifier, streams, everything)
    right = one.values(study.number("accuracy"))
    asked = [row for row in catalogue.split("query") if catalogue.labels[row] is not None]
    assert list(right.index) == list(catalogue.ids[asked])
    assert list(right) == [float(labels[row, 0] == catalogue.labels[row]) for row in asked]


def test_numbers_of_the_papers_columns():
    of = study.number
    assert list(of("mAP@5_pretrain").values()) == [
        *("pretrained", PAPER, "retrieval", "mAP@5", "min_k_r"),
    ]
    assert list(of("Prec@10_fine").values()) == [
        *("finetuned", recording.HIDDEN, "fine retrieval", "Prec@10", "k"),
    ]
    assert of("mAP@1", "pretrained")["state"] == of("mAP@1_pretrain")["state"] == "pretrained"
    assert of("mAP@1_finetune")["state"] == "finetuned" and "convention" not in of("NMI")
    with pytest.raises(ValueError, match="no table"):
        of("F1")


def test_what_these_products_cannot_show_is_not_testable(found):
    same = ("T", "I+T+Tab+V+A", "I+A", "I+V")
    both = found | {(label, 0): found["I+T", 0] for label in same}
    verdicts = {row["id"]: row for row in claims.judge(both, ["Table 4"])}
    assert verdicts["C20"]["verdict"] == "not testable"  # mAP@1_fine
    assert "products" in verdicts["C20"]["reason"]
    alike, asked = verdicts["C18"], len(found["I+T", 0].values(study.number("accuracy")))
    assert alike["difference"] == 0 and alike["high"] == -alike["low"] == pytest.approx(3 / asked)
    assert 3 / asked > 0.03 and alike["verdict"] == "undecided"  # so few queries show no equality


def test_tables_beside_the_papers(found):
    paper = study.published("table3_modality_addition", "modalities", data="subset")
    table = study.beside(found, paper, ["accuracy", "mAP@1_pretrain"])
    assert (
        table.loc["I+T", ("accuracy", "paper")] == "79.6"
        and table.loc["random", ("accuracy", "paper")] == ""
    )
    assert float(table.loc["I+T", ("accuracy", "ours")]) == pytest.approx(
        100 * found["I+T", 0].value(study.number("accuracy")), abs=0.051
    )
    read = study.readouts(found)
    assert list(read.columns) == list(READOUTS)
    assert read.loc["I+T", PAPER] == found["I+T", 0].value(study.number("mAP@10_pretrain"))
    assert "seeds" not in table
    uneven = found | {
        ("I+T", 1): replace(found["I+T", 0], rows=found["I+T", 0].rows.assign(seed=1))
    }
    more = study.beside(uneven, paper, ["accuracy"])["seeds", ""]
    assert more.to_dict() == {"I+T": 2, "random": 1}
    higher = uneven["I+T", 1].rows.assign(value=lambda rows: rows["value"] + 1)
    uneven["I+T", 1] = replace(uneven["I+T", 1], rows=higher)
    assert study.readouts(uneven).equals(read)  # by the seeds that all have
    both = claims.differences(found, [("I+T", "random")], ["accuracy", "mAP@1_pretrain"])
    expected = found["I+T", 0].value(study.number("accuracy")) - found["random", 0].value(
        study.number("accuracy")
    )
    assert both["mean"].iloc[0] == pytest.approx(100 * expected)
    assert recording.said(pd.DataFrame({0: [0.1], 1: [0.3]}))[0] == "20.0 ± 14.1"


def test_only_complete_products_the_same_number_of_steps(stream_set):
    catalogue, tokenizer = stream_set.catalogue, stream_set.tokenizer
    train, products = catalogue.split("train"), list(catalogue.products)
    for row in train[::2]:
        contents = {n: x for n, x in products[row].contents.items() if n != "text"}
        products[row] = replace(products[row], contents=contents)
    lacking = replace(catalogue, products=tuple(products))
    lacking = Streams(lacking, stream_set.features, tokenizer)
    jobs = (runs.Job(profile="tiny", products=products) for products in ("all", "complete"))
    whole, part = (job.plan(lacking) for job in jobs)
    assert set(whole.rows) == set(train) and set(part.rows) == set(train[1::2])
    steps = whole.training.total_steps(len(whole.rows))
    assert part.training.total_steps(len(part.rows)) == steps
    assert whole.training.total_steps(len(part.rows)) < steps


def test_a_grid_leaves_out_what_the_products_cannot_tell(stream_set, capsys):
    size, catalogue, features = study.sized("tiny"), stream_set.catalogue, stream_set.features
    grid = {
        "all": {},
        "complete": {"products": "complete"},
        "zeros": {"changes": (("missing", "impute"),)},
        "T": {"modalities": "T"},
        "A": {"modalities": "A"},
    }
    found = study.jobs(grid, catalogue, features, size, 3)  # none lacks anything
    assert (
        list(found) == ["all", "T"]
        and found["T"][1].modalities == ("text",)
        and found["T"][0].seed == 3
    )
    assert "complete: left out, no product of" in capsys.readouterr().out
    with pytest.raises(ValueError, match="typo: a job has no .*modality"):
        study.jobs({"typo": {"modality": "T"}}, catalogue, features, size, 0)
    first, *others = catalogue.products
    bare = replace(
        first,
        contents={name: content for name, content in first.contents.items() if name != "text"},
    )
    lacking = replace(catalogue, products=(bare, *others))
    assert list(study.jobs(grid, lacking, features, size, 0)) == ["all", "complete", "zeros", "T"]


def test_a_row_of_the_first_seeds_only(monkeypatch, stream_set, capsys):
    nothing = study.Study("run", "data", pd.DataFrame(), pd.DataFrame(), [], 1)
    monkeypatch.setattr(study, "study", lambda *given: nothing)
    monkeypatch.setattr(
        study.runs, "load", lambda *given: (stream_set.catalogue, stream_set.features)
    )
    found = study.studies(
        {"all": {}, "T": {"modalities": "T", "seeds": 2}}, "x", "tiny", [1, 2], "t"
    )
    assert list(found) == [("all", 1), ("T", 1), ("all", 2)]
    assert "left out" not in capsys.readouterr().out
    assert list(study.studies({"T": {"seeds": 2}}, "x", "tiny", iter([2, 3]), "t")) == []
    assert "T: left out, it is run with seeds below 2 only" in capsys.readouterr().out


def test_looks_are_those_before_and_after_each_quarter():
    history = [{"step": step} for step in range(8)]
    history[0]["before"] = {"validation": 1}
    for step in (1, 3, 5, 7):
        history[step]["validation"] = step
    assert study.looks([]) == []
    found = [(share, look["validation"]) for share, look in study.looks(history)]
    assert found == [(0.0, 1), (0.25, 1), (0.5, 3), (0.75, 5), (1.0, 7)]


def test_fine_queries_look_for_other_listings_of_the_same_product():
    products = [
        Product(f"q{n}", {"text": "x"}, "mug", "fine_query", instance=str(n)) for n in range(3)
    ]
    products += [
        Product(f"g{n}", {"text": "x"}, "mug", "fine_gallery", instance=str(n))
        for n in (0, 1, 7, 8)
    ]
    catalogue = Catalogue("listings", tuple(products))
    rows, excluded = evaluate.queries(catalogue, "fine_query")
    assert list(rows) == [0, 1] and excluded == 1  # nobody else lists product 2
    vectors = np.eye(8)[
        [0, 1, 2, 0, 3, 1, 4]
    ]  # query 0 finds its own first; query 1 finds the listing of product 7
    found = {
        (n["metric"], n["convention"]): n
        for n in evaluate.retrieval(catalogue, vectors, "fine_query")
    }
    assert (
        found["mAP@1", "min_k_r"]["value"] == 0.5
        and found["mAP@1", "min_k_r"]["task"] == "fine retrieval"
    )
    assert evaluate.evaluate(catalogue, vectors, ["fine retrieval"])[0]["task"] == "fine retrieval"


def test_few_products_take_a_smaller_model_and_more_steps(stream_set):
    few = len(stream_set.catalogue.split("train"))
    small, job = runs.profile_of("small"), runs.Job(profile="small")
    assert (
        job.plan(stream_set).tuning.batch_size == small.few[1].tuning.batch_size
        and small.for_products(small.few[0]) is small
    )
    training = job.plan(stream_set).training
    assert (
        training.total_steps(few) > small.training.total_steps(few)
        and training.batch_size < small.training.batch_size
    )
    assert job.plan(stream_set).spec.width == small.few[1].width < small.width
    assert runs.Job(profile="small", epochs=2).plan(stream_set).training.steps is None


def test_a_job_has_a_learning_rate_of_its_own_or_the_profiles(stream_set):
    plain, slow = runs.Job(profile="tiny"), runs.Job(profile="tiny", learning_rate=3e-4)
    assert (
        slow.plan(stream_set).training
        == replace(plain.plan(stream_set).training, learning_rate=3e-4)
        != plain.plan(stream_set).training
    )
    assert slow.plan(stream_set).folder != plain.plan(stream_set).folder
    with pytest.raises(ValueError, match="learning_rate -1: give a number from 0 on"):
        runs.Job(learning_rate=-1)


def test_rivals_take_what_validation_products_find_best(stream_set, monkeypatch, tmp_path):
    """One after the other, with seeds of their own; a rate that a row asks for is tried too. Those
    near the best of the first seed are tried with the others, and their means decide. What a record
    tried is not trained again."""
    catalogue, features, asked = stream_set.catalogue, stream_set.features, []
    luck = {}  # (model, rate, seed) -> what a seed adds
    best = {"scale": (1e-3, 0.15), "clip": (1e-4, 0.07 / 3), "image_based": (9e-3, 0.05)}

    def load(data, size, seed, extractors):
        asked.append(seed)
        return catalogue, features

    def pretrained(job, streams):
        plan = job.plan(streams)
        found = plan.training.learning_rate, plan.spec.objective.temperature
        wanted = best[job.model]
        distance = sum(abs(np.log(x / y)) for x, y in zip(found, wanted, strict=True))
        assert job.seed in study.CHOOSING
        value = 1 / (1 + distance) + luck.get((job.model, round(found[0], 4), job.seed), 0)
        measured = {DEFAULT: value + 0.1, PAPER: value - 0.1}
        return SimpleNamespace(history=[{"validation": measured}])

    monkeypatch.setattr(runs, "load", load)
    monkeypatch.setattr(runs, "pretrained", pretrained)
    grid = {
        "slow": {"modalities": "I+T"},
        "random": {"products": "none"},
        "lacking": {"modalities": "A"},
        "own": {"model": "clip", "learning_rate": 1e-4, "modalities": "I+T"},
        "one modality": {"model": "image_based", "modalities": "I"},
    }
    found, tried = study.fair(grid, "d", "tiny")
    assert asked == [study.CHOOSING[0]] and list(found) == list(grid)
    tau = ("objective.temperature",)
    assert found["slow"]["learning_rate"] == pytest.approx(1e-3)
    assert dict(found["slow"]["changes"])[tau[0]] == pytest.approx(0.15)
    assert found["random"] == grid["random"] and found["lacking"] == grid["lacking"]
    assert found["own"]["learning_rate"] == 1e-4
    assert dict(found["own"]["changes"])[tau[0]] == pytest.approx(0.07 / 3)
    assert found["one modality"]["learning_rate"] == pytest.approx(9e-3)
    assert "changes" not in found["one modality"]
    assert tried["row"].value_counts().to_dict() == {"slow": 5, "own": 6, "one modality": 3}
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    trained = []
    count = lambda job, streams: trained.append(job.model) or pretrained(job, streams)  # noqa: E731
    monkeypatch.setattr(runs, "pretrained", count)
    for several, again in ((tried, []), (tried[1:], ["scale"]), (tried[:-1], ["image_based"])):
        recording.record("kept", [], {}, {}, {"rates": several})
        kept, reached = study.fair(grid, "d", "tiny", choices="kept")
        assert (kept, trained) == (found, again)
        pd.testing.assert_frame_equal(reached, tried, check_exact=True)
        trained.clear()
    with pytest.raises(ValueError, match="other_rates.csv.*give a record in results/"):
        study.fair(grid, "d", "tiny", choices="other")
    monkeypatch.setattr(runs, "pretrained", pretrained)
    best["scale"] = (3e-3, 0.05)  # what the row has already: it stays the run that it is
    again = study.fair({"slow": grid["slow"]}, "d", "tiny")[0]["slow"]
    jobs = [
        study.jobs({"slow": row}, catalogue, features, study.sized("tiny"), 0)["slow"][0]
        for row in (again, grid["slow"])
    ]
    assert jobs[0] == jobs[1]
    grid, best["image_based"], near = {"one": grid["one modality"]}, (3e-3, 0.05), 9e-3
    ahead = 1 - 1 / (1 + np.log(3)) + 0.01  # by the first seed: less than CLOSE
    for more, rate in ((0.0, None), (0.6, near)):
        luck |= {("image_based", near, seed): more for seed in study.CHOOSING[1:]}
        luck["image_based", near, study.CHOOSING[0]] = ahead
        row, tried = study.fair(grid, "d", "tiny")
        assert row["one"].get("learning_rate") == (rate and pytest.approx(rate))
        assert tried["seed"].value_counts().to_dict() == {1000: 3, 1001: 2, 1002: 2}
    nothing = SimpleNamespace(history=[{"validation": {}}])  # no validation product has a label
    monkeypatch.setattr(runs, "pretrained", lambda job, streams: nothing)
    own = {"own": {"model": "image_based", "learning_rate": 1e-4, "modalities": "I"}}
    assert study.fair(own, "d", "tiny")[0] == own


def test_the_strongest_control_stands_in_a_tables_columns(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    names = ["accuracy", "mAP@1_pretrain", "mAP@1_finetune", "NMI"]
    found = study.controls(str(folder), "tiny", [0, 1], 0, "I+T")
    row = study.beside(found, pd.DataFrame(columns=names), names)
    catalogue, _ = runs.load(str(folder), runs.profile_of("tiny"))
    several = controls.controls(catalogue, runs.pixels(catalogue))
    values = {
        name: next(
            n["value"]
            for n in evaluate.retrieval(catalogue, vectors, "validation")
            if (n["metric"], n["convention"]) == ("mAP@10", "min_k_r")
        )
        for name, (reads, vectors) in several.items()
        if "table" not in reads
    }
    (best,) = [name for name in values if values[name] == max(values.values())]
    assert list(row.index) == [f"control ({best})"]
    wordless = study.controls(str(folder), "tiny", [0], 0, "I")
    assert list(wordless) == [("control (pca_pixels)", 0)]
    assert study.controls(str(folder), "tiny", [0], 0, "Tab") == {}
    numbers = evaluate.evaluate(catalogue, several[best][1])
    of = {(n["metric"], n["convention"]): n["value"] for n in numbers}
    expected = {"NMI": next(value for (name, _), value in of.items() if name == "NMI")}
    expected |= {"accuracy": of["accuracy", "linear probe"]}
    expected |= dict.fromkeys(("mAP@1_pretrain", "mAP@1_finetune"), of["mAP@1", "min_k_r"])
    for name, value in expected.items():
        assert row[name, "ours"].iloc[0] == f"{100 * value:.1f} ± 0.0"  # the same for each seed
    (label, _), *_ = found
    again = claims.differences(found, [(label, label)], ["accuracy", "NMI", "mAP@10_pretrain"])
    assert (again["mean"] == 0).all()


@pytest.mark.parametrize("data, seeds", [("shop", [0, 1]), ("folder", [0])])
def test_each_seed_of_the_shop_has_a_control_of_its_own(data, seeds, folder, monkeypatch):
    """It is another shop; other products are the same for every seed, and so is their control."""
    catalogue, features = runs.load(str(folder), runs.profile_of("tiny"))
    loaded = []
    vectors = np.random.default_rng(0).normal(size=(len(catalogue), 8)).astype(np.float32)
    monkeypatch.setattr(runs, "load", lambda *x: (loaded.append(x[2]), (catalogue, features))[1])
    monkeypatch.setattr(study, "strongest", lambda *_: ("svd", vectors))
    found = study.controls(data, "tiny", [0, 1], 0, "T")
    assert loaded == seeds and list(found) == [("control (svd)", 0), ("control (svd)", 1)]
    assert [one.rows["seed"].iloc[0] for one in found.values()] == [0, 1]


def test_what_is_kept_of_queries_is_all_that_tables_need(found, tmp_path):
    path, names = tmp_path / "q.parquet", ["accuracy", "mAP@10_pretrain", "NMI", "purity", "cosine"]
    for similarity in (True, False):
        claims.asked(found, similarity).to_parquet(path)
        again = intervals.read_asked(path)
        assert list(again) == list(found)
        for key, one in found.items():
            assert again[key].data == one.data
            for name in [*names, "Prec@5_finetune", "cosine less other products'"]:
                before, after = (x.value(study.number(name)) for x in (one, again[key]))
                if similarity or "cosine" not in name:
                    assert after == pytest.approx(before, abs=1e-3 if "cosine" in name else 1e-6)
                else:
                    assert np.isnan(after)
