"""Maps of embedding spaces (Figure 6): which products are drawn, what they are grouped by, and
t-SNE and UMAP of their vectors.

A map is a picture of *neighbourhoods*: distances between its islands and their sizes say little
(van der Maaten and Hinton 2008, McInnes et al. 2018). So every number of
:mod:`m5lib.evaluation.separation` is also taken in the space itself.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.preprocessing import normalize

from m5lib.catalogue import Catalogue, DataError
from m5lib.evaluation.evaluate import having
from m5lib.evaluation.metrics import rank
from m5lib.evaluation.separation import METHODS, K, vote
from m5lib.modalities import codes

#: Splits that are drawn: no model was trained on them, and no choice was made by them.
HELD_OUT = ("query", "gallery", "fine_query", "fine_gallery")
#: What products are grouped by, where it is known.
GROUPS = ("category", "missing", "product", "merchant")


def held_out(
    catalogue: Catalogue, read: Iterable[Iterable[str]] = (), most: int = 0
) -> Int[np.ndarray, " n"]:
    """Rows of the products to draw, ascending: those of :data:`HELD_OUT` that have one at least of
    the modalities that each model ``read``, at most ``most`` (0: all; listings of one product are
    taken together, so it may be a few more). Raises ``DataError``: too few are left for a product
    to have ten others."""
    rows = np.sort(np.concatenate([catalogue.split(name) for name in HELD_OUT]))
    for names in read:
        rows = rows[having(catalogue, names)[rows]]
    if 0 < most < len(rows):
        whose = np.array([catalogue.instances[n] or catalogue.ids[n] for n in rows], dtype=str)
        names, place, count = np.unique(whose, return_inverse=True, return_counts=True)
        order = np.random.default_rng(0).permutation(len(names))
        kept = order[: np.searchsorted(count[order].cumsum(), most) + 1]
        rows = rows[np.isin(place, kept)]
    if len(rows) <= K:
        need = f"at least {K + 1} in {', '.join(HELD_OUT)} are needed"
        raise DataError(f"{catalogue.name}: {len(rows)} products are left for a map; {need}")
    return rows


def groups(
    catalogue: Catalogue, rows: np.ndarray, merchants: pd.Series | None = None
) -> pd.DataFrame:
    """What products are grouped by: a row for each, by id, a column for each of :data:`GROUPS`,
    ``None`` where unknown.

    ``missing`` is what a product lacks of the catalogue's modalities: ``complete`` or ``no V+A``.
    Columns other than ``category`` are there only if they can tell something: a name occurs twice,
    and there is another name.
    """
    presence = catalogue.presence[list(catalogue.modalities)].iloc[rows]
    lacks = [codes(presence.columns[~has]) for has in presence.to_numpy()]
    columns = {
        "category": catalogue.labels[rows],
        "missing": [f"no {lack}" if lack else "complete" for lack in lacks],
        "product": catalogue.instances[rows],
    }
    if merchants is not None:
        columns["merchant"] = merchants.reindex(catalogue.ids[rows]).to_numpy()
    frame = pd.DataFrame(columns, index=pd.Index(catalogue.ids[rows], name="id"), dtype=object)
    frame = frame.where(frame.notna(), None)
    counts = {name: frame[name].value_counts() for name in frame}
    telling = [name for name, count in counts.items() if len(count) > 1 and count.max() > 1]
    return frame[list(dict.fromkeys(["category", *telling]))]


def coordinates(
    vectors: Float[np.ndarray, "N D"],
    method: str,
    seed: int = 0,
    perplexity: float = 30.0,
    neighbours: int = 15,
) -> Float[np.ndarray, "N 2"]:
    """A map of vectors by their direction, the same for the same vectors and seed on one machine.

    One thread, started from two principal components (Kobak and Linderman 2021). On unit vectors
    the Euclidean neighbours that both methods start from are those by cosine. Fewer than four
    different directions have no neighbourhoods, and both methods fail on them (a crash, or NaN):
    their two principal components are returned, equal vectors at one point.

    Args:
        perplexity: of t-SNE; at most a third of the other products is taken.
        neighbours: of UMAP; at most all other products.

    Raises ``ValueError``: the method is not one of :data:`~m5lib.evaluation.separation.METHODS`, a
    setting is too small, a vector is not finite, or there are fewer than three.
    """
    from threadpoolctl import threadpool_limits

    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: known are {METHODS}")
    if perplexity <= 1 or neighbours < 2:
        given = f"not {perplexity} and {neighbours}"
        raise ValueError(f"a map needs perplexity > 1 and neighbours >= 2, {given}")
    if len(broken := np.flatnonzero(~np.isfinite(vectors).all(axis=1))) or len(vectors) < 3:
        first = f"; {len(broken)} are not, the first in row {broken[0]}" if len(broken) else ""
        need = f"a map needs at least three vectors of finite numbers, not {len(vectors)}"
        raise ValueError(f"{need}{first}: has training diverged?")
    unit = normalize(vectors.astype(np.float32))
    others, common = len(unit) - 1, {"init": "pca", "random_state": seed, "n_jobs": 1}
    with threadpool_limits(1):  # sums in another order would end in another map
        if len(np.unique(unit.round(5), axis=0)) < 4:
            turned, lengths, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
            points = np.pad(turned * lengths, ((0, 0), (0, 1)))[:, :2]
            return points.astype(np.float32)
        if method == "t-SNE":
            from sklearn.manifold import TSNE

            perplexity = min(perplexity, others / 3)
            return TSNE(perplexity=perplexity, **common).fit_transform(unit)
        from umap import UMAP

        return UMAP(n_neighbors=min(neighbours, others), **common).fit_transform(unit)


def taken_away(
    asked: Float[np.ndarray, "c D"],
    vectors: Float[np.ndarray, "N D"],
    places: Int[np.ndarray, " c"],
    table: pd.DataFrame,
) -> dict[str, np.ndarray]:
    """What a missing modality does, product by product: products are asked with once more, by their
    vectors without it (``asked``, rows ``places`` of ``vectors``), among the vectors of all.

    Returns ``10-NN accuracy`` (of the category in ``table``, :func:`groups`), ``neighbours kept``
    (which of its ten nearest stay) and ``finds itself`` (whether the nearest of all is it).
    """
    ids, labels = table.index.to_numpy(), table["category"].to_numpy()
    before = rank(vectors[places], vectors, K, ids[places], ids)
    around = rank(asked, vectors, K, ids[places], ids)
    return {
        f"{K}-NN accuracy": vote(labels[around]) == labels[places],
        "neighbours kept": (around[:, :, None] == before[:, None]).any(axis=2),
        "finds itself": rank(asked, vectors, 1)[:, 0] == places,
    }
