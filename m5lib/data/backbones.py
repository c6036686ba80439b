"""Pre-trained networks of ``transformers`` as extractors, one class for all; and which extractor
makes a modality's features: chosen by words, or made again from its settings.

:func:`choose` reads the parameter ``extractors`` of notebooks and jobs, such as
``image=hf:facebook/dinov2-base,audio=logmel``; :func:`extractor_of` reads what travels with a
model. What a family needs beside its ``Auto…`` classes is a row of :data:`FAMILIES`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from m5lib.catalogue import DataError
from m5lib.data import MediaFile, foreign
from m5lib.data import extractors as plain
from m5lib.data.decoding import MediaError, frames, open_image, probe, sound
from m5lib.data.extractors import PLAIN, Features, checksum, described, locations, means
from m5lib.data.m5features import OFFICIAL
from m5lib.data.networks import Clips, Lite0, Regions, Weighted, cells, located, pretrained
from m5lib.streams import computed, named


class Prepared(NamedTuple):
    """A file that was decoded and processed: the network's ``inputs``, tensors (1, …); the corners
    (1, 4) of what they show of a picture, as shares of it; the seconds of a sound."""

    inputs: dict
    corners: np.ndarray | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Backbone(Weighted):
    """A network of ``transformers`` with its own processor: DINOv2, DINOv3, CLIP and SigLIP (their
    vision towers) for pictures, VideoMAE for video, wav2vec2, HuBERT, CLAP (its audio tower) and
    Whisper (its encoder) for sound.

    ``weights`` is a folder written by ``save_pretrained``, or a model of the hub
    (:func:`~m5lib.data.networks.located`). Tokens are last hidden states, those of class and
    registers left out. ``pool=grid``: of a picture, means of patches over at most ``cells`` x
    ``cells`` boxes (what the processor crops away has none); of a video, as many frames as the
    network takes, spread over the first ``seconds``, one token for each of its steps in time; of
    the first ``seconds`` of a sound, means over ``span`` seconds, or one state where that is
    longer. ``pool=mean``: their mean. ``pool=own``: the network's own pooled output. On CUDA it
    runs in half precision, ``files`` of them together.
    """

    weights: str | Path | None = None
    pool: str = "grid"
    cells: int = 6
    span: float = 0.16
    seconds: float | int = 12.0
    device: str = field(default="cpu", compare=False)
    files: int = field(default=32, compare=False)
    version: ClassVar[int] = 1

    def __post_init__(self):
        super().__post_init__()
        if self.pool not in ("grid", "mean", "own"):
            raise DataError(f"pool={self.pool} is unknown; known are grid, mean and own")

    @property
    def family(self) -> "Family":
        """Its row. Raises ``DataError``: no model, or none that is known."""
        if self.weights is None:
            raise DataError("which model? Give its folder or name: image=hf:facebook/dinov2-base")
        kind = pretrained(self.weights, "AutoConfig").model_type
        if (row := FAMILIES.get(kind.removesuffix("_vision_model"))) is None:
            raise DataError(f"{self.weights} is a {kind}; known are {', '.join(FAMILIES)}")
        return row

    reads = property(lambda self: self.family.reads)
    process = property(lambda self: pretrained(self.weights, self.family.processor))
    width = property(lambda self: self.family.width(self.config))

    @property
    def config(self):
        """The configuration of what is run."""
        config, tower = pretrained(self.weights, "AutoConfig"), self.family.tower
        return getattr(config, tower.replace("model", "config"), config)

    @property
    def group(self) -> tuple[int, float] | None:
        """States in a token of sound, and the seconds of a state."""
        hop = self.family.hop(self.config, self.process)
        return hop and (max(1, round(self.span / hop)), hop)

    @property
    def step(self) -> float | None:
        """Seconds of a token of sound."""
        return math.prod(self.group) if self.group and self.pool == "grid" else None

    @property
    def together(self) -> int:
        """How many files to compute at once: on a processor one in each thread."""
        return 1 if self.device == "cpu" else self.files

    def __call__(self, file: MediaFile) -> Features:
        """Features of one file."""
        return self.batch([file])[0]

    def batch(self, files: Sequence[MediaFile]) -> list[Features]:
        """Features of some files, as :meth:`features`."""
        return self.features([self.prepare(file) for file in files])

    def prepare(self, file: MediaFile) -> Prepared:
        """Decode and process one file, without the device. Raises :class:`MediaError`."""
        given, how, known = self.family.opened(self, file)
        with foreign(lambda why: MediaError(f"the processor refuses it ({why})")):
            inputs = dict(self.process(given, return_tensors="pt", **how))
        if "is_longer" in inputs:  # CLAP's says so of one in each batch, drawn at random
            inputs["is_longer"] = inputs["input_features"].new_zeros(1, 1).bool()
        return Prepared(inputs, **known)

    def features(self, prepared: Sequence[Prepared]) -> list[Features]:
        """Features of files, each as if alone: those of one shape at once, unpadded."""
        import torch

        groups, found, kind = {}, {}, torch.device(self.device).type
        for place, file in enumerate(prepared):
            groups.setdefault(tuple(x.shape for x in file.inputs.values()), []).append(place)
        network = pretrained(self.weights, "AutoModel", self.device)
        network = getattr(network, self.family.tower, network)
        for places in groups.values():
            rows = [prepared[place].inputs for place in places]
            inputs = {key: torch.cat([row[key] for row in rows]).to(self.device) for key in rows[0]}
            with torch.inference_mode(), torch.autocast(kind, torch.float16, kind == "cuda"):
                output = network(**inputs)
            states, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
            if self.pool == "own" and pooled is None:
                raise DataError(f"{self.weights} has no pooled output of its own; take pool=mean")
            states = (pooled[:, None] if self.pool == "own" else states).float().cpu()
            for place, rows in zip(places, states, strict=True):
                found[place] = self._tokens(rows, prepared[place])
        return [found[place] for place in range(len(prepared))]

    def _tokens(self, states, file: Prepared) -> Features:
        """Features of one file from its states, or from the one pooled output."""
        values, boxes = states.numpy(), None
        if self.pool != "own":
            values, boxes = self.family.tokens(self, states, file)
        if self.pool != "grid":
            values, boxes = values.mean(axis=0, keepdims=True), file.corners
        return Features(values, None if boxes is None else locations(boxes.clip(0, 1)))


def _picture(backbone: Backbone, file: MediaFile) -> tuple:
    """A picture, and the corners of what the processor keeps of it."""
    picture, process = open_image(file), backbone.process
    size, share = np.array(picture.size), np.ones(2)
    if getattr(process, "do_center_crop", False):
        short = process.size.shortest_edge
        whole = (process.size.width, process.size.height)
        size = size * short / size.min() if short else np.array(whole)
        share = np.array([process.crop_size.width, process.crop_size.height]) / size
    return picture, {}, {"corners": np.concatenate([0.5 - share / 2, 0.5 + share / 2])[None]}


def _patches(backbone: Backbone, states, file: Prepared) -> tuple:
    """(N, F) states of a picture -> means (L, F) of its patches, and boxes (L, 4)."""
    config, inputs = backbone.config, file.inputs
    if "spatial_shapes" in inputs:  # a picture in its own proportions, padded at the end
        sides = inputs["spatial_shapes"][0].tolist()
    else:
        sides = [side // config.patch_size for side in inputs["pixel_values"].shape[-2:]]
        registers = getattr(config, "num_register_tokens", 0)
        states = states[backbone.family.special + registers :]
    grid = states[: math.prod(sides)].T.reshape(-1, *sides)
    values, boxes = cells(grid, backbone.cells)
    first, last = np.split(file.corners, 2, axis=1)
    return values, np.tile(first, 2) + boxes * np.tile(last - first, 2)


def _film(backbone: Backbone, file: MediaFile) -> tuple:
    """Frames of a video."""
    track, count, size = probe(file).video, backbone.config.num_frames, backbone.process.size
    if track is None:
        raise MediaError("no video track in it")
    times = (np.arange(count) + 0.5) / count * min(backbone.seconds, track.seconds or math.inf)
    return list(frames(file, times, size.shortest_edge or (size.height, size.width))[0]), {}, {}


def _steps(backbone: Backbone, states, file: Prepared) -> tuple:
    """(N, F) states of a video -> means (L, F) of each step in time."""
    steps = backbone.config.num_frames // backbone.config.tubelet_size
    return states.reshape(steps, -1, states.shape[1]).mean(dim=1).numpy(), None


def _heard(backbone: Backbone, file: MediaFile) -> tuple:
    """Samples at the processor's rate, no longer than it takes."""
    process, longest = backbone.process, backbone.seconds
    rate = process.sampling_rate
    for limit in ("nb_max_samples", "n_samples"):
        longest = min(longest, getattr(process, limit, math.inf) / rate)
    samples = sound(file, rate, longest)
    if (seconds := len(samples) / rate) < 0.025:
        raise MediaError(f"{seconds:.3f} s of sound; one window is 0.025 s")
    return samples, {"sampling_rate": rate}, {"seconds": seconds}


def _spans(backbone: Backbone, states, file: Prepared) -> tuple:
    """(N, F) states of a sound, or (F, bands, N) of CLAP -> means (L, F), where there is sound."""
    states, (group, hop) = states.mean(dim=1).T if states.ndim == 3 else states, backbone.group
    there = max(1, math.ceil(file.seconds / hop - 1e-6))
    return means(states[:there].numpy(), group), None


class Family(NamedTuple):
    """What a family of models needs beside its ``Auto…`` classes.

    ``reads``: the modality; ``processor``: its class, and what is ``opened`` for it; ``tokens``:
    of states; ``tower``: the part that is run, where there is one; ``special``: tokens before the
    patches, registers not counted; ``hop``: seconds of sound in a state; ``width``: of a state.
    """

    reads: str
    processor: str
    opened: Callable
    tokens: Callable
    tower: str = "all of it"
    special: int = 0
    hop: Callable = lambda config, processor: None
    width: Callable = lambda config: config.hidden_size


def _swin_hop(config, processor) -> float:
    """CLAP folds its longest sound into a square, whose sides all stages but the last halve."""
    side = config.spec_size // (config.patch_stride[0] * 2 ** (len(config.depths) - 1))
    states = side * (config.spec_size // config.num_mel_bins)
    return processor.nb_max_samples / processor.sampling_rate / states


_PICTURES = Family("image", "AutoImageProcessor", _picture, _patches)
_FIRST = _PICTURES._replace(special=1)
_SOUNDS = Family("audio", "AutoFeatureExtractor", _heard, _spans)
_WAVES = _SOUNDS._replace(hop=lambda c, p: math.prod(c.conv_stride) / p.sampling_rate)
_SWIN = {"hop": _swin_hop, "width": lambda c: c.patch_embeds_hidden_size << (len(c.depths) - 1)}
#: ``model_type`` of the configuration -> its row.
FAMILIES = {
    "dinov2": _FIRST,
    "dinov2_with_registers": _FIRST,
    "dinov3_vit": _FIRST,
    "clip": _FIRST._replace(tower="vision_model"),
    "siglip": _PICTURES._replace(tower="vision_model"),
    "siglip2": _PICTURES._replace(tower="vision_model"),
    "videomae": Family("video", "AutoImageProcessor", _film, _steps),
    "wav2vec2": _WAVES,
    "hubert": _WAVES,
    "whisper": _SOUNDS._replace(
        tower="encoder", hop=lambda c, p: p.chunk_length / c.max_source_positions
    ),
    "clap": _SOUNDS._replace(tower="audio_model", **_SWIN),
}


#: Modality -> word -> extractor; ``official``: the release's features (m5lib.data.m5features).
CHOICES = {
    "image": {"crops": plain.Crops(), "pixels": plain.Pixels()}
    | {"regions": Regions(), "lite0": Lite0()},
    "video": {"frames": plain.Frames(), "clips": Clips()},
    "audio": {"mfcc": plain.Mfcc(), "logmel": plain.LogMel(), "releasedmel": plain.ReleasedMel()},
}
for _name, _reader in OFFICIAL.items():
    CHOICES[_name] |= {"hf": Backbone(), "official": _reader}


def choose(words: str | Mapping[str, object], others: Mapping[str, object] = PLAIN) -> dict:
    """Extractors by words: ``image=crops,audio=logmel``.

    After the word stand, each after a colon, settings of the extractor and the path of its weights:
    ``audio=mfcc:coefficients=13``, ``image=regions:weights.pt:side=400:device=cuda``,
    ``image=hf:facebook/dinov2-base@main:pool=mean``. Without a path, torchvision downloads the
    weights. Modalities that are not named get ``others``. Extractors by modality pass as they are.

    Raises ``DataError``: an unknown modality, word or setting (the message lists the known ones), a
    modality twice, weights that are not there, or a model of another modality.
    """
    if not isinstance(words, str):
        return dict(words)
    chosen = {}
    for part in filter(None, map(str.strip, words.split(","))):
        name, _, rest = part.partition("=")
        word, *more = rest.split(":")
        if word not in CHOICES.get(name, ()):
            known = "; ".join(f"{name}={'|'.join(choice)}" for name, choice in CHOICES.items())
            raise DataError(f"extractors: {part!r} is unknown; known are {known}")
        if name in chosen:
            raise DataError(f"extractors: {name} is chosen twice in {words!r}; choose it once")
        chosen[name] = extractor = _changed(CHOICES[name][word], more, part)
        if (reads := getattr(extractor, "reads", name)) != name:
            raise DataError(f"extractors: {part!r} is a model of {reads}, not of {name}")
    return {**others, **chosen}


def _changed(extractor, more: list[str], part: str):
    """An extractor with the settings and the path that stand after its word."""
    values = {field.name: getattr(extractor, field.name) for field in fields(extractor)}
    known = {name: type(v) for name, v in values.items() if isinstance(v, int | float | str)}
    changed, path = {}, []
    for text in filter(None, more):
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            path.append(text)
            continue
        try:
            changed[name] = known[name](value)
        except ValueError:
            kind = known[name].__name__
            raise DataError(f"extractors: {name} in {part!r} must be {kind}") from None
    if path and "weights" not in values:
        raise DataError(
            f"extractors: {':'.join(path)!r} in {part!r} is no setting of "
            f"{type(extractor).__name__}, which has {', '.join(known)} and no weights"
        )
    if path:
        changed["weights"] = ":".join(path)
    return replace(extractor, **changed)


def absolute(words: str) -> str:
    """The same choice with absolute paths, for a process that works in another folder."""

    def resolved(text: re.Match) -> str:
        file = Path(text[0]).expanduser()
        return str(file.resolve()) if file.exists() else text[0]

    return re.sub("(?<=:)[^,:]+", resolved, words)


def extractor_of(settings: Mapping[str, object]):
    """The extractor of some settings (:func:`~m5lib.data.extractors.described`), as a model carries
    them. Raises ``DataError``: it is none of the library's, computes something else now (another
    version), or its weights are not where they were, or others lie there."""
    kinds = {type(e).__name__: type(e) for words in CHOICES.values() for e in words.values()}
    if (kind := kinds.get(settings["extractor"])) is None:
        raise DataError(
            f"{settings['extractor']} is not one of the library's extractors ({', '.join(kinds)}); "
            "extract with your own, by m5lib.data.store.extract"
        )
    if kind.version != settings["version"]:
        made = f"made with version {settings['version']} of {kind.__name__}"
        raise DataError(f"{made}, this is version {kind.version}")
    given = {f.name: settings[f.name] for f in fields(kind) if f.compare and f.name in settings}
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    if known := given.get("weights"):
        hints = settings.get("hints", {})
        file = Path(hints.get("weights") or "nowhere")
        if not file.exists() and "name" not in hints:
            raise DataError(
                f"{kind.__name__} needs weights of checksum {known}; they were at {file}, where "
                "nothing is now; say where they are: extractors=image=regions:weights.pt"
            )
        given["weights"] = file = file if file.exists() else located(hints["name"])
        if (found := checksum(file)) != known:
            what = f"weights of checksum {found}, but {kind.__name__} was used with {known}"
            raise DataError(f"{file}: {what}; say where those are by the parameter extractors")
    return kind(**given)


def agreed(settings: Mapping[str, Mapping], words: str = "") -> dict:
    """The extractors of a model's settings; those that the words choose are taken from there, for
    weights that lie elsewhere now. Raises ``DataError``: the words choose another extractor than
    the model's, or as :func:`extractor_of`."""
    chosen = {n: e for n, e in choose(words, {}).items() if n in settings}
    for name, extractor in chosen.items():
        if computed(settings[name]) != computed(described(extractor)):
            own, other = named(settings[name]), named(described(extractor))
            what = f"the {name} features of this model are those of {own}, not of {other}"
            raise DataError(f"extractors: {what}")
    return {n: chosen[n] if n in chosen else extractor_of(made) for n, made in settings.items()}
