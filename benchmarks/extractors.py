"""Throughput of each extractor, of threads against processes, and of reading a store into batches.

    python benchmarks/extractors.py [folder of media]

writes ``benchmarks/extractors.json``. Without a folder it makes its own: pictures of noise (600 x
600 JPEG), videos (8 s, 320 x 240, 25 frames/s, H.264 with AAC), sounds (the same 8 s as MP3). The
networks run with random weights, which cost the same.
"""

import json
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageFilter

from m5lib.catalogue import Catalogue, Product
from m5lib.data import MediaFile, extractors, networks, store
from m5lib.data.store import in_parallel
from m5lib.models.words import train_tokenizer
from m5lib.streams import Streams

HERE = Path(__file__).parent
HEAD = {"roi_heads.box_predictor.cls_score.bias": [0] * 91}  # says how many classes
ENDINGS = {
    "image": (".jpg", ".jpeg", ".png"),
    "video": (".mp4", ".mkv", ".webm"),
    "audio": (".mp3", ".wav", ".flac"),
}


def make(folder: Path, count: int) -> None:
    """Media of about the size that shops have."""
    rng = np.random.default_rng(0)
    for n in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (600, 600, 3), dtype=np.uint8)).filter(
            ImageFilter.GaussianBlur(2)
        )
        noise.save(folder / f"{n}.jpg", quality=90)
        sound = (
            rng.normal(0, 0.1, 8 * 16_000) + 0.3 * np.sin(np.arange(8 * 16_000) * (0.1 + 0.02 * n))
        ).astype(np.float32)
        with (
            av.open(str(folder / f"{n}.mp4"), "w") as out,
            av.open(str(folder / f"{n}.mp3"), "w") as mp3,
        ):
            video = out.add_stream("libx264", rate=25, options={"preset": "veryfast"})
            video.width, video.height, video.pix_fmt, video.time_base = (
                320,
                240,
                "yuv420p",
                Fraction(1, 25),
            )
            tracks = (
                (out, out.add_stream("aac", rate=16_000, layout="mono")),
                (mp3, mp3.add_stream("libmp3lame", rate=16_000, layout="mono")),
            )
            for k in range(8 * 25):
                frame = av.VideoFrame.from_image(noise.crop((k, k, k + 320, k + 240)))
                frame.pts = k
                out.mux(video.encode(frame))
            out.mux(video.encode())
            for container, track in tracks:
                frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
                frame.rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
                resampler = av.AudioResampler(
                    format="fltp", layout="mono", rate=16_000, frame_size=track.frame_size
                )
                for part in (*resampler.resample(frame), *resampler.resample(None), None):
                    container.mux(track.encode(part))


def rate(work, files, repeat: int = 3) -> float:
    """Files per second, the best of some rounds; the first is a warm-up."""
    best = float("inf")
    for _ in range(repeat + 1):
        start = time.perf_counter()
        work(files)
        best = min(best, time.perf_counter() - start)
    return round(len(files) / best, 2)


def extract_all(extractor, files, workers: int) -> None:
    """Run an extractor over files on threads."""
    for _ in in_parallel(extractor, files, workers):
        pass


def main(folder: Path, scratch: Path) -> dict:
    """All measurements."""
    files = {
        name: [MediaFile(p) for p in sorted(folder.iterdir()) if p.suffix in ends]
        for name, ends in ENDINGS.items()
    }
    jobs = [(name, extractor) for name, extractor in extractors.PLAIN.items()]
    jobs += [
        ("audio", extractors.LogMel()),
        ("audio", extractors.ReleasedMel()),
        ("video", extractors.Mfcc()),
    ]
    found = {"files_per_second": {}, "two_workers": {}}
    for name, extractor in jobs:
        key = type(extractor).__name__ + (
            " of a video" if name == "video" and isinstance(extractor, extractors.Mfcc) else ""
        )
        found["files_per_second"][key] = rate(
            lambda x, e=extractor: extract_all(e, x, 1), files[name]
        )
        threads = rate(lambda x, e=extractor: extract_all(e, x, 2), files[name])
        with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
            processes = rate(
                lambda x, e=extractor, p=pool: list(p.map(e, x, chunksize=2)), files[name]
            )
        found["two_workers"][key] = {"threads": threads, "processes": processes}
    torch.save(networks._s3d({"classifier.1.bias": [0] * 400}).state_dict(), scratch / "s3d.pt")
    torch.save(networks._faster_rcnn(HEAD).state_dict(), scratch / "rcnn.pt")
    clips, regions = (
        networks.Clips(weights=scratch / "s3d.pt"),
        networks.Regions(weights=scratch / "rcnn.pt"),
    )
    found["files_per_second"]["Regions (random weights)"] = rate(
        lambda x: extract_all(regions, x, 1), files["image"][:1], 1
    )
    found["files_per_second"]["Clips (random weights)"] = rate(
        lambda x: extract_all(clips, x, 1), files["video"][:1], 1
    )
    found["batches"] = batches(files, scratch)
    return found


def batches(files: dict[str, list[MediaFile]], scratch: Path, products: int = 1024) -> dict:
    """Products per second of random batches of 64 out of a store of many shards."""
    contents = [
        {name: content[n % len(content)] for name, content in files.items()}
        for n in range(products)
    ]
    catalogue = Catalogue(
        "benchmark",
        tuple(
            Product(f"p{n}", {"text": f"product number {n}", **c}) for n, c in enumerate(contents)
        ),
    )
    small = extractors.Frames(size=8)
    catalogue, features = store.extract(
        catalogue, {**extractors.PLAIN, "video": small}, scratch / "store", workers=2, shard=64
    )
    tokenizer = train_tokenizer(
        replace(catalogue, products=tuple(replace(p, split="train") for p in catalogue.products))
    )
    memory = {
        n: r._replace(
            values=np.asarray(r.values), boxes=None if r.boxes is None else np.asarray(r.boxes)
        )
        for n, r in features.items()
    }
    rows = np.random.default_rng(0).permutation(len(catalogue)).reshape(-1, 64)
    found = {"products": products, "shards": -(-products // 64) * len(features)}
    for key, source in (("from the store", features), ("from memory", memory)):
        streams = Streams(catalogue, source, tokenizer)
        seconds = [time.perf_counter()]
        for batch in (*rows, *rows):
            streams.batch(batch)
            seconds.append(time.perf_counter())
        found[key] = round(products / (seconds[-1] - seconds[len(rows)]), 1)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        media = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "media"
        if len(sys.argv) == 1:
            media.mkdir()
            make(media, 12)
        results = main(media, Path(scratch))
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": av.__version__,
        "numpy": np.__version__,
    }
    machine = {
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }
    text = json.dumps({"machine": machine, "versions": versions, **results}, indent=1)
    (HERE / "extractors.json").write_text(text + "\n")
    print(text)
