"""Whether products that have little win a cross-modal search by it, and what one scale costs.

    python benchmarks/across.py DATA RUN    # products; folder of a run of profile small on them

writes its part of ``benchmarks/across.json``. 3,000 products that have everything: 40 % keep it,
the others keep a set of modalities drawn at random. 600 of them ask with one or two of their
modalities, given by the way ``pooled``: by plain cosines, and on one scale
(:mod:`m5lib.search.across`). Counted among the ten nearest others: how many have the query's label
(``precision``), and for each set of modalities its share of the hits over its share of the products
(``favour``; 1: neither favoured nor slighted).
"""

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from m5lib.data import write_json
from m5lib.embeddings import ACROSS, embeddings
from m5lib.lab import runs
from m5lib.modalities import codes
from m5lib.model import Model
from m5lib.search.across import answering, asking, one_scale
from m5lib.search.encode import unit
from m5lib.streams import Streams

PRODUCTS, QUERIES, NEAREST = 3000, 600, 10


def measured(scores, own, groups, labels, sets) -> dict:
    """Precision among the nearest, and how favoured each set is."""
    scores[np.arange(len(own)), own] = -np.inf
    near = np.argsort(-scores, axis=1)[:, :NEAREST]
    right = float((labels[near] == labels[own][:, None]).mean())
    favour = {
        codes(names): round(float((groups[near] == n).mean() / (groups == n).mean()), 2)
        for n, names in enumerate(sets)
    }
    return {"precision": round(right, 3), "favour": favour}


def main(data: str, run: str) -> None:
    """Each question by both ways of counting."""
    torch.set_num_threads(1)
    model, rng = Model.from_pretrained(run).eval(), np.random.default_rng(0)
    catalogue, features = runs.load(data, runs.profile_of("small"))
    streams = Streams(catalogue, features, model.tokenizer, spec=model.spec)
    names = streams.modalities
    sets = [s for k in range(1, len(names) + 1) for s in combinations(names, k)]
    whole = np.flatnonzero(catalogue.presence[list(names)].to_numpy().all(axis=1))
    rows = rng.permutation(whole)[:PRODUCTS]
    kept = rng.random(len(rows)) < 0.4
    groups = np.where(kept, len(sets) - 1, rng.integers(0, len(sets), len(rows)))
    vectors = [embeddings(model, streams, rows, s, [ACROSS])[ACROSS] for s in sets]
    gallery = np.stack([vectors[group][row] for row, group in enumerate(groups)])
    labels, found = catalogue.labels[rows].astype(str), {}
    own, sample = np.split(rng.permutation(len(rows))[: QUERIES + 300], [QUERIES])
    for given in sets[: len(names) + 1]:
        asked = vectors[sets.index(given)]
        plain = unit(asked[own]) @ unit(gallery).T
        scale = one_scale(asked[sample], sample, gallery, groups)
        fair = asking(asked[own]) @ answering(gallery, scale).T
        sides = {"plain": plain, "one scale": fair}
        found[codes(given)] = {n: measured(x, own, groups, labels, sets) for n, x in sides.items()}
    path = Path(__file__).with_suffix(".json")
    before = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, before | {catalogue.name: {"run": Path(run).name, "asked with": found}})


if __name__ == "__main__":
    main(*sys.argv[1:])
