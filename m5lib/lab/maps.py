"""Maps of embedding spaces (Figure 6), t-SNE and UMAP of the same products under several models,
and how well groups of products separate in the space and in each map, as numbers.

A map is a picture of *neighbourhoods*: distances between its islands and their sizes say little
(van der Maaten and Hinton 2008, McInnes et al. 2018), so every number is also taken in the space
itself. Drawn are products that pre-training never saw and nothing was chosen on.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.preprocessing import normalize

from m5lib.catalogue import Catalogue, DataError
from m5lib.data import code_version
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.evaluation import evaluate
from m5lib.evaluation.separation import (
    CHANCE,
    METHODS,
    SPACE,
    SPACES,
    WITHIN,
    K,
    numbers,
    trust,
    vote,
)
from m5lib.lab import recording, runs
from m5lib.lab.recording import said
from m5lib.lab.study import COLUMNS, KEYS, Study, jobs, sized, tidy, values
from m5lib.metrics import rank
from m5lib.modalities import codes, from_codes
from m5lib.model import Model
from m5lib.shop import listings
from m5lib.streams import Streams

#: Splits that are drawn: neither trained on nor used for any choice.
HELD_OUT = ("query", "gallery", "fine_query", "fine_gallery")
#: What products are grouped by, where it can be known.
GROUPS = ("category", "missing", "product", "merchant")


@dataclass(frozen=True)
class Settings:
    """How a map is made.

    Attributes:
        perplexity: of t-SNE; at most a third of the other products is taken.
        neighbours: of UMAP; at most all other products.
        most: products in a map at most; 0: all.
    """

    perplexity: float = 30.0
    neighbours: int = 15
    most: int = 1500

    def __post_init__(self):
        if self.perplexity <= 1 or self.neighbours < 2 or self.most < 0:
            raise ValueError(
                f"perplexity over 1, at least 2 neighbours and most >= 0 are needed, not {self}"
            )


def held_out(
    catalogue: Catalogue, read: Iterable[Iterable[str]] = (), most: int = 0
) -> Int[np.ndarray, " n"]:
    """Rows of the products to draw, ascending: of :data:`HELD_OUT`, those of which every model can
    read something.

    Args:
        read: the modalities of each model.
        most: so many at most; listings of one product are taken together, so up to a few more. 0:
            all.

    Raises:
        DataError: too few are left for a product to have ten others.
    """
    rows = np.sort(np.concatenate([catalogue.split(name) for name in HELD_OUT]))
    for names in read:
        rows = rows[evaluate.having(catalogue, names)[rows]]
    if 0 < most < len(rows):
        whose = [catalogue.instances[row] or catalogue.ids[row] for row in rows]
        names, place, count = np.unique(
            np.array(whose, dtype=str), return_inverse=True, return_counts=True
        )
        order = np.random.default_rng(0).permutation(len(names))
        kept = order[: np.searchsorted(count[order].cumsum(), most) + 1]
        rows = rows[np.isin(place, kept)]
    if len(rows) <= K:
        raise DataError(
            f"{catalogue.name}: {len(rows)} products are left for a map; at least {K + 1} in "
            f"{', '.join(HELD_OUT)} are needed"
        )
    return rows


def coordinates(
    vectors: Float[np.ndarray, "N D"], method: str, seed: int = 0, settings: Settings = Settings()
) -> Float[np.ndarray, "N 2"]:
    """A map of unit vectors, the same for the same vectors and seed on the same machine: one
    thread, started from two principal components (Kobak and Linderman 2021). On unit vectors the
    Euclidean neighbours that either method starts from are those by cosine.

    Raises:
        ValueError: the method is not one of :data:`METHODS`.
    """
    from threadpoolctl import threadpool_limits

    unit = normalize(vectors.astype(np.float32))
    others = len(unit) - 1
    with threadpool_limits(1):  # sums in another order would end in another map
        if method == "t-SNE":
            from sklearn.manifold import TSNE

            return TSNE(
                perplexity=min(settings.perplexity, others / 3),
                init="pca",
                random_state=seed,
                n_jobs=1,
            ).fit_transform(unit)
        if method == "UMAP":
            from umap import UMAP

            return UMAP(
                n_neighbors=min(settings.neighbours, others),
                init="pca",
                random_state=seed,
                n_jobs=1,
            ).fit_transform(unit)
    raise ValueError(f"unknown method {method!r}: known are {METHODS}")


def groups(
    catalogue: Catalogue, rows: np.ndarray, merchants: pd.Series | None = None
) -> pd.DataFrame:
    """What products are grouped by: a row for each, index its id, columns of names, ``None`` where
    unknown.

    ``category``; ``missing``: what it lacks of the catalogue's modalities, ``complete`` or ``no
    V+A``; ``product``: the same for all listings of one; ``merchant``. Those but the first are
    there only if they can tell something: if a name occurs twice, and there is another one.
    """
    there = catalogue.presence[list(catalogue.modalities)].iloc[rows]
    lacks = [
        f"no {codes(there.columns[~own])}" if not own.all() else "complete"
        for own in there.to_numpy()
    ]
    found = {
        "category": catalogue.labels[rows],
        "missing": lacks,
        "product": catalogue.instances[rows],
    }
    found |= (
        {} if merchants is None else {"merchant": merchants.reindex(catalogue.ids[rows]).to_numpy()}
    )
    frame = pd.DataFrame(found, index=pd.Index(catalogue.ids[rows], name="id"), dtype=object)
    frame = frame.where(frame.notna(), None)
    telling = [
        name
        for name in frame
        if name == "category"
        or ((frame[name].value_counts() > 1).any() and frame[name].nunique() > 1)
    ]
    return frame[telling]


@dataclass(frozen=True)
class Mapped(Study):
    """A study's numbers, of :func:`m5lib.evaluation.separation.numbers`, and the maps that they are
    of.

    Attributes:
        groups: of the products drawn (:func:`groups`).
        spaces: (read-out, one of :data:`SPACES`) -> (N, D) vectors or (N, 2) coordinates in the
            order of ``groups``.
        file: where the coordinates lie: a parquet file with the columns ``id, state, readout,
            method, x, y``.
        catalogue: that the products are of.
    """

    groups: pd.DataFrame
    spaces: Mapping[tuple[str, str], np.ndarray]
    file: Path
    catalogue: Catalogue


def _spaces(
    folder: Path,
    state: str,
    vectors: Mapping[str, np.ndarray],
    ids: np.ndarray,
    seed: int,
    settings: Settings,
):
    """Vectors and maps of every read-out, and the file of the coordinates; they are made once for
    the same products and settings."""
    what = [
        list(ids),
        state,
        list(vectors),
        seed,
        settings.perplexity,
        settings.neighbours,
        code_version(),
    ]
    digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=5).hexdigest()
    path, parts = folder / f"map-{state}-{digest}.parquet", []
    if not path.exists():
        for readout, part in vectors.items():
            for method in METHODS:
                x, y = coordinates(part, method, seed, settings).T
                parts.append(
                    pd.DataFrame(
                        {
                            "id": ids,
                            "state": state,
                            "readout": readout,
                            "method": method,
                            "x": x,
                            "y": y,
                        }
                    )
                )
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        pd.concat(parts, ignore_index=True).to_parquet(temporary, index=False)
        os.replace(temporary, path)
    drawn = {
        key: part[["x", "y"]].to_numpy()
        for key, part in pd.read_parquet(path).groupby(["readout", "method"])
    }
    return {(readout, SPACE): part for readout, part in vectors.items()} | drawn, path


def removal(
    model: Model,
    streams: Streams,
    rows: np.ndarray,
    whole: Mapping[str, np.ndarray],
    table: pd.DataFrame,
    at_least: int = 10,
) -> list[dict]:
    """What a missing modality does, product by product: complete products are asked with once more
    without each modality.

    ``10-NN accuracy`` of the category; ``neighbours kept``: the share of its ten nearest that stay;
    ``finds itself``: whether the nearest of all is the complete product that it was made of.
    ``modalities`` are those left; with all, products ask with what they have. Nothing, where fewer
    than ``at_least`` are complete.

    Args:
        whole: read-out -> (n, D) vectors of the rows, that are looked among.
    """
    names = model.spec.modalities
    complete = streams.catalogue.presence[list(names)].to_numpy()[rows].all(axis=1)
    complete &= np.array([label is not None for label in table["category"]])
    if len(names) < 2 or complete.sum() < at_least:
        return []
    ids, labels, found = table.index.to_numpy(), table["category"].to_numpy(), []
    before = {
        readout: rank(part[complete], part, K, ids[complete], ids)
        for readout, part in whole.items()
    }
    for left in [names, *(tuple(other for other in names if other != name) for name in names)]:
        for readout, part in runs.vectors(
            model, streams, rows[complete], left, list(whole)
        ).items():
            asked = part[rows[complete]]
            around = rank(asked, whole[readout], K, ids[complete], ids)
            values = {
                f"{K}-NN accuracy": vote(labels[around]) == labels[complete],
                "neighbours kept": (around[:, :, None] == before[readout][:, None]).any(axis=2),
                "finds itself": rank(asked, whole[readout], 1)[:, 0] == np.flatnonzero(complete),
            }
            more = {
                "task": "removal",
                "convention": SPACE,
                "variant": readout,
                "modalities": codes(left),
            }
            found += [
                {**more, "metric": metric, "value": float(np.mean(each))}
                for metric, each in values.items()
            ]
    return found


def mapped(
    run: runs.Run,
    state: str,
    job: runs.Job,
    streams: Streams,
    table: pd.DataFrame,
    settings: Settings,
    notebook: str,
) -> Mapped:
    """Embed, map and measure the products of a table (:func:`groups`), by the paper's read-out and
    the default."""
    catalogue = streams.catalogue
    rows = pd.Series(range(len(catalogue)), catalogue.ids)[table.index].to_numpy()
    vectors = {
        readout: part[rows]
        for readout, part in runs.vectors(
            run.model, streams, rows, readouts=(PAPER, DEFAULT)
        ).items()
    }
    spaces, path = _spaces(run.folder, state, vectors, catalogue.ids[rows], job.seed, settings)
    each = numbers(spaces, table)
    means = (
        each.groupby(["variant", "task", "metric", "convention"], sort=False)["value"]
        .mean()
        .reset_index()
        .to_dict("records")
    )
    means += trust(spaces) + removal(run.model, streams, rows, vectors, table)
    found = recording.rows(means, run.context(notebook, job, catalogue), state=state)
    size = sum(p.numel() for p in run.model.parameters())
    each = each.assign(state=state)[list(COLUMNS)]
    return Mapped(
        run.name,
        catalogue.fingerprint,
        pd.DataFrame(found),
        each,
        run.history,
        size,
        table,
        spaces,
        path,
        catalogue,
    )


def maps(
    grid: Mapping[str, Mapping[str, object]],
    data: str,
    profile: str,
    seeds: Iterable[int],
    settings: Settings,
    notebook: str,
    products: int = 0,
    extractors: str = "",
) -> dict[tuple[str, int], Mapped]:
    """The maps of a grid's models, for each seed of the same products; models that read what the
    products lack are left out.

    Args:
        grid: label -> ``state`` (``pretrained``, if not given, or ``untrained``), ``modalities``
            (codes; all, if not given) and fields of :class:`m5lib.lab.runs.Job`.
        seeds: of weights, order, masks and maps; with ``data="shop"`` of the shop too.
        products: at most so many are read, evenly over the splits, of data other than the shop; 0:
            what the profile says.
        extractors: as :func:`m5lib.lab.runs.load`.

    Returns:
        (label, seed) -> maps, in the order of the seeds and of the grid.
    """
    size, found = sized(profile, products), {}
    for seed in seeds:
        catalogue, features = runs.load(data, size, seed, extractors)
        evaluate.require_labels(catalogue)
        merchants = (
            "merchant " + listings.truth(listings.folder_of(size.name, seed))["merchant"]
            if data == "shop"
            else None
        )
        models = {}
        several = jobs(grid, catalogue, features, size, seed, extractors)
        for label, (job, streams) in several.items():
            state = grid[label].get("state", "pretrained")
            if state == "untrained":
                run = runs.Run(runs.untrained(job, streams), job.plan(streams).folder, [])
            else:
                run = runs.pretrained(job, streams)
            models[label] = run, state, job, streams
        rows = held_out(
            catalogue, [run.model.spec.modalities for run, *_ in models.values()], settings.most
        )
        table = groups(catalogue, rows, merchants)
        for label, parts in models.items():
            found[label, seed] = mapped(*parts, table, settings, notebook)
            print(
                f"seed {seed}, {label}: {len(rows):,} products, "
                f"{found[label, seed].file.relative_to(runs.home())}",
                flush=True,
            )
    return found


# --- tables
# ------------------------------------------------------------------------------------------------


def value_of(by: str, metric: str, space: str, readout: str, state: str = "") -> dict[str, str]:
    """Which number: how products separate ``by`` one of the columns of :func:`groups`; an empty
    state is any."""
    parts = (state, readout, f"separation by {by}", metric, space)
    return {key: part for key, part in zip(KEYS, parts, strict=True) if part}


def separations(
    found: Mapping[tuple[str, int], Mapped], by: str, readout: str, metrics: Iterable[str]
) -> pd.DataFrame:
    """Mean ± deviation over seeds: a row for each model, columns (metric, space); chance beside the
    accuracies of one neighbour."""
    columns = {}
    for metric in metrics:
        for space in (*SPACES, CHANCE, WITHIN):
            each = values(found, value_of(by, metric, space, readout))
            if each.notna().any(axis=None):
                columns[metric, space] = said(each, 1.0, 3)
    return pd.DataFrame(columns)


def by_missing(found: Mapping[tuple[str, int], Mapped], wanted: Mapping[str, str]) -> pd.DataFrame:
    """A number of the category by what products lack: its mean over all seeds' products, a row per
    model; ``products`` counts them.

    Nothing, where no product lacks anything.
    """
    parts = []
    for (label, _), study in found.items():
        if "missing" not in study.groups:
            return pd.DataFrame()
        each = study.values(wanted)
        parts.append(
            pd.DataFrame(
                {"model": label, "missing": study.groups.loc[each.index, "missing"], "value": each}
            )
        )
    frame = pd.concat(parts)
    table = frame.pivot_table(index="model", columns="missing", values="value", sort=False)
    count = frame[frame["model"] == frame["model"].iloc[0]]["missing"].value_counts()
    table.loc["products"] = count
    return table[count.index]


def removed(
    found: Mapping[tuple[str, int], Mapped], label: str, metric: str, readout: str
) -> pd.DataFrame:
    """A number of :func:`removal` of one model: a row for each modality taken away, and one for
    none; a column for each seed."""
    frame = tidy(found).query("label == @label and task == 'removal'")
    if frame.empty:
        return frame
    frame = frame[(frame["metric"] == metric) & (frame["variant"] == readout)]
    table = frame.pivot_table(index="modalities", columns="seed", values="value", sort=False)
    whole = from_codes(table.index[0])
    table.index = [
        f"without {codes(set(whole) - set(from_codes(left)))}"
        if left != codes(whole)
        else "all of them"
        for left in table.index
    ]
    return table
