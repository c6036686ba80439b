"""Which extractor makes a modality's features: chosen by words, or made again from its settings.
And the extractors with pre-trained weights: Faster R-CNN for regions of a picture, S3D for clips.

:func:`choose` reads the parameter ``extractors`` of notebooks and jobs, such as
``image=regions:weights.pt,audio=logmel``; :func:`extractor_of` reads what travels with a model.

Weights come by torchvision's own download, or from a file of yours (``weights``, a state dict; read
with ``weights_only``). torchvision is imported where it is used. The paper's own networks
(ResNet-101 Faster R-CNN trained on Visual Genome; S3D-G trained on HowTo100M) are not among
torchvision's: these are their nearest kin there, trained on COCO and Kinetics-400.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import ClassVar

import numpy as np

from m5lib.catalogue import DataError
from m5lib.data import MediaFile
from m5lib.data.decoding import MediaError, frames, open_image, probe
from m5lib.data.extractors import (
    PLAIN,
    Crops,
    Features,
    Frames,
    LogMel,
    Mfcc,
    Pixels,
    ReleasedMel,
    checksum,
    described,
    locations,
)
from m5lib.data.m5features import OFFICIAL
from m5lib.streams import computed, named

_LOADING = Lock()


def _state(weights: Path | None, published, owner: str) -> dict:
    """A state dict, from a file or the library's download. Raises
    :class:`~m5lib.catalogue.DataError` that says how to mend it."""
    import torch

    try:
        safe = {"map_location": "cpu", "weights_only": True}
        if weights is None:
            return published.get_state_dict(progress=False, check_hash=True, **safe)
        return torch.load(weights, **safe)
    # no network, no file, a pickle: all end the extraction, none is a fault of the media
    except Exception as error:
        where = published.url if weights is None else weights
        mend = "give weights=<path of a state dict>"
        raise DataError(f"{owner}: weights {where} cannot be read ({error}); {mend}") from error


@lru_cache(maxsize=2)
def _build(make: Callable, published, weights: Path | None, device: str):
    model = make()
    model.load_state_dict(_state(weights, published, make.__name__))
    return model.eval().requires_grad_(False).to(device)


def _network(extractor, make: Callable, published):
    """An extractor's network in eval mode, loaded once per process, by whichever thread comes
    first. Raises :class:`~m5lib.catalogue.DataError` where the weights cannot be had."""
    with _LOADING:
        weights = extractor.weights and Path(extractor.weights)
        return _build(make, published, weights, extractor.device)


@dataclass(frozen=True)
class Regions:
    """Region features of torchvision's Faster R-CNN: 10 to 36 boxes by score, 1,024 numbers each,
    and 5-d locations.

    As bottom-up attention does (section 5; the released code keeps exactly 36): a box is a
    proposal, refined for its most likely class; suppression starts at an overlap of 0.3 and is
    loosened in steps of 0.1 until ``most`` boxes are left; those that score at least ``score`` are
    kept, no fewer than ``fewest`` and no more than ``most``. The vector is the box head's (the
    paper's pooled ResNet has 2,048). The shorter side of the picture is brought to ``side`` pixels,
    the longer to 5/3 of it at most.
    """

    fewest: int = 10
    most: int = 36
    score: float = 0.2
    side: int = 600
    weights: Path | None = None
    device: str = field(default="cpu", compare=False)
    width: ClassVar[int] = 1024
    version: ClassVar[int] = 1

    def __call__(self, file: MediaFile) -> Features:
        """Regions of a picture, best first."""
        import torch
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights
        from torchvision.models.detection.transform import GeneralizedRCNNTransform
        from torchvision.transforms.functional import pil_to_tensor

        picture = pil_to_tensor(open_image(file)).float().div(255).to(self.device)
        net = _network(self, _faster_rcnn, FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1)
        resize = GeneralizedRCNNTransform(
            self.side, self.side * 5 // 3, net.transform.image_mean, net.transform.image_std
        )
        with torch.inference_mode():
            images, _ = resize([picture])
            height, width = images.image_sizes[0]
            maps = net.backbone(images.tensors)
            proposals, _ = net.rpn(images, maps)
            heads = net.roi_heads
            vectors = heads.box_head(heads.box_roi_pool(maps, proposals, images.image_sizes))
            logits, deltas = heads.box_predictor(vectors)
            scores, classes = logits.softmax(dim=1)[:, 1:].max(dim=1)  # 0 is the background
            refined = heads.box_coder.decode(deltas, proposals)
            boxes = refined[torch.arange(len(scores)), classes + 1]
            keep = self._keep(boxes, scores, height, width)
            vectors, boxes = vectors[keep].float().cpu().numpy(), boxes[keep].cpu().numpy()
        if not len(vectors):
            raise MediaError("no region found")
        boxes = np.clip(boxes, 0, [width, height, width, height])
        return Features(vectors, locations(boxes, width, height))

    def _keep(self, boxes, scores, height: int, width: int):
        """Positions of the boxes to keep, best first."""
        from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes

        boxes = clip_boxes_to_image(boxes, (height, width))
        big = remove_small_boxes(boxes, 1.0)
        for overlap in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            keep = big[nms(boxes[big], scores[big], overlap)]
            if len(keep) >= self.most:
                break
        count = int((scores[keep] >= self.score).sum())
        return keep[: min(max(count, self.fewest), self.most)]


def _faster_rcnn():
    from torchvision.models import detection

    # The batch norm that the published weights were trained with, and no download of a backbone
    # besides.
    return detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)


@dataclass(frozen=True)
class Clips:
    """Clip features of torchvision's S3D: 1,024 numbers for each 16 frames at 16 frames a second,
    at most ``limit`` clips.

    As the released extractor: shorter side ``side``, centre crop, one vector per second scaled to
    unit length. It differs in the weights, in the colours (normalised as these weights expect), and
    in the last clip: what it lacks is its last frame again, not black frames, which would look like
    a cut. A clip of less than half a second is left out unless it is the only one.
    """

    limit: int = 12
    side: int = 224
    weights: Path | None = None
    device: str = field(default="cpu", compare=False)
    width: ClassVar[int] = 1024
    version: ClassVar[int] = 1
    step: ClassVar[float] = 1.0
    rate: ClassVar[int] = 16

    def __call__(self, file: MediaFile) -> Features:
        """Clips of a video, one per second."""
        import torch
        from torchvision.models.video import S3D_Weights

        track = probe(file).video
        if track is None:
            raise MediaError("no video track in it")
        length = min(self.limit, track.seconds or self.limit)
        count = max(1, int(length + 0.5))  # a last clip of half a second or more counts
        times = (np.arange(count * self.rate) + 0.5) / self.rate
        pixels, stamps = frames(file, times, self.side)
        top, left = (pixels.shape[1] - self.side) // 2, (pixels.shape[2] - self.side) // 2
        pixels = pixels[:, top : top + self.side, left : left + self.side]
        net = _network(self, _s3d, S3D_Weights.KINETICS400_V1)
        recipe = S3D_Weights.KINETICS400_V1.transforms()
        colours = torch.tensor([recipe.mean, recipe.std], device=self.device)
        mean, std = colours[:, :, None, None, None]
        vectors = []
        with torch.inference_mode():
            for clip in torch.from_numpy(pixels).split(self.rate):
                clip = (clip.to(self.device).permute(3, 0, 1, 2) / 255 - mean) / std
                vectors.append(net.features(clip[None]).mean(dim=(2, 3, 4))[0])
            vectors = torch.nn.functional.normalize(torch.stack(vectors), dim=1).cpu().numpy()
        # Of a video that does not say how long it is, no clip that is nothing but its last frame.
        known, last = track.seconds, stamps[-1]
        keep = [n for n in range(count) if known or not n or stamps[n * self.rate] < last]
        return Features(vectors[keep])


def _s3d():
    from torchvision.models import video

    return video.s3d(weights=None)


#: Modality -> word -> extractor. ``official``: the features of the M5Product release, already
#: extracted (:mod:`m5lib.data.m5features`).
CHOICES = {
    "image": {"crops": Crops(), "pixels": Pixels(), "regions": Regions()},
    "video": {"frames": Frames(), "clips": Clips()},
    "audio": {"mfcc": Mfcc(), "logmel": LogMel(), "releasedmel": ReleasedMel()},
}
for _name, _reader in OFFICIAL.items():
    CHOICES[_name]["official"] = _reader


def choose(words: str | Mapping[str, object], others: Mapping[str, object] = PLAIN) -> dict:
    """Extractors by words: ``image=crops,audio=logmel``.

    After the word stand, each after a colon, settings of the extractor and the path of its weights:
    ``audio=mfcc:coefficients=13``, ``image=regions:weights.pt:side=400:device=cuda``. Without a
    path, torchvision downloads the weights. Modalities that are not named get ``others``.
    Extractors by modality pass as they are.

    Raises:
        DataError: an unknown modality, word or setting (the message lists the known ones), a
            modality twice, or weights that are not there.
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
        chosen[name] = _changed(CHOICES[name][word], more, part)
    return {**others, **chosen}


def _changed(extractor, more: list[str], part: str):
    """An extractor with the settings and the path that stand after its word."""
    values = {field.name: getattr(extractor, field.name) for field in fields(extractor)}
    known = {name: type(v) for name, v in values.items() if isinstance(v, int | float | str)}
    changed, path = {}, []
    for text in more:
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
        changed["weights"] = weights = Path(":".join(path)).expanduser()
        if not weights.is_file():
            what = f"{weights}: no such file; {part!r} needs a state dict there"
            raise DataError(f"extractors: {what}")
    return replace(extractor, **changed)


def absolute(words: str) -> str:
    """The same choice with absolute paths, for a process that works in another folder."""

    def resolved(text: re.Match) -> str:
        file = Path(text[0]).expanduser()
        return str(file.resolve()) if file.is_file() else text[0]

    return re.sub("(?<=:)[^,:]+", resolved, words)


def extractor_of(settings: Mapping[str, object]):
    """The extractor of some settings (:func:`~m5lib.data.extractors.described`), as a model carries
    them.

    Raises:
        DataError: it is none of the library's, computes something else now (another version), or
            its weights are not where they were, or others lie there.
    """
    choices = (extractor for words in CHOICES.values() for extractor in words.values())
    kinds = {type(extractor).__name__: type(extractor) for extractor in choices}
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
        given["weights"] = file = Path(settings.get("hints", {}).get("weights", ""))
        if not file.is_file():
            raise DataError(
                f"{kind.__name__} needs weights of checksum {known}; they were at {file}, where no "
                "file is now; say where they are: extractors=image=regions:weights.pt"
            )
        if (found := checksum(file)) != known:
            what = f"weights of checksum {found}, but {kind.__name__} was used with {known}"
            raise DataError(f"{file}: {what}; say where those are by the parameter extractors")
    return kind(**given)


def agreed(settings: Mapping[str, Mapping], words: str = "") -> dict:
    """The extractors of a model's settings; those that the words choose are taken from there, for
    weights that lie elsewhere now.

    Raises:
        DataError: the words choose another extractor than the model's, or :func:`extractor_of`.
    """
    chosen = {n: e for n, e in choose(words, {}).items() if n in settings}
    for name, extractor in chosen.items():
        if computed(settings[name]) != computed(described(extractor)):
            own, other = named(settings[name]), named(described(extractor))
            what = f"the {name} features of this model are those of {own}, not of {other}"
            raise DataError(f"extractors: {what}")
    return {n: chosen[n] if n in chosen else extractor_of(made) for n, made in settings.items()}
