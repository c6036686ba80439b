"""From a run to result rows: what was seen on the way, and every number of the embedding
afterwards."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from m5lib.catalogue import Catalogue
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.evaluation import evaluate
from m5lib.lab import recording, runs
from m5lib.modalities import codes
from m5lib.models.finetune import Classifier
from m5lib.streams import Streams


def milestones(run: runs.Run) -> pd.DataFrame:
    """What :func:`m5lib.lab.runs.glance` saw before training and after each quarter: columns
    ``share``, ``readout``, ``value``."""
    seen = [(0.0, run.history[0]["before"])]
    seen += [
        ((entry["step"] + 1) / len(run.history), entry)
        for entry in run.history
        if "validation" in entry
    ]
    found = [
        (round(share, 2), name, value)
        for share, entry in seen
        for name, value in entry["validation"].items()
    ]
    return pd.DataFrame(found, columns=["share", "readout", "value"])


def milestone_rows(points: pd.DataFrame, context: dict) -> list[dict]:
    """:func:`milestones` as result rows; the variant says read-out and share of the steps."""
    found = []
    for point in points.itertuples():
        number = {
            "task": "retrieval",
            "metric": "mAP@10",
            "convention": "min_k_r, validation queries",
            "value": point.value,
        }
        state = "pretrained" if point.share else "untrained"
        found += recording.rows(
            [number],
            context,
            state=state,
            variant=f"{point.readout}, {point.share:.0%} of the steps",
        )
    return found


def measured(
    run: runs.Run, job: runs.Job, streams: Streams, context: dict, split: str = "query"
) -> list[dict]:
    """Result rows of a pre-trained model and of the same model untrained, given the modalities that
    the model reads.

    Every read-out: mAP@10 (min(K, R)) of validation products, for choosing, and retrieval of
    ``split``; the default and the paper's read-out: all tasks; the paper's: retrieval by the
    released protocol too.
    """
    catalogue, found = streams.catalogue, []
    rows = np.union1d(evaluate.needed_rows(catalogue, split), catalogue.split("validation"))
    for state, model in (("untrained", runs.untrained(job, streams)), ("pretrained", run.model)):
        for readout, part in runs.vectors(model, streams, rows).items():
            which = (
                evaluate.TASKS if readout in (DEFAULT, PAPER) else ("retrieval", "fine retrieval")
            )
            protocols = ("usual", "released") if readout == PAPER else ("usual",)
            numbers = evaluate.evaluate(
                catalogue, part, which, split, seed=job.seed, protocols=protocols
            ) + choosing(catalogue, part)
            found += recording.rows(numbers, context, state=state, variant=readout)
    return found


def tuned(
    classifier: Classifier,
    streams: Streams,
    context: dict,
    modalities: Iterable[str] | None = None,
    split: str = "query",
) -> list[dict]:
    """Result rows of a fine-tuned model (state ``finetuned``, variant ``hidden``): all tasks by its
    hidden vector, accuracy by its head."""
    rows = evaluate.needed_rows(streams.catalogue, split)
    hidden, labels = runs.tuned_vectors(classifier, streams, rows, modalities)
    more = {} if modalities is None else {"modalities": codes(modalities)}
    numbers = evaluate.evaluate(streams.catalogue, hidden, split=split, predicted=labels)
    return recording.rows(numbers, context, state="finetuned", variant="hidden", **more)


def crossed(
    embed: Callable[[tuple[str, ...]], np.ndarray],
    catalogue: Catalogue,
    pairs: Iterable[evaluate.Given],
    context: dict,
    state: str,
    variant: str,
    split: str = "query",
) -> list[dict]:
    """Result rows of retrieval with some modalities asked and others answering; ``modalities`` then
    reads ``I→T``.

    Args:
        embed: modality names -> (N, D) vectors of the catalogue's products given only these; each
            set is embedded once. Of a pre-trained model: ``lambda names: runs.vectors(model,
            streams, rows, names, [ACROSS])[ACROSS]``; of a fine-tuned one:
            ``lambda names: runs.tuned_vectors(classifier, streams, rows, names)[0]``.
        pairs: what the queries have, what the gallery has.
    """
    found, vectors = [], {}
    for pair in pairs:
        given = tuple(tuple(side) for side in pair)
        for names in given:
            if names not in vectors:
                vectors[names] = embed(names)
        numbers = evaluate.retrieval(
            catalogue, vectors[given[0]], split, gallery=vectors[given[1]], given=given
        )
        found += recording.rows(
            numbers, context, state=state, variant=variant, modalities="→".join(map(codes, given))
        )
    return found


def choosing(catalogue: Catalogue, part: np.ndarray) -> list[dict]:
    """mAP@10 (min(K, R)) of validation products: what choices are made by."""
    numbers = evaluate.retrieval(catalogue, part, "validation")
    chosen = [n for n in numbers if (n["metric"], n["convention"]) == ("mAP@10", "min_k_r")]
    return [n | {"convention": "min_k_r, validation queries"} for n in chosen]
