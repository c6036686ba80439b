"""Features of the official release: regions in TSV or LMDB, video and audio in ``.npy``. Nothing is
unpickled.

::

    <folder>/lmdb_features/*.lmdb   tensorpack's LMDBSerializer: msgpack of [features, boxes, n, height, width, id, caption]
    <folder>/tsv_features/*.tsv     id, width, height, n, boxes, features (base64 float32), caption; no header
    <folder>/video_feature/<id>.npy (t, 1024) float16, a row per second
    <folder>/audio_feature/<id>.npy (80, 751) float32, mel bands x time

A record is found once, as a :class:`~m5lib.catalogue.MediaFile` (a stretch of a file, or a key),
and
read by an extractor as media are: the same checks, the same list of what could not be read, the
same store.
"""  # noqa: E501

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from m5lib.catalogue import Catalogue, DataError, MediaFile, Product, Skip
from m5lib.data.decoding import MediaError
from m5lib.data.extractors import Features, locations
from m5lib.data.m5records import (
    LmdbRecord,
    array_of,
    lmdb_records,
    tsv_fields,
    tsv_records,
    unpack,
    write_lmdb,
    write_tsv,
)
from m5lib.data.media import Ragged, with_sound
from m5lib.data.media import extract as extract_in_memory
from m5lib.modalities import MODALITIES


@dataclass(frozen=True)
class StoredRegions:
    """Regions of a record, from LMDB or TSV: (n, ``width``) and 5-d locations in fractions of the
    picture (released loader)."""

    width: int = 2048
    version: ClassVar[int] = 1
    decodes: ClassVar[bool] = False

    def __call__(self, file: MediaFile) -> Features:
        """The regions of one record."""
        data = file.read()
        if isinstance(file, LmdbRecord):
            try:
                record, _ = unpack(memoryview(data))
                features, boxes = array_of(record[0], "features"), array_of(record[1], "boxes")
                record = [features, boxes, *record[2:]]
            except (ValueError, TypeError, IndexError, RecursionError) as error:
                raise (
                    error
                    if isinstance(error, MediaError)
                    else MediaError(f"not a record of seven ({error})")
                ) from None
        else:
            record = tsv_fields(data)
        features, boxes, count, height, width = record[:5]
        try:
            count, height, width = int(count), int(height), int(width)
        except (ValueError, TypeError):
            raise MediaError(
                f"num_boxes, height or width is no number: {count!r}, {height!r}, {width!r}"
            ) from None
        if (
            features.shape != (count, self.width)
            or boxes.shape != (count, 4)
            or min(height, width) < 1
        ):
            raise MediaError(
                f"features {features.shape} and boxes {boxes.shape} for num_boxes {count} of a "
                f"picture {width} x {height}; "
                f"expected ({count}, {self.width}) and ({count}, 4)"
            )
        return Features(features.astype(np.float32), locations(boxes, width, height))


@dataclass(frozen=True)
class StoredRows:
    """The first ``rows`` rows of an ``.npy`` (t, ``width``): clip features of a video, one per
    ``step`` seconds, or mel bands of a sound."""

    width: int
    rows: int
    step: float | None = field(default=None, compare=False)
    version: ClassVar[int] = 1
    decodes: ClassVar[bool] = False

    def __call__(self, file: MediaFile) -> Features:
        """The rows of one file."""
        try:
            values = np.load(io.BytesIO(file.read()), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise MediaError(f"not an .npy of numbers, or cut short ({error})") from None
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
            raise MediaError("not an .npy of numbers")
        if values.ndim != 2 or values.shape[1] != self.width:
            raise MediaError(f"an array of {values.shape}, expected (rows, {self.width})")
        return Features(values[: self.rows].astype(np.float32))


#: Readers of the released features.
OFFICIAL = {
    "image": StoredRegions(),
    "video": StoredRows(1024, 12, 1.0),
    "audio": StoredRows(751, 80),
}
#: Where they lie: files of many records, the first that has an id counts, and folders of a file per
#: product.
RECORDS = {"image": (("lmdb_features/*.lmdb", lmdb_records), ("tsv_features/*.tsv", tsv_records))}
ROWS = {"video": "video_feature", "audio": "audio_feature"}


def read_features(
    folder: str | Path,
    catalogue: Catalogue | None = None,
    store: str | Path | None = None,
    readers: Mapping[str, Any] = OFFICIAL,
    workers: int | None = None,
) -> tuple[Catalogue, dict[str, Ragged]]:
    """The extracted features of a release, for people who have nothing else, or instead of
    extracting.

    Args:
        folder: the data root. Where a product is in an LMDB and in a TSV, the LMDB is read.
        catalogue: from :func:`m5lib.data.m5product.read_m5product`; None: :func:`listed`.
        store: folder of a :mod:`m5lib.data.store` to put them into, for more than memory holds;
            None keeps them in memory.
        readers: modality -> reader, for features of other widths as ``{"image":
            StoredRegions(1024)}``; or an extractor, which reads that modality's media.

    Returns:
        as :func:`m5lib.data.media.extract`. A product has the feature modalities that it has
        features for; its picture, video and sound stay its contents where it has them too.

    Raises:
        DataError: there are no features, or an LMDB is broken.
    """
    skipped: list[Skip] = []
    sources, captions = _sources(Path(folder), readers, skipped)
    catalogue = _listed(Path(folder), sources, captions) if catalogue is None else catalogue
    decoded = {name for name in readers if name not in sources}
    if any(MODALITIES[name].inside for name in decoded):  # while the videos are still videos
        catalogue = with_sound(catalogue, workers)
    own = {product.id: product.contents for product in catalogue.products}
    sourced = [replace(p, contents=_with(p, sources, decoded)) for p in catalogue.products]
    skipped += [
        Skip(product.id, name, "no features of this id")
        for product in catalogue.products
        for name, records in sources.items()
        if name in product.contents and product.id not in records
    ]
    sourced = replace(
        catalogue,
        products=tuple(p for p in sourced if p.contents),
        skipped=(*catalogue.skipped, *skipped),
    )
    if store is None:
        clean, features = extract_in_memory(sourced, readers, workers)
    else:
        from m5lib.data.store import extract

        clean, features = extract(sourced, readers, store, workers)
    back = [
        replace(p, contents={n: own[p.id].get(n, c) for n, c in p.contents.items()})
        for p in clean.products
    ]
    return replace(clean, products=tuple(back)), features


def listed(folder: str | Path, readers: Mapping[str, Any] = OFFICIAL) -> Catalogue:
    """The products of a release of which only the features are there: ids of the features, titles
    from the captions of region records; no labels, no tables. Raises as :func:`read_features`."""
    return _listed(Path(folder), *_sources(Path(folder), readers, []))


def _listed(folder: Path, sources: Mapping[str, dict], captions: Mapping[str, str]) -> Catalogue:
    ids = dict.fromkeys(i for records in sources.values() for i in records)
    products = [
        Product(i, {"text": captions[i]} if captions.get(i, "").strip() else {}) for i in ids
    ]
    products = [replace(p, contents=_with(p, sources)) for p in products]
    return Catalogue(folder.name, tuple(products))


def _sources(
    folder: Path, readers: Mapping[str, Any], skipped: list[Skip]
) -> tuple[dict[str, dict[str, MediaFile]], dict[str, str]]:
    """Feature records by modality and id, and captions by id."""
    stored = [name for name, reader in readers.items() if not getattr(reader, "decodes", True)]
    sources: dict[str, dict[str, MediaFile]] = {name: {} for name in stored}
    captions: dict[str, str] = {}
    for name in stored:
        files = [
            (records, path)
            for pattern, records in RECORDS.get(name, ())
            for path in sorted(folder.glob(pattern))
        ]
        for records, path in files:
            for found in records(path, skipped):
                if sources[name].setdefault(found.id, found.file) is found.file:
                    captions[found.id] = found.caption
        if name in ROWS:
            paths = sorted((folder / ROWS[name]).glob("*.npy"))
            sources[name] |= {
                path.stem: MediaFile(path, size=path.stat().st_size) for path in paths
            }
    if not any(sources.values()):
        records = [pattern for patterns in RECORDS.values() for pattern, _ in patterns]
        places = ", ".join((*records, *(f"{place}/*.npy" for place in ROWS.values())))
        raise DataError(f"{folder}: no features; expected some of {places}")
    return sources, captions


def _with(product: Product, sources: Mapping[str, dict], decoded=()) -> dict[str, Any]:
    """A product's contents with its feature records instead of media, save those that are
    decoded."""
    kept = {
        name: content
        for name, content in product.contents.items()
        if MODALITIES[name].kind == "words" or name in decoded
    }
    kept |= {
        name: records[product.id] for name, records in sources.items() if product.id in records
    }
    return {name: kept[name] for name in MODALITIES if name in kept}


def write_features(
    folder: str | Path, catalogue: Catalogue, features: Mapping[str, Ragged], database: bool = True
) -> None:
    """Write features in the release's layout; :func:`read_features` gives them back, boxes to a
    thousandth of the picture.

    ``database`` chooses between LMDB and TSV for regions. Boxes are written for pictures of 1000 x
    1000 pixels: the release wants pixels, and a feature store does not know the pictures' sizes.
    """
    folder, records = Path(folder), []
    for name, ragged in features.items():
        for n, product in enumerate(catalogue.products):
            rows = slice(ragged.offsets[n], ragged.offsets[n + 1])
            if rows.start == rows.stop:
                continue
            if ragged.boxes is None:
                (folder / ROWS[name]).mkdir(parents=True, exist_ok=True)
                np.save(
                    folder / ROWS[name] / f"{product.id}.npy",
                    ragged.values[rows],
                    allow_pickle=False,
                )
            else:
                boxes = np.asarray(ragged.boxes[rows])[:, :4].astype(np.float32) * 1000
                values = np.asarray(ragged.values[rows]).astype(np.float32)
                records.append(
                    [
                        values,
                        boxes,
                        str(len(values)),
                        1000,
                        1000,
                        product.id,
                        product.contents.get("text", ""),
                    ]
                )
    if records and database:
        write_lmdb(folder / "lmdb_features" / "features.lmdb", records)
    elif records:
        write_tsv(folder / "tsv_features" / "features.tsv", records)
