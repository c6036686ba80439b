"""Are attributions faithful: what happens to F when the tokens go that they point at, and does an
attribution follow the weights at all?

On the synthetic shop the answer is known: which tokens carry the category (:func:`carriers`), and
whether the token with the highest score is among them (:func:`pointing`).
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from m5lib.explain.attention import attention, read_by_summaries, rollout
from m5lib.explain.attribution import (
    STEPS,
    Path,
    Target,
    Tokens,
    class_logit,
    content,
    fitting,
    integrated,
    integrated_gradients,
)
from m5lib.modalities import codes
from m5lib.model import Model
from m5lib.models.finetune import Classifier
from m5lib.models.words import word_numbers
from m5lib.streams import Batch, Streams, with_summary

#: Shares of the tokens that are deleted or inserted.
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


# --- deletion and insertion


def left_with(batch: Batch, keep: Mapping[str, Tensor]) -> Batch:
    """The products with only the tokens to keep, (B, L) of some modalities; the others are not
    valid, so nobody reads them. Of ``keep`` only tokens with content are asked for
    (:func:`m5lib.explain.attribution.content`).

    The summary of a feature stream becomes the mean of what is left, and a modality of which no
    token is left is absent, ``[CLS]`` and all: the model is given a product as there might be one.
    """
    streams = dict(batch.streams)
    for name, kept in keep.items():
        stream = streams[name]
        own = content(stream)
        valid = stream.valid & (~own | kept) & (own & kept).any(dim=1, keepdim=True)
        tokens = stream.tokens if stream.entity is not None else with_summary(stream.tokens, valid)
        streams[name] = replace(stream, valid=valid, tokens=tokens)
    return replace(batch, streams=streams)


class Curves(NamedTuple):
    """F (B, K) when the best share of the tokens is deleted, and when all but the best share is;
    columns follow :data:`SHARES`."""

    deletion: Float[np.ndarray, "B K"]
    insertion: Float[np.ndarray, "B K"]

    def areas(self) -> tuple[np.ndarray, np.ndarray]:
        """(B,) mean height of each curve. Faithful: low for deletion, high for insertion."""
        middles = ((x[:, 1:] + x[:, :-1]) / 2 for x in self)  # shares are evenly spaced
        return tuple(x.mean(axis=1) for x in middles)


def ranks(
    scores: Mapping[str, Tensor], batch: Batch
) -> tuple[dict[str, Int[Tensor, "B L"]], Int[Tensor, " B"]]:
    """Place of each token by its score, the highest 0, among those with content of all the
    modalities given; and how many there are."""
    own = torch.cat([content(batch.streams[name]) for name in scores], dim=1)
    flat = torch.cat([x.float() for x in scores.values()], dim=1).masked_fill(~own, -torch.inf)
    place = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    parts = place.split([x.shape[1] for x in scores.values()], dim=1)
    return dict(zip(scores, parts, strict=True)), own.sum(1)


def curves(target: Target, batch: Batch, scores: Mapping[str, Tensor]) -> Curves:
    """Deletion and insertion curves (Petsiuk et al. 2018, arXiv 1806.07421) of each product, by the
    scores of some modalities. Tokens of the others are held; a product without tokens of these
    modalities has flat curves."""
    place, count = ranks(scores, batch)

    def value(share: float, best: bool) -> Tensor:
        cut = (share * count).round()[:, None]
        keep = {name: (x < cut) == best for name, x in place.items()}
        return target.value(left_with(batch, keep))

    whole, none = target.value(batch), value(0.0, True)
    deleted = [whole, *(value(share, False) for share in SHARES[1:-1]), none]
    inserted = [none, *(value(share, True) for share in SHARES[1:-1]), whole]
    return Curves(*(torch.stack(x, dim=1).cpu().numpy() for x in (deleted, inserted)))


def random_scores(batch: Batch, names: Iterable[str], seed: int) -> Tokens:
    """A random order of the tokens."""
    generator = torch.Generator().manual_seed(seed)
    masks = {name: batch.streams[name].valid for name in names}
    return {n: torch.rand(x.shape, generator=generator).to(x.device) for n, x in masks.items()}


def gains(scored: Curves, drawn: Sequence[Curves]) -> dict[str, np.ndarray]:
    """By how much a scored order beats the mean of random ones, for each product."""
    random = [np.mean(x, axis=0) for x in zip(*(curve.areas() for curve in drawn), strict=True)]
    deletion, insertion = scored.areas()
    return {"deletion": random[0] - deletion, "insertion": insertion - random[1]}


class Removed(NamedTuple):
    """Curves of one set of modalities over the products that have at least two of its tokens, and
    by how much they beat random orders."""

    scored: Curves
    random: Curves
    gains: dict[str, np.ndarray]


def removed(target: Target, batch: Batch, scores: Tokens) -> dict[str, Removed]:
    """Deletion and insertion of the tokens of each modality, the others held, and of all, against
    three random orders: codes -> what happened."""
    names, studies = tuple(scores), {}
    for chosen in dict.fromkeys([*((name,) for name in names), names]):
        part = {name: scores[name] for name in chosen}
        enough = (ranks(part, batch)[1] > 1).cpu().numpy()
        if not enough.any():
            continue
        orders = (random_scores(batch, chosen, seed) for seed in range(3))
        drawn = [curves(target, batch, order) for order in orders]
        ours = curves(target, batch, part)
        mean = Curves(*(np.mean(x, axis=0) for x in zip(*drawn, strict=True)))
        beaten = {kind: x[enough] for kind, x in gains(ours, drawn).items()}
        sides = (Curves(*(x[enough] for x in side)) for side in (ours, mean))
        studies[codes(chosen)] = Removed(*sides, beaten)
    return studies


# --- infidelity, sensitivity, randomisation


def infidelity(whole: Path, scores: Mapping[str, Tensor], share: float = 0.5) -> float:
    """Infidelity (Yeh et al. 2019, arXiv 1901.09392; Captum's ``infidelity``), relative to that of
    an attribution of nothing.

    Tokens are set to their baseline at random, each with the chance ``share``; an attribution that
    adds up says by how much F falls: the scores of these tokens. Mean over products and ten draws
    of (sum of these scores - fall)², over that of fall²: 0 is exact, 1 no better than saying
    nothing. ``scores`` may go on beyond the path, in products and in padding.
    """
    from captum.metrics import infidelity as measure

    def hide(inputs: Tensor | tuple, baselines: Tensor | tuple) -> tuple[tuple, tuple]:
        if torch.is_tensor(inputs):  # Captum unpacks the inputs of a model that reads one modality
            inputs, baselines = (inputs,), (baselines,)
        draws, hidden = [], []
        for x, blank in zip(inputs, baselines, strict=True):
            draw = torch.rand(x.shape[:2], generator=generator) < share
            draws.append(draw.to(x.device)[..., None].expand_as(x))
            hidden.append(torch.where(draws[-1], blank, x))
        return tuple(d.to(x.dtype) for d, x in zip(draws, inputs, strict=True)), tuple(hidden)

    missed = []
    for factor in (1.0, 0.0):
        generator = torch.Generator().manual_seed(0)
        # a token's score is dealt out over its width: only the sum is read
        dealt = tuple(
            factor * scores[n][: len(x), : x.shape[1], None].expand_as(x) / x.shape[-1]
            for n, x in zip(whole.names, whole.inputs, strict=True)
        )
        values = measure(
            whole.forward,
            hide,
            whole.inputs,
            dealt,
            baselines=whole.baselines,
            additional_forward_args=whole.rest,
            n_perturb_samples=10,
            max_examples_per_batch=4 * len(dealt[0]),
        )
        missed.append(float(values.mean()))
    return missed[0] / max(missed[1], 1e-12)


def sensitivity(
    whole: Path, radius: float = 0.02, samples: int = 4, steps: int = STEPS
) -> np.ndarray:
    """Maximal sensitivity of integrated gradients (Yeh et al. 2019; Captum's ``sensitivity_max``):
    (B,) the largest relative change when all inputs move by at most ``radius``."""
    from captum.metrics import sensitivity_max

    def explain(inputs, baselines, additional_forward_args):
        moved = whole._replace(inputs=inputs, baselines=baselines, rest=additional_forward_args)
        parts = fitting(lambda part, size: integrated(part, steps, size), moved, 512)
        return tuple(torch.cat(x) for x in zip(*parts, strict=True))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = sensitivity_max(
            explain,
            whole.inputs,
            perturb_radius=radius,
            n_perturb_samples=samples,
            baselines=whole.baselines,
            additional_forward_args=whole.rest,
        )
    return values.cpu().numpy()


def randomised(classifier: Classifier) -> Iterator[tuple[str, Classifier]]:
    """The classifier with ever more of its weights drawn anew, from the top down: the cascade of
    Adebayo et al. 2018, arXiv 1810.03292. Yields what was added (``out``, ``hidden``, each stage's
    layers, ``embeddings``) and a copy with all parts up to it drawn anew."""
    hidden, dropout = classifier.hidden.out_features, classifier.dropout.p
    with torch.random.fork_rng():
        torch.manual_seed(2**31)  # no seed that the weights themselves began with
        fresh = Classifier(Model(classifier.model.spec), classifier.labels, hidden, dropout)
    device, anew = next(classifier.parameters()).device, copy.deepcopy(classifier)
    parts: list[tuple[str, tuple[str, ...]]] = [("out", ("out.",)), ("hidden", ("hidden.",))]
    for number, stack in reversed(list(enumerate(classifier.model.stages))):
        for layer in reversed(range(stack.stage.layers)):
            names = (f"model.stages.{number}.blocks.{owner}.{layer}." for owner in stack.blocks)
            parts.append((f"{stack.stage.kind} {layer + 1}", tuple(names)))
    new = fresh.to(device).state_dict()
    for label, prefixes in [*parts, ("embeddings", ("model.embeddings.",))]:
        drawn = {key: value for key, value in new.items() if key.startswith(prefixes)}
        anew.load_state_dict(drawn, strict=False)
        yield label, copy.deepcopy(anew)


def rank_correlation(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], batch: Batch, absolute: bool = False
) -> np.ndarray:
    """(B,) Spearman's rank correlation of two scorings of the tokens with content, within each
    modality (across them any two agree which has the larger numbers); the mean over modalities.
    Those with fewer than three tokens, or constant scores, do not count; NaN where none is left."""
    values = np.full((len(a), len(batch.rows)), np.nan)
    for place, name in enumerate(a):
        own = content(batch.streams[name]).cpu().numpy()
        sides = [x[name].float().cpu().numpy() for x in (a, b)]
        for n in np.flatnonzero(own.sum(1) > 2):
            pair = (side[n, own[n]] for side in sides)
            x, y = (rankdata(np.abs(side) if absolute else side) for side in pair)
            if x.std() > 0 and y.std() > 0:
                values[place, n] = np.corrcoef(x, y)[0, 1]
    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1)
    return np.where(known.any(0), mean, np.nan)


def cascade(
    classifier: Classifier,
    labels: Sequence[str] | np.ndarray,
    batch: Batch,
    mean: Mapping | None,
    steps: int,
) -> pd.DataFrame:
    """Rank correlation with the trained classifier's own scores while ever more of its weights are
    drawn anew (:func:`randomised`): what was drawn anew x kind of correlation."""

    def scored(classifier: Classifier) -> dict[str, Tokens]:
        target = class_logit(classifier, labels)
        along = integrated_gradients(target, batch, mean or None, steps)
        weights = rollout(attention(classifier.model, batch))
        read = read_by_summaries(classifier.model, batch, weights)
        return {"integrated gradients": along.tokens, "rollout": read}

    before, rows = scored(classifier), {}
    after = {"nothing": before} | {label: scored(anew) for label, anew in randomised(classifier)}
    for label, scores in after.items():
        pairs = {method: (before[method], scores[method], batch) for method in before}
        size = rank_correlation(*pairs["integrated gradients"], absolute=True)
        signed = {method: rank_correlation(*pair) for method, pair in pairs.items()}
        all_kinds = {"integrated gradients, magnitude": size} | signed
        rows[label] = {kind: float(np.nanmean(x)) for kind, x in all_kinds.items()}
    return pd.DataFrame(rows).T


# --- the known answer


def _told(streams: Streams, batch: Batch, name: str, place: int, ending: str, true) -> np.ndarray:
    """Which tokens of a product, its place in the batch, carry the category, by what a column of
    the truth says of it; ``ending`` is that of the column."""
    stream = batch.streams[name]
    length = stream.valid.shape[1]
    if ending == "box":  # a region points at its middle
        x1, y1, x2, y2 = stream.boxes[place, :, :4].cpu().numpy().T
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        return (true[0] <= x) & (x <= true[2]) & (true[1] <= y) & (y <= true[3])
    if ending == "words":  # pieces of the words that name it
        row = int(batch.rows[place])
        content_of = streams.catalogue.products[row].contents[name]
        numbers = word_numbers(content_of, streams.tokenizer)[: length - 1]
        named = np.zeros(length, dtype=bool)
        named[1 : len(numbers) + 1] = np.isin(numbers, list(true))
        return named
    if ending == "pairs":  # pieces of property and value
        return np.isin(stream.entity[place].cpu().numpy() // 2, list(true))
    # spans of seconds: tokens whose middle lies in one; none where a token is no stretch of time
    middle = (streams.features[name].step or np.nan) * (np.arange(length) - 0.5)  # summary first
    return np.any([(start <= middle) & (middle < end) for start, end in true], axis=0)


def carriers(
    streams: Streams, batch: Batch, truth: pd.DataFrame
) -> dict[str, Bool[np.ndarray, "B L"]]:
    """Which tokens of a shop's products carry the category, by its truth
    (:func:`m5lib.shop.listings.truth`): the box of the product, the words and pairs that name the
    category, the seconds of making and using. Other words (usage, material) hint at it too, and do
    not count; a product whose title or table does not name it carries it in no token of that."""
    carrying = {}
    for name in batch.streams:
        endings = [e for e in ("box", "words", "pairs", "spans") if f"{name}_{e}" in truth]
        for ending in endings:
            own = content(batch.streams[name]).cpu().numpy()
            carrying[name] = np.zeros_like(own)
            for place, row in enumerate(batch.rows):
                true = truth.at[streams.catalogue.ids[row], f"{name}_{ending}"]
                if own[place].any() and len(true):
                    right = _told(streams, batch, name, place, ending, true)
                    carrying[name][place] = right & own[place]
    return carrying


def pointing(
    scores: Mapping[str, Tensor], carrying: Mapping[str, np.ndarray], batch: Batch
) -> dict[str, tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]]:
    """The pointing game (Zhang et al. 2018, arXiv 1608.00507) on tokens: modality -> whether the
    one with the highest score carries the category, with ties the share of them that do; and
    chance, the share of the tokens that do; (B,) each. NaN where there is nothing to choose: none
    carries the category, or all."""
    games = {}
    for name, right in carrying.items():
        own, value = content(batch.streams[name]).cpu().numpy(), scores[name].float().cpu().numpy()
        count = np.maximum(own.sum(1), 1)
        chance = (right & own).sum(1) / count
        top = own & (value >= np.where(own, value, -np.inf).max(axis=1, keepdims=True))
        hit = (top & right).sum(1) / np.maximum(top.sum(1), 1)
        contest = (chance > 0) & (chance < 1)
        games[name] = np.where(contest, hit, np.nan), np.where(contest, chance, np.nan)
    return games


def pointed(
    streams: Streams, batch: Batch, truth: pd.DataFrame, methods: Mapping[str, Tokens]
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    """The pointing game on a shop, over products with something to choose: (modality, method) ->
    hits, and modality -> chance."""
    carrying, hits, chance = carriers(streams, batch, truth), {}, {}
    for method, scores in methods.items():
        for name, (hit, level) in pointing(scores, carrying, batch).items():
            contest = np.isfinite(level)
            if contest.any():
                hits[name, method], chance[name] = hit[contest], level[contest]
    return hits, chance
