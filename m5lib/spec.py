"""What a model is: a list of stages and an objective. One row per model.

``solo``: a modality reads itself; ``cross``: it reads the others; ``joint``: everyone reads
everyone, with one set of weights.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from m5lib.layers import Block, check_choices
from m5lib.modalities import ordered

Names = tuple[str, ...]


def _owner(groups: tuple[Names, ...], name: str) -> str:
    return next(("+".join(group) for group in groups if name in group), name)


@dataclass(frozen=True)
class Stage:
    """``layers`` blocks of one kind.

    Attributes:
        block: of every modality, save those in ``blocks`` (pairs of a modality and its own).
        share: in ``solo`` and ``cross`` every modality has weights of its own, save that those of a
            group have the same. A ``joint`` stage has one set for all.
        only: the modalities that take part; the others pass by unchanged. All, if empty.
        final_norm: normalise the output of pre-norm blocks.
        positions: add a learned vector per modality and place before the first block.
    """

    kind: Literal["solo", "cross", "joint"]
    layers: int
    block: Block = Block()
    blocks: tuple[tuple[str, Block], ...] = ()
    share: tuple[Names, ...] = ()
    only: Names = ()
    final_norm: bool = True
    positions: bool = False

    def __post_init__(self):
        check_choices(self)
        ordered([*self.only, *dict(self.blocks)])  # an unknown modality is an error

    def owner(self, name: str) -> str:
        """Name under which the weights of a modality are kept."""
        return "joint" if self.kind == "joint" else _owner(self.share, name)

    def block_of(self, name: str) -> Block:
        """The block of a modality."""
        return self.block if self.kind == "joint" else dict(self.blocks).get(name, self.block)

    def takes(self, names: Iterable[str]) -> Names:
        """Those of the names that take part."""
        return tuple(name for name in names if not self.only or name in self.only)


@dataclass(frozen=True)
class Objective:
    """What a model is trained with (sections 4.2 and 4.3); every term has weight 1, as in Eq. 3.

    Attributes:
        masked: whether there are masked tasks, or the modalities that have one.
        reads: the states that their heads read, ``fused`` (paper, Figure 2) or ``encoded``, before
            the fusion (released code).
        hides: what a masked task hides, where it is not what the modality's row says (Table 7:
            ``(("table", "token"),)``).
        classes: feature modalities of which class probabilities are predicted (by KL divergence),
            not features.
        matching: word modalities for which the model tells a product's own from another's
            (image-text matching, if ``("text",)``).
        contrast: its form, see :mod:`m5lib.simcl`; on the summaries before the fusion.
        pairs: ``all`` pairs of modalities, or ``neighbours`` in the table's order (M5-MMT).
        harmony: scores S of each product: ``embedding`` (abstract, released code); ``free``, a
            matrix of parameters in a form that trains; ``literal``, section 4.3 to the letter,
            which does not (:func:`m5lib.objectives.literal_harmony`); ``uniform``, every score 1.
        agreement: what ``embedding`` starts from, ``shifted`` = (1 + cosine) / 2 or the ``cosine``
            (released code, after a ReLU).
        harmony_on: where scores act: ``contrast`` (pair scores), ``masked`` (diagonal).
        acts_on: on ``logits`` (Eq. 3) or on ``losses``.
        pair_order: the score of a pair is that of its row in this order for both directions
            (released code); each anchor's own, if empty.
        temperature: start of the learned temperature. The paper has 0.1, the released code 0.07,
            both fixed; harmony scores below one divide into it (0.015 / 0.4), so it starts lower
            here (``LOG.md``).
    """

    masked: bool | Names = True
    reads: Literal["fused", "encoded"] = "fused"
    hides: tuple[tuple[str, str], ...] = ()
    mask_rate: float = 0.15
    classes: Names = ()
    matching: Names = ()
    contrast: Literal["infonce", "eq2", "released", "siglip", "symile", "gram", "none"] = "infonce"
    pairs: Literal["all", "neighbours"] = "all"
    harmony: Literal["embedding", "free", "literal", "uniform"] = "embedding"
    agreement: Literal["shifted", "cosine"] = "shifted"
    harmony_on: Names = ("contrast", "masked")
    acts_on: Literal["logits", "losses"] = "logits"
    pair_order: Names = ()
    temperature: float = 0.015
    learn_temperature: bool = True

    def __post_init__(self):
        check_choices(self)
        if unknown := set(self.harmony_on) - {"contrast", "masked"}:
            raise ValueError(
                f"Objective: unknown harmony_on {sorted(unknown)}: known are ['contrast', 'masked']"
            )
        ordered(
            [
                *(() if isinstance(self.masked, bool) else self.masked),
                *dict(self.hides),
                *self.classes,
                *self.matching,
            ]
        )

    def tasks(self, names: Iterable[str]) -> Names:
        """Those of the modalities that have a masked task."""
        return tuple(
            name for name in names if self.masked is True or (self.masked and name in self.masked)
        )


@dataclass(frozen=True)
class Spec:
    """One model. ``widths`` (F of each feature modality), ``classes`` (class probabilities of each
    token, where the extractor gives some), ``vocabulary`` (V) and ``empty`` (word pieces of an
    empty string) come from the data: :meth:`fit`.

    Attributes:
        takes: modalities that the model can read; all, if empty.
        pool: the summary of a modality before the fusion that the contrast compares: the ``first``
            token (paper) or the ``mean``.
        projection: width of a linear layer and ReLU on these summaries (released code); none, if 0.
        share: groups of word modalities with one embedding and one masked head. The table of word
            pieces is one for all in any case, tied to the heads.
        types: a learned vector per modality in its embedding: of ``words`` (BERT's segments), of
            ``all``, or ``none``.
        boxes: whether the embedding of a region knows where it is.
        missing: an absent modality takes part in nothing (``mask``), or is a stream of zeros that
            everyone sees (``impute``; section 4.1).
    """

    name: str
    stages: tuple[Stage, ...]
    width: int = 128
    takes: Names = ()
    modalities: Names = ()
    widths: tuple[tuple[str, int], ...] = ()
    classes: tuple[tuple[str, int], ...] = ()
    vocabulary: int = 0
    empty: tuple[int, ...] = ()
    pool: Literal["first", "mean"] = "first"
    projection: int = 0
    share: tuple[Names, ...] = ()
    types: Literal["none", "words", "all"] = "none"
    boxes: bool = True
    missing: Literal["mask", "impute"] = "mask"
    objective: Objective = field(default_factory=Objective)
    dropout: float = 0.1
    eps: float = 1e-6

    def __post_init__(self):
        check_choices(self)
        ordered(self.takes)

    def owner(self, name: str) -> str:
        """Name under which the embedding and the head of a modality are kept."""
        return _owner(self.share, name)

    def fit(self, streams) -> "Spec":
        """The spec with modalities, feature widths and vocabulary of a
        :class:`~m5lib.streams.Streams`.

        Raises:
            ValueError: the streams have no modality that the model takes, or no class probabilities
                that its objective needs.
        """
        names = tuple(
            name for name in ordered(streams.modalities) if not self.takes or name in self.takes
        )
        if not names:
            raise ValueError(
                f"{self.name} takes {list(self.takes)}; these streams have "
                f"{list(streams.modalities)}"
            )
        if lacking := [
            name for name in names if name in self.objective.classes and name not in streams.classes
        ]:
            raise ValueError(
                f"{self.name} predicts class probabilities of {lacking}, but their extractor gives "
                "none"
            )
        tokenizer, widths = streams.tokenizer, streams.widths
        return replace(
            self,
            modalities=names,
            widths=tuple((name, widths[name]) for name in names if name in widths),
            classes=tuple(
                (name, width)
                for name, width in streams.classes.items()
                if name in self.objective.classes and name in names
            ),
            vocabulary=len(tokenizer),
            empty=(tokenizer.cls_token_id, tokenizer.sep_token_id),
        )

    def to_dict(self) -> dict:
        """For ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, config: dict) -> "Spec":
        """Inverse of :meth:`to_dict`. Raises ``ValueError`` for a key that is not a field."""
        stages = []
        for stage in config["stages"]:
            blocks = [(name, _make(Block, block)) for name, block in stage.get("blocks", ())]
            stages.append(
                _make(Stage, {**stage, "block": _make(Block, stage["block"]), "blocks": blocks})
            )
        return _make(
            cls, {**config, "stages": stages, "objective": _make(Objective, config["objective"])}
        )


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _make(kind, values: dict):
    known = [f.name for f in fields(kind)]
    if unknown := set(values) - set(known):
        raise ValueError(f"{kind.__name__} has no field {sorted(unknown)}: known are {known}")
    return kind(**{key: _tuples(value) for key, value in values.items()})


def change(spec: Spec, changes: Iterable[tuple[str, Any]]) -> Spec:
    """The spec with some fields changed: pairs such as ``("missing", "impute")`` and
    ``("objective.contrast", "siglip")``.

    Raises:
        ValueError: a field or a value is unknown; the message lists the known ones.
    """
    for key, value in changes:
        part, _, name = key.rpartition(".")
        if part not in ("", "objective"):
            raise ValueError(
                f"cannot change {key!r}: give a field of Spec, or 'objective.' and a field of "
                "Objective"
            )
        target = spec.objective if part else spec
        known = [f.name for f in fields(target)]
        if name not in known:
            raise ValueError(f"{type(target).__name__} has no field {name!r}: known are {known}")
        target = replace(target, **{name: _tuples(value)})
        spec = replace(spec, objective=target) if part else target
    return spec


# --- the rows: each a function of width, layers and heads
# ---------------------------------------------------------------------- ``layers`` is the paper's
# 6: SCALE has as many in each of its two stages, a baseline twice as many in all (section 5).
