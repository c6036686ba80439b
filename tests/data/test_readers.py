import json
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_media import BAG, file_of, put, tone, write_image, write_sound, write_video
from make_release import export

from m5lib.catalogue import Catalogue, DataError, Product
from m5lib.data import MediaFile, store
from m5lib.data.readers import (
    entries,
    format_pv,
    parse_pv,
    read_ids,
    read_m5product,
)

# ---- pv strings


def test_pv_strings():
    assert parse_pv(BAG["pv"]) == (("品牌", "Acme 爱家"), ("颜色", "红色,黑色"), ("颜色", "白"))
    assert parse_pv("") == parse_pv("1") == parse_pv("#;#") == ()
    assert parse_pv("a#:#b#:#c#;#") == (
        ("a", "b#:#c"),
    )  # at the first separator; a trailing one is no part
    assert parse_pv("alone#;##:#x#;#y#:# #;#a#:#b") == (("a", "b"),)


words = st.text(st.sampled_from("ab#:; 品红"), min_size=1, max_size=6)


@given(st.lists(st.tuples(words, words), max_size=4))
def test_pv_strings_go_round_or_are_refused(table):
    try:
        text = format_pv(table)
    except ValueError:
        assert any(mark in side for pair in table for side in pair for mark in "#:; ")
    else:
        assert parse_pv(text) == tuple(table)


# ---- JSON, streamed


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.text(max_size=4), values, max_size=5) | st.lists(values, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_streamed_json_is_json(tmp_path_factory, content, pretty, marked):
    path = tmp_path_factory.getbasetemp() / "streamed.json"
    text = json.dumps(content, ensure_ascii=pretty, indent=2 if pretty else None)
    path.write_text(text, encoding="utf-8-sig" if marked else "utf-8")
    content = json.loads(text, parse_float=Decimal)
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    assert list(entries(path)) == list(pairs)


def test_json_that_is_none_says_where(tmp_path):
    whole = json.dumps({str(n): BAG for n in range(3)}, ensure_ascii=False)
    for text, reason in (
        (whole[:-1], "premature EOF"),
        (whole[: len(whole) // 2], "after '0'"),
        (whole.replace('"title"', "title"), "invalid string in json"),
        ("", "expected one JSON object or array"),
        ("hello", "expected one JSON object or array, begins with b'h'"),
        ("5", "expected one JSON object or array"),
    ):
        with pytest.raises(DataError, match=reason):
            list(entries(put(tmp_path / "a.json", text)))
    (tmp_path / "a.json").write_bytes(whole.encode("gb18030"))
    with pytest.raises(DataError, match="UTF-8"):
        list(entries(tmp_path / "a.json"))
    with pytest.raises(DataError, match="no such file"):
        list(entries(tmp_path / "none.json"))


def test_a_large_annotation_is_not_read_into_memory(tmp_path):
    import tracemalloc

    record = json.dumps(BAG, ensure_ascii=False)
    text = "{" + ",".join(f'"{600_000_000_000 + n}": {record}' for n in range(45_000)) + "}"
    path = put(tmp_path / "big_id_label.json", text)
    size = path.stat().st_size
    del text
    tracemalloc.start()
    count = sum(1 for _ in entries(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 45_000 and size > 7.5e6 and peak < 6e6
    catalogue = read_m5product(tmp_path, only=["600000000005", "600000044999"])
    assert catalogue.ids.tolist() == ["600000000005", "600000044999"]


# ---- lists


def test_id_lists_in_either_form(tmp_path):
    assert read_ids(put(tmp_path / "a.json", ["6", "7#x", 8])) == ["6", "7", "8"]
    assert read_ids(put(tmp_path / "b.json", {"6": BAG, "7#x": {}})) == ["6", "7"]
    with pytest.raises(DataError, match="no id"):
        read_ids(put(tmp_path / "c.json", [["6"]]))


# ---- annotation and media


def test_an_annotation_and_media_by_id(tmp_path):
    records = {
        "622651207543": BAG,
        "2": {**BAG, "title": " ", "pv": "", "label": "", "video": "https://example.com/2.mp4"},
        "3": {**BAG, "pv": "颜色#;#品牌#:#甲"},
        "4": {"label": "x"},
        "5": {**BAG, "title": 7},
        "6": "text",
        "../../secret": {**BAG},
    }
    text = json.dumps(records, ensure_ascii=False)
    put(
        tmp_path / "product5m_v2" / "subset_v2_id_label.json",
        text[:-1] + ', "3": {"title": "again"}}',
    )
    put(tmp_path / "product5m_v2" / "query_ids.json", ["3", "99"])
    put(tmp_path / "product5m_v2" / "gallery_ids.json", {"622651207543#1": {}, "3": {}})
    for folder in ("images", "videos", "audios"):
        (tmp_path / folder).mkdir()
    image = write_image(tmp_path / "images" / "622651207543.jpg")
    sound = write_sound(tmp_path / "audios" / "2.mp3", tone(0.5))
    write_image(tmp_path.parent / "secret.jpg")
    catalogue = read_m5product(tmp_path)
    assert catalogue.ids.tolist() == ["622651207543", "2", "3", "5", "../../secret"]
    bag, two, three = catalogue.products[:3]
    assert bag.contents == {
        "image": file_of(image),
        "text": BAG["title"],
        "table": parse_pv(BAG["pv"]),
    }
    assert (bag.label, bag.split, two.label, two.split, three.split) == (
        "手提包",
        "gallery",
        None,
        None,
        "gallery",
    )
    assert two.contents == {"audio": file_of(sound)} and list(catalogue.products[3].contents) == [
        "table"
    ]
    assert set(catalogue.skipped) == {
        ("3", "split", "in query_ids.json, but taken as gallery"),
        ("99", "split", "listed as query, but not in subset_v2_id_label.json"),
        ("2", "image", "no file of this id in images/"),
        ("2", "video", "no file of this id in videos/"),
        ("3", "image", "no file of this id in images/"),
        ("3", "pv", "parts without a property or a value"),
        ("4", "text", "no field 'title'"),
        ("4", "table", "no field 'pv'"),
        ("4", "record", "no modality at all"),
        ("5", "text", "'title' is no text"),
        ("5", "image", "no file of this id in images/"),
        ("6", "record", "not an object of fields"),
        ("../../secret", "image", "no file of this id in images/"),
        ("3", "id", "the id was seen before; the first product is kept"),
    }


def test_which_annotation(tmp_path):
    with pytest.raises(DataError, match="no annotation"):
        read_m5product(tmp_path)
    for name in ("a_id_label.json", "b_id_label.json"):
        put(tmp_path / "product5m_v2" / name, {name: BAG})
    with pytest.raises(DataError, match="several annotations.*annotation="):
        read_m5product(tmp_path)
    path = tmp_path / "product5m_v2" / "b_id_label.json"
    catalogue = read_m5product(tmp_path, annotation=path, splits={"train": path})
    assert catalogue.products[0].split == "train" and not catalogue.skipped
    with pytest.raises(ValueError, match="unknown split"):
        read_m5product(tmp_path, annotation=path, splits={"test": path})
    with pytest.raises(DataError, match="one object keyed"):
        read_m5product(tmp_path, annotation=put(tmp_path / "list.json", [BAG]))


@pytest.fixture
def shop(tmp_path):
    """Products of every kind: all five modalities, some, one; Chinese; with and without labels and
    splits."""
    (tmp_path / "shop").mkdir()
    image = file_of(write_image(tmp_path / "shop" / "a.png"))
    video = file_of(write_video(tmp_path / "shop" / "a.mp4", 12, sound=1.0))
    sound = file_of(write_sound(tmp_path / "shop" / "a.wav", tone(0.5)))
    table = parse_pv(BAG["pv"])
    products = (
        Product(
            "622651207543",
            {"audio": sound, "video": video, "image": image, "text": BAG["title"], "table": table},
            "手提包",
            "train",
        ),
        Product("2", {"image": image, "table": (("a", 'b "c"\n'), ("a", "b"))}, "鞋", "query"),
        Product("3", {"video": video}, None, "gallery"),
        Product("4", {"text": 'quote " and\nline'}, "鞋"),
    )
    return Catalogue("m5product", products)


def test_what_is_exported_is_read_back(shop, tmp_path):
    path = export(shop, tmp_path / "out")
    again = read_m5product(tmp_path / "out")
    assert again.fingerprint == shop.fingerprint and not again.skipped
    for a, b in zip(again.products, shop.products, strict=True):
        assert (a.id, a.label, a.split, set(a.contents)) == (
            b.id,
            b.label,
            b.split,
            set(b.contents),
        )
        for name, content in a.contents.items():
            is_file = isinstance(content, MediaFile)
            assert (
                content.read() == b.contents[name].read()
                if is_file
                else content == b.contents[name]
            )
    assert "手提包" in path.read_text(encoding="utf-8")  # people can read it
    assert json.loads(path.with_name("label_list.json").read_text("utf-8")) == ["手提包", "鞋"]
    assert export(again, tmp_path / "more").read_bytes() == path.read_bytes()
    whole = json.loads(path.read_text(encoding="utf-8"))  # and so can whoever reads it at once
    assert whole["3"] == {"title": "", "pv": "", "label": "", "url": "", "video": "videos/3.mp4"}
    features, expected = store.extract(again)[1], store.extract(shop)[1]
    assert all(
        np.array_equal(features[name].values, ragged.values) for name, ragged in expected.items()
    )


def test_what_the_format_cannot_hold_is_refused(shop, tmp_path):
    for name in ("a/b", "..", "a#1", "a,b", ".hidden"):
        with pytest.raises(DataError, match="file name"):
            export(replace(shop, products=(Product(name, {"text": "x"}),)), tmp_path / "out")
    with pytest.raises(DataError, match="'7', table: .*separators"):
        export(
            replace(shop, products=(Product("7", {"table": (("a", "b#;#c"),)}),)), tmp_path / "out"
        )


def test_chinese_text_becomes_words(shop):
    from m5lib.models.words import train_tokenizer
    from m5lib.streams import Streams

    shop = replace(shop, products=tuple(replace(p, split="train") for p in shop.products))
    tokenizer = train_tokenizer(
        Catalogue("c", tuple(replace(p, id=f"{p.id}{n}") for p in shop.products for n in range(2)))
    )
    batch = Streams(shop, {}, tokenizer).batch([0])
    pieces = tokenizer.convert_ids_to_tokens(batch.streams["text"].tokens[0])
    assert pieces[1:5] == list("真皮手提") and "[UNK]" not in pieces
