"""Trainings, extractions and sweeps that are killed with SIGKILL at random moments, two to four
times each (a sweep twice), and then left alone: is the end that of one that was never killed, bit
for bit?

    python benchmarks/kills.py [--trainings 100] [--extractions 50] [--sweeps 10]

writes ``benchmarks/kills.json``, after every trial; Ctrl-C and the same call go on from there. Of a
training the weights of a finished run and its history are compared (but for how fast it was), of an
extraction every byte of the folder, of a sweep the runs that it trained and the rows that
``collect`` gives; and that nothing else is left. A training and an extraction are killed between
the start and a little more than a whole one takes; a sweep, two runs at a time, with all its
kernels, while both train. A kill is ``inside`` where work had reached the disk and was not finished
there. Checkpoints are written as often as one can, so that many kills meet one.
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
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve()
LOCK, CARD = ".lock", "README.md"  # the card is written last, by the hub's mixin, if there is time
CONTEXT = multiprocessing.get_context("fork")  # what a worker reads is read once, before all
POINTS = 2  # runs of a sweep

#: What a sweep runs: the training below, and one row for each epoch of its history.
PARAMETERS = 'seed = 0  # of the run\nrecord = ""  # name of the rows'
WORK = """import sys; sys.path.insert(0, {benchmarks!r})
import json, os, pathlib
import kills
run = kills.trained(kills.few(), seed, {epochs})
same = dict(notebook="kills", run=run.name, data="shop", profile="tiny", seed=seed, model="scale")
same |= dict(state="pretrained", modalities="I+T", variant="")
same["numbers"] = [["training", f"loss {{x['step']}}", "", x["loss"]] for x in run.history]
folder = pathlib.Path(os.environ["M5_RESULTS"])
(folder / f"{{record}}.json").write_text(json.dumps({{"provenance": {{}}, "measured": [same]}}))"""


def few():
    """Streams of few products, without labels: no time goes into validation."""
    from m5lib import home
    from m5lib.data import store
    from m5lib.data.extractors import PLAIN
    from m5lib.lab import runs
    from m5lib.shop import listings

    tiny = runs.profile_of("tiny")
    catalogue = runs.thin(listings.make(size="tiny"), 40)
    plain = tuple(replace(product, label=None) for product in catalogue.products)
    catalogue = replace(catalogue, products=plain)
    features = store.extract(
        catalogue, {"image": PLAIN["image"]}, home("cache", "kills"), workers=1
    )
    return runs.streams_of(*features, tiny, "I+T")


def trained(streams, seed: int = 0, epochs: int = 8):
    """One tiny run, a checkpoint after every step."""
    from m5lib.lab import runs

    tiny = runs.PROFILES["tiny"]
    often = replace(tiny.training, checkpoint_seconds=0.0, batch_size=8)
    runs.PROFILES["tiny"] = replace(tiny, width=8, heads=1, training=often)
    return runs.pretrained(runs.Job("tiny", seed=seed, epochs=epochs), streams)


def training(home: Path, streams) -> None:
    """A worker: one run."""
    os.environ["M5_HOME"] = str(home)
    trained(streams)


def extraction(home: Path, catalogue) -> None:
    """A worker: features of the pictures of a shop, in shards of eight."""
    from m5lib.data import store
    from m5lib.data.extractors import PLAIN

    store.extract(catalogue, {"image": PLAIN["image"]}, home / "features", workers=1, shard=8)


def sweep(home: Path, book: Path) -> None:
    """A worker: a sweep, two kernels side by side; its rows in a file."""
    from m5lib.lab import sweep

    os.environ |= {"M5_HOME": str(home), "PYTHONPATH": str(HERE.parents[1])}
    os.setsid()
    frame = sweep.sweep(book, {"seed": list(range(POINTS))}, workers=2)
    if set(frame["status"]) - {"finished", "cached"}:
        raise SystemExit(1)
    sweep.collect(frame).to_json(home / "rows.json", orient="records")


def runs_at_work(home: Path) -> int:
    """Trainings that have begun and have not ended."""
    folders = [path.parent for path in home.glob("runs/*/history.jsonl")]
    return sum(not (folder / "model.safetensors").exists() for folder in folders)


def shards_at_work(home: Path) -> int:
    """Whether some shards are there, and not all."""
    some = any(home.glob("features/image/*.json"))
    return int(some and not (home / "features" / "image.json").exists())


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


def kill(process) -> bool:
    """A worker and all that it started, at once; whether it was there to be killed."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(family, timeout=60)
    process.join()
    return process.exitcode == -signal.SIGKILL


def state(home: Path) -> dict[str, str]:
    """Name -> content of all that a finished worker left, but for locks, speeds and what a sweep
    says of its runs."""
    found = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.is_file() and path.name not in (LOCK, CARD) and not name.startswith("sweeps/"):
            content = path.read_bytes()
            if path.name == "history.jsonl":
                lines = [json.loads(line) for line in content.splitlines()]
                content = json.dumps([{**x, "products_per_second": 0} for x in lines]).encode()
            found[name] = hashlib.blake2b(content).hexdigest()
    return found


def moment(kind, home: Path, process, seconds: float, parts: int, rng: random.Random) -> None:
    """Wait for the moment of a kill: of the last of some ``parts`` anywhere in the time of a whole
    one, of earlier ones in an early part of it, or little is left for the later ones."""
    if kind is not sweep:
        time.sleep(rng.uniform(0, 1.1 * seconds / parts))
        return
    while process.is_alive() and runs_at_work(home) < 2:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, seconds / 4 / parts))


def trial(kind, at_work, home: Path, expected: dict, seconds: float, rng, *given) -> dict:
    """What became of one worker that was killed two to four times."""
    wanted, kills, inside, late = rng.randint(2, 4), 0, 0, 0
    wanted = min(wanted, 2 + (kind is not sweep) * 2)
    while kills < wanted and late < 8:
        process = start(kind, home, *given)
        parts = wanted if kills + 1 < wanted else 1
        moment(kind, home, process, seconds, parts, rng)
        killed = kill(process)
        met = killed and at_work(home) >= (2 if kind is sweep else 1)
        kills, inside, late = kills + killed, inside + met, late + (not killed)
        if kind is sweep and not met:
            break  # fewer than two runs are left
    finish(start(kind, home, *given))
    return {"kills": kills, "inside": inside, "equal": state(home) == expected}


def counted(outcomes: list[dict], wanted: int) -> dict:
    """The figures of one kind."""
    kills = [outcome["kills"] for outcome in outcomes]
    return {
        "asked for": wanted,
        "tried": len(outcomes),
        "equal": sum(outcome["equal"] for outcome in outcomes),
        "kills": sum(kills),
        "inside": sum(outcome["inside"] for outcome in outcomes),
        **{f"killed {n} times": kills.count(n) for n in sorted(set(kills))},
    }


def prepare(folder: Path) -> dict:
    """What the workers are given, by kind. The shop is made by another process: one that is forked
    must have no threads of its own, and has imported what is slow to import."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    from m5lib.lab import code_version
    from m5lib.shop import listings

    for slow in ("torch._dynamo", "m5lib.lab.sweep"):
        import_module(slow)
    code = "import kills; kills.few()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent)
    meta = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    work = WORK.format(benchmarks=str(HERE.parent), epochs=20)
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(work)]
    nbformat.write(new_notebook(cells=cells, metadata=meta), folder / "kills.ipynb")
    streams = few()
    code_version()  # is kept
    return {
        training: streams,
        extraction: listings.make(size="tiny"),
        sweep: folder / "kills.ipynb",
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainings", type=int, default=100)
    parser.add_argument("--extractions", type=int, default=50)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from m5lib.data import write_json
    from m5lib.lab import ROOMS, code_version, recording

    folder, began = Path(tempfile.gettempdir()) / f"kills-{code_version(*ROOMS)}", time.monotonic()
    os.environ["M5_HOME"] = str(folder / "shared")
    given, log = prepare(folder), folder / "outcomes.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def make() -> Path:
        home = Path(tempfile.mkdtemp(dir=folder))
        (home / "cache").symlink_to(folder / "shared" / "cache")
        return home

    parts = (
        (training, runs_at_work, options.trainings),
        (extraction, shards_at_work, options.extractions),
        (sweep, runs_at_work, options.sweeps),
    )
    for kind, at_work, count in parts:
        name, expected, seconds = kind.__name__, None, 0.0
        done = {x["number"]: x for x in lines if x["kind"] == name and x["seed"] == options.seed}
        for number in range(2 * count):
            if number in done:
                continue
            if sum(outcome["kills"] > 1 for outcome in done.values()) >= count:
                break  # one that ended before its second kill is told, and another is tried
            if expected is None:
                finish(start(kind, whole := make(), given[kind]))
                again, begun = make(), time.monotonic()
                finish(start(kind, again, given[kind]))
                expected, seconds = state(whole), time.monotonic() - begun
                if state(again) != expected:
                    raise SystemExit(f"{name}: two that were left alone differ; nothing is known")
            rng = random.Random(f"{options.seed} {name} {number}")
            home = make()
            outcome = trial(kind, at_work, home, expected, seconds, rng, given[kind])
            which = {"kind": name, "number": number, "seed": options.seed, "home": str(home)}
            done[number] = outcome
            lines.append(which | outcome | {"seconds": round(time.monotonic() - began, 1)})
            began = time.monotonic()
            with open(log, "a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            said = "equal" if outcome["equal"] else f"DIFFERENT, see {home}"
            said = f"killed {outcome['kills']} times, {outcome['inside']} of them inside: {said}"
            print(f"{name} {number + 1} of {count} or more: {said}", flush=True)
            some = partial(filter, lambda line: line["seed"] == options.seed)
            content = {
                f"{k.__name__}s": counted([x for x in some(lines) if x["kind"] == k.__name__], n)
                for k, _, n in parts
            }
            spent = sum(line["seconds"] for line in some(lines))
            made = recording.provenance("tiny", options.seed, spent)
            write_json(HERE.with_suffix(".json"), {"provenance": made} | content)


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    main()
