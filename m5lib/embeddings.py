"""From a model and products to one vector per product, by named read-outs.

Which vector is "the embedding" is a choice with consequences: the paper adds up the first tokens
after the fusion, which none of its losses trains directly. All are measured; see :data:`TABLE`.

>>> evaluate.fit_readouts(model, streams)  # m5lib.evaluation
>>> vectors = embeddings(model, streams, rows, modalities=["text"])  # given titles only
>>> vectors["layered"].shape  # (N, E)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from m5lib.catalogue import Rows
from m5lib.layers import first_token, mean_token
from m5lib.model import Model, Output
from m5lib.streams import Batch, Streams

#: The paper's read-out, and the one used where nothing else is asked for: the best on validation
#: products of the shop given all, and on real ones never worse given more (``LOG.md``). ACROSS
#: compares one set of modalities with another; READOUTS have the same set on both sides.
PAPER, DEFAULT = "fused_first", "weighted"
ACROSS = "pooled"


class ReadOut(NamedTuple):
    """One row of the table.

    Attributes:
        states: of :class:`~m5lib.model.Output`; ``pooled`` is what the contrast compares.
        pool: tokens -> one vector of each modality.
        unit: each is scaled to unit length.
        beside: they stand side by side, instead of being added up.
        whitened: each modality is decorrelated first (:class:`m5lib.layers.Whitening`).
    """

    states: tuple[str, ...]
    pool: Callable = mean_token
    unit: bool = True
    beside: bool = False
    whitened: bool = False


TABLE = {
    "fused_first": ReadOut(("fused",), first_token, unit=False),  # the paper's
    "fused_mean": ReadOut(("fused",)),
    "encoded_first": ReadOut(("encoded",), first_token),
    "encoded_mean": ReadOut(("encoded",)),
    "concat": ReadOut(("pooled",), beside=True),
    "whitened": ReadOut(("pooled",), beside=True, whitened=True),
    # and beside it what the words and regions say one by one
    "layered": ReadOut(("pooled", "embedded"), beside=True, whitened=True),
    # one set of modalities against another: side by side they would have nothing in common
    "pooled": ReadOut(("pooled",)),
}
#: Side by side, each of unit length: the fused vector, and every part, which in ``weighted`` counts
#: as much as helped validation products (``Model.importance``; without labels all alike).
BESIDE = {"fused_layered": ("fused_first", "layered"), "weighted": ("fused_first", "layered")}
READOUTS = (*(name for name in TABLE if name != ACROSS), *BESIDE)

Parts = dict[tuple[str, str], Float[Tensor, "B E"]]


def vectors_of(output: Output, states: str, pool: Callable = mean_token) -> Iterator:
    """(name, (B, D)) of each modality; those of an absent one mean nothing."""
    for name, x in getattr(output, states).items():
        yield name, x if x.ndim == 2 else pool(x, output.valid[name])


def parts_of(model: Model, output: Output, readout: str) -> Parts:
    """What a read-out of :data:`TABLE` is made of: (states, modality) -> (B, E), absent: zeros."""
    row, parts = TABLE[readout], {}
    for states in row.states:
        for name, x in vectors_of(output, states, row.pool):
            x = model.whitening[states][name](x) if row.whitened else x
            x = F.normalize(x.float(), dim=-1) if row.unit else x
            parts[states, name] = x * output.valid[name][:, :1]
    return parts


def joined(parts: Parts, readout: str, weights: Mapping[str, float] | None = None) -> Tensor:
    """:func:`parts_of` as one vector of each product; each modality times its weight, if given."""
    vectors = [x if weights is None else weights[name] * x for (_, name), x in parts.items()]
    return torch.cat(vectors, dim=-1) if TABLE[readout].beside else torch.stack(vectors).sum(dim=0)


def read_out(model: Model, output: Output, readout: str) -> Float[Tensor, "B E"]:
    """(B, D), or more where modalities stand side by side. ``ValueError``: unknown read-out."""
    if readout not in (*TABLE, *BESIDE):
        raise ValueError(f"unknown read-out {readout!r}: known are {(*TABLE, *BESIDE)}")
    if readout in TABLE:
        return joined(parts_of(model, output, readout), readout)
    names, weights = model.spec.modalities, None
    if readout == "weighted":
        weights = dict(zip(names, model.importance.tolist(), strict=True))
    sides = [joined(parts_of(model, output, side), side, weights) for side in BESIDE[readout]]
    return torch.cat([F.normalize(side.float(), dim=-1) for side in sides], dim=-1)


def in_batches(
    module: nn.Module,
    streams: Streams,
    rows: Rows,
    modalities: Iterable[str] | None = None,
    batch_size: int = 128,
) -> Iterator[Batch]:
    """Batches of the rows on the module's device, given only some modalities (by default all). The
    module is in evaluation mode until the last one is used. Take them under ``torch.no_grad``."""
    device, was_training, rows = next(module.parameters()).device, module.training, np.asarray(rows)
    module.eval()
    try:
        for start in range(0, len(rows), batch_size):
            batch = streams.batch(rows[start : start + batch_size]).to(device)
            yield batch if modalities is None else batch.only(modalities)
    finally:
        module.train(was_training)


@torch.no_grad()
def embeddings(
    model: Model,
    streams: Streams,
    rows: Rows,
    modalities: Iterable[str] | None = None,
    readouts: Iterable[str] = READOUTS,
    batch_size: int = 128,
) -> dict[str, np.ndarray]:
    """Embeddings of products, given only some of their modalities (by default all of the model; a
    product that has none gets zeros): read-out -> (N, D) float32, in the rows' order."""
    vectors = {readout: [] for readout in readouts}
    wanted = None if "fused_mean" in vectors else {}
    for batch in in_batches(model, streams, rows, modalities, batch_size):
        output = model(batch, wanted)
        for readout, parts in vectors.items():
            parts.append(read_out(model, output, readout).float().cpu())
    return {readout: torch.cat(parts).numpy() for readout, parts in vectors.items()}
