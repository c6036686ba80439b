"""Each item of the audit is measured by a number that is what it must be where the fault is, and
something else where it is not."""

import numpy as np
import pytest
import torch
from conftest import make_five_batch
from make_media import file_of, tone, write_sound
from test_zoo import STREAMS, build, fitted

from m5lib import layers, metrics, simcl
from m5lib.data import extractors
from m5lib.masking import Vocabulary, mask
from m5lib.models import anatomy, audit, zoo

FIVE = list(STREAMS.modalities)


@pytest.fixture(scope="module")
def models():
    return {name: build(fitted(name)) for name in ("released", "scale")}


@pytest.fixture(scope="module")
def masked():
    return mask(make_five_batch(), Vocabulary(50, 4), torch.Generator().manual_seed(0), 0.4)


def on_streams(name, streams):
    return build(zoo.build(name, width=32, layers=1, heads=2).fit(streams))


def test_mistiled_mask_is_that_of_another_product(models, monkeypatch):
    """Head h of product b has the mask of product (b H + h) mod B, in the fusion only, and the
    plain one afterwards."""
    model, batch, seen, plain = models["scale"], make_five_batch(), [], layers.attention

    def spy(q, k, v, readable, dropout=0.0):
        seen.append(readable)
        return plain(q, k, v, readable, dropout)

    monkeypatch.setattr(layers, "attention", spy)
    model(batch)
    right = [m.clone() for m in seen]
    seen.clear()
    with audit.mistiled(model):
        model(batch)
    assert layers.attention is spy
    assert all(a.equal(b) for a, b in zip(right[:-1], seen[:-1], strict=True))
    heads = model.spec.stages[-1].block.heads
    assert len(seen[-1]) == 6 * heads  # each head as a product of its own
    for b in range(6):
        for h in range(heads):
            assert seen[-1][b * heads + h].equal(right[-1][(b * heads + h) % 6])
    with pytest.raises(RuntimeError, match="stop"), audit.mistiled(model):
        raise RuntimeError("stop")
    assert layers.attention is spy


def test_mask_effect_depends_on_neighbours_only_where_the_mask_is_wrong(stream_set):
    for name in ("released", "scale"):
        model = on_streams(name, stream_set)
        found = audit.mask_effect(model, stream_set, np.arange(40))
        assert found["right mask, other places"] < 1e-5
        assert found["wrong mask"] > 1e-3 and found["wrong mask, other places"] > 1e-3
        alike = audit.mask_effect(
            model, stream_set, np.zeros(8, dtype=int)
        )  # eight times one product: every mask is right
        assert max(alike.values()) < 1e-5


def test_heads_of_the_released_form_cannot_see_another_modality(models, masked):
    batch, targets = masked
    lines = {name: audit.removal(model, batch, targets) for name, model in models.items()}
    assert len(lines["released"]) == len(lines["scale"]) == 20
    assert (lines["released"]["moved"] == 0).all() and (lines["scale"]["moved"] > 1e-4).all()
    scored = audit.removal(models["released"], batch, targets, scored=True)
    assert (scored["moved"] > 0).any()


def test_the_released_fusion_learns_through_the_diagonal_only(models, masked):
    batch, targets = masked
    found = {name: audit.joint_gradient(model, batch, targets) for name, model in models.items()}
    assert found["released"]["without"] == 0 < found["released"]["with"]
    assert found["scale"]["without"] > 0
    assert all(
        model.spec.objective.harmony_on == ("contrast", "masked") for model in models.values()
    )


def test_effective_temperature_and_open_units(models):
    found = audit.effective_temperature(torch.tensor([0.0, 0.5, 0.5, 1.0]), 0.1)
    assert found["without gradient"] == 0.25 and found["median"] == pytest.approx(0.2)
    assert audit.effective_temperature(torch.zeros(3), 0.1) == {"without gradient": 1.0}
    model, batch = build(fitted("released")), make_five_batch()
    scores = audit.pair_scores(model, model(batch))
    assert (
        len(scores) == 6 * 20 and (scores >= 0).all()
    )  # zeros in place of what is absent count as there
    torch.nn.init.constant_(model.poolers["text"].bias, -1e3)
    units = audit.open_units(model(batch))
    assert (
        units["text"] == 0 < units["image"]
        and (audit.pair_scores(model, model(batch)) == 0).float().mean() >= 8 / 20
    )


def test_the_diagonal_is_bounded_in_both_forms_and_free_in_the_free_one():
    for form in ("cosine", "shifted"):
        limits = audit.diagonal_limits(form)
        assert (
            limits["all agree"] == pytest.approx(5**-0.5) == pytest.approx(min(limits.values()))
            and max(limits.values()) <= 1 + 1e-6
        )
        vectors = torch.randn(50, 5, 8, generator=torch.Generator().manual_seed(0)).abs()
        found = audit.diagonal(form, vectors, torch.ones(50, 5, dtype=torch.bool))
        assert (
            5**-0.5 - 1e-6 <= found["lowest"] < found["highest"] <= 1
            and found["correlation"] < -0.5
        )
    scores = simcl.free(-20 * torch.eye(5), torch.ones(1, 5, dtype=torch.bool))
    assert float(scores[0, 0, 0]) < 1e-6


def test_chance_levels():
    found = audit.chance(32)
    assert found["released"] == pytest.approx(np.log(63), abs=0.02) and found[
        "infonce"
    ] == pytest.approx(np.log(32), abs=0.02)


def test_the_same_tokens_are_the_same_where_weights_are_shared(models):
    for pair in (("text", "table"), ("image", "video")):
        apart = {
            name: audit.same_tokens(model, make_five_batch(), pair)
            for name, model in models.items()
        }
        assert apart["released"] == 0 and apart["scale"] > 0.1


def test_zeros_in_place_of_what_is_missing_are_one_vector(models):
    deaf = make_five_batch().only([name for name in FIVE if name != "audio"])
    found = {name: audit.twins(model, deaf) for name, model in models.items()}
    assert found["released"].at["audio", "alike"] == 6 and found["released"].at[
        "audio", "floor"
    ] == pytest.approx(np.log(6))
    assert (found["scale"]["alike"] == 0).all() and (found["scale"]["floor"] == 0).all()
    assert found["scale"].at["audio", "lacking"] == 6
    lone = audit.twins(models["released"], make_five_batch())  # a single product lacks each
    assert (lone["lacking"] == 1).all() and (lone["alike"] == 0).all()


def test_layout_of_a_second_of_sound(tmp_path):
    file = file_of(write_sound(tmp_path / "sound.wav", tone(1.5)))
    released, ours = (
        audit.layout([file], e) for e in (extractors.ReleasedMel(), extractors.Mfcc())
    )
    assert (
        (released["tokens"], released["width"]) == (80, 751)
        and released["summary"] < 1e-5
        and released["silent"] > 0.8
    )
    assert ours["width"] == 40 and ours["summary"] > 0.1


def test_shortened_k_by_hand():
    hits = np.array([[True, False] + [False] * 8, [True] * 10])
    found = audit.shortened(hits, np.array([1, 40]))
    # the first: K = 1 + 1, one hit of two; the second: K = 9, all
    assert found == {"cut": 5.5, "released": pytest.approx(0.75), "ours": pytest.approx(0.55)}


def test_inner_products_rank_by_length_and_shares_add_up(catalogue, stream_set):
    vectors = np.random.default_rng(0).normal(size=(len(catalogue), 8)).astype(np.float32)
    cosine = audit.ranked(catalogue, vectors)
    vectors[catalogue.split("gallery")[0]] *= 1e4
    longest = audit.ranked(catalogue, vectors, cosine=False)
    assert np.array_equal(audit.ranked(catalogue, vectors)[0], cosine[0]) and not np.array_equal(
        longest[0], cosine[0]
    )
    assert (
        metrics.average_precision(*cosine, 10, "hits").mean()
        >= metrics.average_precision(*cosine, 10, "min_k_r").mean()
    )
    shares = audit.norm_shares(on_streams("released", stream_set), stream_set, np.arange(20))
    assert list(shares.index) == ["image", "text", "table"] and shares.sum() == pytest.approx(1)


def test_literal_scores_do_not_start_and_free_ones_do():
    for acts_on in ("losses", "logits"):
        history, first = audit.toy("literal", acts_on, 0.0, 40, items=32)
        assert first["encoders"] == 0.0 and history["total"].iloc[0] == pytest.approx(
            0.0 if acts_on == "losses" else np.log(32), abs=1e-4
        )
        if acts_on == "losses":
            assert (
                first["S"] > 0
                and history["negative"].iloc[-1] == 10
                and history["total"].iloc[-1] < -0.05
            )
            assert history["contrast"].iloc[-1] > history["contrast"].iloc[0]
    free, first = audit.toy("free", "logits", 0.0, 100, items=32)
    plain, _ = audit.toy("none", "logits", 0.0, 100, items=32)
    assert (
        first["encoders"] > 0
        and free["recall"].iloc[-1] > 0.6
        and free["total"].iloc[0] == pytest.approx(plain["total"].iloc[0], abs=1e-5)
    )
    ones, _ = audit.toy("literal", "logits", 1.0, 5, items=32)
    assert ones["lowest"].iloc[0] == pytest.approx(0.2) and plain["lowest"].eq(1).all()


def test_table_keeps_what_could_not_be_measured():
    found = audit.table([(1, "what", 0.5, None)])
    assert found.at[1, "released"] == 0.5 and np.isnan(float(found["ours"].astype(float).iloc[0]))


def test_influence_is_zero_exactly_where_nothing_reaches(models):
    batch = make_five_batch()
    for model in models.values():
        for states in ("encoded", "fused"):
            reached, moved = (
                anatomy.reach(model, batch, states),
                anatomy.influence(model, batch, states),
            )
            assert (moved > 0).equal(reached) and moved.argmax(dim=1).tolist() == list(range(5))
    start = anatomy.influence(
        build(fitted("uniter")), batch, "encoded"
    )  # what goes in, before any stage: moves by as much as it is moved
    assert (
        start.diagonal().tolist() == pytest.approx([1, 1], abs=1e-4)
        and start.sum() == start.diagonal().sum()
    )
