"""Products, catalogues, presence, and splits that depend on nothing but the product's id.

>>> product = Product("7", {"text": "red mug", "table": (("colour", "red"),)}, label="Mug")
>>> catalogue = Catalogue("mine", (product,))
>>> catalogue.modalities, catalogue.split("train")  # ("text", "table"), rows
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from m5lib.modalities import MODALITIES, codes

#: Row numbers of a catalogue.
Rows = Sequence[int] | np.ndarray


class DataError(ValueError):
    """Data that cannot be used at all. The message names the file, the field and the mend."""


class Skip(NamedTuple):
    """What was left out while reading, and why; ``where``: an id, a line or a tar member."""

    where: str
    field: str
    reason: str


@dataclass(frozen=True)
class Product:
    """One product: any subset of the modalities.

    Attributes:
        id: unique text.
        contents: modality name -> raw content, absent modalities left out. A title is a ``str``, a
            table a tuple of ``(property, value)`` pairs in the shop's order, image, video and audio
            a :class:`m5lib.data.MediaFile`.
        label: the category; ``None`` where unknown.
        split: given by the data's owner (:data:`GIVEN`); ``None``: drawn by hash of the id.
        instance: the same for all listings of one product by several merchants; ``None``: unknown.
    """

    id: str
    contents: Mapping[str, Any]
    label: str | None = None
    split: str | None = None
    instance: str | None = None


#: Shares of the splits drawn by hash. Pre-training sees ``train``; ``validation`` queries the
#: gallery wherever something has to be chosen; ``query`` queries the gallery for the reported
#: numbers. The classifier is trained on ``classifier``, a part of ``train`` (labels are used there
#: only), and tested on ``query``.
SHARES = {"train": 0.50, "validation": 0.08, "gallery": 0.34, "query": 0.08}
CLASSIFIER_SHARE = 0.5
#: Splits that a product can be given by the data's owner. In the fine-grained sets a match is
#: another listing of the same product.
GIVEN = (*SHARES, "fine_gallery", "fine_query")
SPLITS = (*GIVEN, "classifier")


def _uniform(text: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the text and the purpose only, on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_of(product: Product) -> str:
    """The split of a product: its own, or drawn by hash of its id (:data:`SHARES`)."""
    if product.split is not None:
        return product.split
    draw = _uniform(product.id, "split")
    for name, share in SHARES.items():
        draw -= share
        if draw < 0:
            return name
    return name


@dataclass(frozen=True)
class Catalogue:
    """Products in a fixed order, with what was left out on the way (:attr:`skipped`).

    ``products`` are a tuple, or for millions :class:`m5lib.data.columns.Columns`.

    Raises :class:`DataError`: no product, two of the same id, or one without any modality.
    """

    name: str
    products: Sequence[Product]
    skipped: tuple[Skip, ...] = field(default=(), repr=False)

    def __post_init__(self):
        if not len(self.products):
            reasons = "; ".join(f"{skip.where}: {skip.reason}" for skip in self.skipped[:3])
            why = f" ({reasons} …)" if reasons else ""
            raise DataError(f"{self.name}: no usable product was read{why}")
        if len(set(self.ids)) < len(self):
            raise DataError(f"{self.name}: two products share an id; ids must be unique")
        if len(bare := self.ids[~self.presence.to_numpy().any(axis=1)]):
            raise DataError(f"{self.name}: product {bare[0]!r} has no modality; leave such out")

    def __len__(self) -> int:
        return len(self.products)

    def _column(self, name: str) -> np.ndarray:
        if hasattr(self.products, "column"):
            return self.products.column(name)
        return np.array([getattr(product, name) for product in self.products], dtype=object)

    @cached_property
    def ids(self) -> np.ndarray:
        """(N,) object array of ids."""
        return self._column("id")

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) object array of labels, ``None`` where unknown."""
        return self._column("label")

    @cached_property
    def instances(self) -> np.ndarray:
        """(N,) object array: which product this is a listing of, ``None`` where unknown."""
        return self._column("instance")

    def _read(self, *names: str) -> Iterable[Product]:
        return self.products.read(names) if hasattr(self.products, "read") else self.products

    def contents(self, name: str) -> Iterator[Any]:
        """What each product has of a modality, ``None`` where it is absent."""
        return (product.contents.get(name) for product in self._read("id", name))

    @cached_property
    def presence(self) -> pd.DataFrame:
        """(N, M) booleans, one column per modality in the table's order."""
        products = self.products
        has = getattr(products, "has", lambda name: [name in p.contents for p in products])
        return pd.DataFrame({name: has(name) for name in MODALITIES}, self.ids)

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that at least one product has."""
        return tuple(name for name in MODALITIES if self.presence[name].any())

    @cached_property
    def splits(self) -> np.ndarray:
        """(N,) object array of splits (:func:`split_of`)."""
        return np.array([split_of(p) for p in self._read("id", "split")], dtype=object)

    def split(self, name: str) -> np.ndarray:
        """Rows of one split (:data:`SPLITS`), ascending. Raises ``ValueError``: unknown name."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}: known are {SPLITS}")
        if name != "classifier":
            return np.flatnonzero(self.splits == name)
        train = self.split("train")
        draws = np.array([_uniform(id, "classifier") for id in self.ids[train]])
        return train[draws < CLASSIFIER_SHARE]

    def take(self, rows: Rows) -> "Catalogue":
        """The catalogue of the given rows, in their order."""
        whole = self.products
        some = whole[rows] if hasattr(whole, "read") else tuple(whole[row] for row in rows)
        return replace(self, products=some)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of ids, labels, splits, words and sizes of media, not of their place."""
        if made := getattr(self.products, "fingerprint", None):
            return made
        digest = hashlib.blake2b(digest_size=8)
        for p in self.products:
            known = [(name, p.contents[name]) for name in MODALITIES if name in p.contents]
            contents = [(name, getattr(content, "size", content)) for name, content in known]
            digest.update(repr((p.id, p.label, p.split, p.instance, contents)).encode())
        return digest.hexdigest()

    def report(self, examples: int = 3) -> str:
        """What was read and what was not, in a few lines for people."""
        classes = {label for label in self.labels if label is not None}
        sizes = {name: len(self.split(name)) for name in SPLITS}
        given = ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size)
        has = f"{len(self):,} products with {codes(self.modalities)}"
        lines = [f"{self.name}: {has}", f"  {len(classes):,} labels; {given}"]
        counts: dict[tuple[str, str], list[str]] = {}
        for skip in self.skipped:
            counts.setdefault((skip.field, skip.reason.split(" (")[0]), []).append(skip.where)
        for (name, reason), where in sorted(counts.items()):
            some = ", ".join(where[:examples]) + (" …" if len(where) > examples else "")
            lines.append(f"  left out: {name}: {reason}: {len(where):,} ({some})")
        return "\n".join(lines)
