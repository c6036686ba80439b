"""From a run to result rows: what was seen on the way, and every number of the embedding afterwards."""

import numpy as np
import pandas as pd

from m5lib import evaluate, runs
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.streams import Streams


def milestones(run: runs.Run) -> pd.DataFrame:
    """What :func:`m5lib.runs.glance` saw before training and after each quarter: columns ``share``, ``readout``, ``value``."""
    seen = [(0.0, run.history[0]["before"])]
    seen += [((entry["step"] + 1) / len(run.history), entry) for entry in run.history if "validation" in entry]
    found = [(round(share, 2), name, value) for share, entry in seen for name, value in entry["validation"].items()]
    return pd.DataFrame(found, columns=["share", "readout", "value"])


def milestone_rows(points: pd.DataFrame, context: dict) -> list[dict]:
    """:func:`milestones` as result rows; the variant says read-out and share of the steps."""
    found = []
    for point in points.itertuples():
        number = {"task": "retrieval", "metric": "mAP@10", "convention": "min_k_r, validation queries", "value": point.value}
        state = "pretrained" if point.share else "untrained"
        found += runs.rows([number], context, state=state, variant=f"{point.readout}, {point.share:.0%} of the steps")
    return found


def measured(run: runs.Run, job: runs.Job, streams: Streams, context: dict, split: str = "query") -> list[dict]:
    """Result rows of a pre-trained model and of the same model untrained, given the modalities that the model reads.

    Every read-out: mAP@10 (min(K, R)) of validation products, for choosing, and retrieval of ``split``; the default and the paper's
    read-out: all tasks.
    """
    catalogue, found = streams.catalogue, []
    rows = np.union1d(evaluate.needed_rows(catalogue, split), catalogue.split("validation"))
    for state, model in (("untrained", runs.untrained(job, streams)), ("pretrained", run.model)):
        for readout, part in runs.vectors(model, streams, rows).items():
            which = evaluate.TASKS if readout in (DEFAULT, PAPER) else ("retrieval", "fine retrieval")
            numbers = evaluate.evaluate(catalogue, part, which, split, seed=job.seed) + choosing(catalogue, part)
            found += runs.rows(numbers, context, state=state, variant=readout)
    return found


def choosing(catalogue, part: np.ndarray) -> list[dict]:
    """mAP@10 (min(K, R)) of validation products: what choices are made by."""
    numbers = evaluate.retrieval(catalogue, part, "validation")
    chosen = [n for n in numbers if (n["metric"], n["convention"]) == ("mAP@10", "min_k_r")]
    return [n | {"convention": "min_k_r, validation queries"} for n in chosen]
