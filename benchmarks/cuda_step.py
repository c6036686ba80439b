"""A small training step, every batch of another shape: on a CUDA device, there with cuDNN's
attention allowed too, and on one core of its host.

    python benchmarks/cuda_step.py

takes its place, by device, in ``benchmarks/cuda_step.json``. The model is SCALE at the profile
``small`` (128 wide, one layer of each kind), the batches are 32 random products with the presence
and lengths of the synthetic shop (``benchmarks/step.py``); one step is what the loop does with a
batch that is on the device. Steps a second of 60 batches that were not seen before.
"""

import json
import time
from pathlib import Path

import step
import torch
from torch.nn.attention import SDPBackend

from m5lib import data as files
from m5lib import layers
from m5lib.lab import recording

FILE = Path(__file__).with_suffix(".json")
SIZE = {"width": 128, "layers": 1, "heads": 4}
PRODUCTS, BATCHES, WARM = 32, 60, 15


def steps_a_second(kind: str, seed: int) -> float:
    """Of batches that no call with another seed has."""
    worker = step.Worker("auto")
    worker.device = torch.device(kind)
    worker.start(SIZE, PRODUCTS, "shop")
    draws = [torch.Generator().manual_seed(1000 * seed + n) for n in range(WARM + BATCHES)]
    batches = [step.batch_of("shop", PRODUCTS, drawn).to(worker.device) for drawn in draws]
    for number, batch in enumerate(batches):
        if number == WARM:
            begun = worker.now()
        worker.batch = batch
        worker.step(number)
    return BATCHES / (worker.now() - begun)


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    found = {"processor, one thread": steps_a_second("cpu", 0)}
    if torch.cuda.is_available():
        steps_a_second("cuda", 1)  # kernels are loaded when they are first called
        found["CUDA"] = steps_a_second("cuda", 2)
        layers.FUSED = [*layers.FUSED, SDPBackend.CUDNN_ATTENTION]
        found["CUDA, cuDNN allowed"] = steps_a_second("cuda", 3)
    device = recording.device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    made = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    known[device] = made | {"steps a second": {name: round(x, 1) for name, x in found.items()}}
    files.write_json(FILE, known)
    print(json.dumps(known[device], indent=1))


if __name__ == "__main__":
    main()
