from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from m5lib import embeddings
from m5lib.catalogue import Catalogue, Product
from m5lib.evaluation import evaluate
from m5lib.lab import measure, recording, runs, summary


@pytest.fixture(scope="module")
def run(stream_set, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("M5_HOME", str(tmp_path_factory.mktemp("home")))
    job = runs.Job(profile="tiny", epochs=1)
    yield job, runs.pretrained(job, stream_set)
    patch.undo()


def test_measured_gives_every_readout_and_validation_beside(run, stream_set):
    job, found = run
    rows = measure.measured(
        found, job, stream_set, found.context("05_downstream", job, stream_set.catalogue)
    )
    frame = pd.DataFrame(rows)
    assert set(frame["variant"]) == set(embeddings.READOUTS) and set(frame["state"]) == {
        "untrained",
        "pretrained",
    }
    chosen = frame[frame["convention"] == "min_k_r, validation queries"]
    assert len(chosen) == 2 * len(embeddings.READOUTS)
    best = chosen[chosen["state"] == "pretrained"].set_index("variant")["value"].idxmax()
    assert summary.chosen(frame) == best
    assert set(frame[frame["convention"] == "released"]["variant"]) == {embeddings.PAPER}


def test_one_modality_asks_and_another_answers(run, stream_set):
    job, found = run
    catalogue, rows, read = stream_set.catalogue, evaluate.needed_rows(stream_set.catalogue), []

    def embed(names):
        read.append(names)
        return runs.vectors(found.model, stream_set, rows, names, [embeddings.ACROSS])[
            embeddings.ACROSS
        ]

    pairs = [(["image"], ["text"]), (["text"], ["image"]), (["image"], ["image"])]
    context = found.context("t", job, catalogue)
    frame = pd.DataFrame(
        measure.crossed(embed, catalogue, pairs, context, "pretrained", embeddings.ACROSS)
    )
    assert list(frame["modalities"].unique()) == ["I→T", "T→I", "I→I"] and read == [
        ("image",),
        ("text",),
    ]
    within = frame[(frame["metric"] == "mAP@10") & (frame["convention"] == "min_k_r")].set_index(
        "modalities"
    )["value"]
    same = evaluate.retrieval(catalogue, embed(("image",)), given=(["image"], ["image"]))
    assert within["I→I"] == next(
        n["value"] for n in same if (n["metric"], n["convention"]) == ("mAP@10", "min_k_r")
    )


def test_fine_tuned_models_are_measured_by_vector_and_by_head(run, stream_set):
    job, found = run
    classifier = runs.finetuned(found, job, stream_set)
    frame = pd.DataFrame(
        measure.tuned(
            classifier, stream_set, found.context("t", job, stream_set.catalogue), ["image", "text"]
        )
    )
    assert set(frame["state"]) == {"finetuned"} and set(frame["modalities"]) == {"I+T"}
    assert {"accuracy", "accuracy@5", "mAP@1", "NMI", "purity"} <= set(frame["metric"])


def test_similarity_is_own_cosine_less_that_of_others(run, stream_set):
    model, rows = run[1].model, np.arange(40)
    output = model.eval()(stream_set.batch(rows))
    both = output.presence[:, 0] & output.presence[:, 1]
    one, other = (
        torch.nn.functional.normalize(output.summary[name][both], dim=1)
        for name in ("image", "text")
    )
    slow = [[float(a @ b) for b in other.detach()] for a in one.detach()]
    n = len(slow)
    own = np.mean([slow[i][i] for i in range(n)])
    rest = np.mean([slow[i][j] for i in range(n) for j in range(n) if i != j])
    products, values = embeddings.similarity(
        model, stream_set, rows, ("image", "text"), batch_size=7
    )
    assert list(products) == list(rows[both.numpy()]) and values.mean() == pytest.approx(
        own - rest, abs=1e-4
    )
    assert values[3] == pytest.approx(
        slow[3][3] - np.mean([slow[3][j] for j in range(n) if j != 3]), abs=1e-4
    )


def test_fine_queries_look_for_other_listings_of_the_same_product():
    products = [
        Product(f"q{n}", {"text": "x"}, "mug", "fine_query", instance=str(n)) for n in range(3)
    ]
    products += [
        Product(f"g{n}", {"text": "x"}, "mug", "fine_gallery", instance=str(n))
        for n in (0, 1, 7, 8)
    ]
    catalogue = Catalogue("listings", tuple(products))
    rows, excluded = catalogue.queries("fine_query")
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
        job.size(stream_set) is small.few[1] is not small
        and small.for_products(small.few[0]) is small
    )
    training = job.training(stream_set)
    assert (
        training.total_steps(few) > small.training.total_steps(few)
        and training.batch_size < small.training.batch_size
    )
    assert job.spec(stream_set).width == small.few[1].width < small.width
    assert runs.Job(profile="small", epochs=2).training(stream_set).steps is None


def test_a_job_has_a_learning_rate_of_its_own_or_the_profiles(stream_set):
    plain, slow = runs.Job(profile="tiny"), runs.Job(profile="tiny", learning_rate=3e-4)
    assert (
        slow.training(stream_set)
        == replace(plain.training(stream_set), learning_rate=3e-4)
        != plain.training(stream_set)
    )
    assert slow.folder(stream_set) != plain.folder(stream_set)
    with pytest.raises(ValueError, match="learning_rate -1 is below 0"):
        runs.Job(learning_rate=-1)


def test_compact_and_ladder_tables(tmp_path):
    base = {
        "notebook": "05_downstream",
        "run": "r",
        "data": "d",
        "profile": "tiny",
        "model": "scale",
        "task": "retrieval",
        "metric": "mAP@10",
    }
    rows = []
    for seed in (0, 1):
        for state in ("untrained", "pretrained"):
            for number, variant in enumerate(("fused_first", "layered", "encoded_first")):
                for convention in ("min_k_r", "min_k_r, validation queries"):
                    value = 0.1 * (state == "pretrained") + 0.2 * number + 0.01 * seed
                    rows.append(
                        base
                        | {
                            "seed": seed,
                            "state": state,
                            "modalities": "I+T",
                            "variant": variant,
                            "convention": convention,
                            "value": value,
                        }
                    )
    control = base | {
        "seed": 0,
        "state": "control",
        "modalities": "T",
        "variant": "tfidf",
        "convention": "min_k_r",
        "value": 0.3,
    }
    made = recording.provenance("tiny", 0, 1.0)
    fine = [
        row | {"task": "fine retrieval", "value": 0.99} for row in rows
    ]  # the same metrics of another task
    path = recording.save_results(tmp_path / "x.json", [*rows, control, *fine], made)
    wide = summary.table(path)
    assert wide.loc[("pretrained", "scale", "I+T", "layered"), "mAP@10"] == pytest.approx(0.305)
    frame = recording.load_results(path)
    assert summary.compare(frame, "mAP@10", "min_k_r", "layered").loc[
        "I+T", "pretrained"
    ] == pytest.approx(0.31)
    table = summary.compact(path)
    assert summary.chosen(pd.DataFrame(rows)) == "encoded_first"
    assert table.loc["I+T", "pretrained, encoded_first"] == pytest.approx(0.51) and table.loc[
        "T", "best control"
    ] == pytest.approx(0.3)
    tuned = [
        row | {"variant": "hidden", "state": "finetuned"}
        for row in rows
        if row["state"] == "pretrained" and row["variant"] == "layered"
    ]
    tuned = [row for row in tuned if row["convention"] == "min_k_r"]
    tuned += [
        row | {"task": "classification", "metric": "accuracy", "convention": "fine-tuned head"}
        for row in tuned
    ]
    path = recording.save_results(
        tmp_path / "y.json", [row for row in rows if row["state"] == "pretrained"] + tuned, made
    )
    steps = summary.ladder(path)
    assert (
        steps.loc["I+T", "mAP@10, encoded_first"] == "50.5 ± 0.7"
        and steps.loc["I+T", "accuracy, fine-tuned"] == "30.5 ± 0.7"
    )
    assert "profile `tiny`, seeds 0, 1, commit" in summary.made_by(path, "05_downstream")
