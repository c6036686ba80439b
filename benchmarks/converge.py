"""How long until a training has converged: one configuration trained longer and longer.

    python benchmarks/converge.py --data shop --epochs 5 10 20 40
    python benchmarks/converge.py --data FOLDER --products 16000 --epochs 5 10 20 40

Each length is a training of its own, its rate falling to zero at its own end, with validation
before it, after each quarter, and at the end, so that a curve is what one gets who stops there. A
length is enough where its curve gains less than a point over the last quarter
(:func:`m5lib.evaluation.stats.last_quarter`, read-out ``weighted``). Also: the accuracy of
validation products after fine-tuning, with which losses are told apart that first tokens do not
show. Adds to ``benchmarks/converge.json``, by data and model, and draws the curves beside it, as
``converge_<data>.png``; finished runs are loaded.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from m5lib import ROOT
from m5lib.data import locked, write_json
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.evaluation import evaluate, stats
from m5lib.figures.style import PALETTE, canvas
from m5lib.lab import recording, runs, study

FILE = ROOT / "benchmarks" / "converge.json"
#: What is trained, by the name of its row in the record.
FORMS = {
    "scale_fused": {"model": "scale_fused"},
    "scale": {},
    "scale, contrast only": {"changes": (("objective.masked", False),)},
    "scale, masked tasks only": {"changes": (("objective.contrast", "none"),)},
}


#: What settles a length: its rows take the place of earlier ones.
SAME = ("data", "profile", "seed", "training", "model", "epochs")


def curve(run: runs.Run, batch: int) -> list[dict]:
    """Quality after each quarter: products seen, seconds of training, mAP@10 by two read-outs."""
    seconds = np.cumsum([batch / line["products_per_second"] for line in run.history])
    lines = []
    for share, look in study.looks(run.history):
        step = round(share * len(run.history))
        line = {"share": share, "seen": step * batch}
        line["seconds"] = round(float(seconds[step - 1]), 1) if step else 0.0
        lines.append(line | {name: look["validation"][name] for name in (DEFAULT, PAPER)})
    return lines


def one(form: str, epochs: float, asked, size, catalogue, streams) -> tuple[list[dict], dict]:
    """The curve of a length, and what is to be said of its end."""
    job = runs.Job(profile=asked.profile, seed=asked.seed, epochs=epochs, **FORMS[form])
    run, training = runs.pretrained(job, streams), job.plan(streams).training
    named = {"data": catalogue.name, "profile": asked.profile, "seed": asked.seed}
    named |= {"training": len(catalogue.split("train")), "model": form, "epochs": epochs}
    lines = curve(run, training.batch_size)
    gained = stats.last_quarter(*([line[key] for line in lines] for key in ("seen", DEFAULT)))
    needed = evaluate.needed_rows(catalogue, "validation")
    vectors, labels = runs.tuned_vectors(runs.finetuned(run, job, streams), streams, needed)
    how = (["classification"], "validation", asked.seed, labels)
    (accuracy, *_) = evaluate.evaluate(catalogue, vectors, *how)
    end = named | {"steps": len(run.history), "gained": gained, "accuracy": accuracy["value"]}
    end |= {DEFAULT: lines[-1][DEFAULT], "converged": gained < stats.CONVERGED}
    return [named | line for line in lines], end


def parser_of(doc: str) -> argparse.ArgumentParser:
    """A parser that asks which products, and the profile."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--data", default="shop", help="shop, or a folder of products")
    parser.add_argument("--profile", default="small", choices=list(runs.PROFILES))
    parser.add_argument("--products", type=int, default=0, help="at most so many; 0: the profile's")
    return parser


def keep(file: Path, new: dict[str, list[dict]], same: dict, made: dict) -> None:
    """Put rows into a record, by its lists, in the place of those that have the same; ``made``:
    how, kept by what is the same. Another call may do so at the same time."""
    with locked(file.with_suffix(".lock")):
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for name, rows in new.items():
            kept[name] = [r for r in kept.get(name, []) if not same.items() <= r.items()] + rows
        own = ", ".join(map(str, same.values()))
        kept["provenance"] = kept.get("provenance", {}) | {own: made}
        write_json(file, kept)


def draw(file: Path) -> None:
    """The curves of each data: a colour for each form, a line for each length."""
    curves = pd.DataFrame(json.loads(file.read_text(encoding="utf-8"))["curves"])
    for data, own in curves.groupby("data"):
        figure, (axes,) = canvas(1, 2, (10, 3.2), sharey=True, layout="constrained")
        forms = list(own.groupby("model", sort=False))
        for axis, unit in zip(axes, ("seen", "seconds"), strict=True):
            for shade, (form, lines) in zip(PALETTE, forms, strict=False):
                each = lines.groupby(["profile", "training", "seed", "epochs"])
                for n, (_, line) in enumerate(each, 1):
                    label = form if n == len(each) else None
                    axis.plot(line[unit], 100 * line[DEFAULT], ".-", color=shade, label=label)
            axis.set(xlabel="products seen" if unit == "seen" else "seconds of training")
        axes[0].set_ylabel(f"mAP@10 of validation\nproducts (%), {DEFAULT}")
        axes[0].legend(frameon=False)
        figure.suptitle(f"{data}: each line a training of its own length")
        figure.savefig(file.with_name(f"{file.stem}_{data}.png"), dpi=120)


def main() -> None:
    """Train, and write after each length."""
    parser = parser_of(__doc__)
    option = parser.add_argument
    option("--epochs", type=float, nargs="+", default=[5.0, 10.0, 20.0, 40.0])
    option("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    option("--seed", type=int, default=0)
    asked, begun = parser.parse_args(), time.monotonic()
    size = study.sized(asked.profile, asked.products)
    catalogue, features = runs.load(asked.data, size, asked.seed)
    streams = runs.streams_of(catalogue, features, size)
    for epochs in asked.epochs:
        for form in asked.forms:
            lines, end = one(form, epochs, asked, size, catalogue, streams)
            made = recording.provenance(asked.profile, asked.seed, time.monotonic() - begun)
            same = {key: end[key] for key in SAME}
            keep(FILE, {"curves": lines, "ends": [end]}, same, made)
            print(f"{form}, {epochs:g} epochs: {end[DEFAULT]:.3f}, gained {end['gained']:+.3f}")
            draw(FILE)  # each time: an interrupted call leaves a figure, too


if __name__ == "__main__":
    main()
