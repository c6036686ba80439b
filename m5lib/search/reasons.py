"""Why a hit is a hit: what its cosine comes from, by modality (exact Shapley values) and by token
(integrated gradients).

Either side can be taken apart: ``hit`` asks which of its contents make it answer, ``query`` which
of what asks finds it. The other side stays as it is. Tokens are words, properties and values,
regions, frames, parts of the sound.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from m5lib.catalogue import Product
from m5lib.embeddings import ACROSS, DEFAULT, embeddings, read_out
from m5lib.explain import attribution
from m5lib.figures import attribution as attribution_figures
from m5lib.modalities import MODALITIES
from m5lib.model import Model, Output
from m5lib.search.index import Hits, Index, compared
from m5lib.streams import Batch, Streams


class Explanation(NamedTuple):
    """What the cosine of a query and a hit comes from.

    Attributes:
        cosine: of the two.
        modalities: modality -> its Shapley value; they add up to the cosine.
        scores: modality -> (L,) of the tokens, by integrated gradients from the baseline "absent",
            and ``error``, by what share of the cosine less that of the baseline they miss it.
        tokens: the same by name, pieces of a word together: ``modality``, ``token``, ``score``, the
            largest absolute score first.
    """

    side: str
    cosine: float
    modalities: pd.Series
    scores: dict[str, np.ndarray]
    error: float
    tokens: pd.DataFrame
    streams: Streams
    row: int

    def picture(self, title: str = "") -> Figure:
        """The product with its tokens in their colours
        (:func:`m5lib.figures.attribution.product`)."""
        return attribution_figures.product(
            self.streams, self.row, self.scores, self.modalities.to_dict(), title
        )


def explain(index: Index, hits: Hits, place: int = 0, side: str = "hit") -> Explanation:
    """The explanation of one hit, ``place`` counted from 0. Raises ``ValueError`` for an unknown
    side, ``IndexError`` for no such hit."""
    if side not in ("hit", "query"):
        raise ValueError(f"unknown side {side!r}: known are hit, query")
    asked, device = index.asked(hits.query), next(index.model.parameters()).device
    if side == "hit":
        streams, row = index.streams, int(hits.rows[place])
        other = compared(embeddings(index.model, asked, [0], readouts=(DEFAULT, ACROSS)), hits.way)
    else:
        streams, row = asked, 0
        other = index.offered(asked.modalities, hits.way)[[hits.rows[place]]]
    batch, sought = streams.batch([row]).to(device), torch.from_numpy(other).float().to(device)
    target = attribution.Target(
        "similarity", index.model, _cosine(index.model, asked.modalities, hits.way), sought
    )
    shares, scored = (
        attribution.shapley(target, batch),
        attribution.integrated_gradients(target, batch),
    )
    scores = {name: part[0].double().cpu().numpy() for name, part in scored.tokens.items()}
    worth = dict(zip(index.model.spec.modalities, shares.values[0].tolist(), strict=True))
    there = pd.Series(
        {name: worth[name] for name in worth if bool(batch.streams[name].valid[0, 0])}
    )
    tokens = _tokens(index.model, batch, streams.catalogue.products[row], scores)
    return Explanation(
        side, float(shares.full[0]), there, scores, float(scored.error[0]), tokens, streams, row
    )


def _cosine(model: Model, names: tuple[str, ...], way: str):
    """(output, sought) -> (B,) cosine by a way of :data:`m5lib.search.index.WAYS`, for a query of
    these modalities."""

    def read(output: Output, sought: Tensor) -> Tensor:
        asked = replace(
            output,
            valid={
                name: x if name in names else torch.zeros_like(x)
                for name, x in output.valid.items()
            },
        )
        parts = {
            DEFAULT: lambda: read_out(model, asked, DEFAULT),
            ACROSS: lambda: read_out(model, output, ACROSS),
        }
        halves = [
            F.normalize(parts[part]().float(), dim=-1)
            for part in (parts if way not in parts else (way,))
        ]
        return F.cosine_similarity(torch.cat(halves, dim=-1), sought, dim=-1)

    return read


def _tokens(
    model: Model, batch: Batch, product: Product, scores: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    found = []
    for name, values in scores.items():
        row, stream = MODALITIES[name], batch.streams[name]
        there = attribution.content(stream)[0].cpu().numpy()
        if not there.any():
            continue
        places = np.flatnonzero(there)
        if row.kind == "features":
            titles = [_place(stream.boxes, n, int(place)) for n, place in enumerate(places)]
            groups = np.arange(len(places))
        else:
            pieces = model.tokenizer.convert_ids_to_tokens(stream.tokens[0].tolist())
            entity = stream.entity[0].cpu().numpy()[places]
            starts = [not pieces[place].startswith("##") for place in places]
            groups = entity if row.hides == "entity" else np.cumsum(starts) - 1
            joined = (
                pd.Series([pieces[place] for place in places])
                .groupby(groups)
                .agg(" ".join)
                .str.replace(" ##", "")
            )
            units = row.units(product.contents[name])
            titles = [units[n] for n in joined.index] if row.hides == "entity" else list(joined)
        summed = pd.Series(values[places]).groupby(groups).sum()
        found += [(name, title, score) for title, score in zip(titles, summed, strict=True)]
    frame = pd.DataFrame(found, columns=["modality", "token", "score"])
    return frame.sort_values("score", key=abs, ascending=False, kind="stable", ignore_index=True)


def _place(boxes: Tensor | None, number: int, place: int) -> str:
    """The name of a region, by its box in per cent of the picture, or of a frame or a part of the
    sound, by its number."""
    if boxes is None:
        return f"no. {number + 1}"
    x1, y1, x2, y2 = (round(100 * float(v)) for v in boxes[0, place, :4])
    return (
        "whole picture" if (x1, y1, x2, y2) == (0, 0, 100, 100) else f"x {x1}–{x2} %, y {y1}–{y2} %"
    )
