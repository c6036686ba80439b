"""What a number of the model comes from: tokens by integrated gradients (Captum), modalities by
exact Shapley values.

The number F(x) is a :class:`Target`: the logit of a class, or the similarity to another product.
Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) follow a straight path from a
*baseline* x' to the product; what the tokens get adds up to F(x) - F(x'). Words start from their
embeddings, regions, frames and sound from their features. So the summary token of a feature stream,
which is
the mean of the others, is computed again on the way, and what it adds is with the tokens that it is
the mean of: ``[CLS]``, ``[SEP]``, summaries and padding get nothing, and every token that gets
something can be seen or heard.

========  ==============================================================================================================
baseline  x'
========  ==============================================================================================================
absent    every token is there and says nothing, as the masked tasks hide it: words are ``[MASK]``, features are zeros. The
          number of tokens, their places and boxes, ``[CLS]`` and ``[SEP]`` stay.
mean      every token is the mean one of its modality (:func:`means`); the rest stays as above
========  ==============================================================================================================

A path cannot take a token away by halves, so "absent" is not absence. In :func:`shapley`, and where
tokens are deleted (:mod:`m5lib.explain.faithfulness`), what is absent really is: nobody reads it,
as with products that lack a modality.
"""  # noqa: E501

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import factorial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from m5lib.catalogue import Rows
from m5lib.embeddings import DEFAULT, read_out
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
    """A number F of each product that is to be explained.

    Attributes:
        name: for figures and result rows.
        read: (output, sought) -> (B,), differentiable.
        sought: (B, ...) what belongs to each product of the batch: the number of its class, or the
            vector it is compared with.
        fused: whether more fused tokens are read than the first of each modality, which costs more.
    """

    name: str
    model: Model
    read: Callable[[Output, Tensor], Tensor]
    sought: Tensor
    fused: bool = False

    def of(self, chosen: Sequence[int] | np.ndarray | slice) -> "Target":
        """The target of some of the products."""
        return replace(self, sought=self.sought[chosen])

    @torch.no_grad()
    def value(self, batch: Batch) -> Float[Tensor, " B"]:
        """F of each product."""
        return self.read(self.model(batch, None if self.fused else {}), self.sought)


def class_logit(classifier: Classifier, labels: Sequence[str] | np.ndarray) -> Target:
    """The logit of a class for each product. Raises ``ValueError`` for a label that the classifier
    does not know."""
    known = {label: n for n, label in enumerate(classifier.labels)}
    if unknown := sorted({str(label) for label in labels} - set(known)):
        raise ValueError(
            f"the classifier knows no class {unknown[:3]}; it knows {len(known)}: "
            f"{', '.join(list(known)[:5])} …"
        )
    classifier.eval()

    def read(output: Output, sought: Tensor) -> Tensor:
        logits = classifier.out(classifier.hidden(torch.cat(list(output.summary.values()), dim=-1)))
        return logits.gather(1, sought[:, None])[:, 0]

    sought = torch.tensor(
        [known[str(label)] for label in labels], device=next(classifier.parameters()).device
    )
    return Target("class logit", classifier.model, read, sought)


def similarity(model: Model, vectors: Float[np.ndarray, "B E"], readout: str = DEFAULT) -> Target:
    """The cosine of each product's embedding with a given one: what makes two products alike.

    Args:
        vectors: embeddings of the other products (:func:`m5lib.embeddings.embeddings`), by the same
            read-out.
    """
    model.eval()

    def read(output: Output, sought: Tensor) -> Tensor:
        return F.cosine_similarity(read_out(model, output, readout).float(), sought, dim=-1)

    sought = torch.as_tensor(vectors, device=next(model.parameters()).device)
    return Target("similarity", model, read, sought, fused=readout == "fused_mean")


# --- tokens
# ------------------------------------------------------------------------------------------------


def content(stream: Stream) -> Bool[Tensor, "B L"]:
    """The tokens that say something themselves: no summary, ``[CLS]``, ``[SEP]`` or padding."""
    first = torch.arange(stream.valid.shape[1], device=stream.valid.device) == 0
    return stream.valid & (~first if stream.entity is None else stream.entity >= 0)


def summarised(model: Model, batch: Batch) -> Batch:
    """The model's streams as it reads them: what is missing imputed, where it is made so."""
    batch = replace(batch, streams={name: batch.streams[name] for name in model.spec.modalities})
    return impute(batch, model.spec.empty) if model.spec.missing == "impute" else batch


class Path(NamedTuple):
    """What Captum is given: ``forward(*inputs, *rest) -> (B,)``, one input and one baseline per
    stream, in the order of ``names``."""

    names: tuple[str, ...]
    forward: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    rest: tuple[Tensor, ...]

    def of(self, chosen: slice) -> "Path":
        """The path of some of the products."""
        inputs, baselines, rest = (
            tuple(x[chosen] for x in part) for part in (self.inputs, self.baselines, self.rest)
        )
        return self._replace(inputs=inputs, baselines=baselines, rest=rest)

    def summed(self, scores: Sequence[Tensor]) -> Tokens:
        """(B, L, D) of each stream -> (B, L)."""
        return {name: part.detach().sum(-1) for name, part in zip(self.names, scores, strict=True)}


@torch.no_grad()
def path(target: Target, batch: Batch, mean: Mapping[str, Tensor] | None = None) -> Path:
    """The path from the baseline "absent", or "mean" where the mean tokens (:func:`means`) are
    given, to the products."""
    model, batch = target.model, summarised(target.model, batch)
    inputs, blank = _values(model, batch), _values(model, _hidden(model, batch))
    baselines = {
        n: torch.where(
            content(batch.streams[n])[..., None], mean[n] if mean else blank[n], inputs[n]
        )
        for n in inputs
    }
    streams = list(batch.streams.values())
    boxed = [stream.boxes is not None for stream in streams]

    def forward(*given: Tensor) -> Tensor:
        values, valid, (sought, *boxes) = (
            given[: len(streams)],
            given[len(streams) : 2 * len(streams)],
            given[2 * len(streams) :],
        )
        embedded, left = {}, iter(boxes)
        for name, value, there, has in zip(batch.streams, values, valid, boxed, strict=True):
            box = next(left) if has else None
            if MODALITIES[name].kind == "features":
                value = model.embeddings[model.spec.owner(name)](
                    Stream(with_summary(value, there), there, boxes=box)
                )
            embedded[name] = value
        output = model.forward_from_embeddings(
            embedded, dict(zip(batch.streams, valid, strict=True)), None if target.fused else {}
        )
        return target.read(output, sought)

    boxes = [stream.boxes for stream in streams if stream.boxes is not None]
    rest = (*(stream.valid for stream in streams), target.sought, *boxes)
    return Path(
        tuple(inputs), forward, tuple(inputs.values()), tuple(baselines[n] for n in inputs), rest
    )


def _values(model: Model, batch: Batch) -> dict[str, Tensor]:
    """What a path runs through: embeddings of words, features of the rest."""
    embedded = model.embed(batch)
    return {
        n: s.tokens if MODALITIES[n].kind == "features" else embedded[n]
        for n, s in batch.streams.items()
    }


def _hidden(model: Model, batch: Batch) -> Batch:
    """Every token hidden as in the masked tasks."""
    if model.tokenizer is None and any(MODALITIES[name].kind == "words" for name in batch.streams):
        raise ValueError(
            "the model has no tokenizer, so nobody knows its [MASK]: load it by from_pretrained, "
            "or set model.tokenizer"
        )
    mask = 0 if model.tokenizer is None else model.tokenizer.mask_token_id
    fill = {name: mask if MODALITIES[name].kind == "words" else 0.0 for name in batch.streams}
    return replace(
        batch,
        streams={
            n: replace(s, tokens=torch.full_like(s.tokens, fill[n]))
            for n, s in batch.streams.items()
        },
    )


@torch.no_grad()
def means(
    model: Model, streams: Streams, rows: Rows, batch_size: int = 512
) -> dict[str, Float[Tensor, " D"]]:
    """The mean token of each modality over products, for the baseline "mean": embedding of a word,
    features of the rest."""
    device, total, count = next(model.parameters()).device, {}, {}
    model.eval()
    for start in range(0, len(rows), batch_size):
        batch = summarised(model, streams.batch(rows[start : start + batch_size]).to(device))
        for name, value in _values(model, batch).items():
            there = content(batch.streams[name])
            total[name] = total.get(name, 0) + value[there].sum(0)
            count[name] = count.get(name, 0) + int(there.sum())
    return {name: total[name] / max(1, count[name]) for name in total}


class Attribution(NamedTuple):
    """Signed scores of the tokens, F(x) and F(x'): the scores of a product add up to ``value -
    base``, all but ``delta``."""

    tokens: Tokens
    value: Float[Tensor, " B"]
    base: Float[Tensor, " B"]

    @property
    def delta(self) -> Float[Tensor, " B"]:
        """By how much completeness is missed."""
        return torch.stack([x.sum(1) for x in self.tokens.values()]).sum(0) - (
            self.value - self.base
        )

    @property
    def error(self) -> Float[Tensor, " B"]:
        """The same as a share of |F(x) - F(x')|."""
        return self.delta.abs() / (self.value - self.base).abs().clamp(min=1e-12)

    def modalities(self) -> Float[Tensor, "B M"]:
        """What each modality gets: the sum over its tokens."""
        return torch.stack([x.sum(1) for x in self.tokens.values()], dim=1)


def integrated_gradients(
    target: Target,
    batch: Batch,
    mean: Mapping[str, Tensor] | None = None,
    steps: int = STEPS,
    at_once: int = 512,
) -> Attribution:
    """Integrated gradients over all streams at once, by Gauss-Legendre quadrature.

    Args:
        mean: the mean tokens for the baseline "mean"; by default it is "absent".
        at_once: copies of products in one backward pass; halved where memory does not suffice, down
            to one.
    """
    whole = path(target, batch, mean)
    parts = list(fitting(lambda part, size: integrated(part, steps, size), whole, at_once))
    scores = [torch.cat(x) for x in zip(*parts, strict=True)]
    with torch.no_grad():
        return Attribution(
            whole.summed(scores),
            *(whole.forward(*start, *whole.rest) for start in (whole.inputs, whole.baselines)),
        )


def integrated(part: Path, steps: int, at_once: int) -> tuple[Tensor, ...]:
    """Captum's integrated gradients along a path, one (B, L, D) per stream."""
    from captum.attr import IntegratedGradients

    explain = IntegratedGradients(part.forward).attribute
    return explain(
        part.inputs,
        part.baselines,
        additional_forward_args=part.rest,
        n_steps=steps,
        internal_batch_size=at_once,
    )


def fitting(work: Callable[[Path, int], tuple], whole: Path, at_once: int) -> Iterator[tuple]:
    """``work(part, at_once)`` of a path in parts of at most ``at_once`` products; half as many,
    from where memory does not suffice."""
    start, count = 0, len(whole.inputs[0])
    while start < count:
        try:
            yield work(whole.of(slice(start, start + at_once)), at_once)
            start += at_once
        except (
            RuntimeError
        ) as error:  # torch.OutOfMemoryError is one; the processor's allocator raises a plain one
            if at_once == 1 or not (
                "out of memory" in str(error).lower() or "not enough memory" in str(error).lower()
            ):
                raise
            at_once = at_once // 2
            print(f"out of memory; {at_once} copies at once from here on")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def gradient_times_input(target: Target, batch: Batch) -> Tokens:
    """Gradient times input (Captum's ``InputXGradient``), summed over the width of each token."""
    from captum.attr import InputXGradient

    whole = path(target, batch)
    inputs = tuple(x.clone().requires_grad_() for x in whole.inputs)
    found = whole.summed(
        InputXGradient(whole.forward).attribute(inputs, additional_forward_args=whole.rest)
    )
    streams = summarised(target.model, batch).streams
    return {name: x * content(streams[name]) for name, x in found.items()}


# --- modalities
# ------------------------------------------------------------------------------------------------


class Shapley(NamedTuple):
    """``values`` (B, M) in the order of the model's modalities, exactly 0 where a product lacks
    one; F with all and with none."""

    values: Float[Tensor, "B M"]
    full: Float[Tensor, " B"]
    empty: Float[Tensor, " B"]

    @property
    def error(self) -> Float[Tensor, " B"]:
        """|sum of the values - (F(all) - F(none))|, which efficiency says is 0."""
        return (self.values.sum(1) - (self.full - self.empty)).abs()


def shapley(target: Target, batch: Batch) -> Shapley:
    """Exact Shapley values of the modalities (Shapley 1953), from F of all 2^M coalitions; absent
    modalities take part in nothing.

    value of m = sum over S without m of |S|! (M - |S| - 1)! / M! (F(S + m) - F(S)), in double
    precision.
    """
    names = target.model.spec.modalities
    count, columns = len(names), []
    for coalition in range(2**count):
        columns.append(
            target.value(
                batch.only([n for place, n in enumerate(names) if coalition >> place & 1])
            ).double()
        )
    worth, found = torch.stack(columns, dim=1), []
    for place in range(count):
        without = torch.tensor(
            [c for c in range(2**count) if not c >> place & 1], device=worth.device
        )
        size = [bin(c).count("1") for c in without.tolist()]
        weight = worth.new_tensor(
            [factorial(s) * factorial(count - s - 1) / factorial(count) for s in size]
        )
        found.append((worth[:, without | 1 << place] - worth[:, without]) @ weight)
    there = torch.stack([batch.streams[name].valid[:, 0] for name in names], dim=1)
    return Shapley(torch.stack(found, dim=1) * there, worth[:, -1], worth[:, 0])
