"""Every recorded interval once more, from what is kept of every query.

    python docs/intervals.py        # or: python docs/intervals.py results/baselines_queries.parquet

``results/*_queries.parquet`` holds what each query contributed to the numbers of a table. From
these files alone, without a model or products, the claims are judged again and compared with
``results/claims.json``.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from m5lib import ROOT
from m5lib.evaluation import evaluate
from m5lib.lab import claims, recording, study

#: Differences are kept in single precision.
ROUNDING = 2e-4


def read_asked(path: str | Path) -> dict[tuple[str, int], study.Study]:
    """The studies of a table again, from what :func:`m5lib.lab.claims.asked` kept: their numbers as
    means over their queries; no history."""
    found, frame = {}, pd.read_parquet(path)
    known = ["label", "seed", "products", "data", "notebook", "model"]
    for (label, seed, products, *more), part in frame.groupby(known, observed=True, sort=False):
        parts = []
        for name in part.columns.drop([*known, "id"]):
            values = (
                part.set_index(part["id"].astype(str))[name].dropna().astype(float).rename("value")
            )
            own = dict(zip(study.KEYS, name.split(", ", 4), strict=True))
            parts.append(values.reset_index().assign(**own))
        queries = pd.concat(parts, ignore_index=True)
        rows = []
        for (state, variant), own in queries.groupby(["state", "variant"], sort=False):
            clusters = own["task"] == "clustering"
            numbers = evaluate.means(own[~clusters]) + evaluate.clustering_of(own[clusters])
            rows.append(pd.DataFrame(numbers).assign(state=state, variant=variant))
        rows = pd.concat(rows).assign(seed=seed, **dict(zip(known[3:], more, strict=True)))
        found[label, seed] = study.Study(f"{label}, {seed}", products, rows, queries, [], 0)
    return found


def judged(path: Path, content: list[dict]) -> Iterator[tuple[dict, dict]]:
    """Each tested claim of ``claims.json`` that the studies of a file are about, and what these say
    of it now."""
    studies = read_asked(path)
    first, labels = next(iter(studies.values())).rows.iloc[0], {label for label, _ in studies}
    known = pd.read_csv(claims.CLAIMS, keep_default_na=False).set_index("id", drop=False)
    for row in content:
        sides = [claims.side_of(known.loc[row["id"]], row[side]) for side in ("better", "worse")]
        same = (row["notebook"], row["data"]) == (first["notebook"], first["data"])
        if same and row["verdict"] != "not testable" and labels.issuperset(x for x, _ in sides):
            yield row, claims.tested(studies, *sides)


def differs(row: dict, test: dict) -> list[str]:
    """What of a claim came out otherwise: its numbers, each seed's, p, or the verdict."""
    names = ("difference", "low", "high", "each_seed")
    sides = {name: [np.array(x[name], dtype=float) for x in (row, test)] for name in names}
    bad = [
        name
        for name, (one, other) in sides.items()
        if one.shape != other.shape or not (np.abs(one - other) < ROUNDING).all()
    ]
    bad += ["p"] * (not np.isclose(row["p"], test["p"], rtol=0.05, atol=1e-4))
    return bad + ["verdict"] * (row["verdict"] != test["verdict"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge all again; returns 1 where a number came out otherwise."""
    said = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser("python docs/intervals.py", description=said)
    every = sorted((ROOT / "results").glob("*_queries.parquet"))
    parser.add_argument("files", nargs="*", type=Path, default=every)
    wrong = 0
    for path in parser.parse_args(arguments).files:
        content = recording.read_results(path.parent / "claims.json", "claims")["claims"]
        found = [(row, differs(row, test)) for row, test in judged(path, content)]
        bad = [f"{row['id']}, {name}" for row, names in found for name in names]
        said = f"differs: {'; '.join(bad)}" if bad else "as recorded"
        print(f"{path.name}: {len(found)} claims, {said}", flush=True)
        wrong += bool(bad)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
