"""A table of products as people have them: made from a folder of whole ones by taking away what a
seed says, and the ledger of that.

python tests/make_products.py ../shared/data/fashion-products FOLDER     # products.csv, media/ and
removed.json
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np

from m5lib.data import readers

#: Of the products: share whose picture is deleted, whose cells of the picture, the title, an
#: attribute are emptied.
SHARES = {"deleted": 0.10, "no image": 0.02, "no title": 0.03, "no attribute": 0.05}


def spoiled(
    source: Path, folder: Path, broken: int = 24, twice: int = 3, limit: int = 0, seed: int = 0
) -> dict[str, list[str]]:
    """Write ``folder/products.csv`` and ``folder/media``; returns what was done to which ids.

    ``broken`` pictures in turn cut in half, emptied and replaced by words; ``twice`` products
    listed a second time; one row without id, one too short and one without anything.
    """
    products = readers.read(source).products[: limit or None]
    rng, ids = np.random.default_rng(seed), [p.id for p in products]
    (folder / "media").mkdir(parents=True)
    order, done = iter(rng.permutation(ids).tolist()), {}
    for name, share in SHARES.items():  # nobody is hit twice
        done[name] = [next(order) for _ in range(round(share * len(ids)))]
    done["broken"] = [next(order) for _ in range(broken)]
    done["twice"] = [next(order) for _ in range(twice)]
    hit = {name: set(found) for name, found in done.items()}
    columns = list(dict.fromkeys(name for p in products for name, _ in p.contents["table"]))
    rows = []
    for number, p in enumerate(products):
        data, table = p.contents["image"].read(), dict(p.contents["table"])
        if p.id in hit["broken"]:
            data = (data[: len(data) // 2], b"", b"words, no picture")[
                done["broken"].index(p.id) % 3
            ]
        if p.id not in hit["deleted"]:
            (folder / "media" / f"{p.id}.jpg").write_bytes(data)
        if p.id in hit["no attribute"]:
            table.pop(columns[number % len(columns)], None)
        image = "" if p.id in hit["no image"] else f"media/{p.id}.jpg"
        title = "" if p.id in hit["no title"] else p.contents["text"]
        rows.append([p.id, title, p.label, image, *(table.get(name, "") for name in columns)])
    rows += [row for row in rows if row[0] in hit["twice"]]
    rows += [["", *rows[0][1:]], rows[0][:3], ["nothing", *[""] * (3 + len(columns))]]
    with open(folder / "products.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "title", "label", "image", *columns], *rows])
    (folder / "removed.json").write_text(json.dumps(done))
    return done


if __name__ == "__main__":
    found = spoiled(Path(sys.argv[1]), Path(sys.argv[2]))
    print({name: len(ids) for name, ids in found.items()})
