"""Small media files, made on the spot; and where the real ones lie."""

import json
import os
import signal
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import pytest
from PIL import Image

from m5lib.catalogue import Catalogue, Product
from m5lib.data import MediaFile
from m5lib.data.extractors import Crops

SHARED = Path(os.environ.get("M5_SHARED", Path(__file__).parents[2] / "shared"))


def shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there (set M5_SHARED)")
    return path


@dataclass(frozen=True)
class Slow(Crops):
    """Crops whose process is killed at the ``last`` call, where one is set; ``pause`` seconds
    each."""

    last: ClassVar[int] = 0
    pause: ClassVar[float] = 0.0
    calls: ClassVar[list] = []

    def __call__(self, file):
        self.calls.append(1)
        time.sleep(self.pause)
        if len(self.calls) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(file)


def numbered(n: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture whose eight columns are the bits of n."""
    bits = [(n >> k) & 1 for k in range(8)]
    return np.repeat(
        np.repeat(np.array(bits, np.uint8) * 220 + 16, width // 8)[None, :], height, axis=0
    )[..., None].repeat(3, 2)


def number_of(pixels: np.ndarray) -> int:
    columns = pixels.mean(axis=(0, 2)).reshape(8, -1)[:, 1:-1].mean(axis=1) > 128
    return int(sum(1 << k for k, bit in enumerate(columns) if bit))


def write_video(
    path: Path,
    count: int = 30,
    fps: int = 10,
    sound: float | None = None,
    rotation: int = 0,
    pixels=numbered,
    title="",
    samples: int = 0,  # of a sound that is not compressed
) -> Path:
    with av.open(str(path), "w", format="matroska" if path.suffix == ".mkv" else "mp4") as out:
        video = out.add_stream("libx264", rate=fps, options={"crf": "10", "preset": "ultrafast"})
        video.height, video.width = pixels(0).shape[:2]
        video.pix_fmt, video.time_base = "yuv420p", Fraction(1, fps)
        out.metadata["title"] = title
        if rotation:
            video.set_display_rotation(rotation)
        track = out.add_stream("aac", rate=16_000, layout="mono") if sound else None
        plain = out.add_stream("pcm_s16le", rate=16_000, layout="mono") if samples else None
        for n in range(count):
            frame = av.VideoFrame.from_ndarray(pixels(n), format="rgb24")
            frame.pts = n
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if track:
            _encode(out, track, tone(sound), 16_000)
        if plain:
            frame = av.AudioFrame.from_ndarray(np.ones((1, samples), "i2"), "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, 0
            out.mux(plain.encode(frame)), out.mux(plain.encode())
    return path


def tone(seconds: float, rate: int = 16_000, hz: float = 440.0, loud: float = 0.5) -> np.ndarray:
    return (loud * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(
        np.float32
    )


def _encode(out, track, samples: np.ndarray, rate: int) -> None:
    samples = np.atleast_2d(samples)
    layout = "mono" if len(samples) == 1 else "stereo"
    resampler = av.AudioResampler(
        format=track.format, layout=layout, rate=rate, frame_size=track.frame_size or 1024
    )
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        out.mux(track.encode(part))
    out.mux(track.encode())


def write_sound(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    codec = {".wav": "pcm_s16le", ".mp3": "libmp3lame", ".flac": "flac"}[path.suffix]
    with av.open(str(path), "w") as out:
        track = out.add_stream(codec, rate=rate, layout="mono" if samples.ndim == 1 else "stereo")
        _encode(out, track, samples, rate)
    return path


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def file_of(path: Path) -> MediaFile:
    return MediaFile(path, size=path.stat().st_size if path.exists() else None)


def pictures(folder: Path, count: int = 24) -> Catalogue:
    """Products with a picture and a title; every seventh picture is no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    products = []
    for n in range(count):
        path = write_image(folder / f"{n}.png", n)
        if n % 7 == 3:
            path.write_bytes(b"no picture %d" % n)
        products.append(
            Product(
                f"p{n}", {"image": file_of(path), "text": f"title {n}"}, "odd" if n % 2 else "even"
            )
        )
    return Catalogue("pictures", tuple(products))


#: A record of the official annotation.
BAG = {
    "title": "真皮手提包 女士 2021新款 handbag",
    "pv": "品牌#:#Acme 爱家#;#颜色#:#红色,黑色#;#颜色#:#白",
    "label": "手提包",
    "url": "https://example.com/a.jpg",
    "video": "",
}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        content if isinstance(content, str) else json.dumps(content, ensure_ascii=False),
        encoding="utf-8",
    )
    return path
