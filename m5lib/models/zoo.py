"""The rows of the zoo: SCALE, the released model and the baselines, each a :class:`Spec`."""

from m5lib.modalities import MODALITIES
from m5lib.spec import Block, Names, Objective, Spec, Stage

PAIR = ("image", "text")


def _bert(heads: int, dropout: float, hidden: float = 4.0) -> Block:
    """BERT's layer."""
    return Block(heads=heads, hidden=hidden, norm="post", dropout=dropout, eps=1e-12)


def scale(
    width: int = 256,
    layers: int = 1,
    heads: int = 4,
    dropout: float = 0.0,
    bert: bool = False,
    text_table: str = "two",
    **settings,
) -> Spec:
    """SCALE (section 4.1): a transformer per modality, then one over all tokens. The paper has 768
    wide, 6 + 6 layers.

    Left open by the paper and settled here: pre-norm blocks with a final norm, a learned
    temperature, no projection before the contrast (the released code has one; ``LOG.md`` compares).
    The three blocks that Figure 2 draws inside the fusion are one joint self-attention here as in
    the released code.

    Args:
        bert: the title's encoder and embedding have BERT's form, to start from its weights
            (:func:`m5lib.models.weights.start_from_bert`).
        text_table: ``two`` encoders (T/Tab), or ``one`` over the concatenation (T+Tab, Table 8),
            whose tokens then read
            each other before the fusion, or ``shared``: apart, with one set of weights (released
                code).
    """
    block = Block(heads=heads, dropout=dropout)
    own = (("text", _bert(heads, dropout)),) if bert else ()
    words, rest = (
        ("text", "table"),
        tuple(name for name in MODALITIES if name not in ("text", "table")),
    )
    solo = {
        "two": (Stage("solo", layers, block, own),),
        "shared": (Stage("solo", layers, block, own, share=(words,)),),
        "one": (
            Stage("solo", layers, block, only=rest),
            Stage("joint", layers, _bert(heads, dropout) if bert else block, only=words),
        ),
    }
    if text_table not in solo:
        raise ValueError(f"unknown text_table {text_table!r}: known are {list(solo)}")
    stages = (*solo[text_table], Stage("joint", layers, block))
    if bert:
        settings = {"types": "words", "eps": 1e-12} | settings
    return Spec("scale", stages, width=width, dropout=dropout, **settings)


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
    """The authors' code (:mod:`m5lib.models.weights` loads its checkpoints): table = text and video
    = image in their weights, masked heads before the fusion, contrast on projected vectors with
    negatives of both modalities, absent modalities as zeros.

    Left out: what never trains there (stacks of table and video, poolers), the mistiled mask of the
    joint encoder, regions kept in 10 % of the masked cases, a table cut after its ``[SEP]``,
    BertAdam.
    """
    feature = _bert(feature_heads, dropout, feature_hidden)
    joint = Block(heads=joint_heads, activation="quick_gelu", dropout=0.0, eps=1e-12)
    words = ("text", "table")
    others = tuple((name, feature) for name in MODALITIES if name not in words)
    solo = Stage(
        "solo", layers, _bert(heads, dropout, hidden), others, share=(words, ("image", "video"))
    )
    objective = Objective(
        reads="encoded",
        contrast="released",
        agreement="cosine",
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
    stages = (solo, Stage("joint", layers, joint, final_norm=False, positions=True))
    return Spec("released", stages, width=width, **(defaults | settings))


def m5_mmt(
    width: int = 256, layers: int = 1, heads: int = 4, dropout: float = 0.0, **settings
) -> Spec:
    """The paper's first version: a transformer per modality, contrast between neighbours in the
    chain of modalities, then a cross-transformer per modality, then five masked tasks.

    Only its figure and tables are known (FACTS 11). Left out: a concatenation after the
    cross-transformers.
    """
    block = Block(heads=heads, dropout=dropout)
    objective = Objective(pairs="neighbours", harmony="uniform", temperature=0.07)
    defaults = dict(objective=objective, dropout=dropout)
    return Spec(
        "m5_mmt",
        (Stage("solo", layers, block), Stage("cross", layers, block)),
        width=width,
        **(defaults | settings),
    )


def _baseline(
    name: str,
    stages: tuple[Stage, ...],
    width: int,
    dropout: float,
    settings: dict,
    takes: Names = PAIR,
    **objective,
) -> Spec:
    """What all baselines share: BERT's layers and embeddings; no contrast and no scores unless
    named."""
    loss = Objective(**{"contrast": "none", "harmony": "uniform"} | objective)
    defaults = dict(takes=takes, types="words", eps=1e-12, objective=loss, dropout=dropout)
    return Spec(name, stages, width=width, **(defaults | settings))


def bert(
    width: int = 256, layers: int = 1, heads: int = 4, dropout: float = 0.0, **settings
) -> Spec:
    """Titles alone, MLM (section 5). Left out: next-sentence prediction."""
    stages = (Stage("solo", 2 * layers, _bert(heads, dropout)),)
    return _baseline("bert", stages, width, dropout, settings, takes=("text",))


def image_based(
    width: int = 256, layers: int = 1, heads: int = 4, dropout: float = 0.0, **settings
) -> Spec:
    """Pictures alone, masked regions (section 5)."""
    stages = (Stage("solo", 2 * layers, _bert(heads, dropout)),)
    return _baseline("image_based", stages, width, dropout, settings, takes=("image",))


def clip(
    width: int = 256, layers: int = 1, heads: int = 4, dropout: float = 0.0, **settings
) -> Spec:
    """CLIP (Radford et al. 2021): two encoders and InfoNCE.

    Left out: patches of the picture (regions here), attention of a word to earlier words only with
    the summary in the last token, a linear projection before the contrast.
    """
    stages = (
        Stage("solo", 2 * layers, Block(heads=heads, activation="quick_gelu", dropout=dropout)),
    )
    objective = dict(masked=False, contrast="infonce", temperature=0.07)
    return _baseline("clip", stages, width, dropout, {"types": "none"} | settings, **objective)


def vilbert(
    width: int = 256, layers: int = 1, heads: int = 4, dropout: float = 0.0, **settings
) -> Spec:
    """ViLBERT (Lu et al. 2019): the title first alone, then each modality reads the other and
    itself in turn; MLM, masked regions, matching.

    Left out: 1,024 wide regions with 8 heads (the paper of M5Product gives all baselines 768),
    object classes as targets (features here), the product of both summaries in the matching head.
    """
    block = _bert(heads, dropout)
    stages = (
        Stage("solo", layers, block, only=("text",)),
        *(Stage("cross", 1, block), Stage("solo", 1, block)) * layers,
    )
    return _baseline("vilbert", stages, width, dropout, settings, matching=("text",))


def visualbert(
    width: int = 256, layers: int = 1, heads: int = 4, dropout: float = 0.0, **settings
) -> Spec:
    """VisualBERT (Li et al. 2019): one BERT over words and regions, which do not know where they
    are. MLM and matching; regions are never masked.

    Left out: the second caption whose place the other's takes in matching.
    """
    stages = (Stage("joint", 2 * layers, _bert(heads, dropout)),)
    return _baseline(
        "visualbert",
        stages,
        width,
        dropout,
        {"types": "all", "boxes": False} | settings,
        masked=("text",),
        matching=("text",),
    )


def vl_bert(
    width: int = 256, layers: int = 1, heads: int = 4, dropout: float = 0.0, **settings
) -> Spec:
    """VL-BERT (Su et al. 2020): one BERT over words and regions; MLM and masked regions, no
    matching.

    Left out: the whole picture's feature beside every word (our region stream starts with it),
    object classes as targets of masked regions (``objective.classes``, where the extractor gives
    some; features here), text-only batches.
    """
    stages = (Stage("joint", 2 * layers, _bert(heads, dropout)),)
    return _baseline("vl_bert", stages, width, dropout, {"types": "all"} | settings)


def uniter(
    width: int = 256, layers: int = 1, heads: int = 4, dropout: float = 0.0, **settings
) -> Spec:
    """UNITER (Chen et al. 2020): one BERT over words and regions; MLM, masked regions by
    regression, matching: VL-BERT's row and matching.

    Left out: masking one modality at a time, word-region alignment by optimal transport, object
    classes as further targets, hard negatives; a norm for features and boxes each.
    """
    stages = (Stage("joint", 2 * layers, _bert(heads, dropout)),)
    return _baseline(
        "uniter", stages, width, dropout, {"types": "all"} | settings, matching=("text",)
    )


def capture(
    width: int = 256, layers: int = 1, heads: int = 4, dropout: float = 0.0, **settings
) -> Spec:
    """CAPTURE (Zhan et al. 2021, Product1M): each modality alone, then reading the other, then both
    in one; masked tasks and contrast.

    A third of the layers each. Left out: object classes as targets (features here).
    """
    third, block = max(1, 2 * layers // 3), _bert(heads, dropout)
    stages = tuple(Stage(kind, third, block) for kind in ("solo", "cross", "joint"))
    return _baseline(
        "capture", stages, width, dropout, settings, contrast="infonce", temperature=0.07
    )


#: One row per model: name -> function of ``width``, ``layers`` and ``heads``.
MODELS = {
    row.__name__: row
    for row in (
        scale,
        released,
        m5_mmt,
        image_based,
        bert,
        vilbert,
        clip,
        vl_bert,
        visualbert,
        uniter,
        capture,
    )
}


def build(name: str, **settings) -> Spec:
    """The row of a name. Raises ``ValueError``, with the known names, for an unknown one."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: known are {list(MODELS)}")
    return MODELS[name](**settings)
