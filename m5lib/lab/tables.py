"""Studies as tables: beside the paper's, with their spread, and what differs."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from m5lib import ROOT
from m5lib.lab import claims
from m5lib.lab.study import Number, Study, number
from m5lib.modalities import codes, from_codes

Found = Mapping[tuple[str, int], Study]


def published(name: str, label: str, **only: str) -> pd.DataFrame:
    """A table of the paper (``paper/tables/<name>.csv``) by its column of labels; ``only`` keeps
    the rows with these values."""
    frame = pd.read_csv(ROOT / "paper" / "tables" / f"{name}.csv")
    for column, value in only.items():
        frame = frame[frame[column] == value]
    return frame.set_index(label)


def ordered_codes(codes_: str) -> str:
    """``T+I -> I+T``: the paper's sets of modalities in the order of our tables."""
    return codes(from_codes(codes_))


def only(found: Found, labels: Iterable[str]) -> Found:
    """The studies of some rows of a grid, in the order of the labels."""
    return {key: found[key] for label in labels for key in found if key[0] == label}


def read_by(wanted: Number, readout: str) -> Number:
    """The same number by another read-out."""
    return replace(wanted, variant=readout)


def values(found: Found, wanted: Number) -> pd.DataFrame:
    """A number of every study: label against seed, in the order of the grid; NaN where it was not
    measured."""
    parts = pd.Series({key: study.value(wanted) for key, study in found.items()})
    return parts.unstack().loc[list(dict.fromkeys(label for label, _ in found))]


def said(each: pd.DataFrame, scale: float = 100.0, digits: int = 1) -> pd.Series:
    """``mean ± deviation`` over the columns; the value alone where there is one, nothing where
    there is none."""
    texts = []
    for mean, deviation in zip(scale * each.mean(axis=1), scale * each.std(axis=1), strict=True):
        spread = "" if deviation != deviation else f" ± {deviation:.{digits}f}"
        texts.append("" if mean != mean else f"{mean:.{digits}f}{spread}")
    return pd.Series(texts, each.index)


def beside(
    found: Found, paper: pd.DataFrame, names: Iterable[str], state: str = "finetuned"
) -> pd.DataFrame:
    """The paper's numbers and ours, in per cent: a row per label, and for each of the table's
    columns ``paper`` and ``ours``."""
    columns = {}
    for name in names:
        ours = said(values(found, number(name, state)))
        columns[name, "paper"] = [
            f"{paper[name][label]:.1f}" if label in paper.index else "" for label in ours.index
        ]
        columns[name, "ours"] = ours.to_numpy()
    return pd.DataFrame(columns, index=ours.index)


def readouts(found: Found, metric: str = "mAP@10", convention: str = "min_k_r") -> pd.DataFrame:
    """Retrieval by category before fine-tuning, by every read-out: label against read-out, mean
    over seeds."""
    keep = {"task": "retrieval", "state": "pretrained", "metric": metric, "convention": convention}
    rows = [
        (label, row["variant"], row["value"])
        for (label, _), study in found.items()
        for row in study.rows
        if keep.items() <= row.items()
    ]
    frame = pd.DataFrame(rows, columns=["label", "read-out", "value"])
    return frame.pivot_table(index="label", columns="read-out", values="value", sort=False)


def differences(
    found: Found,
    pairs: Iterable[tuple[str, str]],
    names: Iterable[str | Number],
    state: str = "finetuned",
    scale: float = 100.0,
) -> pd.DataFrame:
    """What the first of two labels has more than the second, in per cent, with its 95 % interval: a
    row per pair and number."""
    seeds, rows = list(dict.fromkeys(seed for _, seed in found)), []
    for one, other in pairs:
        for name in names:
            wanted = name if isinstance(name, Number) else number(name, state)
            test = claims.tested(
                *([(found[label, seed], wanted) for seed in seeds] for label in (one, other))
            )
            interval = [
                np.nan if test[key] is None else scale * test[key] for key in ("low", "high")
            ]
            shown = f"{wanted.metric}, {wanted.convention}" if isinstance(name, Number) else name
            rows.append(
                (
                    f"{one} - {other}",
                    shown,
                    scale * test["difference"],
                    *interval,
                    test["p"],
                    test["verdict"],
                )
            )
    columns = ["difference", "number", "mean", "low", "high", "p", "as a claim"]
    return pd.DataFrame(rows, columns=columns).set_index(["difference", "number"])
