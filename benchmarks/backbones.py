"""What a pre-trained extractor costs, and whether each family goes the whole way.

    python benchmarks/backbones.py time [names …]    # of benchmarks/backbones.json
    python benchmarks/backbones.py notebooks [dinov2 wav2vec2 …]

``time``: random weights of the published size, which cost the same; pictures of 600 x 600, videos
and sounds of 8 s. Seconds are processor time over two cores, so that what else runs on the machine
counts little.

``notebooks``: a tiny random model of each family, from a folder, through notebooks 04 and 05, each
in its own process; 13 then loads the run in another one and is asked with a file that no product
has. What came out, faults too, is in benchmarks/backbones_notebooks.json.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers as hf
from extractors import ENDINGS, make

from m5lib import home
from m5lib.data import MediaFile, networks, write_json
from m5lib.data.backbones import Backbone, choose
from m5lib.lab import notebooks

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import make_backbones

HERE = Path(__file__).parent
SQUARE = {"size": {"height": 224, "width": 224}}
#: Name on the hub -> the same network with random weights, and its processor.
SIZES = {
    "facebook/dinov2-small": lambda: (
        hf.Dinov2Model(hf.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518)),
        hf.BitImageProcessor(size={"shortest_edge": 256}, crop_size=SQUARE["size"]),
    ),
    "facebook/dinov2-base": lambda: (
        hf.Dinov2Model(hf.Dinov2Config(image_size=518)),
        hf.BitImageProcessor(size={"shortest_edge": 256}, crop_size=SQUARE["size"]),
    ),
    "facebook/dinov3-vits16-pretrain-lvd1689m": lambda: (
        hf.DINOv3ViTModel(hf.DINOv3ViTConfig(num_register_tokens=4)),
        hf.DINOv3ViTImageProcessor(**SQUARE),
    ),
    "openai/clip-vit-base-patch32": lambda: (
        hf.CLIPVisionModel(hf.CLIPVisionConfig()),
        hf.CLIPImageProcessor(),
    ),
    "google/siglip-base-patch16-224": lambda: (
        hf.SiglipVisionModel(hf.SiglipVisionConfig()),
        hf.SiglipImageProcessor(**SQUARE),
    ),
    "google/siglip2-base-patch16-naflex": lambda: (
        hf.Siglip2VisionModel(hf.Siglip2VisionConfig()),
        hf.Siglip2ImageProcessor(),
    ),
    "MCG-NJU/videomae-base": lambda: (
        hf.VideoMAEModel(hf.VideoMAEConfig()),
        hf.VideoMAEImageProcessor(),
    ),
    "facebook/wav2vec2-base": lambda: (
        hf.Wav2Vec2Model(hf.Wav2Vec2Config()),
        hf.Wav2Vec2FeatureExtractor(),
    ),
    "facebook/hubert-base-ls960": lambda: (
        hf.HubertModel(hf.HubertConfig()),
        hf.Wav2Vec2FeatureExtractor(),
    ),
    "openai/whisper-base": lambda: (
        hf.WhisperModel(
            hf.WhisperConfig(
                d_model=512,
                encoder_layers=6,
                encoder_attention_heads=8,
                encoder_ffn_dim=2048,
                decoder_layers=1,
                decoder_attention_heads=8,
            )
        ),
        hf.WhisperFeatureExtractor(),
    ),
    "laion/clap-htsat-unfused": lambda: (
        hf.ClapModel(hf.ClapConfig()),
        hf.ClapFeatureExtractor(truncation="rand_trunc"),
    ),
}
#: Tiny models of :mod:`make_backbones` that go through the notebooks, one for each row of families.
FAMILIES = (
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "clip",
    "siglip",
    "siglip2",
    "videomae",
    "wav2vec2",
    "hubert",
    "whisper",
    "clap",
)


def measure(extractor, files: list[MediaFile], source: str) -> dict:
    """Tokens and width of the first file, and seconds of processor time over two cores."""
    values = extractor(files[0]).values
    begun = time.process_time()
    for file in files[1:]:
        extractor(file)
    seconds = (time.process_time() - begun) / (len(files) - 1)
    row = {"tokens": len(values), "width": extractor.width, "weights": source}
    return row | {"seconds_per_1000_on_two_cores": round(1000 * seconds / 2)}


def times(folder: Path, wanted: list[str], keep) -> None:
    """Networks by name, by default all, one at a time, on one thread; ``keep`` takes each row."""
    torch.set_num_threads(1)
    make(folder, 3)
    files = {
        name: [MediaFile(p) for p in sorted(folder.iterdir()) if p.suffix in ends]
        for name, ends in ENDINGS.items()
    }
    for name, build in SIZES.items():
        if wanted and name not in wanted:
            continue
        for part in build():
            part.save_pretrained(folder / name)
        backbone = Backbone(folder / name)
        row = measure(backbone, files[backbone.reads], "random")
        keep(f"{backbone.reads}=hf:{name}", row)
    state = {"roi_heads.box_predictor.cls_score.bias": [0] * 91, "classifier.1.bias": [0] * 400}
    made = {"image=regions": networks._faster_rcnn, "video=clips": networks._s3d}
    for words in (*made, "image=lite0", "image=crops", "video=frames", "audio=mfcc"):
        if wanted and words not in wanted:
            continue
        source, path = ("real" if "lite0" in words else "none"), ""
        if words in made:
            torch.save(made[words](state).state_dict(), folder / "weights.pt")
            source, path = "random", f":{folder / 'weights.pt'}"
        name, extractor = next(iter(choose(words + path, {}).items()))
        keep(words, measure(extractor, files[name], source))


def keep(words: str, row: dict, file: str = "backbones.json") -> None:
    """Write a row beside those that are there."""
    path = HERE / file
    rows = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, rows | {words: row})
    print(words, row, flush=True)


def through(family: str) -> dict:
    """One family from a folder through the notebooks: its run, and how each notebook ended."""
    folder = make_backbones.save(family, home("models", family))
    name = Backbone(folder).reads
    words = f"{name}=hf:{folder.resolve()}"
    given, row = {"profile": "tiny", "extractors": words}, {"reads": name}
    paths = {p.stem[:2]: p for p in notebooks.find()}
    for number in ("04", "05", "13"):
        if number == "13":
            jobs = home("runs").glob("scale*/job.json")
            run = next(
                p.parent for p in jobs if json.loads(p.read_text())["job"]["extractors"] == words
            )
            home("new").mkdir(parents=True, exist_ok=True)
            make(home("new"), 1)  # a file that no product has
            file = next(p for p in sorted(home("new").iterdir()) if p.suffix in ENDINGS[name])
            given = {"profile": "tiny", "model": str(run.resolve())}
            given |= {f"query_{name}": str(file.resolve())}
            row |= {"run": run.name, "asked with": file.name}
        begun = time.monotonic()
        notebooks.run(paths[number], home("reports", f"{family}-{number}.ipynb"), given, quiet=True)
        row[f"seconds of {number}"] = round(time.monotonic() - begun)
    return row | {"outcome": "finished"}


if __name__ == "__main__":
    if sys.argv[1:2] == ["time"]:
        with tempfile.TemporaryDirectory() as place:
            times(Path(place), sys.argv[2:], keep)
    else:
        for chosen in sys.argv[2:] or FAMILIES:
            try:
                done = through(chosen)
            except Exception as error:  # the others still run
                done = {"outcome": str(error)}
            keep(chosen, done, "backbones_notebooks.json")
