"""What a model is: a list of stages and an objective. One row per model.

``solo``: a modality reads itself; ``cross``: it reads the others; ``joint``: everyone reads everyone, with one set of weights.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal

from m5lib.layers import Block
from m5lib.modalities import ordered


@dataclass(frozen=True)
class Stage:
    """``layers`` blocks of one kind. In ``solo`` and ``cross`` every modality has weights of its own, save that the modalities of a
    group in ``share`` have the same; a ``joint`` stage has one set for all. ``final_norm`` normalises a pre-norm stage's output."""

    kind: Literal["solo", "cross", "joint"]
    layers: int
    block: Block = Block()
    share: tuple[tuple[str, ...], ...] = ()
    final_norm: bool = True

    def owner(self, name: str) -> str:
        """Name under which the weights of a modality are kept."""
        if self.kind == "joint":
            return "joint"
        return next(("+".join(group) for group in self.share if name in group), name)


@dataclass(frozen=True)
class Objective:
    """What a model is trained with (sections 4.2 and 4.3); every term has weight 1, as in Eq. 3.

    Attributes:
        masked: the masked task of each modality, with heads that read the fused states.
        hides: what a masked task hides, where it is not what the modality's row says (Table 7: ``(("table", "token"),)``).
        contrast: pairwise InfoNCE on the summaries before the fusion, or none.
        harmony: scores S of each product, ``embedding`` (abstract, released code) or ``uniform`` (plain IMCL: every score 1).
        harmony_on: where scores multiply logits (Eq. 3): ``contrast`` (pair scores), ``masked`` (diagonal).
        temperature: start of the learned temperature. The paper has 0.1, the released code 0.07, both fixed; harmony scores below one
            divide into it (0.015 / 0.4), so it starts lower here (``LOG.md``).
    """

    masked: bool = True
    hides: tuple[tuple[str, str], ...] = ()
    mask_rate: float = 0.15
    contrast: Literal["infonce", "none"] = "infonce"
    harmony: Literal["embedding", "uniform"] = "embedding"
    harmony_on: tuple[str, ...] = ("contrast", "masked")
    temperature: float = 0.015
    learn_temperature: bool = True


@dataclass(frozen=True)
class Spec:
    """One model. ``widths`` (F of each feature modality) and ``vocabulary`` (V) come from the data: :meth:`fit`.

    ``pool`` says which summary of a modality before the fusion the contrast compares: the ``first`` token (paper) or the ``mean`` of the
    tokens. The word embeddings of all word modalities are one table, tied to their masked heads.
    """

    name: str
    stages: tuple[Stage, ...]
    width: int = 128
    modalities: tuple[str, ...] = ()
    widths: tuple[tuple[str, int], ...] = ()
    vocabulary: int = 0
    pool: Literal["first", "mean"] = "first"
    objective: Objective = field(default_factory=Objective)
    dropout: float = 0.1

    def fit(self, streams) -> "Spec":
        """The spec with modalities, feature widths and vocabulary of a :class:`~m5lib.streams.Streams`."""
        return replace(
            self, modalities=ordered(streams.modalities), widths=tuple(streams.widths.items()), vocabulary=len(streams.tokenizer)
        )

    def to_dict(self) -> dict:
        """For ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, config: dict) -> "Spec":
        """Inverse of :meth:`to_dict`. Raises ``ValueError`` for a key that is not a field."""
        stages = tuple(_make(Stage, {**s, "block": _make(Block, s["block"])}) for s in config["stages"])
        return _make(cls, {**config, "stages": stages, "objective": _make(Objective, config["objective"])})


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _make(kind, values: dict):
    if unknown := set(values) - {f.name for f in fields(kind)}:
        raise ValueError(f"{kind.__name__} has no field {sorted(unknown)}")
    return kind(**{key: _tuples(value) for key, value in values.items()})


def scale(width: int = 256, layers: int = 1, heads: int = 4, dropout: float = 0.0, **settings) -> Spec:
    """SCALE (section 4.1): a transformer per modality, then one over all tokens. The paper has 768 wide, 6 + 6 layers.

    Left open by the paper and settled here: pre-norm blocks with a final norm, a learned temperature, no projection before the
    contrast (the released code has one; ``LOG.md`` compares). The three blocks that Figure 2 draws inside the fusion are
    one joint self-attention here as in the released code.
    """
    block = Block(heads=heads, dropout=dropout)
    return Spec("scale", (Stage("solo", layers, block), Stage("joint", layers, block)), width=width, dropout=dropout, **settings)


#: One row per model: name -> function of ``width``, ``layers`` and ``heads``.
MODELS = {"scale": scale}
