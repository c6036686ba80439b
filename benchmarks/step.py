"""A pre-training step: seconds, memory, and what share of the device's matrix products it is.

    python benchmarks/step.py                      # this code
    python benchmarks/step.py --before ../older    # and another checkout of it, block about block
    python benchmarks/step.py --authors ../SCALE   # and the authors' code (SCALE_code), in float32
    python benchmarks/step.py --quick              # a smoke run, which is not written

One step is what the loop does with a batch that is on the device: masks, forward, losses, backward,
clipping, AdamW. The batches are random, with the paper's numbers of tokens and feature widths:
``dense``; ``shop``, the presence and lengths of the synthetic shop; ``half absent``, half the
tokens missing, modality by modality; ``uneven``, every stream of a length of its own. Each checkout
runs in a process of its own. Takes its results' place, by device, in ``benchmarks/step.json``.

``mfu`` counts the products of what is there and is read: padding, and what is computed without
need, lower it. The peak is a large square product in the same type, measured in the same run.
``linear`` are the linear layers alone, profiled: their share of the step, and of the peak.
The authors' step is theirs: every stream padded to its longest, what is absent computed as zeros,
BertAdam; on the same products and masks. Their half precision does not run.
On a machine with little memory: ``--apart``, and sizes one at a time (``--only``); what is measured
anew takes the place of what was. ``--products 64 --micro 8`` is a batch larger than memory.
``processor_seconds`` are what the process used of all its cores: on a processor that others use too
they say more than the clock.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[1]
FEATURES = {"image": 2048, "video": 1024, "audio": 751}
VOCABULARY = 21128
VARIANTS = ("dense", "shop", "half absent", "uneven")
#: The shop's products, by plain extractors: share that has a modality, fewest and most tokens.
SHOP = {
    "image": (0.98, 15, 15),
    "text": (0.99, 5, 14),
    "table": (0.97, 7, 21),
    "video": (0.85, 4, 7),
    "audio": (0.82, 20, 39),
}
SIZES = {
    "paper": {"width": 768, "layers": 6, "heads": 12},
    "256 wide": {"width": 256, "layers": 4, "heads": 4},
}
QUICK = {"tiny": {"width": 32, "layers": 1, "heads": 2}}
#: Products of a step.
PRODUCTS = {
    "cuda": {"paper": (64, 256, 512), "256 wide": (64, 256, 512), "tiny": (4,)},
    "cpu": {"paper": (8,), "256 wide": (32,), "tiny": (4,)},
}


class Words:
    """What masking reads of a tokenizer: how many word pieces, and which is ``[MASK]``; under the
    names of older checkouts too."""

    mask_token_id = mask = 4
    size = VOCABULARY

    def __len__(self) -> int:
        return VOCABULARY


# --- in a process of each checkout ----------------------------------------------------------------


def lengths_of(variant: str, count: int, generator):
    """(count, 5) tokens of each product and stream; 0 where it is absent."""
    import torch

    from m5lib.modalities import MODALITIES

    longest = torch.tensor([row.slots for row in MODALITIES.values()])
    if variant == "uneven":
        share = torch.rand(count, len(longest), generator=generator)
        return (2 + share * (longest - 1)).long().clamp(max=longest)
    if variant == "shop":
        shares, fewest, most = (torch.tensor(column) for column in zip(*SHOP.values(), strict=True))
        draw, there = (torch.rand(count, len(longest), generator=generator) for _ in range(2))
        return (there < shares) * (fewest + draw * (most - fewest + 1)).long()
    if variant == "half absent":  # any set of modalities for one, the others for the next
        codes = torch.randint(1, 2 ** len(longest) - 1, (count // 2,), generator=generator)
        first = (codes[:, None] >> torch.arange(len(longest))) & 1
        return torch.stack([first, 1 - first], dim=1).flatten(0, 1) * longest
    return longest.expand(count, -1)


def batch_of(variant: str, count: int, generator):
    """Random products."""
    import numpy as np
    import torch

    from m5lib.modalities import MODALITIES
    from m5lib.streams import Batch, Stream, with_summary

    streams, lengths = {}, lengths_of(variant, count, generator)
    for (name, row), length in zip(MODALITIES.items(), lengths.T, strict=True):
        places = torch.arange(max(1, int(length.max())))
        valid = places < length[:, None]
        if row.kind == "words":
            tokens = torch.randint(5, VOCABULARY, valid.shape, generator=generator) * valid
            inner = valid & (places > 0) & (places < length[:, None] - 1)
            streams[name] = Stream(tokens, valid, torch.where(inner, (places - 1) // 3, -1))
        else:
            values = torch.randn(*valid.shape, FEATURES[name], generator=generator)
            boxes = torch.rand(*valid.shape, 5, generator=generator)
            boxes = boxes if row.position == "box" else None
            tokens = with_summary(values * valid[..., None], valid)
            streams[name] = Stream(tokens, valid, boxes=boxes)
    return Batch(streams, np.arange(count))


def products_of(batch, targets, size: dict) -> tuple[int, float]:
    """Tokens that are there, and the floating-point operations of the matrix products of a step:
    two per multiplication, forward once and backward twice (features have no gradient)."""
    import torch

    width, layers = size["width"], size["layers"]
    lengths = torch.stack([stream.valid.sum(1) for stream in batch.streams.values()]).double()
    hidden = torch.zeros_like(lengths)
    for row, target in zip(hidden, targets.values(), strict=True):
        row += torch.bincount(target.product, minlength=lengths.shape[1]).to(row)
    there, whole = float(lengths.sum()), lengths.sum(0)
    read = (hidden + (lengths > 0)).sum(0)  # by the heads, and the summaries
    solo = 12 * width**2 * there + 2 * width * float((lengths**2).sum())
    joint = 12 * width**2 * there + 2 * width * float((whole**2).sum())
    last = 2 * width**2 * there + float(10 * width**2 * read.sum() + 2 * width * (read @ whole))
    counted = layers * solo + (layers - 1) * joint + last + 10 * lengths.shape[1] ** 2 * width
    given = 0.0
    for row, (name, tokens) in enumerate(zip(batch.streams, lengths, strict=True)):
        counted += float(hidden[row].sum()) * width * (width + FEATURES.get(name, VOCABULARY))
        given += float(tokens.sum()) * width * FEATURES.get(name, 0)
    return int(there), 6 * counted + 4 * given


def peak_memory(device, start: bool = False) -> float:
    """GiB since ``start``: of the device's allocator, or of the whole process."""
    import torch

    if device.type == "cuda":
        if start:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        if start:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**20
    except (OSError, IndexError):  # since the process began
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Worker:
    """What a checkout of the library is asked, and answers."""

    def __init__(self, precision: str):
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision, self.size, self.case = precision, None, None

    def now(self) -> float:
        """Seconds, when the device has done what it was asked."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def hello(self) -> dict:
        """What this is."""
        import torch

        import m5lib
        from m5lib.lab.recording import device_name

        try:
            from m5lib.lab import code_version
        except ImportError:  # an older checkout
            from m5lib.data import code_version

        command = ["git", "-C", str(m5lib.ROOT), "describe", "--always", "--dirty=+"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        made = {"commit": commit or "?", "code": code_version(), "versions": versions}
        made |= {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
        return made | {"kind": self.device.type, "device": device_name(self.device)}

    def peak(self) -> dict:
        """Floating-point operations a second of a square product, the best of six."""
        import torch

        from m5lib.pretrain import autocast

        side = 8192 if self.device.type == "cuda" else 2048
        a, b = (torch.randn(side, side, device=self.device) for _ in range(2))
        with autocast(self.device, self.precision):
            kind = (a[:8, :8] @ b[:8, :8]).dtype
        a, b, best = a.to(kind), b.to(kind), float("inf")
        for _ in range(6):
            begun = self.now()
            for _ in range(5):
                a @ b
            best = min(best, (self.now() - begun) / 5)
        return {"dtype": str(kind).removeprefix("torch."), "flops": 2 * side**3 / best}

    def build(self, size: dict) -> None:
        """The model of a size, and its optimiser."""
        from m5lib.modalities import MODALITIES
        from m5lib.model import Model
        from m5lib.models import zoo
        from m5lib.pretrain import optimiser

        settings = dict(modalities=tuple(MODALITIES), widths=tuple(FEATURES.items()))
        spec = zoo.scale(dropout=0.1, vocabulary=VOCABULARY, **settings, **size)
        with self.device:
            self.model = Model(spec).train()
        self.optimizer = optimiser(self.model, self.training)

    def start(self, size: dict, products: int, variant: str, micro: int = 0) -> dict:
        """The model of a size, if it is another than before, the batch, and a step."""
        import torch

        from m5lib.masking import mask
        from m5lib.pretrain import Training

        self.batch, self.micro = None, micro
        self.training = Training(batch_size=products, precision=self.precision, steps=1000)
        if self.size != size:
            self.size, self.model, self.optimizer = size, None, None
            torch.manual_seed(0)
            self.build(size)
        drawn = torch.Generator().manual_seed(0)
        batch = batch_of(variant, products, drawn)
        masked, targets = mask(batch, Words(), drawn)
        tokens, flops = products_of(masked, targets, size)
        self.batch = batch.to(self.device)
        self.step(0)
        weights = sum(p.numel() for p in self.model.parameters())
        return {"tokens": tokens, "flops": flops, "weights": weights}

    def run(self) -> dict:
        """Some steps: seconds of each, and the memory that they took."""
        steps = 4 if self.device.type == "cuda" else 1
        peak_memory(self.device, start=True)
        begun, host = self.now(), time.process_time()
        for step in range(steps):
            self.step(step)
        taken = {"seconds": self.now() - begun, "host": time.process_time() - host}
        taken = {name: value / steps for name, value in taken.items()}
        return taken | {"memory": peak_memory(self.device)}

    def linear(self) -> dict:
        """Of one step, profiled: seconds of the linear layers, and of all."""
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (self.device.type == "cuda")]
        with profile(activities=kinds, with_flops=True) as seen:
            self.step(0)
        field = "self_device_time_total" if len(kinds) > 1 else "self_cpu_time_total"
        events = seen.key_averages()
        linear = [e for e in events if e.key in ("aten::mm", "aten::addmm", "aten::linear")]
        seconds = sum(getattr(e, field) for e in linear) / 1e6
        whole = sum(getattr(e, field) for e in events) / 1e6
        return {"linear": seconds, "all": whole, "linear_flops": sum(e.flops for e in linear)}

    def step(self, step: int) -> None:
        """One step."""
        import numpy as np

        from m5lib import objectives, pretrain
        from m5lib.masking import hidden, mask

        def losses(_, generator):
            masked, targets = mask(self.batch, Words(), generator)
            if self.micro:
                from m5lib.models.parallel import Parts

                parts = Parts(self.model, self.micro)
                return parts.losses(masked, targets, None, generator.initial_seed())
            output = self.model(masked, hidden(masked, targets))
            return objectives.total(self.model, output, targets)

        task = pretrain.Task("step", np.arange(self.training.batch_size), losses, {})
        last = self.batch if hasattr(pretrain, "drawn") else 1000  # an older checkout: all steps
        pretrain.train_step(self.model, task, self.training, self.optimizer, step, last)

    def answer(self) -> None:
        """A line of JSON in, a line out."""
        import torch

        for line in sys.stdin:
            name, given = json.loads(line)
            try:
                reply = getattr(self, name)(**given)
            except torch.OutOfMemoryError:
                self.batch = None
                reply = {"error": "out of memory"}
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # another checkout is next
            print("=" + json.dumps(reply), flush=True)


class Authors(Worker):
    """The authors' training step (``examples/SCALE/pretrain_task.py``), given the same products."""

    def __init__(self, root: Path):
        super().__init__("float32")
        self.root = root
        sys.path.insert(0, str(root))
        for name in ("boto3", "botocore", "botocore.exceptions", "tensorboardX"):
            sys.modules[name] = MagicMock()  # for downloads and curves
        sys.modules["botocore.exceptions"].ClientError = OSError

    def hello(self) -> dict:
        """What this is."""
        return super().hello() | {"commit": "SCALE_code, model.SCALE and BertAdam", "code": ""}

    def build(self, size: dict) -> None:
        """Their model: the released configuration, or in its proportions."""
        from model import until_config
        from model.SCALE import BertConfig, BertForMultiModalPreTraining
        from pytorch_pretrained_bert.optimization import BertAdam

        width, heads, layers = size["width"], size["heads"], size["layers"]
        share, released = width / 768, self.root / "config"
        config = BertConfig.from_json_file(
            str(released / "bert_base_6layer_6conect_capture_itp3va.json")
        )
        for name in ("hidden_size", "intermediate_size"):
            for key in (name, f"v_{name}"):
                setattr(config, key, round(getattr(config, key) * share))
        config.bi_hidden_size = round(config.bi_hidden_size * share)
        config.num_attention_heads, config.v_num_attention_heads = heads, min(heads, 8)
        config.num_hidden_layers = config.v_num_hidden_layers = config.co_num_layers = layers
        config.predict_feature, config.v_target_size = True, FEATURES["image"]
        cross = json.loads((self.root / "model/cross-base/cross_config.json").read_text())
        cross |= {"hidden_size": width, "num_attention_heads": min(heads, 8)}
        made = until_config.PretrainedConfig
        made.from_json_file = classmethod(lambda cls, _: cls.from_dict(cross))  # an absolute path
        with self.device:
            self.model = BertForMultiModalPreTraining(config).train()
        no_decay = ("bias", "LayerNorm.bias", "LayerNorm.weight")
        groups = [{"params": [], "weight_decay": decay} for decay in (0.01, 0.0)]
        for name, p in self.model.named_parameters():
            groups[any(ending in name for ending in no_decay)]["params"].append(p)
        self.optimizer = BertAdam(groups, lr=1e-4, warmup=0.1, t_total=1000)

    def step(self, step: int) -> None:
        """Masks, as ours draws them, then theirs."""
        import torch

        from m5lib.masking import mask
        from m5lib.modalities import MODALITIES

        drawn = torch.Generator(self.device).manual_seed(step)
        masked, targets = mask(self.batch, Words(), drawn)
        given, labels = {}, {}
        for name, row in MODALITIES.items():
            stream, target = masked.streams[name], targets[name]
            count, length = stream.valid.shape
            tokens = stream.tokens.new_zeros(count, row.slots, *stream.tokens.shape[2:])
            tokens[:, :length] = stream.tokens
            there = torch.zeros(count, row.slots, dtype=torch.long, device=self.device)
            there[:, :length] = stream.valid
            there |= 1 - there[:, :1]  # an absent one is zeros that all attend to
            label = torch.full_like(there, -1)
            words = row.kind == "words"
            label[target.product, target.token] = target.value if words else 1
            given[name] = tokens, there
            labels[name] = [label] if words else [label[:, 1:], tokens[:, 1:]]
        boxes = torch.zeros(count, MODALITIES["image"].slots, 5, device=self.device)
        boxes[:, : masked.streams["image"].boxes.shape[1]] = masked.streams["image"].boxes
        order = ("text", "table", "image", "video", "audio")
        tokens, there = zip(*(given[name] for name in order), strict=True)
        kinds = [torch.zeros_like(x) for x in tokens[:2]]
        goals = [x for name in order for x in labels[name]]
        losses = self.model(*tokens, boxes, *kinds, *there, *goals)
        loss = sum(losses)
        loss.backward()
        loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()


# --- the process that asks ------------------------------------------------------------------------


class Code:
    """A checkout, in a process of its own."""

    def __init__(self, root: Path, precision: str, authors: Path | None = None):
        self.root, self.precision, self.authors, self.process = root, precision, authors, None
        self.made = self.ask("hello") | {"peak": self.ask("peak")}

    def ask(self, name: str, **given) -> dict:
        """The answer to a question, the name of a method of :class:`Worker`."""
        if self.process is None:
            command = [sys.executable, __file__, "--worker", "--precision", self.precision]
            command += ["--authors", str(self.authors)] if self.authors else []
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            environment = os.environ | {"PYTHONPATH": str(self.root)}
            self.process = subprocess.Popen(command, env=environment, cwd=self.root, **pipes)
        print(json.dumps([name, given]), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("="):
                return json.loads(line[1:])
        raise RuntimeError(f"a worker ended while it was asked to {name}: see above")

    def close(self) -> None:
        """End it; the next question starts it again."""
        self.process.stdin.close()
        self.process.wait()
        self.process = None


def measure(codes: dict[str, Code], cases: list[dict], rounds: int, apart: bool) -> list[dict]:
    """A row for each case and code, which take turns."""
    blocks = {(n, name): [] for n, _ in enumerate(cases) for name in codes}
    for turn in range(rounds):
        for name, code in codes.items():
            for n, case in enumerate(cases):
                begun = code.ask("start", **case | {"size": (SIZES | QUICK)[case["size"]]})
                done = begun if "error" in begun else begun | code.ask("run")
                if turn == rounds - 1 and not case["micro"] and code.authors is None:
                    done |= {} if "error" in begun else code.ask("linear")
                blocks[n, name].append(done)
            if apart:
                code.close()
    rows = []
    for n, case in enumerate(cases):
        some = [
            row_of(name, case, blocks[n, name], code.made["peak"]["flops"])
            for name, code in codes.items()
        ]
        for row in some[1:] if all("seconds" in row for row in some) else ():
            for key, ratio in (("seconds", "ratio"), ("processor_seconds", "processor_ratio")):
                row[ratio] = round(row[key] / some[0][key], 2)  # so many times as fast is this code
        rows += some
        for row in some:
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def row_of(name: str, case: dict, blocks: list[dict], peak: float) -> dict:
    """What the blocks of a code come to."""
    row, last = {"of": name} | case, blocks[-1]
    if any("error" in block for block in blocks):
        return row | {"error": "out of memory"}
    seconds, host = (median(block[key] for block in blocks) for key in ("seconds", "host"))
    row |= {"weights": last["weights"], "tokens": last["tokens"], "seconds": round(seconds, 4)}
    row |= {"processor_seconds": round(host, 4)}
    row |= {"products_per_second": round(case["products"] / seconds, 1)}
    row |= {"memory_gib": round(max(block["memory"] for block in blocks), 2)}
    if "linear" in last:
        row["mfu"] = round(last["flops"] / seconds / peak, 3)
        row["linear_share"] = round(last["linear"] / last["all"], 3)
        row["linear_of_peak"] = round(last["linear_flops"] / last["linear"] / peak, 3)
    return row


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--authors", type=Path, help="the authors' code, measured beside this one")
    parser.add_argument("--float32", action="store_true", help="this code in float32 too")
    parser.add_argument("--variants", nargs="*", default=VARIANTS, help="which batches")
    parser.add_argument("--products", type=int, help="of a step, instead of the usual")
    parser.add_argument("--micro", type=int, default=0, help="so many of them at a time")
    parser.add_argument("--apart", action="store_true", help="end each code after its turn: memory")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--only", default="", help="the sizes with this in their name")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of each code; the median counts"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run, which is not written")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        authors = given.authors
        return (Authors(authors) if authors else Worker(given.precision)).answer()
    codes, begun = {"this": Code(ROOT, given.precision)}, time.monotonic()
    codes |= {"float32": Code(ROOT, "float32")} if given.float32 else {}
    codes |= {"before": Code(given.before.resolve(), given.precision)} if given.before else {}
    codes |= {"authors": Code(ROOT, "", given.authors.resolve())} if given.authors else {}
    made = codes["this"].made
    sizes = QUICK if given.quick else [name for name in SIZES if given.only in name]
    rows = []
    for size in sizes:
        counts = [given.products] if given.products else PRODUCTS[made["kind"]][size]
        cases = [(count, variant) for count in counts for variant in given.variants]
        cases = [dict(size=size, products=p, variant=v, micro=given.micro) for p, v in cases]
        rows += measure(codes, cases, given.rounds, given.apart)
    if given.quick:
        return
    about = {name: code.made for name, code in codes.items()}
    about["wall_seconds"] = round(time.monotonic() - begun, 1)
    every = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {}
    runs = every.setdefault(made["device"], [])
    same = [(row["of"], row["size"], row["products"], row["variant"], row["micro"]) for row in rows]
    for run in runs:  # what is measured anew takes the place of what was
        keys = ("of", "size", "products", "variant", "micro")
        run["rows"] = [row for row in run["rows"] if tuple(row[key] for key in keys) not in same]
    runs[:] = [run for run in runs if run["rows"]]
    runs.append({"provenance": about, "rows": rows})
    write(given.out, every)


def write(path: Path, every: dict) -> None:
    """JSON with a row to a line."""
    parts = []
    for device, runs in every.items():
        found = []
        for run in runs:
            lines = ",\n".join("  " + json.dumps(row) for row in run["rows"])
            made = json.dumps(run["provenance"])
            found.append(f'{{"provenance": {made}, "rows": [\n{lines}\n ]}}')
        parts.append(f" {json.dumps(device)}: [{', '.join(found)}]")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
