"""From a model and products to one vector per product, by named read-outs.

Which vector is "the embedding" is a choice with consequences: the paper adds up the first tokens
after the fusion, which none of its losses trains directly. All are measured; see :data:`TABLE`.

>>> fit_whitening(model, streams, catalogue.split("train"))
>>> vectors = embeddings(model, streams, rows, modalities=["text"])  # given titles only
>>> vectors["layered"].shape  # (N, E)
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from m5lib.catalogue import Rows
from m5lib.layers import first_token, mean_token
from m5lib.model import Model, Output
from m5lib.streams import Batch, Streams

#: The paper's read-out, and the one used where nothing else is asked for: the best on validation
#: products, averaged over the sets of modalities that ``05_downstream`` gives the model. Not the
#: best for each set: see the table there. The one for comparing one set of modalities with another
#: is :data:`ACROSS`; it is not among :data:`READOUTS`, which are measured with the same set on both
#: sides.
PAPER, DEFAULT = "fused_first", "layered"
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
    # for queries in one set of modalities against a gallery in another (image -> text): side by
    # side they would have nothing in common
    "pooled": ReadOut(("pooled",)),
}
#: Read-outs side by side, each of unit length: what the fused vector says, and every part.
BESIDE = {"fused_layered": ("fused_first", "layered")}
READOUTS = (*(name for name in TABLE if name != ACROSS), *BESIDE)


def _vectors(output: Output, states: str, pool: Callable = mean_token) -> Iterator:
    """(name, (B, D)) of each modality; those of an absent one mean nothing."""
    for name, x in getattr(output, states).items():
        yield name, x if x.ndim == 2 else pool(x, output.valid[name])


def read_out(model: Model, output: Output, readout: str) -> Float[Tensor, "B E"]:
    """(B, D) embeddings, or (B, M D) and more where modalities stand side by side. Raises
    ``ValueError`` for an unknown read-out."""
    if readout in BESIDE:
        parts = [read_out(model, output, part).float() for part in BESIDE[readout]]
        return torch.cat([F.normalize(part, dim=-1) for part in parts], dim=-1)
    if readout not in TABLE:
        raise ValueError(f"unknown read-out {readout!r}: known are {(*TABLE, *BESIDE)}")
    row, vectors = TABLE[readout], []
    for states in row.states:
        for name, x in _vectors(output, states, row.pool):
            x = model.whitening[states][name](x) if row.whitened else x
            x = F.normalize(x.float(), dim=-1) if row.unit else x
            vectors.append(x * output.valid[name][:, :1])  # an absent modality is the zero vector
    return torch.cat(vectors, dim=-1) if row.beside else torch.stack(vectors).sum(dim=0)


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
def fit_whitening(model: Model, streams: Streams, rows: Rows) -> None:
    """Fit the model's whitening on these products; only those that have a modality count for it."""
    fitted: dict[tuple[str, str], list[Tensor]] = {}
    for batch in in_batches(model, streams, rows):
        output = model.encode(batch)
        for states in model.whitening:
            for name, x in _vectors(output, states):
                fitted.setdefault((states, name), []).append(x[output.valid[name][:, 0]])
    for (states, name), vectors in fitted.items():
        model.whitening[states][name].fit(torch.cat(vectors))


@torch.no_grad()
def embeddings(
    model: Model,
    streams: Streams,
    rows: Rows,
    modalities: Iterable[str] | None = None,
    readouts: Iterable[str] = READOUTS,
    batch_size: int = 128,
) -> dict[str, np.ndarray]:
    """Embeddings of products, given only some of their modalities.

    Args:
        rows: which products of the streams.
        modalities: the ones the model is given; by default all it was built for. A product that has
            none of them gets zeros.

    Returns:
        read-out -> (N, D) float32, in the order of ``rows``.
    """
    vectors = {readout: [] for readout in readouts}
    wanted = None if "fused_mean" in vectors else {}
    for batch in in_batches(model, streams, rows, modalities, batch_size):
        output = model(batch, wanted)
        for readout, parts in vectors.items():
            parts.append(read_out(model, output, readout).float().cpu())
    return {readout: torch.cat(parts).numpy() for readout, parts in vectors.items()}


@torch.no_grad()
def mean_harmony(model: Model, streams: Streams, rows: Rows) -> np.ndarray:
    """(M, M) harmony scores before the fusion, each entry averaged over the products that have both
    modalities (0 if none has)."""
    device, sides = next(model.parameters()).device, len(model.spec.modalities)
    total, count = torch.zeros(2, sides, sides, device=device)
    for batch in in_batches(model, streams, rows):
        output = model.encode(batch)
        both = output.presence[:, :, None] & output.presence[:, None, :]
        s = model.harmony(torch.stack(list(output.pooled.values()), dim=1), output.presence)
        total, count = total + (both if s is None else s).sum(0), count + both.sum(0)
    return (total / count.clamp(min=1)).float().cpu().numpy()


@torch.no_grad()
def similarity(
    model: Model, streams: Streams, rows: Rows, pair: tuple[str, str]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Cosine of the fused first tokens of two modalities of each product (Figure 5: image and
    text).

    A plain cosine is high where all vectors point one way, so its mean with the second modality of
    the *other* products is taken off.

    Returns:
        those of the rows that have both modalities, and the value of each.
    """
    sides, here = ([], []), []
    for batch in in_batches(model, streams, rows):
        output = model(batch, wanted={})
        both = output.valid[pair[0]][:, 0] & output.valid[pair[1]][:, 0]
        here.append(both.cpu().numpy())
        for side, name in zip(sides, pair, strict=True):
            side.append(F.normalize(output.summary[name][both].float(), dim=1))
    one, other = (torch.cat(side) for side in sides)
    cosines = one @ other.T
    own = cosines.diagonal()
    values = own - (cosines.sum(dim=1) - own) / max(1, len(one) - 1)
    return np.asarray(rows)[np.concatenate(here)], values.cpu().numpy()
