"""The official M5Product release on disk: annotation, id lists and media.

Layout (the released scripts' names; the files are theirs, the folder is your copy)::

    <folder>/product5m_v2/*id_label.json   one object keyed by item id: title, pv, label, url, video
    <folder>/product5m_v2/<split>_ids.json id lists, an array of ids or an object keyed by id
    <folder>/images/<id>.jpg  videos/<id>.mp4  audios/<id>.mp3
    <folder>/{tsv_features,lmdb_features,video_feature,audio_feature}/   see m5lib.data.m5features

Text is UTF-8 and mostly Chinese: tokenise with ``load_tokenizer("bert-base-chinese")`` or a path to
it.
"""

import codecs
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from m5lib.catalogue import GIVEN, Catalogue, DataError, Product, Skip
from m5lib.data import by_stem
from m5lib.modalities import ordered

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
    """``"brand#:#Acme#;#colour#:#red"`` -> pairs, in order, repeated properties kept.

    A part without the inner separator, or with an empty side, is left out; a part is split at its
    *first* separator. (The released loader splits at every one and fails on a part that has none.)
    """
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
    """Entries of a JSON file that is one object or one array, streamed: (key, value), or (position,
    value).

    The whole annotation is 5.8 GB in one object; no more than a few MB of it are in memory.

    Raises:
        DataError: no such file, not UTF-8, not JSON, cut short.
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
        array = first == b"["
        found = enumerate(ijson.items(file, "item")) if array else ijson.kvitems(file, "")
        try:
            for last, value in found:
                yield last, value
        except ijson.JSONError as error:
            why = " ".join(str(error).replace("\\n", " ").split())
            where = "" if last is None else f", after {last!r}"
            mend = "is it whole, JSON, and UTF-8?"
            raise DataError(f"{path}: cannot be read{where}; {mend} ({why})") from None


def read_ids(path: str | Path) -> list[str]:
    """An id list: an array of ids, or an object keyed by id. Some lists carry ``#…`` after an id,
    which is cut off."""
    found = [key if isinstance(key, str) else value for key, value in entries(path)]
    if bad := [i for i in found if isinstance(i, bool) or not isinstance(i, str | int)]:
        expected = "an array of ids or an object keyed by id"
        raise DataError(f"{path}: {str(bad[0])[:80]!r} is no id; expected {expected}")
    return [str(i).split("#")[0] for i in found]


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
        folder: the data root; media are found by id in ``images/``, ``videos/`` and ``audios/``,
            whatever their ending. A folder that is not there is no fault: that modality is absent,
            or comes from :func:`m5lib.data.m5features.read_features`.
        annotation: a file as ``subset_v2_id_label.json``; needed where the folder has several.
        splits: split (:data:`m5lib.catalogue.GIVEN`) -> id list; by default
            ``product5m_v2/<split>_ids.json`` where it exists. Products in no list are drawn by hash
            of their id.
        only: ids, or an id list, to read no others: 6.3 million products take tens of GB.

    Raises:
        DataError: no annotation, or one that is not JSON; a list that is none. What is wrong with a
            single record is listed.
    """
    folder, skipped = Path(folder), []
    path = Path(annotation) if annotation is not None else annotation_of(folder)
    split = _splits(folder, splits, skipped)
    wanted = None if only is None else set(read_ids(only) if isinstance(only, str | Path) else only)
    places = {name: folder / place for name, (place, _, _) in MEDIA.items()}
    media = {name: by_stem(place) for name, place in places.items() if place.is_dir()}
    products: dict[str, Product] = {}
    for key, record in entries(path):
        if not isinstance(key, str):
            example = "product1m_product5m_id_label.json"
            raise DataError(f"{path}: an array; expected one object keyed by item id, as {example}")
        if wanted is not None and key not in wanted:
            continue
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
            return record[field]
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
