"""What sets the released code apart from the paper, measured: one function for each item of the
audit of the authors' repository.

Items 1 to 13 are those that change what is learned or measured (SCALE_code at commit ``227ae08``);
notebook 03 goes through them. Models are rows of the zoo, ``released`` and ``scale``; what the
library mends in the released form (the mistiled mask) is put back here.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from m5lib import layers, metrics, objectives, simcl
from m5lib.catalogue import Catalogue, MediaFile, Rows
from m5lib.embeddings import PAPER, read_out
from m5lib.masking import Target
from m5lib.modalities import MODALITIES
from m5lib.model import Model, Output
from m5lib.streams import Batch, Streams


@contextmanager
def mistiled(model: Model) -> Iterator[None]:
    """Item 1: within, head h of product b reads the fusion through the mask of product (b · H + h)
    mod B, as in the released code."""
    plain, stage = layers.attention, model.stages[model.fusion]

    def wrong(q, k, v, readable, dropout=0.0):
        products, heads = q.shape[:2]
        tiled = readable[torch.arange(products * heads, device=q.device) % products]
        apart = (x.flatten(0, 1)[:, None] for x in (q, k, v))  # each head as a product of its own
        return plain(*apart, tiled, dropout)[:, 0].unflatten(0, (products, heads))

    def use(attention):
        return lambda *_: setattr(layers, "attention", attention)

    hooks = [stage.register_forward_pre_hook(use(wrong)), stage.register_forward_hook(use(plain))]
    try:
        yield
    finally:
        layers.attention = plain
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def mask_effect(model: Model, streams: Streams, rows: Rows, seed: int = 0) -> dict[str, float]:
    """Item 1: relative change of the paper's vector (sum of fused first tokens) of the products of
    one batch.

    Returns:
        ``wrong mask``: mistiled against right; ``other places``: the same products in another
        order, ``right`` and ``wrong`` mask. A feature that depends on its product only does not
        change with the order.
    """
    rows = np.asarray(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    device = next(model.parameters()).device
    batches = streams.batch(rows).to(device), streams.batch(rows[order.numpy()]).to(device)
    right, moved = (read_out(model, model(batch), PAPER) for batch in batches)
    with mistiled(model):
        wrong, strayed = (read_out(model, model(batch), PAPER) for batch in batches)
    pairs = {
        "wrong mask": (right, wrong),
        "right mask, other places": (right[order], moved),
        "wrong mask, other places": (wrong[order], strayed),
    }
    return {name: float((a - b).norm() / a.norm()) for name, (a, b) in pairs.items()}


def _masked_values(
    model: Model, batch: Batch, targets: Mapping[str, Target], scored: bool
) -> dict[str, Float[Tensor, " S"]]:
    output, diagonal = model(batch), None
    predictions, names = model.predict(output, targets), model.spec.modalities
    if scored:
        found = model.harmony(torch.stack(list(output.summary.values()), dim=1), output.presence)
        diagonal = found.diagonal(dim1=1, dim2=2)[:, [names.index(name) for name in predictions]]
    return objectives.masked_values(predictions, targets, diagonal)


@torch.no_grad()
def removal(
    model: Model,
    batch: Batch,
    targets: Mapping[str, Target],
    scored: bool = False,
    taken: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Item 2: what becomes of each masked task when another modality is taken from the products.

    Args:
        scored: let the harmony scores multiply the predictions, as in training; else the heads
            alone.
        taken: the modalities to take away, one at a time; by default each.

    Returns:
        a line for each task and modality taken, over the hidden tokens of products that have both:
        ``task``, ``removed``, ``loss`` with it, ``change`` of the mean loss, ``moved``, the mean
        absolute change per token (zero: the head cannot see it).
    """
    lines, names = [], model.spec.modalities
    whole = _masked_values(model, batch, targets, scored)
    for gone in names if taken is None else taken:
        nothing = replace(
            targets[gone],
            **{key: getattr(targets[gone], key)[:0] for key in ("product", "token", "value")},
        )
        left = _masked_values(
            model, batch.only([n for n in names if n != gone]), {**targets, gone: nothing}, scored
        )
        for name, values in whole.items():
            there = batch.streams[gone].valid[targets[name].product, 0]
            if name != gone and there.any():
                change = (left[name] - values)[there]
                line = {
                    "task": MODALITIES[name].task,
                    "removed": gone,
                    "loss": float(values[there].mean()),
                }
                lines.append(
                    line | {"change": float(change.mean()), "moved": float(change.abs().mean())}
                )
    return pd.DataFrame(lines, columns=["task", "removed", "loss", "change", "moved"])


def joint_gradient(model: Model, batch: Batch, targets: Mapping[str, Target]) -> dict[str, float]:
    """Item 3: length of the loss' gradient on the weights of the fusion, ``with`` and ``without``
    the diagonal scores of Eq. 3."""
    found, spec, weights = {}, model.spec, list(model.stages[model.fusion].parameters())
    try:
        for what, acts in (("with", spec.objective.harmony_on), ("without", ("contrast",))):
            model.spec = replace(spec, objective=replace(spec.objective, harmony_on=acts))
            loss, _ = objectives.total(model, model(batch), targets)
            grads = torch.autograd.grad(loss, weights, allow_unused=True)
            found[what] = math.sqrt(sum(float(g.square().sum()) for g in grads if g is not None))
    finally:
        model.spec = spec
    return found


@torch.no_grad()
def pair_scores(model: Model, output: Output) -> Float[Tensor, " K"]:
    """Scores S before the fusion that multiply the contrast's logits: of all ordered pairs of
    modalities that a product has."""
    found, presence = (
        model.harmony(torch.stack(list(output.pooled.values()), dim=1), output.presence),
        output.presence,
    )
    other = ~torch.eye(presence.shape[1], dtype=torch.bool, device=presence.device)
    return found[presence[:, :, None] & presence[:, None, :] & other].cpu()


def effective_temperature(scores: Float[Tensor, " K"], temperature: float) -> dict[str, float]:
    """Item 4: a score s on the logits is a temperature τ/s: its quartiles over the pairs with s > 0
    (none, if there is no such pair), and the share of pairs ``without gradient``, s = 0."""
    found = {"without gradient": float((scores == 0).float().mean())}
    if len(positive := scores[scores > 0]):
        quartiles = (temperature / positive).quantile(
            torch.tensor([0.25, 0.5, 0.75], dtype=positive.dtype)
        )
        found |= dict(
            zip(("lower quartile", "median", "upper quartile"), quartiles.tolist(), strict=True)
        )
    return found


def open_units(output: Output) -> dict[str, float]:
    """Item 4: share of the units of each summary before the fusion that are not zero for every
    product of the batch.

    After a ReLU (released) a unit that never opens is dead; two modalities without an open unit in
    common have cosine and score zero.
    """
    return {
        name: float((vectors[output.valid[name][:, 0]] != 0).any(dim=0).float().mean())
        for name, vectors in output.pooled.items()
    }


SIMILARITY = {"cosine": simcl.cosine, "shifted": simcl.agreement}


def diagonal(
    form: str, vectors: Float[Tensor, "B M D"], presence: Bool[Tensor, "B M"]
) -> dict[str, float]:
    """Item 5: ``lowest`` and ``highest`` score on the diagonal of S, and its ``correlation`` with
    the modality's agreement with the others.

    Args:
        form: what S starts from, ``cosine`` (released) or ``shifted`` (ours):
            ``Objective.agreement``.
    """
    similarity = SIMILARITY[form](vectors)
    scores = simcl.harmony(similarity, presence).diagonal(dim1=1, dim2=2)
    others = presence[:, None, :] & ~torch.eye(
        presence.shape[1], dtype=torch.bool, device=presence.device
    )
    mean = (similarity * others).sum(2) / others.sum(2).clamp(min=1)
    kept = presence & others.any(dim=2)
    scores, mean = scores[kept].double(), mean[kept].double()
    alike = (
        float(torch.corrcoef(torch.stack([scores, mean]))[0, 1])
        if min(scores.std(), mean.std()) > 1e-9
        else 0.0
    )
    return {"lowest": float(scores.min()), "highest": float(scores.max()), "correlation": alike}


def diagonal_limits(form: str, modalities: int = 5) -> dict[str, float]:
    """Item 5: the score of a modality that agrees with all others, stands at right angles to them,
    or points away from them."""
    axes = torch.eye(modalities)
    cases = {
        "all agree": axes[:1].expand(modalities, -1),
        "at right angles": axes,
        "opposed": torch.cat([-axes[:1], axes[:1].expand(modalities - 1, -1)]),
    }
    here = torch.ones(1, modalities, dtype=torch.bool)
    return {
        name: float(simcl.harmony(SIMILARITY[form](case[None]), here)[0, 0, 0])
        for name, case in cases.items()
    }


def chance(products: int, width: int = 1024, seed: int = 0) -> dict[str, float]:
    """Item 6: the contrast of random vectors at temperature 1, with negatives of both modalities
    (``released``) and of the other one."""
    vectors = torch.randn(products, 2, width, generator=torch.Generator().manual_seed(seed))
    here, one = torch.ones(products, 2, dtype=torch.bool), torch.tensor(1.0)
    found = {
        form: float(simcl.FORMS[form](vectors, here, one)[0].mean())
        for form in ("released", "infonce")
    }
    return found | {"log(2B-1)": math.log(2 * products - 1), "log B": math.log(products)}


@torch.no_grad()
def same_tokens(model: Model, batch: Batch, pair: tuple[str, str]) -> float:
    """Item 7: relative difference, before the fusion, of the same tokens read as the one and as the
    other modality.

    Words go through both embeddings; features, whose widths may differ, start as the same embedded
    tokens.
    """
    one, other = sorted(
        pair, key=lambda name: MODALITIES[name].slots
    )  # the longer stream has room for the shorter
    valid = {name: batch.streams[name].valid for name in model.spec.modalities} | {
        other: batch.streams[one].valid
    }
    if {MODALITIES[name].kind for name in pair} == {"words"}:
        embedded = model.embed(replace(batch, streams={**batch.streams, other: batch.streams[one]}))
    else:
        embedded = model.embed(batch)
        embedded[other] = embedded[one]
    output = model.forward_from_embeddings(embedded, valid)
    a, b = (output.encoded[name][valid[one]] for name in pair)
    return float((a - b).norm() / a.norm())


@torch.no_grad()
def twins(model: Model, batch: Batch) -> pd.DataFrame:
    """Items 8 and 10: products that the contrast cannot tell apart, for what they lack became the
    same vector.

    Returns:
        a line per modality: ``lacking`` it, ``alike``, how many of these take part and share their
            vector before the fusion with another
        product, and ``floor``, the lowest mean InfoNCE that they leave to those that lack it: log
            of the products with this very vector.
    """
    output, lines = model(batch), []
    for name, x in output.encoded.items():
        takes_part, lacks = output.valid[name][:, 0], ~batch.streams[name].valid[:, 0]
        vectors = x[:, 0].double()
        near = (
            torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
            < 1e-5 * vectors.norm(dim=1).mean()
        )
        same = (near & takes_part[:, None] & takes_part).sum(1)[lacks & takes_part]
        floor = float(same.double().log().mean()) if len(same) else 0.0
        lines.append(
            {
                "modality": name,
                "lacking": int(lacks.sum()),
                "alike": int((same > 1).sum()),
                "floor": floor,
            }
        )
    return pd.DataFrame(lines).set_index("modality")


def layout(files: Iterable[MediaFile], extractor) -> dict[str, float]:
    """Item 9: the mean over files of ``tokens``, their ``width``, the share of ``silent`` ones
    among the features (all tokens zero), and the size of the ``summary`` (mean of the tokens)
    relative to a token's."""
    lines = []
    for file in files:
        values = extractor(file).values
        sizes = np.linalg.norm(values, axis=1).mean()
        summary = np.linalg.norm(values.mean(axis=0)) / max(sizes, 1e-12)
        lines.append(
            {
                "tokens": len(values),
                "width": values.shape[1],
                "silent": (values == 0).all(axis=0).mean(),
                "summary": summary,
            }
        )
    return pd.DataFrame(lines).mean().to_dict()


def ranked(
    catalogue: Catalogue, vectors: np.ndarray, k: int = 10, cosine: bool = True
) -> tuple[Bool[np.ndarray, "Q R"], Int[np.ndarray, " Q"]]:
    """Items 11 to 13: hits of each query among the first ``k`` of the gallery, by cosine or by
    inner product, and R of each query."""
    queries, _ = catalogue.queries("query")
    gallery, same = catalogue.sought("query")
    ranking = metrics.rank(
        vectors[queries],
        vectors[gallery],
        k,
        catalogue.ids[queries],
        catalogue.ids[gallery],
        cosine,
    )
    return metrics.hits(ranking, same[queries], same[gallery])


def shortened(
    matched: Bool[np.ndarray, "Q R"], positives: Int[np.ndarray, " Q"], k: int = 10
) -> dict[str, float]:
    """Item 12: the released K is min(K, positives, list): positives count the query itself, and the
    list lost a place to it.

    Returns:
        the mean of this ``cut``, Prec@K ``released`` (hits within the cut, divided by it) and
        ``ours`` (hits within K, divided by K).
    """
    cut = np.minimum(np.minimum(k, positives + 1), matched.shape[1] - 1)
    found = {"released": metrics.precision(matched, cut), "ours": metrics.precision(matched, k)}
    return {"cut": float(cut.mean())} | {
        name: float(values.mean()) for name, values in found.items()
    }


@torch.no_grad()
def norm_shares(model: Model, streams: Streams, rows: Rows) -> pd.Series:
    """Item 13: mean share of each modality in the summed lengths of a product's fused first tokens,
    which the paper adds up as they are."""
    output = model(streams.batch(rows).to(next(model.parameters()).device))
    lengths = torch.stack([vectors.norm(dim=1) for vectors in output.summary.values()], dim=1)
    return pd.Series(
        (lengths / lengths.sum(1, keepdim=True)).mean(0).tolist(), index=list(output.summary)
    )


TOYS = {
    "literal": simcl.literal,
    "free": simcl.free,
    "none": lambda matrix, here: here[:, :, None] & here[:, None, :],
}


def toy(
    form: str, acts_on: str, start: float, steps: int, seed: int = 0, items: int = 128
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The paper's S taken literally (section 4.3, Eq. 3): five linear encoders of noisy views of
    the same items, InfoNCE of 10 pairs, Adam.

    Args:
        form: ``literal``, S · softmax(S); ``free``, M · softmax(S); ``none``, every score one. S
            starts at ``start`` everywhere.
        acts_on: scores multiply ``logits`` or ``losses``.

    Returns:
        the history (``step``, ``total``, ``contrast`` without scores, ``lowest`` score of a pair,
        ``negative`` pairs, ``recall``, R@1 over the pairs), and of the first step the gradient's
        length on the ``encoders`` and its lowest value on ``S``.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden, mixing = (
        torch.randn(items, 16, generator=generator),
        torch.randn(5, 16, 24, generator=generator) / 4,
    )
    views = hidden @ mixing + 0.5 * torch.randn(5, items, 24, generator=generator)
    encoders = nn.Parameter(0.2 * torch.randn(5, 24, 12, generator=generator))
    matrix, here = nn.Parameter(torch.full((5, 5), start)), torch.ones(items, 5, dtype=torch.bool)
    optimizer, tau = torch.optim.Adam([encoders, matrix], lr=3e-3), torch.tensor(0.1)
    lines, first = [], {}
    for step in range(steps):
        vectors, scores = (views @ encoders).transpose(0, 1), TOYS[form](matrix, here).float()
        plain = simcl.infonce(vectors, here, tau)[0]
        on_logits = simcl.infonce(vectors, here, tau, scores)[0] if acts_on == "logits" else plain
        weights = simcl.pair_scores(scores)
        total = on_logits.mean() if acts_on == "logits" else (plain * weights).mean()
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            slope = (
                torch.zeros(1)
                if matrix.grad is None
                else matrix.grad[~torch.eye(5, dtype=torch.bool)]
            )
            first = {"encoders": float(encoders.grad.norm()), "S": float(slope.min())}
        if step % max(1, steps // 40) == 0 or step == steps - 1:
            line = {
                "step": step,
                "total": total.item(),
                "contrast": plain.mean().item(),
                "lowest": weights.min().item(),
            }
            lines.append(
                line | {"negative": int((weights[:, 0] < 0).sum()), "recall": _recall(vectors)}
            )
        optimizer.step()
    return pd.DataFrame(lines), first


def _recall(vectors: Float[Tensor, "B M D"]) -> float:
    """R@1 over the pairs of modalities: how often an item's nearest in the other modality is
    itself."""
    unit = F.normalize(vectors.detach(), dim=-1).transpose(0, 1)
    first, second = simcl.pairs_of(len(unit))
    return float(
        ((unit[first] @ unit[second].transpose(1, 2)).argmax(-1) == torch.arange(unit.shape[1]))
        .float()
        .mean()
    )


def table(items: Sequence[tuple]) -> pd.DataFrame:
    """Items (number, what, released, ours) as one table; None where there was nothing to
    measure."""
    return pd.DataFrame(items, columns=["item", "what", "released", "ours"]).set_index("item")
