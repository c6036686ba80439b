"""What the doctor (:mod:`m5lib.lab.doctor`) tries out: packages with compiled parts, CUDA, FFmpeg.
Each may take its process down, where builds do not fit each other, and is therefore tried in a
child process.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import m5lib

DECODERS = ("h264", "aac", "mp3", "hevc", "av1", "vp9")


def _expect(right: bool, otherwise: str) -> None:
    if not right:
        raise RuntimeError(otherwise)


def _torch() -> str:
    import torch

    x = torch.eye(8)
    _expect(torch.equal(x @ x, x), "a product of matrices comes out wrong")
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    half = (
        torch.cuda.is_available()
        or torch.cpu._is_amx_tile_supported()
        or torch.cpu._is_avx512_bf16_supported()
    )
    return f"{torch.__version__}, {build}; trains in {'bf16' if half else 'float32: this processor does not multiply bf16'}"  # noqa: E501


def _torchvision() -> str:
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0]])
    _expect(
        nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2],
        "its compiled operators come out wrong",
    )
    return "compiled operators load and run (nms)"


def _torchaudio() -> str:
    import torch
    from torchaudio.transforms import MFCC

    found = MFCC(16_000, 13, melkwargs={"n_fft": 1024, "hop_length": 256, "n_mels": 40})(
        torch.zeros(16_000)
    )
    _expect(found.shape[0] == 13 and found.isfinite().all(), "MFCC come out wrong")
    return "MFCC run"


def driver() -> str:
    """The NVIDIA driver's version, empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        return subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        ).stdout.split()[0]
    return ""


def _cuda() -> str:
    import torch

    there = driver()
    if not torch.cuda.is_available():
        if there and not torch.version.cuda:
            raise RuntimeError(
                f"there is an NVIDIA driver ({there}), but torch {torch.__version__} is a build "
                "without CUDA"
            )
        if there:
            torch.zeros(
                1, device="cuda"
            )  # raises with the reason: a driver too old, no device visible, …
        return "no device: everything runs on the processor"
    said = []
    for number in range(torch.cuda.device_count()):
        x = torch.eye(64, device=f"cuda:{number}")
        _expect(torch.equal(x @ x, x), f"device {number}: a product of matrices comes out wrong")
        half = x.bfloat16()
        _expect(
            torch.equal((half @ half).float(), x),
            f"device {number}: a product in bf16 comes out wrong",
        )
        memory = torch.cuda.mem_get_info(number)[1] / 1e9
        said.append(
            f"{torch.cuda.get_device_name(number)} ({memory:.0f} "
            f"GB{'' if torch.cuda.is_bf16_supported() else ', slow bf16'})"
        )
    return f"{', '.join(said)}: float32 and bf16 run; driver {there or 'unknown'}"


def _ffmpeg() -> str:
    """Writes what the shop writes and reads it back: H.264 with AAC in MP4, MP3."""
    import numpy as np

    from m5lib.catalogue import MediaFile
    from m5lib.data import decoding
    from m5lib.shop import rendering

    tone = (0.3 * np.sin(np.arange(rendering.RATE) / 8)).astype(np.float32)
    still = np.full((rendering.FPS, rendering.SIDE, rendering.SIDE, 3), 128, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        film, track = Path(folder, "film.mp4"), Path(folder, "track.mp3")
        rendering.save_film(film, still, tone)
        rendering.save_track(track, tone)
        shown, _ = decoding.frames(MediaFile(film), [0.5])
        heard = [decoding.sound(MediaFile(path), rendering.RATE) for path in (film, track)]
    _expect(
        abs(float(shown.mean()) - 128) < 8 and all(np.abs(sound).max() > 0.1 for sound in heard),
        "what was written reads otherwise",
    )
    import av

    return f"PyAV {av.__version__} writes and reads H.264, AAC and MP3"


def _decoders() -> str:
    import av

    lacks = [name for name in DECODERS if name not in av.codecs_available]
    if lacks:
        raise RuntimeError(f"this FFmpeg cannot read {', '.join(lacks)}")
    return ", ".join(DECODERS)


#: What is tried -> how. Each returns what it found, or raises.
TRIALS: dict[str, Callable[[], str]] = {
    "torch": _torch,
    "torchvision": _torchvision,
    "torchaudio": _torchaudio,
    "cuda": _cuda,
    "ffmpeg": _ffmpeg,
    "decoders": _decoders,
}


def attempt(names: Iterable[str]) -> None:
    """Try some of :data:`TRIALS` here; a line of JSON for each: ``[name, worked, what was
    found]``."""
    for name in names:
        try:
            found = True, TRIALS[name]()
        except BaseException as error:  # anything: it is what the doctor is for
            found = False, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        print(json.dumps([name, *found]), flush=True)


def in_child(names: Iterable[str]) -> dict[str, tuple[bool, str]]:
    """Try them in a child process: name -> worked or not, and what was found. One that takes the
    child down failed; the others go on."""
    names, found = list(names), {}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(m5lib.ROOT), os.environ.get("PYTHONPATH", "")])
        )
    }
    while left := [name for name in names if name not in found]:
        code, end = (
            f"from m5lib.lab import trials; trials.attempt({left!r})",
            "no answer within five minutes",
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            child = subprocess.run(
                [sys.executable, "-c", code],
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            end = f"took Python down (exit code {child.returncode}) {(child.stderr.strip().splitlines() or [''])[-1]}".strip()  # noqa: E501
            lines = (
                json.loads(line) for line in child.stdout.splitlines() if line.startswith('["')
            )
            found |= {name: (worked, said) for name, worked, said in lines}
        if name := next((name for name in left if name not in found), ""):
            found[name] = False, end
    return found
