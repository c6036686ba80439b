"""The official release, its features, the public fashion folder, and queries: more of the table of
:mod:`corpus`. ``make`` returns the folder; of a query the contents that are asked for."""

import base64
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from corpus import Fails, Reads, case
from corpus_media import SQUARE, saved
from make_media import BAG, put
from make_release import pack, write_lmdb, write_tsv

# --- arrays of a file each


@dataclass(frozen=True)
class Rows:
    """The shape that is read."""

    shape: tuple[int, ...]


def npy(header: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """An ``.npy`` whose header says what one likes."""
    said = header.encode().ljust(117) + b"\n"
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(said))
    return b"\x93NUMPY" + version + size + said + content


def array(values: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, values)
    return data.getvalue()


SAYS = "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }"
FIVE, TWENTY = np.ones((5, 3), np.float16), struct.pack("<20e", *range(20))
NO = "not an .npy of numbers, or cut short"
for name, data, comes in (
    ("half precision", array(FIVE), Rows((5, 3))),
    ("more rows than are wanted", array(np.ones((99, 3), np.float32)), Rows((9, 3))),
    ("whole numbers", array(np.ones((5, 3), np.int64)), Rows((5, 3))),
    ("big-endian", array(np.ones((5, 3), ">f4")), Rows((5, 3))),
    ("by columns", array(np.asfortranarray(np.ones((5, 3), np.float32))), Rows((5, 3))),
    ("version 2", npy(SAYS % ("<f2", False, (6, 3)), TWENTY[:36], b"\2\0"), Rows((6, 3))),
    ("another width", array(np.ones((5, 4))), Fails("expected (rows, 3)")),
    ("one dimension", array(np.ones(3)), Fails("expected (rows, 3)")),
    ("three dimensions", array(np.ones((1, 5, 3))), Fails("expected (rows, 3)")),
    ("no rows", array(np.ones((0, 3), np.float32)), Fails("shape (0, 3)")),
    ("no number", array(np.full((5, 3), np.nan)), Fails("not finite")),
    ("too large for half precision", array(np.full((5, 3), 1e9)), Fails("not finite")),
    ("complex", array(np.ones((5, 3), complex)), Fails(NO)),
    ("true and false", array(np.ones((5, 3), bool)), Fails(NO)),
    ("texts", array(np.array([["a", "b", "c"]])), Fails(NO)),
    ("dates", array(np.zeros((5, 3), "M8[s]")), Fails(NO)),
    ("objects, a pickle", array(np.array([[{}, [], None]], object)), Fails(NO)),
    ("fields", array(np.zeros(3, [("a", "f4"), ("b", "f4")])), Fails(NO)),
    ("149 GiB in 176 bytes", npy(SAYS % ("<f4", False, (40_000_000_000,)), TWENTY), Fails(NO)),
    ("less than it says", npy(SAYS % ("<f2", False, (7, 3)), TWENTY), Fails(NO)),
    ("below zero", npy(SAYS % ("<f2", False, (-5, 3)), TWENTY), Fails(NO)),
    ("a shape of -1", npy(SAYS % ("<f2", False, (-1, 4)), TWENTY), Fails(NO)),
    ("a shape that is true", npy(SAYS % ("<f2", False, "(True, 3)"), TWENTY[:6]), Fails(NO)),
    ("a shape of words", npy(SAYS % ("<f2", False, "('a',)"), TWENTY), Fails(NO)),
    ("a header without end", npy("{'descr': '<f2', "), Fails(NO)),
    ("a header of a call", npy("__import__('os').system('x')"), Fails(NO)),
    ("a header of brackets", npy("(" * 110), Fails(NO)),
    ("a header of 4 GB", b"\x93NUMPY\2\0\xff\xff\xff\xff{}", Fails(NO)),
    ("version 9", npy(SAYS % ("<f2", False, (5, 3)), TWENTY, b"\x09\0"), Fails(NO)),
    ("nothing", b"", Fails(NO)),
    ("its name", b"\x93NUMPY", Fails(NO)),
    ("a pickle", b"\x80\x04]\x94.", Fails(NO)),
    ("an npz", b"PK\3\4" + bytes(40), Fails(NO)),
    ("a web page", b"<!DOCTYPE html>", Fails(NO)),
    ("cut", array(FIVE)[:-1], Fails(NO)),
    ("cut in the header", array(FIVE)[:40], Fails(NO)),
):

    def make_array(folder: Path, data=data) -> Path:
        (folder / "a.npy").write_bytes(data)
        return folder / "a.npy"

    case("array", name, make_array, comes)

# --- regions in TSV and LMDB: features of width 3
ONE = (np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))


def record(i: str = "1", caption: str = "Tea", n="2", height=9, width=9, arrays=ONE) -> list:
    return [*arrays, n, height, width, i, caption]


def regions(name: str, write: Callable[[Path], object], comes) -> None:
    case("regions", name, lambda folder: write(folder) and folder or folder, comes)


def both(name: str, records: list[list], comes) -> None:
    regions(f"{name}, LMDB", lambda f: write_lmdb(f / "lmdb_features/a.lmdb", records), comes)
    regions(f"{name}, TSV", lambda f: write_tsv(f / "tsv_features/a.tsv", records), comes)


SHAPE, SEVEN = "expected (", "seven fields"


def skips(words: str | None = "") -> Reads:
    """The second record is listed, and the product left out where it has no caption."""
    title = "Cup" if words is not None else '"Cup'
    return Reads({"1": "Tea", "2": title}, (("2", "image", words or ""),))


WIDE = (np.ones((2, 4), np.float32), ONE[1])
NAN = (np.full((2, 3), np.nan, np.float32), ONE[1])
both("as usual", [record(), record("2", "Cup\n“手”")], Reads({"1": "Tea", "2": "Cup\n“手”"}))
both("an id twice", [record(), record("1", "Cup")], Reads({"1": "Tea"}))
both("a mark behind the id", [record("1#3")], Reads({"1": "Tea"}))
both("no caption", [record("1", "")], Reads({"1": None}))
for name, wrong, words in (
    ("another number of boxes", record("2", "Cup", n="3"), ""),
    ("no boxes", record("2", "Cup", n="0", arrays=(ONE[0][:0], ONE[1][:0])), ""),
    ("a height of nothing", record("2", "Cup", height=0), SHAPE),
    ("a width of nothing", record("2", "Cup", width=0), SHAPE),
    ("features of another width", record("2", "Cup", arrays=WIDE), SHAPE),
    ("features that are no numbers", record("2", "Cup", arrays=NAN), "not finite"),
    ("boxes of 10^30", record("2", "Cup", arrays=(ONE[0], ONE[1] * 1e30)), "not finite"),
):
    both(name, [record(), wrong], skips(words))
PLAIN = b"1\t9\t9\t2\t" + b"\t".join(base64.b64encode(x.tobytes()) for x in ONE[::-1])
for name, line, comes in (
    ("words", b"words\n", "seven fields"),
    ("six fields", PLAIN.replace(b"1", b"2", 1) + b"\n", "seven fields"),
    ("no base64", b"2\t9\t9\t2\t!!\t??\tCup\n", ""),
    ("no UTF-8", b"2\t9\t9\t2\t\xff\t\xff\tCup\n", ""),
    ("zeros", bytes(99) + b"\n", "seven fields"),
    ("a quote without end", b'2\t9\t9\t2\tAAAA\tAAAA\t"Cup\n', None),
):

    def make_lines(folder: Path, line=line) -> Path:
        (folder / "tsv_features").mkdir()
        (folder / "tsv_features/a.tsv").write_bytes(PLAIN + b"\tTea\n" + line)
        return folder

    comes = Reads({"1": "Tea"}, (("", "regions", comes),)) if comes else skips(comes)
    case("regions", f"a line of {name}, TSV", make_lines, comes)


def database(*values: bytes) -> Callable[[Path], Path]:
    """An LMDB of these values behind one that is as it should be."""

    def make(folder: Path) -> Path:
        import lmdb

        (folder / "lmdb_features").mkdir()
        path = str(folder / "lmdb_features/a.lmdb")
        good = b"\x97" + b"".join(pack(part) for part in record())
        with lmdb.open(path, subdir=False, map_size=2**22, lock=False) as opened:
            with opened.begin(write=True) as transaction:
                for n, value in enumerate((good, *values)):
                    transaction.put(f"{n}".encode(), value)
        return folder

    return make


def map_of(**fields) -> bytes:
    """An array as msgpack-numpy writes it, whose fields say what one likes."""
    fields = {"nd": True, "type": "<f4", "kind": b"", "shape": [2, 3], "data": bytes(24)} | fields
    head = bytes([0x80 + len(fields)])
    return head + b"".join(pack(key.encode()) + pack(value) for key, value in fields.items())


TAIL = b"".join(pack(part) for part in [ONE[1], "2", 9, 9, "2", "Cup"])
for name, value, comes in (
    ("nothing", b"", SEVEN),
    ("null", b"\xc0", SEVEN),
    ("a number", b"\x07", SEVEN),
    ("a map", b"\x80", SEVEN),
    ("a list of none", b"\x90", SEVEN),
    ("a list of 4 thousand million", b"\xdd\xff\xff\xff\xff", SEVEN),
    ("a text of 4 GB", b"\xdb\xff\xff\xff\xff", SEVEN),
    ("lists in lists", b"\x91" * 100_000, SEVEN),
    ("a pickle", b"\x80\x04]\x94.", SEVEN),
    ("a code of no meaning", b"\x97\xc1", SEVEN),
    ("words that are not UTF-8", b"\x97" + b"\xa1\xff" * 7, SEVEN),
    ("a key that is a list", b"\x81\x90\x00", SEVEN),
    ("an array of objects", b"\x97" + map_of(type="|O") + TAIL, ""),
    ("an array of no type", b"\x97" + map_of(type="x" * 99) + TAIL, ""),
    ("an array of more than is there", b"\x97" + map_of(shape=[2**40, 3]) + TAIL, ""),
    ("an array of shape -1", b"\x97" + map_of(shape=[-1, -1]) + TAIL, ""),
    ("an array of texts", b"\x97" + map_of(type="<U6") + TAIL, ""),
    ("an array without data", b"\x97" + map_of(data="x") + TAIL, ""),
    ("a number for an array", b"\x97\x07" + TAIL, ""),
):
    comes = Reads({"1": "Tea"}, (("", "regions", comes),)) if comes else skips(comes)
    case("regions", f"a record of {name}, LMDB", database(value), comes)


def spoilt(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = database()(folder) / "lmdb_features/a.lmdb"
        path.write_bytes(change(path.read_bytes()))
        return folder

    return make


for name, change in (
    ("cut to half", lambda data: data[: len(data) // 2]),
    ("cut to a page", lambda data: data[:4096]),
    ("nothing", lambda data: b""),
    ("words", lambda data: b"words" * 9999),
    ("pages of zeros", lambda data: data[:8192] + bytes(len(data) - 8192)),
    ("pages of ones", lambda data: data[:8192] + b"\xff" * (len(data) - 8192)),
    ("a web page", lambda data: b"<!DOCTYPE html>" * 99),
):
    case("regions", f"a database of {name}", spoilt(change), Fails("a.lmdb"))
case("regions", "none", lambda f: f, Fails("no features; expected some of"))
case(
    "regions", "a folder that is empty", lambda f: (f / "lmdb_features").mkdir() or f, Fails("no f")
)

# --- the annotation
FOLDER = "product5m_v2/a_id_label.json"


def released(name: str, content, comes, more: Callable[[Path], object] = lambda f: None) -> None:
    def make(folder: Path) -> Path:
        if isinstance(content, bytes):
            put(folder / FOLDER, "").write_bytes(content)
        else:
            put(folder / FOLDER, content)
        more(folder)
        return folder

    case("released", name, make, comes)


def bags(**two) -> dict:
    return {"1": {**BAG, "url": "", "title": "Tea"}, "2": {**BAG, "url": "", "title": "Cup", **two}}


TWO, FIRST = Reads({"1": "Tea", "2": "Cup"}), Reads({"1": "Tea"})
released("as usual", bags(), TWO)
for name, value in (("null", None), ("a list", []), ("a number", 7), ("a text", "x")):
    released(
        f"a record of {name}",
        {**bags(), "3": value},
        Reads(TWO.products, (("3", "record", "not an object of fields"),)),
    )
    if name != "a text":
        what = (("2", "text", "'title' is no text"),)
        released(f"a title of {name}", bags(title=value), Reads({"1": "Tea", "2": None}, what))
        what = (("2", "table", "'pv' is no text"),)
        released(f"a table of {name}", bags(pv=value), Reads(TWO.products, what))
        what = (("2", "label", "'label' is no text"),)
        released(f"a label of {name}", bags(label=value), Reads(TWO.products, what))
released(
    "half a character",
    json.dumps(bags(title="x\ud83d")),
    Reads({"1": "Tea", "2": "x?"}),
)
released(
    "a table of parts", bags(pv="a#;##:#b#;#c#:#d"), Reads(TWO.products, (("2", "pv", "parts"),))
)
released(
    "no field at all",
    {**bags(), "3": {}},
    Reads(
        TWO.products,
        (
            ("3", "text", "no field"),
            ("3", "table", "no field"),
            ("3", "label", "no field"),
            ("3", "record", "no modality"),
        ),
    ),
)
released(
    "an id twice",
    json.dumps(bags())[:-1] + ', "1": {}}',
    Reads(TWO.products, (("1", "id", "seen before"),)),
)
released("an empty id", {**bags(), "": BAG}, Reads(TWO.products, (("", "record", "empty id"),)))
released(
    "ids that lead out",
    {**bags(), "../../x": {**BAG, "title": "x", "url": ""}},
    Reads({**TWO.products, "../../x": "x"}),
)
for name, content, words in (
    ("nothing", b"", "expected one JSON object"),
    ("words", b"words", "expected one JSON object"),
    ("an array", b"[1, 2]", "an array; expected one object"),
    ("cut", json.dumps(bags()).encode()[:-30], "cannot be read, after '1'"),
    ("cut at once", b"{", "cannot be read"),
    ("not UTF-8", '{"1": {"title": "\xe9"}}'.encode("latin-1"), "UTF-8"),
    ("UTF-16", json.dumps(bags()).encode("utf-16"), "expected one JSON object"),
    ("single quotes", b"{'1': {}}", "cannot be read"),
    ("more behind it", json.dumps(bags()).encode() + b"}", "cannot be read"),
    ("brackets without end", b'{"1": ' + b"[" * 200_000, "cannot be read"),
    ("a web page", b"<!DOCTYPE html>", "expected one JSON object"),
    ("a pickle", b"\x80\x04]\x94.", "expected one JSON object"),
):
    released(f"an annotation of {name}", content, Fails(words))
released("a mark of byte order", b"\xef\xbb\xbf" + json.dumps(bags()).encode(), TWO)
released("no annotation", bags(), Fails("no annotation"), lambda f: os.unlink(f / FOLDER))
released(
    "two annotations",
    bags(),
    Fails("several annotations"),
    lambda f: put(f / "product5m_v2/b_id_label.json", {}),
)
for name, ids, words in (
    ("a number", 7, "expected one JSON object or array"),
    ("lists", [[1]], "is no id"),
    ("null", [None], "is no id"),
    ("true", [True], "is no id"),
):
    released(
        f"a list of ids of {name}",
        bags(),
        Fails(words),
        lambda f, ids=ids: put(f / "product5m_v2/query_ids.json", ids),
    )
released(
    "ids of no product",
    bags(),
    Reads(TWO.products, (("9", "split", "but not in"),)),
    lambda f: put(f / "product5m_v2/query_ids.json", [9, "1#2"]),
)
PICTURE = saved(SQUARE, "JPEG")


def beside(*names: str, folder: str = "images") -> Callable[[Path], object]:
    def write(root: Path) -> None:
        (root / folder).mkdir(exist_ok=True)
        for name in names:
            (root / folder / name).write_bytes(PICTURE if name.lower().endswith("jpg") else b"{}")

    return write


def holds(content: bytes | None) -> Reads:
    return Reads({"1": "Tea", "2": "Cup"}, more={("1", "image"): content})


released("notes beside a picture", bags(), holds(PICTURE), beside("1.json", "1.jpg", "1.txt"))
released("a picture in capitals", bags(), holds(PICTURE), beside("1.json", "1.JPG", "1.jpg"))
released("hidden files", bags(), holds(None), beside(".1.jpg", "._1.jpg"))
released(
    "a folder in a picture's place",
    bags(),
    holds(None),
    lambda f: (f / "images/1.jpg").mkdir(parents=True),
)
released(
    "a pipe in a picture's place",
    bags(),
    holds(None),
    lambda f: (f / "images").mkdir() or os.mkfifo(f / "images/1.jpg"),
)
released(
    "no picture where one should be",
    bags(url="x"),
    Reads(TWO.products, (("2", "image", "no file of this id"),)),
    beside("1.jpg"),
)

# --- the fashion folder
STYLES = "id,productDisplayName,articleType\n1,Tea,T\n2,Cup,C\n"
LACK = tuple((i, "image", "no picture of this id") for i in ("1", "2"))


def fashion(name: str, styles: str, more: Callable[[Path], object], comes) -> None:
    def make(folder: Path) -> Path:
        put(folder / "styles.csv", styles)
        more(folder)
        return folder

    case("fashion", name, make, comes)


def packed(*members: tuple[str, bytes], mode: str = "w", cut: int | None = None) -> Callable:
    def write(folder: Path) -> None:
        with tarfile.open(folder / "images.tar", mode) as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                if content is None:
                    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                info.size = len(content or b"")
                tar.addfile(info, io.BytesIO(content or b""))
        data = (folder / "images.tar").read_bytes()
        (folder / "images.tar").write_bytes(data[:cut])

    return write


ONE_JPG = ("images/1.jpg", PICTURE)
NOT_PLAIN = "not a plain file directly inside"
fashion("a tar", STYLES, packed(ONE_JPG), Reads(TWO.products, LACK[1:], {("1", "image"): PICTURE}))
fashion(
    "notes in a tar",
    STYLES,
    packed(("images/1.json", b"{}"), ONE_JPG),
    Reads(TWO.products, LACK[1:], {("1", "image"): PICTURE}),
)
for name, member in (
    ("out", "../1.jpg"),
    ("to the root", "/images/1.jpg"),
    ("deeper", "images/a/1.jpg"),
):
    listed = (*LACK, (member, "images.tar", NOT_PLAIN))
    fashion(
        f"a member that leads {name}",
        STYLES,
        packed((member, PICTURE)),
        Reads(TWO.products, listed),
    )
fashion(
    "a link in a tar",
    STYLES,
    packed(("images/1.jpg", None)),
    Reads(TWO.products, (*LACK, ("images/1.jpg", "images.tar", NOT_PLAIN))),
)
fashion("a packed tar", STYLES, packed(ONE_JPG, mode="w:gz"), Fails("not an uncompressed tar"))
fashion("a tar, cut", STYLES, packed(ONE_JPG, cut=700), Fails("images.tar"))
fashion(
    "no tar", STYLES, lambda f: put(f / "images.tar", "words" * 999), Fails("not an uncompressed")
)
fashion("no pictures at all", STYLES, lambda f: None, Fails("neither images/ nor images.tar"))
fashion(
    "no title", STYLES.replace("productDisplayName", "name"), beside("1.jpg"), Fails("is missing")
)
fashion("no styles", "", beside("1.jpg"), Fails("the file is empty"))
fashion(
    "commas in a title",
    STYLES + "3,a,b,c\n",
    beside("1.jpg", "2.jpg"),
    Reads(TWO.products, (("line 4", "row", "4 cells"),)),
)

# --- queries of a search over a few products


def query(name: str, comes, **asked) -> None:
    case("query", name, lambda folder: asked, comes)


query("words", None, text="red shirt")
query("a number", None, text=501)
query("attributes", None, table={"size": "7"})
query("attributes as JSON", None, table='{"size": 7}')
query("half a character", None, text="x\ud83dy")
query("a megabyte of words", None, text="red " * 2**18)
query("words of no meaning", None, text="\0\ufffd\u202e")
query("half a character in an attribute", None, table='{"size": "\\ud83d"}')
query("several words in a list", None, text=["red", "shirt"], table={"size": [7, 8]})
query("a thousand million hits", None, text="red", top=10**9)
query("nothing", Fails("the query is empty"))
query("spaces", Fails("the query is empty"), text="  \n")
query("no number", Fails("the query is empty"), text=float("nan"))
query("bytes for words", Fails("give words"), text=b"red")
query("an attribute without a value", Fails("without a value"), table={"size": None})
query("true hits", Fails("whole number from 1 on"), text="x", top=True)
query("empty words", Fails("the query is empty"), text="")
query("no top", Fails("whole number from 1 on"), text="x", top=0)
query("a top below zero", Fails("whole number from 1 on"), text="x", top=-3)
query("no way", Fails("unknown way"), text="x", way="best")
query("an unknown modality", Fails("smell"), smell="x")
query("unknown attributes", Fails("no product has an attribute"), table={"x": 1})
for name, given in (
    ("words", "red"),
    ("a list", "[1]"),
    ("a number", "7"),
    ("brackets", "[" * 9999),
):
    query(f"attributes of {name}", Fails('give attributes as {"colour": "red"}'), table=given)
for name, given in (
    ("bytes", PICTURE),
    ("a number", 7),
    ("a list", ["a.jpg"]),
):
    query(f"{name} for a picture", Fails("save it and give the path"), image=given)
query("a picture that is not there", Fails("no such file"), image="none.jpg")
query("a folder for a picture", Fails("no such file"), image="/")
query("a name too long", Fails("no such file"), image="x" * 5000)
query("a name with a zero byte", Fails("no such file"), image="a\0b")
