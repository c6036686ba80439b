"""What a model is and what it is trained with: frozen settings, saved as ``config.json``.

A model is a list of stages. ``solo``: a modality reads itself; ``cross``: it reads the others;
``joint``: everyone reads everyone, with one set of weights. SCALE is ``solo`` then ``joint``.

>>> spec = Spec("scale", (Stage("solo", 6), Stage("joint", 6)), width=768)
>>> model = Model(spec.fit(streams))  # modalities, feature widths and vocabulary come from the data
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal, get_args, get_origin, get_type_hints

from m5lib import simcl
from m5lib.modalities import ordered

Names = tuple[str, ...]


def check_choices(settings, **known: Iterable[str]) -> None:
    """Raises ``ValueError`` where a field of a dataclass that is text, a number or a switch is of
    another type, or is none of its choices (a ``Literal``'s, or given by its name), all named."""
    for name, hint in get_type_hints(type(settings)).items():
        choices = known.get(name) or (get_args(hint) if get_origin(hint) is Literal else ())
        value, owner = getattr(settings, name), type(settings).__name__
        if choices and value not in choices:
            raise ValueError(f"{owner}: unknown {name} {value!r}: known are {list(choices)}")
        kinds = (int, float) if float in (hint, *get_args(hint)) else (hint,)
        if {*kinds} <= {int, float, bool, str} and type(value) not in kinds:
            raise ValueError(f"{owner}: {name} is {value!r}, not {kinds[-1].__name__}")


def _owner(groups: tuple[Names, ...], name: str) -> str:
    return next(("+".join(group) for group in groups if name in group), name)


@dataclass(frozen=True)
class Block:
    """One transformer block (:class:`m5lib.layers.AttentionBlock`).

    ``norm="post"`` is BERT's order (add, then normalise), ``"pre"`` is CLIP's. ``hidden`` is the
    width of the feed-forward layer as a multiple of the model's width. ``dropout`` acts on
    attention weights and on both residual branches.
    """

    heads: int = 4
    hidden: float = 4.0
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    dropout: float = 0.1
    eps: float = 1e-6

    def __post_init__(self):
        check_choices(self)


@dataclass(frozen=True)
class Stage:
    """``layers`` blocks of one kind.

    Attributes:
        block: of every modality, save those in ``blocks`` (pairs of a modality and its own).
        share: groups of modalities with one set of weights in ``solo`` and ``cross``, where others
            have their own. A ``joint`` stage has one set for all.
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
    """What a model is trained with (sections 4.2 and 4.3): the terms of Eq. 3.

    Attributes:
        masked: whether there are masked tasks, or the modalities that have one.
        reads: the states that their heads read, ``fused`` (paper, Figure 2) or ``encoded``, before
            the fusion (released code).
        hides: what a masked task hides, where it is not what the modality's row says (Table 7:
            ``(("table", "token"),)``).
        classes: feature modalities of which class probabilities are predicted, not features.
        matching: word modalities for which the model tells a product's own from another's
            (image-text matching, if ``("text",)``).
        contrast: of summaries before the fusion: a name in :data:`m5lib.simcl.FORMS`, or ``none``.
        pairs: ``all`` pairs of modalities, or ``neighbours`` in the table's order (M5-MMT).
        harmony: scores S of each product, a name in :data:`m5lib.simcl.HARMONY`, or ``uniform``: 1.
        agreement: what scores of vectors start from, a name in :data:`m5lib.simcl.AGREEMENT`.
        diagonal: the summaries whose agreement gives the diagonal of S: ``encoded``, before the
            fusion, so that there is one S; or ``fused`` (released code), which makes two.
        harmony_on: where scores act: ``contrast`` (pair scores), ``masked`` (diagonal).
        acts_on: on ``logits`` (Eq. 3) or on ``losses``.
        over_pairs: the contrast is the ``mean`` over the pairs, which was better on validation
            products (``LOG.md``), or their ``sum``, as Eq. 3 prints: ten times it with five.
        drop: share of the products of which the fusion sees only some modalities in pre-training.
        fused: weight of :func:`m5lib.objectives.fused_loss`; 0: none (paper).
        pair_order: the score of a pair is that of its row in this order for both directions
            (released code); each anchor's own, if empty.
        temperature: start of the learned temperature. The paper has 0.1, the released code 0.07,
            both fixed. From 0.015 products are soon learned by heart (``LOG.md``).
    """

    masked: bool | Names = True
    reads: Literal["fused", "encoded"] = "fused"
    hides: tuple[tuple[str, str], ...] = ()
    mask_rate: float = 0.15
    classes: Names = ()
    matching: Names = ()
    contrast: str = "infonce"
    pairs: Literal["all", "neighbours"] = "all"
    harmony: str = "mutual"
    agreement: str = "shifted"
    diagonal: Literal["encoded", "fused"] = "encoded"
    harmony_on: Names = ("contrast", "masked")
    acts_on: Literal["logits", "losses"] = "logits"
    over_pairs: Literal["mean", "sum"] = "mean"
    drop: float = 0.0
    fused: float = 0.0
    pair_order: Names = ()
    temperature: float = 0.05
    learn_temperature: bool = True

    def __post_init__(self):
        # read when an objective is made: a notebook may have added a form of its own
        contrast, harmony = (*simcl.FORMS, "none"), (*simcl.HARMONY, "uniform")
        check_choices(self, contrast=contrast, harmony=harmony, agreement=simcl.AGREEMENT)
        places = ["contrast", "masked"]
        if unknown := set(self.harmony_on) - set(places):
            raise ValueError(f"Objective: unknown harmony_on {sorted(unknown)}: known are {places}")
        masked = () if isinstance(self.masked, bool) else self.masked
        ordered([*masked, *dict(self.hides), *self.classes, *self.matching])

    def tasks(self, names: Iterable[str]) -> Names:
        """Those of the modalities that have a masked task."""
        chosen = self.masked or ()
        return tuple(name for name in names if chosen is True or name in chosen)


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
        types: a learned vector per modality: of ``words`` (BERT's segments), ``all`` or ``none``.
        boxes: whether the embedding of a region knows where it is.
        missing: an absent modality takes part in nothing (``mask``), or is a stream of zeros that
            everyone sees (``impute``; section 4.1).
        rates: parameters with a highest learning rate of their own, by how their names begin; 0:
            frozen (:mod:`m5lib.models.pretrained`).
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
    rates: tuple[tuple[str, float], ...] = ()
    objective: Objective = field(default_factory=Objective)
    dropout: float = 0.1
    eps: float = 1e-6

    def __post_init__(self):
        check_choices(self)
        ordered(self.takes)

    def owner(self, name: str) -> str:
        """Name under which the embedding and the head of a modality are kept."""
        return _owner(self.share, name)

    @property
    def contrasted(self) -> bool:
        """Whether there is a contrast, which takes two modalities."""
        return self.objective.contrast != "none" and len(self.modalities) > 1

    @property
    def fusion(self) -> int:
        """Index of the first stage in which all modalities read each other."""
        fused = [stage.kind != "solo" and not stage.only for stage in self.stages]
        return fused.index(True) if any(fused) else len(fused)

    def fit(self, streams) -> "Spec":
        """The spec with modalities, feature widths and vocabulary of a
        :class:`~m5lib.streams.Streams`. Raises ``ValueError``: these have no modality that the
        model takes, or no class probabilities that its objective needs."""
        there = ordered(streams.modalities)
        names = tuple(name for name in there if not self.takes or name in self.takes)
        if not names:
            raise ValueError(f"{self.name} takes {self.takes}; these streams have {there}")
        predicted = [name for name in names if name in self.objective.classes]
        if lacking := [name for name in predicted if name not in streams.classes]:
            why = f"class probabilities of {lacking}, but their extractor gives none"
            raise ValueError(f"{self.name} predicts {why}")
        tokenizer, widths = streams.tokenizer, streams.widths
        return replace(
            self,
            modalities=names,
            widths=tuple((name, widths[name]) for name in names if name in widths),
            classes=tuple((name, streams.classes[name]) for name in predicted),
            vocabulary=len(tokenizer),
            empty=(tokenizer.cls_token_id, tokenizer.sep_token_id),
        )

    def to_dict(self) -> dict:
        """For ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, config: dict) -> "Spec":
        """Inverse of :meth:`to_dict`. Raises ``ValueError``: no field, or one of another type."""
        stages = []
        for stage in config["stages"]:
            blocks = [(name, _make(Block, block)) for name, block in stage.get("blocks", ())]
            block = _make(Block, stage["block"])
            stages.append(_make(Stage, {**stage, "block": block, "blocks": blocks}))
        objective = _make(Objective, config["objective"])
        return _make(cls, {**config, "stages": stages, "objective": objective})


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _make(kind: type, values: dict):
    known = [f.name for f in fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{kind.__name__} has no field {unknown}: known are {known}")
    return kind(**{key: _tuples(value) for key, value in values.items()})
