"""A catalogue of a million products: how long it takes to open, to feed, and to search.

    python benchmarks/millions.py                # 1,000,000 products: 3 GB in a temporary folder
    python benchmarks/millions.py 20000 --keep /disk/folder    # goes on where it was stopped

writes ``benchmarks/millions.json``. The products are made up: titles, tables and small features of
all five modalities, present as often as in the synthetic shop. Each step runs in a process of its
own, so that its peak of memory is its own: ``peak_gib`` is all that it came to hold (``ru_maxrss``:
pages of mapped files that were in memory are counted), ``own_gib`` without those pages at its end,
``imports_gib`` what it held before it began. Files were just written, and are read from memory.
``processor_seconds`` are what the process used: on a processor that others use too they
say more than the clock, and rates are by them too.

``wide`` feeds features of the paper's sizes, of few products; then by two loaders too.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from m5lib import pretrain
from m5lib.catalogue import Catalogue, Product
from m5lib.data import MediaFile, columns, store
from m5lib.data.store import Mapped
from m5lib.evaluation import metrics
from m5lib.models.parallel import ahead
from m5lib.models.words import pieces, train_tokenizer
from m5lib.streams import Ragged, Streams, load_tokenizer

HERE = Path(__file__).parent
#: Tokens and width of each feature modality, small and the paper's; share of products that has it.
SMALL = {"image": (4, 64), "video": (4, 32), "audio": (8, 32)}
WIDE = {"image": (36, 2048), "video": (12, 1024), "audio": (80, 751)}
SHARES = {"image": 0.98, "text": 0.99, "table": 0.97, "video": 0.85, "audio": 0.82}
SHARD, BATCH, WIDTH, QUERIES = 16_384, 256, 256, 1_000


def products(count: int):
    """Made-up products: titles of 6 to 14 words, tables of 3 to 8 pairs."""
    rng = np.random.default_rng(0)
    letters, vowels = "bcdfgklmnprstvz", "aeiou"
    syllables = [a + b for a in letters for b in vowels]
    words = np.array(["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(20_000)])
    names = [str(word) for word in words[:200]]
    for start in range(0, count, 10_000):
        size = min(10_000, count - start)
        there = rng.random((size, 2)) < (SHARES["text"], SHARES["table"])
        lengths, pairs = rng.integers(6, 15, size), rng.integers(3, 9, size)
        drawn = (len(words) * rng.random((size, 30)) ** 3).astype(int)  # few are frequent
        for n in range(size):
            title, cells = words[drawn[n, : lengths[n]]], words[drawn[n, 14 : 14 + 2 * pairs[n]]]
            table = tuple((names[k], str(cell)) for k, cell in enumerate(cells[: pairs[n]]))
            contents = {"text": " ".join(title)} if there[n, 0] or not there[n, 1] else {}
            contents |= {"table": table} if there[n, 1] else {}
            for name, has in zip(
                SMALL, rng.random(3) < [SHARES[name] for name in SMALL], strict=True
            ):
                file = MediaFile(Path("/media") / name / f"p{start + n:07d}.bin", size=100_000 + n)
                contents |= {name: file} if has else {}
            yield Product(f"p{start + n:07d}", contents, label=names[drawn[n, 0] % 200])


def features(folder: Path, catalogue: Catalogue, sizes: dict) -> dict[str, Ragged]:
    """Random features in shards."""
    rng, made, count = np.random.default_rng(1), {}, len(catalogue)
    for name, (tokens, width) in sizes.items():
        lengths = tokens * catalogue.presence[name].to_numpy()
        (folder / name).mkdir(parents=True, exist_ok=True)
        arrays = {"values": width} | ({"boxes": 5} if name == "image" else {})
        cuts = [lengths[start : start + SHARD].sum() for start in range(0, count, SHARD)]
        files = {
            key: [folder / name / f"{n}.{key}.npy" for n in range(len(cuts))] for key in arrays
        }
        for key, paths in files.items():
            for path, rows in zip(paths, cuts, strict=True):
                np.save(path, rng.random((rows, arrays[key]), dtype=np.float32).astype(np.float16))
        mapped = {key: Mapped(files[key], cuts, size) for key, size in arrays.items()}
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        made[name] = Ragged(offsets=offsets, settings={"extractor": "made up"}, **mapped)
    return made


def steps(folder: Path, count: int) -> dict:
    """The steps by name, in their order."""

    def make() -> dict:
        catalogue = Catalogue("millions", tuple(products(count)))
        train_tokenizer(catalogue.take(range(min(count, 50_000))), 8000).save_pretrained(
            folder / "tokenizer"
        )
        columns.keep(folder, catalogue, {})
        return {"products": count}

    def tokenise() -> dict:
        catalogue, _ = columns.opened(folder)
        made = pieces(load_tokenizer(folder / "tokenizer"))
        begun = Watch()
        catalogue, words = store.extract(catalogue, made, folder, 1, SHARD)
        taken = begun.rate(count)
        tokens = sum(len(ragged.values) for ragged in words.values())
        columns.keep(folder, catalogue, words | features(folder, catalogue, SMALL))
        return taken | {"word_pieces": tokens}

    def opened() -> Streams:
        return Streams(*columns.opened(folder), load_tokenizer(folder / "tokenizer"))

    def open_() -> dict:
        begun = Watch()
        streams = opened()
        batch, opening = streams.batch(range(BATCH)), begun.taken()
        splits = {name: len(streams.catalogue.split(name)) for name in ("train", "query")}
        done = {f"{key}_with_splits": value for key, value in begun.taken().items()}
        return opening | done | splits | {"modalities": len(batch.streams)}

    def feed() -> dict:
        return fed(opened())

    def retrieve() -> dict:
        path, rng = folder / "vectors.npy", np.random.default_rng(0)
        shape = (count, WIDTH)
        vectors = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        for start in range(0, count, SHARD):
            some = rng.standard_normal((min(SHARD, count - start), WIDTH), dtype=np.float32)
            vectors[start : start + SHARD] = some
        vectors.flush()
        catalogue, _ = columns.opened(folder)
        vectors, begun = np.load(path, mmap_mode="r"), Watch()
        asked = catalogue.split("query")[:QUERIES]
        found = metrics.rank(vectors[asked], vectors, 10, catalogue.ids[asked], catalogue.ids)
        taken = begun.rate(len(asked))
        hits = [catalogue.products[row] for row in found[0]]  # made from the file
        assert len({hit.id for hit in hits} - {catalogue.ids[asked[0]]}) == 10
        return {"queries": len(asked), "width": WIDTH} | taken

    def wide(loaders: int = 0) -> dict:
        some = min(count, 4_000)
        catalogue, _ = columns.opened(folder)
        part, few = catalogue.take(range(some)), load_tokenizer(folder / "tokenizer")
        streams = Streams(part, features(folder / "wide", part, WIDE), few)
        size = sum(file.stat().st_size for file in (folder / "wide").rglob("*.npy"))
        return fed(streams, loaders=loaders) | {"of": some, "kb_per_product": size / some / 1e3}

    return {
        "make": make,
        "tokenise": tokenise,
        "open": open_,
        "feed": feed,
        "retrieve": retrieve,
        "wide": wide,
        "wide, two loaders": partial(wide, 2),
    }


class Watch:
    """Seconds by the clock, and of the processor."""

    def __init__(self):
        self.clock, self.processor = time.monotonic(), time.process_time()

    def taken(self) -> dict:
        """Since it began."""
        seconds = {"seconds": time.monotonic() - self.clock}
        return seconds | {"processor_seconds": time.process_time() - self.processor}

    def rate(self, count: int) -> dict:
        """How many a second."""
        taken = self.taken()
        return taken | {f"per_{key.removesuffix('s')}": count / x for key, x in taken.items()}


def fed(streams: Streams, seconds: float = 6.0, loaders: int = 0) -> dict:
    """Batches of random products as training gets them, for some seconds of this processor (with
    loaders, of the clock: what they use is not counted); nothing is done with them."""
    rows, training = np.arange(len(streams)), pretrain.Training(batch_size=BATCH)
    wanted = pretrain.drawn(rows, training, range(1_000_000))
    feed = partial(ahead, loaders=loaders) if loaders else map
    batches, products = feed(streams.batch, wanted), 0
    for _ in range(2 * loaders + 1):  # opens the files
        next(batches)
    begun = Watch()
    while begun.taken()["seconds" if loaders else "processor_seconds"] < seconds:
        products += len(next(batches).rows)
    return {"batch": BATCH, "loaders": loaders, "products": products} | begun.rate(products)


def memory() -> dict:
    """GiB: the most that this process held, and what of it is no page of a file."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own = int(status["RssAnon"].split()[0]) / 2**20
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "own": own}


def main() -> None:
    """Each step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--keep", type=Path, help="a folder to work in, which is kept")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        before = memory()["peak"]
        done = steps(given.keep, given.count)[given.step]()
        after = memory()
        done |= {"imports_gib": before, "peak_gib": after["peak"], "own_gib": after["own"]}
        print("=" + json.dumps(done))
        return
    result = {"machine": machine(), "products": given.count}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        done = folder / "done.json"
        finished = json.loads(done.read_text()) if done.exists() else {}
        for step in steps(folder, given.count):
            if step in finished:
                result[step] = finished[step]
                continue
            command = [sys.executable, __file__, str(given.count), "--keep", str(folder)]
            ran = subprocess.run([*command, "--step", step], stdout=subprocess.PIPE, text=True)
            if ran.returncode:
                sys.exit(f"the step {step} failed")
            numbers = json.loads(ran.stdout.rpartition("=")[2]).items()
            finished[step] = {k: round(x, 2) if isinstance(x, float) else x for k, x in numbers}
            result[step] = finished[step]
            done.write_text(json.dumps(finished))
            print(step, result[step], flush=True)
        result["disk_gb"] = {
            "catalogue": sizes(folder.glob("*.arrow")),
            "word pieces": sizes(f for name in ("text", "table") for f in folder.glob(f"{name}/*")),
            "small features": sizes(f for name in SMALL for f in folder.glob(f"{name}/*")),
        }
    result["release, on paper"] = release(result)
    (HERE / "millions.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def release(result: dict, products: int = 6_300_000) -> dict:
    """What the release's products would take, by what was measured: nothing of it was run."""
    times, disk = products / result["products"], result["disk_gb"]
    cores = 3_000 / result["wide"]["per_processor_second"]
    return {
        "products": products,
        "features_of_the_papers_sizes_tb": round(
            products * result["wide"]["kb_per_product"] / 1e9, 2
        ),
        "catalogue_and_word_pieces_gb": round(times * (disk["catalogue"] + disk["word pieces"]), 1),
        "tokenise_core_hours": round(times * result["tokenise"]["processor_seconds"] / 3600, 1),
        "open_core_seconds": round(times * result["open"]["processor_seconds"], 1),
        "own_memory_gib": round(times * (result["open"]["own_gib"] - 0.4) + 0.4, 1),
        "cores_that_feed_3000_a_second": round(cores, 1),
        "disk_that_feeds_3000_a_second_gb": round(3e3 * result["wide"]["kb_per_product"] / 1e6, 2),
        "query_core_seconds": round(times / result["retrieve"]["per_processor_second"], 3),
    }


def sizes(files: Iterable[Path]) -> float:
    """GB of some files."""
    return round(sum(file.stat().st_size for file in files) / 1e9, 3)


def machine() -> dict:
    """What it ran on."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    made = {"processor": names[0] if names else platform.machine(), "cores": os.cpu_count()}
    made |= {"used": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return made | {"load": round(os.getloadavg()[0], 2), "versions": versions}


if __name__ == "__main__":
    main()
