"""``make results``: which notebooks run, and with what (``docs/results.py``)."""

import json

import pandas as pd

import results
from m5lib.lab import notebooks


def test_results_are_made_of_what_the_notebooks_name(tmp_path, monkeypatch, capsys):
    """Each once, at one profile: its seeds swept, then recorded; on real products under the data's
    name, and only where these tell more."""
    ran, swept = [], []
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    monkeypatch.setattr(
        results, "_recorded", lambda path, given: ran.append((path.stem, given)) or 1
    )

    def fake_sweep(path, grid, fixed, workers=None):
        swept.append((path.stem, grid["seed"]))
        return pd.DataFrame({"status": ["failed" if path.stem == "09_simcl" else "finished"]})

    monkeypatch.setattr(results.sweep, "sweep", fake_sweep)
    monkeypatch.setattr(results.subprocess, "run", lambda command, check: None)
    real = tmp_path / "fashion-products"
    assert results.main(["--seeds", "2", "--data", str(real)]) == 1  # one failed, the others ran
    records = {(stem, given["record"]) for stem, given in ran}
    assert {
        ("01_explore", "probes"),
        ("01_explore", "demo"),
        ("05_downstream", "fashion"),
    } <= records
    assert {
        ("06_modality_count", "modality_count"),
        ("06_modality_count", "modality_count_fashion"),
    } <= records
    assert not any(
        "simcl" in name or name in ("model_fashion", "probes_fashion") for _, name in records
    )
    assert ("09_simcl", [0, 1]) in swept and ("05_downstream", [0, 1]) not in swept
    by_name = {given["record"]: given for _, given in ran}
    assert by_name["mem_vs_mlm_fashion"]["products"] == results.PRODUCTS
    assert by_name["mem_vs_mlm"] == {
        **{"profile": "small", "data": "shop", "seeds": 2, "record": "mem_vs_mlm"},
    }
    assert by_name["probes"]["shops"] == 2 and by_name["fashion"]["data"] == str(real)
    times = json.loads((tmp_path / "results" / "times.json").read_text())
    assert {"demo", "fashion", "maps", "simcl"} <= set(times)
    for path in notebooks.find():
        for _, given in (entry for entry in ran if entry[0] == path.stem):
            notebooks.check(path, given)
    assert all(
        notebooks.results_of(p) for p in notebooks.find() if "seeds" in notebooks.parameters_of(p)
    )
