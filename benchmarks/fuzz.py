"""Small valid files of every format that is read, changed at random and read again: is each read,
or refused by the error that its reader documents?

    python benchmarks/fuzz.py [--count 10000] [--formats csv,png]

writes ``benchmarks/fuzz.json`` after each block of 500; Ctrl-C and the same call go on from
there. Change ``n`` of a format is a function of both: ``python benchmarks/fuzz.py --again png 17``
writes that file and reads it with its traceback. A block is read by a process of its own, with 4 GB
of memory and 30 seconds of processor time for a file: one that ends is a failure, too (``signal``).
``most MB`` is what a block took more at its peak than at its start.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from m5lib.data import MediaFile, m5features, readers  # noqa: E402
from m5lib.data.decoding import frames, open_image, sound  # noqa: E402

CONTEXT, BLOCK, MEMORY, SECONDS = get_context("fork"), 500, 4 * 2**30, 30
#: Imported once, before the processes that read are forked.
SLOW = "pandas pyarrow.parquet ijson lmdb PIL.AvifImagePlugin av torch._dynamo m5lib.search.intake"
ROWS = {
    "id": ["a1", "a2", "a3"],
    "title": ["Tea, green", 'Cup of "clay"', "手\nPot"],
    "label": ["T", "C", ""],
    "image": ["a.jpg", "", "b.jpg"],
    "size": [1, 2, 3],
}
WORDS = [b'"', b"'", b",", b"\n", b"\r", b"\t", b";", b"\\", b"{", b"}", b"[", b"]", b"null", b":"]
WORDS += [b"1e999", b"-1", b"\\ud800", b"\xff", b"\0", b"NaN", b"../", b"9" * 40, b'""', b"#"]


# --- files as they should be


def tables(folder: Path) -> None:
    """The same products in every form of a table."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = pd.DataFrame(ROWS)
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_csv(folder / "a.csv.gz", index=False)
    frame.to_csv(folder / "a.tsv", index=False, sep="\t")
    frame.to_json(folder / "a.jsonl", orient="records", lines=True)
    frame["image"] = [{"bytes": b"x" * 50, "path": None}, None, {"bytes": None, "path": "b.jpg"}]
    frame["size"] = [["s", "m"], [], None]
    pq.write_table(pa.Table.from_pandas(frame), folder / "a.parquet")


def released(folder: Path) -> None:
    """An annotation, and features of the official formats."""
    from make_media import BAG
    from make_release import write_lmdb, write_tsv

    records = {f"{n}": {**BAG, "title": f"title {n}"} for n in range(3)}
    (folder / "a.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    one = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 4), np.float32)
    regions = [[*one, "2", 9, 9, f"{n}", "Tea\nCup"] for n in range(3)]
    write_lmdb(folder / "a.lmdb", regions)
    write_tsv(folder / "a.regions", regions)
    np.save(folder / "a.npy", np.ones((5, 3), np.float16))


def media(folder: Path) -> None:
    """Pictures, films and sounds."""
    from make_media import tone, write_sound, write_video
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    for ending in ("png", "jpg", "webp", "gif", "tiff", "bmp", "avif", "jp2"):
        Image.fromarray(pixels).save(folder / f"a.{ending}")
    for ending in ("mp4", "mkv"):
        write_video(folder / f"a.{ending}", 5, 10, sound=0.5)
    for ending in ("wav", "mp3", "flac"):
        write_sound(folder / f"a.{ending}", tone(0.5))


def model(folder: Path) -> None:
    """A small model; all files of its folder are changed, one at a time."""
    import kills

    os.environ["M5_HOME"] = str(folder / "home")
    place = kills.trained(kills.few(), epochs=1).folder
    for path in (path for path in place.iterdir() if path.suffix in (".safetensors", ".json")):
        shutil.copy(path, folder / f"model.{path.name}")
    shutil.rmtree(folder / "home")


# --- readers, which say how many they read and list


def read_table(path: Path) -> tuple[int, int]:
    """A table, and the files in it."""
    catalogue = readers.read(path)
    for product in catalogue.products:
        for content in product.contents.values():
            if isinstance(content, MediaFile):
                tried(content.read)
    return len(catalogue), len(catalogue.skipped)


def read_annotation(path: Path) -> tuple[int, int]:
    """The official release's annotation."""
    catalogue = readers.read_m5product(path.parent, annotation=path)
    return len(catalogue), len(catalogue.skipped)


def read_regions(path: Path) -> tuple[int, int]:
    """Region records of an LMDB or a TSV."""
    skipped, reader = [], m5features.StoredRegions(3)
    records = m5features.lmdb_records if path.suffix == ".lmdb" else m5features.tsv_records
    found = [tried(reader, record.file) for record in records(path, skipped)]
    return sum(found), len(skipped) + len(found) - sum(found)


def tried(work: Callable, *given) -> bool:
    """Whether a file was read; what it documents is a listed skip."""
    try:
        work(*given)
    except (readers.DataError, m5features.MediaError, OSError):
        return False
    return True


def of_file(work: Callable) -> Callable[[Path], tuple[int, int]]:
    """The reader of one media file."""

    def read(path: Path) -> tuple[int, int]:
        work(MediaFile(path, size=path.stat().st_size))
        return 1, 0

    return read


def read_model(path: Path) -> tuple[int, int]:
    """A folder of a model, of which this file is changed."""
    from m5lib.search import intake

    folder = path.parent / f"{path.name}-folder"
    folder.mkdir(exist_ok=True)
    for other in (path.parent.parent / "seeds").glob("model.*"):
        shutil.copy(other, folder / other.name.removeprefix("model."))
    shutil.copy(path, folder / path.name.split("-", 1)[1].removeprefix("model."))
    try:
        intake.load_model(folder)
    finally:
        shutil.rmtree(folder)
    return 1, 0


#: Format -> what makes it, how it is read, and the errors that may be raised.
REFUSED = (readers.DataError, m5features.MediaError)
PICTURE, FILM = of_file(open_image), of_file(lambda file: frames(file, [0, 0.3, 9], 16))
FORMATS: dict[str, tuple[Callable, Callable, tuple]] = {
    **{f"a.{end}": (tables, read_table, REFUSED) for end in ("csv", "tsv", "jsonl", "parquet")},
    "a.csv.gz": (tables, read_table, REFUSED),
    "a.json": (released, read_annotation, REFUSED),
    "a.npy": (released, of_file(m5features.StoredRows(3, 9)), REFUSED),
    "a.lmdb": (released, read_regions, REFUSED),
    "a.regions": (released, read_regions, REFUSED),
    **{f"a.{e}": (media, PICTURE, REFUSED) for e in ("png", "jpg", "webp", "gif", "tiff", "bmp")},
    **{f"a.{end}": (media, PICTURE, REFUSED) for end in ("avif", "jp2")},
    **{f"a.{end}": (media, of_file(sound), REFUSED) for end in ("wav", "mp3", "flac")},
    **{f"a.{end}": (media, FILM, REFUSED) for end in ("mp4", "mkv")},
    "model.model.safetensors": (model, read_model, (ValueError, FileNotFoundError)),
    "model.config.json": (model, read_model, (ValueError, FileNotFoundError)),
    "model.preprocessor_config.json": (model, read_model, (ValueError, FileNotFoundError)),
    "model.tokenizer.json": (model, read_model, (ValueError, FileNotFoundError)),
}


# --- changes


def changed(data: bytes, rng: random.Random) -> bytes:
    """A file with one to six changes."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, much = rng.randrange(len(content) + 1), rng.randint(1, max(1, len(content) // 4))
        kind = rng.randrange(8)
        if kind == 0 and content:  # a bit
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif kind == 1 and content:  # a byte
            content[at % len(content)] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif kind == 2:  # a number
            width, order = rng.choice([2, 4, 8]), rng.choice(["little", "big"])
            value = rng.choice([0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width) - 1, 65_536])
            content[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, order)
        elif kind == 3:
            del content[at : at + much]
        elif kind == 4:
            content[at:at] = content[at : at + much]
        elif kind == 5:
            content[at:at] = rng.choice(WORDS)
        elif kind == 6:
            content[at : at + rng.randint(1, 9)] = rng.randbytes(rng.randint(1, 9))
        elif rng.random() < 0.3:
            del content[at:]
    return bytes(content)


def change(name: str, n: int, folder: Path) -> Path:
    """File ``n`` of a format, written into the folder."""
    path = folder / f"{n}-{name}"
    data = (folder.parent / "seeds" / name).read_bytes()
    path.write_bytes(changed(data, random.Random(f"{name} {n}")))
    return path


def outcome(name: str, path: Path) -> str:
    """``read``, ``read, some listed``, ``refused``, or the name of an error that should not be."""
    _, read, errors = FORMATS[name]
    try:
        _, listed = read(path)
        return "read, some listed" if listed else "read"
    except errors:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:150]


def worker(name: str, numbers: range, folder: Path, report: int) -> None:
    """Read some files; a line for each, and the growth of memory."""
    sys.stdout = sys.stderr = open(os.devnull, "w")
    os.dup2(sys.stderr.fileno(), 2)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in numbers:
        path = change(name, n, folder)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
        said = outcome(name, path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.unlink()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024
        os.write(report, (json.dumps([n, said, grown]) + "\n").encode())


def block(name: str, numbers: range, folder: Path) -> Iterator[list]:
    """Number, outcome and growth of memory of each file."""
    while numbers:
        into, out = os.pipe()
        process = CONTEXT.Process(target=worker, args=(name, numbers, folder, out))
        process.start()
        os.close(out)
        with open(into) as lines:
            done = [json.loads(line) for line in lines if line.endswith("\n")]
        process.join()
        yield from done
        numbers = numbers[len(done) :]
        if numbers:
            yield [numbers[0], f"signal {-process.exitcode}", 0]
            numbers = numbers[1:]


def prepare(folder: Path) -> None:
    """Files as they should be; by a process of its own, so that this one starts no thread."""
    seeds = folder / "seeds"
    (folder / "changed").mkdir(parents=True, exist_ok=True)
    for make in (tables, released, media, model):
        names = [name for name, (by, *_) in FORMATS.items() if by is make]
        if not all((seeds / name).exists() for name in names):
            seeds.mkdir(exist_ok=True)
            process = CONTEXT.Process(target=make, args=(seeds,))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{make.__name__}: no files to change")


def summed(blocks: list[dict]) -> dict:
    """The figures of one format."""
    counts, failures = Counter(), {}
    for some in blocks:
        counts.update(some["counts"])
        failures |= some["failures"]
    most = max((some["most MB"] for some in blocks), default=0)
    kinds = {kind: counts[kind] for kind in ("read", "read, some listed", "refused")}
    tried = sum(counts.values())
    return {"tried": tried, **kinds, "failed": tried - sum(kinds.values()), "most MB": most} | (
        {"failures": failures} if failures else {}
    )


def main() -> None:
    """Change, read, count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--formats", default="", help="all, if empty")
    parser.add_argument("--again", nargs=2, metavar=("FORMAT", "N"))
    options = parser.parse_args()
    from m5lib.data import write_json
    from m5lib.lab import ROOMS, code_version, recording

    folder = Path(tempfile.gettempdir()) / "fuzz"
    prepare(folder)
    for slow in SLOW.split():
        import_module(slow)
    if options.again:
        path = change(options.again[0], int(options.again[1]), folder / "changed")
        print(path, FORMATS[options.again[0]][1](path))
        return
    log, began = folder / f"blocks-{code_version(*ROOMS)}.jsonl", time.monotonic()
    blocks = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(some["format"], some["start"]) for some in blocks}
    names = options.formats.split(",") if options.formats else list(FORMATS)
    for start in range(0, options.count, BLOCK):
        for name in (name for name in names if (name, start) not in done):
            some = list(block(name, range(start, start + BLOCK), folder / "changed"))
            usual = ("read", "read, some listed", "refused")
            counts = Counter(said if said in usual else "failed" for _, said, _ in some)
            failures = {str(n): said for n, said, _ in some if said not in usual}
            most = max(grown for *_, grown in some)
            line = {"format": name, "start": start, "counts": counts, "failures": failures}
            blocks.append(line | {"most MB": most, "seconds": time.monotonic() - began})
            began = time.monotonic()
            with open(log, "a") as file:
                file.write(json.dumps(blocks[-1]) + "\n")
            if failures:
                print(f"{name}: {failures}", flush=True)
        print(f"{start + BLOCK:,} of {options.count:,}", flush=True)
        found = {name: summed([b for b in blocks if b["format"] == name]) for name in FORMATS}
        spent = sum(some["seconds"] for some in blocks)
        made = recording.provenance("tiny", 0, spent)
        content = {"provenance": made, "asked for": options.count, "formats": found}
        write_json(HERE.with_suffix(".json"), content)


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
