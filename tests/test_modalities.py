import ast
from pathlib import Path

import pytest

from m5lib import modalities


def test_codes_are_the_papers_and_round_trip():
    assert modalities.codes(["audio", "text", "image", "video", "table"]) == "I+T+Tab+V+A"
    assert modalities.from_codes("T+I") == ("image", "text")
    for wrong in ("T+X", ""):
        with pytest.raises(ValueError, match="known are"):
            modalities.from_codes(wrong)
    with pytest.raises(ValueError, match="smell"):
        modalities.ordered(["smell"])


def test_no_branch_on_a_modality_name():
    """Design: nothing but the table names a modality in a condition."""
    names = set(modalities.MODALITIES)
    for file in Path(modalities.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare) and all(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                sides = [node.left, *node.comparators]
                assert not any(isinstance(s, ast.Constant) and s.value in names for s in sides), f"{file.name}:{node.lineno}"
