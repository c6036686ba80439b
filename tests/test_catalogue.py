import io
import tarfile

import numpy as np
import pandas as pd
import pytest
from conftest import COLUMNS, SHARED, draw

from m5lib.catalogue import Catalogue, DataError, Product, Skip, split_of
from m5lib.data import readers, store
from m5lib.evaluation.evaluate import queries


def write(folder, rows, header=COLUMNS, pictures=()):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [",".join(header)] + [",".join(row) for row in rows]
    (folder / "styles.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "images").mkdir(exist_ok=True)
    for name in pictures:
        draw("rectangle", (9, 9, 9), np.random.default_rng(0)).save(
            folder / "images" / f"{name}.jpg"
        )
    return folder


def row(i, title="A red shirt", label="Shirt"):
    return [str(i), "Men", "Apparel", "Top", label, "Red", "Summer", "Casual", title]


def test_fashion_layout(folder):
    catalogue = readers.read(folder)
    product = catalogue.products[0]
    assert len(catalogue) == 240 and catalogue.modalities == ("image", "text", "table")
    assert [name for name, _ in product.contents["table"]] == [
        "gender",
        "baseColour",
        "season",
        "usage",
    ]
    assert "All" not in str(
        product.contents["table"]
    )  # masterCategory and subCategory give the label away


def test_splits_depend_on_the_id_only(catalogue):
    again = Catalogue("other", tuple(reversed(catalogue.products)))
    for name in ("train", "validation", "gallery", "query", "classifier"):
        assert set(catalogue.ids[catalogue.split(name)]) == set(again.ids[again.split(name)])
    parts = [set(catalogue.split(n)) for n in ("train", "validation", "gallery", "query")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(catalogue)
    assert set(catalogue.split("classifier")) < parts[0]
    assert (
        split_of(Product("10008", {})) == split_of(Product("10008", {"text": "x"}, "y")) == "train"
    )
    with pytest.raises(ValueError, match="known are"):
        catalogue.split("test")


def test_shares_of_the_splits():
    drawn = [split_of(Product(str(n), {})) for n in range(20_000)]
    for name, share in {"train": 0.5, "validation": 0.08, "gallery": 0.34, "query": 0.08}.items():
        assert abs(drawn.count(name) / 20_000 - share) < 0.012


def test_a_class_of_one_product_is_not_queried_and_counted():
    def product(i, label, split):
        return Product(str(i), {"text": "x"}, label, split)

    catalogue = Catalogue(
        "c",
        (
            product(1, "a", "query"),
            product(2, "a", "gallery"),
            product(3, "once", "query"),
            product(4, None, "query"),
        ),
    )
    rows, excluded = queries(catalogue)
    assert list(rows) == [0] and excluded == 2


def test_fingerprint_follows_content_not_place(folder, tmp_path):
    import shutil

    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    first = readers.read(folder).fingerprint
    assert readers.read(moved).fingerprint == first
    text = (moved / "styles.csv").read_text().replace("Acme", "Apex", 1)
    (moved / "styles.csv").write_text(text)
    assert readers.read(moved).fingerprint != first


def test_tar_is_read_in_place_and_strays_are_listed(tmp_path):
    folder = write(tmp_path / "shop", [row(1), row(2)], pictures=["1", "2"])
    with tarfile.open(folder / "images.tar", "w") as tar:
        for name in ("1", "2"):
            tar.add(folder / "images" / f"{name}.jpg", f"images/{name}.jpg")
        for stray in ("../escape.jpg", "images/deep/3.jpg", "loose.jpg"):
            tar.addfile(tarfile.TarInfo(stray), io.BytesIO())
    original = (folder / "images" / "2.jpg").read_bytes()
    for file in (folder / "images").iterdir():
        file.unlink()
    (folder / "images").rmdir()
    catalogue = readers.read(folder)
    assert catalogue.products[1].contents["image"].read() == original
    assert {skip.where for skip in catalogue.skipped} == {
        "../escape.jpg",
        "images/deep/3.jpg",
        "loose.jpg",
    }
    assert not (tmp_path / "escape.jpg").exists()


def test_what_cannot_be_used_is_counted_and_listed(tmp_path):
    rows = [
        row(1),
        row(2, title=""),
        row(1),
        row(3),
        [*row(4), "one cell too many"],
        row(5)[:4],
        row(""),
    ]
    catalogue = readers.read(write(tmp_path, rows, pictures=["1", "2"]))
    assert list(catalogue.ids) == ["1", "2", "3"]
    assert (
        set(catalogue.products[1].contents) == {"image", "table"}
        and "image" not in catalogue.products[2].contents
    )
    said = {(s.where, s.field) for s in catalogue.skipped}
    assert {
        ("2", "text"),
        ("1", "id"),
        ("3", "image"),
        ("line 6", "row"),
        ("line 7", "row"),
        ("line 8", "id"),
    } <= said
    assert (
        "10 cells where the header has 9" in catalogue.report()
        and "empty title" in catalogue.report()
    )


def test_broken_pictures_are_listed_and_never_zeros(tmp_path):
    folder = write(tmp_path, [row(i) for i in range(1, 5)], pictures=["1", "2", "3", "4"])
    whole = (folder / "images" / "2.jpg").read_bytes()
    (folder / "images" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "images" / "3.jpg").write_bytes(b"")
    (folder / "images" / "4.jpg").write_bytes(b"this is no picture")
    catalogue, features = store.extract(readers.read(folder))
    assert {s.where for s in catalogue.skipped if s.field == "image"} == {"2", "3", "4"}
    assert list(catalogue.presence["image"]) == [True, False, False, False]
    assert list(np.diff(features["image"].offsets)) == [14, 0, 0, 0]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "styles.csv").write_bytes(b""), "styles.csv: the file is empty"),
        (
            lambda f: (f / "styles.csv").write_bytes("id,title\n1,caf\u00e9".encode("latin-1")),
            "not UTF-8; save the file as UTF-8",
        ),
        (
            lambda f: (f / "styles.csv").write_text("id,articleType\n1,Shirt\n"),
            r"column \['productDisplayName'\] is missing",
        ),
        (
            lambda f: (f / "styles.csv").write_text(",".join(COLUMNS) + "\n"),
            "no product below the header",
        ),
        (
            lambda f: (f / "styles.csv").write_text(",".join([*COLUMNS, "id"]) + "\n"),
            "appears twice",
        ),
        (lambda f: (f / "images").rename(f / "pictures"), "put the pictures into"),
        (
            lambda f: (
                (f / "images").rename(f / "gone"),
                (f / "images.tar").write_bytes(b"no tar"),
            ),
            "not an uncompressed tar",
        ),
        (lambda f: (f / "styles.csv").unlink(), "expected a folder with styles.csv"),
    ],
)
def test_one_clear_error(tmp_path, spoil, says):
    folder = write(tmp_path / "shop", [row(1)], pictures=["1"])
    spoil(folder)
    with pytest.raises(DataError, match=says) as raised:
        readers.read(folder)
    assert "shop" in str(raised.value)


def test_own_table_csv_and_parquet(tmp_path):
    draw("line", (1, 2, 3), np.random.default_rng(0)).save(tmp_path / "a.jpg")
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "title": ["Tea", "", "Cup"],
            "image": ["a.jpg", "../a.jpg", "gone.jpg"],
            "weight": ["1 kg", "2 kg", ""],
            "story": ["word " * 10_000, "", ""],
        }
    )
    frame.to_csv(tmp_path / "mine.csv", index=False)
    frame.to_parquet(tmp_path / "mine.parquet")
    one, two = readers.read(tmp_path / "mine.csv"), readers.read(tmp_path / "mine.parquet")
    assert one.products == two.products and one.fingerprint == two.fingerprint
    assert [sorted(p.contents) for p in one.products] == [
        ["image", "table", "text"],
        ["table"],
        ["text"],
    ]
    assert (
        one.products[0].contents["table"][0] == ("weight", "1 kg")
        and list(one.labels) == [None] * 3
    )
    assert Skip("c", "image", "no such file") in one.skipped
    assert Skip("b", "image", "the path leads out of the media folder") in one.skipped
    with pytest.raises(DataError, match="column .'id'. is missing"):
        readers.read_table(write_csv(tmp_path / "no_id.csv", "name\nx\n"))


def write_csv(path, text):
    path.write_text(text)
    return path


@pytest.mark.skipif(
    not (SHARED / "data/fashion-products").exists(),
    reason="the real products are not beside the project",
)
def test_real_products():
    catalogue = readers.read(SHARED / "data/fashion-products")
    assert len(catalogue) == 16_000 and not catalogue.skipped and len(set(catalogue.labels)) == 133
    rows, excluded = queries(catalogue)
    assert len(rows) + excluded == len(catalogue.split("query")) and excluded > 0
