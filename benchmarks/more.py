"""How much more training products bring: one model, the same steps, the same products to find.

    python benchmarks/more.py --data FOLDER --train 500 1000 2000 4000 8000
    python benchmarks/more.py --data shop --listings 10000 --train 600 1200 2500 5000

Of a catalogue's training products the first so many, in an order drawn once, are kept; validation,
gallery and query products are all there each time. Small or large, a set trains the profile's model
for few products, so that nothing but the products changes. Adds to ``benchmarks/more.json``, by
data, and draws ``more.png``; finished runs are loaded.
"""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from converge import keep, parser_of

from m5lib import ROOT, home
from m5lib.data import columns
from m5lib.data.extractors import PLAIN
from m5lib.data.store import extract
from m5lib.figures.style import PALETTE, canvas
from m5lib.lab import recording, runs, study
from m5lib.shop import listings

FILE = ROOT / "benchmarks" / "more.json"
#: What is measured of every model, by its read-out where it has several.
NUMBERS = {
    "weighted": study.number("mAP@10_pretrain") | {"variant": "weighted"},
    "fused_first": study.number("mAP@10_pretrain"),
    "accuracy": study.number("accuracy"),
}


def products_of(asked):
    """The catalogue with its features; of the shop as many listings as asked."""
    if asked.data == "shop" and asked.listings:
        catalogue = listings.make(size=asked.listings)
        return extract(catalogue, PLAIN, home("cache", f"shop-{catalogue.fingerprint}"))
    return runs.load(asked.data, study.sized(asked.profile, asked.products))


def draw(file: Path) -> None:
    """What is measured against the number of training products, a panel for each catalogue: a dot
    for each seed, a line through their means."""
    rows = pd.DataFrame(json.loads(file.read_text(encoding="utf-8"))["rows"])
    panels = list(rows.groupby(["data", "profile", "listings"], sort=False))
    figure, (axes,) = canvas(1, len(panels), (4.8 * len(panels), 3.2), layout="constrained")
    for axis, ((data, profile, listed), own) in zip(axes, panels, strict=True):
        for shade, name in zip(PALETTE, NUMBERS, strict=False):
            means = 100 * own.groupby("training")[name].mean()
            what = name if name == "accuracy" else f"mAP@10, {name}"
            axis.semilogx(means.index, means, color=shade, label=what)
            axis.plot(own["training"], 100 * own[name], ".", color=shade)
        axis.set_xticks(means.index, means.index)
        axis.minorticks_off()
        axis.set(title=f"{data}, {profile}, {listed} products", xlabel="training products")
    axes[0].set_ylabel("mAP@10, accuracy (%)")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file.with_suffix(".png"), dpi=120)


def main() -> None:
    """Train, measure, and write after each."""
    parser = parser_of(__doc__)
    parser.add_argument("--train", type=int, nargs="+", required=True, help="training products")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--listings", type=int, default=0, help="of the shop; 0: the profile's")
    asked, begun = parser.parse_args(), time.monotonic()
    size = runs.PROFILES[asked.profile]  # in this process few and many train the same model
    runs.PROFILES[asked.profile] = size = size.few[1] if size.few else size
    catalogue, features = products_of(asked)
    order = np.random.default_rng(0).permutation(catalogue.split("train"))
    others = np.setdiff1d(np.arange(len(catalogue)), order)
    for seed in asked.seeds:
        for count in asked.train:
            rows = np.sort(np.concatenate([others, order[:count]]))
            part = catalogue.take(rows)
            streams = runs.streams_of(part, columns.some(features, rows), size)
            found = study.study(runs.Job(profile=asked.profile, seed=seed), streams, "more")
            same = {"data": catalogue.name, "profile": asked.profile}
            same |= {"listings": len(catalogue), "seed": seed}
            same |= {"training": len(part.split("train"))}
            more = {"queries": len(part.split("query")), "steps": len(found.history)}
            row = same | more | {name: found.value(x) for name, x in NUMBERS.items()}
            made = recording.provenance(asked.profile, seed, time.monotonic() - begun)
            keep(FILE, {"rows": [row]}, same, made)
            print(f"{row}, {time.monotonic() - begun:.0f} s", flush=True)
            draw(FILE)  # each time: an interrupted call leaves a figure, too


if __name__ == "__main__":
    main()
