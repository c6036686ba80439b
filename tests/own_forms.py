"""The two contrasts that notebook 09 defines in its cells, all modalities of a product at once:
taken from there and tested like the library's. :func:`register` makes their names known."""

from functools import wraps

import nbformat
import torch
import torch.nn.functional as F
from conftest import ROOT

from m5lib import simcl

_known = {"torch": torch, "F": F, "simcl": simcl, "wraps": wraps}
NOTEBOOK = ROOT / "notebooks" / "09_simcl.ipynb"
for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
    if cell.cell_type == "code" and "def " in cell.source:
        exec(cell.source, _known)

FORMS = {name: _known[name] for name in ("symile", "gram")}


def register(patch) -> None:
    """Make the names known, for one test."""
    for name, form in FORMS.items():
        patch.setitem(simcl.FORMS, name, form)
    patch.setattr(simcl, "AT_ONCE", {*simcl.AT_ONCE, *FORMS})
