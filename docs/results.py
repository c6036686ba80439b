"""Everything in ``results/``, hours of it::

python docs/results.py --seeds 3 --data FOLDER
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from m5lib import ROOT, home
from m5lib.data import write_json
from m5lib.files import reading
from m5lib.lab import notebooks, sweep

#: How many real products a study takes: a run of three modalities then takes about as long as one
#: of five on the shop. The story of ``make demo`` takes all.
PRODUCTS = 6000
#: What these compare needs no second data set.
SHOP_ONLY = ("model", "released", "probes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every notebook for the results files that its metadata name, on the shop and on real
    products. Returns 1 where one failed (the others still ran).

    The seeds of a study (a notebook with a parameter ``seeds``) are swept side by side; then it
    runs once with all of them, loads what they left, and records. An interrupted call goes on.
    """
    todo = [(path, name) for path in notebooks.find() for name in notebooks.results_of(path)]
    parser = argparse.ArgumentParser("python docs/results.py", description="Make results/.")
    option, names = parser.add_argument, list(dict.fromkeys(name for _, name in todo))
    option("--profile", default="small", choices=("tiny", "small", "full"))
    option("--seeds", type=int, default=3)
    option("--data", default="", help="folder or file of real products, after the shop")
    option("--only", nargs="+", default=names, choices=names, help="some of the results")
    option("--workers", type=int, help="runs side by side; by default one per core, one on CUDA")
    options, begun, done = parser.parse_args(arguments), time.monotonic(), []
    notebooks.show_progress()
    for data in ("shop", *([str(Path(options.data).resolve())] if options.data else [])):
        place = "" if data == "shop" else Path(data).name.split("-")[0]
        for path, name in todo:
            if name not in options.only or (place and name in SHOP_ONLY):
                continue
            start, fine, known = time.monotonic(), True, notebooks.parameters_of(path)
            record = f"{name}_{place}" if place else name
            parameters = {"profile": options.profile, "data": data}
            if name == "demo":
                record = place or name
            elif name == "probes":
                parameters["shops"] = options.seeds
            elif "seeds" in known:
                parameters |= {"products": PRODUCTS} if place else {}
                if options.seeds > 1:
                    grid = {"seed": list(range(options.seeds))}
                    frame = sweep.sweep(path, grid, parameters, workers=options.workers)
                    fine = bool((frame["status"] != "failed").all())
                parameters["seeds"] = options.seeds
            done.append(fine and _recorded(path, parameters | {"record": record}))
            file, seconds = home("results", "times.json"), time.monotonic() - start
            with reading(file, "delete it: it only says how long each took"):
                times = json.loads(file.read_text()) if file.exists() else {}
            times[record] = round(times.get(record, 0) + seconds)  # all parts of what resumed
            write_json(file, times)
    subprocess.run([sys.executable, ROOT / "docs" / "readme.py"], check=True)
    minutes = (time.monotonic() - begun) / 60
    print(f"{sum(done)} of {len(done)} results in {minutes:.0f} minutes; see {home('results')}")
    return int(not all(done))


def _recorded(notebook: Path, parameters: dict) -> bool:
    output = home("reports", f"{notebook.stem}-{parameters['record']}.ipynb")
    try:
        notebooks.to_html(notebooks.run(notebook, output, parameters))
        return True
    except notebooks.NotebookError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return False


if __name__ == "__main__":
    sys.exit(main())
