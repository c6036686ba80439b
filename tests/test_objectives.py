import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from m5lib import contrast, objectives
from m5lib.masking import Target


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
            cosine = [(1 + F.cosine_similarity(vectors[b, i], vectors[b, j], dim=0).item()) / 2 for j in there]
            total = sum(math.exp(c) for c in cosine)
            row = [c * math.exp(c) / total for c in cosine]
            norm = math.sqrt(sum(r * r for r in row))
            for j, r in zip(there, row, strict=True):
                scores[b, i, j] = r / norm
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_harmony_equals_its_formula(seed):
    vectors, presence = random_case(seed)
    fast = objectives.harmony(objectives.agreement(vectors), presence)
    torch.testing.assert_close(fast.double(), slow_harmony(vectors, presence), atol=1e-6, rtol=1e-5)


def test_harmony_limits():
    same = torch.ones(1, 5, 3)
    all_there = torch.ones(1, 5, dtype=torch.bool)
    torch.testing.assert_close(objectives.harmony(objectives.agreement(same), all_there), torch.full((1, 5, 5), 5**-0.5))
    torch.testing.assert_close(objectives.harmony(torch.eye(5)[None], all_there), torch.eye(5)[None])
    none = objectives.harmony(torch.ones(1, 5, 5), torch.zeros(1, 5, dtype=torch.bool))
    assert none.abs().sum() == 0


def slow_infonce(vectors, presence, temperature, scores):
    products, modalities, _ = vectors.shape
    values = {}
    for i in range(modalities):
        for j in range(i + 1, modalities):
            for b in range(products):
                if not (presence[b, i] and presence[b, j]):
                    continue
                both = 0.0
                for anchor, other in ((i, j), (j, i)):
                    s = 1.0 if scores is None else scores[b, anchor, other].item()
                    logit = {
                        k: s * F.cosine_similarity(vectors[b, anchor], vectors[k, other], dim=0).item() / temperature
                        for k in range(products)
                        if presence[k, other]
                    }
                    both += -math.log(math.exp(logit[b]) / sum(math.exp(v) for v in logit.values())) / 2
                values[i, j, b] = both
    return values


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [False, True])
def test_infonce_equals_a_slow_loop_with_random_presence(seed, weighted):
    vectors, presence = random_case(seed)
    scores = objectives.harmony(objectives.agreement(vectors), presence) if weighted else None
    fast, count = contrast.infonce(vectors, presence, torch.tensor(0.3), scores)
    slow = slow_infonce(vectors, presence, 0.3, scores)
    pairs = torch.triu_indices(4, 4, 1).T.tolist()
    assert int(count.sum()) == len(slow)
    for p, (i, j) in enumerate(pairs):
        for b in range(5):
            assert fast[p, b].item() == pytest.approx(slow.get((i, j, b), 0.0), abs=1e-5)


def test_scores_are_never_negative():
    """A negative score would reward vectors that point away from each other."""
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]])
    assert objectives.harmony(objectives.agreement(opposite), torch.ones(1, 3, dtype=torch.bool)).min() == 0


def test_infonce_limits():
    products = 8
    all_there = torch.ones(products, 2, dtype=torch.bool)
    perfect = torch.eye(products)[:, None].expand(-1, 2, -1)
    assert contrast.infonce(perfect, all_there, torch.tensor(0.01))[0].max() < 1e-6
    alike = torch.ones(products, 2, 3)
    torch.testing.assert_close(contrast.infonce(alike, all_there, torch.tensor(0.1))[0], torch.full((1, products), math.log(products)))
    alone = contrast.infonce(alike[:1], all_there[:1], torch.tensor(0.1))[0]
    assert alone.item() == 0.0  # one product: nothing to tell it from


def test_infonce_gradient():
    vectors, presence = random_case(0, products=3, modalities=3, width=3)
    scores = torch.rand(3, 3, 3)

    def loss(x):
        return contrast.infonce(x, presence, torch.tensor(0.5), scores)[0]

    vectors = vectors.float().requires_grad_()  # computed in float32 on purpose: autocast must not touch it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # not double
        torch.autograd.gradcheck(loss, (vectors,), eps=1e-2, atol=1e-2, rtol=5e-2)


def test_masked_values_equal_their_formulas():
    torch.manual_seed(0)
    product, token = torch.tensor([0, 1, 1]), torch.tensor([2, 1, 3])
    words, pixels = torch.randn(3, 7), torch.randn(3, 4)
    goal_words, goal_pixels = torch.tensor([1, 6, 0]), torch.randn(3, 4)
    targets = {"image": Target(product, token, goal_pixels), "text": Target(product, token, goal_words)}
    scores = torch.tensor([[0.5, 0.9], [0.7, 1.3]])
    found = objectives.masked_values({"image": pixels, "text": words}, targets, scores)
    for s in range(3):
        b = product[s]
        logits = words[s] * scores[b, 1]
        assert found["text"][s].item() == pytest.approx(-(logits[goal_words[s]] - logits.exp().sum().log()).item(), abs=1e-5)
        assert found["image"][s].item() == pytest.approx(((pixels[s] * scores[b, 0] - goal_pixels[s]) ** 2).mean().item(), abs=1e-5)
    uniform = objectives.masked_values({"text": torch.zeros(3, 7)}, {"text": targets["text"]})["text"]
    torch.testing.assert_close(uniform, torch.full((3,), math.log(7)))
    assert objectives.masked_values({"image": goal_pixels}, targets)["image"].sum() == 0


def test_a_batch_without_masked_tokens_has_a_finite_loss(five, five_batch):
    from m5lib.masking import Vocabulary, mask
    from m5lib.model import Model

    model = Model(five)
    batch, targets = mask(five_batch(), Vocabulary(50, 4), torch.Generator(), rate=0.0)
    loss, parts = objectives.total(model, model(batch), targets)
    loss.backward()
    assert torch.isfinite(loss) and parts["MLM"] == 0 and loss > 0  # the contrast is left


def test_total_is_the_sum_of_masked_tasks_and_the_mean_of_pairs(five, five_batch):
    from m5lib.masking import Vocabulary, mask
    from m5lib.model import Model

    model = Model(five).eval()
    batch, targets = mask(five_batch(), Vocabulary(50, 4), torch.Generator().manual_seed(0), 0.3)
    loss, parts = objectives.total(model, model(batch), targets)
    pairs = torch.stack([v for k, v in parts.items() if k.startswith("contrast")])
    tasks = torch.stack([v for k, v in parts.items() if k.isupper()])
    torch.testing.assert_close(loss, tasks.sum() + pairs.mean())
