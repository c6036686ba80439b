"""``make results``: everything in ``results/``, at one profile, with its seeds.

    python -m m5lib.lab.results --profile small --seeds 3 --data FOLDER     # the shop, then a
    folder of real products python -m m5lib.lab.results --only mem_vs_mlm simcl
    # some of it

Every notebook owns its grid. For each, its seeds are first run side by side, a process for each
core (:mod:`m5lib.lab.sweep`), then the notebook once more with all seeds, which loads what they
left and records. So it resumes: what is finished is loaded, and each result is there as soon as its
notebook is done.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from m5lib import home
from m5lib.data import files
from m5lib.lab import claims, notebooks
from m5lib.lab.sweep import sweep

#: Name of the results -> notebook. Those with several seeds:
STUDIES = {
    "model": "03_model",
    "modality_count": "06_modality_count",
    "mem_vs_mlm": "07_mem_vs_mlm",
    "text_table": "08_text_table_split",
    "simcl": "09_simcl",
    "baselines": "10_baselines",
    "maps": "11_embedding_maps",
    "attribution": "12_attribution",
}
#: and those of one: the story of `make demo`.
STORY = ("01_explore", "04_pretrain", "05_downstream")
#: How many real products the studies take, evenly over the splits: a run of three modalities then
#: takes about as long as one of five on the shop. The story takes all.
PRODUCTS = 6000
#: What ``model`` compares needs no second data set.
SHOP_ONLY = ("model",)


def note(name: str, seconds: float) -> None:
    """Keep how long a result took in ``results/times.json``; of a run that resumed, all its parts
    together."""
    path = home("results", "times.json")
    known = json.loads(path.read_text()) if path.exists() else {}
    files.write_json(path, known | {name: round(known.get(name, 0) + seconds)})


def studied(name: str, data: str, profile: str, seeds: int, workers: int | None) -> bool:
    """One notebook with several seeds; returns whether it was recorded."""
    notebook, begun = notebooks.named(STUDIES[name]), time.monotonic()
    record = name if data == "shop" else f"{name}_{Path(data).name.split('-')[0]}"
    given = {"profile": profile, "data": data} | ({} if data == "shop" else {"products": PRODUCTS})
    if seeds > 1:
        found = sweep(notebook, {"seed": list(range(seeds))}, given, workers=workers)
        if not (found["status"] != "failed").all():
            note(record, time.monotonic() - begun)
            return False
    done = _recorded(notebook, given | {"seeds": seeds, "record": record})
    note(record, time.monotonic() - begun)
    return done


def story(record: str, data: str, profile: str) -> bool:
    """Pre-training and the four tasks, one seed; returns whether all was recorded."""
    begun = time.monotonic()
    done = [
        _recorded(notebooks.named(stem), {"profile": profile, "data": data, "record": record})
        for stem in STORY
    ]
    note(record, time.monotonic() - begun)
    return all(done)


def _recorded(notebook: Path, given: dict) -> bool:
    output = home("reports", f"{notebook.stem}-{given['record']}.ipynb")
    try:
        notebooks.run(notebook, output, given)
    except notebooks.NotebookError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return False
    notebooks.to_html(output)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 1 where a notebook failed (the others still ran)."""
    parser = argparse.ArgumentParser(
        prog="python -m m5lib.lab.results", description="Make everything in results/."
    )
    parser.add_argument("--profile", default="small", choices=("tiny", "small", "full"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--data", default="", help="folder or file of real products, after the shop"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        choices=[*STUDIES, "probes", "story"],
        help="some of the results",
    )
    parser.add_argument(
        "--workers", type=int, help="runs side by side; by default one for each core, one on CUDA"
    )
    options = parser.parse_args(arguments)
    notebooks.show_progress()
    wanted, begun, done = options.only or ["probes", "story", *STUDIES], time.monotonic(), []
    for data in ("shop", *([str(Path(options.data).resolve())] if options.data else [])):
        if data == "shop" and "probes" in wanted:
            shops = {
                "profile": options.profile,
                "data": data,
                "shops": options.seeds,
                "record": "probes",
            }
            done.append(_recorded(notebooks.named("01_explore"), shops))
        if "story" in wanted:
            done.append(
                story(
                    "demo" if data == "shop" else Path(data).name.split("-")[0],
                    data,
                    options.profile,
                )
            )
        for name in STUDIES:
            if name in wanted and (data == "shop" or name not in SHOP_ONLY):
                done.append(studied(name, data, options.profile, options.seeds, options.workers))
    claims.main([])
    print(
        f"{sum(done)} of {len(done)} results in {(time.monotonic() - begun) / 60:.0f} minutes; see "
        f"{home('results')}"
    )
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
