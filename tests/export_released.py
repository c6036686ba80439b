"""Our weights under the released names: the way back, for gradients and round trips."""

from collections.abc import Mapping

from torch import Tensor

from m5lib.model import Model
from m5lib.models.finetune import Classifier
from m5lib.models.released import RELEASED_LENGTHS, State, columns, released_names, slices


def export_released(
    module: Model | Classifier,
    like: State,
    lengths: Mapping[str, int] = RELEASED_LENGTHS,
    gradients: bool = False,
) -> dict[str, Tensor]:
    """Our parameters (or their gradients) under the released names.

    Args:
        like: a released state dict; what has no counterpart here (stacks that never train, unused
            positions) is taken from it.
    """
    state = {name: value.clone() for name, value in like.items()}
    for name, parameter in module.named_parameters():
        ours = parameter.grad if gradients else parameter.detach()
        if ours is None:
            continue
        if name == "hidden.weight":
            ours = columns(ours, module.model.spec.modalities, list(lengths))
        theirs = [state[source] for source in released_names(name)]
        for part, (here, there) in zip(theirs, slices(name, ours, theirs, lengths), strict=True):
            part[there] = ours[here].to(part.dtype)
    tied = "cls.predictions.decoder.weight"
    words = state["bert.embeddings.word_embeddings.weight"]
    return state | ({tied: words} if tied in state else {})
