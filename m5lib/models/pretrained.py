"""Titles that start from a BERT, by the hub's name or a folder (section 4.1).

>>> bert = read_bert("bert-base-chinese")  # its configuration; the weights come last
>>> row = zoo.scale(width=bert.width, heads=bert.block.heads).fit(streams)
>>> model = Model(starting(row, bert, rate=1e-4))
>>> load_bert(model, bert)

The model takes BERT's width, instead of a linear map between two widths: word pieces, masked heads
and fusion share one width in the paper too, and a title is then exactly what BERT makes of it. The
title's encoder is a stage of its own, with BERT's layers, beside those of the other modalities.
"""

import hashlib
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from m5lib.data.extractors import checksum
from m5lib.files import reading
from m5lib.model import Model
from m5lib.models.released import BERT_LAYER
from m5lib.spec import Block, Spec, Stage
from m5lib.streams import load_tokenizer

TITLE = "text"
#: Families whose encoder is BERT's, layer for layer, and whether positions start behind padding's.
FAMILIES = {"bert": 0, "electra": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}


@dataclass(frozen=True)
class Bert:
    """What a source settles: ``block`` (heads, feed-forward layer, activation, norm), ``width``,
    depth, how many word pieces and positions it has, the first position's ``offset``, and
    ``version``, a checksum of its weights or the hub's commit."""

    source: str
    width: int
    layers: int
    block: Block
    words: int
    positions: int
    offset: int
    version: str


def read_bert(source: str | Path) -> Bert:
    """A BERT's configuration, from the hub or a folder with ``config.json``, weights, tokenizer.
    Raises ``ValueError``: there is none, or it is of a family or form that our layers have not."""
    with reading(f"bert {source}", "give a folder with config.json, or a name on the hub"):
        config = AutoConfig.from_pretrained(str(source))
    width, family = getattr(config, "hidden_size", 0), config.model_type
    for field, ours in (
        ("model_type", tuple(FAMILIES)),
        ("hidden_act", ("gelu",)),
        ("position_embedding_type", ("absolute",)),
        ("embedding_size", (width,)),
        ("is_decoder", (False,)),
    ):
        if (theirs := getattr(config, field, ours[0])) not in ours:
            known = " or ".join(map(str, ours))
            raise ValueError(f"bert {source}: {field} is {theirs}, ours {known}; take another BERT")
    offset = FAMILIES[family] and config.pad_token_id + 1
    positions, hidden = config.max_position_embeddings - offset, config.intermediate_size / width
    block = Block(config.num_attention_heads, hidden, "post", "gelu", 0.0, config.layer_norm_eps)
    version = getattr(config, "_commit_hash", None) or _version(Path(source))
    depth, words = config.num_hidden_layers, config.vocab_size
    return Bert(str(source), width, depth, block, words, positions, offset, version)


def _version(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise ValueError(f"bert {folder}: no weights (*.safetensors, *.bin); put them there")
    return hashlib.blake2b("".join(map(checksum, files)).encode(), digest_size=8).hexdigest()


def check_words(bert: Bert, tokenizer) -> None:
    """Raises ``ValueError`` where the tokenizer's word pieces are not BERT's."""
    theirs, ours = load_tokenizer(bert.source).get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        has = f"BERT has its {len(theirs)}, the streams {len(ours)}"
        raise ValueError(f"word pieces: {has}; make the streams with tokenizer={bert.source!r}")


def _same(field: str, theirs, ours, mend: str) -> None:
    if theirs != ours:
        raise ValueError(f"{field}: BERT has {theirs}, the model {ours}; {mend}")


def starting(
    spec: Spec, bert: Bert, layers: int | None = None, rate: float = 0.0, decay: float = 1.0
) -> Spec:
    """The fitted spec with BERT's layers in the first stage of titles; unchanged without titles.

    A ``solo`` stage is parted: titles have one of their own (with their table, where both share
    weights). A ``joint`` one takes BERT's layers as it is. Later ``solo`` stages of BERT's form
    (ViLBERT's) hold the next ones. A fusion that follows encoders stays random (section 4.1).

    Args:
        layers: depth of that first stage, at most BERT's; by default as deep as it was.
        rate: highest learning rate of what was pre-trained; 0: frozen.
        decay: what it is multiplied by from layer to layer, down to the embeddings.

    Raises ``ValueError``: width or depth do not fit (the message has both and the mend), or the
    decay.
    """
    if TITLE not in spec.modalities:
        return spec
    _same("width", bert.width, spec.width, "leave it to BERT: no setting or change of it")
    first, stage = next((n, s) for n, s in enumerate(spec.stages) if _reads(s))
    if not 0 < decay <= 1:
        raise ValueError(f"bert_decay {decay}: give one above 0, at most 1")
    depth, block = layers or stage.layers, stage.block_of(TITLE)
    if depth > bert.layers:
        mend = f"give bert_layers={bert.layers} or a deeper BERT"
        raise ValueError(f"layers: BERT has {bert.layers}, the title's encoder {depth}; {mend}")
    block = replace(bert.block, dropout=block.dropout)
    parts, later = [replace(stage, layers=depth, block=block)], list(spec.stages[first + 1 :])
    if stage.kind == "solo":
        group = next((names for names in stage.share if TITLE in names), (TITLE,))
        others = tuple(name for name in stage.takes(spec.modalities) if name not in group)
        parts = [Stage("solo", depth, block, share=stage.share, only=group)]
        parts += [replace(stage, only=others)] if others else []
        for n, stage in enumerate(later):
            if _reads(stage) and stage.kind == "solo" and stage.block_of(TITLE).norm == "post":
                later[n] = replace(stage, blocks=(*stage.blocks, (TITLE, block)))
    spec = replace(spec, stages=(*spec.stages[:first], *parts, *later), eps=block.eps)
    places = [f"stages.{n}.blocks.{owner}.{k}." for n, owner, k in _places(spec)[: bert.layers]]
    places.insert(0, f"embeddings.{spec.owner(TITLE)}.")
    rates = (rate * decay ** (len(places) - 1 - n) for n in range(len(places)))
    return replace(spec, rates=tuple(zip(places, rates, strict=True)))


def _reads(stage: Stage) -> bool:
    return TITLE in stage.takes([TITLE])


def _places(spec: Spec) -> list[tuple[int, str, int]]:
    """Where BERT's layers lie, in order: number of the stage, owner of the weights, layer."""
    (start, first), *later = [(n, s) for n, s in enumerate(spec.stages) if _reads(s)]
    form = first.block_of(TITLE)
    later = later if first.kind == "solo" else []
    alike = [(n, s) for n, s in later if s.kind == "solo" and s.block_of(TITLE) == form]
    stages = [(start, first), *alike]
    return [(n, s.owner(TITLE), layer) for n, s in stages for layer in range(s.layers)]


@torch.no_grad()
def load_bert(model: Model, bert: Bert) -> None:
    """Copy BERT's embeddings and layers into a model of a spec from :func:`starting`, in place.
    Raises ``ValueError``: the model is of another form (the message names the field, both values
    and the mend), or weights are missing."""
    spec, mend = model.spec, "make its spec with m5lib.models.pretrained.starting"
    if TITLE not in spec.modalities:
        return
    ours = model.embeddings[spec.owner(TITLE)]
    words, places = len(ours.words.weight), len(ours.position.weight)
    blocks = [model.stages[n].blocks[owner][layer] for n, owner, layer in _places(spec)]
    first = next(stage.layers for stage in spec.stages if _reads(stage))
    _same("width", bert.width, spec.width, mend)
    _same("layer_norm_eps", bert.block.eps, spec.eps, mend)
    _same("word pieces", bert.words, max(words, bert.words), "take BERT's tokenizer")
    _same("positions", bert.positions, max(places, bert.positions), "take another BERT")
    _same("layers", bert.layers, max(first, bert.layers), mend)
    for field in ("heads", "hidden", "norm", "activation", "eps"):
        for block in blocks:
            _same(field, getattr(bert.block, field), getattr(block.block, field), mend)
    with reading(f"bert {bert.source}", "put its weights there again"):
        source, loaded = AutoModel.from_pretrained(bert.source, output_loading_info=True)
    if missing := sorted(name for name in loaded["missing_keys"] if "pooler" not in name):
        lacks = f"{missing[0]} is missing, {len(missing)} weights in all"
        raise ValueError(f"bert {bert.source}: {lacks}")
    theirs = source.embeddings
    ours.words.weight.copy_(theirs.word_embeddings.weight[:words])
    position = theirs.position_embeddings.weight[bert.offset :][:places]
    kind = theirs.token_type_embeddings.weight[:1]
    if ours.kind is not None:
        ours.kind.weight.copy_(kind)
    # every word of a title has the first type: where we have none, it is a part of the position
    ours.position.weight.copy_(position + kind if ours.kind is None else position)
    ours.norm.load_state_dict(theirs.LayerNorm.state_dict())
    for block, layer in zip(blocks, source.encoder.layer, strict=False):
        for (part, parts), kind in product(BERT_LAYER.items(), ("weight", "bias")):
            weights = [layer.get_parameter(f"{piece}.{kind}") for piece in parts]
            block.get_parameter(f"{part}.{kind}").copy_(torch.cat(weights))
