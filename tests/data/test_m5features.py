import csv
import json
import os
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_media import BAG, file_of, pictures, put, shared, write_image
from make_release import pack, write_features, write_lmdb, write_tsv

from m5lib.catalogue import DataError, Product
from m5lib.data import m5features, store
from m5lib.data.decoding import MediaError
from m5lib.data.extractors import PLAIN, locations
from m5lib.data.m5features import (
    OFFICIAL,
    StoredRegions,
    StoredRows,
    lmdb_records,
    read_features,
    tsv_records,
    unpack,
)
from m5lib.data.readers import read_m5product

# ---- region records


def records(counts=(3, 36, 10), captions=("女士 手提包", 'a "b"\tc', "two\r\nlines"), width=2048):
    rng = np.random.default_rng(0)
    return [
        [
            rng.normal(size=(n, width)).astype(np.float32),
            (rng.random((n, 4)) * 400).astype(np.float32),
            str(n),
            480,
            640,
            f"62265120{k}",
            c,
        ]
        for k, (n, c) in enumerate(zip(counts, captions, strict=True))
    ]


def check(found, expected):
    assert [(r.id, r.caption) for r in found] == [(e[5], e[6]) for e in expected]
    for record, (values, boxes, _, height, width, _, _) in zip(found, expected, strict=True):
        features = StoredRegions()(record.file)
        assert np.array_equal(features.values, values) and features.boxes.shape == (len(values), 5)
        assert np.allclose(features.boxes[:, :4], boxes / [width, height, width, height], atol=1e-6)
        sides = features.boxes[:, 2:4] - features.boxes[:, :2]
        assert np.allclose(features.boxes[:, 4], sides.prod(axis=1), atol=1e-6)


def test_lmdb_as_tensorpack_writes_it(tmp_path):
    """Written with msgpack itself, in its shortest forms; a single file, and a folder."""
    lmdb, msgpack = pytest.importorskip("lmdb"), pytest.importorskip("msgpack")

    def encode(x):  # msgpack-numpy 0.4.4.3
        return {
            b"nd": True,
            b"type": x.dtype.str,
            b"kind": b"",
            b"shape": x.shape,
            b"data": x.tobytes(),
        }

    for subdir in (False, True):
        path, expected = tmp_path / f"{subdir}.lmdb", records()
        keys = [f"{n:08}".encode() for n in range(3)]
        with (
            lmdb.open(str(path), subdir=subdir, map_size=1 << 24) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key, record in zip(keys, expected, strict=True):
                transaction.put(key, msgpack.packb(record, use_bin_type=True, default=encode))
            transaction.put(b"__keys__", msgpack.packb(keys, use_bin_type=True))
        skipped = []
        check(list(lmdb_records(path, skipped)), expected)
        assert not skipped


atoms = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
trees = st.recursive(
    atoms,
    lambda x: st.lists(x, max_size=20) | st.dictionaries(st.text(max_size=3), x, max_size=20),
    max_leaves=20,
)


@given(trees)
def test_msgpack_is_read_as_msgpack_reads_it(value):
    msgpack = pytest.importorskip("msgpack")
    data = msgpack.packb(value, use_bin_type=True)

    def plain(x):
        if isinstance(x, memoryview):
            return bytes(x)
        if isinstance(x, list):
            return [plain(y) for y in x]
        return {k: plain(v) for k, v in x.items()} if isinstance(x, dict) else x

    found, at = unpack(memoryview(data))
    assert plain(found) == value and at == len(data)
    for end in range(0, len(data), max(1, len(data) // 7)):
        with pytest.raises(ValueError):
            unpack(memoryview(data[:end]))


def test_lmdb_of_our_own_is_msgpack(tmp_path):
    msgpack = pytest.importorskip("msgpack")
    values = ["女士", 7, -1, b"x" * 300, [1, "a"], True]
    assert msgpack.unpackb(pack(values)) == values
    array = msgpack.unpackb(pack(np.ones((2, 3), np.float32)), strict_map_key=False)
    assert array == {
        b"nd": True,
        b"type": "<f4",
        b"kind": b"",
        b"shape": [2, 3],
        b"data": np.ones(6, np.float32).tobytes(),
    }


def test_an_lmdb_is_walked_once_until_it_is_written_again(tmp_path, monkeypatch):
    """Also where another process opens it; what ends its reader is never taken as walked."""
    monkeypatch.setenv("M5_HOME", str(tmp_path / "home"))
    path, codes, seen = tmp_path / "a.lmdb", [-11], []
    write_lmdb(path, records())
    run = subprocess.run

    def counted(command, **how):
        seen.append(command)
        return SimpleNamespace(returncode=codes.pop()) if codes else run(command, **how)

    monkeypatch.setattr(m5features.subprocess, "run", counted)
    with pytest.raises(DataError, match="damaged; copy it again .*signal 11"):
        list(lmdb_records(path, []))
    for walks in (2, 2, 3):
        m5features._environment.cache_clear()  # as in another process
        if walks == 3:
            os.utime(path, ns=(1, 1))
        check(list(lmdb_records(path, [])), records())
        assert len(seen) == walks


def test_lmdb_that_is_broken(tmp_path):
    expected = records()
    write_lmdb(tmp_path / "lmdb_features" / "a.lmdb", expected)
    check(list(lmdb_records(tmp_path / "lmdb_features" / "a.lmdb", [])), expected)
    bad = [
        [expected[0][0], expected[0][1], "4", 480, 640, "count", "x"],
        [expected[0][0], expected[0][1], "three", 480, 640, "word", "x"],
        [expected[0][0][:, :7], expected[0][1], "3", 480, 640, "narrow", "x"],
        [expected[0][0] * np.nan, expected[0][1], "3", 480, 640, "nan", "x"],
        [b"raw", expected[0][1], "3", 480, 640, "raw", "x"],
        ["short"],
    ]
    write_lmdb(tmp_path / "b" / "lmdb_features" / "b.lmdb", [*expected, *bad])
    clean, features = read_features(tmp_path / "b")
    assert clean.ids.tolist() == [
        "622651200",
        "622651201",
        "622651202",
        "count",
        "word",
        "narrow",
        "nan",
        "raw",
    ]
    reasons = {skip.where: skip.reason for skip in clean.skipped}
    assert (
        reasons["b.lmdb:00000008"].startswith("not a record of seven")
        and "num_boxes 4" in reasons["count"]
    )
    assert (
        "no number" in reasons["word"]
        and "(3, 7)" in reasons["narrow"]
        and "finite" in reasons["nan"]
    )
    assert (
        reasons["raw"].startswith("features is not an array")
        and np.diff(features["image"].offsets).tolist() == [3, 36, 10] + [0] * 5
    )
    data = (tmp_path / "lmdb_features" / "a.lmdb").read_bytes()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "cut.lmdb").write_bytes(data[: len(data) // 8192 * 4096])
    with pytest.raises(DataError, match="cut short"):
        list(lmdb_records(tmp_path / "c" / "cut.lmdb", []))
    (tmp_path / "c" / "text.lmdb").write_bytes(b"hello" * 4000)
    with pytest.raises(DataError, match="not an LMDB"):
        list(lmdb_records(tmp_path / "c" / "text.lmdb", []))


def test_arrays_of_objects_are_refused(tmp_path):
    record = records()[0]
    body = (
        b"\x97"
        + b"\x84"
        + b"".join(
            pack(k) + pack(v)
            for k, v in {b"nd": True, b"type": "|O", b"shape": [1], b"data": b"x" * 8}.items()
        )
    )
    import lmdb

    with (
        lmdb.open(str(tmp_path / "a.lmdb"), subdir=False, map_size=1 << 20) as e,
        e.begin(write=True) as transaction,
    ):
        transaction.put(b"00000000", body + b"".join(pack(field) for field in record[1:]))
    (found,) = lmdb_records(tmp_path / "a.lmdb", [])
    with pytest.raises(MediaError, match="features"):
        StoredRegions()(found.file)
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object))
    with pytest.raises(MediaError, match="npy of numbers"):
        StoredRows(1024, 12)(file_of(tmp_path / "a.npy"))


def test_tsv_as_the_scripts_write_it(tmp_path):
    import base64

    expected, path = records(), tmp_path / "a.tsv"
    names = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features", "title"]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=names)
        for values, boxes, count, height, width, name, caption in expected:
            encoded = [base64.b64encode(x).decode() for x in (boxes, values)]
            writer.writerow(
                dict(zip(names, [name, width, height, int(count), *encoded, caption], strict=True))
            )
    skipped = []
    check(list(tsv_records(path, skipped)), expected)
    assert not skipped
    ours = tmp_path / "b.tsv"
    write_tsv(ours, expected)
    assert ours.read_bytes() == path.read_bytes()


def test_tsv_lines_that_cannot_be_read_are_listed(tmp_path):
    (tmp_path / "tsv_features").mkdir()
    path = tmp_path / "tsv_features" / "train_1m_2m_25_37.tsv"
    write_tsv(path, records())
    first, second, *third = path.read_bytes().split(b"\r\n", 2)
    path.write_bytes(
        b"\r\n".join(
            [
                b"nonsense",
                first.replace(b"\t3\t", b"\t4\t"),
                b'stray "quote\tx',
                second,
                second[: len(second) // 2],
                *third,
            ]
        )
    )
    clean, features = read_features(tmp_path)
    assert clean.ids.tolist() == ["622651200", "622651201", "622651202"]
    assert np.diff(features["image"].offsets).tolist() == [0, 36, 10]
    reasons = [(s.where.split(",")[0], s.reason) for s in clean.skipped]
    assert reasons[:-1] == [(path.name, "not a record of seven fields")] * 3
    assert reasons[-1][0] == "622651200" and "num_boxes 4" in reasons[-1][1]


# ---- features only


@pytest.fixture
def release(tmp_path):
    write_lmdb(tmp_path / "lmdb_features" / "a.lmdb", records())
    write_tsv(tmp_path / "tsv_features" / "b.tsv", records((5, 6), ("other", "more"))[1:])
    rng = np.random.default_rng(1)
    for folder, name, shape, kind in (
        ("video_feature", "622651200", (60, 1024), np.float16),
        ("video_feature", "900", (3, 1024), np.float16),
        ("audio_feature", "622651200", (80, 751), np.float32),
        ("audio_feature", "622651202", (751, 80), np.float32),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        np.save(tmp_path / folder / f"{name}.npy", rng.normal(size=shape).astype(kind))
    (tmp_path / "video_feature" / "622651201.npy").write_bytes(b"\x93NUMPY broken")
    return tmp_path


def test_features_are_all_that_somebody_has(release):
    clean, features = read_features(release)
    assert clean.ids.tolist() == ["622651200", "622651201", "622651202", "900"]
    assert clean.products[0].contents["text"] == "女士 手提包" and list(
        clean.products[3].contents
    ) == ["video"]
    assert {n: np.diff(r.offsets).tolist() for n, r in features.items()} == {
        "image": [3, 36, 10, 0],
        "video": [12, 0, 0, 3],
        "audio": [80, 0, 0, 0],
    }
    assert np.array_equal(
        features["video"].values[:12], np.load(release / "video_feature" / "622651200.npy")[:12]
    )
    reasons = {(s.where, s.field): s.reason for s in clean.skipped}
    assert "(751, 80)" in reasons["622651202", "audio"] and "npy" in reasons["622651201", "video"]
    with pytest.raises(DataError, match="no features; expected"):
        read_features(release / "video_feature")


def test_features_of_a_catalogue(release):
    put(release / "product5m_v2" / "id_label.json", {"622651201": BAG, "1": BAG, "622651200": BAG})
    write_image(release / "images.jpg")
    (release / "images").mkdir()
    write_image(release / "images" / "622651201.jpg")
    write_image(release / "images" / "1.jpg")
    catalogue = read_m5product(release)
    clean, features = read_features(release, catalogue)
    assert clean.ids.tolist() == ["622651201", "1", "622651200"]
    assert (
        clean.products[0].contents["image"] == catalogue.products[0].contents["image"]
    )  # the picture, for people
    assert clean.presence["image"].tolist() == [True, False, True]  # no features, no modality
    assert (
        np.diff(features["image"].offsets).tolist() == [36, 0, 3]
        and clean.labels.tolist() == ["手提包"] * 3
    )
    assert ("1", "image", "no features of this id") in clean.skipped
    bare = Product("bare", {"image": file_of(release / "images.jpg")})
    wider, _ = read_features(release, replace(catalogue, products=(*catalogue.products, bare)))
    assert "bare" not in wider.ids and ("bare", "image", "no features of this id") in wider.skipped
    lazily, stored = read_features(release, catalogue, store=release / "store")
    assert lazily == clean
    for name, ragged in features.items():
        assert np.array_equal(np.asarray(stored[name].values), ragged.values) and np.array_equal(
            stored[name].offsets, ragged.offsets
        )
    assert np.array_equal(np.asarray(stored["image"].boxes), features["image"].boxes)


@pytest.mark.parametrize("database", [True, False])
def test_features_written_are_read_back(tmp_path, database):
    clean, features = store.extract(pictures(tmp_path / "p", 6), PLAIN)
    write_features(tmp_path / "out", clean, features, database)
    again, read = read_features(
        tmp_path / "out", clean, readers={"image": StoredRegions(PLAIN["image"].width)}
    )
    assert again == clean and np.array_equal(read["image"].values, features["image"].values)
    assert np.abs(read["image"].boxes - features["image"].boxes).max() < 2e-3


def test_lmdb_is_read_in_a_forked_process(release):
    (found, *_) = lmdb_records(release / "lmdb_features" / "a.lmdb", [])
    expected = found.file.checksum
    child = os.fork()
    if not child:
        try:
            os._exit(0 if found.file.checksum == expected else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_regions_are_located_as_in_the_golden_batch():
    folder = shared("golden", "preprocess")
    raw, tensors = np.load(folder / "raw.npz"), np.load(folder / "tensors.npz")
    example = json.loads((folder / "example.json").read_text())
    for row, product in enumerate(example["products"]):
        key = f"{product['id']}_region_box"
        if key in raw:
            found = locations(raw[key], int(product["image_w"]), int(product["image_h"]))
            assert np.abs(tensors["image_loc"][row, 1 : len(found) + 1] - found[:36]).max() < 1e-6


def test_official_features_are_of_the_same_modalities():
    assert list(OFFICIAL) == list(PLAIN)
