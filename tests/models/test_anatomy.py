"""How far a modality reaches is measured: exactly zero where no gradient goes."""

import pytest
from conftest import make_five_batch
from test_zoo import build, fitted

from m5lib.models import anatomy


@pytest.mark.parametrize("name", ["released", "scale"])
@pytest.mark.parametrize("states", ["encoded", "fused"])
def test_influence_is_zero_exactly_where_nothing_reaches(name, states):
    model, batch = build(fitted(name)), make_five_batch()
    reached = anatomy.reach(model, batch, states)
    moved = anatomy.influence(model, batch, states)
    assert (moved > 0).equal(reached) and moved.argmax(dim=1).tolist() == list(range(5))


def test_what_goes_in_moves_by_as_much_as_it_is_moved():
    """Before any stage."""
    moved = anatomy.influence(build(fitted("uniter")), make_five_batch(), "encoded")
    assert moved.diagonal().tolist() == pytest.approx([1, 1], abs=1e-4)
    assert moved.sum() == moved.diagonal().sum()
