"""What vectors tell of classes: linear probe, k-means, NMI, purity. Functions on arrays."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler, normalize

from m5lib.metrics import Vectors


def linear_probe(train: Vectors, labels: np.ndarray, test: Vectors, seed: int = 0) -> np.ndarray:
    """Labels predicted for ``test`` by logistic regression (L2, C = 1) on standardised
    embeddings."""
    if not sparse.issparse(train):
        # what absent modalities leave constant says nothing and costs time; below 1e-12 is rounding
        told = np.ptp(train, axis=0) > 1e-12
        train, test = train[:, told], test[:, told]
    scaler = StandardScaler(with_mean=not sparse.issparse(train)).fit(train)
    probe = LogisticRegression(C=1.0, max_iter=200, tol=1e-3, random_state=seed)
    return probe.fit(scaler.transform(train), labels.astype(str)).predict(scaler.transform(test))


def correct(predicted: np.ndarray, labels: np.ndarray, k: int = 1) -> Bool[np.ndarray, " N"]:
    """Whether each product's label is the predicted one (N,), or among the first ``k`` of the
    predicted ones (N, P), best first. A label the classifier never saw counts as wrong."""
    first = predicted.reshape(len(labels), -1)[:, :k].astype(str)
    return (first == labels.astype(str)[:, None]).any(axis=1)


def in_span(vectors: Vectors) -> Float[np.ndarray, "_ _"] | sparse.spmatrix | sparse.sparray:
    """Unit vectors with the same distances, in no more dimensions than there are products: all
    that :func:`cluster` needs, and cheaper.

    Dense ones come in float64, which scikit-learn's k-means is faster with (it makes its distances
    in float64 anyway).
    """
    vectors = normalize(vectors)
    if sparse.issparse(vectors):
        return vectors
    if vectors.shape[0] < vectors.shape[1]:
        vectors = np.linalg.qr(vectors.T, mode="r").T
    return np.ascontiguousarray(vectors, dtype=np.float64)


def cluster(vectors: Vectors, k: int, seed: int = 0) -> Int[np.ndarray, " N"]:
    """k-means (one start, k-means++) on unit vectors: the cluster of each product."""
    return KMeans(k, n_init=1, random_state=seed).fit_predict(in_span(vectors)).astype(np.int64)


def nmi(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Mutual information over the arithmetic mean of the two entropies, in [0, 1]."""
    return float(normalized_mutual_info_score(labels.astype(str), clusters))


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of products in the majority class of their cluster; grows with the number of clusters,
    to 1 with one each."""
    table = pd.crosstab(np.asarray(clusters), labels.astype(str))
    return float(table.to_numpy().max(axis=1).sum() / len(labels))
