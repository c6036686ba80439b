"""From a model and products to one vector per product, by named read-outs.

Which vector is "the embedding" is a choice with consequences: the paper adds up the first tokens
after the fusion, which none of its losses trains directly. A read-out is ``<states>_<token>``, its
states and token as below; vectors of the modalities that a product has are added up.

=============== ==========================================================================================
fused_first     first tokens after the fusion, plain sum: the paper's
fused_mean      mean of the tokens after the fusion, each modality scaled to unit length
encoded_first   first tokens before the fusion, each scaled to unit length
encoded_mean    mean of the tokens before the fusion, each scaled to unit length
concat          summaries that the contrast compares (``Output.pooled``), unit length, side by side instead of added
whitened        the same, each modality decorrelated before it is scaled (:class:`m5lib.layers.Whitening`)
layered         whitened, and beside it the mean of the token embeddings, decorrelated too: what the words and regions say one by one
pooled          summaries that the contrast compares, each scaled to unit length and added: for queries in one set of modalities against
                a gallery in another (image -> text); side by side they would have nothing in common
=============== ==========================================================================================
"""  # noqa: E501

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from m5lib.catalogue import Rows
from m5lib.layers import first_token, mean_token
from m5lib.model import Model, Output
from m5lib.streams import Streams

#: The paper's read-out, and the one used where nothing else is asked for: the best on validation
#: products, averaged over the sets of modalities that ``05_downstream`` gives the model. Not the
#: best for each set: see the table there. The one for comparing one set of modalities with another
#: is :data:`ACROSS`; it is not among :data:`READOUTS`, which are measured with the same set on both
#: sides.
PAPER, DEFAULT = "fused_first", "layered"
ACROSS = "pooled"
READOUTS = (
    "fused_first",
    "fused_mean",
    "encoded_first",
    "encoded_mean",
    "concat",
    "whitened",
    "layered",
)


def read_out(model: Model, output: Output, readout: str) -> Float[Tensor, "B E"]:
    """(B, D) embeddings, or (B, M D) and more where modalities stand side by side. Raises
    ``ValueError`` for an unknown read-out."""
    if readout not in (*READOUTS, ACROSS):
        raise ValueError(f"unknown read-out {readout!r}: known are {(*READOUTS, ACROSS)}")
    if readout in ("concat", "whitened", "layered"):
        parts = [dict(output.pooled)]
        if readout != "concat":
            inputs = _whitening_inputs(output)
            chosen = ("pooled", "embedded") if readout == "layered" else ("pooled",)
            parts = [
                {name: model.whitening[part][name](x) for name, x in inputs[part].items()}
                for part in chosen
            ]
        # an absent modality stays the zero vector
        vectors = [
            F.normalize(x.float(), dim=-1) * output.valid[name][:, :1]
            for part in parts
            for name, x in part.items()
        ]
        return torch.cat(vectors, dim=-1)
    states = output.fused if readout.startswith("fused") else output.encoded
    token = first_token if readout.endswith("first") else mean_token
    if readout == ACROSS:
        vectors = [x * output.valid[name][:, :1] for name, x in output.pooled.items()]
    else:
        vectors = [token(x, output.valid[name]) for name, x in states.items()]
    if readout != PAPER:
        vectors = [F.normalize(vector.float(), dim=-1) for vector in vectors]
    return torch.stack(vectors).sum(dim=0)


def _whitening_inputs(output: Output) -> dict[str, dict[str, Tensor]]:
    means = {name: mean_token(x, output.valid[name]) for name, x in output.embedded.items()}
    return {"pooled": dict(output.pooled), "embedded": means}


@torch.no_grad()
def fit_whitening(model: Model, streams: Streams, rows: Rows, batch_size: int = 128) -> None:
    """Fit the model's whitening on these products; only those that have a modality count for it."""
    device, was_training = next(model.parameters()).device, model.training
    found: dict[tuple[str, str], list[Tensor]] = {}
    model.eval()
    for start in range(0, len(rows), batch_size):
        output = model.encode(streams.batch(rows[start : start + batch_size]).to(device))
        for part, by_name in _whitening_inputs(output).items():
            for name, vectors in by_name.items():
                found.setdefault((part, name), []).append(vectors[output.valid[name][:, 0]])
    for (part, name), vectors in found.items():
        model.whitening[part][name].fit(torch.cat(vectors))
    model.train(was_training)


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
    device = next(model.parameters()).device
    was_training, rows, parts = (
        model.training,
        np.asarray(rows),
        {readout: [] for readout in readouts},
    )
    wanted = None if "fused_mean" in parts else {}
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = streams.batch(rows[start : start + batch_size]).to(device)
        output = model(batch if modalities is None else batch.only(modalities), wanted)
        for readout, found in parts.items():
            found.append(read_out(model, output, readout).float().cpu())
    model.train(was_training)
    return {readout: torch.cat(found).numpy() for readout, found in parts.items()}


@torch.no_grad()
def mean_harmony(model: Model, streams: Streams, rows: Rows, batch_size: int = 128) -> np.ndarray:
    """(M, M) harmony scores before the fusion, each entry averaged over the products that have both
    modalities (0 if none has)."""
    device = next(model.parameters()).device
    sides, was_training = len(model.spec.modalities), model.training
    total, count = torch.zeros(2, sides, sides, device=device)
    model.eval()
    for start in range(0, len(rows), batch_size):
        output = model.encode(streams.batch(rows[start : start + batch_size]).to(device))
        both = output.presence[:, :, None] & output.presence[:, None, :]
        found = model.harmony(torch.stack(list(output.pooled.values()), dim=1), output.presence)
        total = total + (both if found is None else found).sum(0)
        count = count + both.sum(0)
    model.train(was_training)
    return (total / count.clamp(min=1)).cpu().numpy()


@torch.no_grad()
def similarity(
    model: Model, streams: Streams, rows: Rows, pair: tuple[str, str], batch_size: int = 128
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Cosine of the fused first tokens of two modalities of each product (Figure 5: image and
    text).

    A plain cosine is high where all vectors point one way, so its mean with the second modality of
    the *other* products is taken off.

    Returns:
        those of the rows that have both modalities, and the value of each.
    """
    device, sides, here = next(model.parameters()).device, ([], []), []
    was_training, rows = model.training, np.asarray(rows)
    model.eval()
    for start in range(0, len(rows), batch_size):
        output = model(streams.batch(rows[start : start + batch_size]).to(device), wanted={})
        names = list(output.summary)
        both = output.presence[:, names.index(pair[0])] & output.presence[:, names.index(pair[1])]
        here.append(both.cpu().numpy())
        for side, name in zip(sides, pair, strict=True):
            side.append(F.normalize(output.summary[name][both].float(), dim=1))
    model.train(was_training)
    one, other = (torch.cat(side) for side in sides)
    cosines = one @ other.T
    own = cosines.diagonal()
    values = own - (cosines.sum(dim=1) - own) / max(1, len(one) - 1)
    return rows[np.concatenate(here)], values.cpu().numpy()
