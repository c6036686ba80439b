"""Products of one run explained, and the explanations checked: what ``12_attribution`` does for
each of its seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from m5lib.catalogue import DataError, Rows
from m5lib.embeddings import DEFAULT, embeddings
from m5lib.evaluation import stats
from m5lib.explain import attention, attribution, faithfulness
from m5lib.explain.attribution import STEPS, Attribution, Shapley, Target, Tokens
from m5lib.explain.faithfulness import Curves
from m5lib.lab import recording, runs
from m5lib.lab.study import sized
from m5lib.metrics import rank
from m5lib.modalities import MODALITIES, codes
from m5lib.model import Model
from m5lib.models.finetune import Classifier
from m5lib.shop import listings
from m5lib.streams import Batch, Streams

TARGETS = ("category", "similarity")
#: Ways to score tokens. The first adds up to F(x) - F(baseline); the last two ask only who reads
#: whom, whatever the target.
METHODS = ("integrated gradients", "gradient × input", "attention", "rollout")
TASK = "attribution"
#: How many products are explained, by profile.
PRODUCTS = {"tiny": 16, "small": 64, "full": 512}


@dataclass(frozen=True)
class Explained:
    """Products, what of them is explained, and their scores.

    Attributes:
        context: the columns that result rows share; ``state`` is the model's.
        methods: method (:data:`METHODS`) -> scores of the tokens.
        classifier: of the class logit; None for a similarity, which needs no labels.
        model: pre-trained, as it was before fine-tuning.
        means: mean tokens of the training products; empty where the baseline is "absent".
        truth: of a shop; None for other products.
    """

    context: dict
    classifier: Classifier | None
    model: Model
    streams: Streams
    batch: Batch
    target: Target
    scores: Attribution
    methods: dict[str, Tokens]
    worth: Shapley
    means: dict[str, torch.Tensor]
    truth: pd.DataFrame | None

    @property
    def ids(self) -> np.ndarray:
        """Of the products."""
        return self.streams.catalogue.ids[self.batch.rows]

    @property
    def labels(self) -> np.ndarray:
        """Categories of the products."""
        return self.streams.catalogue.labels[self.batch.rows]

    @property
    def sets(self) -> dict[str, tuple[str, ...]]:
        """Each modality alone, and all of them: codes -> names."""
        names = self.streams.modalities
        return {codes([name]): (name,) for name in names} | (
            {codes(names): names} if len(names) > 1 else {}
        )

    def of(self, place: int) -> dict[str, np.ndarray]:
        """Scores of one of the products by integrated gradients: modality -> (L,)."""
        return {name: x[place].cpu().numpy() for name, x in self.scores.tokens.items()}

    def shares(self, place: int) -> dict[str, float]:
        """Shapley values of one of the products: modality -> value."""
        return dict(zip(self.streams.modalities, self.worth.values[place].tolist(), strict=True))

    def row(
        self,
        metric: str,
        value: float | np.floating | torch.Tensor,
        variant: str = "",
        convention: str = "",
        names: str = "",
    ) -> dict:
        """A result row."""
        number = {
            "task": TASK,
            "metric": metric,
            "convention": convention,
            "variant": variant,
            "value": float(value),
        }
        return recording.rows([number | ({"modalities": names} if names else {})], self.context)[0]


def chosen(
    streams: Streams, classifier: Classifier | None, products: int | Sequence[str], seed: int
) -> np.ndarray:
    """Rows of so many query products, drawn by seed, with a category that the classifier knows; or
    of those with the ids given.

    Raises :class:`~m5lib.catalogue.DataError` where there is no such product.
    """
    catalogue = streams.catalogue
    if not isinstance(products, int):
        return rows_of(streams, products)
    rows = catalogue.split("query")
    if classifier is not None:
        rows = np.array(
            [row for row in rows if str(catalogue.labels[row]) in set(classifier.labels)], dtype=int
        )
    if not len(rows):
        raise DataError(
            f"{catalogue.name}: no query product has a label that the classifier knows; give "
            "labels, or explain the similarity"
        )
    return np.sort(np.random.default_rng(seed).permutation(rows)[:products])


def rows_of(streams: Streams, ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Rows of the products with these ids. Raises :class:`~m5lib.catalogue.DataError` for an
    unknown one."""
    place = {product: row for row, product in enumerate(streams.catalogue.ids)}
    if unknown := sorted(set(ids) - set(place)):
        raise DataError(
            f"{streams.catalogue.name} has no product {unknown[:3]}; ids are such as "
            f"{next(iter(place))!r}"
        )
    return np.array([place[product] for product in ids], dtype=int)


def explained(
    data: str,
    profile: str,
    seed: int,
    target: str = "category",
    baseline: str = "absent",
    wanted: int | Sequence[str] = 0,
    against: str = "",
    steps: int = STEPS,
    products: int = 0,
) -> Explained:
    """Load or make the run of ``04_pretrain`` and its fine-tuning with these parameters, and
    explain products with it.

    Args:
        target: ``category``, the logit of the product's own category (fine-tuned model), or
            ``similarity``, to the product ``against`` or, if that is empty, to each product's
            nearest in the gallery (pre-trained model).
        baseline: one of :data:`m5lib.explain.attribution.BASELINES`.
        wanted: how many products (0: :data:`PRODUCTS` of the profile), or ids.
        products: at most so many are read, evenly over the splits, of data other than the shop; 0:
            what the profile says.
    """
    for value, known in ((target, TARGETS), (baseline, attribution.BASELINES)):
        if value not in known:
            raise ValueError(f"unknown {value!r}: known are {known}")
    size, job = sized(profile, products), runs.Job(profile=profile, seed=seed)
    streams = runs.streams_of(*runs.load(data, size, seed), size)
    run = runs.pretrained(job, streams)
    classifier, device = (
        runs.finetuned(run, job, streams) if target == "category" else None,
        runs.best_device(),
    )
    rows = chosen(streams, classifier, wanted or PRODUCTS[profile], seed)
    batch = streams.batch(rows).to(device)
    if classifier is not None:
        explain = attribution.class_logit(classifier, streams.catalogue.labels[rows])
    else:
        explain = alike(run.model, streams, rows, [against] * len(rows) if against else [])[0]
    means = (
        attribution.means(explain.model, streams, streams.catalogue.split("train"))
        if baseline == "mean"
        else {}
    )
    found = attribution.integrated_gradients(explain, batch, means or None, steps)
    methods = {
        "integrated gradients": found.tokens,
        "gradient × input": attribution.gradient_times_input(explain, batch),
    }
    methods |= attention.attention_scores(explain.model, batch)
    context = run.context("12_attribution", job, streams.catalogue) | {
        "state": "finetuned" if classifier else "pretrained"
    }
    truth = listings.truth(listings.folder_of(profile, seed)) if data == "shop" else None
    worth = attribution.shapley(explain, batch)
    return Explained(
        context, classifier, run.model, streams, batch, explain, found, methods, worth, means, truth
    )


def alike(
    model: Model, streams: Streams, rows: Rows, ids: Sequence[str] = ()
) -> tuple[Target, np.ndarray]:
    """The similarity of products to others, by default each one's nearest in the gallery; the
    target, and the rows of the others."""
    catalogue = streams.catalogue
    if ids:
        others = rows_of(streams, ids)
        return attribution.similarity(
            model, embeddings(model, streams, others, readouts=(DEFAULT,))[DEFAULT]
        ), others
    gallery = catalogue.split("gallery")
    own, offered = (
        embeddings(model, streams, part, readouts=(DEFAULT,))[DEFAULT] for part in (rows, gallery)
    )
    best = rank(own, offered, 1, catalogue.ids[rows], catalogue.ids[gallery])[:, 0]
    return attribution.similarity(model, offered[best]), gallery[best]


# --- checks
# ------------------------------------------------------------------------------------------------


class Removed(NamedTuple):
    """Curves of one set of modalities over the products that have at least two of its tokens, and
    what they gain on random orders."""

    scored: Curves
    random: Curves
    gains: dict[str, np.ndarray]


def removed(
    e: Explained, method: str = "integrated gradients", draws: int = 3
) -> dict[str, Removed]:
    """Deletion and insertion of the tokens of each modality, the others held, and of all: codes ->
    what happened."""
    found = {}
    for label, names in e.sets.items():
        scores = {name: e.methods[method][name] for name in names}
        enough = (faithfulness.ranks(scores, e.batch)[1] > 1).cpu().numpy()
        if not enough.any():
            continue
        drawn = [
            faithfulness.curves(e.target, e.batch, faithfulness.random_scores(e.batch, names, seed))
            for seed in range(draws)
        ]
        ours = faithfulness.curves(e.target, e.batch, scores)
        mean = Curves(*(np.mean(x, axis=0) for x in zip(*drawn, strict=True)))
        gains = {kind: values[enough] for kind, values in faithfulness.gains(ours, drawn).items()}
        found[label] = Removed(
            Curves(*(x[enough] for x in ours)), Curves(*(x[enough] for x in mean)), gains
        )
    return found


def pooled(found: Sequence[Mapping[str, Removed]]) -> dict[str, dict[str, np.ndarray]]:
    """Curves of all seeds together, for :func:`m5lib.figures.attribution.deletion_insertion`."""
    each = {}
    for label in found[0]:
        kept = [part[label] for part in found if label in part]
        sides = {"": [r.scored for r in kept], "random ": [r.random for r in kept]}
        each[label] = {
            a + kind: np.concatenate([getattr(c, kind) for c in side])
            for a, side in sides.items()
            for kind in Curves._fields
        }
    return each


def tested(found: Sequence[Mapping[str, Removed]]) -> pd.DataFrame:
    """Paired test of the areas against random order, over seeds and products: by how much is
    deletion lower, insertion higher."""
    rows = []
    for label in found[0]:
        for kind in Curves._fields:
            gains = [part[label].gains[kind] for part in found if label in part]
            test = stats.paired_bootstrap(gains, [np.zeros(len(gain)) for gain in gains])
            verdict = (
                "beats random"
                if test.low > 0
                else "worse than random"
                if test.high < 0
                else "undecided"
            )
            alone = sum(
                stats.paired_bootstrap([gain], [np.zeros(len(gain))]).low > 0 for gain in gains
            )
            rows.append(
                (label, kind, *test[:4], f"{alone} of {len(gains)}", sum(map(len, gains)), verdict)
            )
    return pd.DataFrame(
        rows,
        columns=[
            "tokens of",
            "curve",
            "gain",
            "low",
            "high",
            "p",
            "seeds alone",
            "products",
            "verdict",
        ],
    ).set_index(["tokens of", "curve"])


def soundness(e: Explained, products: int = 16, steps: int = 20) -> dict:
    """Infidelity of the gradient methods, sensitivity of integrated gradients, and for a class
    logit the cascade of weights drawn anew.

    On the first few products only.

    Returns:
        ``infidelity`` frame, method x share of the tokens that are hidden; ``sensitivity`` (B,);
        ``cascade`` frame, what was drawn anew x kind of correlation, empty for a similarity.
    """
    few = slice(0, products)
    batch = e.streams.batch(e.batch.rows[few]).to(runs.best_device())
    target, width = e.target.of(few), {name: s.valid.shape[1] for name, s in batch.streams.items()}
    whole = attribution.path(target, batch, e.means or None)
    cut = {
        m: {name: x[few, : width[name]] for name, x in tokens.items()}
        for m, tokens in e.methods.items()
    }
    adding = {m: cut[m] for m in METHODS[:2]}
    infidelity = {
        method: {share: faithfulness.infidelity(whole, x, share) for share in (0.1, 0.5)}
        for method, x in adding.items()
    }
    sensitivity = faithfulness.sensitivity(whole.of(slice(0, products // 2)), steps=steps)
    return {
        "infidelity": pd.DataFrame(infidelity).T,
        "sensitivity": sensitivity,
        "cascade": _cascade(e, batch, target, steps),
    }


def _cascade(e: Explained, batch: Batch, target: Target, steps: int) -> pd.DataFrame:
    if e.classifier is None:
        return pd.DataFrame()

    def scored(wanted: Target) -> dict[str, Tokens]:
        found = attribution.integrated_gradients(wanted, batch, e.means or None, steps).tokens
        return {"integrated gradients": found} | attention.attention_scores(wanted.model, batch)

    before, found = scored(target), {"nothing": {}}
    for label, classifier in faithfulness.randomised(e.classifier):
        after = scored(attribution.class_logit(classifier, e.streams.catalogue.labels[batch.rows]))
        found[label] = {name: (before[name], after[name]) for name in before}
    rows = {}
    for label, pairs in found.items():
        pairs = pairs or {name: (x, x) for name, x in before.items()}
        signed = {
            name: faithfulness.rank_correlation(*pair, batch)
            for name, pair in pairs.items()
            if name != "attention"
        }
        first = faithfulness.rank_correlation(*pairs["integrated gradients"], batch, absolute=True)
        rows[label] = {
            name: float(np.nanmean(x))
            for name, x in ({"integrated gradients, magnitude": first} | signed).items()
        }
    return pd.DataFrame(rows).T


def pointed(e: Explained) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    """The pointing game on a shop, products that have something to choose: (modality, method) ->
    hits, and modality -> chance."""
    carrying, hits, chance = faithfulness.carriers(e.streams, e.batch, e.truth), {}, {}
    for method, scores in e.methods.items():
        for name, (hit, level) in faithfulness.pointing(scores, carrying, e.batch).items():
            contest = np.isfinite(level)
            if contest.any():
                hits[name, method], chance[name] = hit[contest], level[contest]
    return hits, chance


def pointing_table(found: Sequence[tuple[dict, dict]]) -> pd.DataFrame:
    """Pointing accuracy beside chance with a paired test over seeds and products: modality x
    method."""
    rows = []
    for name, method in found[0][0]:
        parts = [
            (hits[name, method], chance[name]) for hits, chance in found if (name, method) in hits
        ]
        test = stats.paired_bootstrap([a for a, _ in parts], [b for _, b in parts])
        means = [np.mean([x.mean() for x in side]) for side in zip(*parts, strict=True)]
        rows.append(
            (name, method, *means, test.low, test.high, test.p, sum(len(a) for a, _ in parts))
        )
    columns = ["modality", "method", "hits", "chance", "low", "high", "p", "products"]
    return pd.DataFrame(rows, columns=columns).set_index(["modality", "method"])


def pointing_frames(found: Sequence[tuple[dict, dict]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pointing accuracy and chance by seed, for :func:`m5lib.figures.attribution.pointing`."""
    hits = [
        (name, method, n, x.mean())
        for n, (part, _) in enumerate(found)
        for (name, method), x in part.items()
    ]
    chance = [(name, n, x.mean()) for n, (_, part) in enumerate(found) for name, x in part.items()]
    return pd.DataFrame(hits, columns=["modality", "method", "seed", "value"]), pd.DataFrame(
        chance, columns=["modality", "seed", "value"]
    )


# --- tables
# ------------------------------------------------------------------------------------------------


def worths(e: Explained) -> pd.DataFrame:
    """Shapley values, product x modality; blank where the product lacks it."""
    values = pd.DataFrame(
        e.worth.values.cpu().numpy(), columns=list(e.streams.modalities), index=e.ids
    )
    return values.where(e.batch.presence.cpu().numpy())


def by_category(found: Iterable[Explained], most: int = 14) -> pd.DataFrame:
    """Mean Shapley value of each modality over the products of a category that have it, for the
    categories with most products."""
    parts = [
        worths(e).assign(
            category=["(no category)" if label is None else label for label in e.labels]
        )
        for e in found
    ]
    whole = pd.concat(parts, ignore_index=True)
    kept = whole["category"].value_counts().index[:most]
    return whole.groupby("category")[[c for c in whole if c != "category"]].mean().loc[kept]


def shares_by_method(e: Explained) -> pd.DataFrame:
    """Share of each modality in the magnitudes of all scores, mean over products: method x
    modality; and in those of Shapley values."""
    rows = {}
    for method, tokens in e.methods.items():
        size = torch.stack([x.abs().sum(1) for x in tokens.values()], dim=1)
        rows[method] = (size / size.sum(1, keepdim=True).clamp(min=1e-12)).mean(0).tolist()
    size = e.worth.values.abs()
    rows["Shapley"] = (size / size.sum(1, keepdim=True).clamp(min=1e-12)).mean(0).tolist()
    return pd.DataFrame(rows, index=[MODALITIES[name].code for name in e.streams.modalities]).T


def agreement(e: Explained) -> pd.Series:
    """Mean rank correlation of the other methods' scores with integrated gradients, over all tokens
    of a product."""
    first = e.methods["integrated gradients"]
    return pd.Series(
        {
            m: np.nanmean(faithfulness.rank_correlation(first, e.methods[m], e.batch))
            for m in METHODS[1:]
        }
    )


def numbers(
    e: Explained,
    steps: int,
    baseline: str,
    gone: Mapping[str, Removed],
    sound: Mapping,
    points: tuple[dict, dict] | None,
) -> list[dict]:
    """All result rows of a seed."""
    error, first = e.scores.error.cpu().numpy(), METHODS[0]
    how = f"of |F(x) - F(baseline)|, baseline {baseline}, {steps} steps"
    found = [
        e.row("completeness error, median", np.median(error), first, how),
        e.row("completeness error, worst", error.max(), first, how),
    ]
    found += [
        e.row(
            "efficiency error, worst", e.worth.error.max(), "Shapley", "|sum - (F(all) - F(none))|"
        )
    ]
    there = e.batch.presence.cpu().numpy()
    for place, name in enumerate(e.streams.modalities):
        if there[:, place].any():
            value = e.worth.values[:, place].cpu().numpy()[there[:, place]].mean()
            found.append(
                e.row(
                    e.target.name,
                    value,
                    "Shapley",
                    "mean over products that have it",
                    codes([name]),
                )
            )
    for label, part in gone.items():
        for side, curve in ((first, part.scored), ("random order", part.random)):
            for kind, area in zip(Curves._fields, curve.areas(), strict=True):
                found.append(
                    e.row(
                        f"{kind} area",
                        area.mean(),
                        side,
                        f"{e.target.name}, tokens of these, others held",
                        label,
                    )
                )
    for method, row in sound["infidelity"].iterrows():
        found += [
            e.row(
                "infidelity", x, method, f"over that of nothing, {share:.0%} of the tokens hidden"
            )
            for share, x in row.items()
        ]
    found.append(e.row("sensitivity, max", np.mean(sound["sensitivity"]), first, "radius 0.02"))
    for label, row in sound["cascade"].iterrows():
        found += [
            e.row("rank correlation", x, kind, f"weights drawn anew down to: {label}")
            for kind, x in row.items()
            if np.isfinite(x)
        ]
    hits, chance = points or ({}, {})
    for (name, method), x in hits.items():
        found.append(
            e.row(
                "pointing accuracy", x.mean(), method, "token with the highest score", codes([name])
            )
        )
    for name, x in chance.items():
        found.append(
            e.row(
                "pointing accuracy", x.mean(), "chance", "share of carrying tokens", codes([name])
            )
        )
    return found
