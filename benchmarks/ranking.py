"""Exact ranking at the size of the paper's coarse retrieval: seconds, products per second, memory.

    python benchmarks/ranking.py [folder for the memory maps]

writes ``benchmarks/ranking.json``. Each case runs in a process of its own, so that its peak of
memory is its own: ``peak_gib`` is what the process came to hold at most (``ru_maxrss``: the pages
of the memory-mapped gallery that were in memory are counted), ``anonymous_gib`` the same without
pages of files, sampled, and ``before_gib`` what it held before ranking. The gallery is random half
precision in a file. ``plain`` scores all pairs at once in float32, sorts each query's whole list by
:func:`numpy.argpartition` and breaks no ties; it runs at sizes where both fit, right after ours.
"""

import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from m5lib.evaluation.metrics import rank

HERE = Path(__file__).parent
#: name -> queries, gallery, dimensions, whether the plain path runs too
CASES = {
    "both paths": (1_000, 100_000, 256, True),
    "query-c against gallery-c, narrow": (24_000, 1_200_000, 64, False),
    "gallery-c at full width, fewer queries": (512, 1_200_000, 768, False),
}


def plain(queries: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    """All at once: normalised copies, every score, one partition per query."""
    queries, gallery = (x.astype(np.float32) for x in (queries, gallery))
    scores = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    ).T
    best = np.argpartition(-scores, k, axis=1)[:, :k]
    return np.take_along_axis(
        best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1
    )


def anonymous() -> float:
    """GiB of this process's memory that no file backs."""
    return (
        next(
            int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")
        )
        / 2**20
    )


def write_gallery(path: Path, size: int, width: int) -> np.memmap:
    """Random half-precision vectors, written in parts."""
    gallery, rng = np.memmap(path, np.float16, "w+", shape=(size, width)), np.random.default_rng(0)
    for start in range(0, size, 50_000):
        gallery[start : start + 50_000] = rng.standard_normal(
            (min(50_000, size - start), width), dtype=np.float32
        )
    gallery.flush()
    return gallery


def case(folder: Path, queries: int, size: int, width: int, compare: bool, k: int = 10) -> dict:
    """One measurement."""
    torch.set_num_threads(1)
    gallery = np.memmap(folder / f"{size}x{width}", np.float16, "r", shape=(size, width))
    asked = np.random.default_rng(1).standard_normal((queries, width), dtype=np.float32)
    ids = np.array([f"q{n}" for n in range(queries)]), np.array([f"g{n}" for n in range(size)])
    before, most, done = anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    found = rank(asked, gallery, k, *ids)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    result = {
        "queries": queries,
        "gallery": size,
        "dimensions": width,
        "k": k,
        "seconds": round(seconds, 2),
        "pairs_per_second": round(queries * size / seconds),
        "queries_per_second": round(queries / seconds, 1),
        "gallery_products_per_second": round(size / seconds),
        "before_gib": round(before, 2),
        "anonymous_gib": round(max(most), 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    if compare:
        start = time.perf_counter()
        other = plain(asked, gallery, k)
        result["plain_seconds"] = round(time.perf_counter() - start, 2)
        result["plain_seconds_over_ours"] = round(result["plain_seconds"] / seconds, 2)
        result["plain_peak_gib"] = round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
        )
        result["same_places"] = round(float((other == found).mean()), 6)
    return result


def main(folder: Path) -> dict:
    """All measurements."""
    found = {}
    for name, settings in CASES.items():
        path = folder / f"{settings[1]}x{settings[2]}"
        write_gallery(path, *settings[1:3])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(case, (folder, *settings))
        print(f"{name}: {found[name]}", flush=True)
        path.unlink()
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        results = main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            results = main(Path(scratch))
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.processor() or platform.machine()}, 1 thread"
    )
    machine = {"device": device, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    text = json.dumps({"machine": machine, "versions": versions, **results}, indent=1)
    (HERE / "ranking.json").write_text(text + "\n")
