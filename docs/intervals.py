"""Every recorded interval once more, from what is kept of every query.

    python docs/intervals.py        # or: python docs/intervals.py results/baselines_queries.parquet

``results/*_queries.parquet`` holds what each query contributed to the numbers of a table. From
these files alone, without a model or products, the claims are judged again and compared with
``results/claims.json``.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from m5lib import ROOT
from m5lib.evaluation import evaluate
from m5lib.lab import claims, recording, study

#: Differences are kept in single precision.
ROUNDING = 2e-4


def read_asked(
    path: str | Path,
    labels: Iterable[str] | None = None,
    wanted: Sequence[Mapping[str, str]] | None = None,
) -> dict[tuple[str, int], study.Study]:
    """The studies of a table again (all, or those of some labels and with the ``wanted`` numbers
    only), from what :func:`m5lib.lab.claims.asked` kept: their numbers as means over their queries;
    no history."""
    found, frame = {}, pd.read_parquet(path).astype({"id": str})
    frame = frame if labels is None else frame[frame["label"].isin(list(labels))]
    known = ["label", "seed", "products", "data", "notebook", "model"]
    names = frame.columns.drop([*known, "id"])
    keys = [name.split(", ", 4) for name in names]
    keys = pd.DataFrame(keys, index=names, columns=list(study.KEYS))
    if wanted is not None:
        names = names[
            [any(_of(key, number) for number in wanted) for key in keys.to_dict("records")]
        ]
    for (label, seed, products, *more), part in frame.groupby(known, observed=True, sort=False):
        queries = part.melt("id", names, "name").dropna(subset="value").join(keys, on="name")
        queries = queries.astype({"value": float})
        clusters = queries["task"] == "clustering"
        means = queries[~clusters].groupby(list(study.KEYS), sort=False)["value"].mean()
        rows = [means.reset_index()]
        for side, own in queries[clusters].groupby(["state", "variant"], sort=False):
            numbers = pd.DataFrame(evaluate.clustering_of(own))
            rows.append(numbers.assign(**dict(zip(study.KEYS, side, strict=False))))
        rows = pd.concat(rows, ignore_index=True)
        rows = rows.assign(seed=seed, **dict(zip(known[3:], more, strict=True)))
        found[label, seed] = study.Study(f"{label}, {seed}", products, rows, queries, [], 0)
    return found


def _of(key: Mapping[str, str], number: Mapping[str, str]) -> bool:
    """Whether a column is asked for a number; NMI and purity are made of several."""
    names = study.KEYS[:3] if key["task"] == "clustering" else number
    return all(key[name] == number[name] for name in names)


def judged(path: Path, content: list[dict]) -> Iterator[tuple[dict, dict]]:
    """Each tested claim of ``claims.json`` that the studies of a file are about, and what these say
    of it now."""
    there = pd.read_parquet(path, columns=["notebook", "data", "label"]).drop_duplicates()
    there = set(there.itertuples(False, None))
    known = pd.read_csv(claims.CLAIMS, keep_default_na=False).set_index("id", drop=False)
    about = []
    for row in content:
        sides = [claims.side_of(known.loc[row["id"]], row[side]) for side in ("better", "worse")]
        own = {(row["notebook"], row["data"], label) for label, _ in sides}
        if row["verdict"] != "not testable" and own <= there:
            about.append((row, sides))
    asked = [side for _, sides in about for side in sides]
    studies = read_asked(path, {label for label, _ in asked}, [number for _, number in asked])
    for row, sides in about:
        yield row, claims.tested(studies, *sides)


def differs(row: dict, test: dict) -> list[str]:
    """What of a claim came out otherwise: its numbers, each seed's, p, or the verdict."""
    names = ("difference", "low", "high", "each_seed")
    sides = {name: [np.array(x[name], dtype=float) for x in (row, test)] for name in (*names, "p")}
    near = dict.fromkeys(names, (0, ROUNDING)) | {"p": (0.05, 1e-4)}  # None, no interval: NaN
    bad = [
        name
        for name, (one, other) in sides.items()
        if one.shape != other.shape or not np.allclose(one, other, *near[name], equal_nan=True)
    ]
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
