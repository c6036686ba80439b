"""Decoding: pictures with Pillow, video and sound with PyAV (FFmpeg is in its wheel; imported where
it is used).

Nothing here knows of products. What cannot be decoded raises :class:`MediaError` with the reason.
"""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from m5lib.data import MediaFile


class MediaError(ValueError):
    """One media file that cannot be used; the message is the reason, without the file's name."""


def _source(file: MediaFile):
    """A seekable binary file: the file itself, or a member's bytes. Raises :class:`MediaError`
    where it is empty or cut short."""
    if file.member is None and not file.offset:
        source = open(file.path, "rb")
        size = os.fstat(source.fileno()).st_size
    else:
        data = file.read()
        source, size = io.BytesIO(data), len(data)
    head = source.read(8)
    source.seek(0)
    # WAV, AVI, WebP; FFmpeg forgives a lost end
    riff = int.from_bytes(head[4:], "little") if head.startswith(b"RIFF") else 0
    if not size or (file.size is not None and size < file.size) or size + 8 < riff < 0xFFFFFF00:
        source.close()
        raise MediaError("the file is empty or cut short")
    return source


def open_image(file: MediaFile, longest: int = 2048) -> Image.Image:
    """Decode a picture to 8-bit RGB, upright.

    Transparent pixels become white, as a shop's page shows them; 16-bit grey is scaled, not
    clipped; the camera's orientation is applied; a picture with a side over ``longest`` pixels is
    reduced to it (a JPEG already while it is decoded).

    Raises:
        MediaError: empty, not a picture, cut short, or more than Pillow's limit of pixels (179
            million).
    """
    with _source(file) as source:
        try:
            with Image.open(source) as image:
                if max(image.size) > longest:
                    image.draft(None, (longest, longest))
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip at 255
                    grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
                    image = Image.fromarray(grey.astype(np.uint8))
                if image.mode == "F":
                    what = "a picture of floating-point numbers, whose white is unknown"
                    raise MediaError(f"{what}; save it with 8 or 16 bits")
                image.thumbnail((longest, longest), reducing_gap=2.0)
                if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                return image.convert("RGB")
        except UnidentifiedImageError:
            raise MediaError("not a picture") from None
        except MediaError:
            raise
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise MediaError(f"cannot be decoded ({error})") from None


class Track(NamedTuple):
    """A video or sound track: ``seconds`` None where the file does not say."""

    codec: str
    seconds: float | None


class Probe(NamedTuple):
    """What a container says of itself: its length, and the first track of each kind or None. Cover
    art is no video track."""

    seconds: float | None
    video: Track | None
    audio: Track | None


@contextmanager
def _opened(file: MediaFile) -> Iterator:
    """A PyAV container. FFmpeg's errors, while it is open too, become :class:`MediaError`."""
    import av

    with _source(file) as source:
        try:
            # No protocol: a playlist under a video's name must not make FFmpeg open other files or
            # addresses. Titles and the like may be in any encoding (GBK is common); they are not
            # read.
            closed = {"protocol_whitelist": ""}
            with av.open(source, options=closed, metadata_errors="replace") as container:
                yield container
        except MediaError:
            raise
        # ValueError: the sound changes its layout on the way
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(f"cannot be decoded ({getattr(error, 'strerror', error)})") from None


def _track(container, kind: str):
    """The first stream of a kind (``video``, ``audio``) that can be decoded; None where there is
    none."""
    from av.stream import Disposition

    for stream in container.streams:
        cover = stream.disposition & Disposition.attached_pic
        if stream.type == kind and not cover and stream.codec_context is not None:
            # Files are decoded side by side; threads inside one would only get in each other's way.
            stream.codec_context.thread_count = 1
            return stream
    return None


def _seconds(container, stream) -> float | None:
    """Declared length of a stream: its own, Matroska's tag, or the container's where it has no
    other stream."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if tag := stream.metadata.get("DURATION"):
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else None


def probe(file: MediaFile) -> Probe:
    """Look at a video or audio file without decoding it. Raises :class:`MediaError`: not a media
    file, empty, cut short."""
    with _opened(file) as container:
        streams = (_track(container, kind) for kind in ("video", "audio"))
        tracks = (s and Track(s.codec_context.name, _seconds(container, s)) for s in streams)
        return Probe(container.duration / 1e6 if container.duration else None, *tracks)


def _pixels(frame, size: int | tuple[int, int] | None) -> np.ndarray:
    width, height = frame.width, frame.height
    if isinstance(size, int):
        shorter = min(width, height)
        width, height = (max(size, round(side * size / shorter)) for side in (width, height))
    elif size is not None:
        height, width = size[::-1] if frame.rotation % 180 else size
    how = {"format": "rgb24", "interpolation": "AREA", "threads": 1}
    pixels = frame.to_ndarray(width=width, height=height, **how)
    # a phone held upright stores its frames lying
    return np.rot90(pixels, round(frame.rotation / 90) % 4)


def frames(
    file: MediaFile, times: Iterable, size: int | tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The frames of a video nearest to some times.

    Args:
        times: ascending, in seconds from the first frame. With a constant rate each frame is within
            half a frame of its time; past the end it is the last one. The file is decoded from its
            start to the last of them.
        size: None, (height, width), or the length of the shorter side, in pixels.

    Returns:
        (n, height, width, 3) uint8 RGB, and the frames' own times (n,) in seconds.

    Raises:
        MediaError: no video track, no frame, or the track ends more than a second before the length
            it declares.
    """
    times, found, stamps = list(times), [], []

    def take(frame, at: float) -> None:
        found.append(found[-1] if stamps and stamps[-1] == at else _pixels(frame, size))
        stamps.append(at)

    with _opened(file) as container:
        stream = _track(container, "video")
        if stream is None:
            raise MediaError("no video track in it")
        before, seen, end, start, tick = None, 0.0, 0.0, None, float(stream.time_base)
        for frame in container.decode(stream):
            if frame.time is None or frame.is_corrupt:
                continue
            start = frame.time if start is None else start
            now = frame.time - start
            while len(found) < len(times) and now >= times[len(found)]:
                earlier = before is not None and times[len(found)] < (seen + now) / 2
                take(*((before, seen) if earlier else (frame, now)))
            if len(found) == len(times):
                break
            before, seen, end = frame, now, now + (frame.duration or 0) * tick
        else:
            if before is None:
                raise MediaError("no frame of it can be decoded")
            declared = _seconds(container, stream)
            if declared and end + 1.0 < declared:
                raise MediaError(f"cut short: the frames end at {end:.1f} s of {declared:.1f} s")
            while len(found) < len(times):
                take(before, seen)
    return np.stack(found), np.array(stamps)


def sound(file: MediaFile, rate: int = 16_000, seconds: float | int = 12.0) -> np.ndarray:
    """The first ``seconds`` of the sound of an audio or video file: (T,) float32 mono in [-1, 1],
    ``rate`` samples a second.

    Mono is the mean of the channels, as in the released code.

    Raises:
        MediaError: no sound track, no sample, or the track ends more than half a second before the
            length it declares.
    """
    import av

    want, parts = round(rate * seconds), []
    with _opened(file) as container:
        stream = _track(container, "audio")
        if stream is None:
            raise MediaError("no sound track in it")
        declared = None if _guessed(container, file) else _seconds(container, stream)
        # FFmpeg's own way to one channel adds 0.7 of each, which clips; the mean is the released
        # "sum, halved".
        resampler = av.AudioResampler(format="fltp", rate=rate)
        have, source = 0, container.decode(stream)
        while have < want:
            frame = next(source, None)
            for out in resampler.resample(frame):
                parts.append(out.to_ndarray())
                have += out.samples
            if frame is None:
                break
    if not have:
        raise MediaError("no sound can be decoded")
    if declared and have / rate + 0.5 < min(declared, seconds):
        raise MediaError(f"cut short: the sound ends at {have / rate:.1f} s of {declared:.1f} s")
    # Part by part: a stream may change from mono to stereo on its way.
    parts = [part.mean(axis=0) if len(part) > 1 else part[0] for part in parts]
    return np.concatenate(parts)[:want]


def _guessed(container, file: MediaFile) -> bool:
    """Whether the length is FFmpeg's guess from the bit rate: a bare AAC or MP3 stream, without the
    header that counts frames."""
    if container.format.name not in ("mp3", "aac"):
        return False
    head = file.ends()
    return not any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))
