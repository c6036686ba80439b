"""The rows of the zoo: SCALE, the released model and the baselines, each a :class:`Spec`.

>>> spec = scale(width=768, layers=6, heads=12, dropout=0.1)  # the paper's sizes
>>> spec = change(spec, [("missing", "impute"), ("objective.contrast", "siglip")])
>>> model = Model(build("vilbert", width=256).fit(streams))

``layers`` is the paper's 6: SCALE has as many in each of its two stages, a baseline twice as many
in all (section 5). A row's docstring says what of the original is left out.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import wraps
from typing import Any, NamedTuple

from m5lib.modalities import MODALITIES
from m5lib.spec import Block, Names, Objective, Spec, Stage

PAIR = ("image", "text")


class Size(NamedTuple):
    """What every row can be given, beside the fields of :class:`~m5lib.spec.Spec`."""

    width: int = 256
    layers: int = 1
    heads: int = 4
    dropout: float = 0.0

    def block(self, **settings) -> Block:
        """A block in CLIP's order, with a norm before each part."""
        return Block(heads=self.heads, dropout=self.dropout, **settings)

    def bert(self, hidden: float = 4.0) -> Block:
        """BERT's layer."""
        return self.block(hidden=hidden, norm="post", eps=1e-12)


def sized(row: Callable[..., Spec]) -> Callable[..., Spec]:
    """A row that takes the fields of :class:`Size` one by one."""

    @wraps(row)
    def build_row(**settings) -> Spec:
        size = {field: settings.pop(field) for field in Size._fields if field in settings}
        return row(Size(**size), **settings)

    return build_row


@sized
def scale(size: Size, text_table: str = "two", **settings) -> Spec:
    """SCALE (section 4.1): a transformer per modality, then one over all tokens. The paper has 768
    wide, 6 + 6 layers.

    Left open by the paper and settled here: pre-norm blocks with a final norm, a learned
    temperature, no projection before the contrast (the released code has one; ``LOG.md`` compares).
    The three blocks that Figure 2 draws inside the fusion are one joint self-attention here as in
    the released code. The contrast is the mean over the pairs of modalities where Eq. 3 prints
    their sum (``over_pairs``), by validation products (``LOG.md``).

    Args:
        text_table: ``two`` encoders (T/Tab), or ``one`` over the concatenation (T+Tab, Table 8),
            whose tokens then read each other before the fusion, or ``shared``: apart, with one set
            of weights (released code).
    """
    layers, block, words = size.layers, size.block(), ("text", "table")
    rest = tuple(name for name in MODALITIES if name not in words)
    solo = {
        "two": (Stage("solo", layers, block),),
        "shared": (Stage("solo", layers, block, share=(words,)),),
        "one": (Stage("solo", layers, block, only=rest), Stage("joint", layers, block, only=words)),
    }
    if text_table not in solo:
        raise ValueError(f"unknown text_table {text_table!r}: known are {list(solo)}")
    stages = (*solo[text_table], Stage("joint", layers, block))
    return Spec("scale", stages, width=size.width, dropout=size.dropout, **settings)


def scale_fused(**settings) -> Spec:
    """SCALE whose fused vector is trained too: of half the products the fusion sees only some of
    the modalities, and :func:`m5lib.objectives.fused_loss` asks of the fused vector to be what all
    of them say together. Not in the paper, which has no loss on the vector that it uses."""
    spec = scale(**settings)
    return replace(spec, name="scale_fused", objective=replace(spec.objective, drop=0.5, fused=5.0))


def released(
    width: int = 768,
    layers: int = 6,
    heads: int = 12,
    dropout: float = 0.1,
    feature_heads: int = 8,
    joint_heads: int = 8,
    hidden: float = 4.0,
    feature_hidden: float = 4 / 3,
    projection: int | None = None,
    **settings,
) -> Spec:
    """The authors' code (:mod:`m5lib.models.released` loads its checkpoints): table = text and
    video = image in their weights, masked heads before the fusion, contrast on projected vectors
    with negatives of both modalities, absent modalities as zeros.

    Left out: what never trains there (stacks of table and video, poolers), the mistiled mask of the
    joint encoder, regions kept in 10 % of the masked cases, a table cut after its ``[SEP]``,
    BertAdam.
    """
    size, words = Size(width, layers, heads, dropout), ("text", "table")
    feature = size._replace(heads=feature_heads).bert(feature_hidden)
    others = tuple((name, feature) for name in MODALITIES if name not in words)
    shared = (words, ("image", "video"))
    joint = Block(heads=joint_heads, activation="quick_gelu", dropout=0.0, eps=1e-12)
    stages = (
        Stage("solo", layers, size.bert(hidden), others, share=shared),
        Stage("joint", layers, joint, final_norm=False, positions=True),
    )
    objective = Objective(
        reads="encoded",
        contrast="released",
        harmony="embedding",
        agreement="cosine",
        diagonal="fused",
        pair_order=("text", "image", "table", "video", "audio"),
        temperature=0.07,
        learn_temperature=False,
    )
    defaults = dict(
        projection=width * 4 // 3 if projection is None else projection,
        share=(words,),
        types="words",
        missing="impute",
        eps=1e-12,
        objective=objective,
        dropout=dropout,
    )
    return Spec("released", stages, width=width, **(defaults | settings))


@sized
def m5_mmt(size: Size, **settings) -> Spec:
    """The paper's first version: a transformer per modality, contrast between neighbours in the
    chain of modalities, then a cross-transformer per modality, then five masked tasks.

    Only its figure and tables are known (FACTS 11). Left out: a concatenation after these.
    """
    stages = tuple(Stage(kind, size.layers, size.block()) for kind in ("solo", "cross"))
    objective = Objective(pairs="neighbours", harmony="uniform", temperature=0.07)
    defaults = dict(objective=objective, dropout=size.dropout)
    return Spec("m5_mmt", stages, width=size.width, **(defaults | settings))


def _baseline(
    name: str,
    size: Size,
    stages: tuple[Stage, ...],
    settings: dict,
    takes: Names = PAIR,
    types: str = "words",
    **objective,
) -> Spec:
    """What all baselines share: BERT's embeddings; no contrast and no scores unless named."""
    loss = Objective(**{"contrast": "none", "harmony": "uniform"} | objective)
    defaults = dict(takes=takes, types=types, eps=1e-12, objective=loss, dropout=size.dropout)
    return Spec(name, stages, width=size.width, **(defaults | settings))


@sized
def bert(size: Size, **settings) -> Spec:
    """Titles alone, MLM (section 5). Left out: next-sentence prediction."""
    stages = (Stage("solo", 2 * size.layers, size.bert()),)
    return _baseline("bert", size, stages, settings, takes=("text",))


@sized
def image_based(size: Size, **settings) -> Spec:
    """Pictures alone, masked regions (section 5)."""
    stages = (Stage("solo", 2 * size.layers, size.bert()),)
    return _baseline("image_based", size, stages, settings, takes=("image",))


@sized
def clip(size: Size, **settings) -> Spec:
    """CLIP (Radford et al. 2021): two encoders and InfoNCE.

    Left out: patches of the picture (regions here), attention of a word to earlier words only with
    the summary in the last token, a linear projection before the contrast.
    """
    stages = (Stage("solo", 2 * size.layers, size.block(activation="quick_gelu")),)
    objective = dict(masked=False, contrast="infonce", temperature=0.07)
    return _baseline("clip", size, stages, settings, types="none", **objective)


@sized
def vilbert(size: Size, **settings) -> Spec:
    """ViLBERT (Lu et al. 2019): the title first alone, then each modality reads the other and
    itself in turn; MLM, masked regions, matching.

    Left out: 1,024 wide regions with 8 heads (the paper of M5Product gives all baselines 768),
    object classes as targets (features here), the product of both summaries in the matching head.
    """
    block = size.bert()
    turns = (Stage("cross", 1, block), Stage("solo", 1, block)) * size.layers
    stages = (Stage("solo", size.layers, block, only=("text",)), *turns)
    return _baseline("vilbert", size, stages, settings, matching=("text",))


def _one_bert(size: Size) -> tuple[Stage, ...]:
    return (Stage("joint", 2 * size.layers, size.bert()),)


@sized
def visualbert(size: Size, **settings) -> Spec:
    """VisualBERT (Li et al. 2019): one BERT over words and regions, which do not know where they
    are. MLM and matching; regions are never masked.

    Left out: the second caption whose place the other's takes in matching.
    """
    settings, tasks = {"boxes": False} | settings, dict(masked=("text",), matching=("text",))
    return _baseline("visualbert", size, _one_bert(size), settings, types="all", **tasks)


@sized
def vl_bert(size: Size, **settings) -> Spec:
    """VL-BERT (Su et al. 2020): one BERT over words and regions; MLM and masked regions, no
    matching.

    Left out: the whole picture's feature beside every word (our region stream starts with it),
    object classes as targets of masked regions (``objective.classes``, where the extractor gives
    some; features here), text-only batches.
    """
    return _baseline("vl_bert", size, _one_bert(size), settings, types="all")


@sized
def uniter(size: Size, **settings) -> Spec:
    """UNITER (Chen et al. 2020): one BERT over words and regions; MLM, masked regions by
    regression, matching: VL-BERT's row and matching.

    Left out: masking one modality at a time, word-region alignment by optimal transport, object
    classes as further targets, hard negatives; a norm for features and boxes each.
    """
    return _baseline("uniter", size, _one_bert(size), settings, types="all", matching=("text",))


@sized
def capture(size: Size, **settings) -> Spec:
    """CAPTURE (Zhan et al. 2021, Product1M): each modality alone, then reading the other, then both
    in one; masked tasks and contrast.

    A third of the layers each. Left out: object classes as targets (features here).
    """
    third, block = max(1, 2 * size.layers // 3), size.bert()
    stages = tuple(Stage(kind, third, block) for kind in ("solo", "cross", "joint"))
    return _baseline("capture", size, stages, settings, contrast="infonce", temperature=0.07)


_ROWS = (scale, released, m5_mmt, scale_fused, image_based, bert, vilbert, clip, vl_bert)
#: One row per model: name -> function of the fields of :class:`Size` and of ``Spec``.
MODELS = {row.__name__: row for row in (*_ROWS, visualbert, uniter, capture)}


def build(name: str, **settings) -> Spec:
    """The row of a name. Raises ``ValueError``, with the known names, for an unknown one, and for a
    setting that the row does not have."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: known are {list(MODELS)}")
    try:
        return MODELS[name](**settings)
    except TypeError as error:
        known = [*Size._fields, *(f.name for f in fields(Spec)[2:])]
        raise ValueError(f"{name}: {error}; settings are such as {', '.join(known)}") from None


def change(spec: Spec, changes: Iterable[tuple[str, Any]]) -> Spec:
    """The spec with some fields changed: pairs such as ``("missing", "impute")`` and
    ``("objective.contrast", "siglip")``. Raises ``ValueError``, with the known ones, for an unknown
    field or value."""
    config = spec.to_dict()
    for key, value in dict(changes).items():
        owner, _, name = key.rpartition(".")
        if owner not in ("", "objective"):
            give = "give a field of Spec, or 'objective.' and a field of Objective"
            raise ValueError(f"cannot change {key!r}: {give}")
        (config["objective"] if owner else config)[name] = value
    return Spec.from_dict(config)
