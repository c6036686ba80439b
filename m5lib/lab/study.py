"""Studies: one configuration pre-trained, fine-tuned and measured, kept in its run's folder so that
no number is made twice; and tables of their result rows, beside the paper's."""

import dataclasses
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd

from m5lib import ROOT
from m5lib.catalogue import Catalogue
from m5lib.data import locked, whole_file, write_json
from m5lib.embeddings import DEFAULT, PAPER
from m5lib.evaluation import evaluate
from m5lib.evaluation.controls import strongest
from m5lib.evaluation.separation import modality_cosines
from m5lib.files import reading
from m5lib.lab import code_version, recording, runs
from m5lib.lab.recording import HIDDEN, VALIDATION, pick, said
from m5lib.modalities import codes, from_codes, ordered
from m5lib.streams import Ragged, Streams

#: Task, metric and convention of Figure 5; and of the plain cosine, which the paper shows.
SIMILARITY = ("similarity", "image-text cosine", "own less other products'")
PLAIN = (*SIMILARITY[:2], "own")
#: By profile: listings that studies add to the shop to be measured by, not trained on (``LOG.md``).
ASKED = {"small": 2400}
#: Columns of :attr:`Study.queries`.
COLUMNS = ("state", "variant", *evaluate.PER_QUERY)
KEYS = ("state", "variant", "task", "metric", "convention")


def number(name: str, state: str = "finetuned") -> dict[str, str]:
    """Which result row stands in a column of the paper's tables (``paper/tables``): ``accuracy``,
    ``mAP@5_pretrain``, ``NMI`` … as values of its columns. Raises ``ValueError``: none has it.

    Before fine-tuning it is that of the paper's read-out, afterwards that of the hidden vector
    (clustering is done on the same features as classification). Retrieval is by the usual protocol:
    cosine, AP over min(K, R); ``state`` is that of a name without ``_pretrain`` or ``_finetune``.
    """
    tuned, before = ("finetuned", HIDDEN), ("pretrained", PAPER)
    fixed = {
        "accuracy": (*tuned, "classification", name, "fine-tuned head"),
        "NMI": (*tuned, "clustering", name),  # the convention names k: any
        "purity": (*tuned, "clustering", name),
        "cosine less other products'": (*before, *SIMILARITY),
        "cosine": (*before, *PLAIN),
        "silhouette of the map": (*before, "separation by category", "silhouette", "t-SNE"),
    }
    if name in fixed:
        return dict(zip(KEYS, fixed[name], strict=False))
    metric, _, ending = name.partition("_")
    if not re.fullmatch(r"(mAP|Prec)@\d+(_pretrain|_finetune|_coarse|_fine)?", name):
        raise ValueError(f"no table of the paper has a column {name!r}")
    state = {"pretrain": "pretrained", "finetune": "finetuned"}.get(ending, state)
    task = "fine retrieval" if ending == "fine" else "retrieval"
    convention = "k" if metric.startswith("Prec") else "min_k_r"
    side = before if state == "pretrained" else tuned
    return dict(zip(KEYS, (*side, task, metric, convention), strict=True))


@dataclass(frozen=True)
class Study:
    """What is known of one job on one data set."""

    run: str  # its folder's name
    data: str  # fingerprint of the products
    rows: pd.DataFrame  # result rows, m5lib.lab.recording.COLUMNS
    queries: pd.DataFrame  # what every query contributed to them, COLUMNS
    history: list[dict]  # of the pre-training
    parameters: int  # how many the model has

    def value(self, wanted: Mapping[str, str]) -> float:
        """One number; NaN where it was not measured (fine retrieval of products that are listed
        once)."""
        values = pick(self.rows, wanted)["value"]
        return float(values.iloc[0]) if len(values) else float("nan")

    def values(self, wanted: Mapping[str, str]) -> pd.Series:
        """What every query contributed to a number, by product. Raises ``ValueError`` where it was
        not measured, or not by query."""
        part = pick(self.queries, wanted)
        if part.empty:
            raise ValueError(f"{self.run} has no number {', '.join(wanted.values())} by query")
        return part.set_index("id")["value"]

    def clusters(self, wanted: Mapping[str, str]) -> pd.DataFrame:
        """What :func:`.evaluate.clusters` found where NMI and purity were measured."""
        return pick(self.queries, {key: wanted[key] for key in KEYS[:3]})


Studies = Mapping[tuple[str, int], Study]


def choosing(catalogue: Catalogue, vectors: np.ndarray) -> list[dict]:
    """What choices are made by, as a number: :func:`.evaluate.quality`; none without labels."""
    value = evaluate.quality(catalogue, vectors)
    number = {"task": "retrieval", "metric": "mAP@10", "convention": VALIDATION, "value": value}
    return [number] * (value == value)


def looks(history: Sequence[dict]) -> list[tuple[float, dict]]:
    """What :func:`.separation.glance` saw before training and after each quarter, each with its
    share of the steps; nothing of a run that was not pre-trained."""
    start = [(0.0, line["before"]) for line in history[:1] if "before" in line]
    told = [line for line in history if "validation" in line]
    return start + [(round((line["step"] + 1) / len(history), 2), line) for line in told]


def study(job: runs.Job, streams: Streams, notebook: str, label: str = "") -> Study:
    """Pre-train, fine-tune and measure a job, or load what of it is there.

    Measured: state ``pretrained``, retrieval by category by every read-out, the other tasks and the
    released protocol by the paper's; state ``finetuned``, all tasks by the hidden vector, accuracy
    by the head; mAP@10 of validation products by every read-out. ``label`` is what result rows call
    the model, by default its row in the zoo.
    """
    run = runs.pretrained(job, streams)
    measured_by = code_version("evaluation", "lab/study.py", "lab/runs.py")
    kept = run.folder / f"metrics-{measured_by}.json"
    by_query = run.folder / f"queries-{measured_by}.parquet"
    with locked(run.folder / ".lock"):  # of two processes the second only reads
        if not (kept.exists() and by_query.exists()):
            numbers, queries = _measure(run, job, streams)
            with whole_file(by_query) as path:
                queries.to_parquet(path, index=False)
            write_json(kept, numbers)
    context = run.context(notebook, job, streams.catalogue, streams.features)
    context |= {"model": label} if label else {}
    with reading(kept, "delete it to measure again"):
        rows = recording.rows(json.loads(kept.read_text(encoding="utf-8")), context)
    size = sum(p.numel() for p in run.model.parameters())
    fingerprint, queries = streams.catalogue.fingerprint, pd.read_parquet(by_query)
    return Study(run.name, fingerprint, pd.DataFrame(rows), queries, run.history, size)


def _measure(run: runs.Run, job: runs.Job, streams: Streams) -> tuple[list[dict], pd.DataFrame]:
    """Numbers with state and variant, and what every query contributed to them."""
    catalogue, numbers, parts = streams.catalogue, [], []

    def add(queries: pd.DataFrame, more: list[dict], state: str, variant: str) -> None:
        named = {"state": state, "variant": variant}
        numbers.extend(number | named for number in evaluate.means(queries) + more)
        parts.append(queries.assign(**named))

    def clustered(vectors: np.ndarray, state: str, variant: str) -> list[dict]:
        found = evaluate.clusters(catalogue, vectors)
        parts.append(found.assign(state=state, variant=variant))
        return evaluate.clustering_of(found)

    needed = evaluate.needed_rows(catalogue, "validation")
    by_query, seed = evaluate.TASKS[:3], job.seed
    for readout, vectors in runs.vectors(run.model, streams, needed).items():
        more, tasks, protocols = choosing(catalogue, vectors), by_query[:1], ("usual",)
        if readout == PAPER:
            more += clustered(vectors, "pretrained", readout)
            tasks, protocols = by_query, ("usual", "released")
        queries = evaluate.per_query(catalogue, vectors, tasks, seed=seed, protocols=protocols)
        add(queries, more, "pretrained", readout)
    hidden, labels = runs.tuned_vectors(runs.finetuned(run, job, streams), streams, needed)
    queries = evaluate.per_query(catalogue, hidden, by_query, predicted=labels)
    add(queries, clustered(hidden, "finetuned", HIDDEN), "finetuned", HIDDEN)
    pair = ("image", "text")
    if set(pair) <= set(run.model.spec.modalities):
        asked, own, others = modality_cosines(run.model, streams, catalogue.split("gallery"), pair)
        for named, values in ((SIMILARITY, own - others), (PLAIN, own)):
            frame = {"id": catalogue.ids[asked], **dict(zip(KEYS[2:], named, strict=True))}
            add(pd.DataFrame(frame | {"value": values}), [], "pretrained", PAPER)
    return numbers, pd.concat(parts, ignore_index=True)[list(COLUMNS)]


# --- grids


def studies(
    grid: Mapping[str, Mapping[str, object]],
    data: str,
    profile: str,
    seeds: Iterable[int],
    notebook: str,
    products: int = 0,
    extractors: str = "",
    **more,
) -> dict[tuple[str, int], Study]:
    """(label, seed) -> study of a grid, seed by seed in its order, each with a line when it is
    there; those that ask for what the products lack are left out.

    Args:
        grid: label -> ``modalities`` (codes; all, if not given) and fields of
            :class:`m5lib.lab.runs.Job`; ``seeds``: the row is run with seeds below it only.
        seeds: of weights, order and masks; with ``data="shop"`` of the shop too.
        products: at most so many, evenly over the splits, if not of the shop; 0: the profile's.
        more: fields of all jobs where the grid does not say, such as ``bert``.
    """
    size, result, seeds = sized(profile, products), {}, list(seeds)
    for label in [x for x, row in grid.items() if row.get("seeds", 2**63) <= min(seeds, default=0)]:
        print(f"{label}: left out, it is run with seeds below {grid[label]['seeds']} only")
    for seed in seeds:
        loaded = runs.load(data, size, seed, extractors)
        rows = {label: row for label, row in grid.items() if seed < row.get("seeds", seed + 1)}
        for label, (job, streams) in jobs(rows, *loaded, size, seed, extractors, **more).items():
            begun, plain = time.monotonic(), (job.model, grid[label].get("modalities", ""))
            name = job.model if label in plain else f"{job.model}, {label}"
            result[label, seed] = one = study(job, streams, notebook, name)
            print(f"seed {seed}, {label}: {one.run}, {time.monotonic() - begun:.0f} s", flush=True)
    return result


def sized(profile: str, products: int = 0) -> runs.Profile:
    """A profile that reads at most so many products, 0: as many as it says; with :data:`ASKED`."""
    size = runs.profile_of(profile)
    return replace(size, products=products or size.products, asked=ASKED.get(profile, 0))


def jobs(
    grid: Mapping[str, Mapping[str, object]],
    catalogue: Catalogue,
    features: Mapping[str, Ragged],
    size: runs.Profile,
    seed: int,
    extractors: str = "",
    **more,
) -> dict[str, tuple[runs.Job, Streams]]:
    """The jobs of a grid with their streams, by label, all before the first is run, so that a
    mistyped setting costs no training: ``ValueError``, which lists those of jobs.

    Left out, with a line: one that asks for modalities that the products lack, and one about
    products that lack some (Table 10) where none does: it would be the same run again."""
    fields, result = {field.name for field in dataclasses.fields(runs.Job)}, {}
    for label, settings in grid.items():
        said, modalities = f"seed {seed}, {label}: left out,", settings.get("modalities", "")
        lacking = set(from_codes(modalities) if modalities else ()) - set(catalogue.modalities)
        if lacking:
            print(f"{said} {catalogue.name} has no {', '.join(ordered(lacking))}")
            continue
        if unknown := set(settings) - fields - {"modalities", "state", "seeds"}:
            names, known = ", ".join(sorted(unknown)), ", ".join(sorted(fields))
            raise ValueError(f"{label}: a job has no {names}; it has {known}")
        own = {name: value for name, value in settings.items() if name in fields}
        job = runs.Job(**dict(profile=size.name, seed=seed, extractors=extractors) | more | own)
        streams = runs.streams_of(catalogue, features, size, modalities, job.tokenizer or job.bert)
        about_missing = job.products == "complete" or dict(job.changes).get("missing") == "impute"
        if about_missing and catalogue.presence[list(streams.modalities)].to_numpy().all():
            print(f"{said} no product of {catalogue.name} lacks a modality")
            continue
        result[label] = job, streams
    return result


#: What :func:`fair` tries, times a row's own rate and temperature, its seeds, and how far behind
#: the best of the first seed the others are not asked.
TRIED, CHOOSING, CLOSE = (1.0, 1 / 3, 3.0), (1000, 1001, 1002), 0.02


def fair(
    grid: Mapping[str, Mapping[str, object]],
    data: str,
    profile: str,
    products: int = 0,
    extractors: str = "",
    choices: str = "",
    **more,
) -> tuple[dict[str, dict[str, object]], pd.DataFrame]:
    """A grid with each row at its best rate of pre-training, then at its best start of the
    temperature: by mAP@10 of validation products, mean of the paper's read-out and the default one,
    and of three seeds (of the shop too) that no table has, where one does not tell. A row's own
    rate is tried, too; one that is not pre-trained or asks for what the products lack stays.
    ``choices``: a record of these products in ``results/``; what it tried is not trained again.
    Returns what was tried, too. Arguments as for :func:`studies`."""
    size, found, tried = sized(profile, products), {}, {}
    loaded = cache(lambda seed: (*runs.load(data, size, seed, extractors), size, seed, extractors))
    seen = recording.load_tried(choices)

    def value(label: str, row: dict, seed: int) -> float:
        job, streams = jobs({label: row}, *loaded(seed), **more)[label]
        plan = job.plan(streams)
        key = label, plan.training.learning_rate, plan.spec.objective.temperature, seed
        if key not in seen:
            last = runs.pretrained(job, streams).history[-1]["validation"]
            seen[key] = float(np.mean([last.get(by, np.nan) for by in (PAPER, DEFAULT)]))
        tried[key] = seen[key]
        return float(np.nan_to_num(seen[key]))

    def best(label: str, ways: Sequence[dict]) -> dict:
        first = [value(label, row, CHOOSING[0]) for row in ways]
        close = [n for n, x in enumerate(first) if x >= max(first) - CLOSE]
        seeds = CHOOSING[1:] if len(close) > 1 else ()
        means = [np.mean([first[n], *(value(label, ways[n], s) for s in seeds)]) for n in close]
        return ways[close[int(np.argmax(means))]]  # of equals the first

    for label, row in grid.items():
        found[label] = row = dict(row)
        known = jobs({label: row}, *loaded(CHOOSING[0]), **more)
        if not known or row.get("products") == "none":
            continue
        job, streams = known[label]
        objective, training = job.plan(streams).spec.objective, streams.catalogue.split("train")
        usual = {name: value for name, value in row.items() if name != "learning_rate"}
        rate = size.for_products(len(training)).training.learning_rate
        ways = [usual | ({"learning_rate": rate * x} if x != 1 else {}) for x in TRIED]
        row = best(label, ways if row in ways else [row, *ways])
        if objective.contrast != "none" and len(streams.modalities) > 1:
            start = ("objective.temperature",)
            changed = [((*start, objective.temperature * x),) if x != 1 else () for x in TRIED]
            row = best(label, [row | {"changes": (*row.get("changes", ()), *x)} for x in changed])
        found[label] = row
    return found, pd.DataFrame([(*key, x) for key, x in tried.items()], columns=recording.TRIED)


def controls(
    data: str, profile: str, seeds: Iterable[int], products: int = 0, modalities: str = ""
) -> dict[tuple[str, int], Study]:
    """The strongest control (:func:`.controls.strongest`) of those that read no more than these
    modalities (codes; all, if not given), to stand among studies as ``control (its name)``: its one
    vector in the place of the paper's read-out, the default one and fine-tuned features, its
    accuracy a linear probe's. Nothing, where the products allow none."""
    size, found = sized(profile, products), {}
    probe = {"linear probe": number("accuracy")["convention"]}
    for seed in seeds:
        if data == "shop" or not found:  # the same products, the same control
            catalogue, _ = runs.load(data, size, seed)
            reads = set(from_codes(modalities)) if modalities else set(catalogue.modalities)
            pixels = runs.pixels(catalogue) if "image" in reads else {}
            if not (best := strongest(catalogue, pixels, reads, seed)):
                return {}
            queries = evaluate.per_query(catalogue, best[1], evaluate.TASKS[:3], seed=seed)
            queries, clusters = queries.replace(probe), evaluate.clusters(catalogue, best[1])
            means = evaluate.means(queries) + evaluate.clustering_of(clusters)
            context = {"notebook": "", "run": "", "data": catalogue.name, "profile": profile}
            context |= {"model": best[0], "modalities": codes(reads)}
        rows, parts = [], []
        for place in (("pretrained", PAPER), ("pretrained", DEFAULT), ("finetuned", HIDDEN)):
            own = dict(zip(KEYS, place, strict=False))
            rows += recording.rows(means, context, seed=seed, **own)
            parts.append(pd.concat([queries, clusters]).assign(**own))
        own = (catalogue.fingerprint, pd.DataFrame(rows), pd.concat(parts)[list(COLUMNS)])
        found[seed] = Study(best[0], *own, [], 0)
    label = f"control ({', '.join(dict.fromkeys(one.run for one in found.values()))})"
    return {(label, seed): one for seed, one in found.items()}


# --- tables of studies


def tidy(studies: Studies) -> pd.DataFrame:
    """The result rows of all studies, with their label in the grid in a further column."""
    return pd.concat([x.rows.assign(label=of) for (of, _), x in studies.items()], ignore_index=True)


def only(studies: Studies, labels: Iterable[str]) -> dict[tuple[str, int], Study]:
    """The studies of some rows of a grid, in the order of the labels."""
    return {key: studies[key] for label in labels for key in studies if key[0] == label}


def published(name: str, label: str, **only: str) -> pd.DataFrame:
    """A table of ``paper/tables`` by its column of labels, sets of modalities in our order (``T+I
    -> I+T``); ``only`` keeps rows of these values."""
    frame = pd.read_csv(ROOT / "paper" / "tables" / f"{name}.csv")
    frame = (pick(frame, only) if only else frame).set_index(label)
    return frame.rename(lambda x: codes(from_codes(x))) if label == "modalities" else frame


def values(studies: Studies, wanted: str | Mapping[str, str]) -> pd.DataFrame:
    """A number of every study (:func:`number`, or values of the columns of result rows): label
    against seed, in the order of the grid; NaN where not measured."""
    wanted = number(wanted) if isinstance(wanted, str) else wanted
    series = pd.Series({key: study.value(wanted) for key, study in studies.items()})
    return series.unstack().loc[list(dict.fromkeys(label for label, _ in studies))]


def beside(
    studies: Studies, paper: pd.DataFrame, names: Iterable[str], state: str = "finetuned"
) -> pd.DataFrame:
    """The paper's numbers and ours, in per cent: a row per label, for each of the table's columns
    ``paper`` and ``ours``; and how many seeds each has, where some have fewer."""
    columns, seeds = {}, pd.Series([label for label, _ in studies]).value_counts(sort=False)
    for name in names:
        ours = said(values(studies, number(name, state)))
        theirs = [f"{paper[name][key]:.1f}" if key in paper.index else "" for key in ours.index]
        columns |= {(name, "paper"): theirs, (name, "ours"): ours.to_numpy()}
    if seeds.nunique() > 1:
        columns["seeds", ""] = seeds[ours.index].to_numpy()
    return pd.DataFrame(columns, index=ours.index)


def readouts(studies: Studies, convention: str = "min_k_r") -> pd.DataFrame:
    """mAP@10 of retrieval by category before fine-tuning, by every read-out: label against
    read-out, mean over the seeds that all labels have."""
    wanted = {"task": "retrieval", "state": "pretrained", "metric": "mAP@10"}
    rows = pick(tidy(studies), wanted | {"convention": convention})
    whole = rows.groupby("seed")["label"].nunique() == rows["label"].nunique()
    rows = rows[rows["seed"].map(whole)]
    table = rows.pivot_table(index="label", columns="variant", values="value", sort=False)
    return table.rename_axis(columns="read-out")
