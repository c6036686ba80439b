"""What a model is made of, read from the model: who reaches whom, where its parameters are, what a
product costs in tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from m5lib.modalities import MODALITIES
from m5lib.model import Model
from m5lib.streams import Batch, impute


def reach(model: Model, batch: Batch, states: str = "fused", seed: int = 0) -> Bool[Tensor, "M M"]:
    """Which input modality (column) moves which output (row), from gradients on the products of a
    batch that have both.

    Args:
        states: which of :class:`~m5lib.model.Output`'s: ``fused``, or ``encoded`` before the
            fusion.
    """
    generator, names, was_training = (
        torch.Generator().manual_seed(seed),
        model.spec.modalities,
        model.training,
    )
    model.eval()
    if model.spec.missing == "impute":
        batch = impute(batch, model.spec.empty)
    inputs = {name: x.detach().requires_grad_() for name, x in model.embed(batch).items()}
    output = model.forward_from_embeddings(
        inputs, {name: batch.streams[name].valid for name in names}
    )
    found = torch.zeros(len(names), len(names), dtype=torch.bool)
    for row, name in enumerate(names):
        x = getattr(output, states)[name]
        # a random direction: the squared length of what a norm gives is the same whatever goes in
        direction = torch.randn(x.shape, generator=generator).to(x) * output.valid[name][..., None]
        grads = torch.autograd.grad(
            (x * direction).sum(), list(inputs.values()), retain_graph=True, allow_unused=True
        )
        found[row] = torch.tensor([g is not None and bool(g.abs().sum() > 0) for g in grads])
    model.train(was_training)
    return found


def component(parameter: str) -> str:
    """``stages.1.blocks.joint.0.qkv.weight -> stages.1.joint``: the part of the model that a
    parameter belongs to."""
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
    ``trained``, which have received a gradient.

    Call it after a backward pass; without one nothing has trained. What is shared is counted once,
    under its first owner.
    """
    found: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        part = component(name)
        row = found.setdefault(
            part, {"component": part, "tensors": 0, "parameters": 0, "trained": 0}
        )
        row["tensors"] += 1
        row["parameters"] += parameter.numel()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0:
            row["trained"] += parameter.numel()
    return list(found.values())


def token_budget(model: Model) -> dict[str, int]:
    """The longest stream of each modality, its summary token included: together what the fusion
    reads at most."""
    return {name: MODALITIES[name].slots for name in model.spec.modalities}


@torch.no_grad()
def influence(
    model: Model, batch: Batch, states: str = "fused", size: float = 0.1, seed: int = 0
) -> Float[Tensor, "M M"]:
    """How far each input modality (column) moves each output (row): relative change of the output
    by that of the input.

    Noise of ``size`` of each token's length is put on the embeddings of one modality at a time.
    Over the products of a batch that have both modalities; not a number where none has. Where
    :func:`reach` is False it is exactly zero.

    Args:
        states: ``fused`` or ``encoded``, as in :func:`reach`.
    """
    generator, names, was_training = (
        torch.Generator().manual_seed(seed),
        model.spec.modalities,
        model.training,
    )
    model.eval()
    if model.spec.missing == "impute":
        batch = impute(batch, model.spec.empty)
    inputs, valid = model.embed(batch), {name: batch.streams[name].valid for name in names}
    plain = getattr(model.forward_from_embeddings(inputs, valid), states)
    found = torch.full((len(names), len(names)), float("nan"))
    for column, moved in enumerate(names):
        noise = torch.nn.functional.normalize(
            torch.randn(inputs[moved].shape, generator=generator), dim=-1
        ).to(inputs[moved])
        other = inputs | {
            moved: inputs[moved] + size * noise * inputs[moved].norm(dim=-1, keepdim=True)
        }
        after = getattr(model.forward_from_embeddings(other, valid), states)
        for row, name in enumerate(names):
            both = valid[name] & valid[moved][:, :1]
            if both.any():
                found[row, column] = (
                    (after[name] - plain[name])[both].norm() / plain[name][both].norm() / size
                )
    model.train(was_training)
    return found
