"""Making, extracting and reading the small shop: seconds, listings per second, bytes on disk.

    python benchmarks/shop.py

writes ``benchmarks/shop.json``. ``all cores`` beside ``one core`` in one run; the shop is made in a
scratch folder.
"""

import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from m5lib.data import store
from m5lib.data.extractors import PLAIN
from m5lib.models.words import train_tokenizer
from m5lib.shop import listings
from m5lib.streams import Streams

HERE = Path(__file__).parent


def timed(work):
    """Seconds, and what the work gave."""
    start = time.perf_counter()
    found = work()
    return round(time.perf_counter() - start, 2), found


def main(scratch: Path) -> dict:
    """All measurements."""
    found: dict = {
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "load": os.getloadavg()[0],
        }
    }
    sample = 480
    one, _ = timed(lambda: listings.make(sample, 0, scratch / "one", workers=1))
    every, _ = timed(lambda: listings.make(sample, 0, scratch / "all"))
    found["listings per second"] = {
        "one core": round(sample / one, 1),
        "all cores": round(sample / every, 1),
        "ratio": round(one / every, 2),
    }
    seconds, catalogue = timed(lambda: listings.make("small", 0, scratch / "small"))
    size = sum(path.stat().st_size for path in (scratch / "small").rglob("*") if path.is_file())
    found["small shop"] = {
        "listings": len(catalogue),
        "seconds": seconds,
        "megabytes": round(size / 1e6, 1),
    }
    seconds, (catalogue, features) = timed(
        lambda: store.extract(catalogue, PLAIN, scratch / "features")
    )
    found["small shop"]["seconds to extract"] = seconds
    again, _ = timed(lambda: store.extract(catalogue, PLAIN, scratch / "features"))
    found["small shop"]["seconds to open the finished store"] = again
    streams, rows = (
        Streams(catalogue, features, train_tokenizer(catalogue, 4000)),
        np.arange(len(catalogue)),
    )
    seconds, _ = timed(
        lambda: [streams.batch(rows[start : start + 64]) for start in range(0, len(rows), 64)]
    )
    found["small shop"]["products per second into batches"] = round(len(rows) / seconds)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        result = main(Path(folder))
    (HERE / "shop.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
