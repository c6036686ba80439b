"""Products, catalogues, which modalities are there, and splits that depend on nothing but the
product's id."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from m5lib.modalities import MODALITIES, codes

#: Row numbers of a catalogue.
Rows = Sequence[int] | np.ndarray


class DataError(ValueError):
    """Data that cannot be used at all. The message names the file and the field, and says how to
    mend it."""


class Skip(NamedTuple):
    """Something that was left out while reading, and why: ``where`` is a product's id, a line or a
    tar member."""

    where: str
    field: str
    reason: str


@dataclass(frozen=True)
class MediaFile:
    """A media file on disk, or a member inside an uncompressed tar that is read in place
    (``offset`` and ``size`` in bytes)."""

    path: Path
    offset: int = 0
    size: int | None = None
    member: str | None = None

    def read(self) -> bytes:
        """The bytes of the file. Safe to call from several threads and processes: nothing is kept
        open."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read() if self.size is None else file.read(self.size)

    def ends(self, length: int = 16_384) -> bytes:
        """The first and the last ``length`` bytes, the whole file where it is no longer than
        both."""
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - self.offset if self.size is None else self.size
            file.seek(self.offset)
            if size <= 2 * length:
                return file.read(max(size, 0))
            head = file.read(length)
            file.seek(self.offset + size - length)
            return head + file.read(length)

    @property
    def checksum(self) -> str:
        """16 hex digits of the size and both ends of the bytes: a file put in another's place is
        noticed without reading it all."""
        size = self.path.stat().st_size if self.size is None else self.size
        return hashlib.blake2b(
            self.ends(), digest_size=8, salt=size.to_bytes(16, "little")
        ).hexdigest()

    @classmethod
    def inside(cls, folder: Path, name: str) -> "MediaFile":
        """The file of that name in a folder or below it. Raises ``ValueError``: it leads out of the
        folder, or is no file."""
        path, root = os.path.normpath(folder / name), os.path.normpath(folder)
        if root != "." and os.path.commonpath(
            [os.path.abspath(root), os.path.abspath(path)]
        ) != os.path.abspath(root):
            raise ValueError("the path leads out of the media folder")
        if "\0" in name or not os.path.isfile(path):
            raise ValueError("no such file")
        return cls(Path(path), size=os.path.getsize(path))

    @property
    def name(self) -> str:
        """Name for messages: the member's where there is one."""
        return self.member or str(self.path)


@dataclass(frozen=True)
class Product:
    """One product: any subset of the modalities.

    Attributes:
        id: unique text.
        contents: modality name -> raw content, absent modalities left out. A title is a ``str``, a
            table a tuple of ``(property, value)`` pairs in the shop's order, image, video and audio
            a :class:`MediaFile`.
        label: the category; ``None`` where unknown.
        split: a split given by the data's owner (:data:`GIVEN`); ``None`` to draw it by hash of the
            id.
        instance: the same for all listings of one product by several merchants; ``None`` where
            unknown.
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
    """A number in [0, 1) that depends on the text and the purpose only: the same on every machine
    and in every run."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_of(product: Product) -> str:
    """The split of a product: its own, or drawn by hash of its id with the shares of
    :data:`SHARES`."""
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

    Raises :class:`DataError` when there is no product, when two have the same id, or when one has
    no modality.
    """

    name: str
    products: tuple[Product, ...]
    skipped: tuple[Skip, ...] = field(default=(), repr=False)

    def __post_init__(self):
        if not self.products:
            reasons = "; ".join(f"{skip.where}: {skip.reason}" for skip in self.skipped[:3])
            raise DataError(
                f"{self.name}: no usable product was read{f' ({reasons} …)' if reasons else ''}"
            )
        if len({product.id for product in self.products}) < len(self.products):
            raise DataError(f"{self.name}: two products share an id; ids must be unique")
        if bare := [product.id for product in self.products if not product.contents]:
            raise DataError(
                f"{self.name}: product {bare[0]!r} has no modality at all; leave such products out"
            )

    def __len__(self) -> int:
        return len(self.products)

    @cached_property
    def ids(self) -> np.ndarray:
        """(N,) object array of ids."""
        return np.array([product.id for product in self.products], dtype=object)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) object array of labels, ``None`` where unknown."""
        return np.array([product.label for product in self.products], dtype=object)

    @cached_property
    def instances(self) -> np.ndarray:
        """(N,) object array: which product this is a listing of, ``None`` where unknown."""
        return np.array([product.instance for product in self.products], dtype=object)

    @cached_property
    def presence(self) -> pd.DataFrame:
        """(N, M) booleans, one column per modality in the table's order."""
        rows = [[name in product.contents for name in MODALITIES] for product in self.products]
        return pd.DataFrame(rows, columns=list(MODALITIES), index=self.ids)

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that at least one product has."""
        return tuple(name for name in MODALITIES if self.presence[name].any())

    @cached_property
    def _splits(self) -> np.ndarray:
        return np.array([split_of(product) for product in self.products], dtype=object)

    def split(self, name: str) -> np.ndarray:
        """Rows of one split (:data:`SPLITS`), in the catalogue's order. Raises ``ValueError`` for
        an unknown name."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}: known are {SPLITS}")
        if name != "classifier":
            return np.flatnonzero(self._splits == name)
        return np.array(
            [
                row
                for row in self.split("train")
                if _uniform(self.ids[row], "classifier") < CLASSIFIER_SHARE
            ],
            dtype=int,
        )

    def sought(self, split: str = "query") -> tuple[np.ndarray, np.ndarray]:
        """What the products of a split look for: rows of their gallery, and (N,) what a match has
        in common with the query.

        ``fine_query`` looks for listings of the same product in ``fine_gallery``, every other split
        for the same category in ``gallery`` (section 5: fine-grained and coarse retrieval).
        """
        if split == "fine_query":
            return self.split("fine_gallery"), self.instances
        return self.split("gallery"), self.labels

    def queries(self, split: str = "query") -> tuple[np.ndarray, int]:
        """Rows of the split that can be retrieved, and how many of it cannot.

        The long tail is kept: a class needs no more than one product in the gallery. Products
        without a label, and those whose class has no product in the gallery (a class of one product
        among them), have nothing to be found and are left out.
        """
        gallery, same = self.sought(split)
        known = set(same[gallery]) - {None}
        rows = self.split(split)
        keep = np.array([same[row] in known for row in rows], dtype=bool)
        return rows[keep], int((~keep).sum())

    def take(self, rows: Rows) -> "Catalogue":
        """The catalogue of the given rows, in their order."""
        return replace(self, products=tuple(self.products[row] for row in rows))

    def without(self, broken: Sequence[Skip]) -> "Catalogue":
        """The catalogue without the contents that could not be decoded: each is listed in
        :attr:`skipped`.

        A product keeps its other modalities; one that has none left is left out.
        """
        lost: dict[str, set[str]] = {}
        for skip in broken:
            lost.setdefault(skip.where, set()).add(skip.field)
        products = []
        for product in self.products:
            gone = lost.get(product.id, ())
            contents = {
                name: content for name, content in product.contents.items() if name not in gone
            }
            if contents:
                products.append(replace(product, contents=contents) if gone else product)
        return replace(self, products=tuple(products), skipped=(*self.skipped, *broken))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any id, label, split, word, or size of a media file; never
        with where the data lies."""
        digest = hashlib.blake2b(digest_size=8)
        for product in self.products:
            known = {
                name: product.contents[name] for name in MODALITIES if name in product.contents
            }
            contents = [
                (name, content.size if isinstance(content, MediaFile) else content)
                for name, content in known.items()
            ]
            digest.update(
                repr(
                    (product.id, product.label, product.split, product.instance, contents)
                ).encode()
            )
        return digest.hexdigest()

    def report(self, examples: int = 3) -> str:
        """What was read and what was not, in a few lines for people."""
        lines = [f"{self.name}: {len(self):,} products with {codes(self.modalities)}"]
        classes = {label for label in self.labels if label is not None}
        sizes = {name: len(self.split(name)) for name in SPLITS}
        lines.append(
            f"  {len(classes):,} labels; "
            + ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size)
        )
        counts: dict[tuple[str, str], list[str]] = {}
        for skip in self.skipped:
            counts.setdefault((skip.field, skip.reason), []).append(skip.where)
        for (name, reason), where in sorted(counts.items()):
            more = " …" if len(where) > examples else ""
            lines.append(
                f"  left out: {name}: {reason}: {len(where):,} "
                f"({', '.join(where[:examples])}{more})"
            )
        return "\n".join(lines)
