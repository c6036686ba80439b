"""Trainings and extractions that are killed with SIGKILL at random moments, two to four times each,
and then left alone: is the end that of one that was never killed, bit for bit?

    python benchmarks/kills.py --trainings 100 --extractions 50

writes ``benchmarks/kills.json``. Of a training the weights of a finished run and its history are
compared (but for how fast it was), of an extraction every byte of the folder; and that nothing
else is left. The moment of a kill is drawn between the start and a little more than a whole run
takes; it counts only where there was something left to kill. ``--checkpoint`` is the least time
between checkpoints: short, so that many kills meet one that is being written.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve()
LOCK, CARD = ".lock", "README.md"  # the card is written last, by the hub's mixin, if there is time


CONTEXT = multiprocessing.get_context("fork")  # what a worker reads is read once, before all


def train(home: Path, streams, checkpoint: float) -> None:
    """A worker: one tiny run."""
    from m5lib.lab import runs

    os.environ["M5_HOME"] = str(home)
    tiny = runs.PROFILES["tiny"]
    often = replace(tiny.training, checkpoint_seconds=checkpoint)
    runs.PROFILES["tiny"] = replace(tiny, width=16, training=often)
    runs.pretrained(runs.Job("tiny", epochs=4), streams)


def extract(home: Path, catalogue) -> None:
    """A worker: features of the pictures of a shop, in shards of eight."""
    from m5lib.data import store
    from m5lib.data.extractors import PLAIN

    store.extract(catalogue, {"image": PLAIN["image"]}, home / "features", workers=1, shard=8)


def start(work, *arguments):
    """A worker, in a process that one can kill."""
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def finish(process) -> None:
    """Wait for the end of a worker; one that fails ends everything."""
    process.join()
    if process.exitcode:
        raise SystemExit("a worker failed")


def state(home: Path) -> dict[str, str]:
    """Name -> content of all that a finished worker left, but for locks and speeds."""
    found = {}
    for path in sorted(home.rglob("*")):
        if path.is_file() and path.name not in (LOCK, CARD):
            content = path.read_bytes()
            if path.name == "history.jsonl":
                lines = [json.loads(line) for line in content.splitlines()]
                content = json.dumps([{**x, "products_per_second": 0} for x in lines]).encode()
            found[str(path.relative_to(home))] = hashlib.blake2b(content).hexdigest()
    return found


def tried(kind, count: int, make, rng: random.Random, *given) -> dict:
    """What became of ``count`` workers that were killed."""
    name = kind.__name__
    whole = make()
    finish(start(kind, whole, *given))
    again, expected = make(), state(whole)
    process, begun = start(kind, again, *given), time.monotonic()
    finish(process)
    seconds = time.monotonic() - begun
    if state(again) != expected:
        raise SystemExit(f"{name}: two that were left alone differ; nothing can be said")
    kills, different = [], []
    for number in range(count):
        home, wanted, done, late = make(), rng.randint(2, 4), 0, 0
        while done < wanted and late < 8:
            process = start(kind, home, *given)
            # in early parts: else little is left for the later kills
            time.sleep(rng.uniform(0, 1.1 * seconds / (wanted if done + 1 < wanted else 1)))
            process.kill()
            process.join()
            killed = process.exitcode == -signal.SIGKILL
            done, late = done + killed, late + (not killed)
        finish(start(kind, home, *given))
        kills.append(done)
        if state(home) != expected:
            different.append(number)
        print(f"{name} {number + 1}/{count}: killed {done} times", end=" ", flush=True)
        print("DIFFERENT" if different[-1:] == [number] else "equal", flush=True)
    times = {f"killed {n} times": kills.count(n) for n in sorted(set(kills))}
    equal = count - len(different)
    return {"tried": count, "equal": equal, "kills": sum(kills), **times, "files": len(expected)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainings", type=int, default=30)
    parser.add_argument("--extractions", type=int, default=15)
    parser.add_argument("--checkpoint", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from m5lib.data import write_json
    from m5lib.lab import recording, runs

    began, folder, rng = time.monotonic(), Path(tempfile.mkdtemp()), random.Random(options.seed)
    os.environ["M5_HOME"] = str(folder / "shared")
    tiny = runs.profile_of("tiny")
    # made by another process: one that is forked must have no threads and no processes of its own
    code = "from m5lib.lab import runs; runs.load('shop', runs.profile_of('tiny'))"
    subprocess.run([sys.executable, "-c", code], check=True)
    catalogue, features = runs.load("shop", tiny)
    streams = runs.streams_of(catalogue, features, tiny, "I+T")

    def make() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))

    todo = options.trainings, make, rng, streams, options.checkpoint
    content = {"trainings": tried(train, *todo)}
    content["extractions"] = tried(extract, options.extractions, make, rng, catalogue)
    made = recording.provenance("tiny", options.seed, time.monotonic() - began)
    write_json(HERE.with_suffix(".json"), {"provenance": made} | content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
