"""The paper's claims (``paper/claims.csv``: orderings that it states or prints), each tested on
what was measured here.

A claim says that one row of a table is better than another by some metric. Ours is the difference
between the two, with a 95 % interval over seeds and queries
(:func:`m5lib.evaluation.stats.paired_bootstrap`).
``confirmed``: the interval lies above 0; ``contradicted``: below; ``not
confirmed``: it holds 0; ``not testable``: the reason says why.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from m5lib import ROOT
from m5lib.data import files
from m5lib.evaluation import evaluate, stats
from m5lib.lab import recording
from m5lib.lab.study import Number, Study, number

CLAIMS = ROOT / "paper" / "claims.csv"
VERDICTS = ("confirmed", "not confirmed", "contradicted", "not testable")

#: Endings of a claim's sides -> the number that they mean: "T finetuned", "I+T coarse".
ENDINGS = {
    " finetuned": number("mAP@1_finetune"),
    " pretrained": number("mAP@1_pretrain"),
    " fine": number("Prec@10_fine"),
    " coarse": number("Prec@10_coarse"),
}
#: Tables whose retrieval is that of the pre-trained model (Table 5's equals Table 3's); in Tables 4
#: and 6 to 8 it is the fine-tuned one's.
PRETRAINED = ("Table 5",)
#: Claims that no study of ours can test, and why.
NOT_TESTABLE = {
    "C39": "needs products with ten listings or more: ours have a few, and ten found cannot all be right",  # noqa: E501
    "C91": "needs products of two sizes, the smaller a part of the larger",
}


def load() -> pd.DataFrame:
    """The paper's claims: ``id, source, statement, metric, better, worse, published_difference,
    note``."""
    return pd.read_csv(CLAIMS, keep_default_na=False)


def _side(claim, side: str) -> tuple[str, Number]:
    """Label of a study, and which of its numbers a side of a claim is."""
    for ending, wanted in ENDINGS.items():
        if side.endswith(ending):
            return side.removesuffix(ending), wanted
    return side, number(
        claim.metric, "pretrained" if claim.source.startswith(PRETRAINED) else "finetuned"
    )


def judge(
    found: Mapping[tuple[str, int], Study], sources: Iterable[str], data: str, notebook: str
) -> list[dict]:
    """The verdict on every claim of the given tables and figures (beginnings of ``source``).

    Args:
        found: (label, seed) -> study (:func:`m5lib.lab.study.studies`); the labels are the paper's
            names of its rows.
        data: what result rows call the products.
    """
    sources, seeds = tuple(sources), list(dict.fromkeys(seed for _, seed in found))
    verdicts = []
    for claim in load().itertuples(index=False):
        if not claim.source.startswith(sources):
            continue
        row = {
            key: getattr(claim, key)
            for key in (
                "id",
                "source",
                "statement",
                "metric",
                "better",
                "worse",
                "published_difference",
            )
        }
        if claim.id in NOT_TESTABLE:
            verdicts.append(
                row
                | {
                    "data": data,
                    "notebook": notebook,
                    "verdict": "not testable",
                    "reason": NOT_TESTABLE[claim.id],
                }
            )
            continue
        asked = [_side(claim, claim.better), _side(claim, claim.worse)]
        lacking = [label for label, _ in asked if any((label, seed) not in found for seed in seeds)]
        row |= {
            "data": data,
            "notebook": notebook,
            "ours": " - ".join(dict.fromkeys(str(wanted) for _, wanted in asked)),
        }
        if lacking:
            verdicts.append(
                row
                | {
                    "verdict": "not testable",
                    "reason": f"no run of {' or '.join(lacking)} on these products",
                }
            )
        elif any(
            np.isnan(found[label, seed].value(wanted)) for label, wanted in asked for seed in seeds
        ):
            verdicts.append(
                row
                | {
                    "verdict": "not testable",
                    "reason": "these products do not have what it takes to measure it",
                }
            )
        else:
            verdicts.append(
                row
                | tested(
                    *([(found[label, seed], wanted) for seed in seeds] for label, wanted in asked)
                )
            )
    return verdicts


def tested(better: list[tuple[Study, Number]], worse: list[tuple[Study, Number]]) -> dict:
    """Difference, interval and verdict of two sides, each a study and its number for every seed."""
    task = better[0][1].task
    if task != "clustering" and task == worse[0][1].task:
        pairs = [
            evaluate.paired(a.values(x), b.values(y))
            for (a, x), (b, y) in zip(better, worse, strict=True)
        ]
        test = evaluate.difference(pairs, shared=len({study.data for study, _ in better}) == 1)
        each = [float(p["ours"].mean() - p["theirs"].mean()) for p in pairs]
        how = (
            f"bootstrap over {len(each)} seeds and {', '.join(str(len(p)) for p in pairs)} products"
        )
    else:  # no values by query, or other queries
        means = [
            np.array([study.value(wanted) for study, wanted in side]) for side in (better, worse)
        ]
        test, each = stats.paired_seeds(*means), (means[0] - means[1]).tolist()
        how = f"t over {len(each)} seeds"
    found = {
        "difference": test.mean,
        "each_seed": each,
        "low": test.low,
        "high": test.high,
        "p": test.p,
        "how": how,
    }
    found = {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in found.items()
    }
    return found | {"verdict": verdict(test), "reason": ""}


def verdict(test: stats.Difference) -> str:
    """By the 95 % interval of the difference; one seed without queries has none, and confirms
    nothing."""
    return "confirmed" if test.low > 0 else "contradicted" if test.high < 0 else "not confirmed"


def table(verdicts: Iterable[dict]) -> pd.DataFrame:
    """The verdicts for people: differences in per cent, as the paper prints them."""
    shown = [
        "id",
        "source",
        "metric",
        "better",
        "worse",
        "published_difference",
        "difference",
        "low",
        "high",
        "verdict",
        "reason",
    ]
    frame = pd.DataFrame(list(verdicts)).reindex(columns=shown)
    for column in ("difference", "low", "high"):
        frame[column] = (100 * frame[column].astype(float)).round(1)
    frame = frame.rename(columns={"published_difference": "paper", "difference": "ours"}).set_index(
        "id"
    )
    return frame.astype(object).where(frame.notna(), "")


def record(name: str, verdicts: list[dict], made: dict) -> Path | None:
    """Keep verdicts in ``results/claims.json``, those of the same claim and data replaced; nothing,
    where the name is empty."""
    if not name:
        return None
    path, content = recording.results_folder() / "claims.json", {"provenance": {}, "claims": []}
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
    new = {(row["id"], row["data"]) for row in verdicts}
    kept = [row for row in content["claims"] if (row["id"], row["data"]) not in new]
    source = {f"{row['notebook']}, {row['data']}": made for row in verdicts}
    rows = sorted(kept + verdicts, key=lambda row: (row["data"], row["id"]))
    return files.write_json(path, {"provenance": content["provenance"] | source, "claims": rows})
