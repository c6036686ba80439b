"""A tokenizer of a catalogue's own words, and what its pieces are pieces of.

>>> tokenizer = train_tokenizer(catalogue, 8000)
>>> word_numbers("red mugs", tokenizer)  # [0, 1, 1], if "mugs" is two pieces
"""

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from m5lib.catalogue import Catalogue
from m5lib.modalities import MODALITIES

SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


def train_tokenizer(catalogue: Catalogue, vocabulary: int = 8000) -> PreTrainedTokenizerFast:
    """WordPiece trained on the words of the catalogue's ``train`` split, lower-cased like
    bert-base-uncased.

    Chinese characters are split one by one, as BERT does, so the same call fits the official
    release. The same words give the same vocabulary.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    rows = catalogue.split("train")
    products = [catalogue.products[row] for row in (rows if len(rows) else range(len(catalogue)))]
    texts = [
        normalizer.normalize_str(text)
        for p in products
        for name, row in MODALITIES.items()
        if row.units and name in p.contents
        for text in row.units(p.contents[name])
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
