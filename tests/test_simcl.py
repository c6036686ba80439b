"""Each contrastive form against a slow loop from its formula, on random vectors with random
presence, and at its limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from own_forms import FORMS as AT_ONCE

from m5lib import simcl

TAU, BIAS = 0.3, torch.tensor(-1.5, dtype=torch.float64)
FORMS = simcl.FORMS | AT_ONCE


def random_case(seed, products=6, modalities=4, width=5):
    torch.manual_seed(seed)
    presence = torch.rand(products, modalities) < 0.7
    presence[0] = True
    return torch.randn(products, modalities, width, dtype=torch.float64), presence


def run(name, vectors, presence, scores=None, tau=TAU):
    return FORMS[name](
        vectors,
        presence,
        torch.tensor(tau, dtype=torch.float64),
        scores,
        BIAS if name == "siglip" else None,
    )


class Slow:
    """One loop per form: value of pair (i, j) or anchor m, and product b; None where it does not
    count."""

    def __init__(self, vectors, presence, scores):
        self.unit, self.here, self.count = F.normalize(vectors, dim=-1), presence, len(vectors)
        self.scores = (
            torch.ones(self.count, vectors.shape[1], vectors.shape[1]) if scores is None else scores
        )

    def logit(self, b, i, k, j, score=None):
        """Product b in modality i against product k in modality j."""
        score = self.scores[b, i, j] if score is None else score
        return (score * (self.unit[b, i] @ self.unit[k, j]) / TAU).item()

    def infonce(self, i, j, b):
        found = 0.0
        for x, y in ((i, j), (j, i)):
            below = sum(
                math.exp(self.logit(b, x, k, y)) for k in range(self.count) if self.here[k, y]
            )
            found -= math.log(math.exp(self.logit(b, x, b, y)) / below) / 2
        return found

    def eq2(self, i, j, b):
        score, below = (self.scores[b, i, j] + self.scores[b, j, i]) / 2, 0.0
        for x, y in ((i, j), (j, i)):
            below += sum(
                math.exp(self.logit(b, x, k, y, score))
                for k in range(self.count)
                if k != b and self.here[k, y]
            )
        return -math.log(math.exp(self.logit(b, i, b, j, score)) / below) if below else None

    def released(self, i, j, b):
        found = 0.0
        for x, y in ((i, j), (j, i)):
            score = self.scores[b, x, y]
            others = [
                (k, m)
                for m in (i, j)
                for k in range(self.count)
                if (k, m) != (b, x) and self.here[k, m]
            ]
            below = sum(math.exp(self.logit(b, x, k, m, score)) for k, m in others)
            found -= math.log(math.exp(self.logit(b, x, b, y, score)) / below) / 2
        return found

    def siglip(self, i, j, b):
        found = 0.0
        for x, y in ((i, j), (j, i)):
            for k in range(self.count):
                if self.here[k, y]:
                    logit = self.logit(b, x, k, y) + BIAS.item()
                    found += math.log1p(math.exp(-logit if k == b else logit)) / 2
        return found

    def group(self, b):
        members = [m for m in range(self.here.shape[1]) if self.here[b, m]]
        return members, [k for k in range(self.count) if all(self.here[k, m] for m in members)]

    def weight(self, b, m, members):
        return sum(self.scores[b, m, o].item() for o in members if o != m) / (len(members) - 1)

    def symile(self, m, b):
        members, candidates = self.group(b)
        others, logits = [o for o in members if o != m], []
        for place, k in enumerate(candidates):
            product = self.unit[b, m].clone()
            for n, o in enumerate(others):
                product *= self.unit[b if k == b else candidates[(place + n) % len(candidates)], o]
            logits.append(product.sum().item() * self.weight(b, m, members) / TAU)
        return -math.log(math.exp(logits[candidates.index(b)]) / sum(map(math.exp, logits)))

    def gram(self, m, b):
        members, candidates = self.group(b)

        def logit(anchor, rest):
            span = torch.stack(
                [self.unit[anchor, m], *(self.unit[rest, o] for o in members if o != m)]
            )
            volume = torch.linalg.det(span @ span.T + 1e-4 * torch.eye(len(span))).sqrt().item()
            return -volume * self.weight(b, m, members) / TAU

        rows = [[logit(b, k) for k in candidates], [logit(k, b) for k in candidates]]
        return sum(-math.log(math.exp(logit(b, b)) / sum(map(math.exp, row))) / 2 for row in rows)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_form_equals_a_slow_loop(name, weighted, seed):
    vectors, presence = random_case(seed)
    scores = simcl.harmony(simcl.agreement(vectors), presence) if weighted else None
    values, count = run(name, vectors, presence, scores)
    slow, sides = Slow(vectors, presence, scores), presence.shape[1]
    keys = (
        [(m,) for m in range(sides)]
        if name in AT_ONCE
        else [(i, j) for i in range(sides) for j in range(i + 1, sides)]
    )
    for row, key in enumerate(keys):
        for b in range(len(vectors)):
            there = all(presence[b, m] for m in key) and presence[b].sum() > 1
            expected = getattr(slow, name)(*key, b) if there else None
            assert bool(count[row, b]) == (expected is not None)
            assert values[row, b].item() == pytest.approx(expected or 0.0, abs=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_what_is_absent_changes_nothing(name):
    vectors, presence = random_case(5)
    before = run(name, vectors, presence)
    noise = torch.where(presence[..., None], vectors, 50 * torch.randn_like(vectors))
    more = torch.cat([noise, torch.randn(2, *vectors.shape[1:], dtype=torch.float64)])
    after = run(
        name, more, torch.cat([presence, torch.zeros(2, presence.shape[1], dtype=torch.bool)])
    )
    torch.testing.assert_close(after[0][:, : len(vectors)], before[0])
    assert not after[1][:, len(vectors) :].any() and after[0][:, len(vectors) :].abs().sum() == 0


@pytest.mark.parametrize("name", FORMS)
def test_how_long_the_vectors_are_says_nothing(name):
    """Also of very short ones: only directions are compared."""
    vectors, presence = random_case(8)
    for length in (1e-6, 1e6):
        torch.testing.assert_close(
            run(name, length * vectors, presence)[0], run(name, vectors, presence)[0]
        )


def test_a_pairs_score_is_the_mean_of_both_directions():
    scores = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    found, pairs = simcl.pair_scores(scores), [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for row, (i, j) in zip(found, pairs, strict=True):
        for b in range(3):
            assert row[b].item() == pytest.approx(((scores[b, i, j] + scores[b, j, i]) / 2).item())


@pytest.mark.parametrize(
    "name", [name for name in FORMS if name != "symile"]
)  # whose negatives depend on both orders
def test_neither_order_matters(name):
    vectors, presence = random_case(6)
    values, count = run(name, vectors, presence)
    turned = run(name, vectors.flip(0), presence.flip(0))
    torch.testing.assert_close(turned[0].flip(1), values)
    other = run(name, vectors.flip(1), presence.flip(1))
    torch.testing.assert_close(other[0].flip(0).sum(1), values.sum(1)) if name in AT_ONCE else None
    torch.testing.assert_close(other[0].sum(), values.sum())
    assert int(other[1].sum()) == int(count.sum())


def test_symile_of_two_modalities_is_infonce():
    vectors, there = random_case(7, modalities=2)[0], torch.ones(6, 2, dtype=torch.bool)
    torch.testing.assert_close(
        run("symile", vectors, there)[0].sum(0) / 2, run("infonce", vectors, there)[0][0]
    )


def test_symile_sees_what_no_pair_shows():
    """Its third modality is the product of the others: every pair is independent, all three
    together are not."""
    torch.manual_seed(0)
    signs = torch.randint(0, 2, (64, 2, 16)) * 2.0 - 1
    vectors = torch.cat([signs, signs.prod(1, keepdim=True)], dim=1).double()
    there = torch.ones(64, 3, dtype=torch.bool)
    # unit vectors of 16 signs: a matching product is 16 / 16^1.5 = 1/4
    assert run("symile", vectors, there, tau=0.02)[0].mean() < 0.3
    assert (
        run("infonce", vectors, there, tau=0.02)[0].mean() > 4
    )  # no better than chance, log 64 = 4.16


LIMITS = {
    "infonce": math.log(8),
    "eq2": math.log(14),
    "released": math.log(15),
    "siglip": math.log1p(math.exp(-(1 / TAU - 1.5))) + 7 * math.log1p(math.exp(1 / TAU - 1.5)),
    "symile": math.log(8),
    "gram": math.log(8),
}


@pytest.mark.parametrize("name", FORMS)
def test_identical_vectors_are_at_chance(name):
    alike, there = torch.ones(8, 2, 3, dtype=torch.float64), torch.ones(8, 2, dtype=torch.bool)
    values, count = run(name, alike, there)
    assert count.all()
    torch.testing.assert_close(values, torch.full_like(values, LIMITS[name]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_perfect_vectors(name):
    perfect, there = (
        torch.eye(8, dtype=torch.float64)[:, None].expand(-1, 2, -1),
        torch.ones(8, 2, dtype=torch.bool),
    )
    values, _ = run(name, perfect, there, tau=0.02)
    if (
        name == "eq2"
    ):  # without the positive below the line there is no bottom: -1 / τ + log 2 (N - 1)
        torch.testing.assert_close(values, torch.full_like(values, -50 + math.log(14)))
    elif name == "siglip":
        assert (
            values.max() < 7 * math.log1p(math.exp(-1.5)) + 1e-6
        )  # the others' bias is all that is left
    else:
        assert values.max() < 1e-6


@pytest.mark.parametrize("name", FORMS)
def test_gradient(name):
    vectors, presence = random_case(1, products=4, modalities=3, width=4)
    scores = torch.rand(4, 3, 3, dtype=torch.float64).requires_grad_()
    tau = torch.tensor(0.5, dtype=torch.float64).requires_grad_()
    bias = BIAS if name == "siglip" else None
    assert torch.autograd.gradcheck(
        lambda x, t, s: FORMS[name](x, presence, t, s, bias)[0],
        (vectors.requires_grad_(), tau, scores),
    )


def test_coinciding_vectors_have_a_finite_gradient():
    same = torch.ones(4, 5, 3, requires_grad=True)
    values, _ = FORMS["gram"](same, torch.ones(4, 5, dtype=torch.bool), torch.tensor(0.1))
    values.sum().backward()
    assert torch.isfinite(same.grad).all()


@pytest.mark.parametrize("seed", range(3))
def test_mutual_scores_equal_their_formula(seed):
    """Product by product: agreement, on the diagonal its mean with the others, times the softmax of
    each row, over the mean of all; ones where one modality is alone."""
    vectors, presence = random_case(seed)
    presence[1] = torch.tensor([True, False, False, False])
    fast = simcl.mutual(simcl.agreement(vectors), presence)
    for b in range(len(vectors)):
        there = [m for m in range(vectors.shape[1]) if presence[b, m]]
        unit = F.normalize(vectors[b], dim=-1)
        g = {(i, j): (1 + (unit[i] @ unit[j]).item()) / 2 for i in there for j in there}
        for i in there:
            others = [g[i, j] for j in there if j != i]
            g[i, i] = sum(others) / max(1, len(others))
        s = {}
        for i in there:
            below = sum(math.exp(g[i, k]) for k in there)
            s |= {(i, j): g[i, j] * math.exp(g[i, j]) / below for j in there}
        mean = sum(s.values()) / max(1, len(s))
        for i in range(vectors.shape[1]):
            for j in range(vectors.shape[1]):
                expected = (s[i, j] / mean if len(there) > 1 else 1.0) if (i, j) in s else 0.0
                assert fast[b, i, j].item() == pytest.approx(expected, abs=1e-9)


def test_no_loss_changes_mutual_scores_and_what_agrees_alike_weighs_one():
    vectors, presence = random_case(0)
    vectors.requires_grad_()
    assert not simcl.mutual(simcl.agreement(vectors), presence).requires_grad
    alike = torch.ones(2, 4, 5, dtype=torch.float64)
    scores = simcl.mutual(simcl.agreement(alike), torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(scores, torch.ones_like(scores))


def test_the_released_diagonal_falls_as_modalities_come_to_agree():
    """From 1 to 1 / sqrt(M): the fault that ``mutual`` does not have."""
    there, diagonal = torch.ones(1, 5, dtype=torch.bool), []
    for cosine in (-1.0, 0.0, 0.5, 1.0):
        alike = (1 + torch.full((1, 5, 5), cosine)) / 2
        alike = alike.where(~torch.eye(5, dtype=torch.bool), torch.ones(()))
        diagonal.append(simcl.harmony(alike, there)[0, 0, 0].item())
    assert diagonal[0] == pytest.approx(1) and diagonal[-1] == pytest.approx(5**-0.5)
    assert diagonal == sorted(diagonal, reverse=True)


def test_mutual_scores_are_never_negative():
    """Even from plain cosines: a negative score would turn a pair round."""
    vectors, presence = random_case(1)
    assert (simcl.cosine(vectors) < 0).any()
    assert (simcl.mutual(simcl.cosine(vectors), presence) >= 0).all()
