"""How well groups of products separate, in an embedding space and in maps of it: silhouette,
accuracy of neighbours, trustworthiness; and how near two modalities of a product lie (Figure 5)."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int

from m5lib import simcl
from m5lib.catalogue import Rows
from m5lib.embeddings import embeddings, in_batches
from m5lib.evaluation.evaluate import fit_readouts, quality, queries, spread
from m5lib.evaluation.metrics import rank
from m5lib.model import Model
from m5lib.objectives import stacked
from m5lib.streams import Streams

#: Conventions of the numbers: the embedding space, by cosine, its maps, by Euclidean distance.
SPACE, METHODS = "embedding", ("t-SNE", "UMAP")
SPACES = (SPACE, *METHODS)
#: And what a product drawn at random would score, and one drawn from the same category.
CHANCE, WITHIN = "chance", "chance within the category"
#: Neighbours that vote.
K = 10


def number_of(by: str, metric: str, space: str, readout: str) -> dict[str, str]:
    """The columns of the result row that says how products separate ``by`` a column of
    :func:`m5lib.evaluation.maps.groups`."""
    task = f"separation by {by}"
    return {"variant": readout, "task": task, "metric": metric, "convention": space}


def nearest(points: Float[np.ndarray, "N D"], k: int, space: str) -> Int[np.ndarray, "N k"]:
    """The ``k`` nearest other products of each, nearest first: by cosine in the embedding space, by
    Euclidean distance in a map."""
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(points) - 1)
    if space == SPACE:
        own = np.arange(len(points))
        return rank(points, points, k, own, own)
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()[1]


def vote(neighbours: np.ndarray) -> np.ndarray:
    """The label that most of a row's neighbours have; of several, that of the nearest."""
    return np.array([Counter(row).most_common(1)[0][0] for row in neighbours], dtype=object)


def separation(
    points: Float[np.ndarray, "N D"],
    labels: np.ndarray,
    space: str,
    votes: Sequence[int] = (1, K),
    asked: Bool[np.ndarray, " N"] | None = None,
) -> dict[str, Float[np.ndarray, " N"]]:
    """How well labels separate: metric -> a value for each product, NaN where it has none; the
    metric is their mean.

    ``silhouette``: (b - a) / max(a, b), a = mean distance to the products of the same label, b = to
    those of the nearest other one (Rousseeuw 1987), among the products whose label occurs at least
    twice. ``<k>-NN accuracy``, k of ``votes``, leave one out: whether the vote of the k nearest
    other products is right, of the same products, or those ``asked``; all that have a label vote,
    those whose label occurs once too. Products without a label (``None``) take no part.
    """
    from sklearn.metrics import silhouette_samples

    known = np.flatnonzero([label is not None for label in labels])
    names = ("silhouette", *(f"{k}-NN accuracy" for k in votes))
    values = {name: np.full(len(labels), np.nan) for name in names}
    own = labels[known].astype(str)
    _, place, count = np.unique(own, return_inverse=True, return_counts=True)
    shared = count[place] > 1
    if not shared.any():
        return values
    if (count > 1).sum() > 1:
        how, rows = "cosine" if space == SPACE else "euclidean", known[shared]
        values["silhouette"][rows] = silhouette_samples(points[rows], place[shared], metric=how)
    around = place[nearest(points[known], max(votes), space)]
    asked = shared if asked is None else shared & asked[known]
    for k in votes if asked.any() else ():
        values[f"{k}-NN accuracy"][known[asked]] = vote(around[asked, :k]) == place[asked]
    return values


def chance(labels: np.ndarray, within: np.ndarray | None = None) -> Float[np.ndarray, " N"]:
    """What 1-NN accuracy would be if the nearest were any other labelled product, or any other that
    shares ``within``; NaN where a label occurs once."""
    frame = pd.DataFrame({"label": labels, "within": 0 if within is None else within})
    frame = frame[[label is not None for label in labels]]
    same = frame.groupby(["label", "within"])["label"].transform("size") - 1
    others = frame.groupby("within")["label"].transform("size") - 1
    alone = frame.groupby("label")["label"].transform("size") < 2
    return (same / others.clip(lower=1)).where(~alone).reindex(range(len(labels))).to_numpy(float)


def numbers(spaces: Mapping[tuple[str, str], np.ndarray], table: pd.DataFrame) -> pd.DataFrame:
    """What every product contributes: columns ``id, variant, task, metric, convention, value``."""
    parts = []

    def keep(by: str, metric: str, space: str, readout: str, values: np.ndarray) -> None:
        frame = {"id": table.index} | number_of(by, metric, space, readout) | {"value": values}
        parts.append(pd.DataFrame(frame)[~np.isnan(values)])

    for by, column in table.items():
        labels, first = column.to_numpy(), "1-NN accuracy"
        # most products are complete, and easily right
        asked = labels != "complete" if by == "missing" else np.ones(len(labels), bool)
        votes = (1, K) if by == "category" else (1,)  # other groups are smaller than ten
        for (readout, space), points in spaces.items():
            for metric, values in separation(points, labels, space, votes, asked).items():
                keep(by, metric, space, readout, values)
        for readout in dict.fromkeys(readout for readout, _ in spaces):
            keep(by, first, CHANCE, readout, np.where(asked, chance(labels), np.nan))
            if by == "product":
                same = chance(labels, table["category"].to_numpy())
                keep(by, first, WITHIN, readout, same)
    return pd.concat(parts, ignore_index=True)


def trust(spaces: Mapping[tuple[str, str], np.ndarray]) -> list[dict]:
    """Trustworthiness of maps (Venna and Kaski 2001): 1 if all neighbours are so in the space."""
    from sklearn.manifold import trustworthiness

    rows, metric = [], f"trustworthiness@{K}"
    for (readout, space), points in spaces.items():
        if space != SPACE:
            vectors, k = spaces[readout, SPACE], min(K, (len(points) - 1) // 2)
            value = float(trustworthiness(vectors, points, n_neighbors=k, metric="cosine"))
            row = {"task": "map", "metric": metric, "convention": space, "variant": readout}
            rows.append(row | {"value": value})
    return rows


@torch.no_grad()
def modality_cosines(
    model: Model, streams: Streams, rows: Rows, pair: tuple[str, str]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Cosines of the fused first tokens of two modalities (Figure 5: image and text): the rows that
    have both; the cosine of each product's own two; and the mean cosine of its first with the
    second of the *other* products. Where all vectors point one way both are high: only their
    difference says that a product's modalities are alike."""
    sides, here = ([], []), []
    for batch in in_batches(model, streams, rows):
        output = model(batch, wanted={})
        both = output.valid[pair[0]][:, 0] & output.valid[pair[1]][:, 0]
        here.append(both.cpu().numpy())
        for side, name in zip(sides, pair, strict=True):
            side.append(F.normalize(output.summary[name][both].float(), dim=1))
    one, other = (torch.cat(side) for side in sides)
    own = (one * other).sum(dim=1)
    others = (one @ other.sum(dim=0) - own) / max(1, len(one) - 1)
    return np.asarray(rows)[np.concatenate(here)], own.cpu().numpy(), others.cpu().numpy()


@torch.no_grad()
def mean_harmony(model: Model, streams: Streams, rows: Rows) -> np.ndarray:
    """(M, M) harmony scores before the fusion, each entry averaged over the products that have both
    modalities (0 if none has)."""
    device, sides = next(model.parameters()).device, len(model.spec.modalities)
    total, count = torch.zeros(2, sides, sides, device=device)
    for batch in in_batches(model, streams, rows):
        output = model.encode(batch)
        both = output.presence[:, :, None] & output.presence[:, None, :]
        s = simcl.scores(model, stacked(output.pooled), output.presence)
        total, count = total + (both if s is None else s).sum(0), count + both.sum(0)
    return (total / count.clamp(min=1)).float().cpu().numpy()


def glance(model: Model, streams: Streams) -> dict:
    """A look at a model on labelled validation products: mAP@10 (min(K, R)) of each read-out (they
    are fitted on the way), the mean harmony scores before the fusion, and :func:`modality_cosines`
    of its first two modalities, ``own`` and with ``others``."""
    catalogue = streams.catalogue
    fit_readouts(model, streams)
    asking, _ = queries(catalogue, "validation")
    rows = np.concatenate([asking, catalogue.split("gallery")])
    measured, seen = {}, {"harmony": mean_harmony(model, streams, asking).tolist()}
    for readout, part in embeddings(model, streams, rows).items() if len(asking) else ():
        measured[readout] = quality(catalogue, spread(part, rows, len(streams), np.nan))
    pair = model.spec.modalities[:2]
    if len(pair) == 2 and len(asking):
        _, own, others = modality_cosines(model, streams, asking, pair)
        seen["cosine"] = {"own": float(own.mean()), "others": float(others.mean())}
    return {"validation": measured} | seen
