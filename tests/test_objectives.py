import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import FewWords, make_five_batch
from own_forms import register

from m5lib import objectives, simcl
from m5lib.embeddings import read_out
from m5lib.masking import Target, drawn_modalities, mask
from m5lib.model import Model
from m5lib.models.zoo import change
from m5lib.streams import impute


def random_case(seed, products=5, modalities=4, width=6):
    torch.manual_seed(seed)
    presence = torch.rand(products, modalities) < 0.7
    presence[0] = True
    return torch.randn(products, modalities, width).double(), presence


def slow_harmony(vectors, presence):
    products, modalities, _ = vectors.shape
    scores = torch.zeros(products, modalities, modalities).double()
    for b in range(products):
        there = [m for m in range(modalities) if presence[b, m]]
        for i in there:
            cosine = [
                (1 + F.cosine_similarity(vectors[b, i], vectors[b, j], dim=0).item()) / 2
                for j in there
            ]
            total = sum(math.exp(c) for c in cosine)
            row = [c * math.exp(c) / total for c in cosine]
            norm = math.sqrt(sum(r * r for r in row))
            for j, r in zip(there, row, strict=True):
                scores[b, i, j] = r / norm
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_harmony_equals_its_formula(seed):
    vectors, presence = random_case(seed)
    fast = simcl.harmony(simcl.agreement(vectors), presence)
    torch.testing.assert_close(fast.double(), slow_harmony(vectors, presence), atol=1e-6, rtol=1e-5)


def test_harmony_limits():
    same = torch.ones(1, 5, 3)
    all_there = torch.ones(1, 5, dtype=torch.bool)
    torch.testing.assert_close(
        simcl.harmony(simcl.agreement(same), all_there), torch.full((1, 5, 5), 5**-0.5)
    )
    torch.testing.assert_close(simcl.harmony(torch.eye(5)[None], all_there), torch.eye(5)[None])
    none = simcl.harmony(torch.ones(1, 5, 5), torch.zeros(1, 5, dtype=torch.bool))
    assert none.abs().sum() == 0


def test_scores_are_never_negative():
    """A negative score would reward vectors that point away from each other."""
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]])
    assert simcl.harmony(simcl.agreement(opposite), torch.ones(1, 3, dtype=torch.bool)).min() == 0


def test_masked_values_equal_their_formulas():
    torch.manual_seed(0)
    product, token = torch.tensor([0, 1, 1]), torch.tensor([2, 1, 3])
    words, pixels = torch.randn(3, 7), torch.randn(3, 4)
    goal_words, goal_pixels = torch.tensor([1, 6, 0]), torch.randn(3, 4)
    targets = {
        "image": Target(product, token, goal_pixels),
        "text": Target(product, token, goal_words),
    }
    scores = torch.tensor([[0.5, 0.9], [0.7, 1.3]])
    found = objectives.masked_values({"image": pixels, "text": words}, targets, scores)
    for s in range(3):
        b = product[s]
        logits = words[s] * scores[b, 1]
        assert found["text"][s].item() == pytest.approx(
            -(logits[goal_words[s]] - logits.exp().sum().log()).item(), abs=1e-5
        )
        assert found["image"][s].item() == pytest.approx(
            ((pixels[s] * scores[b, 0] - goal_pixels[s]) ** 2).mean().item(), abs=1e-5
        )
    uniform = objectives.masked_values({"text": torch.zeros(3, 7)}, {"text": targets["text"]})[
        "text"
    ]
    torch.testing.assert_close(uniform, torch.full((3,), math.log(7)))
    assert objectives.masked_values({"image": goal_pixels}, targets)["image"].sum() == 0


def test_a_batch_without_masked_tokens_has_a_finite_loss(five, five_batch):
    model = Model(five)
    batch, targets = mask(five_batch(), FewWords(), torch.Generator(), rate=0.0)
    loss, parts = objectives.total(model, model(batch), targets)
    loss.backward()
    assert torch.isfinite(loss) and parts["MLM"] == 0 and loss > 0  # the contrast is left


def test_total_is_the_sum_of_masked_tasks_and_the_mean_of_pairs(five, five_batch):
    model = Model(five).eval()
    batch, targets = mask(five_batch(), FewWords(), torch.Generator().manual_seed(0), 0.3)
    loss, parts = objectives.total(model, model(batch), targets)
    pairs = torch.stack([v for k, v in parts.items() if k.startswith("contrast")])
    tasks = torch.stack([v for k, v in parts.items() if k.isupper()])
    torch.testing.assert_close(loss, tasks.sum() + pairs.mean())


def test_a_pair_that_no_product_has_does_not_count(five, five_batch):
    """A batch of pictures and titles has one pair, and its weight does not depend on what else the
    model could read."""
    model = Model(change(five, [("objective.masked", False)])).eval()
    loss, parts = objectives.total(model, model(five_batch().only(["image", "text"])), {})
    assert parts["contrast_I+T"] > 0 and parts["contrast_V+A"] == 0
    torch.testing.assert_close(loss, parts["contrast_I+T"])


def test_half_precision_leaves_the_contrast_alone(five, five_batch):
    """Under autocast similarities and scores are float32: at a temperature of 0.015 a bf16 product
    would be off by a third of a logit."""
    model = Model(five).eval()
    batch, targets = mask(five_batch(), FewWords(), torch.Generator().manual_seed(0), 0.3)
    output = model(batch)
    _, exact = objectives.total(model, output, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, found = objectives.total(model, output, targets)
    assert found["MLM"] != exact["MLM"]  # the heads are matrices and may be coarse
    for name in [name for name in exact if name.startswith("contrast")]:
        torch.testing.assert_close(found[name], exact[name], rtol=1e-6, atol=1e-6)


def test_class_probabilities_are_compared_by_divergence():
    torch.manual_seed(0)
    place = torch.arange(4)
    goal, prediction, scores = torch.rand(4, 6).softmax(-1), torch.randn(4, 6), torch.rand(4, 1)
    goal[0] = torch.eye(6)[2]  # a certain class: cross-entropy
    target = {"image": Target(place, place, goal, probability=True)}
    found = objectives.masked_values({"image": prediction}, target, scores)["image"]
    for s in range(4):
        q = (prediction[s] * scores[s]).softmax(-1)
        slow = sum((p * (p / r).log()).item() for p, r in zip(goal[s], q, strict=True) if p > 0)
        assert found[s].item() == pytest.approx(slow, abs=1e-5)
    assert (
        objectives.masked_values({"image": goal.clamp(min=1e-9).log()}, target)["image"].abs().max()
        < 1e-5
    )


# --- terms of the total, on a model
# --------------------------------------------------------------------------------------------


def outputs(five, five_batch, settings=(), rate=0.3, **spec):
    spec = change(five, [(f"objective.{key}", value) for key, value in dict(settings).items()])
    torch.manual_seed(0)
    model = Model(replace(spec, empty=(2, 3))).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(
            parameter, std=0.2
        ) if parameter.ndim > 1 and name != "scores" else None
    tasks = model.spec.objective.tasks(model.spec.modalities)
    batch, targets = mask(
        five_batch(), FewWords(), torch.Generator().manual_seed(0), rate, None, tasks
    )
    return model, model(batch), targets


def contrasts(parts):
    return torch.stack([value for name, value in parts.items() if name.startswith("contrast")])


@pytest.mark.parametrize("harmony", ["mutual", "embedding", "free", "literal", "uniform"])
@pytest.mark.parametrize("acts_on", ["logits", "losses"])
@pytest.mark.parametrize("diagonal", ["encoded", "fused"])
def test_scores_act_where_they_are_told(five, five_batch, harmony, acts_on, diagonal):
    """Against the same terms put together by hand: S times logits (Eq. 3), or S times losses."""
    settings = {"harmony": harmony, "acts_on": acts_on, "diagonal": diagonal}
    model, output, targets = outputs(five, five_batch, settings)
    if harmony in ("free", "literal"):
        torch.nn.init.normal_(model.scores)
    _, parts = objectives.total(model, output, targets)
    make = {
        "mutual": lambda v: simcl.mutual(simcl.agreement(v), output.presence),
        "embedding": lambda v: simcl.harmony(simcl.agreement(v), output.presence),
        "free": lambda v: simcl.free(model.scores, output.presence),
        "literal": lambda v: simcl.literal(model.scores, output.presence),
        "uniform": lambda v: torch.ones(6, 5, 5),
    }[harmony]
    pooled, summary = (torch.stack(list(x.values()), 1) for x in (output.pooled, output.summary))
    s = make(pooled)
    values, count = simcl.infonce(
        pooled, output.presence, model.temperature, s if acts_on == "logits" else None
    )
    values = values if acts_on == "logits" else values * simcl.pair_scores(s)
    torch.testing.assert_close(contrasts(parts), values.sum(1) / count.sum(1))
    s, text = make(pooled if diagonal == "encoded" else summary)[:, 1, 1], targets["text"]
    prediction = model.predict(output, targets)["text"] * (
        s[text.product, None] if acts_on == "logits" else 1
    )
    value = F.cross_entropy(prediction, text.value, reduction="none") * (
        1 if acts_on == "logits" else s[text.product]
    )
    torch.testing.assert_close(parts["MLM"], value.mean())


def test_free_scores_equal_their_formula_and_start_at_one():
    torch.manual_seed(0)
    presence, matrix = (
        torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool(),
        torch.randn(4, 4),
    )
    found = simcl.free(matrix, presence)
    for b in range(4):
        there = [m for m in range(4) if presence[b, m]]
        for i in range(4):
            for j in range(4):
                both = i in there and j in there
                expected = (
                    len(there) * matrix[i, j].exp() / sum(matrix[i, k].exp() for k in there)
                    if both
                    else 0.0
                )
                assert found[b, i, j].item() == pytest.approx(float(expected), abs=1e-5)
    assert simcl.free(torch.zeros(4, 4), presence)[0].equal(torch.ones(4, 4))


def train(five, five_batch, settings, steps=40):
    """Contrast alone: the scores' smallest off-diagonal entry, the loss and the encoders' gradient
    at each step."""
    model, _, _ = outputs(
        five,
        five_batch,
        settings | {"masked": False, "temperature": 0.2, "learn_temperature": False},
    )
    optimizer, seen = torch.optim.Adam(model.parameters(), lr=0.02), []
    for _ in range(steps):
        output = model(five_batch())
        loss, _ = objectives.total(model, output, {})
        optimizer.zero_grad()
        loss.backward()
        pull = max(
            p.grad.abs().max().item()
            for n, p in model.named_parameters()
            if n != "scores" and p.grad is not None
        )
        s = simcl.scores(model, torch.stack(list(output.pooled.values()), 1), output.presence)[0]
        seen.append((s[~torch.eye(5, dtype=torch.bool)].min().item(), loss.item(), pull))
        optimizer.step()
    return seen


def test_the_papers_free_scores_degenerate_and_ours_do_not(five, five_batch):
    """Section 4.3 to the letter: S = 0, S softmax(S). See the audit's last tables."""
    on_losses = train(five, five_batch, {"harmony": "literal", "acts_on": "losses"})
    assert on_losses[0][2] == 0.0  # nothing pulls at the encoders
    assert (
        on_losses[-1][1] < -0.5 and on_losses[-1][0] < 0
    )  # then the total falls below zero: the contrast is maximised
    on_logits = train(five, five_batch, {"harmony": "literal"}, steps=1)
    assert on_logits[0][2] == 0.0
    for acts_on in ("logits", "losses"):
        ours = train(five, five_batch, {"harmony": "free", "acts_on": acts_on})
        assert (
            ours[0][2] > 0.01
            and min(score for score, _, _ in ours) > 0
            and min(loss for _, loss, _ in ours) >= 0
        )
        assert ours[-1][1] < 0.7 * ours[0][1]


def test_matching_equals_a_batch_with_swapped_titles(five, five_batch):
    model, output, targets = outputs(
        five, five_batch, {"matching": ("text",), "masked": False, "contrast": "none"}
    )
    loss, parts = objectives.total(model, output, targets)
    batch = five_batch()
    rolled = {
        key: value.roll(1, 0)
        for key, value in vars(batch.streams["text"]).items()
        if value is not None
    }
    swapped = replace(
        batch, streams={**batch.streams, "text": replace(batch.streams["text"], **rolled)}
    )
    own, other = model.match(output)["text"], model.match(model(swapped))["text"]
    slow = []
    for b in range(6):
        for logit, title, goal in ((own[b], b, 1.0), (other[b], (b - 1) % 6, 0.0)):
            if output.presence[
                title, 1
            ]:  # every product of the batch has something to match a title with
                slow.append(F.binary_cross_entropy_with_logits(logit, torch.tensor(goal)))
    assert list(parts) == ["matching_T"] and len(slow) == 10
    torch.testing.assert_close(loss, torch.stack(slow).mean())


def test_neighbours_are_the_chain_of_the_first_version(five, five_batch):
    model, output, targets = outputs(five, five_batch, {"pairs": "neighbours"})
    _, parts = objectives.total(model, output, targets)
    assert [name for name in parts if "_" in name] == [
        "contrast_I+T",
        "contrast_T+Tab",
        "contrast_Tab+V",
        "contrast_V+A",
    ]


@pytest.mark.parametrize("form", ["eq2", "released", "siglip", "symile", "gram"])
def test_every_form_trains_the_model(five, five_batch, form, monkeypatch):
    register(monkeypatch)
    model, output, targets = outputs(five, five_batch, {"contrast": form})
    loss, parts = objectives.total(model, output, targets)
    loss.backward()
    assert len(contrasts(parts)) == (5 if form in simcl.AT_ONCE else 10) and torch.isfinite(loss)
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0
        for p in model.parameters()
    )


def test_which_modalities_are_masked_and_what_is_predicted(five, five_batch):
    batch = five_batch()
    classes = torch.rand(6, 9, 7).softmax(-1)
    batch = replace(
        batch, streams={**batch.streams, "image": replace(batch.streams["image"], classes=classes)}
    )
    hidden, targets = mask(
        batch,
        FewWords(),
        torch.Generator().manual_seed(0),
        0.5,
        None,
        ("image", "text"),
        ("image",),
    )
    assert list(targets) == ["image", "text"]
    assert hidden.streams["audio"].tokens.equal(batch.streams["audio"].tokens)
    assert targets["image"].value.equal(classes[targets["image"].product, targets["image"].token])
    spec = replace(
        five,
        classes=(("image", 7),),
        objective=replace(five.objective, classes=("image",), masked=("image", "text")),
    )
    model = Model(spec)
    loss, parts = objectives.total(model, model(hidden), targets)
    loss.backward()
    assert [name for name in parts if name.isupper()] == ["MRP", "MLM"] and model.heads[
        "image"
    ].features.weight.grad.abs().sum() > 0


def test_one_product_cannot_be_contrasted(five):
    model, output, targets = outputs(five, lambda: make_five_batch(products=1))
    with pytest.raises(ValueError, match="give two or more in a batch"):
        objectives.total(model, output, targets)


# --- what is missing
# ------------------------------------------------------------------------------------------------


def test_imputing_is_a_stream_of_zeros_that_everyone_sees(five, five_batch):
    """As if the loader had put them there, and whatever else is in the batch."""
    spec = replace(five, missing="impute", empty=(2, 3))
    torch.manual_seed(0)
    model, batch = Model(spec).eval(), five_batch()
    output = model(batch)
    assert (
        output.presence.all()
        and output.fused["audio"].shape[1] == 81
        and output.fused["text"].shape[1] == 9
    )
    full = impute(batch, (2, 3))
    assert (full.streams["audio"].tokens[5] == 0).all() and full.streams["audio"].valid[5].all()
    assert (
        full.streams["text"].tokens[2].tolist() == [2, 3, 0, 0, 0, 0, 0, 0, 0]
        and full.streams["text"].valid[2].sum() == 2
    )
    assert (
        full.streams["image"].boxes[1, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]
        and full.streams["image"].boxes[1, 1:].sum() == 0
    )
    for stream, old in zip(
        full.streams.values(), batch.streams.values(), strict=True
    ):  # what is there stays as it is
        assert stream.tokens[:, : old.tokens.shape[1]][old.valid].equal(
            old.tokens[old.valid]
        ) and stream.valid[0].equal(
            F.pad(old.valid[0], (0, stream.valid.shape[1] - old.valid.shape[1]))
        )
    third = {
        n: replace(s, **{k: v[2:3] for k, v in vars(s).items() if v is not None})
        for n, s in batch.streams.items()
    }
    alone = read_out(model, model(replace(batch, streams=third)), "fused_first")
    torch.testing.assert_close(
        alone, read_out(model, output, "fused_first")[2:3], atol=1e-4, rtol=1e-4
    )
    only = model(batch.only(["text"]))
    masked = Model(five).eval()
    masked.load_state_dict(model.state_dict())
    assert not torch.allclose(
        read_out(model, only, "fused_first"),
        read_out(masked, masked(batch.only(["text"])), "fused_first"),
    )
    with pytest.raises(ValueError, match="unknown modality"):
        batch.only(["titel"])


def own_and_others(output):
    """Mean cosine of the fused summaries of two modalities, of one product and of two."""
    unit = F.normalize(torch.stack(list(output.summary.values()), 1), dim=-1)
    cosines = torch.einsum("bmd,cnd->bcmn", unit, unit)
    here = torch.einsum("bm,cn->bcmn", output.presence.float(), output.presence.float())
    here = here * (1 - torch.eye(unit.shape[1]))
    same = torch.eye(len(unit))[:, :, None, None]
    weights = (here * same, here * (1 - same))
    return [((cosines * weight).sum() / weight.sum()).item() for weight in weights]


@pytest.mark.parametrize("contrast", ["none", "infonce"])
@pytest.mark.parametrize("diagonal, apart", [("encoded", False), ("fused", True)])
def test_training_does_not_pull_a_products_modalities_apart(
    five, five_batch, contrast, diagonal, apart
):
    """The scores of SCALE do not; the released ones do: their diagonal, which sharpens every
    prediction, grows as the fused summaries turn from each other."""
    harmony = "embedding" if apart else "mutual"
    settings = {"harmony": harmony, "diagonal": diagonal, "contrast": contrast}
    spec = change(five, [(f"objective.{key}", value) for key, value in settings.items()])
    torch.manual_seed(0)
    model = Model(spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    tasks = spec.objective.tasks(spec.modalities)
    for step in range(40):
        generator = torch.Generator().manual_seed(step)
        batch, targets = mask(five_batch(0), FewWords(), generator, 0.3, None, tasks)
        optimizer.zero_grad()
        objectives.total(model, model(batch), targets)[0].backward()
        optimizer.step()
    with torch.no_grad():
        own, others = own_and_others(model(five_batch(0)))
    if not apart:
        assert own > others + 0.1, (own, others)
    elif contrast == "none":
        assert own < others, (own, others)
    else:  # the contrast holds against it
        assert own < 0.3, (own, others)


def test_the_contrast_of_the_pairs_is_added_up_as_told(five, five_batch):
    losses = {}
    for way in ("mean", "sum"):
        model, output, targets = outputs(five, five_batch, {"over_pairs": way})
        loss, parts = objectives.total(model, output, targets)
        masked = sum(value for name, value in parts.items() if not name.startswith("contrast"))
        losses[way] = loss - masked
        torch.testing.assert_close(losses[way], getattr(contrasts(parts), way)())
    torch.testing.assert_close(losses["sum"], 10 * losses["mean"])


def test_fused_loss_is_one_minus_the_cosine_with_what_all_say(five, five_batch):
    model, output, targets = outputs(five, five_batch, {"fused": 3.0})
    slow = []
    for b in range(len(output.presence)):
        there = [n for n, here in zip(output.valid, output.presence[b], strict=True) if here]
        target = sum(output.pooled[n][b] / output.pooled[n][b].norm() for n in there)
        vector = sum(output.summary[n][b] for n in there)
        slow.append(1 - (target @ vector) / (target.norm() * vector.norm()))
    loss, parts = objectives.total(model, output, targets)
    torch.testing.assert_close(parts["fused"], torch.stack(slow).mean())
    others = sum(v for name, v in parts.items() if name.isupper()) + contrasts(parts).mean()
    torch.testing.assert_close(loss, others + 3 * parts["fused"])
    # what it aims at does not move for its sake
    aims = {name: x.detach().requires_grad_() for name, x in output.pooled.items()}
    objectives.fused_loss(replace(output, pooled=aims)).backward()
    assert all(x.grad is None for x in aims.values())


def test_the_fusion_sees_what_it_is_given_and_the_contrast_all(five, five_batch):
    """As if the rest were absent; the summaries before the fusion are those of everything."""
    model, batch = Model(five).eval(), five_batch()
    given = torch.zeros(6, 5, dtype=torch.bool)
    given[:, 1:3] = True
    some, only = model(batch, given=given), model(batch.only(["text", "table"]))
    for name in model.spec.modalities:
        torch.testing.assert_close(some.summary[name], only.summary[name])
        torch.testing.assert_close(some.pooled[name], model(batch).pooled[name])


def test_modalities_are_drawn_for_a_share_of_the_products():
    """Half of what is there, at least one; the same by the same seed."""
    presence = torch.rand(400, 5, generator=torch.Generator().manual_seed(0)) < 0.8
    presence[:, 2] = True
    draw = lambda share, seed=1: drawn_modalities(  # noqa: E731
        presence, share, torch.Generator().manual_seed(seed)
    )
    assert draw(0.0).equal(presence) and draw(1.0).equal(draw(1.0))
    assert not draw(1.0).equal(draw(1.0, 2))
    for share in (0.25, 1.0):
        drawn = draw(share)
        assert not (drawn & ~presence).any() and drawn.any(1).all()
        fewer = (drawn != presence).any(1)[presence.sum(1) > 2].float().mean()
        assert abs(fewer - share * 0.9) < 0.12
    several = presence.sum(1) == 5
    assert abs(draw(1.0)[several].float().mean() - 0.5) < 0.05
