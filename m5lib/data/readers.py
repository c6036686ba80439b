"""Readers: files on disk -> :class:`~m5lib.catalogue.Catalogue`.

* :func:`read_fashion` — the public "Fashion Product Images" layout (``styles.csv`` beside
  ``images/`` or ``images.tar``);
* :func:`read_table` — a table of your own (CSV or parquet) with media by path;
* :func:`m5lib.data.m5product.read_m5product` — the official M5Product release;
* :func:`read` — looks at a path and picks one of them.

Nothing is decoded here: a media file that cannot be decoded is found, counted and listed by
:mod:`m5lib.data.store`.
"""

import csv
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from m5lib.catalogue import Catalogue, DataError, Product, Skip
from m5lib.data import MediaFile, by_stem, m5product

FASHION_COLUMNS = {"id": "id", "title": "productDisplayName", "label": "articleType"}
#: masterCategory and subCategory give the label away and stay out; ``year`` may exist.
FASHION_TABLE = ("gender", "baseColour", "season", "year", "usage")
MEDIA_COLUMNS = ("image", "video", "audio")


def read(path: str | Path) -> Catalogue:
    """Read whatever lies at the path: a folder with ``styles.csv``, or a CSV or parquet file of
    your own.

    Raises:
        DataError: nothing readable lies there.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir() and (path / "styles.csv").exists():
        return read_fashion(path)
    if annotated(path):
        return m5product.read_m5product(path)
    if path.is_file() and path.suffix in (".csv", ".parquet"):
        return read_table(path)
    raise DataError(
        f"{path}: expected a folder with styles.csv (and images/ or images.tar), a folder with "
        f"{m5product.ANNOTATIONS}/ (the official release), or a .csv or .parquet file"
    )


def annotated(path: Path) -> bool:
    """Whether the annotation of the official release lies there."""
    return (path / m5product.ANNOTATIONS).is_dir() or any(path.glob("*id_label.json"))


def _rows(path: Path, skipped: list[Skip]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row; rows of a wrong length are skipped and listed. Cells are
    stripped text."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".parquet":
        import pandas as pd

        frame = pd.read_parquet(path)
        for line, row in enumerate(frame.itertuples(index=False, name=None), start=1):
            cells = ("" if v is None or v != v else str(v).strip() for v in row)
            yield line, dict(zip(map(str, frame.columns), cells, strict=True))
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mend = "save the file as UTF-8 and read it again"
        raise DataError(f"{path}: byte {error.start} is not UTF-8; {mend}") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty; expected a header and one product per line")
    csv.field_size_limit(sys.maxsize)  # a cell may be a whole page of text
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=None)
    if doubled := {name for name in reader.fieldnames if reader.fieldnames.count(name) > 1}:
        raise DataError(f"{path}: column {sorted(doubled)} appears twice in the header; rename one")
    for row in reader:
        if "" in row or None in row.values():
            found = sum(v is not None for v in row.values()) + len(row.get("", [])) - ("" in row)
            reason = f"{found} cells where the header has {len(reader.fieldnames)}"
            skipped.append(Skip(f"line {reader.line_num}", "row", reason))
            continue
        yield reader.line_num, {name: cell.strip() for name, cell in row.items()}


def _require(path: Path, columns: dict[str, str], found: dict[str, str]) -> None:
    if missing := [name for name in columns.values() if name not in found]:
        raise DataError(f"{path}: column {missing} is missing; the file has {sorted(found)}")


def _collect(path: Path, name: str, rows, build, skipped: list[Skip]) -> Catalogue:
    """Build products row by row; ids that are empty or seen before, and products with no content,
    are skipped and listed."""
    products: dict[str, Product] = {}
    for line, row in rows:
        product = build(row)
        if not product.id:
            skipped.append(Skip(f"line {line}", "id", "empty id"))
        elif product.id in products:
            reason = "the id was seen before; the first product is kept"
            skipped.append(Skip(product.id, "id", reason))
        elif not product.contents:
            skipped.append(Skip(product.id, "row", "no modality at all"))
        else:
            products[product.id] = product
    if not products and not skipped:
        raise DataError(f"{path}: no product below the header")
    return Catalogue(name, tuple(products.values()), tuple(skipped))


def _media_index(folder: Path, skipped: list[Skip]) -> dict[str, MediaFile]:
    """Image file of each id, from ``images/`` or, read in place, from ``images.tar``."""
    path = folder / "images.tar"
    if (folder / "images").is_dir():
        return by_stem(folder / "images")
    if not path.exists():
        mend = f"put the pictures into {folder}/images/<id>.jpg"
        raise DataError(f"{folder}: neither images/ nor images.tar is there; {mend}")
    index = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in (member for member in tar if not member.isdir()):
                name, place = Path(member.name), (member.offset_data, member.size, member.name)
                if member.isfile() and name.parent == Path("images"):
                    index[name.stem] = MediaFile(path, *place)
                else:
                    reason = "not a plain file directly inside images/"
                    skipped.append(Skip(member.name, "images.tar", reason))
    except tarfile.ReadError as error:
        what = f"not an uncompressed tar, or cut short ({error})"
        raise DataError(f"{path}: {what}; make it with `tar cf images.tar images`") from None
    return index


def read_fashion(folder: str | Path) -> Catalogue:
    """The public fashion layout: title = productDisplayName, label = articleType, table = gender,
    colour, season, usage (and year).

    Pictures are ``images/<id>.jpg`` in a folder or inside ``images.tar``, which is read in place.

    Raises:
        DataError: ``styles.csv`` is missing, empty, not UTF-8 or lacks a column, or there are no
            pictures at all.
    """
    folder = Path(folder)
    path = folder / "styles.csv"
    skipped: list[Skip] = []
    images = _media_index(folder, skipped)

    def build(row: dict[str, str]) -> Product:
        _require(path, FASHION_COLUMNS, row)
        product = row[FASHION_COLUMNS["id"]]
        contents = {}
        if product in images:
            contents["image"] = images[product]
        else:
            skipped.append(Skip(product, "image", "no picture of this id"))
        if title := row[FASHION_COLUMNS["title"]]:
            contents["text"] = title
        else:
            skipped.append(Skip(product, "text", "empty title"))
        if table := tuple((name, row[name]) for name in FASHION_TABLE if row.get(name)):
            contents["table"] = table
        return Product(product, contents, row[FASHION_COLUMNS["label"]] or None)

    return _collect(path, "fashion", _rows(path, skipped), build, skipped)


def read_table(path: str | Path, media: str | Path | None = None) -> Catalogue:
    """A table of your own products, CSV or parquet: one product per row.

    Columns: ``id``; ``title`` and ``label`` (optional); ``image``, ``video``, ``audio`` (optional):
    a path, or an empty cell. Paths start at ``media``, by default the folder of the table, and do
    not lead out of it. Every other column is an attribute of the product; an empty cell is an
    attribute that it does not have.

    Raises:
        DataError: the file is missing, empty, not UTF-8, or has no column ``id``.
    """
    path = Path(path)
    media = Path(media) if media is not None else path.parent
    skipped: list[Skip] = []

    def build(row: dict[str, str]) -> Product:
        _require(path, {"id": "id"}, row)
        contents: dict = {}
        for column in MEDIA_COLUMNS:
            if not row.get(column):
                continue
            try:
                contents[column] = MediaFile.inside(media, row[column])
            except ValueError as error:
                skipped.append(Skip(row["id"], column, str(error)))
        if row.get("title"):
            contents["text"] = row["title"]
        elif "title" in row:
            skipped.append(Skip(row["id"], "text", "empty title"))
        known = {"id", "title", "label", *MEDIA_COLUMNS}
        if table := tuple((name, cell) for name, cell in row.items() if name not in known and cell):
            contents["table"] = table
        return Product(row["id"], contents, row.get("label") or None)

    return _collect(path, path.stem, _rows(path, skipped), build, skipped)
