"""One batch in parts: micro-batches, where it is larger than the memory, and several devices.

The gradient is that of the whole batch, though its contrast compares all products: their vectors
come first, then the gradient of the contrast by each, then every part with its share of it
(GradCache, Gao et al. 2021, arXiv 2101.06983). Vectors and presence are gathered from all devices,
harmony scores are made of them, and every loss divides by the count of the whole batch. Each device
computes the contrast, and DistributedDataParallel adds up the rest.

>>> history = pretrain(model, streams, training, folder, parts=Parts(model, micro=16))
>>> launch(train, 2, job, streams)  # train(job, streams) in two processes, which meet
"""

import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import (
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from m5lib import objectives
from m5lib.masking import Targets, hidden
from m5lib.modalities import MODALITIES, codes
from m5lib.model import Model, Output
from m5lib.pretrain import batch_of, world
from m5lib.simcl import Presence, at_least_float32
from m5lib.spec import Spec
from m5lib.streams import Batch, Part, Stream, Streams


def shares(products: int) -> list[tuple[int, int]]:
    """Where the share of each process in a batch begins and ends; some may have none."""
    size = world()[1]
    return list(pairwise(products * n // size for n in range(size + 1)))


class Parts:
    """The losses of a model's batches, part by part.

    Args:
        micro: so many products at a time; 0: all of this process.
    """

    def __init__(self, model: Model, micro: int = 0):
        self.model, self.micro, self.wrapped = model, micro, None
        self.rank, self.size = world()

    def batch_of(self, streams: Streams, spec: Spec, rows: np.ndarray) -> Batch:
        """What this process has of :func:`m5lib.pretrain.batch_of`."""
        part = self.share(len(rows))
        if part is None or spec.missing == "impute":
            # all first, for one product that lacks a modality makes the stream of each longer
            batch = batch_of(streams, spec, rows)
            return batch if part is None else batch.take(*part)
        return streams.batch(rows, part)

    def share(self, products: int) -> Part:
        """Where that of this process in a batch begins and ends; None alone. One that has none
        takes a product that does not count."""
        first, last = shares(products)[self.rank]
        return (first, max(last, first + 1)) if self.size > 1 else None

    def losses(
        self, batch: Batch, targets: Targets, given: Presence | None, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss whose gradient is left to take, that of the last part; the gradients of the
        others are in the parameters. And the values of the whole batch by name, ``loss`` first.

        Args:
            batch: what this process has of it, masked.
            seed: of dropout, which is the same when a part is computed again.
        """
        model, count = self.model, (batch.part or (0, len(batch.rows)))[1]
        step = self.micro or len(batch.rows)
        cuts = [(n, min(n + step, len(batch.rows))) for n in range(0, len(batch.rows), step)]
        counted = float(np.diff(shares(count)[self.rank])[0] > 0)
        before = self._before(batch, count)
        whole = self._whole(batch, targets, before, counted)
        pull, values, output, own = None, {}, None, []
        if len(cuts) == 1:
            output = self._output(batch, targets, given, cuts[0], seed, True)
        if model.spec.contrasted:
            vectors = self._vectors(batch, cuts, seed) if output is None else output.pooled
            vectors = objectives.stacked(vectors)
            there = batch.presence_of(model.spec.modalities)
            value, pairs, pull, own = self._contrast(vectors, there, count)
        for cut in cuts:
            last = cut == cuts[-1]
            if len(cuts) > 1:
                output = self._output(batch, targets, given, cut, seed, last)
            part = (batch.take(*cut), _cut(targets, cut), before.take(*cut))
            loss, parts = self._part(output, *part, whole)
            for name, x in {"loss": loss, **parts}.items():
                values[name] = values.get(name, 0) + x.detach().double() * counted
            if pull is not None:
                vectors = at_least_float32(objectives.stacked(output.pooled))
                first = shares(count)[self.rank][0]
                loss = loss + (vectors * pull[first + cut[0] : first + cut[1]]).sum()
            loss = loss * counted * self.size  # of which the mean over the processes is taken
            if not last:
                loss.backward()
        values = dict(zip(values, self._sum(torch.stack(list(values.values()))), strict=True))
        if pull is not None:
            values = {**values, **pairs, "loss": values["loss"] + value}
            loss = sum(((p * g).sum() for p, g in own), start=loss)
        return loss, {"loss": values["loss"], "temperature": model.temperature} | values

    def _output(self, batch, targets, given, cut: tuple[int, int], seed: int, last: bool) -> Output:
        """The model on some products; with the last part all processes share their gradients."""
        if self.size > 1 and self.wrapped is None:
            self.wrapped = DistributedDataParallel(self.model, broadcast_buffers=False)
        self._draw(seed, cut)
        wanted = hidden(batch, targets) if self.model.spec.objective.reads == "fused" else {}
        wanted = {name: marks[slice(*cut)] for name, marks in wanted.items()}
        given = None if given is None else given[slice(*cut)]
        with nullcontext() if self.wrapped is None or last else self.wrapped.no_sync():
            return (self.wrapped or self.model)(batch.take(*cut), wanted, given=given)

    def _draw(self, seed: int, cut: tuple[int, int]) -> None:
        """Let dropout be that of these products, at whatever pass."""
        entropy = np.random.SeedSequence((seed, self.rank, cut[0]))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))

    @torch.no_grad()
    def _vectors(self, batch: Batch, cuts: list[tuple[int, int]], seed: int) -> dict[str, Tensor]:
        """The summaries of all parts, before there is a graph."""
        found = []
        for cut in cuts:
            self._draw(seed, cut)
            found.append(self.model.encode(batch.take(*cut)).pooled)
        torch.clear_autocast_cache()  # its weights have no gradient
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def _contrast(self, vectors: Tensor, presence: Presence, count: int) -> tuple:
        """Of the whole batch: the contrast, its values by name, its gradient by the vectors, and
        that by the parameters it reads, each with its own."""
        vectors = self._gather(at_least_float32(vectors.detach()), count).requires_grad_()
        presence = self._gather(presence, count)
        read = [p for p in self.model.parameters(recurse=False) if p.requires_grad]
        with torch.enable_grad(), torch.autocast(vectors.device.type, enabled=False):
            value, pairs = objectives.contrast(self.model, vectors, presence)
            pull, *others = torch.autograd.grad(value, [vectors, *read], allow_unused=True)
        own = [(p, g) for p, g in zip(read, others, strict=True) if g is not None]
        return value.detach(), {name: x.detach() for name, x in pairs.items()}, pull, own

    def _before(self, batch: Batch, count: int) -> Batch:
        """For matching: the words of the product before each; before the first is the last."""
        streams, first = {}, (batch.part or (0, count))[0]
        for name in self.model.matchers:
            pair = (batch.streams[name].tokens, batch.streams[name].valid)
            pair = (self._gather(x, count).roll(1, 0) for x in pair)
            streams[name] = Stream(*(x[first : first + len(batch.rows)] for x in pair))
        return replace(batch, streams=streams)

    def _counts(self, batch: Batch, targets: Targets, before: Batch) -> dict[str, int]:
        """How many values each loss is the mean of, by its name."""
        names = self.model.spec.modalities
        tasks = self.model.spec.objective.tasks(names)
        counts = {MODALITIES[name].task: len(targets[name].value) for name in tasks}
        for name, stream in before.streams.items():
            there, column = batch.presence_of(names), names.index(name)
            both = objectives.matched(there, column, stream.valid[:, 0])
            counts[f"matching_{codes([name])}"] = int(both.sum())
        return counts | {"fused": len(batch.rows)}

    def _whole(self, batch: Batch, targets: Targets, before: Batch, counted: float) -> dict:
        """:meth:`_counts` of the whole batch."""
        counts = self._counts(batch, targets, before)
        numbers = torch.tensor(list(counts.values()), dtype=torch.float64).to(batch.presence.device)
        return dict(zip(counts, self._sum(numbers * counted), strict=True))

    def _part(self, output: Output, batch: Batch, targets: Targets, before: Batch, whole) -> tuple:
        """A part's loss and values, the contrast apart: its means times its share in the whole."""
        spec, embeddings, words = self.model.spec, self.model.embeddings, before.streams.items()
        words = {name: (embeddings[spec.owner(name)](x), x.valid) for name, x in words}
        parts = objectives.apart(self.model, output, targets, words)
        weights = dict.fromkeys(parts, 1.0) | {"fused": spec.objective.fused}
        if spec.objective.fused:
            parts["fused"] = objectives.fused_loss(output)
        for name, number in self._counts(batch, targets, before).items():
            if name in parts:
                parts[name] = parts[name] * (number / whole[name].clamp(min=1))
        zero = torch.zeros((), device=output.presence.device)
        return sum((weights[name] * x for name, x in parts.items()), start=zero), parts

    def _sum(self, x: Tensor) -> Tensor:
        """Over the processes."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def _gather(self, x: Tensor, count: int) -> Tensor:
        """(B, …) of the whole batch, in its order; without a gradient."""
        if self.size == 1:
            return x
        sizes = [last - first for first, last in shares(count)]
        sent = x.new_zeros(max(sizes), *x.shape[1:])
        sent[: sizes[self.rank]] = x[: sizes[self.rank]]
        sent = sent.byte() if x.dtype == torch.bool else sent
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent)
        every = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return every.to(x.dtype)


def _cut(targets: Targets, cut: tuple[int, int]) -> Targets:
    """The targets of some products."""
    found = {}
    for name, target in targets.items():
        keep = (target.product >= cut[0]) & (target.product < cut[1])
        product, token = target.product[keep] - cut[0], target.token[keep]
        found[name] = replace(target, product=product, token=token, value=target.value[keep])
    return found


# --- processes ------------------------------------------------------------------------------------


@contextmanager
def joined(meet: str = "env://") -> Iterator[None]:
    """This process is one of those that torchrun, or :func:`launch`, has started: it takes the
    device of its number (or the processor), and meets the others."""
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo", meet, rank=rank, world_size=size)
    yield
    dist.destroy_process_group()  # after a fault it might wait for the others


def ahead(make: Callable, wanted: Iterable[np.ndarray], loaders: int) -> Iterator:
    """``map(make, wanted)``, made ahead by so many processes of this machine, two batches each."""
    loader = DataLoader(
        _Themselves(),
        batch_size=None,
        sampler=wanted,
        num_workers=loaders,
        collate_fn=make,
        generator=torch.Generator(),  # it draws a number, which would change dropout
        multiprocessing_context="fork",  # so that nothing is pickled
    )
    return iter(loader)


class _Themselves:
    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return rows


def meet() -> None:
    """Wait for the other processes."""
    if world()[1] > 1:
        dist.barrier()


@contextmanager
def led(lock) -> Iterator[None]:
    """The first process holds a lock, while all are inside; the first is done before others go."""
    with lock if world()[0] == 0 else nullcontext():
        meet()
        yield
        meet()


def launch(work: Callable, devices: int, *arguments) -> None:
    """``work(*arguments)`` in so many processes of this machine, each with a device of its own;
    all that it takes is pickled. Of what they write to stderr, that of the first is seen here.

    Raises:
        ValueError: there are fewer devices.
        RuntimeError: one of them failed or was killed, in a line; the others are ended.
    """
    if torch.cuda.is_available() and devices > (there := torch.cuda.device_count()):
        raise ValueError(f"devices={devices}: this machine has {there}; take at most as many")
    threads, context = max(1, torch.get_num_threads() // devices), None
    with tempfile.TemporaryDirectory() as folder:
        # not as arguments of the processes: each would have to read them before the next one starts
        Path(folder, "work").write_bytes(pickle.dumps((work, arguments)))
        try:
            given = (Path(folder), devices, threads)
            context = start_processes(_ranked, given, devices, join=False)  # may have loaders
            while not context.join():
                pass
        except (ProcessRaisedException, ProcessExitedException) as error:
            end = "the others were ended; the same call goes on from the last checkpoint"
            fault = f"failed: {str(error).strip().splitlines()[-1]}"
            if name := getattr(error, "signal_name", None):
                fault = f"was ended by {name} (out of memory?)"
            which = f"number {error.error_index} of {devices} processes"
            raise RuntimeError(f"{which} {fault}; {end}") from None
        finally:
            for process in context.processes if context else ():
                process.kill()
                process.join()


def _ranked(rank: int, folder: Path, devices: int, threads: int) -> None:
    """One of the processes of :func:`launch`."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": devices}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    torch.set_num_threads(threads)
    if rank:  # one progress bar is enough
        sys.stderr = open(os.devnull, "w")
    work, arguments = pickle.loads((folder / "work").read_bytes())
    with joined((folder / "meet").as_uri()):
        work(*arguments)
