"""The threshold of near-duplicates on real products with planted copies.

    python benchmarks/duplicates.py DATA RUN [untrained]   # products; folder of a run on them

writes ``benchmarks/duplicates.json``. 1,200 products get a copy: ``crop`` (5 to 15 % of each side
of the picture cut off, saved anew), ``words`` (a third of the title's words dropped, the others in
another order), ``both``, and ``missing`` (both, and one modality taken away). For each threshold:
pairs found, planted ones among them, others (some of which may be real near-duplicates: those with
the very same title are counted), others of two labels (surely different), and how many pairs of
different products :func:`m5lib.search.duplicates.calibrate` expects.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from m5lib.catalogue import Catalogue, Product
from m5lib.data import MediaFile, store, write_json
from m5lib.data.decoding import open_image
from m5lib.embeddings import embeddings
from m5lib.evaluation.evaluate import fit_whitening
from m5lib.lab import runs
from m5lib.model import Model
from m5lib.search.duplicates import calibrate, expected, nearest, pairs
from m5lib.search.encode import cosine
from m5lib.search.index import NEAR
from m5lib.streams import Streams

HERE, KINDS = Path(__file__).parent, ("crop", "words", "both", "missing")


def planted(catalogue: Catalogue, rows: np.ndarray, place: Path, rng) -> Catalogue:
    """A copy of each product, of one kind after another."""
    copies = []
    for number, row in enumerate(rows):
        product, kind = catalogue.products[row], KINDS[number % len(KINDS)]
        contents = dict(product.contents)
        if kind != "words":
            contents["image"] = _cropped(contents["image"], place / f"{number}.jpg", rng)
        if kind != "crop":
            words = contents["text"].split()
            words = [word for word in words if rng.random() >= 1 / 3] or words[:1]
            contents["text"] = " ".join(rng.permutation(words))
        if kind == "missing":
            contents.pop(("image", "text", "table")[rng.integers(3)])
        copies.append(Product(f"copy-{product.id}", contents))
    return Catalogue("planted", tuple(copies))


def _cropped(file: MediaFile, path: Path, rng) -> MediaFile:
    image = open_image(file)
    size, share = np.array(image.size), rng.uniform(0.85, 0.95, 2)
    corner = rng.uniform(0, 1 - share) * size
    image.crop([*corner.astype(int), *(corner + share * size).astype(int)]).save(path, quality=70)
    return MediaFile(path, size=path.stat().st_size)


def measure(vectors: np.ndarray, of: np.ndarray, labels: np.ndarray, titles: np.ndarray) -> dict:
    """The chosen threshold, and a row for it and for others; ``of``: rows that the last vectors
    copy."""
    count, near = len(vectors) - len(of), calibrate(vectors)
    owner, kinds = np.r_[np.arange(count), of], np.resize(KINDS, len(of))
    own, neighbours = cosine(vectors[count:], vectors[of]), nearest(vectors, 30)
    best, _ = pairs(vectors, min(0.6, near.cosine), 400_000)
    one, other, found = owner[best["row"]], owner[best["of"]], -best["distance"]
    table = []
    for threshold in (near.cosine, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95):
        above = found >= threshold
        a, b = one[above], other[above]
        right, total = int((a == b).sum()), int(above.sum())
        row = {"cosine": round(threshold, 3), "pairs": total, "planted": right}
        row |= {"others": total - right, "of two labels": int((labels[a] != labels[b]).sum())}
        row |= {"others of one title": int(((titles[a] == titles[b]) & (a != b)).sum())}
        row |= {"different, expected": round(expected(neighbours, threshold))}
        recall = {kind: round(float((own[kinds == kind] >= threshold).mean()), 3) for kind in KINDS}
        table.append(row | {"recall": recall})
    return {"chosen": near.cosine, "expected precision": near.precision, "thresholds": table}


def main(data: str, run: str, state: str = "trained") -> None:
    """One state of the model: write its part of the file."""
    torch.set_num_threads(1)
    begun, size, rng = time.monotonic(), runs.profile_of("small"), np.random.default_rng(0)
    catalogue, features = runs.load(data, size)
    model = Model.from_pretrained(run).eval()
    streams = Streams(catalogue, features, model.tokenizer, spec=model.spec)
    if state == "untrained":
        torch.manual_seed(0)
        model = Model(model.spec).eval()
        fit_whitening(model, streams, catalogue.split("train"))
    whole = catalogue.presence[["image", "text", "table"]].to_numpy().all(axis=1)
    of = rng.permutation(np.flatnonzero(whole))[:1200]
    with tempfile.TemporaryDirectory() as place:
        extra, more = store.extract(planted(catalogue, of, Path(place), rng))
    copies = Streams(extra, more, streams.tokenizer, spec=model.spec)
    both = [embeddings(model, s, range(len(s)), readouts=[NEAR])[NEAR] for s in (streams, copies)]
    titles = np.array([p.contents.get("text", "") for p in catalogue.products], dtype=object)
    result = {"products": len(catalogue), "run": Path(run).name}
    result |= measure(np.vstack(both), of, catalogue.labels, titles)
    result["seconds"] = round(time.monotonic() - begun)
    path = HERE / "duplicates.json"
    write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | {state: result})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
