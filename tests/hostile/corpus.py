"""Other people's files, made on the spot: what each is, and what has to come of it.

:data:`CASES` is the table. ``make`` writes files into a folder and returns what is read; ``comes``
is the outcome: :class:`Fails` (one clear error, with these words), or :class:`Reads` (these
products, and these lines listed).
"""

import gzip
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from make_media import write_image
from PIL import Image

HALF = chr(0xD800)


@dataclass(frozen=True)
class Fails:
    """One error (``DataError``, or ``MediaError`` for one media file) that has these words."""

    words: str


@dataclass(frozen=True)
class Reads:
    """Products: id -> title, ``None`` without. ``listed``: (where, field, words of the reason) of
    everything that is listed, in any order. ``more``: (id, modality or attribute) -> content."""

    products: dict[str, str | None]
    listed: tuple[tuple[str, str, str], ...] = ()
    more: dict[tuple[str, str], Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    make: Callable[[Path], Any]
    comes: Fails | Reads

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


CASES: list[Case] = []


def case(kind: str, name: str, make: Callable[[Path], Any], comes) -> None:
    CASES.append(Case(kind, name, make, comes))


def file(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def table(name: str, content: str | bytes, comes, as_: str = "table.csv") -> None:
    case("table", name, file(as_, content), comes)


# --- tables: the same products in every form
FORMS = {
    "csv": lambda f, p: f.to_csv(p / "t.csv", index=False),
    "csv with an index": lambda f, p: f.to_csv(p / "t.csv"),
    "csv with a byte-order mark": lambda f, p: f.to_csv(
        p / "t.csv", index=False, encoding="utf-8-sig"
    ),
    "CSV": lambda f, p: f.to_csv(p / "T.CSV", index=False),
    "csv with ;": lambda f, p: f.to_csv(p / "t.csv", index=False, sep=";"),
    "csv with |": lambda f, p: f.to_csv(p / "t.csv", index=False, sep="|"),
    "csv, all quoted": lambda f, p: f.to_csv(p / "t.csv", index=False, quoting=1),
    "csv, lines of Windows": lambda f, p: f.to_csv(p / "t.csv", index=False, lineterminator="\r\n"),
    "csv.gz": lambda f, p: f.to_csv(p / "t.csv.gz", index=False),
    "tsv": lambda f, p: f.to_csv(p / "t.tsv", index=False, sep="\t"),
    "tab in a csv": lambda f, p: f.to_csv(p / "t.csv", index=False, sep="\t"),
    "jsonl": lambda f, p: f.to_json(p / "t.jsonl", orient="records", lines=True),
    "jsonl.gz": lambda f, p: f.to_json(p / "t.jsonl.gz", orient="records", lines=True),
    "ndjson": lambda f, p: f.to_json(p / "t.ndjson", orient="records", lines=True),
    "parquet": lambda f, p: f.to_parquet(p / "t.parquet", index=False),
    "parquet with an index": lambda f, p: f.set_axis([5, 7, 9][: len(f)]).to_parquet(
        p / "t.parquet"
    ),
    "parquet, id as index": lambda f, p: f.set_index(f.columns[0]).to_parquet(p / "t.parquet"),
    "parquet, nullable": lambda f, p: f.convert_dtypes().to_parquet(p / "t.parquet"),
    "parquet, categories": lambda f, p: f.astype("category").to_parquet(p / "t.parquet"),
    "parquet, groups of one": lambda f, p: f.to_parquet(p / "t.parquet", row_group_size=1),
}
TEA, CUP = "Tea, “green”; 50 g", 'Cup\nof "clay" | 手\tx'
CONTENTS = {
    "as usual": ({"id": ["a", "b"], "title": [TEA, CUP]}, Reads({"a": TEA, "b": CUP})),
    "names in capitals": (
        {"ID": ["a", "b"], "TITLE": [TEA, CUP], "Label": ["A", "B"]},
        Reads({"a": TEA, "b": CUP}, more={("a", "label"): "A"}),
    ),
    "names with spaces": (
        {" id": ["a", "b"], " Title ": ["Tea", "Cup"], "size ": ["1", "2"]},
        Reads({"a": "Tea", "b": "Cup"}, more={("b", "size"): "2"}),
    ),
    "numbers as ids": (
        {"id": [2**53 + 1, 2**53], "title": ["Tea", "Cup"], "size": [7, 8]},
        Reads({str(2**53 + 1): "Tea", str(2**53): "Cup"}, more={(str(2**53), "size"): "8"}),
    ),
    "an id twice, one that lacks": (
        {"id": ["a", "a", ""], "title": ["Tea", "Cup", "Pot"]},
        Reads({"a": "Tea"}, (("a", "id", "seen before"), ("line", "id", "empty id"))),
    ),
    "nothing but an id": (
        {"id": ["a", "b"], "title": ["Tea", ""]},
        Reads({"a": "Tea"}, (("b", "row", "no modality"), ("b", "text", "empty title"))),
    ),
    "paths that lead out": (
        {"id": ["a", "b"], "title": ["Tea", "Cup"], "image": ["../x.jpg", "/etc/passwd"]},
        Reads(
            {"a": "Tea", "b": "Cup"},
            (("a", "image", "leads out"), ("b", "image", "leads out")),
            {("a", "image"): None},
        ),
    ),
    "addresses and backslashes": (
        {"id": ["a", "b"], "title": ["Tea", "Cup"], "image": ["https://a/x.jpg", "i\\x.jpg"]},
        Reads(
            {"a": "Tea", "b": "Cup"},
            (("a", "image", "download the file first"), ("b", "image", "write / between")),
        ),
    ),
}
for (content, (columns, comes)), (form, write) in itertools.product(
    CONTENTS.items(), FORMS.items()
):
    if form == "parquet, id as index" and content == "an id twice, one that lacks":
        continue  # pandas writes no such index twice the same way

    def make(folder: Path, columns=columns, write=write) -> Path:
        write(pd.DataFrame(columns), folder)
        return next(folder.iterdir())

    case("table", f"{content}, {form}", make, comes)

# --- tables: one fault each
HEAD = "id,title\n"
EIGHT = "".join(f"{n},Cup {n}\n" for n in range(1, 9))
ALL = {str(n): f"Cup {n}" for n in range(1, 9)}
QUOTE = "a quote without its other end"


def less(*ids: int) -> dict[str, str | None]:
    return {i: title for i, title in ALL.items() if int(i) not in ids}


for n in range(1, 9):
    table(
        f"a quote never closed in row {n}",
        HEAD + EIGHT.replace(f",Cup {n}", f',"Cup {n}'),
        Reads(less(n), ((f"line {n + 1}", "row", QUOTE),)),
    )
table(
    "two of them",
    HEAD + EIGHT.replace(",Cup 2", ',"Cup 2').replace(",Cup 5", ',"Cup 5'),
    Reads(less(2, 5), (("line 3", "row", QUOTE), ("line 6", "row", QUOTE))),
)
table(
    "two that make a pair are pointed at",
    HEAD + EIGHT.replace(",Cup 2", ',"Cup 2').replace("Cup 4\n", 'Cup 4"\n'),
    Reads(
        {**less(3, 4), "2": "Cup 2\n3,Cup 3\n4,Cup 4"},
        tuple((f"line {n}", "row", "that line 3 begins with a quote") for n in (4, 5)),
    ),
)
table(
    "text behind a quote",
    HEAD + EIGHT.replace(",Cup 3", ',"Cup" 3'),
    Reads(less(3), (("line 4", "row", QUOTE),)),
)
PAIRED = "that line 3 begins with a quote"
table(
    "a pair around rows of other ids",
    HEAD + 'a1,Tea\nbb-2,"Cup\nC3x,Pot\n9,Mug"\nd4,Jug\n',
    Reads(
        {"a1": "Tea", "bb-2": "Cup\nC3x,Pot\n9,Mug", "d4": "Jug"},
        (("line 4", "row", PAIRED), ("line 5", "row", PAIRED)),
    ),
)
table(
    "a pair that makes too few cells costs its own line",
    'id,title,size\n1,Tea,s\n2,"Cup,m\n3,Pot,l\n4,Mug,24"\n5,Jug,x\n',
    Reads({"1": "Tea", "3": "Pot", "4": "Mug", "5": "Jug"}, (("line 3", "row", QUOTE),)),
)
for name, mark in (
    ("no-break spaces", "\u00a0"),
    ("spaces of no width", "\u200b"),
    ("marks of direction", "\u200f"),
    ("soft hyphens", "\u00ad"),
):
    table(
        f"names with {name}",
        f"{mark}id,title{mark},Label{mark}\n1,Tea,T\n",
        Reads({"1": "Tea"}, more={("1", "label"): "T", ("1", "table"): None}),
    )
table(
    "names in full width",
    "ｉｄ,ｔｉｔｌｅ,ｌａｂｅｌ\n1,Tea,T\n",
    Reads({"1": "Tea"}, more={("1", "label"): "T"}),
)
table(
    "a comma at the end of the header", "id,title,\n1,Tea\n2,Cup\n", Reads({"1": "Tea", "2": "Cup"})
)
table(
    "an index saved three times",
    "Unnamed: 0.1,Unnamed: 0,id,title\n0,0,1,Tea\n",
    Reads({"1": "Tea"}, more={("1", "table"): None}),
)
table(
    "a line above the header", "My products\nid,title\n1,Tea\n", Fails("column ['id'] is missing")
)
table("inches are no quotes", HEAD + '1,24" tv\n', Reads({"1": '24" tv'}))
table("inches, quoted", HEAD + '1,"24"" tv"\n', Reads({"1": '24" tv'}))
table("a quote behind a space", HEAD + '1, "Tea, green"\n', Reads({"1": "Tea, green"}))
table("a quote in the header", 'id,"title\n1,Tea\n', Fails("line 1, the header: a quote"))
table("a comma at each end", "id,title,\n1,Tea,\n", Reads({"1": "Tea"}))
table("commas at some ends", HEAD + "1,Tea,,,\n2,Cup\n", Reads({"1": "Tea", "2": "Cup"}))
table(
    "a cell too many and one too few",
    HEAD + "1,Tea,x\n2\n3,Cup\n",
    Reads({"3": "Cup"}, (("line 2", "row", "3 cells"), ("line 3", "row", "1 cells"))),
)
table(
    "a cell in a column without a name",
    "id,,title\n1,,Tea\n2,x,Cup\n",
    Reads({"1": "Tea"}, (("line 3", "row", "without a name"),)),
)
table("empty lines", "\n\nid,title\n\n1,Tea\n  \n2,Cup\n\n", Reads({"1": "Tea", "2": "Cup"}))
table("lines of an old Mac", "id,title\r1,Tea\r2,Cup\r", Reads({"1": "Tea", "2": "Cup"}))
table("no end of the last line", "id,title\n1,Tea", Reads({"1": "Tea"}))
table("Excel's first line", "sep=;\nid;title\n1;Tea, green\n", Reads({"1": "Tea, green"}))
table("commas in titles behind ;", "id;title\n1;a,b,c\n2;d,e\n", Reads({"1": "a,b,c", "2": "d,e"}))
table("two marks of byte order", b"\xef\xbb\xbf\xef\xbb\xbfid,title\n1,Tea\n", Reads({"1": "Tea"}))
table("a zero byte", HEAD + "1,Te\0a\n", Reads({"1": "Te\0a"}))
table("a cell of a megabyte", HEAD + "1," + "x" * 2**20 + "\n", Reads({"1": "x" * 2**20}))
table("words between rows", HEAD + EIGHT + "\nTotal: 8\n", Reads(ALL, (("line 11", "row", "1 c"),)))
table(
    "an index saved twice",
    "Unnamed: 0,id,title\n0,1,Tea\n",
    Reads({"1": "Tea"}, more={("1", "table"): None}),
)
table("an id by the index only", ",title\n1,Tea\n", Fails("column ['id'] is missing"))
table("no id", "name,title\n1,Tea\n", Fails("the file has ['name', 'title']; name one"))
table("a column twice", "id,title,title\n1,a,b\n", Fails("['title'] appears twice"))
table("a column twice but for its case", "id,title,Title\n1,a,b\n", Fails("appears twice"))
table("nothing", "", Fails("the file is empty"))
table("spaces", " \n\n ", Fails("the file is empty"))
table("a header only", HEAD, Fails("no product below the header"))
table("nothing but faults", HEAD + "1\n2\n", Fails("line 2: 1 cells where the header has 2"))
table("Latin-1", "id,title\n1,café\n".encode("latin-1"), Fails("save the file as UTF-8"))
table("UTF-16", "id,title\n1,Tea\n".encode("utf-16"), Fails("save the file as UTF-8"))
table("GBK", "id,title\n1,真皮\n".encode("gbk"), Fails("save the file as UTF-8"))
table("Excel named csv", b"PK\x03\x04rest", Fails("save the table as CSV"))
table("a picture named csv", b"\x89PNG\r\n\x1a\n\x00\x00", Fails("not UTF-8"))
table("a web page named csv", "<!DOCTYPE html>\n<html></html>\n", Fails("column ['id'] is missing"))
table("gzip without its name", gzip.compress(b"id,title\n1,Tea\n"), Reads({"1": "Tea"}))
table("gzip by name only", HEAD + "1,Tea\n", Reads({"1": "Tea"}), "t.csv.gz")
table("gzip, cut", gzip.compress(b"id,title\n1,Tea\n")[:-9], Fails("cannot be read"), "t.csv.gz")
table("gzip, damaged", b"\x1f\x8b\x08" + b"x" * 40, Fails("cannot be read"), "t.csv.gz")
table(
    "gzip that fills the memory",
    gzip.compress(b"id,title\n1," + bytes(2**25)),
    Fails("over 200 times"),
    "t.csv.gz",
)
for ending in ("xlsx", "xls", "json", "txt", "zip", "feather", "pkl", "db", "pdf", ""):
    table(f"a file .{ending}", "id,title\n1,Tea\n", Fails("or a table (.csv,"), f"t.{ending}")
case("table", "not there", lambda folder: folder / "none.csv", Fails("no such file"))
case("table", "a name too long", lambda folder: folder / ("x" * 300 + ".csv"), Fails("x.csv"))
case(
    "table", "a folder named csv", lambda f: (f / "a.csv").mkdir() or f / "a.csv", Fails("expected")
)

# --- JSON lines
T = '{"id": 1, "title": "Tea"}\n'
for name, line, reason in (
    ("a list", "[1]", "not one JSON object"),
    ("a number", "7", "not one JSON object"),
    ("null", "null", "not one JSON object"),
    ("a text", '"x"', "not one JSON object"),
    ("cut", '{"id": 2, "ti', "not one JSON object"),
    ("two objects", '{"id": 2} {"id": 3}', "Extra data"),
    ("single quotes", "{'id': 2}", "double quotes"),
    ("a field twice", '{"id": 2, "title": "a", "title": "b"}', "a field appears twice"),
    ("a field twice but for its case", '{"id": 2, "title": "a", "Title": "b"}', "appears twice"),
    ("a field without a name", '{"id": 2, "title": "a", "": "b"}', "without a name"),
    ("brackets without end", "[" * 100_000, "not one JSON object"),
    ("deep", '{"id": 2, "x": ' + "[" * 5000 + "]" * 5000 + "}", "not one JSON object"),
    ("a number of 10,000 digits", '{"id": 2, "x": ' + "9" * 10_000 + "}", "not one JSON object"),
):
    table(
        f"JSON lines, {name}",
        f"{T}{line}\n",
        Reads({"1": "Tea"}, (("line 2", "row", reason),)),
        "t.jsonl",
    )
for name, value, text in (
    ("a list", '["red", "blue"]', "red blue"),
    ("lists in lists", '[["a"], ["b", ["c"]]]', "a b c"),
    ("a map", '{"width": 3, "depth": null}', "width 3"),
    ("a number", "7", "7"),
    ("a whole number with a point", "7.0", "7"),
    ("a fraction", "7.25", "7.25"),
    ("a very large number", "1e400", "inf"),
    ("true", "true", "True"),
    ("null", "null", None),
    ("no number", "NaN", None),
    ("an empty list", "[]", None),
    ("half a character", '"x\\ud800y"', "x\ufffdy"),
    ("a whole one in halves", '"\\ud83d\\ude00"', "\U0001f600"),
    ("a line separator", '"a\u2028b"', "a\u2028b"),
):
    line = f'{{"id": "a", "title": "Tea", "x": {value}}}\n'
    table(
        f"JSON lines, a cell: {name}", line, Reads({"a": "Tea"}, more={("a", "x"): text}), "t.jsonl"
    )
table(
    "JSON lines, a picture by its address only",
    T + '{"id": 2, "title": "Cup", "image": {"url": "https://a/x.png"}}\n',
    Reads({"1": "Tea", "2": "Cup"}, (("2", "image", "no such file"),)),
    "t.jsonl",
)
table("JSON lines without ids", '{"title": "Tea"}\n', Fails("line 1: empty id"), "t.jsonl")
table(
    "JSON lines: an id of several", '{"id": [1, 2], "title": "x"}\n', Reads({"1 2": "x"}), "t.jsonl"
)
table(
    "JSON lines, an array",
    f"[{T}]".replace("\n", "") + "\n",
    Fails("not one JSON object"),
    "t.jsonl",
)


table(
    "two, one after the other",
    "id,title\n1,Tea\n\nid,title\n2,Pot\n",
    Reads({"1": "Tea", "2": "Pot"}, (("line 4", "row", "the header again"),)),
)
for name, end in {"old Macs": "\r", "Windows": "\r\n"}.items():
    table(
        f"lines as on {name}",
        end.join(["id,title", "1,Tea", "2,Pot"]),
        Reads(dict(zip("12", ("Tea", "Pot"), strict=True))),
    )
table("inches", 'id,title\n1,5" screen\n2,"7"" one"\n', Reads({"1": '5" screen', "2": '7" one'}))
table("a note above", "# of today\nid,title\n1,Tea\n", Fails("the file has ['# of today']"))
table(
    "an id that nobody sees",
    "id,title\n1,Tea\n\u200b\u2060,Cup\n",
    Reads({"1": "Tea"}, (("line 3", "id", "empty id"),)),
)
table("a sum below", "id,title\n1,Tea\n,7\n", Reads({"1": "Tea"}, (("line 3", "id", "empty id"),)))
table(
    "one id as number and text",
    '{"id": 1, "title": "a"}\n{"id": "1", "title": "b"}\n{"id": 1.0, "title": "c"}\n',
    Reads({"1": "a"}, (("1", "id", "line 2"), ("1", "id", "line 3"))),
    "t.jsonl",
)


# --- parquet
def parquet(name: str, columns: dict[str, pa.Array], comes, **how) -> None:
    def make(folder: Path) -> Path:
        write_image(folder / "a.png")
        pq.write_table(pa.table(columns), folder / "t.parquet", **how)
        return folder / "t.parquet"

    case("table", f"parquet, {name}", make, comes)


PIXELS = io.BytesIO()
Image.new("RGB", (3, 2), "red").save(PIXELS, "png")
PNG, IDS = PIXELS.getvalue(), pa.array(["1", "2", "3"])
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
for name, values, kind in (
    ("bytes", [PNG, None, b""], pa.binary()),
    ("large bytes", [PNG, None, b""], pa.large_binary()),
    ("datasets' map", [{"bytes": PNG, "path": "x"}, {"bytes": None, "path": None}, None], STRUCT),
    ("a list of one", [[PNG], [], None], pa.list_(pa.binary())),
    ("a list of maps", [[{"bytes": PNG, "path": ""}], [], None], pa.list_(STRUCT)),
):
    parquet(
        f"pictures as {name}",
        {"id": IDS, "title": pa.array(list("abc")), "image": pa.array(values, kind)},
        Reads({"1": "a", "2": "b", "3": "c"}, more={("1", "image"): PNG, ("2", "image"): None}),
    )
parquet(
    "pictures by path in datasets' map",
    {
        "id": IDS,
        "image": pa.array(
            [{"bytes": None, "path": p} for p in ("a.png", "../a.png", "b.png")], STRUCT
        ),
        "size": pa.array([1.0, 2.5, None]),
    },
    Reads(
        {"1": None, "2": None},
        (("2", "image", "leads out"), ("3", "image", "no such"), ("3", "row", "no modality")),
        {("1", "size"): "1", ("2", "size"): "2.5"},
    ),
)
for name, values, text in (
    ("a list", pa.array([["red", "blue"]] * 3), "red blue"),
    ("a list of numbers", pa.array([[1.0, 2.5]] * 3), "1 2.5"),
    ("a map", pa.array([[("w", 3)]] * 3, pa.map_(pa.string(), pa.int64())), "w 3"),
    ("a struct", pa.array([{"w": 3, "d": None}] * 3), "w 3"),
    ("dates", pa.array([pd.Timestamp("2020-01-02").date()] * 3), "2020-01-02"),
    ("large numbers", pa.array([2**63 - 1] * 3), str(2**63 - 1)),
    ("decimals", pa.array([1, 2, 3]).cast(pa.decimal128(30, 2)), "1.00"),
    ("true", pa.array([True] * 3), "True"),
    ("nulls", pa.array([None] * 3), None),
    ("infinity", pa.array([float("inf")] * 3), "inf"),
    ("text by dictionary", pa.array(["x"] * 3).dictionary_encode(), "x"),
):
    columns = {"id": IDS, "title": pa.array(["t"] * 3), "x": values}
    parquet(f"a cell: {name}", columns, Reads(dict.fromkeys("123", "t"), more={("1", "x"): text}))
parquet(
    "bytes where text should be",
    {"id": IDS, "title": pa.array([b"x", None, None]), "x": pa.array(list("abc"))},
    Reads(
        {"2": None, "3": None},
        (("line 1", "row", "bytes in a cell"), ("2", "text", ""), ("3", "text", "")),
    ),
)
parquet(
    "ids with a null",
    {"id": pa.array([2**53 + 1, 2**53, None]), "title": pa.array(list("abc"))},
    Reads({str(2**53 + 1): "a", str(2**53): "b"}, (("line 3", "id", "empty id"),)),
)
parquet(
    "ids as fractions",
    {"id": pa.array([1.0, 2.0]), "title": pa.array(["a", "b"])},
    Reads({"1": "a", "2": "b"}),
)
parquet(
    "a large title of all rows",  # a few kilobytes by the dictionary
    {"id": pa.array(map(str, range(60))), "title": pa.array(["t" * 10**6] * 60)},
    Fails("bytes in too small a file"),
)
parquet(
    "a large picture of all rows",
    {"id": pa.array(map(str, range(60))), "image": pa.array([b"\xff\xd8" + b"t" * 10**6] * 60)},
    Fails("bytes in too small a file"),
)
parquet("no rows", {"id": pa.array([], pa.string())}, Fails("no product below"))
parquet("no id", {"x": IDS}, Fails("column ['id'] is missing"))
parquet(
    "a column twice but for its case",
    {"id": IDS, "title": IDS, "Title": IDS},
    Fails("appears twice"),
)
parquet(
    "millions of rows in a kilobyte",
    {"id": pa.repeat(pa.scalar(1, pa.int8()), 2**22)},
    Fails("in too small a file"),
)
WHOLE = io.BytesIO()
pq.write_table(pa.table({"id": IDS, "title": IDS}), WHOLE)
DATA = WHOLE.getvalue()
for name, content in (
    ("empty", b""),
    ("its name only", b"PAR1"),
    ("cut", DATA[: len(DATA) // 2]),
    ("without its end", DATA[:-1]),
    ("a csv inside", b"id,title\n1,Tea\n"),
    ("a footer of 4 GB", DATA[:-8] + b"\xff\xff\xff\xffPAR1"),
    ("a footer of zeros", DATA[:-100] + bytes(92) + DATA[-8:]),
    ("pages of zeros", DATA[:4] + bytes(60) + DATA[64:]),
):
    table(f"parquet, {name}", content, Fails("cannot be read"), "t.parquet")
