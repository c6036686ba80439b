"""Your own products: vectors, search by any mix of contents, near-duplicates.

::

    index = build("products.csv")  # or build("products.csv", model="runs/scale-…")
    hits = index.search(text="red shirt", table={"colour": "red"}, image="photo.jpg")

A query is a product like any other: it is extracted and embedded, given what it has. How near it is
to a product of the gallery is a cosine, in one of three ways:

========  ========================================================================================
weighted  query and gallery are given only the modalities of the query
          (:data:`m5lib.embeddings.DEFAULT`)
pooled    the query is given what it has, the gallery everything
          (:data:`m5lib.embeddings.ACROSS`): a product without a title can be found by words
both      the two side by side, each of unit length
========  ========================================================================================

In the last two, products have other modalities than the query and than each other: their cosines
are put on one scale (:mod:`m5lib.search.across`), so that none wins by lacking something.

Which is best depends on the modalities of the query. :meth:`Index.evidence` measures it on
validation products with labels, and the search takes the best; without labels it takes ``both``.
"""

import json
import time
from collections.abc import Mapping
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
from m5lib.catalogue import Catalogue, DataError, Product
from m5lib.data import whole_file
from m5lib.data.backbones import agreed, choose
from m5lib.embeddings import ACROSS, DEFAULT, embeddings, read_out
from m5lib.evaluation import evaluate
from m5lib.evaluation.metrics import rank
from m5lib.lab import checked, recording, runs
from m5lib.modalities import MODALITIES, codes
from m5lib.model import Model
from m5lib.search import intake
from m5lib.search.across import answering, asking, one_scale
from m5lib.search.duplicates import Near, calibrate, pairs
from m5lib.search.encode import COMPARED, Encoder, cosine, directions, unit
from m5lib.streams import Stream, Streams, with_summary

WAYS = (DEFAULT, ACROSS, "both")
#: Near-duplicates have the same words and regions; the fused vector says what kind of thing it is.
NEAR = "layered"
#: Products to train on below which a model cannot be adapted.
FEWEST = 20


class Hits(NamedTuple):
    """Products nearest to a query, best first: ``rows`` (K,) of the catalogue, their cosines (on
    one scale), and the ``way`` they were compared by."""

    query: Product
    way: str
    rows: Int[np.ndarray, " K"]
    cosines: Float[np.ndarray, " K"]


@checked
def build(
    data: str | Path = "shop",
    model: str | Path | None = "",
    profile: str = "small",
    seed: int = 0,
    extractors: str = "",
    bert: str = "",
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
        bert: what titles of a model that is pre-trained here start from (:class:`runs.Job`).

    Raises ``DataError``: nothing readable, too little to pre-train on, or a model that reads none
    of it.
    """
    begun, size = time.monotonic(), runs.profile_of(profile)
    trained = intake.load_model(model) if model else None
    made = agreed(trained.extractors, extractors) if trained else choose(extractors)
    catalogue, features = runs.load(data, size, seed, made)
    count = len(catalogue.split("train"))
    if trained:
        streams = Streams(catalogue, features, trained.tokenizer, spec=trained.spec)
        folder = Path(model).resolve()
    elif count < FEWEST:
        few = f"{count} of its {len(catalogue)} products are for training (some half, by their ids)"
        few += f", {FEWEST} are needed: give some {2 * FEWEST} products"
        raise DataError(f"{catalogue.name}: {few}, or `model`, a run's folder")
    else:
        streams = runs.streams_of(catalogue, features, size, tokenizer=bert)
        job = runs.Job(profile, "scale_fused", seed, extractors=extractors, bert=bert)
        run = runs.pretrained(job, streams)  # the run of notebook 05
        trained, folder = run.model, run.folder
    encoder = Encoder(trained, made)
    vectors = encoder.embed(streams, range(len(streams)))
    how = recording.provenance(profile, seed, time.monotonic() - begun, extractors, bert)
    how |= {"model": str(folder.name), "fingerprint": catalogue.fingerprint}
    how["data"] = runs.data_name(catalogue, trained.extractors, "" if model else bert)
    how |= (intake.provenance(folder, trained) if model else {}) | {"at_most": size.products}
    return Index(encoder, streams, vectors, how)


@checked
@dataclass
class Index:
    """Products, their encoder, and vectors (N, D) of both read-outs, given all they have."""

    encoder: Encoder
    streams: Streams
    vectors: dict[str, np.ndarray]
    made: dict
    _given: dict[tuple[str, ...], dict] = field(default_factory=dict, repr=False)
    _scale: dict[tuple[tuple[str, ...], str], np.ndarray] = field(default_factory=dict, repr=False)
    _best: dict[tuple[str, ...], str] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> Model:
        """The pre-trained one."""
        return self.encoder.model

    @cached_property
    def details(self) -> np.ndarray:
        """(N, D) vectors of the products by the read-out :data:`NEAR`."""
        return embeddings(self.model, self.streams, range(len(self.streams)), readouts=[NEAR])[NEAR]

    @property
    def catalogue(self) -> Catalogue:
        """The products, without what could not be read."""
        return self.streams.catalogue

    @cached_property
    def report(self) -> intake.Report:
        """What was read and what was not."""
        reads, most = self.model.spec.modalities, self.made.get("at_most", 0)
        return intake.Report(self.catalogue, reads, most)

    def save(self, folder: str | Path) -> Path:
        """Write the report and ``embeddings.parquet`` into a folder; returns the latter's path.
        Columns: ``id``, ``label``, and each read-out as a fixed-size list of float32; the file's
        metadata say under ``m5lib`` how they were made."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.report.save(folder)
        columns = {
            "id": pa.array(self.catalogue.ids, pa.string()),
            "label": pa.array(self.catalogue.labels, pa.string()),
        }
        for readout, vectors in self.vectors.items():
            flat = pa.array(vectors.ravel(), pa.float32())
            columns[readout] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        path = Path(folder) / "embeddings.parquet"
        table = pa.table(columns).replace_schema_metadata({"m5lib": json.dumps(self.made)})
        with whole_file(path) as temporary:
            pq.write_table(table, temporary)
        return path

    @cached_property
    def _directions(self) -> dict[str, np.ndarray]:
        """Of the training products, or of all where there is none."""
        rows = self.catalogue.split("train")
        return {name: directions(x[rows] if len(rows) else x) for name, x in self.vectors.items()}

    def truncate(self, truncate_dim: int) -> "Index":
        """The same products by vectors of fewer numbers: the ``truncate_dim`` directions along
        which the training products' vectors lie most (:func:`m5lib.search.encode.directions`).
        Raises ``ValueError`` where there are no so many."""
        most = max(vectors.shape[1] for vectors in self.vectors.values())
        if not 0 < truncate_dim <= most:
            raise ValueError(f"truncate_dim {truncate_dim}: give a whole number from 1 to {most}")
        turned = {name: basis[:, :truncate_dim] for name, basis in self._directions.items()}
        vectors, before = {n: self.vectors[n] @ turned[n] for n in turned}, self.encoder.turned
        turned = {n: before[n] @ basis if n in before else basis for n, basis in turned.items()}
        how = self.made | {"truncate_dim": truncate_dim}
        return Index(replace(self.encoder, turned=turned), self.streams, vectors, how)

    def encode(
        self, products: Any, readout: str = DEFAULT, truncate_dim: int = 0, batch_size: int = 128
    ) -> Float[np.ndarray, "... D"]:
        """Vectors of unit length of any products (:meth:`m5lib.search.encode.Encoder.encode`); with
        ``truncate_dim`` as by :meth:`truncate`, which knows two read-outs. ``ValueError``: others.
        """
        if truncate_dim and readout not in COMPARED:
            raise ValueError(f"truncate_dim with read-out {readout!r}: give one of {COMPARED}")
        encoder = self.truncate(truncate_dim).encoder if truncate_dim else self.encoder
        return encoder.encode(products, readout, batch_size)

    similarity = staticmethod(Encoder.similarity)

    def product(self, **contents: Any) -> Product:
        """A query as a product (:meth:`m5lib.search.encode.Encoder.product`). Raises ``ValueError``
        too for attributes that no product has."""
        product = self.encoder.product(contents)
        attributes, given = self.report.attributes.index, product.contents.values()
        tables = [content for content in given if isinstance(content, tuple)]
        if unknown := [name for table in tables for name, _ in table if name not in attributes]:
            some = ", ".join(attributes[:12])
            raise ValueError(f"no product has an attribute {unknown}; the most frequent are {some}")
        return product

    def search(self, top: int = 8, way: str = "", **contents: Any) -> Hits:
        """The products nearest to a mix of contents (:meth:`product`), :meth:`nearest`."""
        return self.nearest(self.product(**contents), top, way)

    def like(self, product: str | int, top: int = 8, way: str = "") -> Hits:
        """The products nearest to one of the catalogue, itself left out. ``KeyError``: no such."""
        rows = np.flatnonzero(self.catalogue.ids == str(product))
        if not len(rows):
            raise KeyError(f"{self.catalogue.name} has no product {product!r}")
        return self.nearest(self.catalogue.products[rows[0]], top, way)

    def nearest(self, query: Product, top: int = 8, way: str = "") -> Hits:
        """The products nearest to a query, exact (:func:`m5lib.evaluation.metrics.rank`); one with
        its id is not listed.

        Raises:
            DataError: a file of it cannot be read, or there is no other product to find.
            ValueError: an unknown way.
        """
        streams, top = self.query(query), min(top, len(self.catalogue))
        names, ids = streams.modalities, self.catalogue.ids
        way = way or self.best(names)
        vector, gallery = compared(self.encoder.embed(streams, [0]), way), self.gallery(names, way)
        rows = np.flatnonzero((gallery != 0).any(axis=1))
        own, scale = np.array([query.id], dtype=object), self.scale(names, way)
        sides = (vector, gallery) if way == DEFAULT else (asking(vector), answering(gallery, scale))
        places = rank(*sides, top, own, ids[rows], rows=rows)[0]
        if not len(rows := rows[places[places >= 0]]):
            raise DataError(f"{self.catalogue.name}: no other product to compare the query with")
        cosines = scale[rows, 0] * cosine(vector, gallery[rows]) + scale[rows, 1]
        order = np.argsort(-cosines, kind="stable")  # of equal ones: rounding
        return Hits(streams.catalogue.products[0], way, rows[order], cosines[order])

    def query(self, product: Product) -> Streams:
        """A query's streams. A product of the catalogue has them: its files need not be there."""
        read = self.encoder.read
        for row in np.flatnonzero(self.catalogue.ids == product.id):
            if read(product).contents == read(self.catalogue.products[row]).contents:
                return self.encoder.alone(self.streams, row)
        return self.encoder.streams([product])

    def given(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Vectors of all products by both read-outs, given only these modalities."""
        if names not in self._given:
            while len(self._given) > 2:  # 16,000 products, 256 wide, I+T+Tab: 100 MB each
                self._given.pop(next(iter(self._given)))
            given, rows = self.vectors, range(len(self.streams))
            if not set(names) >= set(self.streams.modalities):
                given = self.encoder.embed(self.streams, rows, names)
            self._given[names] = given
        return self._given[names]

    def gallery(self, names: tuple[str, ...], way: str) -> Float[np.ndarray, "N D"]:
        """Vectors of all products, to compare with a query of these modalities. Raises
        ``ValueError`` for an unknown way."""
        given = self.vectors if way == ACROSS else self.given(names)
        return compared(given | {ACROSS: self.vectors[ACROSS]}, way)

    def scale(self, names: tuple[str, ...], way: str) -> Float[np.ndarray, "N 2"]:
        """:func:`m5lib.search.across.one_scale` for queries of these modalities, by up to 300
        products that have them (or some, where none has all); slope 1 and offset 0 where both sides
        are given the same."""
        if (names, way) not in self._scale:
            there = self.catalogue.presence.reindex(columns=MODALITIES, fill_value=False)
            own, groups = there[list(names)], np.zeros(len(there), int)
            rows = np.flatnonzero(own.all(axis=1) if own.all(axis=1).any() else own.any(axis=1))
            if way != DEFAULT and len(rows):
                sets = there[list(self.streams.modalities)].to_numpy()
                groups = np.unique(sets, axis=0, return_inverse=True)[1].reshape(-1)
                rows = np.random.default_rng(0).permutation(rows)[:300]
            asked = compared({n: x[rows] for n, x in self.given(names).items()}, way)
            self._scale[names, way] = one_scale(asked, rows, self.gallery(names, way), groups)
        return self._scale[names, way]

    def evidence(self, names: tuple[str, ...]) -> dict[str, float]:
        """mAP@10 (min(K, R)) by each way, of validation products as queries that have only these
        modalities; empty without labels."""
        catalogue, scores = self.catalogue, {}
        queries, _ = evaluate.queries(catalogue, "validation")
        if not evaluate.having(catalogue, names)[queries].any():
            return {}
        for way in WAYS:
            mine, gallery = compared(self.given(names), way), self.gallery(names, way)
            if way != DEFAULT:
                mine, gallery = asking(mine), answering(gallery, self.scale(names, way))
            given = (names, names if way == DEFAULT else self.streams.modalities)
            numbers = evaluate.retrieval(catalogue, mine, "validation", "usual", gallery, given)
            scores[way] = evaluate.value(numbers)
        return scores

    def best(self, names: tuple[str, ...]) -> str:
        """The best way by :meth:`evidence`, measured once; ``both`` without labels."""
        if names not in self._best:
            scores = self.evidence(names)
            self._best[names] = max(scores, key=scores.get) if scores else WAYS[-1]
        return self._best[names]

    def table(self, hits: Hits) -> pd.DataFrame:
        """The hits: id, label, title, what the product has, and the score that orders them: the
        cosine, put on one scale where products have different modalities (it may pass 1)."""
        products = [self.catalogue.products[row] for row in hits.rows]
        texts = [[*(c for c in p.contents.values() if isinstance(c, str)), ""] for p in products]
        rows = [
            (p.id, p.label or "", text[0], codes(p.contents), cosine)
            for p, text, cosine in zip(products, texts, hits.cosines, strict=True)
        ]
        index = pd.RangeIndex(1, len(rows) + 1, name="hit")
        return pd.DataFrame(rows, index, ["id", "label", "title", "has", "score"])

    def picture(self, *searches: Hits, title: str = "") -> Figure:
        """Queries and their hits, a line for each. Where both categories are known: blue frame, the
        same, orange frame, another; else grey."""
        named = enumerate((hits.query for hits in searches), 1)
        queries = [replace(q, id=_name(q) + " " * n) for n, q in named]  # no two ids alike
        shown = replace(self.catalogue, products=(*self.catalogue.products, *queries))
        rows = np.full((len(searches), max(len(hits.rows) for hits in searches)), -1)
        for line, hits in zip(rows, searches, strict=True):
            line[: len(hits.rows)] = hits.rows
        labels = np.array([query.label for query in queries], dtype=object)
        matched = None if None in labels else shown.labels[rows] == labels[:, None]
        places = range(len(self.catalogue), len(shown))
        return figures.neighbours(shown, places, rows, matched, title)

    @torch.no_grad()
    def copies(
        self, share: float = 0.25, count: int = 512, seed: int = 0
    ) -> Float[np.ndarray, " n"]:
        """Cosine of ``count`` products with a copy of themselves that lacks a share of its words,
        regions, frames and seconds, drawn at random: how near a near-duplicate is."""
        rng, device = torch.Generator().manual_seed(seed), next(self.model.parameters()).device
        rows = np.random.default_rng(seed).permutation(len(self.streams))[:count]
        cosines = []
        for start in range(0, len(rows), 128):
            batch = self.streams.batch(rows[start : start + 128])
            streams = {n: _thinned(stream, share, rng) for n, stream in batch.streams.items()}
            output = self.model(replace(batch, streams=streams).to(device))
            copy = read_out(self.model, output, NEAR).float().cpu().numpy()
            cosines.append(cosine(copy, self.details[batch.rows]))
        return np.concatenate(cosines)

    def near(self, precision: float = 0.9) -> Near:
        """From which cosine on pairs are near-duplicates, without labels
        (:func:`m5lib.search.duplicates.calibrate`)."""
        return calibrate(self.details, precision)

    def duplicates(self, threshold: float | None = None, most: int = 200_000) -> pd.DataFrame:
        """Pairs of products at or above a cosine (None: of :meth:`near`) by all that they have
        (read-out :data:`NEAR`), best first: ``id``, ``other``, ``cosine``. Only the ``most`` best
        are kept; ``.attrs["pairs"]`` says how many reach the threshold
        (:func:`m5lib.search.duplicates.pairs`)."""
        threshold = self.near().cosine if threshold is None else threshold
        best, total = pairs(self.details, threshold, most)
        one, other = (self.catalogue.ids[best[side]] for side in ("row", "of"))
        table = pd.DataFrame({"id": one, "other": other, "cosine": -best["distance"]})
        table.attrs["pairs"] = total
        return table


def _name(query: Product) -> str:
    """What a query without words is called: its attributes, or else its modalities."""
    tables = [content for content in query.contents.values() if isinstance(content, tuple)]
    return " · ".join(f"{n}: {v}" for table in tables for n, v in table) or codes(query.contents)


def compared(vectors: Mapping[str, Float[np.ndarray, "N _"]], way: str) -> Float[np.ndarray, "N _"]:
    """The vectors whose cosine a way is. Raises ``ValueError`` for an unknown way."""
    if way not in WAYS:
        raise ValueError(f"unknown way {way!r} to compare: known are {WAYS}")
    if way in vectors:
        return vectors[way]
    return np.hstack([unit(vectors[readout]) for readout in COMPARED])


def _thinned(stream: Stream, share: float, rng: torch.Generator) -> Stream:
    """The stream without a share of its tokens; the summary and the first token stay."""
    kept = torch.rand(stream.valid.shape, generator=rng) >= share
    kept[:, :2] = True
    valid, words = stream.valid & kept, stream.entity is not None
    tokens = stream.tokens if words else with_summary(stream.tokens, valid)
    return replace(stream, valid=valid, tokens=tokens)
