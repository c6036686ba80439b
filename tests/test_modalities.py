import ast
from pathlib import Path

import pytest

from m5lib import modalities
from m5lib.models.words import train_tokenizer


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
    for file in Path(modalities.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare) and all(
                isinstance(op, ast.Eq | ast.NotEq) for op in node.ops
            ):
                sides = [node.left, *node.comparators]
                assert not any(isinstance(s, ast.Constant) and s.value in names for s in sides), (
                    f"{file.name}:{node.lineno}"
                )


def test_a_sixth_modality_is_one_row_and_one_extractor(catalogue, monkeypatch, tmp_path):
    """CONTRIBUTING: a row and an extractor, nothing else; the model trains on it and can be given
    only it."""
    from dataclasses import dataclass, replace

    import numpy as np
    import torch

    from m5lib import streams
    from m5lib.catalogue import Catalogue
    from m5lib.data import MediaFile, store
    from m5lib.data.extractors import PLAIN, Features
    from m5lib.embeddings import embeddings
    from m5lib.model import Model
    from m5lib.models import zoo
    from m5lib.pretrain import Training, pretrain

    monkeypatch.setitem(
        modalities.MODALITIES, "smell", modalities.Modality("smell", "S", "features", 5, "MSM")
    )

    @dataclass(frozen=True)
    class Sniff:
        width: int = 3

        def __call__(self, file: MediaFile) -> Features:
            return Features(
                np.frombuffer(file.read()[:48], dtype=np.uint8).reshape(-1, 3).astype(np.float32)
                / 255
            )

    smelly = [
        replace(p, contents={**p.contents, "smell": p.contents["image"]})
        for p in catalogue.products[:60]
    ]
    products, features = store.extract(
        Catalogue("smelly", tuple(smelly)), {**PLAIN, "smell": Sniff()}
    )
    found = streams.Streams(products, features, train_tokenizer(products, 300))
    assert (
        found.modalities == ("image", "text", "table", "smell")
        and modalities.codes(found.modalities) == "I+T+Tab+S"
    )
    torch.manual_seed(0)
    model = Model(zoo.scale(width=16, layers=1, heads=2).fit(found))
    history = pretrain(model, found, Training(steps=4, batch_size=16), tmp_path, rows=np.arange(60))
    assert {"MSM", "contrast_I+S", "contrast_T+S", "contrast_Tab+S"} <= set(history[-1])
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in model.embeddings["smell"].parameters()
    )
    assert np.abs(embeddings(model, found, range(4), ["smell"])["encoded_mean"]).sum() > 0
