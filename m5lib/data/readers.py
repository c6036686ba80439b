"""Readers: files on disk -> :class:`~m5lib.catalogue.Catalogue`.

* :func:`read_fashion` — the public "Fashion Product Images" layout (``styles.csv`` beside
  ``images/`` or ``images.tar``);
* :func:`read_table` — a table of your own (CSV or parquet) with media by path;
* :func:`read_m5product` — the official M5Product release: annotation, id lists and media;
* :func:`read` — looks at a path and picks one of them.

Nothing is decoded here: a media file that cannot be decoded is found, counted and listed by
:mod:`m5lib.data.store`.

The official layout (the released scripts' names; the files are theirs, the folder is your copy)::

    <folder>/product5m_v2/*id_label.json   one object keyed by item id: title, pv, label, url, video
    <folder>/product5m_v2/<split>_ids.json id lists, an array of ids or an object keyed by id
    <folder>/images/<id>.jpg  videos/<id>.mp4  audios/<id>.mp3
    <folder>/{tsv_features,lmdb_features,video_feature,audio_feature}/   see m5lib.data.m5features

Its text is mostly Chinese: tokenise with ``load_tokenizer("bert-base-chinese")`` or a path to it.
"""

import codecs
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m5lib.catalogue import GIVEN, Catalogue, DataError, Product, Skip
from m5lib.data import TABLES, MediaFile, by_stem, foreign, form_of, in_folder, mended, plainly
from m5lib.data.decoding import Row, rows
from m5lib.modalities import ordered

FASHION_COLUMNS = {"id": "id", "title": "productDisplayName", "label": "articleType"}
#: masterCategory and subCategory give the label away and stay out; ``year`` may exist.
FASHION_TABLE = ("gender", "baseColour", "season", "year", "usage")


def read(path: str | Path) -> Catalogue:
    """Read whatever lies there. Raises :class:`~m5lib.catalogue.DataError`: nothing readable."""
    if not isinstance(path, str | Path):
        raise DataError(f"{path!r:.60} is no path; give that of a table or a folder")
    with reachable(path := Path(path)):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.is_dir() and (path / "styles.csv").exists():
            return read_fashion(path)
        if annotated(path):
            return read_m5product(path)
        if path.is_file() and form_of(path):
            return read_table(path)
    raise DataError(
        f"{path}: expected a folder with styles.csv (and images/ or images.tar), a folder with "
        f"{ANNOTATIONS}/ (the official release), or a table ({', '.join(TABLES)}); save it as one"
    )


@contextmanager
def reachable(path: Path) -> Iterator[None]:
    """What the disk refuses, or the file lacks, is said in one line that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror or error})") from None
    except DataError as error:
        raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def annotated(path: Path) -> bool:
    """Whether the annotation of the official release lies there."""
    return (path / ANNOTATIONS).is_dir() or any(path.glob("*id_label.json"))


def _collect(path: Path, name: str, rows, build, skipped: list[Skip]) -> Catalogue:
    """Build products row by row; ids that are empty or seen before, and products with no content,
    are skipped and listed."""
    products: dict[str, Product] = {}
    for line, row in rows:
        product = build(row)
        if not plainly(product.id):
            skipped.append(Skip(f"line {line}", "id", "empty id"))
        elif product.id in products:
            reason = f"the id was seen before; the first product is kept (line {line})"
            skipped.append(Skip(product.id, "id", reason))
        elif not product.contents:
            skipped.append(Skip(product.id, "row", f"no modality at all (line {line})"))
        else:
            products[product.id] = product
    if not products and not skipped:
        raise DataError(f"{path}: no product below the header")
    return Catalogue(name, tuple(products.values()), tuple(skipped))


def _media_index(folder: Path, skipped: list[Skip]) -> dict[str, MediaFile]:
    """Image file of each id, from ``images/`` or, read in place, from ``images.tar``."""
    path = folder / "images.tar"
    if (folder / "images").is_dir():
        return in_folder(folder / "images", ".jpg")
    if not path.exists():
        mend = f"put the pictures into {folder}/images/<id>.jpg"
        raise DataError(f"{folder}: neither images/ nor images.tar is there; {mend}")
    found = []
    what = "not an uncompressed tar, or cut short"
    mend = "make it with `tar cf images.tar images`"
    with foreign(lambda why: DataError(f"{path}: {what} ({why}); {mend}")):
        with tarfile.open(path, "r:") as tar:
            for member in (member for member in tar if not member.isdir()):
                name = Path(mended(member.name))
                if member.isfile() and name.parent == Path("images"):
                    file = MediaFile(path, member.offset_data, member.size, str(name))
                    found.append((name.name, file))
                else:
                    reason = "not a plain file directly inside images/"
                    skipped.append(Skip(str(name), "images.tar", reason))
    return by_stem(found, ".jpg")


def read_fashion(folder: str | Path) -> Catalogue:
    """The public fashion layout: title = productDisplayName, label = articleType, table = gender,
    colour, season, usage (and year).

    Pictures are ``images/<id>.jpg`` in a folder or inside ``images.tar``, which is read in place.

    Raises ``DataError``: ``styles.csv`` is missing, empty, not UTF-8, lacks a column; no pictures
    at all.
    """
    folder = Path(folder)
    path = folder / "styles.csv"
    skipped: list[Skip] = []
    images = _media_index(folder, skipped)

    def build(row: Row) -> Product:
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

    known = (*FASHION_COLUMNS.values(), *FASHION_TABLE)
    found = rows(path, known, skipped, need=len(FASHION_COLUMNS))
    return _collect(path, "fashion", found, build, skipped)


def read_table(path: str | Path, media: str | Path | None = None) -> Catalogue:
    """A table of your own products: one product per row.

    A CSV (``,`` or what the header shows: ``;``, tab, ``|``), TSV or JSON lines, also packed with
    gzip, or a parquet. Columns, in any case: ``id``; ``title`` and ``label`` (optional); ``image``,
    ``video``, ``audio`` (optional): a path, an empty cell, or, in a parquet, the file's bytes.
    Paths start at ``media``, by default the folder of the table, and do not lead out of it. Every
    other column is an attribute of the product; an empty cell is an attribute that it does not
    have.

    Every row is a product, or is listed with its line.

    Raises ``DataError``: the file is missing, empty, not UTF-8, damaged, or has no column ``id``.
    """
    path = Path(path)
    media = Path(media) if media is not None else path.parent
    skipped: list[Skip] = []
    known = ("id", "title", "label", *MEDIA)

    def build(row: Row) -> Product:
        row.setdefault("id", "")  # a line of JSON has fields of its own
        contents: dict = {}
        for column in MEDIA:
            if not (cell := row.get(column)):
                continue
            try:
                held = isinstance(cell, MediaFile)
                contents[column] = cell if held else MediaFile.inside(media, cell)
            except ValueError as error:
                skipped.append(Skip(row["id"], column, str(error)))
        if row.get("title"):
            contents["text"] = row["title"]
        elif "title" in row:
            skipped.append(Skip(row["id"], "text", "empty title"))
        if table := tuple((name, cell) for name, cell in row.items() if name not in known and cell):
            contents["table"] = table
        return Product(row["id"], contents, row.get("label") or None)

    name = path.name.split(".")[0] if path.suffix.lower() == ".gz" else path.stem
    with reachable(path):
        return _collect(path, name, rows(path, known, skipped, list(MEDIA)), build, skipped)


# --- the official release
ANNOTATIONS = "product5m_v2"
#: Folder and ending of each kind of media, and the annotation's field that says whether there
#: should be any (sound: none).
MEDIA = {
    "image": ("images", ".jpg", "url"),
    "video": ("videos", ".mp4", "video"),
    "audio": ("audios", ".mp3", None),
}
PAIR, INSIDE = "#;#", "#:#"


def parse_pv(text: str) -> tuple[tuple[str, str], ...]:
    """``"brand#:#Acme#;#colour#:#red"`` -> pairs, in order, repeated properties kept. A part
    without the inner separator, or with an empty side, is left out; a part is split at its *first*
    separator. (The released loader splits at every one and fails on a part that has none.)"""
    pairs = (part.partition(INSIDE) for part in text.split(PAIR))
    return tuple((name, value) for name, _, value in pairs if name.strip() and value.strip())


def format_pv(table: Iterable[tuple[str, str]]) -> str:
    """The inverse of :func:`parse_pv`. Raises ``ValueError`` for a table that the format, which has
    no escaping, cannot hold."""
    table = tuple(map(tuple, table))
    text = PAIR.join(map(INSIDE.join, table))
    if parse_pv(text) != table:
        what = f"empty sides and the separators {PAIR} and {INSIDE} cannot be written"
        raise ValueError(f"{what}; change them in {table}")
    return text


def entries(path: str | Path) -> Iterator[tuple[str | int, Any]]:
    """Entries of a JSON object or array, streamed: (key, value), or (position, value).

    The whole annotation is 5.8 GB in one object; no more than a few MB of it are in memory.

    Raises ``DataError``: no such file, not UTF-8, not JSON, cut short.
    """
    import ijson

    path, last = Path(path), None
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with open(path, "rb") as file:
        head = file.read(4096)
        start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        file.seek(start)
        first = head[start:].lstrip()[:1]
        if first not in (b"{", b"["):
            raise DataError(f"{path}: expected one JSON object or array, begins with {first!r}")
        array, events = first == b"[", ijson.parse(_shallow(ijson.basic_parse(file)))
        found = enumerate(ijson.items(events, "item")) if array else ijson.kvitems(events, "")

        def failed(why: str) -> DataError:
            where = "" if last is None else f", after {last!r}"
            mend = "is it whole, JSON, and UTF-8?"
            return DataError(f"{path}: cannot be read{where}; {mend} ({why})")

        with foreign(failed):
            for last, value in found:
                yield last, value


def _shallow(events: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Events of JSON; ijson's memory would grow with the square of the depth."""
    depth = 0
    for event in events:
        if (depth := depth + event[0].startswith("start") - event[0].startswith("end")) > 100:
            raise ValueError("brackets more than 100 deep")
        yield event


def read_ids(path: str | Path) -> list[str]:
    """An id list: an array of ids, or an object keyed by id; ``#…`` after an id is cut off."""
    found = [key if isinstance(key, str) else value for key, value in entries(path)]
    if bad := [i for i in found if isinstance(i, bool) or not isinstance(i, str | int)]:
        expected = "an array of ids or an object keyed by id"
        raise DataError(f"{path}: {str(bad[0])[:80]!r} is no id; expected {expected}")
    return [mended(str(i)).split("#")[0] for i in found]


def annotation_of(folder: Path) -> Path:
    """The annotation file of a folder. Raises :class:`~m5lib.catalogue.DataError` where there is
    none, or more than one."""
    places = (folder / ANNOTATIONS, folder)
    names = ("*id_label.json", "id_info_dict.json")
    files = sorted({path for place in places for name in names for path in place.glob(name)})
    if len(files) != 1:
        several = f"several annotations ({', '.join(p.name for p in files)})"
        what = several if files else "no annotation (*id_label.json)"
        mend = "say which with annotation=<path>"
        raise DataError(f"{folder}: {what} in it or in {ANNOTATIONS}/; {mend}")
    return files[0]


def _splits(
    folder: Path, splits: Mapping[str, str | Path] | None, skipped: list[Skip]
) -> dict[str, str]:
    if splits is None:
        places = {name: folder / ANNOTATIONS / f"{name}_ids.json" for name in GIVEN}
        splits = {name: path for name, path in places.items() if path.is_file()}
    if unknown := set(splits) - set(GIVEN):
        raise ValueError(f"unknown split {sorted(unknown)}: known are {list(GIVEN)}")
    found: dict[str, str] = {}
    for split, path in splits.items():
        for i in read_ids(path):
            if found.setdefault(i, split) != split:
                skipped.append(Skip(i, "split", f"in {Path(path).name}, but taken as {found[i]}"))
    return found


def read_m5product(
    folder: str | Path,
    annotation: str | Path | None = None,
    splits: Mapping[str, str | Path] | None = None,
    only: str | Path | Iterable[str] | None = None,
) -> Catalogue:
    """The official release, or a part of it.

    Args:
        folder: the data root; media are found by id, whatever their ending. A folder of them that
            is not there is no fault: the modality is absent, or comes from
            :func:`m5lib.data.m5features.read_features`.
        annotation: a file as ``subset_v2_id_label.json``; needed where the folder has several.
        splits: split (:data:`m5lib.catalogue.GIVEN`) -> id list; by default
            ``product5m_v2/<split>_ids.json``. Products in no list are drawn by hash of their id.
        only: ids, or an id list, to read no others: 6.3 million products take tens of GB.

    Raises ``DataError``: no annotation, or one that is not JSON; a list that is none. What is wrong
    with a single record is listed.
    """
    folder, skipped = Path(folder), []
    path = Path(annotation) if annotation is not None else annotation_of(folder)
    split = _splits(folder, splits, skipped)
    wanted = None if only is None else set(read_ids(only) if isinstance(only, str | Path) else only)
    places = {name: folder / place for name, (place, _, _) in MEDIA.items()}
    media = {
        name: in_folder(place, MEDIA[name][1]) for name, place in places.items() if place.is_dir()
    }
    products: dict[str, Product] = {}
    for key, record in entries(path):
        if not isinstance(key, str):
            example = "product1m_product5m_id_label.json"
            raise DataError(f"{path}: an array; expected one object keyed by item id, as {example}")
        if wanted is not None and key not in wanted:
            continue
        key = mended(key)
        if not isinstance(record, dict) or not key:
            skipped.append(Skip(key, "record", "not an object of fields" if key else "empty id"))
        elif key in products:
            skipped.append(Skip(key, "id", "the id was seen before; the first product is kept"))
        elif not (product := _product(key, record, media, split.get(key), skipped)).contents:
            skipped.append(Skip(key, "record", "no modality at all"))
        else:
            products[key] = product
    skipped += [
        Skip(i, "split", f"listed as {name}, but not in {path.name}")
        for i, name in split.items()
        if i not in products and (wanted is None or i in wanted)
    ]
    return Catalogue("m5product", tuple(products.values()), tuple(skipped))


def _product(
    key: str, record: dict, media: Mapping[str, dict], split: str | None, skipped: list[Skip]
) -> Product:
    def text(field: str, modality: str) -> str:
        if isinstance(record.get(field), str):
            if (words := mended(record[field])) != record[field]:
                skipped.append(Skip(key, modality, f"half a character in {field!r} is left out"))
            return words
        reason = f"{field!r} is no text" if field in record else f"no field {field!r}"
        skipped.append(Skip(key, modality, reason))
        return ""

    contents: dict[str, Any] = {}
    title, pv = text("title", "text"), text("pv", "table")
    for name, files in media.items():
        place, _, field = MEDIA[name]
        if key in files:
            contents[name] = files[key]
        elif record.get(field):
            skipped.append(Skip(key, name, f"no file of this id in {place}/"))
    if title.strip():
        contents["text"] = title
    table = tuple((sys.intern(name), value) for name, value in parse_pv(pv))
    if table:
        contents["table"] = table
    # a single character is an empty table to the loaders
    if len(pv) > 1 and len(table) < pv.rstrip("#;").count(PAIR) + 1:
        skipped.append(Skip(key, "pv", "parts without a property or a value"))
    contents = {name: contents[name] for name in ordered(contents)}
    return Product(key, contents, text("label", "label") or None, split)
