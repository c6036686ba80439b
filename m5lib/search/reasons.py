"""Why a hit is a hit: its cosine taken apart by modality (exact Shapley values) and by token
(integrated gradients).

One side is taken apart while the other stays as it is. ``hit``: which contents of the product make
it a hit. ``query``: which contents of the query find it. Tokens are words, properties and values,
regions, frames and stretches of sound.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from m5lib.catalogue import Product
from m5lib.embeddings import ACROSS, DEFAULT, read_out
from m5lib.explain import attribution
from m5lib.figures import attribution as figures
from m5lib.figures.tokens import as_read
from m5lib.lab import checked
from m5lib.modalities import MODALITIES
from m5lib.model import Model, Output
from m5lib.search.index import Hits, Index, compared
from m5lib.streams import Batch, Streams


class Explanation(NamedTuple):
    """What the cosine of a query and a hit comes from.

    Attributes:
        side: ``hit`` or ``query``, the one that is taken apart.
        cosine: of the two.
        modalities: modality -> its Shapley value; they add up to the cosine.
        hidden: the cosine with every token of the side hidden, the baseline "absent".
        scores: modality -> (L,) of its tokens, integrated gradients: they add up to ``cosine -
            hidden``.
        error: what they miss of that, as a share of it.
        tokens: the scores by name, pieces of a word together: ``modality``, ``token``, ``score``,
            the largest absolute score first.
        streams: those of the side, and ``row``, its row of them.
    """

    side: str
    cosine: float
    modalities: pd.Series
    hidden: float
    scores: dict[str, np.ndarray]
    error: float
    tokens: pd.DataFrame
    streams: Streams
    row: int

    def picture(self, title: str = "") -> Figure:
        """The product with its tokens in their colours
        (:func:`m5lib.figures.attribution.product`)."""
        worth = self.modalities.to_dict()
        return figures.product(self.streams, self.row, self.scores, worth, title)


@checked
def explain(index: Index, hits: Hits, place: int = 0, side: str = "hit") -> Explanation:
    """The explanation of one hit, ``place`` counted from 0. Raises ``ValueError`` for an unknown
    side or a model that imputes what is missing, ``IndexError`` for no such hit."""
    if side not in ("hit", "query"):
        raise ValueError(f"unknown side {side!r}: known are hit, query")
    if place >= len(hits.rows):
        raise IndexError(f"place {place}: there are {len(hits.rows)} hits, counted from 0")
    model, query, row = index.model, index.query(hits.query), int(hits.rows[place])
    if model.spec.missing == "impute":  # there is no product without anything to compare with
        mend = 'give one with Spec.missing="mask"'
        raise ValueError(f"no modality can be taken away from a model that imputes; {mend}")
    device, names = next(model.parameters()).device, query.modalities
    if side == "hit":
        streams = index.streams
        other = compared(index.encoder.embed(query, [0]), hits.way)
    else:
        other = index.gallery(names, hits.way)[[row]]
        streams, row = query, 0
    batch, sought = streams.batch([row]).to(device), torch.from_numpy(other).float().to(device)
    slope, offset = index.scale(names, hits.way)[int(hits.rows[place])].tolist()
    read = _cosine(index, names, hits.way, slope)
    target = attribution.Target("similarity", model, read, sought)
    shares = attribution.shapley(target, batch)
    gradients = attribution.integrated_gradients(target, batch)
    scores = {name: x[0].double().cpu().numpy() for name, x in gradients.tokens.items()}
    worth = zip(model.spec.modalities, shares.values[0].tolist(), strict=True)
    modalities = pd.Series({n: value for n, value in worth if batch.streams[n].valid[0, 0]})
    modalities += offset / len(modalities)  # what each adds to "there is anything"
    tokens = _tokens(model, batch, streams.catalogue.products[row], scores)
    cosine, hidden = (float(x[0]) + offset for x in (shares.full, gradients.base))
    error = float(gradients.error[0])
    return Explanation(side, cosine, modalities, hidden, scores, error, tokens, streams, row)


def _cosine(index: Index, names: tuple[str, ...], way: str, slope: float):
    """(output, sought) -> (B,) cosine by a way of :data:`m5lib.search.index.WAYS`, for a query of
    these modalities, times the slope of its scale."""
    model, turned = index.model, index.encoder.turned

    def read(output: Output, sought: Tensor) -> Tensor:
        valid = {n: x if n in names else torch.zeros_like(x) for n, x in output.valid.items()}
        readouts = [way] if way in (DEFAULT, ACROSS) else [DEFAULT, ACROSS]
        given = {ACROSS: output}
        if DEFAULT in readouts:  # what the query lacks is not there before the fusion either
            given[DEFAULT] = model.forward_from_embeddings(output.embedded, valid, {})
        vectors = {n: read_out(model, given[n], n).float() for n in readouts}
        for n in turned.keys() & vectors.keys():
            vectors[n] = vectors[n] @ torch.from_numpy(turned[n]).to(vectors[n].device)
        vectors = [F.normalize(vector, dim=-1) for vector in vectors.values()]
        return slope * F.cosine_similarity(torch.cat(vectors, dim=-1), sought, dim=-1)

    return read


def _tokens(
    model: Model, batch: Batch, product: Product, scores: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    rows = []
    for name, values in scores.items():
        row, stream = MODALITIES[name], batch.streams[name]
        places = np.flatnonzero(attribution.content(stream)[0].cpu().numpy())
        if not len(places):
            continue
        if row.kind == "features":
            groups = np.arange(len(places))
            titles = [_place(stream.boxes, n, int(place)) for n, place in enumerate(places)]
        else:
            content, groups = product.contents[name], stream.entity[0].cpu().numpy()[places]
            if row.hides == "entity":
                units = row.units(content)
                titles = [units[n] for n in np.unique(groups)]
            else:
                groups, titles = _words(content, model.tokenizer, len(places))
        sums = pd.Series(values[places]).groupby(groups).sum()
        rows += [(name, title, score) for title, score in zip(titles, sums, strict=True)]
    table = pd.DataFrame(rows, columns=["modality", "token", "score"])
    return table.sort_values("score", key=abs, ascending=False, kind="stable", ignore_index=True)


def _words(text: str, tokenizer, count: int) -> tuple[np.ndarray, list[str]]:
    """Which of its words each of the first pieces of a text lies in, and what these are."""
    text = as_read(text)
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    groups = np.array(made.word_ids()[:count])
    spans = pd.DataFrame(made["offset_mapping"][:count]).groupby(groups).agg({0: "min", 1: "max"})
    return groups, [text[start:end].strip() for start, end in spans.itertuples(index=False)]


def _place(boxes: Tensor | None, number: int, place: int) -> str:
    """The name of a region: its box in per cent of the picture. That of a frame or a stretch of
    sound: its number."""
    if boxes is None:
        return f"no. {number + 1}"
    x1, y1, x2, y2 = (round(100 * float(v)) for v in boxes[0, place, :4])
    whole = (x1, y1, x2, y2) == (0, 0, 100, 100)
    return "whole picture" if whole else f"x {x1}–{x2} %, y {y1}–{y2} %"
