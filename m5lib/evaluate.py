"""Plumbing between a catalogue's splits and the metrics of :mod:`m5lib.tasks`: vectors in, result numbers out.

``query`` products are looked up in ``gallery``; the classifier learns from ``classifier`` and is tested on ``query``; k-means runs on
``query`` with k = its number of classes. With ``split="validation"`` the validation products stand in for the queries: that is
where choices are made.
"""

from collections.abc import Iterable

import numpy as np

from m5lib import tasks
from m5lib.data import Catalogue, DataError

CUTS = (1, 5, 10)
TASKS = ("retrieval", "fine retrieval", "classification", "clustering")


def _number(task: str, metric: str, convention: str, value: float) -> dict:
    return {"task": task, "metric": metric, "convention": convention, "value": float(value)}


def needed_rows(catalogue: Catalogue, split: str = "query") -> np.ndarray:
    """Rows whose vectors :func:`evaluate` reads, ascending."""
    names = (split, "gallery", "classifier", "fine_query", "fine_gallery")
    return np.unique(np.concatenate([catalogue.split(name) for name in names]))


def require_labels(catalogue: Catalogue) -> None:
    """Raises :class:`~m5lib.data.DataError` where there is nothing to measure with: no query whose category is in the gallery."""
    if not len(catalogue.queries()[0]):
        raise DataError(
            f"{catalogue.name}: no query product has a label that is also in the gallery, so nothing can be measured; "
            "give the category of each product in a column 'label' (pre-training needs none)"
        )


def retrieval(catalogue: Catalogue, vectors, split: str = "query") -> list[dict]:
    """mAP@K (both conventions) and Prec@K, K = 1, 5, 10, by cosine. Queries with nothing to find are left out (:meth:`queries`).

    With ``split="fine_query"`` a match is a listing of the same product, and the task ``fine retrieval``.
    """
    queries, _ = catalogue.queries(split)
    gallery, same = catalogue.sought(split)
    if not len(queries):
        return []
    ids, task = catalogue.ids, "fine retrieval" if split == "fine_query" else "retrieval"
    ranking = tasks.rank(vectors[queries], vectors[gallery], max(CUTS), ids[queries], ids[gallery])
    matched, positives = tasks.hits(ranking, same[queries], same[gallery])
    found = []
    for k in CUTS:
        for convention in ("min_k_r", "hits"):
            values = tasks.average_precision(matched, positives, k, convention)
            found.append(_number(task, f"mAP@{k}", convention, values.mean()))
        found.append(_number(task, f"Prec@{k}", "k", tasks.precision(matched, k).mean()))
    return found


def classification(catalogue: Catalogue, vectors, split: str = "query", seed: int = 0, predicted=None) -> list[dict]:
    """Accuracy of a linear probe, or of labels that a fine-tuned head predicted; products without a label are left out."""
    labelled = np.array([label is not None for label in catalogue.labels])
    train, test = (rows[labelled[rows]] for rows in (catalogue.split("classifier"), catalogue.split(split)))
    if not len(test) or len(set(catalogue.labels[train])) < 2:
        return []
    if predicted is not None:
        return [_number("classification", "accuracy", "fine-tuned head", tasks.accuracy(predicted[test], catalogue.labels[test]))]
    found = tasks.linear_probe(vectors[train], catalogue.labels[train], vectors[test], seed)
    return [_number("classification", "accuracy", "linear probe", tasks.accuracy(found, catalogue.labels[test]))]


def clustering(catalogue: Catalogue, vectors, split: str = "query", seed: int = 0) -> list[dict]:
    """NMI and purity of k-means, k = number of classes among the products clustered."""
    rows = np.array([row for row in catalogue.split(split) if catalogue.labels[row] is not None], dtype=int)
    labels = catalogue.labels[rows]
    if not (k := len(set(labels))):
        return []
    clusters = tasks.cluster(vectors[rows], k, seed)
    convention = f"k-means k={k} seed={seed}"
    return [
        _number("clustering", "NMI", convention, tasks.nmi(clusters, labels)),
        _number("clustering", "purity", convention, tasks.purity(clusters, labels)),
    ]


def evaluate(
    catalogue: Catalogue, vectors, which: Iterable[str] = TASKS, split: str = "query", seed: int = 0, predicted: np.ndarray | None = None
) -> list[dict]:
    """All numbers of the chosen tasks: dicts with ``task, metric, convention, value``.

    Args:
        vectors: (N, D), dense or sparse, one row per product of the catalogue; only :func:`needed_rows` are read.
        predicted: (N,) labels from a fine-tuned head (:func:`m5lib.finetune.classify`), measured instead of a linear probe.
    """
    found = []
    for task in which:
        if task in ("retrieval", "fine retrieval"):
            found += retrieval(catalogue, vectors, split if task == "retrieval" else "fine_query")
        elif task == "classification":
            found += classification(catalogue, vectors, split, seed, predicted)
        else:
            found += clustering(catalogue, vectors, split, seed)
    return found
