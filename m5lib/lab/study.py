"""One row of an ablation, whole: pre-trained, fine-tuned, measured. Kept in the run's folder, so
that notebooks share it and no number is made twice."""

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from m5lib.catalogue import Catalogue
from m5lib.data import files
from m5lib.data.media import Ragged
from m5lib.embeddings import PAPER, similarity
from m5lib.evaluation import evaluate
from m5lib.lab import measure, recording, runs
from m5lib.modalities import from_codes, ordered
from m5lib.streams import Streams

#: Variant of the fine-tuned vectors; task, metric and convention of the similarity of picture and
#: title (Figure 5).
HIDDEN = "hidden"
SIMILARITY = {
    "task": "similarity",
    "metric": "image-text cosine",
    "convention": "own less other products'",
}
#: Columns of :attr:`Study.queries`.
COLUMNS = ("state", "variant", *evaluate.PER_QUERY)


@dataclass(frozen=True)
class Number:
    """One of a study's numbers: the columns of its result rows, save that an empty state or
    convention is any."""

    state: str
    variant: str
    task: str
    metric: str
    convention: str = ""

    def __str__(self) -> str:
        return ", ".join(
            filter(None, (self.state, self.variant, self.task, self.metric, self.convention))
        )


def number(name: str, state: str = "finetuned") -> Number:
    """Which number stands in a column of the paper's tables (``paper/tables``): ``accuracy``,
    ``mAP@5_pretrain``, ``NMI`` …

    Before fine-tuning it is that of the paper's read-out, afterwards that of the hidden vector
    (clustering is done on the same features as classification). Retrieval is by the usual protocol:
    cosine, AP over min(K, R).

    Args:
        state: of a retrieval metric whose name does not end in ``_pretrain`` or ``_finetune``.

    Raises:
        ValueError: no table has such a column.
    """
    if name == "accuracy":
        return Number("finetuned", HIDDEN, "classification", name, "fine-tuned head")
    if name in ("NMI", "purity"):
        return Number("finetuned", HIDDEN, "clustering", name)
    if name == "mean cosine":
        return Number("pretrained", PAPER, *SIMILARITY.values())
    if name == "silhouette of the map":  # Figure 6
        return Number("pretrained", PAPER, "separation by category", "silhouette", "t-SNE")
    if not (match := re.fullmatch(r"((mAP|Prec)@\d+)(?:_(pretrain|finetune|coarse|fine))?", name)):
        raise ValueError(f"no table of the paper has a column {name!r}")
    metric, kind, ending = match.groups()
    state = {"pretrain": "pretrained", "finetune": "finetuned"}.get(ending, state)
    task, convention = (
        "fine retrieval" if ending == "fine" else "retrieval",
        "k" if kind == "Prec" else "min_k_r",
    )
    return Number(state, PAPER if state == "pretrained" else HIDDEN, task, metric, convention)


@dataclass(frozen=True)
class Study:
    """What is known of one job on one data set.

    Attributes:
        run: folder name of the run.
        data: fingerprint of the products.
        rows: result rows (:data:`m5lib.lab.recording.COLUMNS`).
        queries: what every query contributed to them, columns :data:`COLUMNS`.
        history: of the pre-training.
        parameters: how many the model has.
    """

    run: str
    data: str
    rows: list[dict]
    queries: pd.DataFrame
    history: list[dict]
    parameters: int

    def value(self, wanted: Number) -> float:
        """One number; NaN where it was not measured (fine retrieval of products that are listed
        once)."""
        keys = [key for key in vars(wanted) if getattr(wanted, key)]
        return next(
            (
                row["value"]
                for row in self.rows
                if all(row[key] == getattr(wanted, key) for key in keys)
            ),
            float("nan"),
        )

    def values(self, wanted: Number) -> pd.Series:
        """What every query contributed to a number, by product. Raises ``ValueError`` where it was
        not measured, or not by query."""
        part = self.queries
        for column in [key for key in vars(wanted) if getattr(wanted, key)]:
            part = part[part[column] == getattr(wanted, column)]
        if part.empty:
            raise ValueError(f"{self.run} has no number {wanted} by query")
        return part.set_index("id")["value"]


def study(job: runs.Job, streams: Streams, notebook: str, label: str = "") -> Study:
    """Pre-train, fine-tune and measure a job, or load what of it is there.

    Measured: state ``pretrained``, retrieval by category by every read-out, the other tasks and the
    released protocol by the paper's; state ``finetuned``, all tasks by the hidden vector, accuracy
    by the head; mAP@10 of validation products by every read-out.

    Args:
        label: what result rows call the model, by default its row in the zoo.
    """
    run = runs.pretrained(job, streams)
    rows, queries = run.folder / "metrics.json", run.folder / "queries.parquet"
    if not (rows.exists() and queries.exists()):
        numbers, found = _measure(run, job, streams)
        temporary = queries.with_name(f"queries.{os.getpid()}.tmp")
        found.to_parquet(temporary, index=False)
        os.replace(temporary, queries)
        files.write_json(rows, numbers)
    context = run.context(notebook, job, streams.catalogue) | ({"model": label} if label else {})
    found = recording.rows(json.loads(rows.read_text(encoding="utf-8")), context)
    size = sum(p.numel() for p in run.model.parameters())
    return Study(
        run.name, streams.catalogue.fingerprint, found, pd.read_parquet(queries), run.history, size
    )


def _measure(run: runs.Run, job: runs.Job, streams: Streams) -> tuple[list[dict], pd.DataFrame]:
    """Numbers with state and variant, and what every query contributed to them."""
    catalogue, numbers, parts = streams.catalogue, [], []
    wanted = np.union1d(evaluate.needed_rows(catalogue), catalogue.split("validation"))
    for readout, vectors in runs.vectors(run.model, streams, wanted).items():
        own = readout == PAPER
        which, protocols = (
            (evaluate.TASKS[:3], ("usual", "released")) if own else (evaluate.TASKS[:1], ("usual",))
        )
        found = evaluate.per_query(catalogue, vectors, which, seed=job.seed, protocols=protocols)
        more = measure.choosing(catalogue, vectors) + (
            evaluate.clustering(catalogue, vectors) if own else []
        )
        _add(numbers, parts, found, more, "pretrained", readout)
    classifier = runs.finetuned(run, job, streams)
    hidden, labels = runs.tuned_vectors(classifier, streams, wanted)
    found = evaluate.per_query(catalogue, hidden, evaluate.TASKS[:3], predicted=labels)
    _add(numbers, parts, found, evaluate.clustering(catalogue, hidden), "finetuned", HIDDEN)
    if {"image", "text"} <= set(run.model.spec.modalities):
        products, values = similarity(
            run.model, streams, catalogue.split("gallery"), ("image", "text")
        )
        found = pd.DataFrame({"id": catalogue.ids[products], **SIMILARITY, "value": values})
        _add(numbers, parts, found, [], "pretrained", PAPER)
    return numbers, pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def _add(
    numbers: list[dict],
    parts: list[pd.DataFrame],
    found: pd.DataFrame,
    more: list[dict],
    state: str,
    variant: str,
) -> None:
    """Numbers are the means over the queries, and those that no query contributes to."""
    means = (
        found.groupby(["task", "metric", "convention"], sort=False)["value"]
        .mean()
        .reset_index()
        .to_dict("records")
    )
    numbers += [number | {"state": state, "variant": variant} for number in means + more]
    parts.append(found.assign(state=state, variant=variant))


def studies(
    grid: Mapping[str, Mapping[str, object]],
    data: str,
    profile: str,
    seeds: Iterable[int],
    notebook: str,
    products: int = 0,
) -> dict[tuple[str, int], Study]:
    """The studies of a grid, one after another, each with a line when it is there; those that ask
    for what the products lack are left out.

    Args:
        grid: label -> ``modalities`` (codes; all, if not given) and fields of
            :class:`m5lib.lab.runs.Job`.
        seeds: of weights, order and masks; with ``data="shop"`` of the shop too.
        products: at most so many, evenly over the splits, of data other than the shop; 0: what the
            profile says.

    Returns:
        (label, seed) -> study, in the order of the seeds and of the grid.
    """
    size, found = sized(profile, products), {}
    for seed in seeds:
        catalogue, features = runs.load(data, size, seed)
        for label, (job, streams) in jobs(grid, catalogue, features, size, seed).items():
            begun = time.monotonic()
            plain = (job.model, grid[label].get("modalities", ""))
            found[label, seed] = study(
                job, streams, notebook, job.model if label in plain else f"{job.model}, {label}"
            )
            print(
                f"seed {seed}, {label}: {found[label, seed].run}, {time.monotonic() - begun:.0f} s",
                flush=True,
            )
    return found


def sized(profile: str, products: int = 0) -> runs.Profile:
    """A profile that reads at most so many products; 0: as many as it says itself."""
    size = runs.profile_of(profile)
    return replace(size, products=products or size.products)


def jobs(
    grid: Mapping[str, Mapping[str, object]],
    catalogue: Catalogue,
    features: Mapping[str, Ragged],
    size: runs.Profile,
    seed: int,
) -> dict[str, tuple[runs.Job, Streams]]:
    """The jobs of a grid with their streams, by label, all before the first is run, so that a
    mistyped setting costs no training.

    Left out, with a line: one that asks for modalities that the products lack, and one about
    products that lack some (Table 10) where
    none does: it would be the same run again.

    Raises:
        ValueError: a setting that jobs do not have; the message names the label and lists those
            they have.
    """
    fields, found = {field.name for field in dataclasses.fields(runs.Job)}, {}
    for label, given in grid.items():
        wanted = given.get("modalities", "")
        if lacking := set(from_codes(wanted) if wanted else ()) - set(catalogue.modalities):
            print(
                f"seed {seed}, {label}: left out, {catalogue.name} has no "
                f"{', '.join(ordered(lacking))}"
            )
            continue
        if unknown := set(given) - fields - {"modalities", "state"}:
            raise ValueError(
                f"{label}: a job has no {', '.join(sorted(unknown))}; it has "
                f"{', '.join(sorted(fields))}"
            )
        job = runs.Job(
            **{"profile": size.name, "seed": seed}
            | {key: value for key, value in given.items() if key in fields}
        )
        streams = runs.streams_of(catalogue, features, size, wanted)
        about_missing = job.products == "complete" or dict(job.changes).get("missing") == "impute"
        if about_missing and catalogue.presence[list(streams.modalities)].to_numpy().all():
            print(
                f"seed {seed}, {label}: left out, no product of {catalogue.name} lacks a modality"
            )
            continue
        found[label] = job, streams
    return found
