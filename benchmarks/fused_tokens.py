"""A pre-training step of the small shop that computes every fused token, beside one that computes
those that are read.

    python benchmarks/fused_tokens.py

writes ``benchmarks/fused_tokens.json``. Steps alternate, so that what else runs on the machine
slows both alike.
"""

import time
from pathlib import Path
from statistics import median

import torch

from m5lib import data as files
from m5lib import objectives, pretrain
from m5lib.lab import recording, runs
from m5lib.masking import hidden, mask


def step(model, optimizer, streams, rows, wanted: bool, seed: int) -> tuple[float, float]:
    """Seconds of one step, and its loss."""
    begun = time.perf_counter()
    with pretrain.autocast(torch.device("cpu"), "auto"):
        objective, spec = model.spec.objective, model.spec
        generator = torch.Generator().manual_seed(seed)
        batch, targets = mask(
            streams.batch(rows),
            streams.tokenizer,
            generator,
            objective.mask_rate,
            dict(objective.hides),
            objective.tasks(spec.modalities),
        )
        loss, _ = objectives.total(
            model,
            model(batch, hidden(batch, targets) if wanted else None),
            targets,
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - begun, float(loss)


def main(steps: int = 60) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    size, begun = runs.profile_of("small"), time.monotonic()
    catalogue, features = runs.load("shop", size, 0)
    streams, job = runs.streams_of(catalogue, features, size), runs.Job(profile="small")
    rows, training = (
        catalogue.split("train"),
        job.plan(runs.streams_of(catalogue, features, size)).training,
    )
    models = {wanted: runs.untrained(job, streams).train() for wanted in (False, True)}
    optimizers = {wanted: pretrain.optimiser(model, training) for wanted, model in models.items()}
    times = {False: [], True: []}
    for number in range(steps):
        for wanted in times:
            chosen = rows[number % 30 * 32 : number % 30 * 32 + 32]
            times[wanted].append(
                step(models[wanted], optimizers[wanted], streams, chosen, wanted, number)
            )
    seconds = {wanted: median(value for value, _ in each[5:]) for wanted, each in times.items()}
    content = {
        "provenance": recording.provenance("small", 0, time.monotonic() - begun),
        "every token (ms)": round(1e3 * seconds[False], 1),
        "tokens that are read (ms)": round(1e3 * seconds[True], 1),
        "ratio": round(seconds[False] / seconds[True], 2),
        "loss of the last step, each": [round(times[wanted][-1][1], 4) for wanted in times],
    }
    print(content)
    files.write_json(Path(__file__).with_suffix(".json"), content)


if __name__ == "__main__":
    main()
