"""Streams: what the model eats. Words become word pieces, features stay features; each stream
starts with its summary token.

>>> streams = Streams(catalogue, features, load_tokenizer("bert-base-chinese"))  # all products
>>> batch = streams.batch(range(32))  # the one function that pads
>>> batch.streams["text"].tokens.shape, batch.presence.shape  # (32, L), (32, 3)
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from m5lib.catalogue import Catalogue, DataError, Rows
from m5lib.files import reading
from m5lib.modalities import MODALITIES, Modality, codes, ordered
from m5lib.spec import Spec

#: The box of a whole picture: corners and area, as shares of it.
WHOLE = [0.0, 0.0, 1.0, 1.0, 1.0]
#: Two numbers that tell where a part of a batch is in it; None: it is all.
Part = tuple[int, int] | None


class Ragged(NamedTuple):
    """Features of N products in turn: those of product n are rows offsets[n] to offsets[n + 1].

    ``values`` (T, F) float16, or of words (T, 2) int32 (:func:`word_pieces`), ``boxes`` (T, 5)
    float16 or None, ``offsets`` (N + 1,) int64; an absent modality has no rows. ``classes`` (T, K)
    are class probabilities, where there are any. Arrays, or files that are indexed like them
    (:class:`m5lib.data.store.Mapped`). ``settings``: :func:`m5lib.data.extractors.described`.
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


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """Any ``transformers`` tokenizer with ``[CLS]``, ``[SEP]`` and ``[MASK]``, by name or path.
    Raises ``ValueError``: there is none, or it has no such token."""
    mend = "give a folder that has one, or a name on the hub and a network"
    with reading(f"tokenizer {name_or_path}", mend):
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path))
    needed = ("cls_token_id", "sep_token_id", "mask_token_id", "pad_token_id")
    if missing := [key for key in needed if getattr(tokenizer, key) is None]:
        raise ValueError(f"tokenizer {name_or_path}: {missing} missing; masked word tasks need it")
    return tokenizer


@dataclass(frozen=True)
class Stream:
    """One modality of a batch.

    Attributes:
        tokens: (B, L) int64 word pieces or (B, L, F) float32 features. The first token is the
            summary: ``[CLS]``, or the mean of the features (released loader), which
            :mod:`m5lib.masking` computes again after hiding some of them.
        valid: (B, L) bool, True where a token is there; none of a product without the modality.
        entity: (B, L) int64 for words: the number of the unit (property or value) a token belongs
            to, -1 for ``[CLS]``, ``[SEP]`` and padding.
        boxes: (B, L, 5) float32 for regions.
        classes: (B, L, K) float32, class probabilities of each token, where there are any.
    """

    tokens: Int[Tensor, "B L"] | Float[Tensor, "B L F"]
    valid: Bool[Tensor, "B L"]
    entity: Int[Tensor, "B L"] | None = None
    boxes: Float[Tensor, "B L 5"] | None = None
    classes: Float[Tensor, "B L K"] | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Stream":
        """The stream with a change of each of its tensors."""
        tensors = {key: x for key, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **{key: change(x) for key, x in tensors.items()})

    def absent(self) -> "Stream":
        """The stream of products that lack the modality: one token, not valid."""
        first = self.each(lambda x: x[:, :1])
        return replace(first, valid=torch.zeros_like(first.valid))


@dataclass(frozen=True)
class Batch:
    """B products: streams in the order of the table, and ``rows`` (B,), where they stand in the
    catalogue. ``settings`` say what extractor made each feature stream. Of a part of a batch
    ``part`` says its first product and how many the whole has."""

    streams: Mapping[str, Stream]
    rows: np.ndarray
    settings: Mapping[str, Mapping] = field(default_factory=dict)
    part: Part = None

    @property
    def presence(self) -> Bool[Tensor, "B M"]:
        """Which modalities each product has; one column per stream."""
        return self.presence_of(self.streams)

    def presence_of(self, names: Iterable[str]) -> Bool[Tensor, "B M"]:
        """Which of these modalities each product has."""
        return torch.stack([self.streams[name].valid[:, 0] for name in names], dim=1)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with a change of each of its tensors."""
        return replace(self, streams={n: stream.each(change) for n, stream in self.streams.items()})

    def to(self, device) -> "Batch":
        """The batch on a device."""
        return self.each(lambda x: x.to(device, non_blocking=True))

    def take(self, first: int, last: int) -> "Batch":
        """The products from ``first`` up to ``last``, as a part of this batch."""
        (start, count), rows = self.part or (0, len(self.rows)), self.rows[first:last]
        return replace(self.each(lambda x: x[first:last]), rows=rows, part=(start + first, count))

    def only(self, names: Iterable[str]) -> "Batch":
        """The same products with the other modalities taken away, for "given only these": they
        become absent, not zeros, and keep one token, which nobody reads. Raises ``ValueError`` for
        an unknown name."""
        keep, streams = set(ordered(names)), self.streams.items()
        return replace(self, streams={n: s if n in keep else s.absent() for n, s in streams})

    def check(self, widths: Iterable[tuple[str, int]], extractors: Mapping[str, Mapping]) -> None:
        """Raises ``ValueError`` where features are not of a model's widths and extractors."""
        for name, width in widths:
            made, own = self.settings.get(name), extractors.get(name)
            read = self.streams[name].tokens.shape[-1]
            if read != width or (made and own and computed(made) != computed(own)):
                trained = f"the model was trained on those of {named(own)}, {width} wide"
                mend = "extract with its own (the parameter extractors) or train one on these"
                here = f"{name} features of {named(made)}, {read} wide"
                raise ValueError(f"{here}, but {trained}; {mend}")


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of what a fast tokenizer makes of words."""
    made = tokenizer.backend_tokenizer.to_str()
    return hashlib.blake2b(made.encode(), digest_size=8).hexdigest()


def word_pieces(
    contents: Iterable, row: Modality, tokenizer: PreTrainedTokenizerBase
) -> tuple[Int[np.ndarray, "T 2"], Int[np.ndarray, " N"]]:
    """Word pieces of N titles or tables one after another, ``[CLS]`` and ``[SEP]`` included, with
    the number of their unit (``Stream.entity``); and how many each has, ``None`` none."""
    parts, lengths, rest = [np.empty((0, 2), dtype=np.int32)], [], iter(contents)
    while some := list(islice(rest, 4096)):
        units = ([] if content is None else row.units(content) for content in some)
        # a cell may be a page; 64 tokens are read
        units = [[text[: 20 * row.max_tokens] for text in strings] for strings in units]
        texts = list(dict.fromkeys(text for strings in units for text in strings))  # each once
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        encoded, pieces = dict(zip(texts, encoded, strict=True)), []
        for content, strings in zip(some, units, strict=True):
            read = [(piece, n) for n, text in enumerate(strings) for piece in encoded[text]]
            read = [(tokenizer.cls_token_id, -1), *read[: row.max_tokens - 2]]
            read = [] if content is None else [*read, (tokenizer.sep_token_id, -1)]
            pieces += read
            lengths.append(len(read))
        parts.append(np.array(pieces, dtype=np.int32).reshape(-1, 2))
    return np.concatenate(parts), np.array(lengths, dtype=np.int64)


class Streams:
    """All streams of a catalogue, in the order of its products.

    Args:
        catalogue: the products; broken media already taken out (:func:`m5lib.data.store.extract`).
        features: what :func:`m5lib.data.store.extract` returned for it. Word pieces among them
            (:class:`m5lib.models.words.Pieces`) are read where they are of this tokenizer.
        tokenizer: for titles and tables.
        modalities: which streams to build; by default every one the catalogue has content and
            features for (and the ``spec`` takes).
        spec: a model's, which may read more than these products have: every batch has a stream for
            each of its modalities, absent where no product has it.

    Raises:
        ValueError: the catalogue lacks one of the modalities.
        DataError: it has none that the model of the spec reads.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        features: Mapping[str, Ragged],
        tokenizer: PreTrainedTokenizerBase,
        modalities: Iterable[str] | None = None,
        spec: Spec | None = None,
    ):
        self.catalogue, self.tokenizer, self.features = catalogue, tokenizer, dict(features)
        self.spec, self.words = spec, {}
        can = [n for n in catalogue.modalities if MODALITIES[n].kind == "words" or n in features]
        chosen = can if spec is None else [name for name in can if name in spec.modalities]
        chosen = chosen if modalities is None else set(modalities)
        if lacking := set(chosen) - set(can):
            raise ValueError(f"{catalogue.name} has no {sorted(lacking)}, only {sorted(can)}")
        if spec is not None and not chosen:
            has, reads = codes(catalogue.modalities), codes(spec.modalities)
            raise DataError(f"{catalogue.name} has {has}; the model reads {reads}")
        self.modalities = ordered(chosen)
        for name in self._given:
            if (row := MODALITIES[name]).kind == "words":
                made = self.features.get(name)
                if made is None or (made.settings or {}).get("words") != vocabulary_of(tokenizer):
                    pieces, lengths = word_pieces(catalogue.contents(name), row, tokenizer)
                    made = Ragged(np.pad(pieces, ((0, 1), (0, 0))), np.cumsum([0, *lengths]))
                self.words[name] = made

    @property
    def _given(self) -> tuple[str, ...]:
        """The streams of every batch."""
        return self.modalities if self.spec is None else self.spec.modalities

    def __len__(self) -> int:
        return len(self.catalogue)

    @property
    def widths(self) -> dict[str, int]:
        """F of each feature modality: widths come from the extractor."""
        named = (n for n in self.modalities if n not in self.words)
        return {n: self.features[n].values.shape[1] for n in named}

    @property
    def settings(self) -> dict[str, Mapping]:
        """What extractor made each feature modality, where that is known."""
        return {n: made for n in self.widths if (made := self.features[n].settings)}

    @property
    def classes(self) -> dict[str, int]:
        """Number of classes of each feature modality whose extractor gives their probabilities."""
        given = ((n, self.features[n].classes) for n in self.widths)
        return {n: values.shape[1] for n, values in given if values is not None}

    def lengths(self) -> dict[str, np.ndarray]:
        """(N,) tokens of each product and stream, the summary included; 0 where it is absent."""
        lengths = {}
        for name in self.modalities:
            row, source = MODALITIES[name], self.words.get(name) or self.features[name]
            tokens = np.minimum(np.diff(source.offsets), row.max_tokens)
            lengths[name] = tokens + (tokens > 0) * (row.kind == "features")
        return lengths

    def batch(self, rows: Rows, part: Part = None) -> Batch:
        """The batch of the given rows, padded to the longest of each stream; or a part of it, from
        one place up to another, which is padded alike."""
        rows, streams, own = np.asarray(rows, dtype=np.int64), {}, slice(*part or (None,))
        for name in self._given:
            make = self._word_stream if name in self.words else self._feature_stream
            streams[name] = make(name, rows, own)
        return Batch(streams, rows[own], self.settings, part and (part[0], len(rows)))

    def _word_stream(self, name: str, rows: np.ndarray, part: slice) -> Stream:
        words = self.words[name]
        index, there = _places(words.offsets, rows, MODALITIES[name].max_tokens, part)
        read = np.where(there[..., None], words.values[index], (self.tokenizer.pad_token_id, -1))
        tokens, entity = torch.from_numpy(read.astype(np.int64)).permute(2, 0, 1).contiguous()
        return Stream(tokens, torch.from_numpy(there), entity=entity)

    def _feature_stream(self, name: str, rows: np.ndarray, part: slice) -> Stream:
        if name not in self.modalities:  # the model reads it, no product has it
            zeros, width = torch.zeros(len(rows[part]), 1, 1), dict(self.spec.widths)[name]
            boxes = zeros.repeat(1, 1, 5) if MODALITIES[name].position == "box" else None
            return Stream(zeros.repeat(1, 1, width), zeros[..., 0].bool(), boxes=boxes)
        ragged = self.features[name]
        index, there = _places(ragged.offsets, rows, MODALITIES[name].max_tokens, part)
        there = torch.from_numpy(there)
        valid = torch.cat([there[:, :1], there], dim=1)

        def padded(array, summary) -> Tensor:
            values = torch.from_numpy(array[index].astype(np.float32)) * there[..., None]
            first = torch.tensor(summary).expand(len(there), 1, values.shape[-1])
            return torch.cat([first * there[:, :1, None], values], dim=1)

        boxes = None if ragged.boxes is None else padded(ragged.boxes, WHOLE)
        classes = padded(ragged.classes, 0.0) if name in self.classes else None
        tokens = with_summary(padded(ragged.values, 0.0), valid)
        return Stream(tokens, valid, boxes=boxes, classes=classes)


def _places(offsets: np.ndarray, rows: np.ndarray, limit: int, part: slice) -> tuple:
    """Where tokens of a part of the rows lie in the flat arrays (B, L), which are there (B, L)."""
    lengths = np.minimum(offsets[rows + 1] - offsets[rows], limit)
    steps = np.arange(max(1, int(lengths.max(initial=0))))
    there = steps[None, :] < lengths[part, None]
    # what is not there points to the last value of all
    return np.where(there, offsets[rows[part]][:, None] + steps[None, :], -1), there


def with_summary(tokens: Float[Tensor, "B L F"], valid: Bool[Tensor, "B L"]) -> Tensor:
    """The features with the summary in front: the mean of the tokens there (released loader)."""
    there = valid[:, 1:, None]
    mean = (tokens[:, 1:] * there).sum(1) / there.sum(1).clamp(min=1)
    return torch.cat([mean[:, None], tokens[:, 1:]], dim=1)


def impute(batch: Batch, empty: Sequence[int]) -> Batch:
    """The paper's missing modalities (section 4.1): zeros in their place, which everyone sees.

    An absent feature stream becomes the longest there is of zero vectors, all valid, as in the
    released loader (the box of its summary is the whole picture); an absent word stream the two
    word pieces ``empty``, an empty string.
    """
    items = batch.streams.items()
    return replace(batch, streams={n: _imputed(s, MODALITIES[n], empty) for n, s in items})


def _imputed(stream: Stream, row: Modality, empty: Sequence[int]) -> Stream:
    lacking = ~stream.valid[:, :1]
    if not lacking.any():
        return stream
    longest = row.slots if row.kind == "features" else len(empty)
    length = max(longest, stream.valid.shape[1])
    place = torch.arange(length, device=lacking.device)

    def filled(x: Tensor) -> Tensor:
        """As long, and zeros where it is lacking."""
        x = torch.cat([x, x.new_zeros(len(x), length - x.shape[1], *x.shape[2:])], dim=1)
        return x.masked_fill(lacking.view(-1, *[1] * (x.ndim - 1)), 0)

    stream = stream.each(filled)
    stream = replace(stream, valid=stream.valid | (lacking & (place < longest)))
    if row.kind == "words":
        pieces = F.pad(torch.tensor(empty, device=lacking.device), (0, length - len(empty)))
        tokens, entity = torch.where(lacking, pieces, stream.tokens), stream.entity
        return replace(stream, tokens=tokens, entity=entity.masked_fill(lacking, -1))
    if stream.boxes is None:
        return stream
    whole = stream.boxes.new_tensor(WHOLE) * (place == 0)[:, None]
    return replace(stream, boxes=torch.where(lacking[..., None], whole, stream.boxes))
