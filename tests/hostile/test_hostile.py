"""Other people's files: every one has the outcome that the table of ``corpus.py`` says, and no
reader raises anything but a ``DataError`` that names the file."""

import pytest
from corpus import CASES, Case, Fails

from m5lib.catalogue import Catalogue, DataError
from m5lib.data import MediaFile, readers
from m5lib.search.intake import Report


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_comes_as_the_table_says(case: Case, tmp_path):
    path = case.make(tmp_path)
    if isinstance(case.comes, Fails):
        with pytest.raises(DataError) as raised:
            readers.read(path)
        assert case.comes.words in str(raised.value) and "\n" not in str(raised.value)
        assert path.stem.split(".")[0] in str(raised.value), "it names the file"
    else:
        compare(readers.read(path), case.comes)


def compare(catalogue: Catalogue, comes) -> None:
    assert {p.id: p.contents.get("text") for p in catalogue.products} == comes.products
    listed, left = list(catalogue.skipped), []
    for where, name, words in comes.listed:
        found = [s for s in listed if s.where.startswith(where) and s.field == name]
        found = [skip for skip in found if words in skip.reason]
        assert found, (where, name, words, catalogue.skipped)
        listed.remove(found[0])
    assert listed == left, "nothing else is listed"
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
