"""A catalogue kept as Arrow columns beside its features: millions of products open in seconds.

>>> made = {**PLAIN, **pieces(tokenizer)}  # m5lib.models.words: titles and tables as word pieces
>>> catalogue, features = store.extract(catalogue, made, folder, processes=8, shard=8192)
>>> columns.keep(folder, catalogue, features)
>>> catalogue, features = columns.opened(folder)  # in any process, the media need not be there

``<folder>/catalogue.arrow`` has a row for each product: its id, label, split and instance, its
contents (words, and where a media file lies) and how many tokens it has in the shards of
:mod:`m5lib.data.store`, whose names are in the file's metadata. It is memory-mapped.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from m5lib.catalogue import Catalogue, Product, Rows, Skip
from m5lib.data import MediaFile, inside
from m5lib.data.decoding import ParquetCell
from m5lib.data.m5features import LmdbRecord
from m5lib.data.store import Mapped
from m5lib.files import reading, whole_file
from m5lib.modalities import MODALITIES
from m5lib.streams import Ragged

FILE, MEND = "catalogue.arrow", "extract and keep it again"
#: What a media file may be; and the fields of a product that are text.
KINDS = {kind.__name__: kind for kind in (MediaFile, ParquetCell, LmdbRecord)}
TEXTS = ("id", "label", "split", "instance")
#: The arrays of a :class:`Ragged` that are in files.
ARRAYS = ("values", "boxes", "classes")


class Columns(Sequence):
    """Products that are rows of an Arrow table, made when they are asked for: millions take no more
    memory than what is read of the memory-mapped file.

    Args:
        path: the file; other processes map it too.
        rows: which rows, in their order; by default all.
    """

    def __init__(self, path: Path, rows: Rows | None = None):
        self.path, self.table = path, _table(path)
        self.rows = np.arange(len(self.table)) if rows is None else np.asarray(rows)
        self.batches = self.table.to_batches()
        self.starts = np.cumsum([0, *(len(batch) for batch in self.batches)])

    def __reduce__(self):
        return Columns, (self.path, self.rows)

    @property
    def fingerprint(self) -> str | None:
        """That of the catalogue, where these are all of its products."""
        whole = np.array_equal(self.rows, np.arange(len(self.table)))
        return _known(self.table)["fingerprint"] if whole else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place):
        one = isinstance(place, int | np.integer)
        some = Columns(self.path, self.rows[[place] if one else place])
        return next(iter(some)) if one else some

    def __iter__(self) -> Iterator[Product]:
        return self.read(
            [name for name in (*TEXTS, *MODALITIES) if name in self.table.schema.names]
        )

    def read(self, names: Sequence[str]) -> Iterator[Product]:
        """The products, of these columns."""
        for start in range(0, len(self), 8192):
            rows = self.rows[start : start + 8192]
            given = np.empty(len(rows), dtype=object)
            batch_of = np.searchsorted(self.starts, rows, side="right") - 1
            for n in np.unique(batch_of):
                batch, here = self.batches[n].select(list(names)), batch_of == n
                given[here] = batch.take(rows[here] - self.starts[n]).to_pylist()
            yield from map(_product, given)

    def column(self, name: str) -> np.ndarray:
        """(N,) object array of what stands in a column, ``None`` for nothing."""
        return self.table[name].to_numpy()[self.rows]

    def has(self, name: str) -> np.ndarray:
        """(N,) whether something stands in a column."""
        if name not in self.table.column_names:  # a modality of later days
            return np.zeros(len(self), dtype=bool)
        return self.table[name].is_valid().to_numpy()[self.rows]


@lru_cache(maxsize=8)
def _table(path: Path):
    import pyarrow as pa

    with reading(path, MEND):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate()
        return table


def _known(table) -> dict:
    return json.loads(table.schema.metadata[b"catalogue"])


def keep(folder: str | Path, catalogue: Catalogue, features: Mapping[str, Ragged]) -> Path:
    """Write ``catalogue.arrow`` into the folder that the features were extracted to. Raises
    ``ValueError``: features that are not in files below the folder."""
    import pyarrow as pa

    folder, files = Path(folder).absolute(), {}
    for name, ragged in features.items():
        arrays = {key: getattr(ragged, key) for key in ARRAYS if getattr(ragged, key) is not None}
        if not all(isinstance(array, Mapped) for array in arrays.values()):
            raise ValueError(f"{name} features are in memory; extract them into {folder}")
        files[name] = {key: _described(array, folder) for key, array in arrays.items()}
        files[name]["settings"] = ragged.settings
    known = {"name": catalogue.name, "fingerprint": catalogue.fingerprint, "features": files}
    known["skipped"] = [list(skip) for skip in catalogue.skipped]
    pairs = pa.list_(pa.list_(pa.string()))
    types = {name: pa.string() for name in TEXTS} | {
        name: pairs if row.hides == "entity" else pa.string() for name, row in MODALITIES.items()
    }
    lengths = {f"{name} tokens": np.diff(features[name].offsets) for name in features}
    schema = pa.schema([*types.items(), *((name, pa.int32()) for name in lengths)])
    schema = schema.with_metadata({"catalogue": json.dumps(known, ensure_ascii=False)})
    products, start = iter(catalogue.products), 0
    with (
        whole_file(folder / FILE) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        while some := list(islice(products, 16_384)):
            columns = {name: [getattr(product, name) for product in some] for name in TEXTS}
            for name in MODALITIES:
                columns[name] = [_written(product.contents.get(name)) for product in some]
            for name, counts in lengths.items():
                columns[name] = counts[start : start + len(some)]
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema))
            start += len(some)
    _table.cache_clear()
    return folder / FILE


def opened(folder: str | Path) -> tuple[Catalogue, dict[str, Ragged]]:
    """The catalogue and the features of a folder (:func:`keep`), memory-mapped. Raises
    ``ValueError``: no such file, one that is not whole, or a shard that is not."""
    path, features = Path(folder).absolute() / FILE, {}
    products = Columns(path)
    with reading(path, MEND):
        known = _known(products.table)
        for name, made in known["features"].items():
            counts = products.table[f"{name} tokens"].to_numpy()
            offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
            arrays = {key: _mapped(made[key], path.parent) for key in ARRAYS if key in made}
            features[name] = Ragged(offsets=offsets, settings=made["settings"], **arrays)
        skipped = tuple(Skip(*skip) for skip in known["skipped"])
    return Catalogue(known["name"], products, skipped), features


def some(features: Mapping[str, Ragged], rows: Rows) -> dict[str, Ragged]:
    """The features of some rows of a catalogue, in memory."""
    taken = {}
    for name, ragged in features.items():
        starts, lengths = ragged.offsets[rows], np.diff(ragged.offsets)[rows]
        offsets = np.cumsum([0, *lengths])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        arrays = {key: getattr(ragged, key) for key in ARRAYS}
        arrays = {key: x if x is None else x[places] for key, x in arrays.items()}
        taken[name] = Ragged(offsets=offsets, settings=ragged.settings, **arrays)
    return taken


def _described(array: Mapped, folder: Path) -> dict:
    files = [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in array.paths]
    made = {"files": files, "lengths": np.diff(array.starts).tolist()}
    return made | {"width": array.shape[1], "dtype": str(array.dtype)}


def _mapped(made: dict, folder: Path) -> Mapped:
    paths = [inside(folder, name) for name, _ in made["files"]]
    for path, (name, size) in zip(paths, made["files"], strict=True):
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"{name} is not there, or of another size")
    return Mapped(paths, made["lengths"], made["width"], made["dtype"])


def _written(content: Any) -> Any:
    """A content as Arrow has it: words as they are, a media file as JSON."""
    if not isinstance(content, MediaFile):
        return content
    if type(content).__name__ not in KINDS:
        raise ValueError(f"{content.name} is a {type(content).__name__}, which no file can tell of")
    values = [getattr(content, field.name) for field in fields(content)]
    values = [x.decode("latin-1") if isinstance(x, bytes) else x for x in values]
    return json.dumps([type(content).__name__, str(values[0]), *values[1:]], ensure_ascii=False)


def _content(name: str, written: Any) -> Any:
    if MODALITIES[name].kind == "words":
        return written if isinstance(written, str) else tuple(map(tuple, written))
    kind, path, *values = json.loads(written)
    given = zip(fields(KINDS[kind])[1:], values, strict=True)
    values = [x.encode("latin-1") if isinstance(f.default, bytes) else x for f, x in given]
    return KINDS[kind](Path(path), *values)


def _product(row: dict) -> Product:
    contents = {n: _content(n, row[n]) for n in MODALITIES if row.get(n) is not None}
    return Product(row["id"], contents, *(row.get(name) for name in TEXTS[1:]))
