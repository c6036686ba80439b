"""A small training step, every batch of another shape, as training has them: on a CUDA device,
there with cuDNN's attention allowed too, and on one core of its host.

    python benchmarks/cuda_step.py

takes its place, by device, in ``benchmarks/cuda_step.json``: steps a second of SCALE at the profile
``small`` on the synthetic shop (32 products a batch, 128 wide, one layer of each kind), of its
picture and title, and of all five modalities; batches are made by the same process.
"""

import json
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend

from m5lib import data as files
from m5lib import layers
from m5lib.lab import recording, runs
from m5lib.pretrain import Training, pretrain

FILE = Path(__file__).with_suffix(".json")
WARM, STEPS, PRODUCTS = 60, 150, 32  # kernels are loaded when they are first called


def steps_a_second(streams, device: str) -> float:
    """Of those after the first, each with a batch that was not seen before."""
    runs.best_device = lambda: torch.device(device)
    model = runs.untrained(runs.Job(profile="small"), streams)
    training = Training(steps=WARM + STEPS, batch_size=PRODUCTS, learning_rate=2e-3)
    with tempfile.TemporaryDirectory() as folder:
        history = pretrain(model, streams, training, folder)
    return STEPS / sum(PRODUCTS / line["products_per_second"] for line in history[WARM:])


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    size, cuda, usual = runs.profile_of("small"), torch.cuda.is_available(), layers.FUSED
    catalogue, features = runs.load("shop", size)
    rows = []
    for modalities in ("I+T", "I+T+Tab+V+A"):
        streams = runs.streams_of(catalogue, features, size, modalities)
        row = {"modalities": modalities, "one core of the host": steps_a_second(streams, "cpu")}
        if cuda:
            row["CUDA"] = steps_a_second(streams, "cuda")
            layers.FUSED = [*usual, SDPBackend.CUDNN_ATTENTION]
            row["CUDA, cuDNN allowed"] = steps_a_second(streams, "cuda")
            layers.FUSED = usual
        rows.append({k: x if isinstance(x, str) else round(x, 1) for k, x in row.items()})
        print(rows[-1], flush=True)
    device = recording.device_name(torch.device("cuda" if cuda else "cpu"))
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    made = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    known[device] = made | {"steps a second": rows}
    files.write_json(FILE, known)


if __name__ == "__main__":
    main()
