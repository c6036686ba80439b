"""Arguments of a wrong kind, and what has to be said of each: its name and what to give. Run as a
program it prints, as JSON, the error of every call."""

import json
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np

from m5lib.data import readers
from m5lib.lab import runs
from m5lib.lab.sweep import sweep
from m5lib.search.encode import Encoder
from m5lib.search.index import Index, build
from m5lib.search.reasons import explain


def job(index: Index, **fields):
    return runs.Job("tiny", **fields).plan(index.streams)


HOT = {"text": "red"}
#: A call by a search over nine products, and what its error says: the argument and the mend.
CALLS = {
    "truncate_dim '8': give a whole number": lambda i: i.truncate("8"),
    "truncate_dim 8.5: give a whole number": lambda i: i.truncate(8.5),
    "truncate_dim 0: give a whole number from 1 to": lambda i: i.truncate(0),
    "truncate_dim None: give": lambda i: i.encode(HOT, truncate_dim=None),
    "product 0 is of type NoneType; give a dict": lambda i: i.encode(None),
    "product 0 is of type int": lambda i: i.encode(7),
    "product 0 is of type str": lambda i: i.encode("red"),
    "product 1 is of type NoneType": lambda i: i.encode([HOT, None]),
    "batch_size 0: give a whole number from 1": lambda i: i.encode(HOT, batch_size=0),
    "batch_size '8': give a whole": lambda i: i.encoder.encode(HOT, batch_size="8"),
    "readout []: give text": lambda i: i.encode(HOT, readout=[]),
    "threshold '0.9': give a number": lambda i: i.duplicates("0.9"),
    "threshold nan: give a number": lambda i: i.duplicates(float("nan")),
    "threshold np.float32(nan): give": lambda i: i.duplicates(np.float32("nan")),
    "most 0: give a whole number from 1": lambda i: i.duplicates(0.5, most=0),
    "most None": lambda i: i.duplicates(0.5, most=None),
    "precision None": lambda i: i.near(None),
    "top True": lambda i: i.like(3, top=True),
    "way 5: give text": lambda i: i.search(**HOT, way=5),
    "query {'text': 'red'}: give a Product": lambda i: i.nearest(HOT),
    "searches None: give a Hits": lambda i: i.picture(None),
    "folder 5: give text or a path": lambda i: i.save(5),
    "count 0: give a whole number from 1": lambda i: i.copies(0.2, 0),
    "seed 'a': give a whole number from 0": lambda i: i.copies(0.2, 5, "a"),
    "place -1: give": lambda i: explain(i, i.search(**HOT), -1),
    "place 99: there are 8 hits": lambda i: explain(i, i.search(**HOT), 99),
    "hits None: give a Hits": lambda i: explain(i, None),
    "data 7: give text or a path": lambda i: build(7),
    "model ['a']: give text or a path": lambda i: build("shop", model=["a"]),
    "seed -1: give a whole number from 0": lambda i: build("shop", profile="tiny", seed=-1),
    "seed '0': give": lambda i: build("shop", profile="tiny", seed="0"),
    "extractors None: give text": lambda i: build("shop", profile="tiny", extractors=None),
    "folder 7: give text or a path": lambda i: Encoder.from_pretrained(7),
    "7 is no path; give": lambda i: readers.read(7),
    "profile 'tiny': give a Profile": lambda i: runs.load("shop", "tiny"),
    "Job: seed is '0', not int": lambda i: job(i, seed="0"),
    "seed -1: give a number from 0": lambda i: job(i, seed=-1),
    "epochs is '5', not float": lambda i: job(i, epochs="5"),
    "epochs nan: give a number": lambda i: job(i, epochs=float("nan")),
    "learning_rate inf: give": lambda i: job(i, learning_rate=float("inf")),
    "devices 0: give a number from 1": lambda i: job(i, devices=0),
    "micro is None, not int": lambda i: job(i, micro=None),
    "settings are such as width": lambda i: job(i, settings=(("wide", 8),)),
    "Spec: width is '16', not int": lambda i: replace(i.model.spec, width="16"),
    "settings or changes: TypeError": lambda i: job(i, changes=5),
    "workers 0: give a whole number from 1": lambda i: sweep("n.ipynb", {}, workers=0),
    "n.ipynb: fixed: TypeError": lambda i: sweep("n.ipynb", {}, 5),
    "notebook None: give": lambda i: sweep(None, {}),
    "nothing is raised": lambda i: i.duplicates(np.float32(-1), most=np.int64(3)),
}


def error_of(call, index: Index) -> tuple[str, str]:
    try:
        call(index)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", "nothing is raised"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from test_hostile import search_over

    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        rows = (f"{n},red shirt {n},{n},a.png\n" for n in range(9))
        index = search_over(Path(tempfile.mkdtemp()) / "t.csv", rows)
        found = {words: error_of(call, index) for words, call in CALLS.items()}
    print(json.dumps(found))
