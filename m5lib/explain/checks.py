"""The checks of ``12_attribution``, each for many products and seeds at once: deletion of each
modality's tokens, weights drawn anew, the pointing game."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from m5lib.explain import attention, attribution, faithfulness
from m5lib.explain.attribution import Target, Tokens
from m5lib.explain.faithfulness import Curves
from m5lib.modalities import codes
from m5lib.models.finetune import Classifier
from m5lib.streams import Batch, Streams


class Removed(NamedTuple):
    """Curves of one set of modalities over the products that have at least two of its tokens, and
    by how much they beat random orders."""

    scored: Curves
    random: Curves
    gains: dict[str, np.ndarray]


def removed(target: Target, batch: Batch, scores: Tokens, draws: int = 3) -> dict[str, Removed]:
    """Deletion and insertion of the tokens of each modality, the others held, and of all: codes ->
    what happened. ``draws``: how many random orders."""
    names, studies = tuple(scores), {}
    sets = [(name,) for name in names] + ([names] if len(names) > 1 else [])
    for chosen in sets:
        part = {name: scores[name] for name in chosen}
        enough = (faithfulness.ranks(part, batch)[1] > 1).cpu().numpy()
        if not enough.any():
            continue
        orders = [faithfulness.random_scores(batch, chosen, seed) for seed in range(draws)]
        drawn = [faithfulness.curves(target, batch, order) for order in orders]
        ours = faithfulness.curves(target, batch, part)
        mean = Curves(*(np.mean(x, axis=0) for x in zip(*drawn, strict=True)))
        gains = {kind: x[enough] for kind, x in faithfulness.gains(ours, drawn).items()}
        sides = (Curves(*(x[enough] for x in side)) for side in (ours, mean))
        studies[codes(chosen)] = Removed(*sides, gains)
    return studies


def cascade(
    classifier: Classifier,
    labels: Sequence[str] | np.ndarray,
    batch: Batch,
    mean: Mapping | None,
    steps: int,
) -> pd.DataFrame:
    """Rank correlation with the trained classifier's own scores while ever more of its weights are
    drawn anew (:func:`m5lib.explain.faithfulness.randomised`).

    Returns:
        what was drawn anew x kind of correlation.
    """

    def scored(classifier: Classifier) -> dict[str, Tokens]:
        target = attribution.class_logit(classifier, labels)
        along = attribution.integrated_gradients(target, batch, mean or None, steps)
        others = attention.attention_scores(classifier.model, batch)
        return {"integrated gradients": along.tokens, "rollout": others["rollout"]}

    before, rows = scored(classifier), {}
    after = {"nothing": before} | {
        label: scored(anew) for label, anew in faithfulness.randomised(classifier)
    }
    for label, scores in after.items():
        pairs = {method: (before[method], scores[method], batch) for method in before}
        size = faithfulness.rank_correlation(*pairs["integrated gradients"], absolute=True)
        signed = {method: faithfulness.rank_correlation(*pair) for method, pair in pairs.items()}
        all_kinds = {"integrated gradients, magnitude": size} | signed
        rows[label] = {kind: float(np.nanmean(x)) for kind, x in all_kinds.items()}
    return pd.DataFrame(rows).T


def pointed(
    streams: Streams, batch: Batch, truth: pd.DataFrame, methods: Mapping[str, Tokens]
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    """The pointing game on a shop, over products with something to choose: (modality, method) ->
    hits, and modality -> chance."""
    carrying, hits, chance = faithfulness.carriers(streams, batch, truth), {}, {}
    for method, scores in methods.items():
        for name, (hit, level) in faithfulness.pointing(scores, carrying, batch).items():
            contest = np.isfinite(level)
            if contest.any():
                hits[name, method], chance[name] = hit[contest], level[contest]
    return hits, chance
