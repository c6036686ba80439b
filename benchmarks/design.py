"""How many seeds and queries it takes to decide the paper's claims, before they are run.

    python benchmarks/design.py    # from results/claims.json -> benchmarks/design.csv, and a table

Of each tested difference, the spread of its seeds and its interval
(:func:`m5lib.evaluation.stats.paired_queries`) give two variances: between seeds, ``var``, and of
the choice of queries, what the interval holds beside it:

    se² = (t / z)² var / S + query / N

Put in other S and N, the smallest difference found in four of five cases is 2.8 se. Where the
interval is over seeds alone (the shop, of which each seed is another with queries of its own;
tables whose sides have other queries), ``query`` is 0, and what more queries a seed would bring
does not show.
"""

import json
import re

import numpy as np
import pandas as pd
from scipy import stats

from m5lib import ROOT

#: Data -> (seeds, queries) of a design: today's, more seeds, more queries, and both.
DESIGNS = {
    "fashion": ((3, 466), (5, 466), (10, 466), (3, 1300), (10, 1300), (20, 1300)),
    "shop": ((3, 570), (5, 950), (10, 1900), (10, 5700), (20, 3800)),
}


def wide(seeds: int) -> float:
    """(t / z)² / S of the formula above."""
    t, z = stats.t.ppf(0.975, seeds - 1), stats.norm.ppf(0.975)
    return (t / z) ** 2 / seeds


def detectable(claim: dict, seeds: int, queries: int) -> float:
    """In per cent."""
    each, error = np.array(claim["each_seed"]), (claim["high"] - claim["low"]) / 3.92
    products = [int(n) for n in re.findall(r"\d+", claim["how"].partition("and")[2])]
    between = each.var(ddof=1)
    asked = (np.sum if claim["data"].startswith("shop") else np.mean)(products or [0])
    by_query = max(error**2 - wide(len(each)) * between, 0.0) * asked
    return 280 * float(np.sqrt(wide(seeds) * between + by_query / queries))


def main() -> None:
    """Median of each table's claims."""
    rows, claims = [], json.loads((ROOT / "results" / "claims.json").read_text())["claims"]
    for claim in claims:
        if claim["verdict"] == "not testable" or claim.get("low") is None:
            continue
        table = " ".join(claim["source"].split()[:2]).rstrip(",")
        published = claim["published_difference"].lstrip("+")
        row = {"data": claim["data"], "table": table, "published": published}
        for design in DESIGNS.get(claim["data"].split("-")[0], ()):
            row[f"{design[0]} seeds, {design[1]} queries"] = detectable(claim, *design)
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame["published"] = pd.to_numeric(frame["published"], errors="coerce").abs()
    found = frame.groupby(["data", "table"]).median().round(1)
    found.insert(0, "claims", frame.groupby(["data", "table"]).size())
    found.to_csv(ROOT / "benchmarks" / "design.csv")
    for data in found.index.levels[0]:
        print(found.loc[data].dropna(axis=1, how="all").to_string(), end="\n\n")


if __name__ == "__main__":
    main()
