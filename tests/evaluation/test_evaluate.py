import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from m5lib.catalogue import Catalogue, Product
from m5lib.embeddings import READOUTS
from m5lib.evaluation import controls, evaluate, separation, stats
from m5lib.lab import runs
from m5lib.model import Model
from m5lib.models import zoo
from m5lib.streams import Streams


def test_controls_know_words_and_pixels(catalogue):
    found = controls.controls(catalogue, runs.pixels(catalogue))
    assert set(found) == {"tfidf", "tfidf_title+table", "pca_pixels", "svd+pca"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = {
            name: evaluate.evaluate(catalogue, vectors, ["retrieval"])
            for name, (_, vectors) in found.items()
        }
    at_one = {
        name: next(n["value"] for n in part if n["metric"] == "mAP@1")
        for name, part in numbers.items()
    }
    labels = catalogue.labels[catalogue.split("gallery")]
    chance = max(np.mean(labels == label) for label in set(labels))
    assert all(value > chance for value in at_one.values()), at_one
    assert found["svd+pca"][0] == ("image", "text")


def of_texts(titles, splits=("train",), labels=None, **more):
    products = [
        Product(f"{n}", {"text": text} if text else {"table": (("a", "b"),)}, label, split, **more)
        for n, (text, label, split) in enumerate(
            zip(titles, labels or titles, splits * len(titles), strict=False)
        )
    ]
    return Catalogue("c", tuple(products))


def test_words_of_titles_are_scikit_learn_s_and_chinese_characters():
    """A run of Chinese would be one word, which no two titles share; other words are as ever."""
    titles = ["red T-shirt 5 x_y café", "Blue shirts, XL a b", "red café Жук αβ"]
    found = controls.tfidf(of_texts(titles), ("text",))
    usual = TfidfVectorizer(dtype=np.float32).fit_transform(titles)
    assert (found != usual).nnz == 0
    chinese = controls.tfidf(of_texts(["不锈钢保温杯500ml", "保温杯 大容量", "红裙"]), ("text",))
    cosine = (chinese @ chinese.T).toarray()
    assert cosine[0, 1] > 0.3 and cosine[0, 2] == cosine[1, 2] == 0
    assert chinese.shape[1] == len("不锈钢保温杯大容量红裙") + 1


def test_controls_without_training_products_to_learn_of(catalogue):
    """Titles or pictures that only others have, and titles without a word."""
    no_titles = of_texts(["", "mug", "cup"], ("train", "query", "gallery"))
    assert controls.controls(no_titles, {}) == {}
    letters = controls.controls(of_texts(["a", "b"]), {})
    assert letters["tfidf"][1].nnz == 0
    train = set(catalogue.split("train"))
    bare = [
        replace(p, contents={"text": "mug"}) if n in train else p
        for n, p in enumerate(catalogue.products)
    ]
    bare = replace(catalogue, products=tuple(bare))
    assert set(controls.controls(bare, runs.pixels(catalogue))) == {"tfidf"}
    one = controls.svd(
        of_texts(["red mug", "blue cup"], ("train", "query")), sparse.csr_matrix(np.ones((2, 3)))
    )
    assert one.shape == (2, 1)


def test_fine_retrieval_without_known_products_is_by_label():
    """As the released script does: the official data names no product of a listing."""
    titles, splits = ["a b", "c d", "e f", "g h"], ("fine_query", *["fine_gallery"] * 3)
    official = of_texts(titles, splits, ["mug", "mug", "cup", "mug"])
    rows, left_out = evaluate.queries(official, "fine_query")
    assert rows.tolist() == [0] and left_out == 0
    found = evaluate.retrieval(official, np.eye(4)[[0, 1, 0, 0]], "fine_query")
    assert evaluate.value(found, "mAP@10") == pytest.approx((1 / 2 + 2 / 3) / 2)
    known = of_texts(titles, splits, ["mug"] * 4, instance="one")
    products = [replace(p, instance=f"{n // 2}") for n, p in enumerate(known.products)]
    asked, same = evaluate.sought(replace(known, products=tuple(products)), "fine_query")
    assert asked.tolist() == [1, 2, 3] and same.tolist() == ["0", "0", "1", "1"]


def test_controls_are_fitted_on_training_products_only(catalogue):
    """Other products than these: the same vectors of the ones that stay."""
    train = set(catalogue.split("train"))
    kept = [n for n in range(len(catalogue)) if n in train or n % 2]
    fewer = replace(catalogue, products=tuple(catalogue.products[n] for n in kept))
    one, two = (controls.controls(part, runs.pixels(part)) for part in (catalogue, fewer))
    for name, (_, vectors) in one.items():
        matrix, other = (getattr(x, "toarray", lambda x=x: x)() for x in (vectors, two[name][1]))
        np.testing.assert_allclose(matrix[kept], other, atol=1e-4, err_msg=name)


def test_evaluate_gives_every_number_with_its_convention(catalogue):
    label_of = {label: n for n, label in enumerate(sorted(set(catalogue.labels)))}
    perfect = np.eye(len(label_of))[[label_of[label] for label in catalogue.labels]]
    found = {
        (n["task"], n["metric"], n["convention"]): n["value"]
        for n in evaluate.evaluate(catalogue, perfect)
    }
    assert found["retrieval", "mAP@10", "min_k_r"] == found["retrieval", "mAP@10", "hits"] == 1
    assert (
        found["retrieval", "Prec@1", "k"] == 1
        and found["classification", "accuracy", "linear probe"] > 0.95
    )
    assert len(found) == 9 + 1 + 2 and all(0 <= value <= 1 + 1e-9 for value in found.values())
    k = len(set(catalogue.labels[catalogue.split("query")]))
    assert found["clustering", "NMI", f"k-means k={k}, mean of seeds 0 1 2"] == pytest.approx(1)


def test_per_query_values_average_to_the_numbers(catalogue):
    vectors = (
        np.random.default_rng(0).normal(size=(len(catalogue), 6))
        + (catalogue.labels == "Watch")[:, None]
    )
    both = ("usual", "released")
    rows = evaluate.per_query(catalogue, vectors, protocols=both)
    assert list(rows.columns) == list(evaluate.PER_QUERY)
    means = rows.groupby(["task", "metric", "convention"])["value"].mean()
    numbers = evaluate.evaluate(
        catalogue, vectors, ["retrieval", "fine retrieval", "classification"], protocols=both
    )
    assert len(numbers) == len(means) == 9 + 6 + 1 and {n["convention"] for n in numbers} == {
        "min_k_r",
        "hits",
        "k",
        "released",
        "linear probe",
    }
    assert all(
        means[n["task"], n["metric"], n["convention"]] == pytest.approx(n["value"], abs=1e-12)
        for n in numbers
    )
    queries, _ = evaluate.queries(catalogue)
    assert (
        rows.query("metric == 'mAP@5' and convention == 'released'")["id"].tolist()
        == catalogue.ids[queries].tolist()
    )
    predicted = np.stack(
        [np.full(len(catalogue), label, dtype=object) for label in ("Shirt", "Watch")], axis=1
    )
    found = {
        n["metric"]: n["value"]
        for n in evaluate.evaluate(catalogue, vectors, ["classification"], predicted=predicted)
    }
    test = catalogue.labels[catalogue.split("query")]
    assert found == pytest.approx(
        {
            "accuracy": np.mean(test == "Shirt"),
            "accuracy@5": np.mean((test == "Shirt") | (test == "Watch")),
        }
    )
    assert evaluate.per_query(catalogue, vectors, ["clustering"]).empty


def test_precision_of_fine_retrieval_asks_whose_product_is_listed_so_often(catalogue):
    """Of K found, K can be right; a product listed four times says nothing of Prec@10."""
    splits, owners = ["fine_query"] * 3 + ["fine_gallery"] * 17, [1, 2, 3, *[1] * 10, *[2] * 6, 3]
    products = [
        replace(product, split=split, instance=str(owner))
        for product, split, owner in zip(catalogue.products, splits, owners, strict=False)
    ]
    listed = replace(catalogue, products=tuple(products))
    vectors = np.eye(4)[owners] + 0.01 * np.random.default_rng(0).standard_normal((20, 4))
    asked = evaluate.per_query(listed, vectors, ["fine retrieval"], protocols=("usual", "released"))
    usual = asked[asked["convention"] != "released"]
    per = {metric: part["id"].tolist() for metric, part in usual.groupby("metric")}
    ids = listed.ids[:3].tolist()
    assert per["Prec@1"] == ids and per["Prec@5"] == ids[:2] and per["Prec@10"] == ids[:1]
    assert asked.query("convention == 'released'").groupby("metric")["id"].count().eq(3).all()
    assert asked.query("convention == 'min_k_r' and metric == 'mAP@10'")["id"].tolist() == ids
    assert evaluate.value(evaluate.means(usual), "Prec@10", "k") == 1
    few = replace(listed, products=tuple(products[1:]))
    found = evaluate.retrieval(few, vectors[1:], "fine_query")
    assert "Prec@10" not in {number["metric"] for number in found}


@pytest.mark.parametrize("split", ["validation", "query", "fine_query"])
def test_what_choices_are_made_by_is_the_retrieval_of_that_name(catalogue, split):
    """Dense and sparse vectors, with labels and without, of products and of their listings."""
    products = [replace(p, instance=str(n % 7)) for n, p in enumerate(catalogue.products)]
    for n, product in enumerate(products):  # some look for the other listings
        if catalogue.splits[n] == "query" and n % 3:
            products[n] = replace(product, split="fine_query" if n % 3 == 1 else "fine_gallery")
    listed = replace(catalogue, products=tuple(products))
    bare = replace(listed, products=tuple(replace(p, label=None, instance=None) for p in products))
    vectors = np.random.default_rng(0).standard_normal((len(listed), 6))
    for every in (vectors, controls.tfidf(listed, ("text",))):
        numbers = evaluate.retrieval(listed, every, split)
        assert evaluate.quality(listed, every, split) == evaluate.value(numbers)
        assert np.isnan(evaluate.quality(bare, every, split))


def test_clustering_is_the_mean_of_three_starts(catalogue):
    vectors = np.random.default_rng(0).normal(size=(len(catalogue), 6))
    rows = [r for r in catalogue.split("query") if catalogue.labels[r] is not None]
    labels, slow = catalogue.labels[rows], {"NMI": [], "purity": []}
    for seed in (0, 1, 2):
        found = evaluate.metrics.cluster(vectors[rows], len(set(labels)), seed)
        slow["NMI"].append(evaluate.metrics.nmi(found, labels))
        slow["purity"].append(evaluate.metrics.purity(found, labels))
    assert len(set(slow["NMI"])) == 3, "else one start would do"
    for number in evaluate.clustering(catalogue, vectors):
        assert number["value"] == pytest.approx(np.mean(slow[number["metric"]]))


def crossed_catalogue():
    """Queries by image, answers by text: q2 has no image, g1 no text."""
    has = {"q0": "IT", "q1": "IT", "q2": "T", "g0": "IT", "g1": "I", "g2": "T", "g3": "IT"}
    names = {"I": "image", "T": "text"}
    labels = {"q0": "a", "q1": "b", "q2": "a", "g0": "b", "g1": "a", "g2": "a", "g3": "c"}
    split = {"q": "query", "g": "gallery"}
    return Catalogue(
        "crossed",
        tuple(
            Product(i, {names[code]: "x" for code in codes}, labels[i], split[i[0]])
            for i, codes in has.items()
        ),
    )


def test_retrieval_from_one_modality_to_another():
    catalogue = crossed_catalogue()
    image = np.array([[1.0, 0], [0, 1], [0, 0], [0, 1], [1, 0], [0, 0], [1, 1]])
    text = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1], [0, 0], [1, 0.1], [1, 1]])
    given = (["image"], ["text"])
    found = {
        (n["metric"], n["convention"]): n["value"]
        for n in evaluate.retrieval(catalogue, image, gallery=text, given=given)
    }
    assert found["queries left out", "none of the modalities asked with"] == 1  # q2
    assert found["mAP@1", "min_k_r"] == 1  # q0 -> g2, q1 -> g0
    assert found["mAP@5", "min_k_r"] == pytest.approx(
        (1 / 2 + 1) / 2
    )  # q0 seeks g1 and g2, and g1 cannot be found
    rows = evaluate.per_query(catalogue, image, ["retrieval"], gallery=text, given=given)
    assert set(rows["id"]) == {"q0", "q1"} and not rows["metric"].eq("queries left out").any()
    back = {
        (n["metric"], n["convention"]): n["value"]
        for n in evaluate.retrieval(catalogue, text, gallery=image, given=given[::-1])
    }
    assert back["queries left out", "none of the modalities asked with"] == 0
    assert back["mAP@5", "min_k_r"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)  # here g2 cannot
    plain = evaluate.retrieval(
        catalogue, image, gallery=text
    )  # nobody is left out; q2 asks with zeros, and all tie
    assert "queries left out" not in {n["metric"] for n in plain}
    assert next(n["value"] for n in plain if n["metric"] == "mAP@1") == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="unknown modality"):
        evaluate.retrieval(catalogue, image, given=(["smell"], ["text"]))
    nobody = evaluate.retrieval(catalogue, image, given=(["audio"], ["text"]))
    assert nobody == []


def test_two_models_are_compared_query_by_query():
    rng = np.random.default_rng(0)
    pairs = []
    for seed in range(3):
        values = pd.Series(rng.random(80), [f"q{n}" for n in range(80)])
        ours, theirs = (values + more + 0.01 * rng.normal(size=80) for more in (0.1, 0.0))
        sides = {"ours": ours.sample(frac=1, random_state=seed), "theirs": theirs.iloc[:-5]}
        pairs.append(pd.concat(sides, axis=1, join="inner"))
    assert all(len(p) == 75 for p in pairs)
    own = evaluate.difference(pairs, shared=False)
    assert own.mean == pytest.approx(0.1, abs=0.005) and own.seeds == 3 and own.p < 0.01
    together = evaluate.difference(pairs, shared=True)
    assert together.mean == pytest.approx(own.mean)
    rows = [p.loc[pairs[0].index] for p in pairs]
    slow = stats.paired_queries(*(np.stack([p[x] for p in rows]) for x in ("ours", "theirs")))
    assert together == slow
    with pytest.raises(ValueError, match="differ from seed to seed"):
        evaluate.difference([pairs[0], pairs[1].iloc[1:]], shared=True)
    with pytest.raises(ValueError, match="at least one of each"):
        evaluate.difference([p.iloc[:0] for p in pairs], shared=False)


def test_a_probe_learns_nothing_from_the_products_it_is_tested_on(catalogue):
    """Random vectors tell nothing: a probe that had seen the tested ones would know all labels."""
    vectors = np.random.default_rng(0).normal(size=(len(catalogue.products), 300))
    for split in ("query", "validation"):
        (number,) = evaluate.evaluate(catalogue, vectors, ["classification"], split)
        assert number["value"] < 0.75


def test_a_query_is_never_its_own_hit(catalogue, monkeypatch):
    """The ids of both sides go along, so that the search can leave the query out."""
    sides = []

    def spy(queries, gallery, query_labels, gallery_labels, *rest, **named):
        sides.append((named.get("query_ids"), named.get("gallery_ids"), rest))
        return retrieval(queries, gallery, query_labels, gallery_labels, *rest, **named)

    retrieval = evaluate.metrics.retrieval
    monkeypatch.setattr(evaluate.metrics, "retrieval", spy)
    vectors = np.random.default_rng(0).normal(size=(len(catalogue.products), 8))
    evaluate.evaluate(catalogue, vectors, ["retrieval"])
    query_ids, gallery_ids, rest = sides[0]
    given = [x for x in (query_ids, gallery_ids, *rest) if isinstance(x, np.ndarray)]
    ids = {tuple(x) for x in given if x.dtype.kind in "OU"}
    assert tuple(catalogue.ids[catalogue.split("gallery")]) in ids and len(ids) == 2


def test_a_modality_counts_as_much_as_helps_validation_products(stream_set):
    """Against trying it out slowly, one weight after another; and nothing is tried on queries."""
    catalogue = stream_set.catalogue
    torch.manual_seed(1)
    model = Model(zoo.build("scale", width=32).fit(stream_set))
    evaluate.fit_readouts(model, stream_set)
    fitted = model.importance.clone()

    @cache
    def value(*weights):
        model.importance.copy_(torch.tensor(weights))
        vectors = runs.vectors(model, stream_set, range(len(stream_set)), None, ["weighted"])
        numbers = evaluate.retrieval(catalogue, vectors["weighted"], "validation")
        return evaluate.value(numbers)

    def quality(weights):
        return value(*weights)

    weights = [1.0] * len(fitted)
    best = quality(weights)
    for place in (0, 1, 2, 0, 1, 2):
        for count in evaluate.COUNTS:
            tried = [*weights[:place], count, *weights[place + 1 :]]
            if quality(tried) > best + evaluate.MARGIN and quality(tried) == max(
                quality([*weights[:place], c, *weights[place + 1 :]]) for c in evaluate.COUNTS
            ):
                best, weights = quality(tried), tried
                break
    assert fitted.tolist() == weights and quality(weights) >= quality([1.0] * 3)
    assert weights != [1.0] * 3  # else this shop shows nothing


def test_without_labels_every_modality_counts_alike(stream_set):
    catalogue = stream_set.catalogue
    bare = catalogue.take(range(60))
    bare = Catalogue(bare.name, tuple(replace(p, label=None) for p in bare.products))
    streams = Streams(bare, {}, stream_set.tokenizer, ["text", "table"])
    model = Model(zoo.build("scale", width=32).fit(streams))
    model.importance.fill_(3.0)
    evaluate.fit_readouts(model, streams)
    assert model.importance.tolist() == [1.0, 1.0]
    assert separation.glance(model, streams)["validation"] == {}


def test_a_look_where_every_product_is_for_training(stream_set):
    some = stream_set.catalogue.take(stream_set.catalogue.split("train")[:20])
    streams = Streams(some, {}, stream_set.tokenizer, ["text", "table"])
    model = Model(zoo.build("scale", width=32).fit(streams))
    assert separation.glance(model, streams)["validation"] == {}


def test_a_look_is_at_validation_products(stream_set):
    """By every read-out, against the retrieval of that split; rates are chosen by it."""
    torch.manual_seed(1)
    model = Model(zoo.build("scale", width=32).fit(stream_set))
    seen = separation.glance(model, stream_set)["validation"]
    vectors = runs.vectors(model, stream_set, range(len(stream_set)))
    slow = {
        name: evaluate.value(evaluate.retrieval(stream_set.catalogue, x, "validation"))
        for name, x in vectors.items()
    }
    assert set(seen) == set(READOUTS) and seen == pytest.approx(slow)
