"""The authors' checkpoints by their parameter names.

>>> model = load_released("model.safetensors", heads=12)  # a Model, or a Classifier
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from m5lib.files import reading
from m5lib.modalities import MODALITIES
from m5lib.model import Model
from m5lib.models import zoo
from m5lib.models.finetune import Classifier
from m5lib.spec import Spec

State = Mapping[str, Tensor]

_TABLE = tomllib.loads(Path(__file__).with_name("released.toml").read_text(encoding="utf-8"))
#: The released order of the joint encoder's and the classifier's input, and tokens of each stream.
RELEASED_LENGTHS: dict[str, int] = _TABLE["lengths"]
#: Parts of one of our blocks, and what makes them up in a BERT.
BERT_LAYER = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "out": ("attention.output.dense",),
    "norm_attention": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "norm_feed": ("output.LayerNorm",),
}


def released_names(name: str) -> tuple[str, ...]:
    """Names in the released checkpoints whose rows, one after another, make up our parameter."""
    part, _, kind = name.removeprefix("model.").rpartition(".")
    try:
        match part.split("."):
            case ["stages", "0", "blocks", owner, layer, part]:
                place = f"{_TABLE['encoders'][owner]}.{layer}"
                return tuple(f"{place}.{piece}.{kind}" for piece in BERT_LAYER[part])
            case ["stages", "1", "blocks", _, layer, part]:
                place = f"bert.cross_encoder.transformer.resblocks.{layer}"
                return (f"{place}.{_TABLE['joint'][part]}{kind}",)
        return (f"{_TABLE['parameters'][part]}.{kind}",)
    except KeyError:
        needs = "this needs the row 'released' with all five modalities"
        raise ValueError(f"{name} has no place in the released model; {needs}") from None


def slices(name: str, ours: Tensor, theirs: Sequence[Tensor], lengths: Mapping[str, int]):
    """Rows of ours and of theirs that hold the same numbers, for each of their tensors.

    Tables of positions and types are longer there than we can use (ours is longer than a toy's).
    Positions of the joint encoder belong to places in the concatenation there, and to a modality
    and its place here.
    """
    if ".positions." in name:
        order, modality = list(lengths), name.split(".")[-2]
        start = sum(lengths[other] for other in order[: order.index(modality)])
        count = min(lengths[modality], len(ours))
        yield slice(0, count), slice(start, start + count)
    elif (
        name.endswith(("position.weight", "kind.weight")) and ours.shape[1:] == theirs[0].shape[1:]
    ):
        count = min(len(ours), len(theirs[0]))
        yield slice(0, count), slice(0, count)
    else:
        start = 0
        for part in theirs:
            yield slice(start, start + len(part)), slice(0, len(part))
            start += len(part)


def columns(weight: Tensor, order: Sequence[str], target: Sequence[str]) -> Tensor:
    """The classifier's input, a block of columns per modality, in another order."""
    parts = dict(zip(order, weight.chunk(len(order), dim=1), strict=True))
    return torch.cat([parts[name] for name in target], dim=1)


def import_released(
    module: Model | Classifier, state: State, lengths: Mapping[str, int] = RELEASED_LENGTHS
) -> None:
    """Copy a released state dict into a model of the row ``released`` or a classifier on it, in
    place. What never trains there has no place here. Raises ``ValueError``: a parameter is missing,
    or the checkpoint is of another width."""
    if isinstance(module, Classifier):
        theirs, ours = list(lengths), module.model.spec.modalities
        state = {**state, "dense1.weight": columns(state["dense1.weight"], theirs, ours)}
    with torch.no_grad():
        for name, ours in module.named_parameters():
            wanted = released_names(name)
            if missing := [source for source in wanted if source not in state]:
                raise ValueError(f"not a released checkpoint of this model: {missing} missing")
            theirs, fresh = [state[source] for source in wanted], torch.zeros_like(ours)
            places = slices(name, ours, theirs, lengths)
            for part, (here, there) in zip(theirs, places, strict=True):
                if fresh[here].shape != part[there].shape:
                    has, own = tuple(part.shape), f"the model's {name} is {tuple(ours.shape)}"
                    raise ValueError(f"{wanted[0]}: the checkpoint has {has}, {own}")
                fresh[here] = part[there].to(ours.dtype)
            ours.copy_(fresh)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a ``safetensors`` or a PyTorch file, of which nothing is executed. Raises
    ``ValueError``: the file, and why it cannot be read."""
    with reading(path):
        if Path(path).suffix == ".safetensors":
            state = load_file(str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        return {name.removeprefix("module."): value for name, value in state.items()}


def released_spec(state: State, **heads) -> Spec:
    """The row ``released`` at a state dict's sizes; heads, not in it, default to 12, 8, 8."""
    words, up = "bert.embeddings.word_embeddings.weight", "intermediate.dense.bias"
    vocabulary, width = state[words].shape
    layers = sum(name.startswith("bert.encoder.layer.") and name.endswith(up) for name in state)
    spec = zoo.released(
        width=width,
        layers=layers,
        hidden=len(state[f"bert.encoder.layer.0.{up}"]) / width,
        feature_hidden=len(state[f"bert.encoder.v_layer.0.{up}"]) / width,
        projection=len(state["bert.encoder.t_pooler.dense.bias"]),
        **heads,
    )
    weights = (
        (n, *released_names(f"embeddings.{n}.project.weight")) for n in ("image", "video", "audio")
    )
    return replace(
        spec,
        modalities=tuple(name for name in MODALITIES if name in RELEASED_LENGTHS),
        widths=tuple((name, state[weight].shape[1]) for name, weight in weights),
        vocabulary=vocabulary,
        # the tokenizer of the release is bert-base-chinese: an empty string is [CLS] [SEP]
        empty=(101, 102),
    )


def load_released(
    path: str | Path, lengths: Mapping[str, int] = RELEASED_LENGTHS, **heads
) -> Model | Classifier:
    """The authors' checkpoint as a model of ours, or a classifier if it is one, in evaluation mode.

    It brings no tokenizer: theirs is ``bert-base-chinese`` (:func:`m5lib.streams.load_tokenizer`).

    Args:
        lengths: tokens of each stream in the joint encoder's concatenation, in its order.
        heads: ``heads``, ``feature_heads``, ``joint_heads``, where they are not the published ones.
    """
    state = read_state(path)
    with reading(path, "take a checkpoint of the released model"):
        module = Model(released_spec(state, **heads))
    if "dense1.weight" in state:  # their labels are numbers in the order of a file we do not have
        labels = [str(n) for n in range(len(state["dense2.bias"]))]
        module = Classifier(module, labels, hidden=len(state["dense1.bias"]))
    import_released(module, state, lengths)
    return module.eval()
