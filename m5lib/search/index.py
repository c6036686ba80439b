"""Your own products: vectors, a search by any mix of contents, near-duplicates, and why a hit is
one.

::

    # or build("products.csv", model="runs/scale-…")
    index = build("products.csv")
    hits = index.search(text="red shirt", table={"colour": "red"}, image="photo.jpg")

What asks is a product like any other: it is extracted and embedded, given what it has. How near it
is to one of the gallery is a cosine, in one of three ways:

========  ==================================================================================================================
layered   by what both have: either side is given only the modalities of the query (:data:`m5lib.embeddings.DEFAULT`)
pooled    across modalities: the query is given what it has, the gallery everything (:data:`m5lib.embeddings.ACROSS`), so that a
          product without a title can be found by words
both      the two side by side, each of unit length
========  ==================================================================================================================

Which is best depends on what is asked with: :meth:`Index.evidence` measures it on validation
products that have labels, and the search takes the best; ``both`` where nothing can be measured.
"""  # noqa: E501

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from m5lib import figures
from m5lib.catalogue import Catalogue, DataError, MediaFile, Product
from m5lib.data import media
from m5lib.data.backbones import agreed, choose
from m5lib.embeddings import ACROSS, DEFAULT, embeddings, read_out
from m5lib.evaluation import evaluate
from m5lib.lab import recording, runs
from m5lib.metrics import rank
from m5lib.modalities import MODALITIES, codes, ordered
from m5lib.model import Model
from m5lib.search import intake
from m5lib.streams import Stream, Streams, with_summary

WAYS = (DEFAULT, ACROSS, "both")
#: Products to train on below which a model cannot be adapted.
FEWEST = 20


class Hits(NamedTuple):
    """What a search found, best first: ``rows`` (K,) of the catalogue and their cosines; ``way`` as
    in the module's table."""

    query: Product
    way: str
    rows: Int[np.ndarray, " K"]
    cosines: Float[np.ndarray, " K"]


def build(
    data: str | Path = "shop",
    model: str | Path = "",
    profile: str = "small",
    seed: int = 0,
    extractors: str = "",
) -> "Index":
    """Read products, extract, embed. What was done before with the same products is loaded.

    Args:
        data: a table or folder of products (:func:`m5lib.data.readers.read`), or ``shop``, the
            synthetic one.
        model: folder of a pre-trained model (a run's, or any written by ``save_pretrained``); by
            default one is pre-trained on the training products among these, which needs no labels.
        profile: size of what is pre-trained; ``tiny`` reads at most 400 products.
        extractors: of a model that is pre-trained here (:func:`m5lib.data.backbones.choose`). With
            ``model``, which brings its own: where their weights are now, if not where they were.

    Raises:
        DataError: nothing readable, too little to pre-train on, or a model that reads none of it.
    """
    begun, size = time.monotonic(), runs.profile_of(profile)
    trained = intake.load_model(model) if model else None
    made = agreed(trained.extractors, extractors) if trained else choose(extractors)
    catalogue, features = runs.load(data, size, seed, made)
    if trained:
        streams, folder = intake.Fitted(catalogue, features, trained), Path(model).resolve()
    else:
        if (count := len(catalogue.split("train"))) < FEWEST:
            raise DataError(
                f"{catalogue.name}: {count} products to train on, at least {FEWEST} are needed; "
                "give `model`, a run's folder"
            )
        streams = runs.streams_of(catalogue, features, size)
        run = runs.pretrained(runs.Job(profile, seed=seed, extractors=extractors), streams)
        trained, folder = run.model, run.folder
    vectors = embeddings(trained, streams, range(len(streams)), readouts=(DEFAULT, ACROSS))
    how = recording.provenance(profile, seed, time.monotonic() - begun, extractors)
    how |= {"model": str(folder.name), "fingerprint": catalogue.fingerprint}
    how |= {"data": runs.data_name(catalogue, trained.extractors)}
    return Index(trained, streams, vectors, how, made)


@dataclass
class Index:
    """Products, the model, and the vectors (N, D) of both read-outs with everything that each
    product has; ``extractors`` for what asks (None: made again from the model's settings)."""

    model: Model
    streams: Streams
    vectors: dict[str, np.ndarray]
    made: dict
    extractors: Mapping[str, Any] | None = None
    _given: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict, repr=False)
    _best: dict[tuple[str, ...], str] = field(default_factory=dict, repr=False)

    @property
    def catalogue(self) -> Catalogue:
        """The products, without what could not be read."""
        return self.streams.catalogue

    @cached_property
    def report(self) -> intake.Report:
        """What was read and what was not."""
        return intake.Report(self.catalogue)

    def save(self, folder: str | Path) -> Path:
        """Write the report and ``embeddings.parquet`` into a folder; returns the latter's path.

        Columns: ``id``, ``label``, and each read-out as a fixed-size list of float32; the file's
        metadata say under ``m5lib`` how they came to be.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.report.save(folder)
        columns = {
            "id": pa.array(self.catalogue.ids, pa.string()),
            "label": pa.array(self.catalogue.labels, pa.string()),
        }
        for readout, part in self.vectors.items():
            columns[readout] = pa.FixedSizeListArray.from_arrays(
                pa.array(part.ravel(), pa.float32()), part.shape[1]
            )
        path = Path(folder) / "embeddings.parquet"
        table = pa.table(columns).replace_schema_metadata({"m5lib": json.dumps(self.made)})
        pq.write_table(table, temporary := path.with_suffix(".tmp"))
        os.replace(temporary, path)
        return path

    # --- search

    def product(self, **contents: Any) -> Product:
        """What asks. Keys are modalities: a title as text, attributes as a dict, a path for each
        file; what is empty is absent.

        Raises:
            ValueError: an unknown modality or one that the model does not read, nothing at all, or
                an attribute that no product has.
            DataError: a file that is not there.
        """
        given = {name: contents[name] for name in ordered(contents) if contents[name]}
        if unread := [name for name in given if name not in self.model.spec.modalities]:
            raise ValueError(
                f"the model does not read {unread}; it reads "
                f"{', '.join(self.model.spec.modalities)}"
            )
        if not given:
            raise ValueError(
                "nothing is asked with; give one or more of "
                f"{', '.join(self.model.spec.modalities)}"
            )
        known = self.report.attributes.index
        named = [
            name for content in given.values() if isinstance(content, Mapping) for name in content
        ]
        if strange := [name for name in named if name not in known]:
            raise ValueError(
                f"no product has an attribute {strange}; the most frequent are "
                f"{', '.join(known[:12])}"
            )
        found = {name: _content(name, content) for name, content in given.items()}
        return Product("query", found)

    def search(self, top: int = 8, way: str = "", **contents: Any) -> Hits:
        """The products nearest to a mix of contents (:meth:`product`), by the ``way`` that
        :meth:`best` favours or a named one."""
        return self.nearest(self.product(**contents), top, way)

    def like(self, product: str, top: int = 8, way: str = "") -> Hits:
        """The products nearest to one of the catalogue, itself left out. Raises ``KeyError`` for an
        unknown id."""
        found = np.flatnonzero(self.catalogue.ids == product)
        if not len(found):
            raise KeyError(f"{self.catalogue.name} has no product {product!r}")
        return self.nearest(self.catalogue.products[found[0]], top, way)

    def nearest(self, query: Product, top: int = 8, way: str = "") -> Hits:
        """The products nearest to what asks, exact (:func:`m5lib.metrics.rank`); one with its id is
        not listed.

        Raises:
            DataError: a file of it cannot be read.
            ValueError: an unknown way.
        """
        asked = self.asked(query)
        way, names = way or self.best(asked.modalities), asked.modalities
        mine = compared(embeddings(self.model, asked, [0], readouts=(DEFAULT, ACROSS)), way)
        offered = self.offered(names, way)
        rows = np.flatnonzero((offered != 0).any(axis=1))
        found = rank(
            mine,
            offered,
            top,
            np.array([query.id], dtype=object),
            self.catalogue.ids[rows],
            rows=rows,
        )[0]
        rows = rows[found[found >= 0]]
        return Hits(asked.catalogue.products[0], way, rows, _cosine(mine, offered[rows]))

    def asked(self, query: Product) -> Streams:
        """What asks as streams; a sound that lies in its video asks too."""
        if self.extractors is None:
            self.extractors = agreed(self.model.extractors)
        wanted = {n: e for n, e in self.extractors.items() if n in self.model.spec.modalities}
        try:
            catalogue, features = media.extract(Catalogue("query", (query,)), wanted)
        except DataError as error:
            raise DataError(f"nothing to ask with; {error}") from None
        for skip in catalogue.skipped:
            raise DataError(f"{query.contents[skip.field].name}: {skip.reason}")
        return intake.Fitted(catalogue, features, self.model)

    def offered(self, names: tuple[str, ...], way: str) -> Float[np.ndarray, "N D"]:
        """What the products answer with when these modalities ask. Raises ``ValueError`` for an
        unknown way."""
        if way == ACROSS:
            return self.vectors[ACROSS]
        if names not in self._given:
            while (
                len(self._given) > 2
            ):  # of 16,000 products at 256 dimensions and three modalities each holds 100 MB
                self._given.pop(next(iter(self._given)))
            rows, everything = range(len(self.streams)), set(names) >= set(self.streams.modalities)
            own = (
                self.vectors
                if everything
                else embeddings(self.model, self.streams, rows, names, [DEFAULT])
            )
            self._given[names] = own[DEFAULT]
        return compared({DEFAULT: self._given[names], ACROSS: self.vectors[ACROSS]}, way)

    def evidence(self, names: tuple[str, ...]) -> dict[str, float]:
        """mAP@10 (min(K, R)) of validation products that ask the gallery with these modalities
        only, by each way; empty without labels."""
        asking, _ = self.catalogue.queries("validation")
        asking = asking[evaluate.having(self.catalogue, names)[asking]]
        if not len(asking):
            return {}
        rows, found = np.union1d(asking, self.catalogue.split("gallery")), {}
        asks = runs.vectors(self.model, self.streams, rows, names, (DEFAULT, ACROSS))
        answers = asks | {ACROSS: self.vectors[ACROSS]}
        for way in WAYS:
            given = (names, names if way == DEFAULT else self.streams.modalities)
            gallery = compared(answers, way)
            numbers = evaluate.retrieval(
                self.catalogue, compared(asks, way), "validation", gallery=gallery, given=given
            )
            found[way] = next(
                n["value"]
                for n in numbers
                if (n["metric"], n["convention"]) == ("mAP@10", "min_k_r")
            )
        return found

    def best(self, names: tuple[str, ...]) -> str:
        """The way that :meth:`evidence` favours for these modalities, measured once; ``both``
        without labels."""
        if names not in self._best:
            found = self.evidence(names)
            self._best[names] = max(found, key=found.get) if found else WAYS[-1]
        return self._best[names]

    def table(self, hits: Hits) -> pd.DataFrame:
        """The hits: id, label, title, what the product has, cosine."""
        products = [self.catalogue.products[row] for row in hits.rows]
        titles = [
            next((c for c in p.contents.values() if isinstance(c, str)), "") for p in products
        ]
        found = {
            "id": [p.id for p in products],
            "label": [p.label or "" for p in products],
            "title": titles,
        }
        found |= {"has": [codes(p.contents) for p in products], "cosine": hits.cosines}
        return pd.DataFrame(found, index=pd.RangeIndex(1, len(products) + 1, name="hit"))

    def picture(self, *searches: Hits, title: str = "") -> Figure:
        """What asks and its hits, a line for each search; with its category: blue frame, the same,
        orange frame, another; else grey."""
        asked = [
            replace(hits.query, id=f"{_said(hits.query)}{' ' * (n + 1)}")
            for n, hits in enumerate(searches)
        ]  # no id of the catalogue
        shown = replace(self.catalogue, products=(*self.catalogue.products, *asked))
        found = np.full((len(searches), max(len(hits.rows) for hits in searches)), -1)
        for line, hits in zip(found, searches, strict=True):
            line[: len(hits.rows)] = hits.rows
        wanted = np.array([product.label for product in asked], dtype=object)
        matched = None if None in wanted else shown.labels[found] == wanted[:, None]
        return figures.neighbours(
            shown, range(len(self.catalogue), len(shown)), found, matched, title
        )

    # --- near-duplicates

    @torch.no_grad()
    def copies(
        self, share: float = 0.25, count: int = 512, seed: int = 0
    ) -> Float[np.ndarray, " n"]:
        """Cosine of products with a copy of themselves that lacks a share of its words, regions,
        frames and seconds, drawn at random."""
        rng, found, device = (
            torch.Generator().manual_seed(seed),
            [],
            next(self.model.parameters()).device,
        )
        rows = np.random.default_rng(seed).permutation(len(self.streams))[:count]
        for start in range(0, len(rows), 128):
            batch = self.streams.batch(part := rows[start : start + 128])
            batch = replace(
                batch,
                streams={
                    name: _thinned(stream, share, rng) for name, stream in batch.streams.items()
                },
            )
            copy = read_out(self.model, self.model(batch.to(device)), DEFAULT).float().cpu().numpy()
            found.append(_cosine(copy, self.vectors[DEFAULT][part]))
        return np.concatenate(found)

    def duplicates(self, threshold: float, most: int = 200_000) -> pd.DataFrame:
        """Pairs of products at or above a cosine by all that they have (read-out ``layered``), best
        first: ``id``, ``other``, ``cosine``.

        Exact, in blocks, in double precision where it matters. Of a threshold that too many pairs
        reach only the ``most`` best are kept; ``.attrs["pairs"]`` says how many reach it (if some
        were dropped, in single precision).
        """
        vectors, total, best = (
            self.vectors[DEFAULT],
            0,
            np.zeros(0, dtype=[("cosine", "f8"), ("row", "i8"), ("of", "i8")]),
        )
        unit, edge = _unit(vectors.astype(np.float32)), threshold
        for start in range(0, len(unit), 512):
            scores = unit[start : start + 512] @ unit[start:].T
            scores[np.tril_indices(len(scores), m=scores.shape[1])] = -2.0  # each pair once
            total += int((scores >= threshold).sum())
            row, of = np.nonzero(scores >= edge - 1e-5)
            for low in range(0, len(row), 2**16):
                one, other = row[low : low + 2**16] + start, of[low : low + 2**16] + start
                cosine = _cosine(vectors[one], vectors[other])
                near = cosine >= edge
                new = np.empty(near.sum(), dtype=best.dtype)
                new["cosine"], new["row"], new["of"] = -cosine[near], one[near], other[near]
                best = np.sort(np.concatenate([best, new]))[:most]
                edge = -best["cosine"][-1] if len(best) == most else edge
        one, other = (self.catalogue.ids[best[side]] for side in ("row", "of"))
        found = pd.DataFrame({"id": one, "other": other, "cosine": -best["cosine"]})
        found.attrs["pairs"] = len(found) if len(found) < most else max(total, len(found))
        return found

    def listed(self, thresholds: Sequence[float]) -> pd.DataFrame:
        """Pairs at thresholds against known listings of the same product: ``threshold``, ``pairs``,
        ``right``, ``precision``, ``recall``.

        No row where no two listings of one product are known, nor for a threshold that more pairs
        reach than :meth:`duplicates` keeps. Precision is 0 where there is no pair.
        """
        known = pd.Series(self.catalogue.instances, index=self.catalogue.ids).dropna()
        sizes, found = known.value_counts(), []
        if (total := int((sizes * (sizes - 1) // 2).sum())) and len(thresholds):
            pairs = self.duplicates(min(thresholds))
            right = (
                known.reindex(pairs["id"]).to_numpy() == known.reindex(pairs["other"]).to_numpy()
            )
            cut = pairs["cosine"].min() if len(pairs) < pairs.attrs["pairs"] else -np.inf
            for threshold in sorted(each for each in thresholds if each > cut):
                above = pairs["cosine"].to_numpy() >= threshold
                hits = int(right[above].sum())
                found.append(
                    (
                        float(threshold),
                        int(above.sum()),
                        hits,
                        hits / max(1, above.sum()),
                        hits / total,
                    )
                )
        return pd.DataFrame(found, columns=["threshold", "pairs", "right", "precision", "recall"])


def _said(query: Product) -> str:
    """What a query without words says: its attributes, or else its modalities."""
    pairs = [
        f"{name}: {value}"
        for content in query.contents.values()
        if isinstance(content, tuple)
        for name, value in content
    ]
    return " · ".join(pairs) or codes(query.contents)


def _content(name: str, given: Any) -> Any:
    if isinstance(given, Mapping):
        return tuple((str(key), str(value)) for key, value in given.items())
    if MODALITIES[name].kind == "words" or isinstance(given, MediaFile):
        return given
    if not Path(given).is_file():
        raise DataError(f"{given}: no such file; {name} is asked with by the path of a file")
    return MediaFile(Path(given), size=Path(given).stat().st_size)


def compared(vectors: Mapping[str, Float[np.ndarray, "N _"]], way: str) -> Float[np.ndarray, "N _"]:
    """The vectors whose cosine a way is. Raises ``ValueError`` for an unknown way."""
    if way not in WAYS:
        raise ValueError(f"unknown way {way!r} to compare: known are {WAYS}")
    if way in vectors:
        return vectors[way]
    return np.hstack([_unit(vectors[readout]) for readout in (DEFAULT, ACROSS)])


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one; sklearn's ``normalize`` refuses the NaN that stands for a modality a
    product lacks."""
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)


def _cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N,) cosines of the rows of two arrays, of which one may have a single row."""
    return (_unit(one.astype(np.float64)) * _unit(other.astype(np.float64))).sum(axis=1)


def _thinned(stream: Stream, share: float, rng: torch.Generator) -> Stream:
    """The stream without a share of its tokens; the summary and the first token stay."""
    kept = torch.rand(stream.valid.shape, generator=rng) >= share
    kept[:, :2] = True
    valid = stream.valid & kept
    return replace(
        stream,
        valid=valid,
        tokens=stream.tokens if stream.entity is not None else with_summary(stream.tokens, valid),
    )
