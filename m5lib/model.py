"""Embeddings -> stages -> named outputs: one forward for every row of the zoo."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin, snapshot_download
from jaxtyping import Bool, Float
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from m5lib.layers import AttentionBlock, Whitening
from m5lib.masking import Target
from m5lib.modalities import MODALITIES
from m5lib.spec import Spec, Stage
from m5lib.streams import Batch, Stream, computed, impute, load_tokenizer, named

#: Settings of the extractors that the model was trained with, beside its weights.
EXTRACTORS = "preprocessor_config.json"
States = dict[str, Float[Tensor, "B L D"]]


@dataclass(frozen=True)
class Output:
    """Everything the model computed, by name; dicts are keyed by modality in the table's order.

    Attributes:
        valid: (B, L) which tokens are there.
        embedded: (B, L, D) tokens before any stage.
        encoded: (B, L, D) after the last stage before the fusion, where each modality has read only
            itself (for a model that
            starts with a fusion: ``embedded``).
        pooled: (B, D) summary before the fusion, what the contrast compares; (B, E) where
            ``Spec.projection`` is E.
        fused: (B, L, D) after the last stage.
        summary: (B, D) first fused token.
    """

    valid: Mapping[str, Bool[Tensor, "B L"]]
    embedded: States
    encoded: States
    pooled: Mapping[str, Float[Tensor, "B E"]]
    fused: States
    summary: Mapping[str, Float[Tensor, "B D"]]

    @property
    def presence(self) -> Bool[Tensor, "B M"]:
        """Which modalities each product has."""
        return torch.stack([valid[:, 0] for valid in self.valid.values()], dim=1)


class Embedding(nn.Module):
    """Tokens of one modality (or of a group of ``Spec.share``) -> (B, L, D): word embedding or
    linear map, plus position (index or box) and type, normalised."""

    def __init__(self, names: Sequence[str], spec: Spec, words: nn.Embedding | None):
        super().__init__()
        rows = [MODALITIES[name] for name in names]
        self.words, self.position, self.kind = words, None, None
        if words is None:
            self.project = nn.Linear(dict(spec.widths)[names[0]], spec.width)
        self.by_index = rows[0].position == "index"
        if self.by_index:
            self.position = nn.Embedding(max(row.slots for row in rows), spec.width)
        elif spec.boxes:
            self.position = nn.Linear(5, spec.width)
        if spec.types == "all" or (spec.types == "words" and words is not None):
            self.kind = nn.Embedding(1, spec.width)
        self.norm = nn.LayerNorm(spec.width, eps=spec.eps)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, stream: Stream) -> Float[Tensor, "B L D"]:
        """Embed a stream; also of its padding, which nobody reads."""
        x = self.project(stream.tokens) if self.words is None else self.words(stream.tokens)
        if self.by_index:
            x = x + self.position(torch.arange(x.shape[1], device=x.device))
        elif self.position is not None:
            x = x + self.position(stream.boxes)
        if self.kind is not None:
            x = x + self.kind.weight[0]
        return self.dropout(self.norm(x))


class Head(nn.Module):
    """Masked-task head (released layout): linear, GELU, norm, then to features or classes, or to
    words through the tied word embeddings."""

    def __init__(self, name: str, spec: Spec, words: nn.Embedding | None):
        super().__init__()
        self.transform = nn.Sequential(
            nn.Linear(spec.width, spec.width), nn.GELU(), nn.LayerNorm(spec.width, eps=spec.eps)
        )
        self.words = words
        if words is None:
            self.features = nn.Linear(spec.width, (dict(spec.widths) | dict(spec.classes))[name])
        else:
            self.bias = nn.Parameter(torch.zeros(spec.vocabulary))

    def forward(self, states: Float[Tensor, "*S D"]) -> Float[Tensor, "*S F"]:
        """(S, D) -> (S, V) logits of words, (S, F) features, or logits of classes."""
        states = self.transform(states)
        return (
            self.features(states)
            if self.words is None
            else F.linear(states, self.words.weight, self.bias)
        )


class Stack(nn.Module):
    """The blocks of one stage: for each set of weights, its layers and (pre-norm) a final norm."""

    def __init__(self, stage: Stage, spec: Spec):
        super().__init__()
        self.stage = stage
        names = stage.takes(spec.modalities)
        owners = {stage.owner(name): stage.block_of(name) for name in reversed(names)}
        owners = {stage.owner(name): owners[stage.owner(name)] for name in names}
        self.blocks = nn.ModuleDict(
            {
                owner: nn.ModuleList(AttentionBlock(spec.width, block) for _ in range(stage.layers))
                for owner, block in owners.items()
            }
        )
        self.norms = nn.ModuleDict(
            {
                owner: nn.LayerNorm(spec.width, eps=block.eps)
                if stage.final_norm and block.norm == "pre"
                else nn.Identity()
                for owner, block in owners.items()
            }
        )
        # a vector per modality and place, not per place in the concatenation: neither padding nor
        # the order of streams moves it
        placed = names if stage.positions else ()
        self.positions = nn.ModuleDict(
            {name: nn.Embedding(MODALITIES[name].slots, spec.width) for name in placed}
        )

    def forward(
        self,
        states: States,
        valid: Mapping[str, Tensor],
        wanted: Mapping[str, Tensor] | None = None,
    ) -> States:
        """States of every modality -> states of every modality; see
        :meth:`Model.forward_from_embeddings` for ``wanted``."""
        taken = {name: states[name] for name in self.stage.takes(states)}
        if not taken:
            return states
        if self.positions:
            taken = {
                name: x + self.positions[name].weight[: x.shape[1]] for name, x in taken.items()
            }
        here = {name: valid[name] for name in taken}
        if self.stage.kind == "joint":
            return {**states, **self._joint(taken, here, wanted)}
        return {
            **states,
            **{"solo": self._solo, "cross": self._cross}[self.stage.kind](taken, here),
        }

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
        context, readable = (
            torch.cat([states[o] for o in others], 1),
            torch.cat([valid[o] for o in others], 1),
        )
        return self._block(name, layer)(states[name], readable, context)

    def _joint(self, states, valid, wanted=None):
        x, readable = torch.cat(list(states.values()), 1), torch.cat(list(valid.values()), 1)
        *blocks, last = self.blocks["joint"]
        for block in blocks:
            x = block(x, readable)
        if wanted is None:
            x = last(x, readable)
        else:
            chosen = [
                wanted.get(name, torch.zeros_like(mask)).clone() for name, mask in valid.items()
            ]
            for mask in chosen:
                mask[:, 0] = True
            x = _only_at(torch.cat(chosen, 1), last, x, readable)
        parts = self.norms["joint"](x).split([s.shape[1] for s in states.values()], dim=1)
        return dict(zip(states, parts, strict=True))

    def _block(self, name: str, layer: int) -> AttentionBlock:
        return self.blocks[self.stage.owner(name)][layer]

    def _finish(self, states):
        return {name: self.norms[self.stage.owner(name)](x) for name, x in states.items()}


def _only_at(
    wanted: Bool[Tensor, "B L"],
    block: AttentionBlock,
    x: Float[Tensor, "B L D"],
    readable: Bool[Tensor, "B L"],
) -> Tensor:
    """The block at the wanted tokens, which read all: theirs are moved to the front, and the result
    back; zeros elsewhere."""
    place = wanted.int().argsort(dim=1, descending=True, stable=True)[:, : int(wanted.sum(1).max())]
    place = place[..., None].expand(-1, -1, x.shape[-1])
    found = block(x.gather(1, place), readable, x)
    return found.new_zeros(x.shape).scatter(1, place, found)


class Model(nn.Module, ModelHubMixin, library_name="m5lib", tags=["e-commerce", "multimodal"]):
    """A model of the zoo, built from its :class:`~m5lib.spec.Spec`.

    An absent modality, and padding, take part in nothing: no token reads them, they are in no mean,
    no pair and no loss. What the model computes *at* such positions is finite and meaningless.
    (With ``Spec.missing="impute"`` an absent modality is first replaced by zeros that are there.)
    """

    def __init__(self, spec: Spec):
        super().__init__()
        if not spec.modalities:
            raise ValueError("the spec has no modalities yet: call spec.fit(streams)")
        if spec.missing == "impute" and not spec.empty:
            raise ValueError(
                'missing="impute" has to know the word pieces of an empty string: call spec.fit(streams)'  # noqa: E501
            )
        self.spec = spec
        #: What turns products into streams, to travel with the weights: the tokenizer, and by
        #: modality the settings of its extractor (m5lib.data.store.settings).
        self.tokenizer, self.extractors = None, {}
        objective, names = spec.objective, spec.modalities
        groups = {
            spec.owner(name): [n for n in names if spec.owner(n) == spec.owner(name)]
            for name in names
        }
        worded = [name for name in names if MODALITIES[name].kind == "words"]
        words = nn.Embedding(spec.vocabulary, spec.width) if worded else None
        table = {owner: words if group[0] in worded else None for owner, group in groups.items()}
        self.embeddings = nn.ModuleDict(
            {owner: Embedding(group, spec, table[owner]) for owner, group in groups.items()}
        )
        self.stages = nn.ModuleList(Stack(stage, spec) for stage in spec.stages)
        self.heads = nn.ModuleDict(
            {
                owner: Head(group[0], spec, table[owner])
                for owner, group in groups.items()
                if objective.tasks(group)
            }
        )
        self.matchers = nn.ModuleDict(
            {
                name: nn.Linear(spec.width, 1)
                for name in names
                if name in objective.matching and len(names) > 1
            }
        )
        contrasted = objective.contrast != "none" and len(names) > 1
        projected = spec.projection if contrasted else 0
        self.poolers = nn.ModuleDict(
            {name: nn.Linear(spec.width, projected) for name in names if projected}
        )
        if objective.learn_temperature and contrasted:
            self.log_temperature = nn.Parameter(torch.tensor(objective.temperature).log())
        if contrasted and objective.contrast == "siglip":
            self.contrast_bias = nn.Parameter(torch.tensor(-10.0))
        if objective.harmony in ("free", "literal") and len(names) > 1:
            self.scores = nn.Parameter(torch.zeros(len(names), len(names)))
        # of the read-out, fitted after training: no loss sees it
        width = {"pooled": projected or spec.width, "embedded": spec.width}
        self.whitening = nn.ModuleDict(
            {
                part: nn.ModuleDict({name: Whitening(width[part]) for name in names})
                for part in width
            }
        )
        self.apply(_initialise)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """Of the contrast, learned or fixed."""
        if hasattr(self, "log_temperature"):
            return self.log_temperature.exp()
        return torch.tensor(
            self.spec.objective.temperature, dtype=torch.float64
        )  # takes the type and device of what it divides

    @property
    def fusion(self) -> int:
        """Index of the first stage in which all modalities read each other."""
        fused = [stage.kind != "solo" and not stage.only for stage in self.spec.stages]
        return fused.index(True) if any(fused) else len(fused)

    def embed(self, batch: Batch) -> States:
        """Token embeddings of every modality, the input of :meth:`forward_from_embeddings`."""
        return {
            name: self.embeddings[self.spec.owner(name)](batch.streams[name])
            for name in self.spec.modalities
        }

    def encode(self, batch: Batch) -> Output:
        """What there is before the fusion: as :meth:`forward`, at a part of its cost, with
        ``fused`` and ``summary`` empty."""
        return self._encode(*self._inputs(batch))

    def _inputs(self, batch: Batch) -> tuple[States, dict[str, Tensor]]:
        if missing := set(self.spec.modalities) - set(batch.streams):
            raise ValueError(
                f"the batch has no stream {sorted(missing)}; build Streams with modalities "
                f"{self.spec.modalities}"
            )
        self._check(batch)
        if self.spec.missing == "impute":
            batch = impute(batch, self.spec.empty)
        return self.embed(batch), {name: batch.streams[name].valid for name in self.spec.modalities}

    def _check(self, batch: Batch) -> None:
        """Features must be of the extractor that the model was trained with, and as wide."""
        for name, width in self.spec.widths:
            made, own = batch.settings.get(name), self.extractors.get(name)
            read = batch.streams[name].tokens.shape[-1]
            if read != width or (made and own and computed(made) != computed(own)):
                raise ValueError(
                    f"{name} features of {named(made)}, {read} wide, but the model was trained on "
                    f"those of {named(own)}, {width} wide; extract with the model's own (the "
                    "parameter extractors), or train a model on these"
                )

    def _encode(self, embedded: States, valid: Mapping[str, Tensor]) -> Output:
        states = embedded
        for stage in self.stages[: self.fusion]:
            states = stage(states, valid)
        pool = {"first": first_token, "mean": mean_token}[self.spec.pool]
        pooled = {name: pool(x, valid[name]) for name, x in states.items()}
        if self.poolers:
            pooled = {
                name: self.poolers[name](x).relu() * valid[name][:, :1]
                for name, x in pooled.items()
            }
        return Output(valid, embedded, states, pooled, {}, {})

    def forward_from_embeddings(
        self,
        embedded: States,
        valid: Mapping[str, Bool[Tensor, "B L"]],
        wanted: Mapping[str, Bool[Tensor, "B L"]] | None = None,
    ) -> Output:
        """Run the stages on given embeddings, so that attribution can start from them.

        Args:
            wanted: which fused tokens will be read beside the first of each modality (``{}``:
                none); by default all. Where the last block
                is joint, it computes only these: ``Output.fused`` then means nothing elsewhere. The
                    same numbers for less work.
        """
        output = self._encode(embedded, valid)
        states, after = output.encoded, self.stages[self.fusion :]
        for stage in after:
            states = stage(states, valid, wanted if stage is after[-1] else None)
        return replace(
            output,
            fused=states,
            summary={name: first_token(x, valid[name]) for name, x in states.items()},
        )

    def forward(
        self, batch: Batch, wanted: Mapping[str, Bool[Tensor, "B L"]] | None = None
    ) -> Output:
        """The whole model on a batch that has every modality of the spec (as present or absent).
        See :class:`Output`, and :meth:`forward_from_embeddings` for ``wanted``."""
        return self.forward_from_embeddings(*self._inputs(batch), wanted)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What ``save_pretrained`` (of the mixin, which also pushes to a hub) writes:
        ``config.json``, the tokenizer, the extractors' settings, and ``model.safetensors``, the
        weights last: a folder that has them is complete."""
        (save_directory / "config.json").write_text(
            json.dumps(self.spec.to_dict(), indent=1) + "\n", encoding="utf-8"
        )
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
        (save_directory / EXTRACTORS).write_text(
            json.dumps(self.extractors, indent=1) + "\n", encoding="utf-8"
        )
        temporary = save_directory / "model.safetensors.tmp"
        save_model(self, str(temporary))
        os.replace(temporary, save_directory / "model.safetensors")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision,
        cache_dir,
        force_download,
        local_files_only,
        token,
        **unused,
    ) -> "Model":
        """What ``from_pretrained`` (a folder, or a repository on a hub) loads, in evaluation mode,
        with ``tokenizer`` and ``extractors``.

        Raises:
            FileNotFoundError: the folder lacks ``config.json`` or ``model.safetensors``.
            ValueError: the configuration has an unknown key, or the weights are of another width.
        """
        folder = Path(model_id)
        if not folder.is_dir():
            where = {"revision": revision, "cache_dir": cache_dir, "token": token}
            folder = Path(
                snapshot_download(
                    model_id,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    **where,
                )
            )
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).exists():
                raise FileNotFoundError(
                    f"{folder}: {name} is missing; expected a folder written by save_pretrained"
                )
        model = cls(
            Spec.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        )
        try:
            load_model(model, str(folder / "model.safetensors"))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"{folder}: model.safetensors does not fit config.json ({reason})"
            ) from None
        if (folder / "tokenizer_config.json").exists():
            model.tokenizer = load_tokenizer(folder)
        if (folder / EXTRACTORS).exists():
            model.extractors = json.loads((folder / EXTRACTORS).read_text(encoding="utf-8"))
        return model.eval()

    def predict(
        self, output: Output, targets: Mapping[str, Target]
    ) -> dict[str, Float[Tensor, "S F"]]:
        """Predictions of the masked tasks, at the masked positions only: (S, V) or (S, F). From the
        **fused** states (the released
        code reads the ones before the fusion: ``Objective.reads``)."""
        states, spec = getattr(output, self.spec.objective.reads), self.spec
        return {
            name: self.heads[spec.owner(name)](
                states[name][targets[name].product, targets[name].token]
            )
            for name in spec.objective.tasks(spec.modalities)
        }

    def match(self, output: Output) -> dict[str, Float[Tensor, " B"]]:
        """Logit, for each modality of ``Objective.matching``, that it belongs to the product:
        linear in its fused summary."""
        return {
            name: matcher(output.summary[name]).squeeze(-1)
            for name, matcher in self.matchers.items()
        }


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
