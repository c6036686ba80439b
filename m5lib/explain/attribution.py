"""What a number of the model comes from: gradients of tokens, Shapley values of modalities.

The number F(x) is a :class:`Target`: the logit of a class, or the similarity to another product.
A gradient method follows a :class:`Path` from a baseline x' to the product x. Integrated gradients
(Sundararajan et al. 2017, arXiv 1703.01365) are complete: their scores add up to F(x) - F(x').

The path starts from the embeddings of words and from the features of everything else. The summary
token of a feature stream is the mean of its other tokens: it is computed again at every point, so
its share is with the tokens that it is the mean of. ``[CLS]``, ``[SEP]``, summaries and padding get
nothing: every token with a score can be seen or heard.

======== =========================================================================================
baseline x'
======== =========================================================================================
absent   every token is there and says nothing, as in the masked tasks: words are ``[MASK]``,
         features are zeros; the number of tokens, places, boxes, ``[CLS]``, ``[SEP]`` stay
mean     every token is the mean token of its modality (:func:`means`); the rest as above
======== =========================================================================================

No path takes a token away by halves, so the baseline "absent" is not absence. :func:`shapley` and
deletion (:mod:`m5lib.explain.faithfulness`) really take tokens away: nobody reads them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from m5lib.catalogue import Catalogue, DataError, Rows
from m5lib.embeddings import DEFAULT, embeddings, in_batches, read_out
from m5lib.evaluation.metrics import rank
from m5lib.modalities import MODALITIES
from m5lib.model import Model, Output
from m5lib.models.finetune import Classifier
from m5lib.streams import Batch, Stream, Streams, impute, with_summary

Tokens = dict[str, Float[Tensor, "B L"]]
BASELINES = ("absent", "mean")
#: Points of the Gauss-Legendre quadrature along the path.
STEPS = 50


@dataclass(frozen=True)
class Target:
    """A number F of each product that is to be explained."""

    name: str  # for figures and result rows
    model: Model
    read: Callable[[Output, Tensor], Tensor]  # (output, sought) -> (B,), differentiable
    sought: Tensor  # (B, ...) of each product, the number of its class or a vector to compare with

    def of(self, chosen: Sequence[int] | np.ndarray | slice) -> "Target":
        """The target of some of the products."""
        return replace(self, sought=self.sought[chosen])

    @torch.no_grad()
    def value(self, batch: Batch) -> Float[Tensor, " B"]:
        """F of each product."""
        return self.read(self.model(batch, wanted={}), self.sought)


def class_logit(classifier: Classifier, labels: Sequence[str] | np.ndarray) -> Target:
    """The logit of a class for each product. Raises ``ValueError``: an unknown label."""
    known = {label: n for n, label in enumerate(classifier.labels)}
    if unknown := sorted({str(label) for label in labels} - set(known)):
        knows = f"it knows {len(known)}: {', '.join(list(known)[:5])} …"
        raise ValueError(f"the classifier knows no class {unknown[:3]}; {knows}")
    classifier.eval()

    def read(output: Output, sought: Tensor) -> Tensor:
        logits = classifier.out(classifier.hidden(torch.cat(list(output.summary.values()), dim=-1)))
        return logits.gather(1, sought[:, None])[:, 0]

    device = next(classifier.parameters()).device
    sought = torch.tensor([known[str(label)] for label in labels], device=device)
    return Target("class logit", classifier.model, read, sought)


def similarity(model: Model, vectors: Float[np.ndarray, "B E"]) -> Target:
    """The cosine of each product's embedding with that of another product, which is held: why are
    the two alike? Embeddings are by the default read-out (:data:`m5lib.embeddings.DEFAULT`)."""
    model.eval()

    def read(output: Output, sought: Tensor) -> Tensor:
        return F.cosine_similarity(read_out(model, output, DEFAULT).float(), sought, dim=-1)

    sought = torch.as_tensor(vectors, device=next(model.parameters()).device)
    return Target("similarity", model, read, sought)


def nearest(model: Model, streams: Streams, rows: Rows) -> tuple[Target, np.ndarray]:
    """The similarity of each product to its nearest other one in the gallery, and their rows."""
    ids, gallery = streams.catalogue.ids, streams.catalogue.split("gallery")
    parts = (embeddings(model, streams, part, readouts=(DEFAULT,)) for part in (rows, gallery))
    own, offered = (part[DEFAULT] for part in parts)
    best = rank(own, offered, 1, ids[rows], ids[gallery])[:, 0]
    return similarity(model, offered[best]), gallery[best]


def rows_of(catalogue: Catalogue, ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Rows of the products with these ids. Raises ``DataError`` for an unknown one."""
    rows = pd.Index(catalogue.ids).get_indexer(pd.Index(ids, dtype=object))
    if (rows < 0).any():
        unknown, such = list(np.asarray(ids)[rows < 0][:3]), catalogue.ids[0]
        raise DataError(f"{catalogue.name} has no product {unknown}; ids are such as {such!r}")
    return rows


# --- the path from the baseline to the product


def content(stream: Stream) -> Bool[Tensor, "B L"]:
    """The tokens that say something themselves: no summary, ``[CLS]``, ``[SEP]`` or padding."""
    first = torch.arange(stream.valid.shape[1], device=stream.valid.device) == 0
    return stream.valid & (~first if stream.entity is None else stream.entity >= 0)


def summarised(model: Model, batch: Batch) -> Batch:
    """The streams as the model reads them: with what is missing imputed, where its spec says so."""
    batch = replace(batch, streams={name: batch.streams[name] for name in model.spec.modalities})
    return impute(batch, model.spec.empty) if model.spec.missing == "impute" else batch


class Path(NamedTuple):
    """What a method of Captum is given: ``forward(*inputs, *rest) -> (B,)``, and for each stream of
    ``names`` an input and a baseline (B, L, D), and which tokens may get a score (B, L)."""

    names: tuple[str, ...]
    forward: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    scored: tuple[Tensor, ...]
    rest: tuple[Tensor, ...]

    def of(self, chosen: slice) -> "Path":
        """The path of some of the products."""
        parts = (tuple(x[chosen] for x in part) for part in self[2:])
        return Path(self.names, self.forward, *parts)


@torch.no_grad()
def path(target: Target, batch: Batch, mean: Mapping[str, Tensor] | None = None) -> Path:
    """The path to the products from "absent", or from "mean", where :func:`means` are given."""
    model, batch = target.model, summarised(target.model, batch)
    streams, inputs = batch.streams, _values(model, batch)
    blank = mean or _values(model, _hidden(model, batch))
    scored = {name: content(stream) for name, stream in streams.items()}
    baselines = {n: torch.where(scored[n][..., None], blank[n], x) for n, x in inputs.items()}
    boxed = [name for name, stream in streams.items() if stream.boxes is not None]

    def forward(*given: Tensor) -> Tensor:
        values = dict(zip(streams, given, strict=False))
        valid = dict(zip(streams, given[len(streams) :], strict=False))
        sought, *boxes = given[2 * len(streams) :]
        boxes = dict(zip(boxed, boxes, strict=True))
        for name, value in values.items():
            if MODALITIES[name].kind == "features":
                summed = with_summary(value, valid[name])
                stream = Stream(summed, valid[name], boxes=boxes.get(name))
                values[name] = model.embeddings[model.spec.owner(name)](stream)
        return target.read(model.forward_from_embeddings(values, valid, {}), sought)

    valid = (stream.valid for stream in streams.values())
    rest = (*valid, target.sought, *(streams[name].boxes for name in boxed))
    parts = (tuple(part.values()) for part in (inputs, baselines, scored))
    return Path(tuple(inputs), forward, *parts, rest)


def _values(model: Model, batch: Batch) -> dict[str, Tensor]:
    """What a path runs through: embeddings of words, features of the rest."""
    embedded = model.embed(batch)
    words = {name for name in embedded if MODALITIES[name].kind == "words"}
    return {n: x if n in words else batch.streams[n].tokens for n, x in embedded.items()}


def _hidden(model: Model, batch: Batch) -> Batch:
    """Every token hidden as in the masked tasks."""
    streams = {}
    for name, stream in batch.streams.items():
        fill = 0.0
        if MODALITIES[name].kind == "words":
            if model.tokenizer is None:
                mend = "load it by from_pretrained, or set model.tokenizer"
                raise ValueError(f"the model has no tokenizer, so nobody knows its [MASK]: {mend}")
            fill = model.tokenizer.mask_token_id
        streams[name] = replace(stream, tokens=torch.full_like(stream.tokens, fill))
    return replace(batch, streams=streams)


@torch.no_grad()
def means(
    model: Model, streams: Streams, rows: Rows, batch_size: int = 512
) -> dict[str, Float[Tensor, " D"]]:
    """The mean token (word embedding, features) of each modality, for the baseline "mean"."""
    total, count = {}, {}
    for batch in in_batches(model, streams, rows, batch_size=batch_size):
        batch = summarised(model, batch)
        for name, value in _values(model, batch).items():
            there = content(batch.streams[name])
            total[name] = total.get(name, 0) + value[there].sum(0)
            count[name] = count.get(name, 0) + int(there.sum())
    return {name: total[name] / max(1, count[name]) for name in total}


# --- scores of tokens


class Attribution(NamedTuple):
    """Signed scores of tokens (a complete method's add up to ``value - base``), F(x) and F(x')."""

    tokens: Tokens
    value: Float[Tensor, " B"]
    base: Float[Tensor, " B"]

    @property
    def delta(self) -> Float[Tensor, " B"]:
        """By how much completeness is missed."""
        total = torch.stack([x.sum(1) for x in self.tokens.values()]).sum(0)
        return total - (self.value - self.base)

    @property
    def error(self) -> Float[Tensor, " B"]:
        """The same as a share of |F(x) - F(x')|."""
        return self.delta.abs() / (self.value - self.base).abs().clamp(min=1e-12)


def attributed(
    whole: Path, method: Callable[[Path, int], tuple[Tensor, ...]], at_once: int = 512
) -> Attribution:
    """The scores of a method: what it says of each number of a token, added up.

    ``method``: (path, at_once) -> one (B, L, D) for each of ``path.inputs``, such as
    :func:`integrated`; at most ``at_once`` copies of products in one backward pass, half as many
    from where memory does not suffice."""
    parts = [torch.cat(x) for x in zip(*fitting(method, whole, at_once), strict=True)]
    own = zip(whole.names, parts, whole.scored, strict=True)
    with torch.no_grad():
        ends = (whole.forward(*x, *whole.rest) for x in (whole.inputs, whole.baselines))
        return Attribution({name: x.detach().sum(-1) * there for name, x, there in own}, *ends)


def integrated_gradients(
    target: Target,
    batch: Batch,
    mean: Mapping[str, Tensor] | None = None,
    steps: int = STEPS,
    at_once: int = 512,
) -> Attribution:
    """Integrated gradients over all streams at once, by Gauss-Legendre quadrature. ``mean``: the
    mean tokens for the baseline "mean"; by default it is "absent"."""
    method = lambda part, size: integrated(part, steps, size)  # noqa: E731
    return attributed(path(target, batch, mean), method, at_once)


def integrated(part: Path, steps: int, at_once: int) -> tuple[Tensor, ...]:
    """Captum's integrated gradients along a path, one (B, L, D) per stream."""
    from captum.attr import IntegratedGradients

    return IntegratedGradients(part.forward).attribute(
        part.inputs,
        part.baselines,
        additional_forward_args=part.rest,
        n_steps=steps,
        internal_batch_size=at_once,
    )


def fitting(
    work: Callable[[Path, int], tuple], whole: Path, at_once: int
) -> Iterator[tuple[Tensor, ...]]:
    """``work(part, at_once)`` of parts of a path; half as many products from where memory fails."""
    start, count = 0, len(whole.inputs[0])
    while start < count:
        try:
            yield work(whole.of(slice(start, start + at_once)), at_once)
            start += at_once
        except RuntimeError as error:  # of CUDA, or the processor's allocator: a plain one
            short = ("out of memory", "not enough memory")
            if at_once == 1 or not any(words in str(error).lower() for words in short):
                raise
            at_once = at_once // 2
            print(f"out of memory; {at_once} copies at once from here on")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# --- modalities


class Shapley(NamedTuple):
    """``values`` in the order of modalities, exactly 0 where absent; F with all and with none."""

    values: Float[Tensor, "B M"]
    full: Float[Tensor, " B"]
    empty: Float[Tensor, " B"]

    @property
    def error(self) -> Float[Tensor, " B"]:
        """|sum of the values - (F(all) - F(none))|, which efficiency says is 0."""
        return (self.values.sum(1) - (self.full - self.empty)).abs()


def shapley(target: Target, batch: Batch) -> Shapley:
    """Exact Shapley values of the modalities (Shapley 1953), in double precision; absent modalities
    take part in nothing.

    value of m = sum over S without m of |S|! (M - |S| - 1)! / M! (F(S + m) - F(S)). That is F of
    2^M coalitions; Captum's ``ShapleyValues`` asks for M! M."""
    names = target.model.spec.modalities
    count, coalitions = len(names), range(2 ** len(names))
    holds = [[n for n in range(count) if coalition >> n & 1] for coalition in coalitions]
    there = [target.value(batch.only([names[n] for n in held])).double() for held in holds]
    worth, values = torch.stack(there, dim=1), []
    for place in range(count):
        without = [c for c in coalitions if place not in holds[c]]
        weight = [1 / (count * comb(count - 1, len(holds[c]))) for c in without]
        gain = worth[:, [c | 1 << place for c in without]] - worth[:, without]
        values.append(gain @ worth.new_tensor(weight))
    has = torch.stack([batch.streams[name].valid[:, 0] for name in names], dim=1)
    return Shapley(torch.stack(values, dim=1) * has, worth[:, -1], worth[:, 0])
