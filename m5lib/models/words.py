"""A tokenizer of a catalogue's own words, what its pieces are pieces of, and pieces in shards.

>>> tokenizer = train_tokenizer(catalogue, 8000)
>>> word_numbers("red mugs", tokenizer)  # [0, 1, 1], if "mugs" is two pieces
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from m5lib.catalogue import Catalogue
from m5lib.data.extractors import Features
from m5lib.modalities import MODALITIES
from m5lib.streams import vocabulary_of, word_pieces

SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


def train_tokenizer(catalogue: Catalogue, vocabulary: int = 8000) -> PreTrainedTokenizerFast:
    """WordPiece trained on the ``train`` split's words, lower-cased like bert-base-uncased. Chinese
    characters are split one by one, as BERT does, so the same call fits the official release. The
    same words give the same vocabulary."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    rows = catalogue.split("train")
    catalogue = catalogue.take(rows) if len(rows) else catalogue
    texts = [
        normalizer.normalize_str(text)
        for name, row in MODALITIES.items()
        if row.units
        for content in catalogue.contents(name)
        if content is not None
        for text in row.units(content)
    ]
    # The trainer numbers ## pieces in the order of a hash map and breaks ties by these numbers. So
    # they are numbered beforehand, as special tokens, which the tokenizer returned does not have.
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


def word_numbers(text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(L,) which word of ``text.split()`` each of its word pieces lies in; special tokens not
    counted. Needs a fast tokenizer."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return np.array([len(text[:end].split()) - 1 for _, end in spans], dtype=int)


@dataclass(frozen=True)
class Pieces:
    """Word pieces of a modality as an extractor: :func:`m5lib.data.store.extract` keeps those of
    millions of products in shards (:func:`pieces`). ``words`` tells tokenizers apart."""

    modality: str
    words: str
    tokenizer: PreTrainedTokenizerBase = field(compare=False, repr=False)
    width: ClassVar[int] = 2
    version: ClassVar[int] = 1
    dtype: ClassVar[type] = np.int32
    together: ClassVar[int] = 4096
    decodes: ClassVar[bool] = False
    prepare: ClassVar[None] = None

    def features(self, contents: Sequence) -> list[Features]:
        """Of each content (L, 2), :func:`m5lib.streams.word_pieces`."""
        found, lengths = word_pieces(contents, MODALITIES[self.modality], self.tokenizer)
        return [Features(part) for part in np.split(found, np.cumsum(lengths)[:-1])]


def pieces(tokenizer: PreTrainedTokenizerBase) -> dict[str, Pieces]:
    """Extractors of all modalities that are words."""
    rows, words = MODALITIES.items(), vocabulary_of(tokenizer)
    return {n: Pieces(n, words, tokenizer) for n, row in rows if row.kind == "words"}
