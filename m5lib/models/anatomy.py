"""What a model is made of: who reaches whom, where its parameters are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from m5lib.model import Model
from m5lib.streams import Batch, impute


@contextmanager
def _opened(model: Model, batch: Batch) -> Iterator[tuple[dict, dict]]:
    """Token embeddings of a batch and which tokens are there, with the model in evaluation mode."""
    was_training = model.training
    if model.spec.missing == "impute":
        batch = impute(batch, model.spec.empty)
    try:
        model.eval()
        yield model.embed(batch), {n: batch.streams[n].valid for n in model.spec.modalities}
    finally:
        model.train(was_training)


def reach(model: Model, batch: Batch, states: str = "fused") -> Bool[Tensor, "M M"]:
    """Which input modality (column) moves which output (row, of the ``states`` of that name in
    :class:`~m5lib.model.Output`), from gradients on the products of a batch that have both."""
    generator, rows = torch.Generator().manual_seed(0), []
    with _opened(model, batch) as (inputs, valid):
        inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        output, leaves = model.forward_from_embeddings(inputs, valid), list(inputs.values())
        for name, x in getattr(output, states).items():
            # a random direction: of what a norm gives, the squared length never changes
            direction = torch.randn(x.shape, generator=generator).to(x) * valid[name][..., None]
            moved = (x * direction).sum()
            grads = torch.autograd.grad(moved, leaves, retain_graph=True, allow_unused=True)
            rows.append([g is not None and bool(g.abs().sum() > 0) for g in grads])
    return torch.tensor(rows)


@torch.no_grad()
def influence(
    model: Model, batch: Batch, states: str = "fused", size: float = 0.1
) -> Float[Tensor, "M M"]:
    """How far each input modality (column) moves each output (row): relative change of the output
    by that of the input; exactly zero where :func:`reach` is False.

    Noise of ``size`` of each token's length is put on the embeddings of one modality at a time.
    Over the products of a batch that have both modalities; not a number where none has.
    """
    generator, names = torch.Generator().manual_seed(0), model.spec.modalities
    change = torch.full((len(names), len(names)), float("nan"))
    with _opened(model, batch) as (inputs, valid):
        plain = getattr(model.forward_from_embeddings(inputs, valid), states)
        for column, moved in enumerate(names):
            x = inputs[moved]
            noise = F.normalize(torch.randn(x.shape, generator=generator), dim=-1).to(x)
            noisy = inputs | {moved: x + size * noise * x.norm(dim=-1, keepdim=True)}
            after = getattr(model.forward_from_embeddings(noisy, valid), states)
            for row, name in enumerate(names):
                both = valid[name] & valid[moved][:, :1]
                if both.any():
                    distance = (after[name] - plain[name])[both].norm()
                    change[row, column] = distance / plain[name][both].norm() / size
    return change


def component(parameter: str) -> str:
    """``stages.1.blocks.joint.0.qkv.weight -> stages.1.joint``: the part that owns a parameter."""
    match parameter.split("."):
        case ["embeddings", _, "words", *_]:
            return "embeddings.words"
        case ["stages", number, "blocks" | "norms", owner, *_]:
            return f"stages.{number}.{owner}"
        case ["stages", number, "positions", *_]:
            return f"stages.{number}.positions"
        case [part, _]:
            return part
        case [part, owner, *_]:
            return f"{part}.{owner}"
        case _:
            return parameter


def ledger(model: Model) -> list[dict]:
    """Parameters per component: ``component``, ``tensors``, ``parameters``, and of these
    ``trained``, which have received a gradient in a backward pass before. What is shared is counted
    once, under its first owner."""
    rows: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        part, size = component(name), parameter.numel()
        trained = parameter.grad is not None and parameter.grad.abs().sum() > 0
        row = rows.setdefault(part, dict(component=part, tensors=0, parameters=0, trained=0))
        row["tensors"] += 1
        row["parameters"] += size
        row["trained"] += size if trained else 0
    return list(rows.values())
