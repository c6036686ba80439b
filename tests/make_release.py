"""Writing the official release's formats, for tests: annotation and media (:func:`export`), region
records in LMDB and TSV, features (:func:`write_features`). The library only reads them."""

import base64
import csv
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m5lib.catalogue import Catalogue, DataError
from m5lib.data import inside
from m5lib.data.m5features import ROWS
from m5lib.data.readers import ANNOTATIONS, MEDIA, format_pv
from m5lib.streams import Ragged


def export(catalogue: Catalogue, folder: str | Path) -> Path:
    """Write a catalogue in the official layout; :func:`read_m5product` of it gives the same
    products.

    Media are copied byte by byte under the official endings, whatever they hold (they are decoded
    by content). ``url`` and ``video`` hold the copies' paths.

    Returns:
        the annotation file.

    Raises:
        DataError: an id that cannot be part of a file name, or a table that the ``pv`` string
            cannot hold.
    """
    folder = Path(folder)
    for place in (ANNOTATIONS, *(place for place, _, _ in MEDIA.values())):
        (folder / place).mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {}
    path = folder / ANNOTATIONS / "id_label.json"
    with open(path, "w", encoding="utf-8") as file:
        for number, product in enumerate(catalogue.products):
            if (
                Path(product.id).name != product.id
                or product.id.startswith(".")
                or re.search(r"[#\\\0,]", product.id)
            ):
                raise DataError(
                    f"{catalogue.name}: id {product.id!r} cannot be part of an official file name; "
                    "rename it"
                )
            try:
                pv = format_pv(product.contents.get("table", ()))
            except ValueError as error:
                raise DataError(
                    f"{catalogue.name}: product {product.id!r}, table: {error}"
                ) from None
            record = {
                "title": product.contents.get("text", ""),
                "pv": pv,
                "label": product.label or "",
            }
            for name, (place, ending, field) in MEDIA.items():
                copy = f"{place}/{product.id}{ending}"
                if name in product.contents:
                    (folder / copy).write_bytes(product.contents[name].read())
                if field:
                    record[field] = copy if name in product.contents else ""
            file.write(
                (",\n" if number else "{\n")
                + f"{json.dumps(product.id)}: {json.dumps(record, ensure_ascii=False)}"
            )
            if product.split is not None:
                lists.setdefault(product.split, []).append(product.id)
        file.write("\n}\n")
    lists = {f"{split}_ids.json": ids for split, ids in lists.items()}
    lists["label_list.json"] = sorted({label for label in catalogue.labels if label is not None})
    for name, content in lists.items():
        (folder / ANNOTATIONS / name).write_text(
            json.dumps(content, ensure_ascii=False), encoding="utf-8"
        )
    return path


def pack(value: Any) -> bytes:
    """msgpack of a record: lists, texts, ints, bytes, and arrays as msgpack-numpy writes them. The
    inverse of :func:`unpack`."""
    if isinstance(value, np.ndarray):
        fields = {
            b"nd": True,
            b"type": value.dtype.str,
            b"kind": b"",
            b"shape": list(value.shape),
            b"data": value.tobytes(),
        }
        return b"\x85" + b"".join(pack(key) + pack(field) for key, field in fields.items())
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value)
    if isinstance(value, list):
        return struct.pack(">BI", 0xDD, len(value)) + b"".join(pack(item) for item in value)
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">BI", 0xDB if isinstance(value, str) else 0xC6, len(data)) + data


def write_lmdb(path: Path, records: list[list]) -> None:
    """Write region records (features, boxes, n, height, width, id, caption) as tensorpack does,
    into a single file."""
    import lmdb

    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [f"{n:08}".encode() for n in range(len(records))]
    values = [
        struct.pack("B", 0x90 + len(record)) + b"".join(pack(field) for field in record)
        for record in records
    ]
    size = 2 * sum(len(value) + 65_536 for value in values) + (1 << 20)
    with (
        lmdb.open(str(path), subdir=False, map_size=size, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in zip(keys, values, strict=True):
            transaction.put(key, value)
        transaction.put(b"__keys__", pack(keys))


def write_tsv(path: Path, records: list[list]) -> None:
    """Write region records as the released extraction script does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        for values, boxes, count, height, width, name, caption in records:
            text = [base64.b64encode(x.astype("<f4").tobytes()).decode() for x in (boxes, values)]
            writer.writerow([name, width, height, count, *text, caption])


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
                    inside(folder / ROWS[name], f"{product.id}.npy"),
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
