"""What was read and what was not: every count equals what was taken away."""

import json

import pandas as pd
import pytest
from conftest import SHARED
from make_media import file_of, shared, tone, write_image, write_sound, write_video
from make_products import spoiled

from m5lib.catalogue import Catalogue, DataError, Product, Skip
from m5lib.data import readers, store
from m5lib.lab.runs import load, profile_of
from m5lib.search import intake


@pytest.fixture(scope="module")
def mine(folder, tmp_path_factory):
    where = tmp_path_factory.mktemp("mine") / "shop"
    return where, spoiled(folder, where, broken=6, limit=60)


@pytest.fixture(scope="module")
def report(mine):
    return intake.Report(store.extract(readers.read(mine[0] / "products.csv"))[0])


def test_counts_equal_what_was_removed(mine, report):
    _, done = mine
    image, text, table = (report.modalities.loc[name] for name in ("image", "text", "table"))
    lost = len(done["deleted"]) + len(done["broken"])
    assert len(report.products) == 60 and report.products["kept"].all() and lost == 12
    assert list(image) == [60 - lost - len(done["no image"]), len(done["no image"]), lost, 0]
    assert list(text[:3]) == [60 - len(done["no title"]), len(done["no title"]), 0] and list(
        table[:3]
    ) == [60, 0, 0]
    assert report.attributes.sum() == 4 * 60 - len(done["no attribute"])


def test_each_product_says_why(mine, report):
    _, done = mine
    cells = report.products["image"]
    assert set(cells.index[cells == "no such file"]) == set(done["deleted"])
    assert set(cells.index[cells == ""]) == set(done["no image"])
    assert set(cells.index[~cells.isin(["read", "", "no such file"])]) == set(done["broken"])
    counted = report.reasons.groupby("reason")["products"].sum()
    assert (
        counted["no such file"] == len(done["deleted"])
        and counted["the file is empty or cut short"] == 2
        and counted["not a picture"] == 2
    )
    assert (report.products["text"] == "").sum() == len(done["no title"])


def test_rows_that_are_no_product(mine, report):
    assert list(report.rows["what"]) == ["id"] * 4 + ["row"] * 2
    assert set(report.rows["where"]) >= {*mine[1]["twice"], "nothing"}
    for words in (
        "the id was seen before",
        "empty id",
        "3 cells where the header has 8",
        "no modality at all",
        "60 products kept; 0 left out because",
        "\n  attributes: gender, ",
    ):
        assert words in str(report)
    assert "paths of files?" not in str(report)


def test_a_column_by_another_name_is_pointed_at(tmp_path):
    """It is an attribute then, and no picture is ever read."""
    lines = ["id,name,image_path,clip", *(f"{n},mug {n},img/{n}.JPG,{n}.mp4" for n in range(3))]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    said = str(intake.Report(readers.read(tmp_path / "p.csv")))
    assert "\n  attributes: name, image_path, clip" in said
    assert "\n  image_path, clip: paths of files? call such columns image, video or audio" in said


def test_saved_and_read_again(mine, report, tmp_path):
    products, rows, counts = report.save(tmp_path / "out")
    again = pd.read_csv(products, dtype={"id": str}, keep_default_na=False).set_index("id")
    assert (again[["image", "text", "table"]] == report.products[["image", "text", "table"]]).all(
        axis=None
    )
    found = json.loads(counts.read_text())
    assert (
        found["modalities"]["image"]["not read"] == 12
        and found["products"] == 60
        and len(pd.read_csv(rows)) == found["rows"] == 6
    )
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_product_of_which_nothing_is_left_and_sound_in_a_video(tmp_path):
    film = write_video(tmp_path / "film.mp4", 20, 10, sound=2.0)
    broken = write_image(tmp_path / "broken.png")
    broken.write_bytes(b"no picture")
    products = (
        Product("a", {"video": file_of(film)}),
        Product(
            "b",
            {"video": file_of(film), "audio": file_of(write_sound(tmp_path / "s.wav", tone(1.0)))},
        ),
        Product("c", {"image": file_of(broken)}),
    )
    catalogue = store.extract(
        Catalogue(
            "c",
            products,
            (Skip("d", "video", "no such file"), Skip("d", "row", "no modality at all")),
        )
    )[0]
    found = intake.Report(catalogue)
    assert list(found.products.index[found.products["kept"]]) == ["a", "b"] and set(
        found.products.index
    ) == {"a", "b", "c", "d"}
    assert list(found.modalities.loc["audio"]) == [2, 2, 0, 1] and not len(found.rows)
    assert "1 of them in the video" in str(found) and "2 left out" in str(found)


def test_tiny_reads_a_part_and_reports_only_that(folder, tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setenv("M5_HOME", str(tmp_path))
    spoiled(folder, tmp_path / "shop", limit=60)
    catalogue, _ = load(
        tmp_path / "shop" / "products.csv", replace(profile_of("tiny"), products=30)
    )
    found = intake.Report(catalogue)
    assert len(catalogue) == 30 and len(found.products) == 30


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such folder; `model` is"):
        intake.load_model(tmp_path / "gone")


@pytest.mark.skipif(
    not (SHARED / "data/media").exists(), reason="the real media are not beside the project"
)
def test_real_media():
    files = {
        name: shared("data", "media", name)
        for name in ("nasa_13013.mp4", "av1_video.mkv", "h265_video.mp4")
    }
    sound = shared("data", "media", "nasa_13013.mp4.audio.mp3")
    products = [Product(name, {"video": file_of(path)}) for name, path in files.items()] + [
        Product("mp3", {"audio": file_of(sound)})
    ]
    found = intake.Report(store.extract(Catalogue("media", tuple(products)))[0])
    assert (
        list(found.modalities.loc["video"][["read", "not read"]]) == [3, 0]
        and found.products.loc["mp3", "audio"] == "read"
    )


def test_encodings(tmp_path):
    """With a byte-order mark, in any script, and from parquet: the same; anything but UTF-8 gets
    one clear error."""
    frame = pd.DataFrame(
        {
            "id": ["é1", "手提包"],
            "title": ["Tasse à café ☕", "真皮手提包 女士"],
            "couleur": ["crème", None],
        }
    )
    frame.to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig")
    frame.to_parquet(tmp_path / "mine.parquet")
    one, two = (
        intake.Report(readers.read(tmp_path / name)) for name in ("bom.csv", "mine.parquet")
    )
    assert (
        list(one.products.index) == ["é1", "手提包"]
        and one.products.equals(two.products)
        and dict(one.attributes) == {"couleur": 1}
    )
    one.save(tmp_path / "out")
    assert "手提包" in (tmp_path / "out" / "report.csv").read_text(encoding="utf-8")
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "odd.csv").write_text("id,title\n1,café\n", encoding=encoding)
        with pytest.raises(
            DataError, match="odd.csv: byte .* is not UTF-8; save the file as UTF-8"
        ):
            readers.read(tmp_path / "odd.csv")
