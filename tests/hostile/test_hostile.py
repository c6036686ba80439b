"""Other people's files: every one has the outcome that the tables of ``corpus*.py`` say, and no
reader raises anything but a ``DataError`` (of one media file a ``MediaError``) that names it."""

import json
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import corpus_released  # noqa: F401
import numpy as np
import pytest
from arguments import CALLS
from conftest import ROOT
from corpus import CASES, Case, Fails
from corpus_media import Picture
from make_media import write_image
from PIL import Image

from m5lib.catalogue import Catalogue, DataError, Product
from m5lib.data import DENSEST, MediaFile, m5features, readers, store
from m5lib.data.backbones import choose
from m5lib.data.decoding import MOST_PIXELS, MediaError, frames, open_image, sound
from m5lib.data.extractors import PLAIN
from m5lib.embeddings import ACROSS, DEFAULT, embeddings
from m5lib.evaluation import metrics
from m5lib.lab import runs
from m5lib.search.duplicates import calibrate
from m5lib.search.encode import Encoder
from m5lib.search.index import Index
from m5lib.search.intake import Report
from m5lib.search.reasons import explain

WIDTH = {"image": m5features.StoredRegions(3), "video": m5features.StoredRows(3, 9)}
#: How each kind of media is read, and the modality that it is extracted as.
MEDIA = {
    "picture": ("image", open_image),
    "film": ("video", lambda file: frames(file, [0, 100], 32)[1][-1]),
    "sound": ("audio", lambda file: len(sound(file)) / 16_000),
    "array": ("video", WIDTH["video"]),
}
READERS = {
    **dict.fromkeys(("table", "released", "fashion"), readers.read),
    "regions": lambda folder: m5features.read_features(folder, readers=WIDTH)[0],
}


def of_kinds(*kinds: str) -> list[Case]:
    return [case for case in CASES if case.kind in kinds]


def test_there_are_over_six_hundred_and_no_two_alike():
    counts = Counter(case.kind for case in CASES)
    assert sum(counts.values()) >= 600 and min(counts.values()) >= 13, counts
    assert set(counts) == {*MEDIA, *READERS, "query"}
    assert len({str(case) for case in CASES}) == len(CASES)


def test_the_page_on_trust_names_and_counts_what_there_is():
    page = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    fuzzed = json.loads((ROOT / "benchmarks" / "fuzz.json").read_text())["formats"]
    kills = json.loads((ROOT / "benchmarks" / "kills.json").read_text())
    counts = [
        (r"over ([\d,]+) inputs", len(CASES) // 100 * 100),
        (r"of (\d+)\s+formats", len(fuzzed)),
        (r"may hold (\d+) times its size", DENSEST),
        (r"pixels \| (\d+) million", MOST_PIXELS // 10**6),
        (r"up to (\d+) million", round(2 * Image.MAX_IMAGE_PIXELS / 1e6)),
    ]
    for pattern, count in counts:
        (said,) = re.findall(pattern, page)
        assert int(said.replace(",", "")) == count, pattern
    assert {"trainings", "extractions", "sweeps"} <= set(kills)
    named = re.findall(r"`((?:tests|benchmarks|m5lib|docs)/[^`]*)`", page)
    assert len(named) >= 4 and all(list(ROOT.glob(name)) for name in named), named
    for name in re.findall(r"`(m5lib(?:\.\w+)+)`", page):
        assert pkgutil.resolve_name(name), name
    loose = [n for n in re.findall(r"`([\w*]+\.(?:py|md))`", page) if not (ROOT / n).exists()]
    assert not loose, "say where they lie"


@pytest.mark.parametrize("case", of_kinds(*READERS), ids=str)
def test_it_comes_as_the_table_says(case: Case, tmp_path):
    path = case.make(tmp_path)
    if isinstance(case.comes, Fails):
        with pytest.raises(DataError) as raised:
            READERS[case.kind](path)
        assert case.comes.words in str(raised.value) and "\n" not in str(raised.value)
        assert path.stem.split(".")[0] in str(raised.value), "it names the file"
    else:
        compare(READERS[case.kind](path), case.comes)


def media_file(path) -> MediaFile:
    return MediaFile(path, size=path.stat().st_size if path.is_file() else None)


@pytest.mark.parametrize("case", of_kinds(*MEDIA), ids=str)
def test_a_file_is_read_or_its_reason_is_said(case: Case, tmp_path):
    path = case.make(tmp_path)
    name, read = MEDIA[case.kind]
    file = MediaFile(path) if path.is_symlink() else media_file(path)
    extractor = WIDTH["video"] if case.kind == "array" else PLAIN[name]
    catalogue = Catalogue("one", (Product("a", {name: file, "text": "Tea"}),))
    clean, features = store.extract(catalogue, {name: extractor}, workers=1)
    if isinstance(case.comes, Fails):
        if "not finite" not in case.comes.words and "shape" not in case.comes.words:
            with pytest.raises((MediaError, OSError)) as raised:
                read(file)
            assert case.comes.words in str(raised.value)
        ((where, what, reason),) = clean.skipped
        assert (where, what) == ("a", name) and reason and "\n" not in reason
        assert case.comes.words in reason and list(clean.products[0].contents) == ["text"]
        return
    found = read(file)
    assert clean.skipped == () or "one window" in clean.skipped[0].reason
    if isinstance(case.comes, Picture):
        colour = found.getpixel((found.width // 2, found.height // 2))
        assert found.size == case.comes.size and found.mode == "RGB"
        assert np.abs(np.subtract(colour, case.comes.colour)).max() <= 4
    elif case.kind == "array":
        assert found.values.shape == case.comes.shape and len(features[name].values)
    else:
        assert found == pytest.approx(*astuple(case.comes), abs=0.11)


def search_over(path, lines) -> Index:
    """A search over a few products by a model that has learned nothing."""
    write_image(path.with_name("a.png"))
    path.write_text("id,title,size,image\n" + "".join(lines))
    catalogue, features = store.extract(readers.read(path), {"image": PLAIN["image"]})
    streams = runs.streams_of(catalogue, features, runs.profile_of("tiny"))
    model = runs.untrained(runs.Job("tiny", "scale_fused"), streams)
    vectors = embeddings(model, streams, range(len(streams)), readouts=(DEFAULT, ACROSS))
    return Index(Encoder(model, choose("")), streams, vectors, {})


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    path = tmp_path_factory.mktemp("query") / "t.csv"
    return search_over(path, (f"{n},red shirt {n},{n},a.png\n" for n in range(9)))


def test_equal_products_have_hits_and_are_duplicates(tmp_path):
    """Whitened, nothing but the noise of their rounding would be left of them."""
    index = search_over(tmp_path / "t.csv", (f"{n},red shirt,7,a.png\n" for n in range(40)))
    hits = index.like(3)  # ids are text
    assert len(hits.rows) == 8 and hits.cosines == pytest.approx(1.0, abs=1e-5)
    assert len(index.duplicates()) == 40 * 39 // 2


@pytest.mark.parametrize("asked", [{"text": "red"}, {"text": "0"}, "8", "9"])
@pytest.mark.parametrize("collapsed", [False, True])
def test_reasons_of_what_has_next_to_nothing_are_finite(asked, collapsed, tmp_path):
    """One modality, a title of a zero, and a model that says the same of every product."""
    rows = [*(f"{n},red {n},{n},a.png\n" for n in range(8)), "8,0,,\n", "9,,,a.png\n"]
    index = search_over(tmp_path / "t.csv", rows)
    if collapsed:
        for name, parameter in index.model.named_parameters():
            parameter.data.fill_(0.3 if name.endswith("bias") else 0.0)
        vectors = index.encoder.embed(index.streams, range(10))
        index = Index(index.encoder, index.streams, vectors, {})
    hits = index.like(asked) if isinstance(asked, str) else index.search(**asked)
    for side in ("hit", "query"):
        told = explain(index, hits, len(hits.rows) - 1, side)
        assert np.isfinite(told.modalities).all() and np.isfinite(told.tokens["score"]).all()
        assert told.modalities.sum() == pytest.approx(hits.cosines[-1], abs=1e-3)
        assert len(told.tokens) and told.error < 0.1


def test_collapsed_vectors_are_classified_as_the_most_frequent():
    labels = np.array(["a", "b", "b"], dtype=object)
    same = np.ones((3, 4), dtype=np.float32)
    assert metrics.linear_probe(same, labels, same).tolist() == ["b", "b", "b"]
    near = np.eye(3, 4, dtype=np.float32)
    assert metrics.linear_probe(near, labels[1:2].repeat(3), near).tolist() == ["b", "b", "b"]


def test_vectors_that_are_not_finite_have_no_duplicates():
    with pytest.raises(ValueError, match="not finite"):
        calibrate(np.full((9, 4), np.nan, dtype=np.float32))


@pytest.mark.parametrize("case", of_kinds("query"), ids=str)
def test_a_query_is_answered_or_its_fault_is_said(case: Case, index, tmp_path):
    asked = case.make(tmp_path)
    if case.comes is None:
        hits = index.search(**{"top": 3, **asked})
        assert len(hits.rows) == min(asked.get("top", 3), 9) and np.isfinite(hits.cosines).all()
        return
    with pytest.raises((ValueError, KeyError)) as raised:
        index.search(**asked)
    assert case.comes.words in str(raised.value) and "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def answers() -> dict:
    """In a process of its own: the checker of types that tests put around every function would be
    the first to complain."""
    ran = [sys.executable, Path(__file__).with_name("arguments.py")]
    return json.loads(subprocess.run(ran, capture_output=True, text=True, check=True).stdout)


@pytest.mark.xdist_group("arguments")  # which are tried once, not once a worker
@pytest.mark.parametrize("words", CALLS)
def test_an_argument_of_the_wrong_kind_is_named_with_its_mend(words, answers):
    kind, said = answers[words]
    assert kind in ("ValueError", "DataError", "ParameterError", "IndexError", "")
    assert words in said and "\n" not in said


def compare(catalogue: Catalogue, comes) -> None:
    assert {p.id: p.contents.get("text") for p in catalogue.products} == comes.products
    listed = list(catalogue.skipped)
    for where, name, words in comes.listed:
        found = [s for s in listed if s.where.startswith(where) and s.field == name]
        found = [skip for skip in found if words in skip.reason]
        assert found, (where, name, words, catalogue.skipped)
        listed.remove(found[0])
    assert not listed, "nothing else is listed"
    products = {product.id: product for product in catalogue.products}
    for (i, name), expected in comes.more.items():
        contents = dict(products[i].contents)
        contents |= {"label": products[i].label} | dict(contents.get("table", ()))
        content = contents.get(name)
        content = content.read() if isinstance(content, MediaFile) else content
        assert (content or None) == expected, (i, name, content)


def test_many_rows_with_one_fault_are_one_line_of_the_reports(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,title\n" + "1,Tea\n" * 50, encoding="utf-8")
    catalogue = readers.read(path)
    assert [skip.reason[-9:] for skip in catalogue.skipped[:2]] == [" (line 3)", " (line 4)"]
    for said in (catalogue.report(), str(Report(catalogue))):
        assert said.count("the id was seen before") == 1 and "49 (1, 1, 1 …)" in said
