"""What each modality tells of the category, without a model: linear probes on raw features, alone
and together. They calibrate the synthetic shop and show how hard a data set is. They see labels, so
they are no rival of label-free embeddings."""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from m5lib.catalogue import Catalogue, DataError
from m5lib.evaluation.controls import tfidf
from m5lib.modalities import MODALITIES, ordered
from m5lib.streams import Ragged

#: No probe is surer than this that a category is *not* the one. And how many products are taken.
DOUBT, LIMIT = 1e-4, 3000
#: Facets of the paper's Table 2 -> column of the shop's truth.
FACETS = {"APP": "shape", "USA": "usage", "SPEC": "grams", "SELL": "points"}
FACETS |= {"PROD": "production", "MATE": "material", "CATE": "category"}


def summaries(catalogue: Catalogue, features: Mapping[str, Ragged]) -> dict:
    """A raw vector of each modality and product: (N, D), dense or sparse, zero where absent.

    Words: TF-IDF. Features: where every product has the same tokens (crops of a grid) all of them,
    else their mean, deviation and maximum; standardised, 80 principal components of the training
    products (at most :data:`LIMIT`), unit length.
    """
    vectors, training = {}, catalogue.split("train")
    for name in catalogue.modalities:
        if MODALITIES[name].kind == "words":
            vectors[name] = tfidf(catalogue, (name,))
            continue
        lengths = np.diff(features[name].offsets)
        there, same = np.flatnonzero(lengths), len(set(lengths[lengths > 0])) == 1
        flat = partial(_flat, features[name], same)
        train = flat(there[np.isin(there, training)][:LIMIT])
        mean, deviation = train.mean(0), train.std(0) + 1e-6
        size = min(80, *train.shape)
        pca = PCA(size, svd_solver="randomized", random_state=0).fit((train - mean) / deviation)
        vectors[name] = np.zeros((len(catalogue), size), dtype=np.float32)
        for start in range(0, len(there), LIMIT):  # all at once may not fit into memory
            rows = there[start : start + LIMIT]
            vectors[name][rows] = normalize(pca.transform((flat(rows) - mean) / deviation))
    return vectors


def _flat(feature: Ragged, same: bool, rows: np.ndarray) -> np.ndarray:
    """The tokens of each of these products as one row."""
    values, offsets = feature.values, feature.offsets
    tokens = [np.asarray(values[offsets[n] : offsets[n + 1]], dtype=np.float32) for n in rows]
    if not same:
        tokens = [np.concatenate([t.mean(0), t.std(0), t.max(0)]) for t in tokens]
    return np.stack([t.reshape(-1) for t in tokens])


class Experts(NamedTuple):
    """Class log-probabilities of a probe per modality, those of training products out of fold."""

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    classes: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray


def _probe(vectors, labels: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=10.0, max_iter=200).fit(vectors, labels)


def experts(catalogue: Catalogue, features: Mapping[str, Ragged]) -> Experts:
    """A logistic regression per modality, on the products that have all of them: trained on
    ``train``, tested on all others, at most :data:`LIMIT` on either side. Categories with fewer
    than two training products are left out. Raises ``DataError``: there are not two others."""
    labels = catalogue.labels.astype(str)
    whole = catalogue.presence[list(catalogue.modalities)].all(axis=1).to_numpy()
    whole = whole & np.array([label is not None for label in catalogue.labels])
    rows = catalogue.split("train")
    rows = rows[whole[rows]][:LIMIT]
    names, counts = np.unique(labels[rows], return_counts=True)
    kept = np.isin(labels, names[counts >= 2]) & whole
    train = rows[kept[rows]]
    test = np.setdiff1d(np.flatnonzero(kept), catalogue.split("train"))[:LIMIT]
    own, classes = labels[train], np.unique(labels[train])
    if len(classes) < 2 or not len(test):
        lack = "no two categories with products that have every modality"
        raise DataError(f"{catalogue.name}: {lack}; probes need labels")
    inside, outside = {}, {}
    for name, block in summaries(catalogue, features).items():
        inside[name] = np.full((len(train), len(classes)), np.log(DOUBT))
        for fit, held in KFold(3, shuffle=True, random_state=0).split(train):
            if len(set(own[fit])) < 2:  # of a handful of products
                continue
            probe = _probe(block[train[fit]], own[fit])  # a fold may lack a category
            places = np.ix_(held, np.searchsorted(classes, probe.classes_))
            inside[name][places] = probe.predict_log_proba(block[train[held]])
        outside[name] = _probe(block[train], own).predict_log_proba(block[test])
    return Experts(inside, outside, classes, own, labels[test])


def together(found: Experts, names: Iterable[str]) -> float:
    """Test accuracy of the probes of some modalities together: log p(c) = sum over m of w_m log
    p_m(c) + w_0 log p(c) + constant.

    Independent witnesses would have w_m = 1 and w_0 = 1 - M (Bayes; p(c) is the share of the
    category in training). The weights maximise the likelihood of the out-of-fold predictions: what
    two modalities tell twice counts once, and one that tells nothing gets no weight.
    """
    names, labels = ordered(names), found.train_labels
    prior = np.log(np.unique(labels, return_counts=True)[1] / len(labels))

    def stacked(parts: dict[str, np.ndarray]) -> np.ndarray:
        logs = [*(parts[name] for name in names), np.broadcast_to(prior, parts[names[0]].shape)]
        return np.stack(logs).clip(np.log(DOUBT))

    inside, count = stacked(found.train), len(names)
    right = (np.arange(len(labels)), np.searchsorted(found.classes, labels))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        share = softmax(np.tensordot(weights, inside, 1), axis=1)
        gradient = ((share * inside).sum(2) - inside[:, right[0], right[1]]).mean(1)
        return -np.log(share[right]).mean(), gradient

    start, bounds = [1.0] * count + [1.0 - count], [(0, None)] * count + [(None, None)]
    weights = minimize(loss, np.array(start), jac=True, bounds=bounds, method="L-BFGS-B").x
    score = np.tensordot(weights, stacked(found.test), 1)
    return float((found.classes[score.argmax(1)] == found.test_labels).mean())


def ladder(found: Experts) -> dict[tuple[str, ...], float]:
    """Accuracy of every modality alone, every pair, all, and all but one."""
    names = tuple(found.test)
    sizes = (1, 2, len(names) - 1, len(names))
    chosen = dict.fromkeys(part for size in sizes for part in combinations(names, size))
    return {part: together(found, part) for part in chosen}


def majority(found: Experts) -> float:
    """Accuracy of always naming the most frequent training category: chance for the above."""
    names, counts = np.unique(found.train_labels, return_counts=True)
    return float((found.test_labels == names[counts.argmax()]).mean())


def facets(
    catalogue: Catalogue, features: Mapping[str, Ragged], truth: pd.DataFrame
) -> pd.DataFrame:
    """What each modality of the shop tells of each facet (Table 2): modality x facet, how far a
    linear probe gets from chance to one.

    (accuracy - chance) / (1 - chance), chance being always the most frequent value; weights in
    seven classes, the first selling point.
    """
    vectors, truth = summaries(catalogue, features), truth.loc[list(catalogue.ids)]
    train = np.isin(np.arange(len(catalogue)), catalogue.split("train"))
    columns = {facet: truth[column] for facet, column in FACETS.items()}
    columns["SPEC"] = pd.qcut(columns["SPEC"], 7, duplicates="drop")
    columns["SELL"] = columns["SELL"].str[0]
    told = pd.DataFrame(index=list(vectors), columns=list(FACETS), dtype=float)
    for facet, column in columns.items():
        values = column.astype(str).to_numpy()
        for name, block in vectors.items():
            there = catalogue.presence[name].to_numpy()
            fit, test = np.flatnonzero(there & train), np.flatnonzero(there & ~train)
            right = _probe(block[fit], values[fit]).predict(block[test]) == values[test]
            names, counts = np.unique(values[fit], return_counts=True)
            chance = (values[test] == names[counts.argmax()]).mean()
            told.loc[name, facet] = (right.mean() - chance) / (1 - chance)
    return told
