"""Embeddings -> stages -> named outputs: one forward for every row of the zoo."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from m5lib.layers import AttentionBlock, Whitening
from m5lib.masking import Target
from m5lib.modalities import MODALITIES
from m5lib.streams import Batch, Stream
from m5lib.zoo import Spec, Stage

States = dict[str, Float[Tensor, "B L D"]]


@dataclass(frozen=True)
class Output:
    """Everything the model computed, by name; dicts are keyed by modality in the table's order.

    Attributes:
        valid: (B, L) which tokens are there.
        embedded: (B, L, D) tokens before any stage.
        encoded: (B, L, D) after the last stage before the fusion, where each modality has read only itself (for a model that
            starts with a fusion: ``embedded``).
        pooled: (B, D) summary before the fusion, what the contrast compares.
        fused: (B, L, D) after the last stage.
        summary: (B, D) first fused token.
    """

    valid: Mapping[str, Bool[Tensor, "B L"]]
    embedded: States
    encoded: States
    pooled: Mapping[str, Float[Tensor, "B D"]]
    fused: States
    summary: Mapping[str, Float[Tensor, "B D"]]

    @property
    def presence(self) -> Bool[Tensor, "B M"]:
        """Which modalities each product has."""
        return torch.stack([valid[:, 0] for valid in self.valid.values()], dim=1)


class Embedding(nn.Module):
    """Tokens of one modality -> (B, L, D): word embedding or linear map, plus position (index or box), normalised."""

    def __init__(self, name: str, spec: Spec, words: nn.Embedding | None):
        super().__init__()
        row = MODALITIES[name]
        self.words = words
        if words is None:
            self.project = nn.Linear(dict(spec.widths)[name], spec.width)
        if row.position == "box":
            self.position = nn.Linear(5, spec.width)
        else:
            self.position = nn.Embedding(row.max_tokens + (row.kind == "features"), spec.width)
        self.norm = nn.LayerNorm(spec.width, eps=1e-6)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, stream: Stream) -> Float[Tensor, "B L D"]:
        """Embed a stream; also of its padding, which nobody reads."""
        x = self.project(stream.tokens) if self.words is None else self.words(stream.tokens)
        if stream.boxes is not None:
            x = x + self.position(stream.boxes)
        else:
            x = x + self.position(torch.arange(x.shape[1], device=x.device))
        return self.dropout(self.norm(x))


class Head(nn.Module):
    """Masked-task head (released layout): linear, GELU, norm, then to features, or to words through the tied word embeddings."""

    def __init__(self, name: str, spec: Spec, words: nn.Embedding | None):
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(spec.width, spec.width), nn.GELU(), nn.LayerNorm(spec.width, eps=1e-6))
        self.words = words
        if words is None:
            self.features = nn.Linear(spec.width, dict(spec.widths)[name])
        else:
            self.bias = nn.Parameter(torch.zeros(spec.vocabulary))

    def forward(self, states: Float[Tensor, "S D"]) -> Float[Tensor, "S F"]:
        """(S, D) -> (S, V) logits or (S, F) features."""
        states = self.transform(states)
        return self.features(states) if self.words is None else F.linear(states, self.words.weight, self.bias)


class Stack(nn.Module):
    """The blocks of one stage: for each set of weights, its layers and (pre-norm) a final norm."""

    def __init__(self, stage: Stage, spec: Spec):
        super().__init__()
        self.stage = stage
        owners = dict.fromkeys(stage.owner(name) for name in spec.modalities)
        self.blocks = nn.ModuleDict(
            {owner: nn.ModuleList(AttentionBlock(spec.width, stage.block) for _ in range(stage.layers)) for owner in owners}
        )
        normed = stage.final_norm and stage.block.norm == "pre"
        self.norms = nn.ModuleDict({owner: nn.LayerNorm(spec.width, eps=stage.block.eps) if normed else nn.Identity() for owner in owners})

    def forward(self, states: States, valid: Mapping[str, Tensor]) -> States:
        """States of every modality -> states of every modality."""
        return {"solo": self._solo, "cross": self._cross, "joint": self._joint}[self.stage.kind](states, valid)

    def _solo(self, states, valid):
        for layer in range(self.stage.layers):
            states = {name: self._block(name, layer)(x, valid[name]) for name, x in states.items()}
        return self._finish(states)

    def _cross(self, states, valid):
        for layer in range(self.stage.layers):
            states = {name: self._read_others(name, layer, states, valid) for name in states}
        return self._finish(states)

    def _read_others(self, name, layer, states, valid):
        others = [other for other in states if other != name]
        if not others:
            return self._block(name, layer)(states[name], valid[name])
        context, readable = torch.cat([states[o] for o in others], 1), torch.cat([valid[o] for o in others], 1)
        return self._block(name, layer)(states[name], readable, context)

    def _joint(self, states, valid):
        x, readable = torch.cat(list(states.values()), 1), torch.cat(list(valid.values()), 1)
        for block in self.blocks["joint"]:
            x = block(x, readable)
        parts = self.norms["joint"](x).split([s.shape[1] for s in states.values()], dim=1)
        return dict(zip(states, parts, strict=True))

    def _block(self, name: str, layer: int) -> AttentionBlock:
        return self.blocks[self.stage.owner(name)][layer]

    def _finish(self, states):
        return {name: self.norms[self.stage.owner(name)](x) for name, x in states.items()}


class Model(nn.Module):
    """A model of the zoo, built from its :class:`~m5lib.zoo.Spec`.

    An absent modality, and padding, take part in nothing: no token reads them, they are in no mean, no pair and no loss. What
    the model computes *at* such positions is finite and meaningless.
    """

    def __init__(self, spec: Spec):
        super().__init__()
        if not spec.modalities:
            raise ValueError("the spec has no modalities yet: call spec.fit(streams)")
        self.spec = spec
        worded = [name for name in spec.modalities if MODALITIES[name].kind == "words"]
        words = nn.Embedding(spec.vocabulary, spec.width) if worded else None
        table = {name: words if name in worded else None for name in spec.modalities}
        self.embeddings = nn.ModuleDict({name: Embedding(name, spec, table[name]) for name in spec.modalities})
        self.stages = nn.ModuleList(Stack(stage, spec) for stage in spec.stages)
        self.heads = nn.ModuleDict()
        if spec.objective.masked:
            self.heads.update({name: Head(name, spec, table[name]) for name in spec.modalities})
        contrasted = spec.objective.contrast != "none" and len(spec.modalities) > 1
        start = torch.tensor(spec.objective.temperature).log()
        if spec.objective.learn_temperature and contrasted:
            self.log_temperature = nn.Parameter(start)
        else:
            self.register_buffer("log_temperature", start)
        # of the read-out, fitted after training: no loss sees it
        self.whitening = nn.ModuleDict(
            {part: nn.ModuleDict({name: Whitening(spec.width) for name in spec.modalities}) for part in ("pooled", "embedded")}
        )
        self.apply(_initialise)

    @property
    def fusion(self) -> int:
        """Index of the first stage in which modalities read each other."""
        kinds = [stage.kind for stage in self.spec.stages]
        return next((i for i, kind in enumerate(kinds) if kind != "solo"), len(kinds))

    def embed(self, batch: Batch) -> States:
        """Token embeddings (B, L, D) of each modality, the input of :meth:`forward_from_embeddings`."""
        return {name: self.embeddings[name](batch.streams[name]) for name in self.spec.modalities}

    def forward_from_embeddings(self, embedded: States, valid: Mapping[str, Bool[Tensor, "B L"]]) -> Output:
        """Run the stages on given embeddings, so that attribution can start from them."""
        states = encoded = embedded
        for number, stage in enumerate(self.stages):
            encoded = states if number == self.fusion else encoded
            states = stage(states, valid)
        encoded = states if self.fusion == len(self.stages) else encoded
        pool = {"first": first_token, "mean": mean_token}[self.spec.pool]
        pooled = {name: pool(x, valid[name]) for name, x in encoded.items()}
        summary = {name: first_token(x, valid[name]) for name, x in states.items()}
        return Output(valid, embedded, encoded, pooled, states, summary)

    def forward(self, batch: Batch) -> Output:
        """The whole model on a batch that has every modality of the spec (as present or absent). See :class:`Output`."""
        if missing := set(self.spec.modalities) - set(batch.streams):
            raise ValueError(f"the batch has no stream {sorted(missing)}; build Streams with modalities {self.spec.modalities}")
        return self.forward_from_embeddings(self.embed(batch), {n: batch.streams[n].valid for n in self.spec.modalities})

    def save_pretrained(self, folder: str | Path, tokenizer=None) -> Path:
        """Write ``config.json``, the tokenizer and ``model.safetensors``, the weights last: a folder that has them is complete."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.spec.to_dict(), indent=1) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        temporary = folder / "model.safetensors.tmp"
        save_model(self, str(temporary))
        os.replace(temporary, folder / "model.safetensors")
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Model":
        """Load what :meth:`save_pretrained` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: the folder lacks ``config.json`` or ``model.safetensors``.
            ValueError: the configuration has an unknown key.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder}: {name} is missing; expected a folder written by save_pretrained")
        model = cls(Spec.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
        load_model(model, str(folder / "model.safetensors"))
        return model.eval()

    def predict(self, output: Output, targets: Mapping[str, Target]) -> dict[str, Float[Tensor, "S F"]]:
        """Predictions of the masked tasks from the **fused** states, at the masked positions only: (S, V) or (S, F)."""
        return {name: head(output.fused[name][targets[name].product, targets[name].token]) for name, head in self.heads.items()}


def first_token(x: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """The summary token; zero where the modality is absent."""
    return x[:, 0] * valid[:, :1]


def mean_token(x: Float[Tensor, "B L D"], valid: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """The mean of the tokens that are there; zero where the modality is absent."""
    weight = valid[..., None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def _initialise(module: nn.Module) -> None:
    """BERT's: weights from a normal with deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
