import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from make_media import file_of, pictures, tone, write_sound

from m5lib.catalogue import Catalogue, Product, Skip
from m5lib.data import columns, store
from m5lib.data.decoding import ParquetCell
from m5lib.data.extractors import PLAIN, Crops
from m5lib.data.m5features import LmdbRecord
from m5lib.lab import runs
from m5lib.models.words import pieces, train_tokenizer
from m5lib.streams import Streams, load_tokenizer


@pytest.fixture
def some(tmp_path) -> Catalogue:
    """Forty products: any of pictures, titles (one empty of letters), tables, a sound."""
    sound, products = write_sound(tmp_path / "c.wav", tone(1.5)), []
    for n, p in enumerate(pictures(tmp_path / "pictures", 40).products):
        contents = dict(p.contents) if n % 3 else {}
        contents |= {"text": f"红 mug {n} ж"} if n % 4 else {}
        contents |= {"table": (("colour", "red"), (f"size {n}", ""))} if n % 5 or n % 2 == 0 else {}
        contents |= {"audio": file_of(sound)} if n == 7 else {}
        contents = contents or {"text": "x"}
        known = (None, "train", "fine_query")[n % 3]
        products.append(Product(p.id, contents, [None, "a", "b"][n % 3], known, "i" if n else None))
    return Catalogue("some", tuple(products), (Skip("9", "image", "no such file"),))


def kept(catalogue, folder, **how):
    made = {**PLAIN, **pieces(train_tokenizer(catalogue, 200))}
    catalogue, features = store.extract(catalogue, made, folder, shard=7, **how)
    columns.keep(folder, catalogue, features)
    return catalogue, features


def batches_alike(a: Streams, b: Streams, rows, others=None) -> bool:
    x = a.batch(np.atleast_1d(rows)).streams
    y = b.batch(np.atleast_1d(rows if others is None else others)).streams
    keys = ("tokens", "valid", "entity", "boxes")
    assert not any(x[name].valid.any() for name in set(x) - set(y))  # absent from all
    pairs = [(getattr(x[n], key), getattr(y[n], key)) for n in y for key in keys]
    return all(one is two or one.equal(two) for one, two in pairs)


def test_what_is_kept_is_what_was_read(some, tmp_path):
    before, _ = kept(some, tmp_path / "s")
    after, _ = columns.opened(tmp_path / "s")
    assert tuple(after.products) == before.products and len(after) == len(before)
    assert [after.products[n] for n in (3, -1)] == [before.products[n] for n in (3, -1)]
    assert (after.name, after.skipped, after.modalities) == (
        before.name,
        before.skipped,
        before.modalities,
    )
    for key in ("ids", "labels", "instances", "splits"):
        assert getattr(after, key).tolist() == getattr(before, key).tolist(), key
    assert after.presence.equals(before.presence) and after.fingerprint == before.fingerprint
    assert after.report() == before.report()
    for name in before.modalities:
        assert list(after.contents(name)) == list(before.contents(name))
    with pytest.raises(IndexError):
        after.products[len(after)]


def test_a_part_of_it_is_what_a_part_was(some, tmp_path):
    before, _ = kept(some, tmp_path / "s")
    after, _ = columns.opened(tmp_path / "s")
    for rows in ([5, 0, 30, 5 + 1], np.arange(39, 10, -1), after.split("train")):
        one, two = before.take(rows), after.take(rows)
        assert tuple(two.products) == one.products and two.fingerprint == one.fingerprint
        assert two.ids.tolist() == one.ids.tolist() and two.presence.equals(one.presence)
        again = pickle.loads(pickle.dumps(two.take([1, 0])))
        assert tuple(again.products) == one.take([1, 0]).products
    assert before.fingerprint != after.take(np.arange(39)).fingerprint
    with pytest.raises(ValueError, match="share an id"):
        after.take([1, 1])


def test_batches_are_the_same_from_memory_shards_and_another_process(some, tmp_path):
    tokenizer = train_tokenizer(some, 200)
    plain = Streams(*store.extract(some), tokenizer)
    kept(some, tmp_path / "s")
    opened = Streams(*columns.opened(tmp_path / "s"), tokenizer)
    assert all(isinstance(w.values, store.Mapped) for w in opened.words.values())
    assert opened.widths == plain.widths and opened.settings == plain.settings
    for rows in ([0], [5, 2, 33, 1], range(len(plain))):
        assert batches_alike(plain, opened, rows)
    assert batches_alike(plain, pickle.loads(pickle.dumps(opened)), [4, 1])
    for name, lengths in plain.lengths().items():
        assert lengths.tolist() == opened.lengths()[name].tolist()


def test_pieces_of_another_tokenizer_are_not_read(some, tmp_path):
    kept(some, tmp_path / "s")
    other = train_tokenizer(Catalogue("o", (Product("1", {"text": "a red mug, a blue jug"}),)), 90)
    opened = Streams(*columns.opened(tmp_path / "s"), other)
    assert not any(isinstance(w.values, store.Mapped) for w in opened.words.values())
    assert batches_alike(Streams(*store.extract(some), other), opened, range(len(some)))


def test_a_tokenizer_is_known_again_after_it_was_saved(some, tmp_path):
    kept(some, tmp_path / "s")
    train_tokenizer(some, 200).save_pretrained(tmp_path / "t")
    opened = Streams(*columns.opened(tmp_path / "s"), load_tokenizer(tmp_path / "t"))
    assert all(isinstance(w.values, store.Mapped) for w in opened.words.values())


def test_tokenised_by_many_to_the_same_bytes(some, tmp_path):
    for folder, processes in ("one", 1), ("two", 2):
        store.extract(some, pieces(train_tokenizer(some, 200)), tmp_path / folder, 1, 7, processes)
    one, two = (
        {
            f.relative_to(tmp_path / folder): f.read_bytes()
            for f in (tmp_path / folder).rglob("*.n*")
        }
        for folder in ("one", "two")
    )
    assert one == two and len(one) > 8


def test_another_word_is_another_shard_and_the_rest_stays(some, tmp_path):
    made = pieces(train_tokenizer(some, 200))
    store.extract(some, made, tmp_path, shard=7)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "text").glob("*.npy")}
    products = list(some.products)
    products[1] = replace(products[1], contents={**products[1].contents, "text": "a blue mug"})
    _, features = store.extract(Catalogue("new", tuple(products)), made, tmp_path, shard=7)
    after = {f: f.stat().st_mtime_ns for f in (tmp_path / "text").glob("*.npy")}
    assert before.items() <= after.items() and len(after) == len(before) + 1
    new = Streams(Catalogue("new", tuple(products)), features, made["text"].tokenizer)
    memory = Streams(Catalogue("new", tuple(products)), {}, made["text"].tokenizer)
    assert new.batch([1]).streams["text"].tokens.equal(memory.batch([1]).streams["text"].tokens)


def test_the_media_need_not_be_there(some, tmp_path):
    kept(some, tmp_path / "s")
    for file in (tmp_path / "pictures").iterdir():
        file.unlink()
    (tmp_path / "s").rename(tmp_path / "moved")
    catalogue, features = columns.opened(tmp_path / "moved")
    code = (
        "import sys; from m5lib.data import columns; from m5lib.streams import Streams;"
        "c, f = columns.opened(sys.argv[1]);"
        "print(len(c), float(f['image'].values[:].astype('f4').sum()))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "moved")], capture_output=True, text=True
    )
    count, total = ran.stdout.split()
    assert int(count) == len(catalogue)
    assert float(total) == float(features["image"].values[:].astype("f4").sum())


def test_a_run_reads_such_a_folder_and_thins_it(some, tmp_path):
    tokenizer = train_tokenizer(some, 200)
    before, features = kept(some, tmp_path / "s")
    whole = Streams(before, features, tokenizer)
    for products in (0, 12):
        size = replace(runs.PROFILES["tiny"], products=products)
        found = Streams(*runs.load(tmp_path / "s", size), tokenizer)
        rows = np.flatnonzero(np.isin(before.ids, found.catalogue.ids))
        assert len(found) == len(rows) == (products or len(before))
        assert found.catalogue.products[2] == before.products[rows[2]]
        for n, row in enumerate(rows):
            assert batches_alike(whole, found, row, n)


def test_every_kind_of_media_file_comes_back(some, tmp_path):
    path = tmp_path / "some where.bin"
    files = [
        file_of(next((tmp_path / "pictures").iterdir())),
        LmdbRecord(path, 0, 9, "a:b", bytes(range(256))),
        ParquetCell(path, 0, 5, "cell", 3, 2, 1),
    ]
    products = tuple(Product(str(n), {"image": file}) for n, file in enumerate(files))
    columns.keep(tmp_path, Catalogue("files", products), {})
    assert tuple(columns.opened(tmp_path)[0].products) == products


def test_what_is_in_memory_cannot_be_kept(some, tmp_path):
    with pytest.raises(ValueError, match="image features are in memory; extract them into"):
        columns.keep(tmp_path, *store.extract(some, {"image": Crops()}))
    assert not list(tmp_path.glob("catalogue*"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / columns.FILE).unlink(), "catalogue.arrow: .*extract and keep it again"),
        (lambda f: os.truncate(f / columns.FILE, 900), "catalogue.arrow: .*extract and keep"),
        (lambda f: (f / columns.FILE).write_bytes(b"x" * 99), "catalogue.arrow: .*extract and"),
        (lambda f: next((f / "text").glob("*.npy")).unlink(), r"catalogue.arrow: text/\w+.npy is"),
        (lambda f: os.truncate(next((f / "image").glob("*.npy")), 99), "npy is not there, or of"),
    ],
)
def test_one_clear_error(some, tmp_path, spoil, says):
    kept(some, tmp_path / "s")
    spoil(tmp_path / "s")
    columns._table.cache_clear()
    with pytest.raises(ValueError, match=says) as raised:
        columns.opened(tmp_path / "s")
    assert "\n" not in str(raised.value)


def test_no_shard_is_read_outside_of_the_folder(some, tmp_path):
    import pyarrow as pa

    kept(some, tmp_path / "s")
    path = tmp_path / "s" / columns.FILE
    table = pa.ipc.open_file(str(path)).read_all()
    known = json.loads(table.schema.metadata[b"catalogue"])
    known["features"]["text"]["values"]["files"][0][0] = "../c.wav"
    table = table.replace_schema_metadata({"catalogue": json.dumps(known)})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    columns._table.cache_clear()
    with pytest.raises(ValueError, match="leads out of the media folder"):
        columns.opened(tmp_path / "s")
