"""Between a catalogue's splits and :mod:`m5lib.evaluation.metrics`: vectors in, numbers out.

``query`` products are looked up in ``gallery``; the classifier learns from ``classifier`` and is
tested on ``query``; k-means runs on ``query`` with k = its number of classes. With
``split="validation"`` the validation products stand in for the queries: that is where choices are
made. Every number comes with the convention that it follows.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from m5lib.catalogue import Catalogue, DataError, Rows
from m5lib.embeddings import BESIDE, in_batches, joined, parts_of, vectors_of
from m5lib.evaluation import metrics, stats
from m5lib.modalities import ordered
from m5lib.model import Model
from m5lib.streams import Streams

CUTS = (1, 5, 10)
TASKS = ("retrieval", "fine retrieval", "classification", "clustering")
#: Scores of k-means are averaged over these seeds: numbers then depend on the vectors alone.
KMEANS_SEEDS = (0, 1, 2)
#: Columns of :func:`per_query`.
PER_QUERY = ("id", "task", "metric", "convention", "value")

#: Names of the modalities that the vectors of the queries were made from, and those of the gallery.
Given = tuple[Iterable[str], Iterable[str]]


def needed_rows(catalogue: Catalogue, *more: str) -> np.ndarray:
    """Rows whose vectors :func:`evaluate` reads of the queries, and ``more`` splits, ascending."""
    names = ("query", "gallery", "classifier", "fine_query", "fine_gallery", *more)
    return np.unique(np.concatenate([catalogue.split(name) for name in names]))


def sought(catalogue: Catalogue, split: str = "query") -> tuple[np.ndarray, np.ndarray]:
    """What the products of a split look for: rows of their gallery, and (N,) what a match has in
    common with the query.

    ``fine_query`` looks for listings of the same product in ``fine_gallery``, every other split for
    the same category in ``gallery`` (section 5: fine-grained and coarse retrieval). Where it is not
    known which listings are of one product, as in the official data, those of one label are, as in
    the released script.
    """
    if split == "fine_query":
        unknown = np.equal(catalogue.instances, None)
        same = np.where(unknown, catalogue.labels, catalogue.instances)
        return catalogue.split("fine_gallery"), same
    return catalogue.split("gallery"), catalogue.labels


def queries(catalogue: Catalogue, split: str = "query") -> tuple[np.ndarray, int]:
    """Rows of the split that can be retrieved, and how many of it cannot. The long tail is kept: a
    class needs one product in the gallery. Products without a label, and those whose class has none
    there, have nothing to be found and are left out."""
    gallery, same = sought(catalogue, split)
    known, rows = set(same[gallery]) - {None}, catalogue.split(split)
    keep = np.array([value in known for value in same[rows]], dtype=bool)
    return rows[keep], int((~keep).sum())


def require_labels(catalogue: Catalogue) -> None:
    """Raises :class:`~m5lib.catalogue.DataError` where no query's category is in the gallery."""
    if not len(queries(catalogue)[0]):
        what = "no query product has a label that is also in the gallery: nothing can be measured"
        mend = "give the category of each product in a column 'label' (pre-training needs none)"
        raise DataError(f"{catalogue.name}: {what}; {mend}")


def having(catalogue: Catalogue, names: Iterable[str]) -> np.ndarray:
    """(N,) whether each product has one of these modalities. Raises ``ValueError``: unknown."""
    return catalogue.presence[list(ordered(names))].to_numpy().any(axis=1)


def _retrieved(catalogue, vectors, split, protocol, gallery, given):
    """Rows of the queries that can ask, and their values. Prec@K of fine retrieval asks those whose
    product is in the gallery K times: of ten found, all can be right."""
    asking, findable = queries(catalogue, split)[0], None
    offered, same = sought(catalogue, split)
    if given is not None:
        asks, findable = having(catalogue, given[0]), having(catalogue, given[1])[offered]
        asking = asking[asks[asking]]
    if not len(asking):
        return []
    ids, gallery = catalogue.ids, vectors if gallery is None else gallery
    values = metrics.retrieval(
        *(vectors[asking], gallery, same[asking], same[offered], ids[asking], ids[offered]),
        *(protocol, offered, findable, CUTS),
    )
    able = dict.fromkeys(values, np.full(len(asking), True))
    if split == "fine_query":
        listed = pd.Series(same[asking]).map(pd.Series(same[offered]).value_counts()).to_numpy()
        able |= {(f"Prec@{k}", "k"): listed >= k for k in CUTS if protocol == "usual"}
    return [(asking[able[name]], {name: own[able[name]]}) for name, own in values.items()]


def _classified(catalogue, vectors, split, seed, predicted):
    """Rows of the tested products, and whether each was classified correctly."""
    labels = catalogue.labels
    labelled = np.array([label is not None for label in labels])
    train, test = catalogue.split("classifier"), catalogue.split(split)
    train, test = train[labelled[train]], test[labelled[test]]
    if not len(test) or len(set(labels[train])) < 2:
        return test[:0], {}
    if predicted is None:
        answers = metrics.linear_probe(vectors[train], labels[train], vectors[test], seed)
        return test, {("accuracy", "linear probe"): metrics.correct(answers, labels[test])}
    head, answers = "fine-tuned head", predicted[test]
    values = {("accuracy", head): metrics.correct(answers, labels[test])}
    if predicted.ndim == 2:
        values["accuracy@5", head] = metrics.correct(answers, labels[test], 5)
    return test, values


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
    """What every query (or classified product) contributes to the numbers of :func:`evaluate`,
    which are its means: columns :data:`PER_QUERY`, in the catalogue's order within each metric.

    ``value`` is AP@K for ``mAP@K``, 0 or 1 for accuracy. Left out are clustering, which has no
    value per product, products without a label and queries with nothing to find. Arguments as in
    :func:`evaluate` and :func:`retrieval`.
    """
    parts, asked = [], {"retrieval": split, "fine retrieval": "fine_query"}
    for task in which:
        values = []
        if task == "classification":
            values = [_classified(catalogue, vectors, split, seed, predicted)]
        elif task in asked:
            sides = (catalogue, vectors, asked[task])
            several = (_retrieved(*sides, protocol, gallery, given) for protocol in protocols)
            values = list(chain.from_iterable(several))
        for rows, by_metric in values:
            parts += [(rows, (task, *name), own) for name, own in by_metric.items()]
    if not parts:
        return pd.DataFrame(columns=list(PER_QUERY))
    rows, names, values = zip(*parts, strict=True)  # one frame: many small ones take their time
    named = np.repeat(np.array(names), [len(own) for own in rows], axis=0).T
    columns = [catalogue.ids[np.concatenate(rows)], *named, np.concatenate(values).astype(float)]
    return pd.DataFrame(dict(zip(PER_QUERY, columns, strict=True)))


def means(queries: pd.DataFrame) -> list[dict]:
    """The numbers of :func:`evaluate` from what :func:`per_query` found."""
    groups = queries.groupby(list(PER_QUERY[1:-1]), sort=False)["value"]
    found = [(*name, float(values.to_numpy().mean())) for name, values in groups]
    return [dict(zip(PER_QUERY[1:], row, strict=True)) for row in found]


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
        vectors: (N, D), dense or sparse, one row per product; only :func:`needed_rows` are read.
        predicted: labels from a fine-tuned head (:func:`m5lib.lab.runs.tuned_vectors`), measured
            instead of a linear probe: (N, P), best first, or (N,), which gives no top-5 accuracy.
        protocols: of retrieval. ``released`` is meant for the paper's read-out.
    """
    numbers, how = [], (split, seed, predicted, tuple(protocols))
    for task in which:
        if task == "clustering":
            numbers += clustering(catalogue, vectors, split)
        else:
            numbers += means(per_query(catalogue, vectors, [task], *how))
    return numbers


def retrieval(
    catalogue: Catalogue,
    vectors,
    split: str = "query",
    protocol: metrics.Protocol = "usual",
    gallery=None,
    given: Given | None = None,
) -> list[dict]:
    """mAP@K and Prec@K, K = 1, 5, 10, by a protocol of :func:`m5lib.evaluation.metrics.retrieval`.

    With ``split="fine_query"`` a match is a listing of the same product, and the task ``fine
    retrieval``.

    Args:
        vectors: (N, D), dense or sparse, one row per product: what the queries ask with.
        gallery: (N, D): what the gallery answers with, where that differs (image -> text).
        given: the modalities that either side was made from; None: every product asks and can be
            found, with zeros where it has nothing. A query that has none of its side's is left out
            (``queries left out`` counts them); a gallery product is never listed, but counts among
            the R products sought: the gallery is the same for all sets.
    """
    task = "fine retrieval" if split == "fine_query" else "retrieval"
    how = {"protocols": [protocol], "gallery": gallery, "given": given}
    asked = per_query(catalogue, vectors, [task], split, **how)
    numbers = means(asked)
    if given is not None and numbers:
        left_out = len(queries(catalogue, split)[0]) - asked["id"].nunique()
        name = (task, "queries left out", "none of the modalities asked with", float(left_out))
        numbers.append(dict(zip(PER_QUERY[1:], name, strict=True)))
    return numbers


def value(numbers: Iterable[dict], metric: str = "mAP@10", convention: str = "min_k_r") -> float:
    """One of the numbers above; ``StopIteration``: it is not among them."""
    named = ((n["metric"], n["convention"], n["value"]) for n in numbers)
    return next(v for m, c, v in named if (m, c) == (metric, convention))


def quality(catalogue: Catalogue, vectors, split: str = "validation") -> float:
    """mAP@10 (min(K, R)) of :func:`retrieval`, nothing else: what choices are made by. NaN where no
    product of the split has anything to find."""
    (asking, _), (offered, same) = queries(catalogue, split), sought(catalogue, split)
    if not len(asking):
        return float("nan")
    sides = vectors[asking], vectors, same[asking], same[offered]  # no ids: splits share none
    return float(metrics.retrieval(*sides, rows=offered, cuts=(10,))["mAP@10", "min_k_r"].mean())


def clustering(catalogue: Catalogue, vectors, split: str = "query") -> list[dict]:
    """NMI and purity of k-means, k = number of classes among the products clustered; the mean over
    :data:`KMEANS_SEEDS`, each one start."""
    return clustering_of(clusters(catalogue, vectors, split))


def clusters(catalogue: Catalogue, vectors, split: str = "query") -> pd.DataFrame:
    """What :func:`clustering` is made of, columns :data:`PER_QUERY`: the ``class`` of every product
    that has a label, a number in the order of their names, and its ``cluster`` by each seed."""
    labelled = [row for row in catalogue.split(split) if catalogue.labels[row] is not None]
    rows, named = np.array(labelled, dtype=int), {"task": "clustering"}
    names, classes = np.unique(catalogue.labels[rows].astype(str), return_inverse=True)
    if not len(names):
        return pd.DataFrame(columns=list(PER_QUERY))
    part, columns = metrics.in_span(vectors[rows]), {("class", "category"): classes}
    for seed in KMEANS_SEEDS:
        columns["cluster", f"seed {seed}"] = metrics.cluster(part, len(names), seed)
    frames = [
        pd.DataFrame({"id": catalogue.ids[rows], **named, "metric": metric, "convention": how})
        for metric, how in columns
    ]
    values = np.concatenate(list(columns.values())).astype(float)
    return pd.concat(frames, ignore_index=True).assign(value=values)[list(PER_QUERY)]


def clustering_of(products: pd.DataFrame) -> list[dict]:
    """The numbers of :func:`clustering` from what :func:`clusters` found."""
    if products.empty:
        return []
    _, labels, own = clusters_by_id(products)
    names = np.char.zfill(labels.astype(str), 9)  # in the order of the numbers
    convention = f"k-means k={len(set(names))}, mean of seeds {' '.join(map(str, KMEANS_SEEDS))}"
    named, numbers = {"task": "clustering", "convention": convention}, []
    for name, measure in (("NMI", metrics.nmi), ("purity", metrics.purity)):
        value = float(np.mean([measure(part, names) for part in own]))
        numbers.append(named | {"metric": name, "value": value})
    return numbers


def clusters_by_id(products: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, classes (P,) and clusters (K, P) from what :func:`clusters` found, by id."""
    table = products.pivot(index="id", columns=["metric", "convention"], values="value")
    classes, own = table["class"].to_numpy(int)[:, 0], table["cluster"].to_numpy(int).T
    return table.index.to_numpy(), classes, own


def clusters_difference(
    pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], metric: str, shared: bool
) -> stats.Difference:
    """NMI or purity of two models compared over seeds (:func:`.stats.paired_clusters`), by what
    :func:`clusters` found for each. Raises ``ValueError``: they clustered other products, or, where
    they are ``shared``, another seed did."""
    found = [[clusters_by_id(side) for side in pair] for pair in pairs]
    for pair in found:
        known = pair if not shared else (*pair, found[0][0])
        if any(list(side[n]) != list(known[0][n]) for side in known for n in (0, 1)):
            raise ValueError("the products clustered, or their classes, are not the same")
    own = [np.stack([side[2] for side in pair]) for pair in found]
    return stats.paired_clusters(own, [pair[0][1] for pair in found], metric, shared)


#: What a modality may count in the read-out ``weighted``; another has to be better by the margin.
COUNTS, MARGIN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0), 0.002


@torch.no_grad()
def fit_whitening(model: Model, streams: Streams, rows: Rows) -> None:
    """Fit the model's whitening on these products; only those that have a modality count for it."""
    fitted: dict[tuple[str, str], list[torch.Tensor]] = {}
    for batch in in_batches(model, streams, rows):
        output = model.encode(batch)
        for states in model.whitening:
            for name, x in vectors_of(output, states):
                fitted.setdefault((states, name), []).append(x[output.valid[name][:, 0]])
    for (states, name), vectors in fitted.items():
        model.whitening[states][name].fit(torch.cat(vectors))


@torch.no_grad()
def fit_readouts(model: Model, streams: Streams) -> None:
    """Fit what read-outs need: the whitening on training products, and ``Model.importance``, how
    much each modality counts in ``weighted``: by mAP@10 (min(K, R)) of validation products given
    all they have, one modality after another, twice. All ones, where products have no labels."""
    catalogue = streams.catalogue
    fit_whitening(model, streams, catalogue.split("train"))
    asking, _ = queries(catalogue, "validation")
    model.importance.fill_(1.0)
    if not len(asking):
        return
    rows = np.concatenate([asking, catalogue.split("gallery")])
    parts: dict[str, dict] = {side: {} for side in BESIDE["weighted"]}
    for batch in in_batches(model, streams, rows):
        output = model(batch, wanted={})
        for side, several in parts.items():
            for key, x in parts_of(model, output, side).items():
                several.setdefault(key, []).append(x.float().cpu())
    parts = {s: {key: torch.cat(x) for key, x in p.items()} for s, p in parts.items()}

    width = sum(x.shape[1] for x in parts["layered"].values()) + model.spec.width
    matrix = np.zeros((len(streams), width), np.float32)

    def reached(weights: dict[str, float]) -> float:
        sides = [F.normalize(joined(p, side, weights), dim=-1) for side, p in parts.items()]
        matrix[rows] = torch.cat(sides, dim=-1).numpy()
        return quality(catalogue, matrix)

    weights = dict.fromkeys(model.spec.modalities, 1.0)
    best, before = reached(weights), None
    for _ in range(2 if len(weights) > 1 else 0):
        if weights == before:
            break
        before = dict(weights)
        for name in weights:
            tried = {count: reached({**weights, name: count}) for count in COUNTS}
            count = max(tried, key=tried.get)
            if tried[count] > best + MARGIN:
                best, weights[name] = tried[count], count
    model.importance.copy_(torch.tensor(list(weights.values())))


def difference(pairs: Sequence[pd.DataFrame], shared: bool) -> stats.Difference:
    """One metric of two models compared query by query over seeds
    (:func:`m5lib.evaluation.stats.paired_queries`).

    Args:
        pairs: of each seed the values of both by product id, columns ``ours`` and ``theirs``.
        shared: whether all seeds ask the same queries, which are then one sample. False where each
            seed has products of its own, as the shop does, though their ids may be alike.

    Raises ``ValueError``: a seed without a common query, or ``shared`` where the queries differ.
    """
    if shared and any(set(p.index) != set(pairs[0].index) for p in pairs):
        raise ValueError("the queries differ from seed to seed: shared=False")
    sides = [
        [p[side].loc[pairs[0].index if shared else p.index].to_numpy(float) for p in pairs]
        for side in ("ours", "theirs")
    ]
    return stats.paired_queries(*(np.stack(side) if shared else side for side in sides))


def spread(part: np.ndarray, rows: Rows, count: int, rest) -> np.ndarray:
    """An array of ``count`` rows, ``rest`` where it is not ``part``."""
    whole = np.full((count, part.shape[1]), rest, dtype=object if rest is None else np.float32)
    whole[rows] = part
    return whole
