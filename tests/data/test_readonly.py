"""A folder that can only be read: what is complete there is read, all else ends with one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from m5lib.data import readers, store
from m5lib.data.backbones import choose
from m5lib.search import build

#: Root may write everywhere but for this.
DROP = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
CHILD = """
import sys
from m5lib.data import readers, store, write_json
from m5lib.data.backbones import choose
from m5lib.search import build

table, other, folder = sys.argv[1:]
print(store.extract(readers.read(table), choose(""), folder)[1]["image"].values[:].sum())
index = build(table, profile="tiny")
print(len(index.search(text="shirt").rows))
for call in (
    lambda: store.extract(readers.read(other), choose(""), folder + "/other"),
    lambda: build(other, profile="tiny"),
    lambda: build(table, profile="tiny", seed=1),
    lambda: index.save(folder),
    lambda: index.model.save_pretrained(folder),
    lambda: write_json(folder + "/image.json", {}),
):
    try:
        print("written", call())
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(bool(DROP) and not shutil.which(DROP[0]), reason="root, and no setpriv")
def test_what_is_complete_is_read_and_nothing_else_is_made(tmp_path, monkeypatch):
    from make_media import write_image

    home, own = tmp_path / "home", tmp_path / "own"
    monkeypatch.setenv("M5_HOME", str(home))
    home.mkdir()
    write_image(tmp_path / "a.png")
    rows = "".join(f"{n},red shirt {n},{n},a.png\n" for n in range(40))
    for name, text in (("t.csv", rows), ("u.csv", rows.replace("red", "blue"))):
        (tmp_path / name).write_text("id,title,size,image\n" + text)
    values = store.extract(readers.read(tmp_path / "t.csv"), choose(""), own)[1]["image"].values
    build(tmp_path / "t.csv", profile="tiny")
    every = [tmp_path, *tmp_path.rglob("*")]
    for path in every:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        given = [str(tmp_path / "t.csv"), str(tmp_path / "u.csv"), str(own)]
        run = [*DROP, sys.executable, "-B", "-c", CHILD, *given]
        ran = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    finally:
        for path in every:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert ran.returncode == 0, ran.stderr[-2000:]
    total, hits, *refused = ran.stdout.splitlines()
    assert float(total) == np.float16(values[:].sum()) and hits == "8" and len(refused) == 6
    for line in refused:
        assert "read-only; write elsewhere" in line and f"'{tmp_path}" in line, line
    assert sorted(map(Path, every)) == sorted([tmp_path, *tmp_path.rglob("*")]), "nothing is left"
