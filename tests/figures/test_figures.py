import ast
import io
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from m5lib import figures
from m5lib.data import MediaFile, decoding
from m5lib.data.extractors import PLAIN
from m5lib.data.store import extract
from m5lib.evaluation import probes
from m5lib.figures import catalogue as catalogue_figures
from m5lib.figures import maps, style, tokens
from m5lib.shop import listings


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_spread_shows_mean_deviation_and_every_seed():
    values = pd.DataFrame({0: [0.2, 0.5], 1: [0.4, 0.7]}, index=["T", "I+T"])
    axes = figures.spread(values, "mAP@10", "title", chance=0.1).axes[0]
    assert [round(bar.get_width(), 6) for bar in axes.patches[:2]] == [0.3, 0.6]
    assert {"0.300", "0.600", "chance"} <= set(texts(axes.figure))
    assert sum(len(dots.get_offsets()) for dots in axes.collections if dots.get_offsets().size) >= 4
    assert figures.spread(values[[0]], "mAP@10", "one seed").axes


def test_table_frames_what_is_ticked():
    values = pd.DataFrame([[0.1, 0.9]], index=["text"], columns=["APP", "CATE"])
    axes = figures.table(
        values, pd.DataFrame([[False, True]], index=["text"], columns=["APP", "CATE"])
    ).axes[0]
    assert len(axes.patches) == 1 and texts(axes.figure) == ["0.10", "0.90"]


def test_histograms_have_a_panel_for_each_set():
    assert len(figures.histograms({"words": [3, 4, 5], "seconds": np.array([2.0])}).axes) == 2


def test_facets_are_told_by_the_modalities_that_carry_them(tmp_path):
    catalogue, features = extract(listings.make(160, 0, tmp_path, workers=1), PLAIN)
    found = probes.facets(catalogue, features, listings.truth(tmp_path))
    assert list(found.columns) == list(probes.FACETS) and (found.to_numpy() < 1).all()
    assert (
        found.at["audio", "MATE"] > found.at["image", "MATE"]
        and found.at["image", "APP"] > found.at["audio", "APP"]
    )
    assert found["SELL"].idxmax() == "text" and found["SPEC"].idxmax() == "table"


def test_panels_share_their_labels_and_show_every_seed():
    values = pd.DataFrame({0: [10.0, 20.0], 1: [14.0, 22.0]}, index=["MEM", "MLM"])
    figure = figures.panels({"accuracy": values, "mAP@1": values / 2}, "t")
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "MEM",
        "MLM",
    ] and second.get_title() == "mAP@1"
    seeds = sorted(
        float(point)
        for c in first.collections
        if isinstance(c, PathCollection)
        for point in c.get_offsets()[:, 0]
    )
    assert seeds == [10.0, 14.0, 20.0, 22.0]
    assert figures.panels({"one seed": values[[0]]}, "t").axes


def test_bars_stand_side_by_side_with_a_dot_per_seed():
    both = pd.MultiIndex.from_product([("released", "scale"), (0, 1)])
    values = pd.DataFrame([[0.1, 0.3, 0.4, 0.6]], index=["layered"], columns=both)
    axes = figures.bars(values, "mAP@10", "title").axes[0]
    assert texts(axes.figure) == ["0.200", "0.500"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.2, 0.5])
    seeds = [c.get_offsets()[0, 0] for c in axes.collections if isinstance(c, PathCollection)]
    assert seeds == [0.1, 0.3, 0.4, 0.6]
    states = pd.DataFrame({"untrained": [0.1, 0.2], "control": [0.3, np.nan]}, index=["T", "I"])
    assert texts(figures.bars(states, "m", "t")) == ["0.100", "0.200", "0.300"]


def test_front_shows_product_model_vector_and_neighbours(tmp_path):
    catalogue = listings.make(40, 0, tmp_path, workers=1)
    whole = next(n for n, p in enumerate(catalogue.products) if len(p.contents) == 5)
    bare = next(n for n, p in enumerate(catalogue.products) if len(p.contents) < 5)
    vectors = np.random.default_rng(0).normal(size=(len(catalogue), 48)).astype(np.float32)
    vectors[bare] = vectors[whole]
    figure = figures.front(catalogue, whole, [bare, 1, 2], vectors, [True, False, True], "layered")
    said = texts(figure)
    assert {
        "image",
        "text",
        "table",
        "video",
        "audio",
        "I",
        "T",
        "Tab",
        "V",
        "A",
        "48 numbers",
        "layered",
        "1.00",
    } <= set(said)
    assert catalogue.labels[bare] in said and "absent" not in said
    frames = [axes.spines["left"].get_edgecolor() for axes in figure.axes[-3:]]
    assert [to_hex(frame).upper() for frame in frames] == [
        style.RIGHT,
        style.WRONG,
        style.RIGHT,
    ]
    assert "absent" in texts(figures.front(catalogue, bare, [], vectors, [], "layered"))
    assert "video" not in texts(
        figures.front(catalogue, whole, [1], vectors, [True], "concat", ("image", "text"))
    )


@pytest.mark.parametrize("text", ["$5", "from $5 to $9", r"\$5 $9", "$$", r"${\x$ _^", "a $x_2$ b"])
def test_text_from_outside_is_drawn_letter_by_letter(text):
    figure, ((axes,),) = style.canvas()
    shown = [axes.text(0, 0, style.plain(text)), axes.set_title(style.short(text, 3))]
    figure.savefig(io.BytesIO(), format="png")
    for drawn in shown:
        assert drawn._preprocess_math(drawn.get_text()) == (text, False)


@pytest.fixture
def fonts(monkeypatch):
    """A function: no fonts are installed but these files."""
    caches = (style.families, style._drawn, style._warn)

    def only(*paths):
        monkeypatch.setattr(style.font_manager, "findSystemFonts", lambda: [str(p) for p in paths])
        for cached in caches:
            cached.cache_clear()

    only()
    yield only
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


def drawn_without_warning(figure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in ("png", "svg"):
            figure.savefig(io.BytesIO(), format=form)


def test_letters_that_no_font_has(fonts):
    """One warning for all of them, which says how to mend it, and a box in the place of each."""
    mend = "figures show □ .* such as Debian's fonts-noto-cjk"
    with pytest.warns(UserWarning, match=mend) as said:
        assert style.plain("红 bag 👜\n$5 é") == "□ bag □\n\\$5 é"
        figure = figures.table(pd.DataFrame([[0.5]], ["手提包"], ["x"]), title="x")
    (tick,) = figure.axes[0].get_yticklabels()
    assert len(said) == 1 and tick.get_text() == "□□□"
    drawn_without_warning(figure)


def test_a_font_with_chinese_is_found_and_used(fonts, tmp_path):
    """Whatever matplotlib's list of fonts says; here one that has nothing but a letter."""
    from fontTools import subset, ttLib

    font = ttLib.TTFont(style.font_manager.findfont("DejaVu Serif"))
    cut = subset.Subsetter()
    cut.populate(unicodes=[ord("A")])
    cut.subset(font)
    for table in font["cmap"].tables:
        table.cmap = {ord("红"): table.cmap[ord("A")]}
    for name in font["name"].names:
        name.string = {1: "Only Red", 2: "Regular"}.get(name.nameID, "Only Red Regular")
    font.save(path := tmp_path / "WQY-MicroHei.ttf")
    fonts(tmp_path / "other.ttf", path)
    assert style.families() == ["DejaVu Sans", "Only Red"] and style.plain("红 bag") == "红 bag"
    figure = figures.table(pd.DataFrame([[0.5]], ["红"], ["x"]), title="红")
    drawn_without_warning(figure)
    drawn_without_warning(tokens.words(["红"], [tokens.Pieces(["红"], ["seen"])]))


def test_histograms_of_nothing_say_so():
    """Pictures alone have no words to count."""
    assert "the products have nothing of it" in texts(figures.histograms({}))
    drawn = figures.histograms({"words": [], "pieces": [3, 4]}).axes
    assert [axes.get_xlabel() for axes in drawn] == ["pieces"]


def test_a_title_is_cut_where_a_language_has_no_spaces():
    assert style.cut("红色连衣裙夏季新款" * 4, 2, 10) == "红色连衣裙夏季新款红\n色连衣裙夏季新款红…"
    assert style.cut("x" * 30, 1, 10) == "xxxxxxxxx…" and style.cut("x" * 10, 1, 10) == "x" * 10
    assert style.cut("a red shirt", 1, 8) == "a red…" and style.cut("", 1) == ""


def test_a_picture_that_is_gone_since_is_not_drawn(tmp_path):
    axes = plt.figure().subplots()
    gone = MediaFile(tmp_path / "gone.jpg", size=9)
    assert not catalogue_figures._drawn(lambda axes, file: decoding.open_image(file), axes, gone)
    assert maps.thumbnails([gone]) == maps.thumbnails([None])


def test_titles_and_labels_with_dollars_are_drawn(tmp_path):
    catalogue = listings.make(40, 0, tmp_path, workers=1)
    price = "from $5_ to $9^ {"
    products = [
        replace(p, label=price, contents=p.contents | {"text": price}) for p in catalogue.products
    ]
    catalogue = replace(catalogue, products=tuple(products))
    around, numbers = np.array([[1, 2]]), pd.DataFrame({0: [0.1]}, index=[price])
    vectors = np.ones((len(catalogue), 4), dtype=np.float32)
    for figure in (
        figures.long_tail(catalogue.labels),
        figures.gallery(catalogue, [0, 1]),
        figures.neighbours(catalogue, [0], around, around > 1),
        figures.spread(numbers, "m", "t"),
        figures.table(numbers),
        figures.front(catalogue, 0, [1, 2], vectors, [True, False], "layered"),
    ):
        figure.savefig(io.BytesIO(), format="png")


def test_every_figure_is_made_by_pyplot():
    """Jupyter learns to show figures when pyplot makes the first; one that is made without it may
    stand in a notebook as text."""
    for path in (ROOT / "m5lib").rglob("*.py"):
        calls = (n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call))
        names = [getattr(c.func, "id", getattr(c.func, "attr", "")) for c in calls]
        assert "Figure" not in names, path
