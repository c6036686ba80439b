"""Products as people have them in, vectors of unit length out, in the words of
sentence-transformers.

::

    encoder = Encoder.from_pretrained("runs/scale-…")  # or index.encoder
    vectors = encoder.encode([{"text": "red mug"}, {"text": "a mug", "image": "mug.jpg"}])  # (2, D)
    encoder.similarity(vectors, vectors)  # (2, 2) cosines
"""

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from m5lib.catalogue import Catalogue, DataError, Product, Rows
from m5lib.data import MediaFile, Record, store, words
from m5lib.data.backbones import agreed
from m5lib.embeddings import ACROSS, DEFAULT, embeddings
from m5lib.files import reading
from m5lib.lab import checked
from m5lib.modalities import MODALITIES, ordered
from m5lib.model import Model
from m5lib.search import intake
from m5lib.streams import Streams

#: What is compared: given the same modalities, and one set against another.
COMPARED = (DEFAULT, ACROSS)


@checked
@dataclass
class Encoder:
    """A pre-trained model that reads products as their owners have them.

    Attributes:
        model: with its tokenizer.
        extractors: what reads files; None: made again from the model's settings, when needed.
        turned: read-out -> (D, d): what its vectors are multiplied by (:func:`directions`), where
            fewer numbers should do.
    """

    model: Model
    extractors: Mapping[str, Any] | None = None
    turned: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def from_pretrained(cls, folder: str | Path, extractors: str = "") -> "Encoder":
        """The encoder of a run's folder, or of one written by ``save_pretrained``; ``extractors``
        and errors as in :func:`m5lib.search.build`."""
        model = intake.load_model(folder)
        return cls(model, agreed(model.extractors, extractors))

    def product(self, contents: Any, name: str = "query") -> Product:
        """A product by that name, its id, before which stands a blank: no product of a catalogue
        has such an id. ``contents`` is a dict, its keys modalities: a title as text,
        attributes as a dict or as JSON, the path of each file, a picture also in memory (Pillow, or
        a uint8 array (H, W) or (H, W, 3)); what is empty is absent.

        Raises:
            ValueError: an unknown modality, one that the model does not read, nothing at all, or
                attributes that are none.
            DataError: what is no path, or a file that is not there.
        """
        if not isinstance(contents, Mapping):
            mend = 'give a dict of modalities, such as {"text": "red mug", "image": "mug.jpg"}'
            raise ValueError(f"the {name} is of type {type(contents).__name__}; {mend}")
        contents = {key: contents[key] for key in ordered(contents) if _there(contents[key])}
        reads = self.model.spec.modalities
        if unread := [key for key in contents if key not in reads]:
            raise ValueError(f"no {', '.join(unread)}: the model reads only {', '.join(reads)}")
        if not contents:
            raise ValueError(f"the {name} is empty; give one or more of {', '.join(reads)}")
        return Product(f" {name}", {key: _content(key, x, name) for key, x in contents.items()})

    def streams(self, products: Sequence[Product]) -> Streams:
        """Their streams for the model, of what it reads; a sound that lies in its video is part of
        it. Raises ``DataError`` for a file that cannot be read."""
        products = [self.read(product) for product in products]
        if self.extractors is None:
            self.extractors = agreed(self.model.extractors)
        wanted = {n: e for n, e in self.extractors.items() if n in self.model.spec.modalities}
        try:
            catalogue, features = store.extract(Catalogue("query", tuple(products)), wanted)
        except DataError as error:
            why = str(error).replace(": no usable product was read", "").replace("( query: ", "(")
            raise DataError(f"nothing can be read of the {why}") from None
        given = {product.id: product.contents for product in products}
        for skip in catalogue.skipped:
            if skip.field in given[skip.where]:  # else a video whose sound is of no use
                file, whose = given[skip.where][skip.field].name, skip.where.strip()
                of = "" if whose in ("query", file.rpartition(" of the ")[2]) else f" of {whose}"
                raise DataError(f"{file}{of}: {skip.reason}")
        return Streams(catalogue, features, self.model.tokenizer, spec=self.model.spec)

    def alone(self, streams: Streams, row: int | np.integer) -> Streams:
        """:meth:`streams` of one row of others, whose features are there: no file is read again."""
        features, part = streams.features.items(), slice(row, row + 2)
        own = {name: made._replace(offsets=made.offsets[part]) for name, made in features}
        product = self.read(streams.catalogue.products[row])
        catalogue = replace(streams.catalogue, products=(product,))
        return Streams(catalogue, own, self.model.tokenizer, spec=self.model.spec)

    def read(self, product: Product) -> Product:
        """The product with nothing but what the model reads."""
        reads = self.model.spec.modalities
        contents = {name: x for name, x in product.contents.items() if name in reads}
        return replace(product, contents=contents)

    def embed(
        self,
        streams: Streams,
        rows: Rows,
        names: Iterable[str] | None = None,
        readouts: Iterable[str] = COMPARED,
        batch_size: int = 128,
    ) -> dict[str, Float[np.ndarray, "N _"]]:
        """:func:`m5lib.embeddings.embeddings`, turned."""
        vectors = embeddings(self.model, streams, rows, names, readouts, batch_size)
        return {n: v @ self.turned[n] if n in self.turned else v for n, v in vectors.items()}

    def encode(
        self,
        products: Any,
        readout: str = DEFAULT,
        batch_size: int = 128,
    ) -> Float[np.ndarray, "... D"]:
        """Vectors of unit length, float32: (N, D), or (D,) for a single product.

        Args:
            products: dicts as for :meth:`product`, or products of a catalogue, each with whatever
                modalities it has that the model reads.
            readout: ``weighted``, or ``pooled`` where one modality meets another
                (:mod:`m5lib.embeddings`).

        Raises ``ValueError`` or ``DataError``: as :meth:`product`, with the place in the list; an
        unknown read-out.
        """
        several = isinstance(products, Iterable) and not isinstance(
            products, Mapping | Product | str
        )
        made = []
        for place, given in enumerate(products if several else [products]):
            contents = self.read(given).contents if isinstance(given, Product) else given
            made.append(self.product(contents, f"product {place}"))
        if not made:
            raise ValueError("no product to encode; give one or more")
        streams = self.streams(made)
        vectors = self.embed(streams, range(len(made)), None, [readout], batch_size)[readout]
        return unit(vectors) if several else unit(vectors)[0]

    @staticmethod
    def similarity(
        one: Float[np.ndarray, "... D"], other: Float[np.ndarray, "... D"]
    ) -> Float[np.ndarray, "N M"]:
        """(N, M) cosines of vectors (N, D) and (M, D); a single vector counts as one row."""
        return unit(np.atleast_2d(one)) @ unit(np.atleast_2d(other)).T


def directions(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "D D"]:
    """The directions that vectors lie along, the strongest first: orthogonal, so that all of them
    change no cosine, and the first d keep more of the inner products than any other d can (PCA
    without the mean taken out)."""
    values, basis = np.linalg.eigh(unit(vectors).astype(np.float64).T @ unit(vectors))
    return np.ascontiguousarray(basis[:, ::-1], dtype=np.float32)


def unit(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Rows of length one; unlike sklearn's, of NaN (for a modality that lacks) too."""
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)


def cosine(one: Float[np.ndarray, "N D"], other: Float[np.ndarray, "M D"]) -> np.ndarray:
    """(N,) cosines of the rows of two arrays, of which one may have a single row."""
    return (unit(one.astype(np.float64)) * unit(other.astype(np.float64))).sum(axis=1)


@dataclass(frozen=True)
class Held(Record):
    """A file's bytes that are held in memory."""

    data: bytes = field(default=b"", repr=False)

    def read(self) -> bytes:
        """The bytes."""
        return self.data


def _held(picture: Image.Image | np.ndarray, name: str) -> Held:
    """A picture in memory as a file, which every extractor reads."""
    if isinstance(picture, np.ndarray):
        if (
            picture.dtype != np.uint8
            or picture.shape[2:] not in ((), (3,), (4,))
            or picture.ndim < 2
        ):
            given = f"is an array of {picture.dtype}, shape {picture.shape}"
            raise DataError(f"{name} {given}; give uint8, (H, W) or (H, W, 3)")
        picture = Image.fromarray(picture) if picture.size else Image.new("L", (0, 0))
    if min(picture.size) < 1:
        raise DataError(f"{name} has no pixels; leave it out")
    deep = picture.mode.startswith(("I", "F"))  # more than 8 bits: read, or refused, as a file is
    if not deep and picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):  # PNG knows no other
        picture = picture.convert("RGB")
    data = io.BytesIO()
    picture.save(data, "TIFF" if deep else "PNG", compress_level=1, exif=picture.getexif())
    return Held(Path(name), size=data.tell(), member=name, data=data.getvalue())


EMPTY = ("", "{}", {}, (), [])


def _there(given: Any) -> bool:
    given = given.strip() if isinstance(given, str) else given
    plain = isinstance(given, str | Mapping | tuple | list | float)
    return given is not None and (not plain or (given == given and given not in EMPTY))


def _content(modality: str, given: Any, name: str) -> Any:
    """What a product holds of a content that a user gives."""
    whose = f"{modality} of the {name}"
    if isinstance(given, MediaFile):
        return given
    if (row := MODALITIES[modality]).hides == "entity":  # pairs
        said = " ".join(repr(given).split())
        with reading(f"{whose} {said:.60}", 'give attributes as {"colour": "red"}'):
            given = json.loads(given) if isinstance(given, str) else given
            pairs = given.items() if isinstance(given, Mapping) else given  # a key may repeat
            if any(isinstance(pair, str) for pair in pairs):  # "XL" is no pair
                raise ValueError("words, not pairs of a name and a value")
            pairs = tuple((words(key), words(value)) for key, value in pairs)
            if not all(map(all, pairs)):
                raise ValueError("an attribute without a value")
            return pairs
    if row.kind == "words":
        with reading(whose, "give words"):
            return words(given)
    if row.position == "box" and isinstance(given, Image.Image | np.ndarray):  # a picture
        return _held(given, whose)
    if not isinstance(given, str | Path):
        mend = "save it and give the path of the file"
        raise DataError(f"{whose} is of type {type(given).__name__}; {mend}")
    if not os.path.isfile(given):  # whatever the name is
        raise DataError(f"{given}: no such file; {modality} of a product is the path of a file")
    return MediaFile(Path(given), size=Path(given).stat().st_size)
