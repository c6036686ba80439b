"""One loop: batches -> losses -> AdamW, with a seed, a schedule, a history, and a checkpoint that
resumes; and what pre-training is.

>>> training = Training(steps=500, batch_size=32, learning_rate=2e-3)
>>> history = pretrain(model, streams, training, "runs/first")  # a line per step; the same call
>>> history[-1]["MLM"], history[-1]["contrast_I+T"]  # again goes on where it was stopped
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from m5lib import objectives
from m5lib.files import reading, room, whole_file
from m5lib.masking import drawn_modalities, hidden, mask
from m5lib.model import Model
from m5lib.spec import Spec
from m5lib.streams import Batch, Streams, impute


@dataclass(frozen=True)
class Training:
    """Settings of the loop. Paper (section 5, supplement G): Adam, 1e-4, warm-up, linear decay,
    batch 64, 5 epochs, mixed precision. Checkpoints are ``checkpoint_seconds`` apart, and 100 times
    as long as writing the last one took (0: one after each step)."""

    epochs: int | float = 5
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_seconds: int | float = 60
    steps: int | None = None

    def total_steps(self, products: int) -> int:
        """Optimiser steps: ``steps``, or ``epochs`` over the products, with incomplete batches."""
        return self.steps or max(1, round(self.epochs * math.ceil(products / self.batch_size)))


def autocast(device: torch.device, precision: str):
    """bf16 autocast where it pays: ``auto`` means on CUDA, and on processors that multiply bf16
    (AMX tiles, AVX-512 BF16); softmax and losses stay float32."""
    multiplies = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    pays = device.type == "cuda" or (device.type == "cpu" and multiplies)
    enabled = precision == "bfloat16" or (precision == "auto" and pays)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def optimiser(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """AdamW that decays matrices only (position tables too): no biases, norms, temperature or
    harmony scores. Parameters that ``Spec.rates`` names learn at that rate, or are frozen."""
    rates, groups = getattr(model, "model", model).spec.rates, {}  # a classifier has a model
    for name, p in model.named_parameters():
        own = (r for start, r in rates if name.removeprefix("model.").startswith(start))
        rate = next(own, training.learning_rate)
        decay = training.weight_decay if p.ndim > 1 and name != "scores" else 0.0
        group = {"params": [], "lr": rate, "peak": rate, "weight_decay": decay}
        if p.requires_grad_(p.requires_grad and rate > 0).requires_grad:
            groups.setdefault((rate, decay), group)["params"].append(p)
    fused = next(model.parameters()).device.type in ("cuda", "cpu")
    return torch.optim.AdamW(list(groups.values()), betas=(0.9, 0.98), fused=fused)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate: linear up over the share ``warmup``, then down to 0."""
    first = max(1, round(warmup * steps))
    return (step + 1) / first if step < first else max(0.0, (steps - step) / max(1, steps - first))


def world() -> tuple[int, int]:
    """The number of this process and of how many that train together: (0, 1) alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def drawn(rows: np.ndarray, training: Training, steps: range) -> Iterator[np.ndarray]:
    """The rows of each step's batch. An epoch is shuffled by seed and number only: a resumed run
    sees the same."""
    size, known = training.batch_size, None
    for step in steps:
        epoch, place = divmod(step, math.ceil(len(rows) / size))
        if epoch != known:
            shuffled, known = np.random.default_rng([training.seed, epoch]).permutation(rows), epoch
        # a last batch of a single product takes the one before along: contrast compares products
        yield shuffled[min(place * size, max(0, len(rows) - 2)) : (place + 1) * size]


class Checkpoint:
    """Model, optimiser, step and random state in one file, whole or not there."""

    def __init__(self, path: Path, identity: dict):
        self.path, self.identity = path, json.dumps(identity, sort_keys=True, default=str)

    def save(self, model: nn.Module, optimizer, step: int) -> None:
        """Write the state after ``step`` steps."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        state |= {"identity": self.identity, "random": torch.get_rng_state(), "cuda": cuda}
        with whole_file(self.path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    def load(self, model: nn.Module, optimizer) -> int:
        """Restore a checkpoint of the same run; returns the step, 0 where there is none. Raises
        ``ValueError``: it is of other settings, another model or other data, or cannot be read."""
        if not self.path.exists():
            return 0
        with reading(self.path, "choose another folder, or delete it to train anew"):
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["identity"] != self.identity:
                raise ValueError("belongs to another run: settings, model or data differ")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        return state["step"]


def logged(path: Path, steps: int) -> list[dict]:
    """The history of the first ``steps`` steps; later ones, which are done again, are cut off its
    file. Raises ``ValueError``: it is not the history of these steps."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    with reading(path, f"put it back, or delete {path.parent} to train anew"):
        history = [json.loads(line) for line in lines[:steps]]
        if [line["step"] for line in history] != list(range(steps)):
            raise ValueError(f"{len(history)} lines are not those of the first {steps} steps")
    if lines[steps:]:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in lines[:steps]))
    return history


@dataclass(frozen=True)
class Task:
    """What :func:`run_loop` trains a model for. ``losses`` takes a batch, and a generator for all
    that is random in it, and gives the loss and its parts by name (with a ``loss`` among them where
    the first is but a part of it)."""

    label: str  # of the progress bar
    rows: np.ndarray  # the products to learn from
    losses: Callable[[Any, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
    identity: dict  # what tells this run's checkpoint from that of another run
    batch: Callable[[np.ndarray], Any] = np.asarray  # of some rows


def pretrain(
    model: Model,
    streams: Streams,
    training: Training,
    directory: str | Path,
    rows: np.ndarray | None = None,
    stop_after: int | None = None,
    watch: Callable[[Model], dict] | None = None,
    parts=None,
    feed: Callable = map,
) -> list[dict]:
    """Pre-train in place on the rows (default: the ``train`` split); resumes from a checkpoint.

    Writes ``checkpoint.pt`` (now and then, and at the end) and ``history.jsonl`` (one line per
    step: step, epoch, loss, its parts, learning rate, temperature, products per second).

    Args:
        stop_after: stop after this step as an interruption would, for tests.
        watch: called with the model after each quarter of the steps; what it returns is kept in
            that line of the history.
        parts: how batches are divided (:class:`m5lib.models.parallel.Parts`); by default not.
        feed: makes the batches; :func:`m5lib.models.parallel.ahead` does so in other processes.

    Returns the history, that of earlier parts of the same run included.
    """
    catalogue, spec, objective = streams.catalogue, model.spec, model.spec.objective
    rows = catalogue.split("train") if rows is None else np.asarray(rows)
    if not len(rows):
        raise ValueError(f"{catalogue.name}: the train split is empty; nothing to pre-train on")
    words, tasks = streams.tokenizer, objective.tasks(spec.modalities)
    rate, hides = objective.mask_rate, dict(objective.hides)

    def losses(batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch.to(generator.device)
        batch, targets = mask(batch, words, generator, rate, hides, tasks, objective.classes)
        there, given = batch.presence_of(spec.modalities), None
        if objective.drop:
            given = drawn_modalities(there, objective.drop, generator, batch.part)
        if parts is not None:
            return parts.losses(batch, targets, given, generator.initial_seed())
        # what the heads will read of the fused states: nothing, where they read before the fusion
        wanted = hidden(batch, targets) if objective.reads == "fused" else {}
        loss, values = objectives.total(model, model(batch, wanted, given=given), targets)
        return loss, {"temperature": model.temperature} | values

    identity = {"spec": spec.to_dict(), "data": catalogue.fingerprint, "rows": len(rows)}
    make = partial(batch_of if parts is None else parts.batch_of, streams, spec)
    task = Task("pre-training", rows, losses, identity, make)
    return run_loop(model, task, training, Path(directory), stop_after, watch, feed)


def batch_of(streams: Streams, spec: Spec, rows: np.ndarray) -> Batch:
    """The batch of the rows, imputed before masks are drawn, where the model wants it. Raises
    ``ValueError``: no product of the batch has any of the model's modalities."""
    batch, names = streams.batch(rows), list(spec.modalities)
    if not batch.presence_of(names).any():
        raise ValueError(f"no product of the batch has any of {names} (rows {rows[:3].tolist()} …)")
    return impute(batch, spec.empty) if spec.missing == "impute" else batch


def run_loop(
    model: nn.Module,
    task: Task,
    training: Training,
    directory: Path,
    stop_after: int | None = None,
    watch: Callable[[nn.Module], dict] | None = None,
    feed: Callable = map,
) -> list[dict]:
    """Train in place; resumes from the directory's checkpoint if that has the same identity. See
    :func:`pretrain`. After Ctrl-C the same call goes on from the last checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    leads, steps = world()[0] == 0, training.total_steps(len(task.rows))
    torch.manual_seed(training.seed)
    optimizer = optimiser(model, training)
    identity = {"training": asdict(training), **task.identity}
    checkpoint = Checkpoint(directory / "checkpoint.pt", identity)
    start = checkpoint.load(model, optimizer)
    for half in directory.glob("*.tmp") if leads else ():  # left by a process that was killed
        half.unlink()
    path = directory / "history.jsonl" if leads else Path(os.devnull)
    history = logged(path, start) if leads else []
    model.train()
    todo, saved = range(start, min(steps, stop_after or steps)), time.monotonic()
    pause = apart = training.checkpoint_seconds
    wanted, rows = tee(drawn(task.rows, training, todo))
    with room(path, path), open(path, "a") as log:
        bar = tqdm(todo, task.label, steps, initial=start, unit=" steps", disable=not leads)
        begun = time.monotonic()
        for step, chosen, batch in zip(bar, rows, feed(task.batch, wanted), strict=True):
            line = train_step(model, task, training, optimizer, step, batch)
            line["products_per_second"] = round(len(chosen) / (time.monotonic() - begun), 1)
            if leads and watch and (step + 1) * 4 // steps > step * 4 // steps:
                line |= watch(model)
            history.append(line)
            bar.set_postfix_str(f"loss {line['loss']:.3f}", refresh=False)
            log.write(json.dumps(line) + "\n")
            begun = time.monotonic()
            if leads and (step == todo[-1] or begun - saved > pause):
                log.flush()  # the checkpoint's lines are safe before it is
                os.fsync(log.fileno())
                checkpoint.save(model, optimizer, step + 1)
                saved = time.monotonic()
                # so that writing takes less than 1 % of the time, however large the model is
                pause = apart and max(apart, 100 * (saved - begun))
            begun = time.monotonic()
    return history


def train_step(model: nn.Module, task: Task, training: Training, optimizer, step: int, batch):
    """One optimiser step; everything random in it is a function of seed and step, save dropout.
    Returns a line of the history."""
    device, products = next(model.parameters()).device, len(task.rows)
    generator = torch.Generator(device).manual_seed(training.seed * 1_000_003 + step)
    share = schedule(step, training.total_steps(products), training.warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    optimizer.zero_grad(set_to_none=True)
    with autocast(device, training.precision):
        loss, parts = task.losses(batch, generator)
    # the one wait for the device, before the backward pass, which runs while the host goes on
    parts = {"loss": loss} | parts
    values = torch.stack([x.detach().to(device, torch.float32) for x in parts.values()]).tolist()
    if not math.isfinite(values[0]):
        mend = f"lower the learning rate ({training.learning_rate})"
        raise FloatingPointError(f"the loss is {values[0]} at step {step}; {mend}")
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), training.clip)
    optimizer.step()
    epoch = round((step + 1) / math.ceil(products / training.batch_size), 4)
    line = {"step": step, "epoch": epoch} | dict(zip(parts, values, strict=True))
    return line | {"learning_rate": training.learning_rate * share}
