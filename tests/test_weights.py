"""The row ``released`` against the authors' own numbers (`*_headmask_fixed` of the reference vectors), forward and backward."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SHARED

from m5lib import contrast, objectives, weights
from m5lib.masking import Target
from m5lib.streams import Batch, Stream

HERE = ROOT / "tests" / "golden"
FULL = SHARED / "golden"
THEIRS = {"text": "t", "table": "pv", "image": "v", "video": "video", "audio": "audio"}
LENGTHS = {"text": 9, "table": 11, "image": 6, "video": 5, "audio": 7}
HEADS = {"heads": 4, "feature_heads": 2, "joint_heads": 4}
GRAPH = ("text", "image", "table", "video", "audio")  # the order of their 5 x 5 matrices
LIMITS = {torch.float64: (1e-10, 1e-10), torch.float32: (2e-5, 1e-5)}


def folder(case: str):
    if not (FULL / case).exists():
        pytest.skip(f"the reference vectors are not here ({case}); a part of them is tested in test_a_part_of_the_golden_numbers")
    return FULL / case


def batch_of(inputs, dtype) -> Batch:
    ids, feats = {"text": "input_ids", "table": "pv_input_ids"}, ("image", "video", "audio")
    masks = {"text": "attention_mask", "table": "pv_attention_mask"} | {name: f"{name}_attention_mask" for name in feats}
    streams = {}
    for name in ("image", "text", "table", "video", "audio"):
        valid = torch.from_numpy(inputs[masks[name]]).bool()
        if name in ids:
            streams[name] = Stream(torch.from_numpy(inputs[ids[name]]), valid, entity=torch.zeros_like(valid, dtype=torch.long))
        else:
            boxes = torch.from_numpy(inputs["image_loc"]).to(dtype) if name == "image" else None
            streams[name] = Stream(torch.from_numpy(inputs[f"{name}_feat"]).to(dtype), valid, boxes=boxes)
    return Batch(streams, np.arange(6))


def targets_of(inputs, dtype) -> dict[str, Target]:
    found = {}
    for name, label in (("text", "masked_lm_labels"), ("table", "masked_em_labels")):
        labels = torch.from_numpy(inputs[label])
        place = (labels >= 0).nonzero(as_tuple=True)
        found[name] = Target(*place, labels[place])
    for name in ("image", "video", "audio"):
        place = (torch.from_numpy(inputs[f"{name}_label"]) == 1).nonzero(as_tuple=True)
        target = torch.from_numpy(inputs[f"{name}_target"]).to(dtype)
        found[name] = Target(place[0], place[1] + 1, target[place])  # their labels leave the global token out
    return found


def graph_of(model, vectors):
    """Their matrix: S before its halves are made alike, in their order."""
    plain = objectives.harmony(objectives.cosine(vectors), torch.ones(vectors.shape[:2], dtype=torch.bool))
    place = [model.spec.modalities.index(name) for name in GRAPH]
    return plain[:, place][:, :, place]


def pairs_in_their_order(model, rows):
    names = model.spec.modalities
    ours = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    theirs = [(a, b) for i, a in enumerate(GRAPH) for b in GRAPH[i + 1 :]]
    return [(rows[ours.index(p)], False) if p in ours else (rows[ours.index(p[::-1])], True) for p in theirs]


def their_logits(model, output):
    """(10, 12, 11): the positive first, then the negatives in ascending order (theirs are sorted likewise by the test)."""
    vectors = torch.stack([output.pooled[n] for n in model.spec.modalities], 1)
    scores = objectives.scores(model, vectors, output.presence)
    found = []
    for logits, turned in pairs_in_their_order(model, contrast.released_logits(vectors, model.temperature, scores)):
        logits = torch.cat([logits[6:], logits[:6]]).roll(6, 1) if turned else logits
        rows = []
        for r in range(12):
            keep = [c for c in range(12) if c not in (r, (r + 6) % 12)]
            rows.append(torch.cat([logits[r, (r + 6) % 12][None], logits[r, keep].sort().values]))
        found.append(torch.stack(rows))
    return torch.stack(found)


def outputs_of(model, output) -> dict:
    """Everything that pre-training and classification both store, under their names."""
    found, names = {}, model.spec.modalities
    for name, code in THEIRS.items():
        found[f"emb_{code}"], found[f"seq_pre_{code}"] = output.embedded[name], output.encoded[name]
        found[f"seq_post_{code}"], found[f"enc_pooled_{code}"] = output.fused[name], output.pooled[name]
    found["enc_graph"] = graph_of(model, torch.stack([output.pooled[n] for n in names], 1))
    found["enc_modality_weight"] = found["enc_graph"].diagonal(dim1=1, dim2=2)
    found["clr_pair_logits"] = their_logits(model, output)
    found["clr_pair_loss"] = torch.stack([-x.log_softmax(-1)[:, 0].mean() for x in found["clr_pair_logits"]])
    return found


def pretraining(path, dtype):
    """Our model with their weights on their inputs: outputs under their names, and gradients by our names."""
    inputs = np.load(path / "inputs.npz")
    model = weights.load_released(path / "state_dict.safetensors", LENGTHS, **HEADS).to(dtype)
    batch, targets = batch_of(inputs, dtype), targets_of(inputs, dtype)
    output = model(batch)
    loss, parts = objectives.total(model, output, targets)
    loss.backward()
    names, found = model.spec.modalities, outputs_of(model, output)
    found["graph"] = graph_of(model, torch.stack([output.summary[n] for n in names], 1))
    found["modality_weight"] = found["graph"].diagonal(dim1=1, dim2=2)
    for name, code in THEIRS.items():
        raw = model.heads[model.spec.owner(name)](output.encoded[name])
        scaled = raw * found["modality_weight"][:, GRAPH.index(name), None, None]
        found[f"pooled_{code}"], found[f"pred_raw_{code}"] = output.summary[name], raw
        found[f"pred_{code}"] = scaled if name in ("text", "table") else scaled[:, 1:]
    tasks = {"lm": "MLM", "em": "MEM", "img": "MRP", "video": "MFP", "audio": "MAM"}
    found |= {f"loss_masked_{theirs}": parts[ours] for theirs, ours in tasks.items()}
    pairs = torch.stack([value for name, value in parts.items() if name.startswith("contrast")])
    torch.testing.assert_close(torch.stack([x for x, _ in pairs_in_their_order(model, pairs)]), found["clr_pair_loss"])
    return model, found | {"loss_CLR": pairs.mean(), "loss_total": loss}


def largest_difference(found: dict, expected) -> dict[str, float]:
    differences = {}
    for name in expected:
        theirs = np.sort(expected[name][..., 1:], -1) if name == "clr_pair_logits" else expected[name]
        ours = found[name].detach().numpy()
        ours = ours[..., 1:] if name == "clr_pair_logits" else ours
        differences[name] = np.abs(ours.reshape(theirs.shape) - theirs).max()
    return differences


def gradient_differences(module, path, state) -> dict[str, float]:
    blank = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in state.items()}
    found, expected = weights.export_released(module, blank, LENGTHS, gradients=True), np.load(path)
    return {name: np.abs(found[name].numpy() - expected[name]).max() for name in expected}


def classification(path, dtype):
    """The same for the classifier on top."""
    inputs = np.load(path / "inputs.npz")
    classifier = weights.load_released(path / "state_dict.safetensors", LENGTHS, **HEADS).to(dtype)
    batch = batch_of(inputs, dtype)
    hidden, logits = classifier(batch)
    loss = F.cross_entropy(logits, torch.from_numpy(inputs["label"]))
    loss.backward()
    return classifier, outputs_of(classifier.model, classifier.model(batch)) | {"hidden_state": hidden, "logits": logits, "loss": loss}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ["pretrain", "classification"])
def test_released_equals_the_authors_numbers(case, dtype):
    path = folder(case)
    module, found = {"pretrain": pretraining, "classification": classification}[case](path, dtype)
    stored = np.load(path / f"outputs_headmask_fixed{'_f64' if dtype == torch.float64 else ''}.npz")
    outputs = largest_difference(found, stored)
    gradients = gradient_differences(module, path / "grads_headmask_fixed_f64.npz", weights.read_state(path / "state_dict.safetensors"))
    assert len(outputs) == len(stored) and len(gradients) == {"pretrain": 175, "classification": 146}[case]
    print(f"{case} {dtype}: outputs {max(outputs.values()):.1e}, gradients {max(gradients.values()):.1e}")
    assert max(outputs.values()) < LIMITS[dtype][0] and max(gradients.values()) < LIMITS[dtype][1]


