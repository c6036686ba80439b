"""Fine-tuning for classification: the paper's head, by the loop of :mod:`m5lib.pretrain`."""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m5lib.catalogue import DataError, Rows
from m5lib.data import write_json
from m5lib.embeddings import in_batches
from m5lib.files import reading, whole_file
from m5lib.model import Model
from m5lib.pretrain import Task, Training, batch_of, run_loop
from m5lib.streams import Batch, Streams


class Classifier(nn.Module):
    """The summaries of all modalities side by side -> ``hidden`` (1,024) -> classes, with dropout
    between and no nonlinearity.

    The released head; the paper's is a linear classifier on the fused features (section 5), which
    two linear layers are. A modality that a product lacks is zeros. The hidden vector is the
    fine-tuned retrieval feature.
    """

    def __init__(
        self, model: Model, labels: Sequence[str], hidden: int = 1024, dropout: float = 0.1
    ):
        super().__init__()
        self.model, self.labels = model, tuple(labels)
        self.hidden = nn.Linear(len(model.spec.modalities) * model.spec.width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, len(self.labels))
        for layer in (self.hidden, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B C"]]:
        """Hidden vectors and logits of the classes."""
        hidden = self.hidden(torch.cat(list(self.model(batch, wanted={}).summary.values()), dim=-1))
        return hidden, self.out(self.dropout(hidden))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model's files, ``labels.json`` and ``classifier.safetensors``."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        head = {"labels": self.labels, "dropout": self.dropout.p}
        write_json(folder / "labels.json", head)
        state = {n: p.detach().contiguous() for n, p in self.named_parameters()}
        own = {name: p for name, p in state.items() if not name.startswith("model.")}
        with whole_file(folder / "classifier.safetensors") as temporary:
            save_file(own, temporary)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Classifier":
        """Load what :meth:`save_pretrained` wrote, in evaluation mode. Raises as
        ``Model.from_pretrained``, and ``ValueError`` for files of the head."""
        path, model = Path(folder) / "classifier.safetensors", Model.from_pretrained(folder)
        with reading(path, "take weights that fit the model and labels.json"):
            weights = load_file(path)
            size = len(weights.get("hidden.bias", ()))
        with reading(path.with_name("labels.json")):
            head = json.loads(path.with_name("labels.json").read_text(encoding="utf-8"))
            classifier = cls(model, head["labels"], size, head["dropout"])
        with reading(path, "take weights that fit the model and labels.json"):
            missing, unexpected = classifier.load_state_dict(weights, strict=False)
            # the model's own weights are there already
            if wrong := [name for name in missing if not name.startswith("model.")] + unexpected:
                raise ValueError(f"lacks or does not belong: {wrong}")
        return classifier.eval()


def labels_of(streams: Streams) -> tuple[str, ...]:
    """The classes of the ``classifier`` split, sorted."""
    labels = streams.catalogue.labels[streams.catalogue.split("classifier")]
    return tuple(sorted({str(label) for label in labels if label is not None}))


def finetune(
    classifier: Classifier,
    streams: Streams,
    training: Training,
    directory: str | Path,
    stop_after: int | None = None,
) -> list[dict]:
    """Fine-tune the whole network in place on the labelled products of the ``classifier`` split.
    Released: 1e-4, batch 64.

    Resumes, writes and returns what :func:`m5lib.pretrain.pretrain` does; the history has the
    batch's ``accuracy``. Raises ``DataError``: no product has a label that the classifier knows.
    """
    catalogue, known = streams.catalogue, {label: n for n, label in enumerate(classifier.labels)}
    numbers = [None if label is None else known.get(str(label)) for label in catalogue.labels]
    rows = catalogue.split("classifier")
    rows = np.array([row for row in rows if numbers[row] is not None], dtype=np.int64)
    if not len(rows):
        lacks = f"no product of the classifier split has one of the {len(known)} labels"
        raise DataError(f"{catalogue.name}: {lacks}; nothing to fine-tune on")
    spec = classifier.model.spec

    def losses(batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch.to(generator.device)
        labels = torch.tensor([numbers[row] for row in batch.rows], device=generator.device)
        logits = classifier(batch)[1].float()
        right = logits.argmax(-1) == labels
        return F.cross_entropy(logits, labels), {"accuracy": right.float().mean()}

    identity = {"spec": spec.to_dict(), "labels": classifier.labels}
    identity |= {"data": catalogue.fingerprint, "rows": len(rows)}
    task = Task("fine-tuning", rows, losses, identity, partial(batch_of, streams, spec))
    return run_loop(classifier, task, training, Path(directory), stop_after)


@torch.no_grad()
def classify(
    classifier: Classifier, streams: Streams, rows: Rows, modalities: Iterable[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of products, given only some of their modalities (by default all), in the order of ``rows``:
    hidden vectors (N, 1024) float32, and the five likeliest labels (N, 5), best first (fewer, if
    there are fewer classes)."""
    vectors, best = [], []
    for batch in in_batches(classifier, streams, rows, modalities):
        hidden, logits = classifier(batch)
        vectors.append(hidden.float().cpu())
        best.append(logits.topk(min(5, logits.shape[-1])).indices.cpu())
    labels = np.array(classifier.labels, dtype=object)
    return torch.cat(vectors).numpy(), labels[torch.cat(best).numpy()]
