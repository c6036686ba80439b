"""Fine-tuning for classification: the paper's head on the whole network, trained by the loop of
:mod:`m5lib.pretrain`."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m5lib.catalogue import DataError, Rows
from m5lib.model import Model
from m5lib.pretrain import Training, batch_of, run_loop
from m5lib.streams import Batch, Streams


class Classifier(nn.Module):
    """The summaries of all modalities side by side -> ``hidden`` (1,024) -> classes, with dropout
    between and no nonlinearity.

    The released head; the paper speaks of a linear classifier on the fused features (section 5),
    which two linear layers are. A modality that a product lacks is zeros. The hidden vector is the
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
        """Write the model as its own ``save_pretrained`` does, and beside it ``labels.json`` and
        ``classifier.safetensors``."""
        folder = Path(folder)
        own = {
            name: p.detach().contiguous()
            for name, p in self.named_parameters()
            if not name.startswith("model.")
        }
        self.model.save_pretrained(folder)
        head = {"labels": self.labels, "dropout": self.dropout.p}
        (folder / "labels.json").write_text(
            json.dumps(head, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        save_file(own, folder / "classifier.safetensors")
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Classifier":
        """Load what :meth:`save_pretrained` wrote, in evaluation mode. Raises ``FileNotFoundError``
        where a file is missing."""
        folder = Path(folder)
        weights = load_file(folder / "classifier.safetensors")
        head = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        found = cls(
            Model.from_pretrained(folder),
            head["labels"],
            len(weights["hidden.bias"]),
            head["dropout"],
        )
        found.load_state_dict(weights, strict=False)
        return found.eval()


def labels_of(streams: Streams) -> tuple[str, ...]:
    """The classes of the ``classifier`` split, sorted."""
    labels = streams.catalogue.labels[streams.catalogue.split("classifier")]
    return tuple(sorted({str(label) for label in labels if label is not None}))


def finetune(
    classifier: Classifier,
    streams: Streams,
    training: Training,
    directory: str | Path,
    rows: np.ndarray | None = None,
    stop_after: int | None = None,
    watch: Callable[[nn.Module], dict] | None = None,
) -> list[dict]:
    """Fine-tune the whole network in place on the labelled products of the given rows (by default
    the ``classifier`` split).

    Resumes, writes and returns what :func:`m5lib.pretrain.pretrain` does; the history has the
    batch's ``accuracy``. Released: 1e-4, batch 64.

    Raises:
        DataError: no product has a label that the classifier knows.
    """
    catalogue, known = streams.catalogue, {label: n for n, label in enumerate(classifier.labels)}
    rows = catalogue.split("classifier") if rows is None else np.asarray(rows)
    rows = np.array(
        [
            row
            for row in rows
            if str(catalogue.labels[row]) in known and catalogue.labels[row] is not None
        ],
        dtype=np.int64,
    )
    if not len(rows):
        raise DataError(
            f"{catalogue.name}: no product of the classifier split has one of the {len(known)} "
            "labels; nothing to fine-tune on"
        )

    def losses(chosen: np.ndarray, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch_of(streams, chosen, generator.device, classifier.model.spec)
        labels = torch.tensor(
            [known[str(catalogue.labels[row])] for row in chosen], device=generator.device
        )
        logits = classifier(batch)[1].float()
        return F.cross_entropy(logits, labels), {
            "accuracy": (logits.argmax(-1) == labels).float().mean()
        }

    identity = {
        "spec": classifier.model.spec.to_dict(),
        "labels": classifier.labels,
        "data": catalogue.fingerprint,
        "rows": len(rows),
    }
    return run_loop(
        classifier,
        losses,
        rows,
        training,
        Path(directory),
        identity,
        "fine-tuning",
        stop_after,
        watch,
    )


@torch.no_grad()
def classify(
    classifier: Classifier,
    streams: Streams,
    rows: Rows,
    modalities: Iterable[str] | None = None,
    batch_size: int = 128,
) -> tuple[np.ndarray, np.ndarray]:
    """Fine-tuned features and predicted labels of products, given only some of their modalities (by
    default all).

    Returns:
        hidden vectors (N, 1024) float32 and the five likeliest labels (N, 5), best first (fewer, if
        there are fewer classes), in the order of ``rows``.
    """
    device, was_training, rows = (
        next(classifier.parameters()).device,
        classifier.training,
        np.asarray(rows),
    )
    vectors, best = [], []
    classifier.eval()
    for start in range(0, len(rows), batch_size):
        batch = streams.batch(rows[start : start + batch_size]).to(device)
        hidden, logits = classifier(batch if modalities is None else batch.only(modalities))
        vectors.append(hidden.float().cpu())
        best.append(logits.topk(min(5, logits.shape[-1])).indices.cpu())
    classifier.train(was_training)
    return torch.cat(vectors).numpy(), np.array(classifier.labels, dtype=object)[
        torch.cat(best).numpy()
    ]
