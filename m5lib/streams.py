"""Streams: what the model eats. Words become word pieces, features stay features; each stream
starts with its summary token.

``Streams`` holds a whole catalogue, ``Streams.batch(rows)`` is the one function that pads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from m5lib.catalogue import Catalogue, Rows
from m5lib.modalities import MODALITIES, Modality, ordered


class Ragged(NamedTuple):
    """Features of N products one after another: those of product ``n`` are rows ``offsets[n]`` to
    ``offsets[n + 1]``.

    ``values`` (T, F) float16, ``boxes`` (T, 5) float16 or None, ``offsets`` (N + 1,) int64; an
    absent modality has no rows. ``classes`` (T, K) are class probabilities, where there are any.
    ``values`` and ``boxes`` are arrays, or :class:`m5lib.data.store.Mapped` files that are indexed
    like arrays. ``settings`` say what extractor made them
    (:func:`m5lib.data.extractors.described`).
    """

    values: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray | None = None
    classes: np.ndarray | None = None
    settings: Mapping[str, Any] | None = None

    @property
    def step(self) -> float | None:
        """Seconds of a token; None where a token is no stretch of time."""
        return (self.settings or {}).get("hints", {}).get("step")


def computed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """An extractor's settings without the hints, which say nothing of what it computes."""
    return {key: value for key, value in settings.items() if key != "hints"}


def named(settings: Mapping[str, Any] | None) -> str:
    """An extractor in a few words, for messages: ``Crops(version=2, width=176, levels=[1, 2])``."""
    made = computed(settings or {"extractor": "an extractor that is not known"})
    rest = ", ".join(f"{key}={value}" for key, value in made.items() if key != "extractor")
    return f"{made['extractor']}({rest})" if rest else made["extractor"]


SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def train_tokenizer(catalogue: Catalogue, vocabulary: int = 8000) -> PreTrainedTokenizerFast:
    """WordPiece trained on the words of the catalogue's ``train`` split, lower-cased like
    bert-base-uncased.

    Chinese characters are split one by one, as BERT does, so the same call fits the official
    release. The same words give the same
    vocabulary: the trainer numbers ``##`` pieces in the order of a hash map and breaks ties by
    these numbers, so they are numbered beforehand, as special tokens, which the tokenizer that is
    returned does not have.
    """
    normalizer, splitter = (
        normalizers.BertNormalizer(lowercase=True),
        pre_tokenizers.BertPreTokenizer(),
    )
    rows = catalogue.split("train")
    products = [catalogue.products[row] for row in (rows if len(rows) else range(len(catalogue)))]
    texts = [
        normalizer.normalize_str(text)
        for p in products
        for name, row in MODALITIES.items()
        if row.units and name in p.contents
        for text in row.units(p.contents[name])
    ]
    letters = sorted({letter for text in texts for letter in text if not letter.isspace()})
    first = [*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters)]
    trainee = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trainee.pre_tokenizer = splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocabulary, len(first)),
        special_tokens=first,
        min_frequency=2,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    trainee.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(trainee.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """Any ``transformers`` tokenizer with ``[CLS]``, ``[SEP]`` and ``[MASK]``, by name or path.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(name_or_path))
    if missing := [
        key
        for key in ("cls_token_id", "sep_token_id", "mask_token_id", "pad_token_id")
        if getattr(tokenizer, key) is None
    ]:
        raise ValueError(
            f"tokenizer {name_or_path}: {missing} missing; masked word tasks need a BERT-like "
            "tokenizer"
        )
    return tokenizer


def word_numbers(text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(L,) which word of ``text.split()`` each of its word pieces lies in; special tokens not
    counted. Needs a fast tokenizer."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return np.array([len(text[:end].split()) - 1 for _, end in spans], dtype=int)


@dataclass(frozen=True)
class Stream:
    """One modality of a batch.

    Attributes:
        tokens: (B, L) int64 word pieces or (B, L, F) float32 features. The first token is the
            summary: ``[CLS]``, or the mean of the features (released loader), which
                :mod:`m5lib.masking` computes again after hiding some of them.
        valid: (B, L) bool, True where a token is there; a product without the modality has none at
            all.
        entity: (B, L) int64 for words: the number of the unit (property or value) a token belongs
            to, -1 for ``[CLS]``, ``[SEP]`` and padding.
        boxes: (B, L, 5) float32 for regions.
        classes: (B, L, K) float32, class probabilities of each token where the extractor gives
            some.
    """

    tokens: Int[Tensor, "B L"] | Float[Tensor, "B L F"]
    valid: Bool[Tensor, "B L"]
    entity: Int[Tensor, "B L"] | None = None
    boxes: Float[Tensor, "B L 5"] | None = None
    classes: Float[Tensor, "B L K"] | None = None

    def to(self, device) -> "Stream":
        """The stream on a device."""
        moved = {
            k: v.to(device, non_blocking=True)
            for k, v in vars(self).items()
            if isinstance(v, Tensor)
        }
        return replace(self, **moved)

    def absent(self) -> "Stream":
        """The stream of products that lack the modality: one token, not valid."""
        first = {
            key: value[:, :1] for key, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **first | {"valid": torch.zeros_like(first["valid"])})


@dataclass(frozen=True)
class Batch:
    """B products: streams in the order of the table, and ``rows`` (B,), where they stand in the
    catalogue. ``settings`` say what extractor made each feature stream."""

    streams: Mapping[str, Stream]
    rows: np.ndarray
    settings: Mapping[str, Mapping] = field(default_factory=dict)

    @property
    def presence(self) -> Bool[Tensor, "B M"]:
        """Which modalities each product has; one column per stream."""
        return torch.stack([stream.valid[:, 0] for stream in self.streams.values()], dim=1)

    def to(self, device) -> "Batch":
        """The batch on a device."""
        return replace(
            self, streams={name: stream.to(device) for name, stream in self.streams.items()}
        )

    def only(self, names: Iterable[str]) -> "Batch":
        """The same products with the other modalities taken away, for "given only these": they
        become absent, not zeros.

        An absent stream keeps one token, which nobody reads, so that it costs next to nothing.
        Raises ``ValueError`` for an unknown name.
        """
        keep = set(ordered(names))
        return replace(
            self,
            streams={name: s if name in keep else s.absent() for name, s in self.streams.items()},
        )


class _Words:
    """Word pieces of a whole catalogue, one after another."""

    def __init__(
        self, contents: Sequence, units, tokenizer: PreTrainedTokenizerBase, max_tokens: int
    ):
        pieces, entities, self.lengths = [], [], np.zeros(len(contents), dtype=np.int64)
        flat = [[] if content is None else units(content) for content in contents]
        texts = [
            text[: 20 * max_tokens] for row in flat for text in row
        ]  # a cell may be a page; 64 tokens are read
        encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
        for n, row in enumerate(flat):
            ids, entity = [], []
            for number, _ in enumerate(row):
                piece = next(encoded)
                ids += piece
                entity += [number] * len(piece)
            if contents[n] is None:
                continue
            keep = max_tokens - 2
            pieces.append([tokenizer.cls_token_id, *ids[:keep], tokenizer.sep_token_id])
            entities.append([-1, *entity[:keep], -1])
            self.lengths[n] = len(pieces[-1])
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.pieces = np.array([t for row in pieces for t in row], dtype=np.int64)
        self.entities = np.array([e for row in entities for e in row], dtype=np.int64)
        self.pad = tokenizer.pad_token_id


def _ragged_index(
    offsets: np.ndarray, rows: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (B, L) in the flat arrays, and which of them are there (B, L)."""
    lengths = np.minimum(offsets[rows + 1] - offsets[rows], limit)
    steps = np.arange(max(1, int(lengths.max(initial=0))))
    there = steps[None, :] < lengths[:, None]
    return np.where(there, offsets[rows][:, None] + steps[None, :], 0), there


class Streams:
    """All streams of a catalogue, in the order of its products.

    Args:
        catalogue: the products; broken media already taken out (:func:`m5lib.data.store.extract`).
        features: what :func:`m5lib.data.store.extract` returned for it.
        tokenizer: for titles and tables.
        modalities: which streams to build; by default every one the catalogue has content and
            features for.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        features: Mapping[str, Ragged],
        tokenizer: PreTrainedTokenizerBase,
        modalities: Iterable[str] | None = None,
    ):
        self.catalogue, self.tokenizer, self.features = catalogue, tokenizer, dict(features)
        can = {n for n in catalogue.modalities if MODALITIES[n].kind == "words" or n in features}
        wanted = can if modalities is None else set(modalities)
        if lacking := wanted - can:
            raise ValueError(
                f"{catalogue.name} has no {sorted(lacking)}; it can give {sorted(can)}"
            )
        self.modalities = tuple(name for name in MODALITIES if name in wanted)
        self.words = {}
        for name in self.modalities:
            row = MODALITIES[name]
            if row.kind == "words":
                contents = [product.contents.get(name) for product in catalogue.products]
                self.words[name] = _Words(contents, row.units, tokenizer, row.max_tokens)

    def __len__(self) -> int:
        return len(self.catalogue)

    @property
    def widths(self) -> dict[str, int]:
        """F of each feature modality: widths come from the extractor."""
        return {
            n: self.features[n].values.shape[1]
            for n in self.modalities
            if n in self.features and n not in self.words
        }

    @property
    def settings(self) -> dict[str, Mapping]:
        """What extractor made each feature modality, where that is known."""
        made = {n: getattr(self.features[n], "settings", None) for n in self.widths}
        return {name: settings for name, settings in made.items() if settings}

    @property
    def classes(self) -> dict[str, int]:
        """Number of classes of each feature modality whose extractor gives their probabilities."""
        found = {n: getattr(self.features[n], "classes", None) for n in self.widths}
        return {name: values.shape[1] for name, values in found.items() if values is not None}

    def lengths(self) -> dict[str, np.ndarray]:
        """(N,) tokens of each product and stream, the summary included; 0 where the modality is
        absent."""
        found = {}
        for name in self.modalities:
            if name in self.words:
                found[name] = self.words[name].lengths
            else:
                tokens = np.minimum(
                    np.diff(self.features[name].offsets), MODALITIES[name].max_tokens
                )
                found[name] = tokens + (tokens > 0)
        return found

    def batch(self, rows: Rows) -> Batch:
        """The batch of the given rows, padded to the longest of each stream."""
        rows = np.asarray(rows, dtype=np.int64)
        make = {"words": self._word_stream, "features": self._feature_stream}
        return Batch(
            {name: make[MODALITIES[name].kind](name, rows) for name in self.modalities},
            rows,
            self.settings,
        )

    def _word_stream(self, name: str, rows: np.ndarray) -> Stream:
        words = self.words[name]
        index, there = _ragged_index(words.offsets, rows, MODALITIES[name].max_tokens)
        if not len(words.pieces):
            index, there = np.zeros((len(rows), 1), int), np.zeros((len(rows), 1), bool)
            tokens = entity = index
        else:
            tokens = np.where(there, words.pieces[index], words.pad)
            entity = np.where(there, words.entities[index], -1)
        return Stream(
            torch.from_numpy(tokens), torch.from_numpy(there), entity=torch.from_numpy(entity)
        )

    def _feature_stream(self, name: str, rows: np.ndarray) -> Stream:
        ragged = self.features[name]
        index, there = _ragged_index(ragged.offsets, rows, MODALITIES[name].max_tokens)
        values = (
            torch.from_numpy(ragged.values[index].astype(np.float32))
            * torch.from_numpy(there)[..., None]
        )
        present = torch.from_numpy(there[:, :1])
        valid = torch.cat([present, torch.from_numpy(there)], dim=1)
        tokens = with_summary(torch.cat([values[:, :1], values], dim=1), valid)
        boxes = None
        if ragged.boxes is not None:
            found = (
                torch.from_numpy(ragged.boxes[index].astype(np.float32))
                * torch.from_numpy(there)[..., None]
            )
            whole = (
                torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]).expand(len(rows), 1, 5) * present[..., None]
            )
            boxes = torch.cat([whole, found], dim=1)
        classes = None
        if name in self.classes:
            found = (
                torch.from_numpy(ragged.classes[index].astype(np.float32))
                * torch.from_numpy(there)[..., None]
            )
            classes = torch.cat([torch.zeros_like(found[:, :1]), found], dim=1)
        return Stream(tokens, valid, boxes=boxes, classes=classes)


def with_summary(
    tokens: Float[Tensor, "B L F"], valid: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L F"]:
    """The same features with the summary in front set to the mean of the tokens that are there
    (released loader)."""
    there = valid[:, 1:, None]
    mean = (tokens[:, 1:] * there).sum(1) / there.sum(1).clamp(min=1)
    return torch.cat([mean[:, None], tokens[:, 1:]], dim=1)


def impute(batch: Batch, empty: Sequence[int]) -> Batch:
    """The paper's missing modalities (section 4.1): zeros in their place, which everyone sees.

    An absent feature stream becomes the longest there is of zero vectors, all valid, as in the
    released loader (the box of its summary is the whole picture); an absent word stream the two
    word pieces ``empty``, an empty string.
    """
    return replace(
        batch,
        streams={
            name: _imputed(stream, MODALITIES[name], empty)
            for name, stream in batch.streams.items()
        },
    )


def _imputed(stream: Stream, row: Modality, empty: Sequence[int]) -> Stream:
    lacking = ~stream.valid[:, :1]
    if not lacking.any():
        return stream
    longest = row.slots if row.kind == "features" else len(empty)
    length = max(longest, stream.valid.shape[1])
    grown = {k: _longer(v, length) for k, v in vars(stream).items() if isinstance(v, Tensor)}
    place = torch.arange(length, device=lacking.device)
    filled = {
        k: v.masked_fill(lacking.reshape(-1, *[1] * (v.ndim - 1)), 0) for k, v in grown.items()
    }
    if row.kind == "words":
        pieces = _longer(torch.tensor([list(empty)], device=lacking.device), length)
        filled["tokens"] = torch.where(lacking, pieces, filled["tokens"])
        filled["entity"] = filled["entity"].masked_fill(lacking, -1)
    if "boxes" in filled:
        whole = filled["boxes"].new_tensor([0.0, 0.0, 1.0, 1.0, 1.0]) * (place == 0)[:, None]
        filled["boxes"] = torch.where(lacking[..., None], whole, filled["boxes"])
    return replace(
        stream, **filled | {"valid": torch.where(lacking, place < longest, grown["valid"])}
    )


def _longer(x: Tensor, length: int) -> Tensor:
    """Padded with zeros along the tokens."""
    return torch.cat([x, x.new_zeros(len(x), length - x.shape[1], *x.shape[2:])], dim=1)
