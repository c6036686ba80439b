"""Controls, so that numbers mean something: label-free vectors that need no model, fitted on the
``train`` split like a model."""

import re
from collections.abc import Mapping

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from m5lib.catalogue import Catalogue
from m5lib.evaluation import evaluate
from m5lib.modalities import MODALITIES
from m5lib.streams import Ragged

#: A word: two characters and more, or, as our tokenizers split them, one Chinese character.
CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
WORD = rf"[{CHINESE}]|[^\W{CHINESE}]{{2,}}"


def tfidf(catalogue: Catalogue, names: tuple[str, ...]) -> sparse.csr_matrix:
    """(N, V) TF-IDF of the words (:data:`WORD`) of some modalities (scikit-learn's smoothed idf,
    unit rows); zeros, where the training products have none."""
    texts = []
    for product in catalogue.products:
        there = [name for name in names if name in product.contents]
        words = [text for n in there for text in MODALITIES[n].units(product.contents[n])]
        texts.append(" ".join(words))
    train = [texts[row] for row in catalogue.split("train")]
    if not re.search(WORD, " ".join(train)):
        return sparse.csr_matrix((len(texts), 1), dtype=np.float32)
    return TfidfVectorizer(token_pattern=WORD, dtype=np.float32).fit(train).transform(texts)


def pca_pixels(catalogue: Catalogue, pixels: Ragged, seed: int = 0) -> np.ndarray:
    """(N, 128) principal components of whole pictures (``Pixels``), unit rows, or zeros."""
    there = np.flatnonzero(np.diff(pixels.offsets))
    values = np.asarray(pixels.values, dtype=np.float32)
    train = np.isin(there, catalogue.split("train"))
    k = min(128, int(train.sum()), values.shape[1])
    vectors = np.zeros((len(catalogue), k), dtype=np.float32)
    pca = PCA(k, svd_solver="randomized", random_state=seed).fit(values[train])
    vectors[there] = normalize(pca.transform(values))
    return vectors


def svd(catalogue: Catalogue, matrix: sparse.csr_matrix, seed: int = 0) -> np.ndarray:
    """(N, 256) truncated SVD of a sparse matrix (latent semantic analysis), unit rows."""
    train = matrix[catalogue.split("train")]
    k = max(1, min(256, min(train.shape) - 1))
    latent = TruncatedSVD(k, random_state=seed).fit(train).transform(matrix)
    return normalize(latent).astype(np.float32)


def controls(
    catalogue: Catalogue, pixels: Mapping[str, Ragged], seed: int = 0
) -> dict[str, tuple[tuple[str, ...], object]]:
    """Every control whose modalities training products have: name -> (what it reads, (N, D)
    vectors, dense or sparse). ``svd+pca`` puts the SVD of title TF-IDF beside the PCA of pixels,
    both of unit length."""
    found, text, table, image = {}, "text", "table", "image"
    known = catalogue.presence.iloc[catalogue.split("train")].any()
    has = set(known.index[known])
    for name, read in (("tfidf", (text,)), ("tfidf_title+table", (text, table))):
        if set(read) <= has:
            found[name] = (read, tfidf(catalogue, read))
    if image in has & set(pixels):
        found["pca_pixels"] = ((image,), pca_pixels(catalogue, pixels[image], seed=seed))
    if {"tfidf", "pca_pixels"} <= set(found):
        latent = svd(catalogue, found["tfidf"][1], seed=seed)
        found["svd+pca"] = ((image, text), np.hstack([latent, found["pca_pixels"][1]]))
    return found


def strongest(
    catalogue: Catalogue, pixels: Mapping[str, Ragged], reads: set[str], seed: int = 0
) -> tuple[str, object] | None:
    """Name and vectors of the control that validation products find best (mAP@10, min(K, R)) of
    those that read no more than these modalities; none, where there is none."""
    found = controls(catalogue, pixels, seed)
    values = {
        name: value
        for name, (own, vectors) in found.items()
        if set(own) <= reads and (value := evaluate.quality(catalogue, vectors)) == value
    }
    best = max(values, key=values.get, default=None)
    return best and (best, found[best][1])
