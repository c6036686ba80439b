"""Whether another allocator of memory trains faster on a processor: the library's own training of
SCALE in child processes with glibc's, jemalloc's and tcmalloc's, in turns.

    python benchmarks/allocator.py  # Debian's libjemalloc2 and libtcmalloc-minimal4

writes ``benchmarks/allocator.json``: products per second, the ratio to glibc's in the same turn
(median, least, most), and whether the weights are the same.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from m5lib import data as files
from m5lib.lab import recording

PRELOADED = {"glibc": "", "jemalloc": "libjemalloc.so.2", "tcmalloc": "libtcmalloc_minimal.so.4"}
TURNS, STEPS = 5, 120


def child() -> None:
    """Train on the tiny shop at the size of ``small``; print the median pace and a checksum."""
    import tempfile

    import torch

    from m5lib.lab import runs
    from m5lib.model import Model
    from m5lib.models import zoo
    from m5lib.pretrain import Training, pretrain

    torch.set_num_threads(1)
    size = runs.profile_of("tiny")
    streams = runs.streams_of(*runs.load("shop", size), size)
    torch.manual_seed(0)
    model = Model(zoo.scale(width=128, layers=1, heads=4).fit(streams))
    training = Training(steps=STEPS, batch_size=32, learning_rate=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        history = pretrain(model, streams, training, Path(folder), streams.catalogue.split("train"))
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    pace = median(line["products_per_second"] for line in history[STEPS // 4 :])
    print(json.dumps([pace, hashlib.blake2b(weights).hexdigest()]))


def main() -> None:
    """Measure in turns, and write."""
    paces, sums = {name: [] for name in PRELOADED}, set()
    for turn in range(TURNS):
        for name, library in PRELOADED.items():
            given = os.environ | {"LD_PRELOAD": library, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "child"]
            done = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
            if "LD_PRELOAD" in done.stderr:  # the loader only warns
                raise SystemExit(done.stderr.splitlines()[0])
            pace, weights = json.loads(done.stdout.splitlines()[-1])
            paces[name].append(pace)
            sums.add(weights)
            print(turn, name, round(pace), flush=True)
    rows = []
    for name, own in paces.items():
        ratios = [one / other for one, other in zip(own, paces["glibc"], strict=True)]
        row = {"allocator": name, "products per second": round(median(own), 1)}
        times = {"ratio": median(ratios), "least": min(ratios), "most": max(ratios)}
        rows.append(row | {key: round(value, 3) for key, value in times.items()})
    made = recording.provenance("small", 0, 0.0)
    content = {"provenance": made, "rows": rows, "same weights": len(sums) == 1}
    files.write_json(Path(__file__).with_suffix(".json"), content)
    print(content)


if __name__ == "__main__":
    child() if sys.argv[1:] == ["child"] else main()
