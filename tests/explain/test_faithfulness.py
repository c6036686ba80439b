"""Deletion, insertion, infidelity and pointing on numbers that are known; the cascade; carriers of
a shop's category."""

from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from m5lib.data.extractors import Frames, LogMel, Mfcc, ReleasedMel, described
from m5lib.explain import attribution, faithfulness
from m5lib.explain.attribution import Target, content
from m5lib.model import Model
from m5lib.models.finetune import Classifier
from m5lib.streams import Ragged

WORTH = torch.tensor([0.0, 5.0, 1.0, 3.0, 2.0, 4.0, 0.5, 0.25, 0.0])


@pytest.fixture
def model(five):
    torch.manual_seed(0)
    model = Model(five).eval()
    model.tokenizer = SimpleNamespace(mask_token_id=4)
    return model


@pytest.fixture
def counting(model):
    """F is the sum of what the title's tokens that are there are worth."""
    return Target(
        "worth", model, lambda output, sought: (output.valid["text"] * WORTH).sum(1), torch.zeros(6)
    )


def straight(model):
    """F is linear in the embeddings of the title, and does not depend on the rest."""
    weight = WORTH[:, None] * torch.linspace(-1, 2, 32)

    def read(output, sought):
        return (output.embedded["text"] * weight).sum((1, 2)) + 0 * sum(
            x.sum((1, 2)) for x in output.embedded.values()
        )

    return Target("linear", model, read, torch.zeros(6))


def test_all_kept_is_the_product_and_none_kept_is_absence(model, five_batch):
    batch = five_batch()
    everything = {name: stream.valid for name, stream in batch.streams.items()}
    same = faithfulness.left_with(batch, everything)
    for name, stream in batch.streams.items():
        assert torch.equal(same.streams[name].valid, stream.valid) and torch.allclose(
            same.streams[name].tokens, stream.tokens, atol=1e-6
        )
    gone = faithfulness.left_with(batch, {"video": torch.zeros_like(batch.streams["video"].valid)})
    others = [name for name in batch.streams if name != "video"]
    with torch.no_grad():
        left, only = model(gone), model(batch.only(others))
    assert not gone.streams["video"].valid.any()
    assert all(
        torch.allclose(left.summary[name], only.summary[name], atol=1e-6) for name in batch.streams
    )


def test_a_summary_is_the_mean_of_what_is_left(five_batch):
    batch = five_batch()
    keep = torch.zeros_like(batch.streams["image"].valid)
    keep[:, 2:4] = True
    left = faithfulness.left_with(batch, {"image": keep}).streams["image"]
    assert (
        torch.allclose(left.tokens[0, 0], batch.streams["image"].tokens[0, 2:4].mean(0), atol=1e-6)
        and left.valid[0].sum() == 3
    )


def test_curves_of_a_known_sum(counting, five_batch):
    batch = five_batch()
    found = faithfulness.curves(counting, batch, {"text": WORTH.expand(6, 9)})
    there = batch.streams["text"].valid[0]
    own, special = (
        WORTH[content(batch.streams["text"])[0]].sort(descending=True).values,
        WORTH[there & ~content(batch.streams["text"])[0]],
    )
    for place, share in enumerate(faithfulness.SHARES):
        cut = round(share * len(own))
        deleted = own[cut:].sum() + special.sum() * (cut < len(own))
        inserted = own[:cut].sum() + special.sum() * (cut > 0)
        assert found.deletion[0, place] == pytest.approx(float(deleted)) and found.insertion[
            0, place
        ] == pytest.approx(float(inserted))
    drawn = [
        faithfulness.curves(counting, batch, faithfulness.random_scores(batch, ["text"], seed))
        for seed in range(3)
    ]
    gains = faithfulness.gains(found, drawn)
    lacking = ~batch.streams["text"].valid.any(1).numpy()
    assert lacking.any() and all(
        (gain[~lacking] > 0).all() and (gain[lacking] == 0).all() for gain in gains.values()
    )
    worst = faithfulness.gains(
        faithfulness.curves(counting, batch, {"text": -WORTH.expand(6, 9)}), drawn
    )
    assert all((gain[~lacking] < 0).all() for gain in worst.values())
    for place, name in enumerate(("deletion", "insertion")):  # each against its own kind
        random = np.mean([curve.areas()[place] for curve in drawn], axis=0)
        sign = (-1, 1)[place]
        assert gains[name] == pytest.approx(sign * (found.areas()[place] - random), abs=1e-6)
    flat = faithfulness.Curves(np.array([[4.0, 2, 2, 2, 2, 0]]), np.zeros((1, 6)))
    assert flat.areas()[0][0] == pytest.approx(np.trapezoid(flat.deletion[0], faithfulness.SHARES))


def test_infidelity_of_exact_scores_is_nothing_and_of_none_is_one(model, five_batch):
    batch = five_batch()
    linear = straight(model)
    whole, found = (
        attribution.path(linear, batch),
        attribution.integrated_gradients(linear, batch, steps=2).tokens,
    )
    assert faithfulness.infidelity(whole, found) < 1e-6
    assert faithfulness.infidelity(
        whole, {name: 0 * x for name, x in found.items()}
    ) == pytest.approx(1.0)
    assert faithfulness.infidelity(whole, {name: -x for name, x in found.items()}) == pytest.approx(
        4.0, rel=1e-3
    )


def test_infidelity_of_a_model_that_reads_one_modality(five, five_batch):
    linear = straight(Model(replace(five, modalities=("text",), widths=())).eval())
    linear.model.tokenizer = SimpleNamespace(mask_token_id=4)
    batch = five_batch().only(["text"])
    found = attribution.integrated_gradients(linear, batch, steps=2).tokens
    assert list(found) == ["text"]
    assert faithfulness.infidelity(attribution.path(linear, batch), found) < 1e-6


def test_sensitivity_of_a_linear_number_is_small_and_repeats(model, five_batch):
    linear = straight(model)
    whole = attribution.path(linear, five_batch())
    one, other = (
        faithfulness.sensitivity(whole, radius, samples=2, steps=2) for radius in (0.01, 0.1)
    )
    assert (one < other)[whole.rest[1][:, 0].numpy()].all()
    assert np.array_equal(one, faithfulness.sensitivity(whole, 0.01, samples=2, steps=2))


def test_weights_are_drawn_anew_from_the_top(model):
    classifier = Classifier(model, ("a", "b"))
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    steps = list(faithfulness.randomised(classifier))
    assert [label for label, _ in steps] == [
        "out",
        "hidden",
        "joint 2",
        "joint 1",
        "solo 2",
        "solo 1",
        "embeddings",
    ]
    changed = []
    for _, found in steps:
        differs = {
            key for key, value in found.state_dict().items() if not torch.equal(value, before[key])
        }
        assert not changed or changed[-1] < differs
        changed.append(differs)
    assert changed[0] == {"out.weight"} and any(
        key.startswith("model.embeddings") for key in changed[-1] - changed[-2]
    )
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())


def test_rank_correlation_is_spearmans_within_modalities(five_batch):
    batch, generator = five_batch(), torch.Generator().manual_seed(0)
    one, other = (
        {name: torch.randn(s.valid.shape, generator=generator) for name, s in batch.streams.items()}
        for _ in range(2)
    )
    found = faithfulness.rank_correlation(one, other, batch)
    slow = [
        spearmanr(one[n][0, content(s)[0]], other[n][0, content(s)[0]])[0]
        for n, s in batch.streams.items()
    ]
    assert found[0] == pytest.approx(np.mean(slow))
    assert np.allclose(faithfulness.rank_correlation(one, one, batch), 1)
    against = {name: -x for name, x in one.items()}
    assert np.allclose(faithfulness.rank_correlation(one, against, batch), -1)
    assert np.allclose(faithfulness.rank_correlation(one, against, batch, absolute=True), 1)
    assert np.isnan(
        faithfulness.rank_correlation(one, {n: 0 * x for n, x in one.items()}, batch)
    ).all()


def test_pointing_hits_misses_ties_and_chance(five_batch):
    batch = five_batch()
    own = content(batch.streams["video"]).numpy()
    right = np.zeros_like(own)
    right[:, 2] = own[:, 2]
    perfect, level = faithfulness.pointing(
        {"video": torch.tensor(right).float()}, {"video": right}, batch
    )["video"]
    there = own[:, 2]
    assert (
        (perfect[there] == 1).all()
        and np.allclose(level[there], 1 / own[there].sum(1))
        and np.isnan(level[~there]).all()
    )
    wrong, _ = faithfulness.pointing(
        {"video": -torch.tensor(right).float()}, {"video": right}, batch
    )["video"]
    assert (wrong[there] == 0).all()
    tied, level = faithfulness.pointing({"video": torch.zeros(own.shape)}, {"video": right}, batch)[
        "video"
    ]
    assert np.allclose(tied[there], level[there])
    hit, level = faithfulness.pointing({"video": torch.zeros(own.shape)}, {"video": own}, batch)[
        "video"
    ]
    assert np.isnan(hit).all() and np.isnan(level).all()


def test_random_scores_point_at_chance(five_batch):
    batch = five_batch(products=600)
    own = content(batch.streams["audio"]).numpy()
    right = own & (np.random.default_rng(0).random(own.shape) < 0.4)
    hit, level = faithfulness.pointing(
        faithfulness.random_scores(batch, ["audio"], 0), {"audio": right}, batch
    )["audio"]
    assert np.nanmean(hit) == pytest.approx(np.nanmean(level), abs=0.07)


def test_carriers_follow_the_truth(stream_set):
    """Box, words and pairs, on products whose title is ``<brand> <gender> <colour> <label>
    <number>``."""
    rows = [row for row in range(40) if stream_set.catalogue.labels[row] == "Watch"][:2]
    batch, ids = stream_set.batch(rows), stream_set.catalogue.ids[rows]
    truth = {
        "image_box": [[0, 0, 0.5, 0.5], []],
        "text_words": [[3], [3]],
        "table_pairs": [[0], []],
    }
    found = faithfulness.carriers(stream_set, batch, pd.DataFrame(truth, index=ids))
    boxes = batch.streams["image"].boxes[0, 1:, :4].numpy()
    inside = ((boxes[:, 0] + boxes[:, 2]) / 2 <= 0.5) & ((boxes[:, 1] + boxes[:, 3]) / 2 <= 0.5)
    assert found["image"][0, 1:].tolist() == inside.tolist() and not found["image"][1].any()
    pieces = stream_set.tokenizer.convert_ids_to_tokens(
        batch.streams["text"].tokens[0][torch.tensor(found["text"][0])]
    )
    assert "".join(pieces).replace("##", "") == "watch"
    entity = batch.streams["table"].entity[0].numpy()
    assert (
        found["table"][0].tolist() == np.isin(entity, [0, 1]).tolist()
        and not found["table"][1].any()
    )


def test_spans_are_seconds_of_whatever_extractor_made_the_tokens(stream_set, five_batch):
    batch, empty = five_batch(), np.zeros((0, 1))
    makers = {"video": Frames(), "audio": Mfcc()}
    features = {n: Ragged(empty, empty, settings=described(e)) for n, e in makers.items()}
    streams = copy(stream_set)
    streams.features = features
    assert (
        faithfulness._told(streams, batch, "video", 0, "spans", [[1, 3]]).tolist()
        == [False, False, True, True] + [False] * 5
    )
    heard = faithfulness._told(streams, batch, "audio", 0, "spans", [[0, 1]])
    assert heard.tolist() == [False] + [(n + 0.5) * 0.16 < 1 for n in range(8)]
    for other, step in ((LogMel(group=25), 0.4), (ReleasedMel(), np.nan)):  # bands have no time
        features["audio"] = Ragged(empty, empty, settings=described(other))
        heard = faithfulness._told(streams, batch, "audio", 0, "spans", [[0, 1]])
        assert heard.tolist() == [False] + [(n + 0.5) * step < 1 for n in range(8)]


def test_special_tokens_do_not_count(five_batch):
    batch = five_batch()
    stream = batch.streams["text"]
    assert int(content(stream)[0].sum()) == 7 and int(content(batch.streams["image"])[0].sum()) == 8
    places, count = faithfulness.ranks({"text": WORTH.expand(6, 9)}, batch)
    assert int(count[0]) == 7 and int(places["text"][0, 1]) == 0
    assert not content(replace(stream, valid=torch.zeros_like(stream.valid))).any()
