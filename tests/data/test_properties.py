"""Of whatever lies in a table: what is read adds up, what is written comes back, and nothing but a
``DataError`` is raised. (More of each, at random: ``benchmarks/fuzz.py``.)"""

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_release import export, write_features

from m5lib.catalogue import Catalogue, DataError, Product
from m5lib.data import MediaFile, decoding, m5features, readers
from m5lib.data.decoding import MediaError
from m5lib.streams import Ragged

FEW = settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
#: Text with what tables use; no zero byte, no half characters: those are in the table of cases.
TEXT = st.text(st.sampled_from('ab 1,;|\t"\n\r\\手é#:\u2028\ufeff'), max_size=8)
CELLS = st.fixed_dictionaries({"id": TEXT, "title": TEXT, "size": TEXT})
IDS = st.text(st.sampled_from("ab1手-_ "), min_size=1, max_size=5).map(str.strip).filter(bool)
WORDS = st.text(st.sampled_from("ab 手\n\"'"), min_size=1, max_size=8).filter(str.strip)
ATTRIBUTES = st.lists(st.tuples(WORDS, WORDS), max_size=3).map(tuple)


def as_csv(rows, mark: str) -> str:
    out = io.StringIO(newline="")
    csv.DictWriter(out, ["id", "title", "size"], delimiter=mark).writeheader()
    csv.DictWriter(out, ["id", "title", "size"], delimiter=mark, quoting=1).writerows(rows)
    return out.getvalue()


WRITERS = {
    "t.csv": lambda rows, path: path.write_bytes(as_csv(rows, ",").encode()),
    "t2.csv": lambda rows, path: path.write_bytes(as_csv(rows, ";").encode()),
    "t.tsv": lambda rows, path: path.write_bytes(as_csv(rows, "\t").encode()),
    "t.jsonl": lambda rows, path: path.write_text("".join(json.dumps(r) + "\n" for r in rows)),
    "t.parquet": lambda rows, path: pd.DataFrame(rows, dtype="object").to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
@FEW
@given(rows=st.lists(CELLS, min_size=1, max_size=8))
def test_rows_of_a_table_are_products_or_are_listed(name, rows, tmp_path):
    """And a product has the cells of its row, but for spaces at their ends."""
    rows = [{"id": "zz", "title": "Pot", "size": ""}, *rows]  # one that can be used
    WRITERS[name](rows, tmp_path / name)
    catalogue = readers.read(tmp_path / name)
    whole = [
        s for s in catalogue.skipped if s.field in ("id", "row") and "begins w" not in s.reason
    ]
    assert len(catalogue) + len(whole) == len(rows)
    first = {}
    for row in rows:
        first.setdefault(row["id"].strip(), row)
    for product in catalogue.products:
        row = first[product.id]
        assert product.contents.get("text", "") == row["title"].strip()
        assert dict(product.contents.get("table", ())).get("size", "") == row["size"].strip()


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz", "parquet", "json", "txt"])
@FEW
@given(
    content=st.one_of(
        TEXT.map(str.encode),
        st.binary(max_size=60),
        st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")),
    ),
    headed=st.booleans(),
)
def test_a_table_of_anything_raises_nothing_else(ending, content, headed, tmp_path):
    path = tmp_path / f"t.{ending}"
    path.write_bytes(b"id,title\n" * headed + content)
    try:
        catalogue = readers.read(path)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert len(catalogue) + len(catalogue.skipped) > 0


@pytest.mark.parametrize(
    "read",
    [
        decoding.open_image,
        decoding.probe,
        decoding.sound,
        lambda file: decoding.frames(file, [0]),
        m5features.StoredRows(3, 9),
        m5features.StoredRegions(3),
    ],
)
@FEW
@given(
    start=st.sampled_from(
        [
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff",
            b"RIFF\x24\0\0\0WAVEfmt ",
            b"GIF89a",
            b"ID3\4",
            b"\0\0\0\x18ftypmp42",
            b"\x93NUMPY\1\0",
            b"OggS",
        ]
    ),
    rest=st.binary(max_size=200),
)
def test_a_file_of_anything_raises_nothing_else(read, start, rest, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(start + rest)
    try:
        read(MediaFile(path, size=path.stat().st_size))
    except MediaError as error:
        assert str(error) and "\n" not in str(error)


@FEW
@given(
    products=st.dictionaries(
        IDS, st.tuples(WORDS, ATTRIBUTES, WORDS, st.binary(max_size=9)), min_size=1, max_size=4
    )
)
def test_what_was_exported_comes_back(products, tmp_path_factory):
    """The official layout: products with their pictures, in their order; nothing is listed."""
    folder = tmp_path_factory.mktemp("export")
    made = []
    for n, (i, (title, table, label, data)) in enumerate(products.items()):
        (folder / f"{n}.bin").write_bytes(data)
        image = MediaFile(folder / f"{n}.bin", size=len(data))
        contents = {"image": image, "text": title, "table": table}
        made.append(Product(i, {k: v for k, v in contents.items() if v}, label))
    export(Catalogue("m5product", tuple(made)), folder / "out")
    found = readers.read(folder / "out")
    assert found.skipped == () and found.ids.tolist() == [p.id for p in made]
    for one, other in zip(made, found.products, strict=True):
        held = [(c.read() if isinstance(c, MediaFile) else c) for c in one.contents.values()]
        come = [(c.read() if isinstance(c, MediaFile) else c) for c in other.contents.values()]
        assert (held, one.label, list(one.contents)) == (come, other.label, list(other.contents))


@pytest.mark.parametrize("database", [True, False])
@settings(FEW, max_examples=10)
@given(
    lengths=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any), seed=st.integers(0, 9)
)
def test_features_that_were_written_come_back(database, lengths, seed, tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("features"), np.random.default_rng(seed)
    products = tuple(Product(f"p{n}", {"text": f"title {n}"}) for n in range(len(lengths)))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.normal(size=(offsets[-1], 3)).astype(np.float16)
    boxes = np.repeat([[0, 0, 0.5, 0.5, 0.25]], offsets[-1], 0).astype(np.float16)
    made = {
        "image": Ragged(values, offsets, boxes, None, {}),
        "video": Ragged(values, offsets, None, None, {}),
    }
    write_features(folder, Catalogue("f", products), made, database)
    reads = {"image": m5features.StoredRegions(3), "video": m5features.StoredRows(3, 9)}
    found, features = m5features.read_features(folder, Catalogue("f", products), readers=reads)
    assert list(found.ids) == [p.id for p in products]
    for name, ragged in features.items():
        assert np.array_equal(np.asarray(ragged.values), values), name
        assert np.array_equal(ragged.offsets, offsets)


@FEW
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["title", "pv", "label", "url", "1", ""]), inner, max_size=4
            )
        ),
    )
)
def test_an_annotation_of_anything_raises_nothing_else(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotation")
    (folder / "a_id_label.json").write_text(json.dumps(content))
    try:
        catalogue = readers.read(folder)
    except DataError as error:
        assert str(folder) in str(error)
    else:
        assert isinstance(content, dict) and len(catalogue) <= len(content)
