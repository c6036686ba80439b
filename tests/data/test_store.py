import json
import os
import pickle
import random
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from time import sleep

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_media import Slow, file_of, pictures, tone, write_image, write_sound, write_video

from m5lib.catalogue import Catalogue, Product
from m5lib.data import locked, store
from m5lib.data.extractors import PLAIN, Crops, Frames, Mfcc


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(
        np.array_equal(a[n].offsets, b[n].offsets)
        and np.array_equal(np.asarray(a[n].values), np.asarray(b[n].values))
        and (a[n].boxes is None) == (b[n].boxes is None)
        and (a[n].boxes is None or np.array_equal(np.asarray(a[n].boxes), np.asarray(b[n].boxes)))
        for n in a
    )


@pytest.fixture
def mixed(tmp_path) -> Catalogue:
    """Pictures, videos with and without sound, sounds; some broken, one product with nothing
    else."""
    video, silent = (
        write_video(tmp_path / "a.mp4", 25, sound=2.5),
        write_video(tmp_path / "b.mp4", 15),
    )
    own = write_sound(tmp_path / "c.wav", tone(1.5))
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    extra = [
        {"video": file_of(video)},
        {"video": file_of(silent)},
        {"audio": file_of(own)},
        {"video": file_of(tmp_path / "bad.mp4")},
    ]
    products = list(pictures(tmp_path / "pictures", 10).products)
    products = [replace(p, contents={**p.contents, **extra[n % 4]}) for n, p in enumerate(products)]
    products.insert(4, Product("alone", extra[3]))
    return Catalogue("mixed", tuple(products))


def test_store_gives_what_memory_gives(mixed, tmp_path):
    clean, features = store.extract(mixed)
    stored, lazily = store.extract(mixed, PLAIN, tmp_path / "s", shard=3)
    assert stored == clean and same(features, lazily) and len(clean) == len(mixed) - 1
    assert {n: ragged.values.shape for n, ragged in lazily.items()} == {
        n: ragged.values.shape for n, ragged in features.items()
    }
    assert same(features, store.extract(mixed, PLAIN, tmp_path / "s", shard=3)[1])
    index = json.loads((tmp_path / "s" / "video.json").read_text())
    assert index["settings"] == {
        "extractor": "Frames",
        "version": 2,
        "width": 396,
        "cells": 6,
        "directions": 8,
        "limit": 12,
    }
    assert (
        index["rows"] == len(features["video"].values)
        and str(tmp_path) not in (tmp_path / "s" / "video.json").read_text()
    )


def test_streams_do_not_tell_the_difference(mixed, tmp_path):
    from m5lib.models.words import train_tokenizer
    from m5lib.streams import Streams

    clean, features = store.extract(mixed)
    tokenizer = train_tokenizer(clean)
    a = Streams(clean, features, tokenizer)
    b = pickle.loads(
        pickle.dumps(
            Streams(clean, store.extract(mixed, PLAIN, tmp_path / "s", shard=3)[1], tokenizer)
        )
    )
    assert a.widths == b.widths
    for rows in ([0], [3, 1, 8], range(len(clean))):
        x, y = a.batch(rows), b.batch(rows)
        assert all(
            x.streams[n].tokens.equal(y.streams[n].tokens)
            and x.streams[n].valid.equal(y.streams[n].valid)
            for n in x.streams
        )
        assert x.streams["image"].boxes.equal(y.streams["image"].boxes)


def test_work_that_is_done_is_not_done_again(tmp_path, monkeypatch):
    catalogue, seen = pictures(tmp_path / "p"), []
    call = Crops.__call__
    monkeypatch.setattr(
        Crops, "__call__", lambda self, file: seen.append(file.path.stem) or call(self, file)
    )

    def run(products, extractor=Crops()) -> int:  # noqa: B008
        seen.clear()
        store.extract(
            replace(catalogue, products=tuple(products)),
            {"image": extractor},
            tmp_path / "s",
            shard=5,
        )
        return len(seen)

    products = catalogue.products
    assert run(products[:20]) == 20 and run(products[:20]) == 0
    assert run(products) == 4  # more products: only theirs
    write_image(tmp_path / "p" / "7.png", 99)  # another picture under an old name: its shard
    assert run(products) == 5
    assert run(products, Crops(cells=2)) == 24 and run(products, Crops(cells=2)) == 0
    assert run(products) == 0  # and back: still there
    first = json.loads((tmp_path / "s" / "image.json").read_text())["shards"][0]
    (tmp_path / "s" / "image" / f"{first}.json").write_text("{")
    assert run(products) == 5


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_a_byte(mixed, tmp_path, workers):
    store.extract(mixed, PLAIN, tmp_path / "a", workers=1, shard=3)
    store.extract(mixed, PLAIN, tmp_path / "b", workers=workers, shard=3)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_ended_at_every_step_and_started_again_it_is_the_same_store(tmp_path, monkeypatch):
    catalogue = pictures(tmp_path / "p", 12)
    _, whole = store.extract(catalogue, {"image": Crops()}, tmp_path / "whole", shard=4)
    expected, really = bytes_of(tmp_path / "whole"), os.replace
    for step in range(sum(not name.startswith(".") for name in expected)):
        steps = iter(range(step + 1))

        def stop(*paths, steps=steps, step=step):
            if next(steps) == step:
                raise KeyboardInterrupt
            really(*paths)

        folder = tmp_path / f"s{step}"
        monkeypatch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            store.extract(catalogue, {"image": Crops()}, folder, shard=4)
        monkeypatch.setattr(os, "replace", really)
        (folder / "image" / "0.npy.1-1.tmp").touch()  # as killed processes leave them
        for shard in (folder / "image").glob("*.json"):
            shard.with_suffix(".lock").touch()
        clean, features = store.extract(catalogue, {"image": Crops()}, folder, shard=4)
        assert (
            bytes_of(folder) == expected
            and same(features, {"image": whole["image"]})
            and len(clean.skipped) == 2
        )


KILLED = """
import sys; sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from make_media import Slow, pictures
from m5lib.data import store
Slow.last = {last}
store.extract(pictures(Path({folder!r}) / "p"), {{"image": Slow()}}, Path({folder!r}) / "s", workers=1, shard=2)
"""  # noqa: E501


def test_killed_at_a_random_moment_and_started_again_it_is_the_same_store(tmp_path):
    catalogue = pictures(tmp_path / "p")
    tests = Path(__file__).parents[1]
    places = {"tests": str(tests), "root": str(tests.parent), "folder": str(tmp_path)}
    code = KILLED.format(last=random.randint(3, 23), **places)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    assert process.wait() == -signal.SIGKILL
    done = len(list((tmp_path / "s").glob("image/*.json")))
    assert done < 12 and not (tmp_path / "s" / "image.json").exists()
    clean, features = store.extract(catalogue, {"image": Slow()}, tmp_path / "s", shard=2)
    other, expected = store.extract(catalogue, {"image": Slow()}, tmp_path / "undisturbed", shard=2)
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "undisturbed")
    assert clean == other and same(features, expected)


MANY = """
import sys, time; sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from make_media import Slow, pictures
from m5lib.data import store
Slow.last, Slow.pause = {last}, 0.03
folder = Path({folder!r})
catalogue = pictures(folder / "p")
(folder / "ready{last}").touch()
while len(list(folder.glob("ready*"))) < 2:
    time.sleep(0.01)
store.extract(catalogue, {{"image": Slow()}}, folder / "s", workers=1, shard=2)
print(len(Slow.calls))
"""


def test_two_at_once_share_the_work_and_one_that_is_killed_loses_a_shard_at_most(tmp_path):
    """The second dies at its sixth file; what it had written is not done again."""
    catalogue, root = pictures(tmp_path / "p"), Path(__file__).parents[1]
    started = []
    for last in (99, 6):
        code = MANY.format(last=last, tests=str(root), root=str(root.parent), folder=str(tmp_path))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", code], **pipes))
    said = [process.communicate()[0] for process in started]
    codes = [process.returncode for process in started]
    # a machine that is busy may let the second come too late for its sixth
    assert codes[0] == 0 and codes[1] in (0, -signal.SIGKILL)
    clean, features = store.extract(catalogue, {"image": Slow()}, tmp_path / "s", shard=2)
    other, expected = store.extract(catalogue, {"image": Slow()}, tmp_path / "alone", shard=2)
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "alone")
    assert clean == other and same(features, expected)
    seen, files = int(said[0].split()[-1]), len(catalogue)
    assert seen == files - 4 if codes[1] else seen == files - int(said[1].split()[-1])


def test_a_shard_that_another_is_at_is_left_to_it(tmp_path):
    """And the index comes last, when that is done too."""
    catalogue, folder = pictures(tmp_path / "p"), tmp_path / "s"
    store.extract(catalogue, {"image": Crops()}, folder, shard=4)
    expected, index = bytes_of(folder), folder / "image.json"
    stems = json.loads(index.read_text())["shards"]
    index.unlink()
    for path in (folder / "image").glob(f"{stems[0]}.*"), (folder / "image").glob(f"{stems[3]}.*"):
        [file.unlink() for file in path]
    work = Thread(target=store.extract, args=(catalogue, {"image": Crops()}, folder, 1, 4))
    with locked(folder / "image" / f"{stems[0]}.lock"):
        work.start()
        while not (folder / "image" / f"{stems[3]}.json").exists():
            sleep(0.01)
        work.join(0.3)
        assert work.is_alive() and not index.exists()
        assert not (folder / "image" / f"{stems[0]}.json").exists()
    work.join()
    assert bytes_of(folder) == expected


def test_an_executor_or_processes_give_the_bytes_of_one(mixed, tmp_path):
    store.extract(mixed, PLAIN, tmp_path / "one", shard=3)
    with ProcessPoolExecutor(2, get_context("spawn")) as executor:
        options = {"shard": 3, "processes": 2}
        found = store.extract(mixed, PLAIN, tmp_path / "far", executor=executor, **options)
    here = store.extract(mixed, PLAIN, tmp_path / "here", **options)
    assert found[0] == here[0] and same(found[1], here[1])
    for folder in ("far", "here"):
        assert bytes_of(tmp_path / folder) == bytes_of(tmp_path / "one")


def test_a_fault_that_may_pass_is_tried_again(tmp_path, monkeypatch):
    catalogue, call, broken = pictures(tmp_path / "p", 3), Crops.__call__, [True]

    def flaky(self, file):
        if broken and file.path.stem == "1":
            raise OSError(5, "Input/output error")
        return call(self, file)

    monkeypatch.setattr(Crops, "__call__", flaky)
    clean, _ = store.extract(catalogue, {"image": Crops()}, tmp_path / "s")
    assert [(s.where, s.reason) for s in clean.skipped] == [
        ("p1", "cannot be read: Input/output error")
    ]
    broken.clear()
    clean, features = store.extract(catalogue, {"image": Crops()}, tmp_path / "s")
    assert not clean.skipped and np.diff(features["image"].offsets).tolist() == [14, 14, 14]


def test_a_store_can_be_moved(mixed, tmp_path, monkeypatch):
    _, features = store.extract(mixed, PLAIN, tmp_path / "s", shard=3)
    for name, r in features.items():
        features[name] = r._replace(
            values=r.values[:], boxes=None if r.boxes is None else r.boxes[:]
        )
    (tmp_path / "s").rename(tmp_path / "moved")
    for kind in (Crops, Frames, Mfcc):
        monkeypatch.setattr(kind, "__call__", None)  # nothing is made again
    _, read = store.extract(mixed, PLAIN, tmp_path / "moved", shard=3)
    assert same(read, features)


def test_a_damaged_store_is_mended(tmp_path):
    catalogue = pictures(tmp_path / "p")
    _, features = store.extract(catalogue, {"image": Crops()}, tmp_path / "s", shard=5)
    before = bytes_of(tmp_path / "s")
    shard = sorted((tmp_path / "s" / "image").glob("*[!s].npy"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    store.extract(catalogue, {"image": Crops()}, tmp_path / "s", shard=5)
    assert bytes_of(tmp_path / "s") == before


def test_settings_count_weights_by_content_and_leave_devices_out(tmp_path):
    from m5lib.data.networks import Clips

    (tmp_path / "a.pt").write_bytes(b"weights")
    (tmp_path / "b.pt").write_bytes(b"weights")
    a, b = (
        store.settings(Clips(weights=tmp_path / "a.pt")),
        store.settings(Clips(weights=tmp_path / "b.pt", device="cuda")),
    )
    assert a == b and "device" not in a and str(tmp_path) not in json.dumps(a)
    (tmp_path / "b.pt").write_bytes(b"wEights")
    assert store.settings(Clips(weights=tmp_path / "b.pt")) != a
    assert store.settings(Frames()) != store.settings(Frames(cells=2)) and store.settings(
        Slow()
    ) != store.settings(Crops())


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("mapped"), np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3)).astype(np.float16) for n in (4, 1, 7, 2)]
    for n, part in enumerate(parts):
        np.save(folder / f"{n}.npy", part)
    return store.Mapped([folder / f"{n}.npy" for n in range(4)], [4, 1, 7, 2], 3), np.concatenate(
        parts
    )


@given(st.lists(st.integers(-14, 13), max_size=20), st.integers(-20, 20), st.integers(-20, 20))
def test_mapped_is_indexed_like_an_array(mapped, rows, start, stop):
    array, expected = mapped
    for index in (
        np.array(rows, int),
        slice(start, stop),
        slice(None, None, 3),
        np.arange(14) % 3 == 0,
        np.array(5),
    ):
        assert np.array_equal(array[index], expected[index])
        assert np.array_equal(pickle.loads(pickle.dumps(array))[index], expected[index])
    assert np.array_equal(array[np.array([[1, 13], [4, 4]])], expected[np.array([[1, 13], [4, 4]])])


def test_mapped_is_read_in_other_processes(mapped):
    array, expected = mapped
    with pytest.raises(IndexError):
        array[np.array([14])]
    assert array.shape == expected.shape and len(array) == 14 and array.dtype == np.float16
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert all(
            np.array_equal(a, expected[n : n + 3])
            for n, a in enumerate(pool.map(_read, [array] * 10, range(10)))
        )


def _read(array, start):
    return array[start : start + 3]
