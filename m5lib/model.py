"""Embeddings -> stages -> named outputs: one forward for every row of the zoo.

A model is its :class:`~m5lib.spec.Spec`, a list of stages: no subclass per baseline. Every
intermediate has a name (:class:`Output`), attention weights too when asked. Its weights travel with
tokenizer, whitening and the extractors' settings.

>>> model = Model(scale(width=256).fit(streams))
>>> output = model(streams.batch(rows), attention=True)
>>> output.summary["text"].shape, output.attention[-1]["joint"][0].shape  # (B, D), (B, heads, L, L)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin, snapshot_download
from jaxtyping import Bool, Float
from safetensors.torch import load_model, save_file
from torch import Tensor, nn

from m5lib import simcl
from m5lib.files import reading, whole_file
from m5lib.layers import AttentionBlock, Packed, Places, Whitening, dropout, first_token, mean_token
from m5lib.masking import Target
from m5lib.modalities import MODALITIES
from m5lib.spec import Spec, Stage
from m5lib.streams import Batch, Stream, impute, load_tokenizer

#: Settings of the extractors that the model was trained with, beside its weights.
EXTRACTORS = "preprocessor_config.json"
States = dict[str, Float[Tensor, "B L D"]]
Marks = Mapping[str, Bool[Tensor, "B _"]]  # L of each stream its own
Weights = dict[str, list[Float[Tensor, "B _ _ _"]]]  # (B, heads, L, K) of each layer


@dataclass(frozen=True)
class Output:
    """Everything the model computed, by name; dicts are keyed by modality in the table's order.

    Attributes:
        valid: (B, L) which tokens are there.
        embedded: (B, L, D) tokens before any stage.
        encoded: (B, L, D) after the last stage before the fusion, where each modality has read only
            itself (for a model that starts with a fusion: ``embedded``).
        pooled: (B, D) summary before the fusion, what the contrast compares; (B, E) where
            ``Spec.projection`` is E.
        fused: (B, L, D) after the last stage.
        summary: (B, D) first fused token.
        attention: where asked, for each stage its layers' weights (B, heads, L, K), keyed by the
            modality that reads: itself (solo) or the other modalities, one after another (cross).
            A joint stage has one key, ``joint``: all its modalities read all.
    """

    valid: Marks
    embedded: States
    encoded: States
    pooled: Mapping[str, Float[Tensor, "B E"]]
    fused: States
    summary: Mapping[str, Float[Tensor, "B D"]]
    attention: tuple[Weights, ...] = ()

    @property
    def presence(self) -> Bool[Tensor, "B M"]:
        """Which modalities each product has."""
        return torch.stack([valid[:, 0] for valid in self.valid.values()], dim=1)


class Embedding(nn.Module):
    """Tokens of one modality (or a group of ``Spec.share``) -> (B, L, D): word embedding or linear
    map, plus position (index or box) and type, normalised."""

    def __init__(self, names: Sequence[str], spec: Spec, words: nn.Embedding | None):
        super().__init__()
        rows = [MODALITIES[name] for name in names]
        self.words, self.position, self.kind, self.rate = words, None, None, spec.dropout
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

    def forward(self, stream: Stream) -> Float[Tensor, "B L D"]:
        """Embed a stream; zeros where nothing is there."""
        shape = stream.valid.shape
        there = Places(stream.valid.flatten().nonzero().squeeze(1), shape.numel())
        tokens = there.take(stream.tokens.flatten(0, 1))
        x = self.project(tokens) if self.words is None else self.words(tokens)
        if self.by_index:
            x = x + self.position(there.index % shape[1])
        elif self.position is not None:
            x = x + self.position(there.take(stream.boxes.flatten(0, 1)))
        if self.kind is not None:
            x = x + self.kind.weight[0]
        x = dropout(self.norm(x), self.rate, self.training)
        return there.put(x).unflatten(0, shape)


class Head(nn.Module):
    """Masked-task head (released): linear, GELU, norm, then a linear map, or the tied words."""

    def __init__(self, name: str, spec: Spec, words: nn.Embedding | None):
        super().__init__()
        norm = nn.LayerNorm(spec.width, eps=spec.eps)
        self.transform = nn.Sequential(nn.Linear(spec.width, spec.width), nn.GELU(), norm)
        self.words = words
        if words is None:
            self.features = nn.Linear(spec.width, (dict(spec.widths) | dict(spec.classes))[name])
        else:
            self.bias = nn.Parameter(torch.zeros(spec.vocabulary))

    def forward(self, states: Float[Tensor, "*S D"]) -> Float[Tensor, "*S F"]:
        """(S, D) -> (S, V) logits of words, (S, F) features, or logits of classes."""
        states = self.transform(states)
        if self.words is None:
            return self.features(states)
        return F.linear(states, self.words.weight, self.bias)


class Stack(nn.Module):
    """The blocks of one stage: for each set of weights, its layers and (pre-norm) a final norm."""

    def __init__(self, stage: Stage, spec: Spec):
        super().__init__()
        self.stage, names, owners = stage, stage.takes(spec.modalities), {}
        for name in names:
            owners.setdefault(stage.owner(name), stage.block_of(name))
        self.blocks, self.norms, self.positions = (nn.ModuleDict() for _ in range(3))
        for owner, block in owners.items():
            layers = (AttentionBlock(spec.width, block) for _ in range(stage.layers))
            normed = stage.final_norm and block.norm == "pre"
            self.blocks[owner] = nn.ModuleList(layers)
            self.norms[owner] = nn.LayerNorm(spec.width, block.eps) if normed else nn.Identity()
        # a vector per modality and place: neither padding nor the order of streams moves it
        for name in names if stage.positions else ():
            self.positions[name] = nn.Embedding(MODALITIES[name].slots, spec.width)

    def forward(
        self, states: States, valid: Marks, wanted: Marks | None = None, seen=None, readable=None
    ) -> States:
        """States of every modality -> states of every modality; zeros where nothing is there.
        ``wanted`` as in :meth:`Model.forward_from_embeddings`; the attention weights are put into
        ``seen``, as ``Output.attention`` has them; of what is there only ``readable`` is read."""
        taken = {name: states[name] for name in self.stage.takes(states)}
        here = {name: valid[name] for name in taken}
        for name, positions in self.positions.items():
            taken[name] = taken[name] + positions.weight[: taken[name].shape[1]]
        if not taken or self.stage.kind != "joint":
            return {**states, **self._apart(taken, here, seen, readable or valid)}
        return {**states, **self._joint(taken, here, wanted, seen, readable)}

    def _apart(self, states: States, valid: Marks, seen: Weights | None, readable: Marks) -> States:
        """Each modality reads itself (solo, or nothing else is there) or the others, as they were
        before the layer (cross)."""
        crossing = self.stage.kind == "cross" and len(states) > 1
        own = {name: Packed(there, crossing or seen is not None) for name, there in valid.items()}
        x, read = {name: packed.pack(states[name]) for name, packed in own.items()}, {}
        others = {name: [n for n in states if n != name] for name in states if crossing}
        for name, rest in others.items():
            read[name] = Packed(torch.cat([readable[n] for n in rest], 1), whole=True)
        for layer in range(self.stage.layers):
            before, x = x, {}
            for name, packed in own.items():
                block, context = self.blocks[self.stage.owner(name)][layer], None
                if crossing:
                    padded = [own[n].pad(before[n]) for n in others[name]]
                    context = read[name].pack(torch.cat(padded, 1))
                weights = None if seen is None else seen.setdefault(name, [])
                x[name] = block(before[name], packed, context, read.get(name), weights)
        return {n: own[n].pad(self.norms[self.stage.owner(n)](x[n])) for n in own}

    def _joint(self, states: States, valid: Marks, wanted: Marks | None, seen, readable) -> States:
        """All read what is readable. Of the last layer only what is wanted is computed."""
        packed = Packed(torch.cat(list(valid.values()), 1), seen is not None)
        x = packed.pack(torch.cat(list(states.values()), 1))
        weights = None if seen is None else seen.setdefault("joint", [])
        some, read = None, packed
        if readable:
            some, read = packed.only(torch.cat([readable[n] for n in valid], 1))
        *blocks, last = self.blocks["joint"]
        for block in blocks:
            x = block(x, packed, some and some.take(x), read, weights)
        context = some.take(x) if some else x
        if wanted is None:
            x = last(x, packed, context, read, weights)
        else:
            marks = [wanted.get(n, torch.zeros_like(there)).clone() for n, there in valid.items()]
            for mark in marks:
                mark[:, 0] = True
            places, asked = packed.only(torch.cat(marks, 1))
            x, packed = last(places.take(x), asked, context, read), asked
        parts = packed.pad(self.norms["joint"](x)).split([s.shape[1] for s in states.values()], 1)
        return dict(zip(states, parts, strict=True))


class Model(nn.Module, ModelHubMixin, library_name="m5lib", tags=["e-commerce", "multimodal"]):
    """A model of the zoo, built from its :class:`~m5lib.spec.Spec`.

    An absent modality, and padding, take part in nothing: no token reads them, they are in no mean,
    no pair and no loss, and their states are zeros. (With ``Spec.missing="impute"`` an absent
    modality is first replaced by zeros that are there.)
    """

    def __init__(self, spec: Spec):
        super().__init__()
        if not spec.modalities:
            raise ValueError("the spec has no modalities yet: call spec.fit(streams)")
        if spec.missing == "impute" and not spec.empty:
            needs = "the word pieces of an empty string: call spec.fit(streams)"
            raise ValueError(f'missing="impute" has to know {needs}')
        self.spec = spec
        #: What turns products into streams, to travel with the weights: the tokenizer, and the
        #: settings of each modality's extractor (m5lib.data.extractors.described).
        self.tokenizer, self.extractors = None, {}
        objective, names, width = spec.objective, spec.modalities, spec.width
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(spec.owner(name), []).append(name)
        worded = [name for name in names if MODALITIES[name].kind == "words"]
        words = nn.Embedding(spec.vocabulary, width) if worded else None
        table = {owner: words if group[0] in worded else None for owner, group in groups.items()}
        embeddings = {owner: Embedding(g, spec, table[owner]) for owner, g in groups.items()}
        self.embeddings = nn.ModuleDict(embeddings)
        self.stages = nn.ModuleList(Stack(stage, spec) for stage in spec.stages)
        tasked = {owner: group[0] for owner, group in groups.items() if objective.tasks(group)}
        self.heads = nn.ModuleDict({o: Head(name, spec, table[o]) for o, name in tasked.items()})
        matched = [n for n in names if n in objective.matching and len(names) > 1]
        self.matchers = nn.ModuleDict({name: nn.Linear(width, 1) for name in matched})
        projected = spec.projection if spec.contrasted else 0
        self.poolers = nn.ModuleDict({n: nn.Linear(width, projected) for n in names if projected})
        if objective.learn_temperature and spec.contrasted:
            self.log_temperature = nn.Parameter(torch.tensor(objective.temperature).log())
        if spec.contrasted and objective.contrast == "siglip":
            self.contrast_bias = nn.Parameter(torch.tensor(-10.0))
        if objective.harmony in simcl.FREE and len(names) > 1:
            self.scores = nn.Parameter(torch.zeros(len(names), len(names)))
        # of the read-outs, fitted after training; no loss sees them. How much each modality counts:
        self.register_buffer("importance", torch.ones(len(names)))
        self.whitening = nn.ModuleDict()
        for part, size in (("pooled", projected or width), ("embedded", width)):
            self.whitening[part] = nn.ModuleDict({name: Whitening(size) for name in names})
        self.apply(_initialise)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """Of the contrast, learned or fixed."""
        if hasattr(self, "log_temperature"):
            return self.log_temperature.exp()
        # a number in a tensor: takes the type and device of what it divides
        return torch.tensor(self.spec.objective.temperature, dtype=torch.float64)

    def embed(self, batch: Batch) -> States:
        """Token embeddings of every modality, the input of :meth:`forward_from_embeddings`."""
        names, owner = self.spec.modalities, self.spec.owner
        return {name: self.embeddings[owner(name)](batch.streams[name]) for name in names}

    def encode(self, batch: Batch) -> Output:
        """As :meth:`forward`, up to the fusion: ``fused`` and ``summary`` are empty."""
        return self._encode(*self._inputs(batch))

    def _inputs(self, batch: Batch) -> tuple[States, Marks]:
        names = self.spec.modalities
        if missing := set(names) - set(batch.streams):
            mend = f"build Streams with modalities {names}"
            raise ValueError(f"the batch has no stream {sorted(missing)}; {mend}")
        batch.check(self.spec.widths, self.extractors)
        if self.spec.missing == "impute":
            batch = impute(batch, self.spec.empty)
        return self.embed(batch), {name: batch.streams[name].valid for name in names}

    def _encode(self, embedded: States, valid: Marks, seen: Sequence[Weights] = ()) -> Output:
        states, pool = embedded, {"first": first_token, "mean": mean_token}[self.spec.pool]
        for number, stage in enumerate(self.stages[: self.spec.fusion]):
            states = stage(states, valid, seen=seen[number] if seen else None)
        pooled = {name: pool(x, valid[name]) for name, x in states.items()}
        for name, pooler in self.poolers.items():
            pooled[name] = pooler(pooled[name]).relu() * valid[name][:, :1]
        return Output(valid, embedded, states, pooled, {}, {}, tuple(seen))

    def forward_from_embeddings(
        self,
        embedded: States,
        valid: Marks,
        wanted: Marks | None = None,
        attention: bool = False,
        given: simcl.Presence | None = None,
    ) -> Output:
        """Run the stages on given embeddings, so that attribution can start from them.

        Args:
            wanted: which fused tokens will be read beside the first of each modality (``{}``:
                none); by default all. A last block that is joint computes only these, in 1 / 1.6 of
                the time: ``Output.fused`` then means nothing elsewhere.
            attention: give ``Output.attention``; then all tokens are computed.
            given: the modalities that the fusion reads; by default all that are there.
        """
        seen = tuple({} for _ in self.stages) if attention else ()
        output = self._encode(embedded, valid, seen)
        states, last, readable = output.encoded, len(self.stages) - 1, None
        if given is not None:
            readable = {n: x & given[:, i, None] for i, (n, x) in enumerate(valid.items())}
        for number in range(self.spec.fusion, len(self.stages)):
            only = wanted if number == last and not attention else None
            looks = seen[number] if seen else None
            states = self.stages[number](states, valid, only, looks, readable)
        summary = {name: first_token(x, (readable or valid)[name]) for name, x in states.items()}
        return replace(output, fused=states, summary=summary)

    def forward(self, batch: Batch, wanted: Marks | None = None, **options) -> Output:
        """The whole model on a batch; arguments as :meth:`forward_from_embeddings`."""
        return self.forward_from_embeddings(*self._inputs(batch), wanted, **options)

    def predict(self, output: Output, targets: Mapping[str, Target]) -> dict[str, Tensor]:
        """Predictions of the masked tasks, at the masked positions only: (S, V) or (S, F)."""
        states, predictions = getattr(output, self.spec.objective.reads), {}
        for name in self.spec.objective.tasks(self.spec.modalities):
            read = states[name][targets[name].product, targets[name].token]
            predictions[name] = self.heads[self.spec.owner(name)](read)
        return predictions

    def match(self, output: Output) -> dict[str, Float[Tensor, " B"]]:
        """Logit, by modality of ``Objective.matching``, that it belongs to the product."""
        return {name: m(output.summary[name]).squeeze(-1) for name, m in self.matchers.items()}

    def _save_pretrained(self, save_directory: Path) -> None:
        """What ``save_pretrained`` (of the mixin, which also pushes to a hub) writes, the weights
        last: a folder that has ``model.safetensors`` is complete."""
        with whole_file(save_directory / "model.safetensors") as weights:
            # what is tied once: the same weights are the same bytes
            tensors = [*self.named_parameters(), *self.named_buffers()]
            save_file({name: x.detach() for name, x in tensors}, weights)
            texts = {"config.json": self.spec.to_dict(), EXTRACTORS: self.extractors}
            for name, content in texts.items():
                with whole_file(save_directory / name) as file:
                    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options) -> "Model":
        """The model of a folder, or of a repository on a hub (``revision``, ``token`` …), in
        evaluation mode, with ``tokenizer`` and ``extractors``.

        Raises:
            FileNotFoundError: the folder lacks ``config.json`` or ``model.safetensors``.
            ValueError: what is wrong with which of its files: none of them is believed.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(source), **options))
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder}: {name} is missing; save_pretrained writes it")
        with reading(path := folder / "config.json"):
            model = cls(spec := Spec.from_dict(json.loads(path.read_text(encoding="utf-8"))))
        with reading(path := folder / "model.safetensors", "take weights that fit config.json"):
            load_model(model, str(path))
        if (path := folder / "tokenizer_config.json").exists():
            with reading(path):
                model.tokenizer = load_tokenizer(folder)
                if (count := len(model.tokenizer)) != spec.vocabulary:
                    raise ValueError(f"{count} word pieces, config.json has {spec.vocabulary}")
        if (path := folder / EXTRACTORS).exists():
            with reading(path):
                model.extractors = json.loads(path.read_text(encoding="utf-8"))
                for name, width in spec.widths:
                    if (own := model.extractors.get(name, {}).get("width", width)) != width:
                        raise ValueError(f"{name} is {own} wide, in config.json {width}")
        return model.eval()


def _initialise(module: nn.Module) -> None:
    """BERT's: weights from a normal with deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
