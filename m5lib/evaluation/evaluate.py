"""Plumbing between a catalogue's splits and the metrics of :mod:`m5lib.metrics`: vectors in, result
numbers out.

``query`` products are looked up in ``gallery``; the classifier learns from ``classifier`` and is
tested on ``query``; k-means runs on ``query`` with k = its number of classes. With
``split="validation"`` the validation products stand in for the queries: that is where choices are
made. Every number comes with the convention that it follows (:func:`m5lib.metrics.retrieval`).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from m5lib import metrics
from m5lib.catalogue import Catalogue, DataError
from m5lib.evaluation import stats
from m5lib.modalities import ordered

CUTS = (1, 5, 10)
TASKS = ("retrieval", "fine retrieval", "classification", "clustering")
#: k-means is run with each of these seeds and its scores are averaged: numbers then depend on the
#: vectors alone.
KMEANS_SEEDS = (0, 1, 2)
#: Columns of :func:`per_query`.
PER_QUERY = ("id", "task", "metric", "convention", "value")

#: Names of the modalities that the vectors of the queries were made from, and those of the gallery.
Given = tuple[Iterable[str], Iterable[str]]
#: (metric, convention) -> one value per product.
Values = dict[tuple[str, str], np.ndarray]


def _number(task: str, metric: str, convention: str, value: float) -> dict:
    return {"task": task, "metric": metric, "convention": convention, "value": float(value)}


def needed_rows(catalogue: Catalogue, split: str = "query") -> np.ndarray:
    """Rows whose vectors :func:`evaluate` reads, ascending."""
    names = (split, "gallery", "classifier", "fine_query", "fine_gallery")
    return np.unique(np.concatenate([catalogue.split(name) for name in names]))


def require_labels(catalogue: Catalogue) -> None:
    """Raises :class:`~m5lib.catalogue.DataError` where there is nothing to measure with: no query
    whose category is in the gallery."""
    if not len(catalogue.queries()[0]):
        raise DataError(
            f"{catalogue.name}: no query product has a label that is also in the gallery, so "
            "nothing can be measured; "
            "give the category of each product in a column 'label' (pre-training needs none)"
        )


def having(catalogue: Catalogue, names: Iterable[str]) -> np.ndarray:
    """(N,) whether each product has at least one of these modalities. Raises ``ValueError`` for an
    unknown one."""
    return catalogue.presence[list(ordered(names))].to_numpy().any(axis=1)


def _retrieved(
    catalogue: Catalogue,
    vectors,
    split: str,
    protocol: metrics.Protocol,
    gallery,
    given: Given | None,
):
    """Rows of the queries, their values, and how many queries were left out because they have
    nothing to ask with."""
    asking, _ = catalogue.queries(split)
    offered, same = catalogue.sought(split)
    findable, before = None, len(asking)
    if given is not None:
        asks, findable = having(catalogue, given[0]), having(catalogue, given[1])[offered]
        asking = asking[asks[asking]]
    if not len(asking):
        return asking, {}, before
    ids, gallery = catalogue.ids, vectors if gallery is None else gallery
    values = metrics.retrieval(
        vectors[asking],
        gallery,
        same[asking],
        same[offered],
        ids[asking],
        ids[offered],
        protocol,
        offered,
        findable,
        CUTS,
    )
    return asking, values, before - len(asking)


def retrieval(
    catalogue: Catalogue,
    vectors,
    split: str = "query",
    protocol: metrics.Protocol = "usual",
    gallery=None,
    given: Given | None = None,
) -> list[dict]:
    """mAP@K and Prec@K, K = 1, 5, 10, by a protocol of :func:`m5lib.metrics.retrieval`; queries
    with nothing to find are left out.

    With ``split="fine_query"`` a match is a listing of the same product, and the task ``fine
    retrieval``.

    Args:
        vectors: (N, D), dense or sparse, one row per product of the catalogue: what the queries ask
            with.
        gallery: (N, D): what the gallery answers with, where that differs (image -> text); by
            default the same vectors.
        given: the modalities that either side was made from. A query that has none of its side's
            cannot ask: it is left out, and a number ``queries left out`` says how many were. A
            gallery product that has none of its side's cannot be found: it is never listed, but
            counts among the R products sought, so that the gallery is the same for all sets of
            modalities. Where it is not said (None), every product asks and can be found, with zeros
            where it has nothing.
    """
    task = "fine retrieval" if split == "fine_query" else "retrieval"
    _, values, left_out = _retrieved(catalogue, vectors, split, protocol, gallery, given)
    found = [_number(task, *name, part.mean()) for name, part in values.items()]
    if given is not None and values:
        found.append(
            _number(task, "queries left out", "none of the modalities asked with", left_out)
        )
    return found


def _classified(
    catalogue: Catalogue, vectors, split: str, seed: int, predicted: np.ndarray | None
) -> tuple[np.ndarray, Values]:
    """Rows of the tested products, and whether each was classified correctly."""
    labelled = np.array([label is not None for label in catalogue.labels])
    train, test = (
        rows[labelled[rows]] for rows in (catalogue.split("classifier"), catalogue.split(split))
    )
    labels = catalogue.labels
    if not len(test) or len(set(labels[train])) < 2:
        return test[:0], {}
    if predicted is None:
        found = metrics.linear_probe(vectors[train], labels[train], vectors[test], seed)
        return test, {("accuracy", "linear probe"): metrics.correct(found, labels[test])}
    found = {("accuracy", "fine-tuned head"): metrics.correct(predicted[test], labels[test])}
    if predicted.ndim == 2:
        found["accuracy@5", "fine-tuned head"] = metrics.correct(predicted[test], labels[test], 5)
    return test, found


def classification(
    catalogue: Catalogue,
    vectors,
    split: str = "query",
    seed: int = 0,
    predicted: np.ndarray | None = None,
) -> list[dict]:
    """Accuracy of a linear probe, or of a fine-tuned head: top-1 ``accuracy`` and top-5
    ``accuracy@5``.

    Products without a label are left out. For ``predicted`` see :func:`evaluate`.
    """
    return [
        _number("classification", *name, part.mean())
        for name, part in _classified(catalogue, vectors, split, seed, predicted)[1].items()
    ]


def clustering(catalogue: Catalogue, vectors, split: str = "query") -> list[dict]:
    """NMI and purity of k-means, k = number of classes among the products clustered; the mean over
    :data:`KMEANS_SEEDS`, each one start."""
    rows = np.array(
        [row for row in catalogue.split(split) if catalogue.labels[row] is not None], dtype=int
    )
    labels = catalogue.labels[rows]
    if not (k := len(set(labels))):
        return []
    part = metrics.in_span(vectors[rows])
    runs = [metrics.cluster(part, k, seed) for seed in KMEANS_SEEDS]
    convention = f"k-means k={k}, mean of seeds {' '.join(map(str, KMEANS_SEEDS))}"
    scores = {"NMI": metrics.nmi, "purity": metrics.purity}
    return [
        _number("clustering", name, convention, np.mean([score(run, labels) for run in runs]))
        for name, score in scores.items()
    ]


def evaluate(
    catalogue: Catalogue,
    vectors,
    which: Iterable[str] = TASKS,
    split: str = "query",
    seed: int = 0,
    predicted: np.ndarray | None = None,
    protocols: Iterable[metrics.Protocol] = ("usual",),
) -> list[dict]:
    """All numbers of the chosen tasks: dicts with ``task, metric, convention, value``.

    Args:
        vectors: (N, D), dense or sparse, one row per product of the catalogue; only
            :func:`needed_rows` are read.
        predicted: labels from a fine-tuned head (:func:`m5lib.lab.runs.tuned_vectors`), measured
            instead of a linear probe: (N, P), best first, or (N,), which gives no top-5 accuracy.
        protocols: of retrieval. ``released`` is meant for the paper's read-out.
    """
    found = []
    for task in which:
        if task in ("retrieval", "fine retrieval"):
            for protocol in protocols:
                found += retrieval(
                    catalogue, vectors, split if task == "retrieval" else "fine_query", protocol
                )
        elif task == "classification":
            found += classification(catalogue, vectors, split, seed, predicted)
        else:
            found += clustering(catalogue, vectors, split)
    return found


def per_query(
    catalogue: Catalogue,
    vectors,
    which: Iterable[str] = TASKS[:3],
    split: str = "query",
    seed: int = 0,
    predicted: np.ndarray | None = None,
    protocols: Iterable[metrics.Protocol] = ("usual",),
    gallery=None,
    given: Given | None = None,
) -> pd.DataFrame:
    """What every query (or classified product) contributes to the numbers of :func:`evaluate`:
    their mean is the number.

    For paired tests (:func:`m5lib.evaluation.stats.paired_bootstrap`). Clustering has no value per
    product.
    Arguments as in :func:`evaluate` and :func:`retrieval`.

    Returns:
        columns :data:`PER_QUERY`, in the catalogue's order within each metric; ``value`` is AP@K
        for ``mAP@K``, 0 or 1 for accuracy.
    """
    found = []
    for task in which:
        parts = []
        if task == "classification":
            parts = [_classified(catalogue, vectors, split, seed, predicted)]
        elif task in ("retrieval", "fine retrieval"):
            asked = split if task == "retrieval" else "fine_query"
            parts = [
                _retrieved(catalogue, vectors, asked, protocol, gallery, given)[:2]
                for protocol in protocols
            ]
        for rows, values in parts:
            for (metric, convention), value in values.items():
                columns = (
                    catalogue.ids[rows],
                    task,
                    metric,
                    convention,
                    np.asarray(value, dtype=float),
                )
                found.append(pd.DataFrame(dict(zip(PER_QUERY, columns, strict=True))))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(PER_QUERY))


def paired(ours: pd.Series, theirs: pd.Series) -> pd.DataFrame:
    """Values of two models by product id -> columns ``ours``, ``theirs``; one that only one of the
    two could ask (other modalities) is left out."""
    return pd.concat({"ours": ours, "theirs": theirs}, axis=1, join="inner")


def difference(
    pairs: Sequence[pd.DataFrame], shared: bool, draws: int = 10_000
) -> stats.Difference:
    """One metric of two models compared query by query over seeds
    (:func:`m5lib.evaluation.stats.paired_bootstrap`).

    Args:
        pairs: what :func:`paired` says of each seed.
        shared: whether all seeds ask the same queries: one catalogue, trained on with other seeds.
            They are then one sample of queries, not several. False where each seed has products of
            its own, as the shop does, though their ids may be alike.

    Raises:
        ValueError: a seed without a common query, or ``shared`` where the queries differ from seed
            to seed.
    """
    if shared and any(set(p.index) != set(pairs[0].index) for p in pairs):
        raise ValueError("the queries differ from seed to seed: shared=False")
    sides = [
        [p[side].loc[pairs[0].index if shared else p.index].to_numpy(float) for p in pairs]
        for side in ("ours", "theirs")
    ]
    return stats.paired_bootstrap(*(np.stack(side) if shared else side for side in sides), draws)
