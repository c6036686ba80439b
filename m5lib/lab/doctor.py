"""``python -m m5lib doctor``: is this machine ready, and where it is not, what mends it.

A line a check: ``ok``, ``warning`` (works, with something less) or ``fault``, and its mend below.
What may take Python down, builds that do not fit each other above all, is tried in a child process.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import m5lib

try:
    from packaging.requirements import Requirement
except ImportError:  # nothing is installed
    Requirement = None

#: GB of disk that a run of a profile on the shop takes; ``full`` is scaled from ``small`` to
#: 100,000 listings and the paper's 250 M parameters.
NEEDS = {"tiny": 0.1, "small": 0.4, "full": 15}
TORCH = ("torch", "torchvision", "torchaudio")
#: Of an extra: who needs a package of it. Only those of ``dev`` are missed where they are absent.
EXTRAS = {
    "dev": "; only `make test` needs it",
    "cluster": "; only sweeps on a cluster need it",
    "weights": "; only trials with real weights need it",
}


class Finding(NamedTuple):
    """What one check found; ``mend`` is what to do about it."""

    check: str
    status: str
    found: str
    mend: str = ""


def _wanted() -> dict[str, tuple]:
    """Package -> its requirement, and the extra that asks for it, empty where it is always
    needed."""
    specs = [Requirement(spec) for spec in metadata.requires("m5lib")]
    extras = (re.search(r'extra == "(\w+)"', str(spec.marker)) for spec in specs)
    return {r.name: (r, extra[1] if extra else "") for r, extra in zip(specs, extras, strict=True)}


def _pip(*names: str) -> str:
    """The command that installs these with the Python that runs now, as the project wants them."""
    specs = (f"{name}{_wanted()[name][0].specifier}" for name in names)
    return f"{sys.executable} -m pip install {' '.join(map(json.dumps, specs))}"


def _pip_torch() -> str:
    together = 'all three at once, from one index: a "+cpu" build fits no other'
    return f"{_pip(*TORCH)} --force-reinstall  ({together})"


def _installed(name: str) -> str:
    """The version of an installed package, empty where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def versions() -> Iterator[Finding]:
    """Python and every package against the bounds of ``pyproject.toml``, as it was installed."""
    if Requirement is None:
        yield Finding("packages", "fault", "the project's packages are absent", "make environment")
        return
    have, good = platform.python_version(), 0
    bounds = Requirement(f"python{metadata.metadata('m5lib')['Requires-Python']}").specifier
    said = f"{have} in {sys.prefix}"
    if have in bounds:
        yield Finding("python", "ok", said)
    else:
        mend = "rm -r .venv, then say which Python: make PYTHON=python3.12 environment"
        yield Finding("python", "fault", f"{said}; {bounds} is needed", mend)
    for name, (wanted, extra) in _wanted().items():
        have = _installed(name)
        if have and wanted.specifier.contains(have, prereleases=True):
            good += 1
        elif have or extra in ("", "dev"):
            said = f"{have} is installed" if have else "absent"
            said += f"{EXTRAS.get(extra, '')}; {wanted.specifier} is needed"
            mend = _pip_torch() if name in TORCH else _pip(name)
            yield Finding(name, "warning" if extra else "fault", said, mend)
    yield Finding("packages", "ok", f"{good} within the bounds of pyproject.toml")


def builds() -> Iterator[Finding]:
    """Whether torch, torchvision and torchaudio belong together, by what they say of themselves."""
    have = {name: _installed(name) for name in TORCH}
    if not all(have.values()):
        return  # said by `versions`
    tags, said = {v.partition("+")[2] for v in have.values()}, []
    torch, vision, audio = (version.partition("+")[0] for version in have.values())
    for spec in map(Requirement, metadata.requires("torchvision") or []):
        if spec.name == "torch" and not spec.specifier.contains(torch, prereleases=True):
            exact = str(spec.specifier).removeprefix("==")
            said.append(f"torchvision {vision} was built for torch {exact}")
    if (own := audio.rpartition(".")[0]) != torch.rpartition(".")[0]:
        said.append(f"torchaudio {audio} was built for torch {own}")
    if "cpu" in tags and len(tags) > 1:
        said.append("builds for processors beside others")
    status = "fault" if said else "warning" if len(tags) > 1 else "ok"
    said += ["from several indexes; below is whether they run together"] * (status == "warning")
    text = "; ".join([", ".join(f"{name} {v}" for name, v in have.items()), *said])
    yield Finding("builds", status, text, "" if status == "ok" else _pip_torch())


#: What is tried -> the package that it tries, and code that prints what it found, or raises.
TRIALS = {
    "torch": ("torch", """
import torch
devices = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
for device in ["cpu", *devices]:
    for kind in [torch.float32, torch.bfloat16]:
        x = torch.eye(64, device=device, dtype=kind)
        assert torch.equal(x @ x, x), f"{device}: a product in {kind} comes out wrong"
names = ", ".join(map(torch.cuda.get_device_name, devices)) or "the processor: no CUDA device"
fast = devices or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
print(f"{torch.__version__} trains on {names}, in {'bf16' if fast else 'float32: no fast bf16'}")
"""),
    "cuda": ("torch", """
import shutil, torch
if shutil.which("nvidia-smi"):
    assert torch.version.cuda, "an NVIDIA driver, but a torch that was built without CUDA"
    torch.zeros(1, device="cuda")  # raises with the reason: a driver too old, no device visible
    print(f"torch for CUDA {torch.version.cuda} runs with this driver")
else:
    print("no NVIDIA driver, and none needed")
"""),
    "torchvision": ("torchvision", """
import torch, torchvision
assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
print("compiled operators load and run (nms)")
"""),
    "torchaudio": ("torchaudio", """
import torch, torchaudio
assert torchaudio.transforms.MFCC(16000, 13)(torch.zeros(16000)).shape[0] == 13
print("MFCC run")
"""),
    "ffmpeg": ("av", """
import av
lacks = {"h264", "aac", "mp3", "hevc", "av1", "vp9"} - set(av.codecs_available)
assert not lacks, f"cannot read {', '.join(sorted(lacks))}"
for name in ("libx264", "aac", "libmp3lame"):
    av.codec.Codec(name, "w")  # what the shop writes
print(f"PyAV {av.__version__} writes H.264, AAC and MP3, and reads what shops have")
"""),
}  # fmt: skip


def trials() -> Iterator[Finding]:
    """Every trial whose package is installed, each in a process of its own."""
    for name, (package, code) in TRIALS.items():
        if not _installed(package):
            continue  # said by `versions`
        command = [sys.executable, "-c", code]
        child = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if child.returncode == 0:
            yield Finding(name, "ok", child.stdout.strip())
            continue
        said = "" if child.returncode == 1 else f"took Python down ({child.returncode}) "
        said += (child.stderr.strip().splitlines() or [""])[-1]
        if name == "ffmpeg":
            mend = f"{_pip('av')} --force-reinstall --only-binary av  (FFmpeg is in its wheel)"
        else:
            driver = "update the NVIDIA driver, or install builds for yours: "
            mend = driver * (name == "cuda") + _pip_torch()
        yield Finding(name, "fault", said, mend)


# --- the machine


def _prefix_of(kernel: str) -> tuple[str, str]:
    """Where the Python of a kernel lies, empty where it cannot run a notebook of ours; and its
    ``kernel.json``."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        spec = KernelSpecManager().get_kernel_spec(kernel)
    except NoSuchKernel:
        return "", "no such kernel"
    command = sys.executable if spec.argv[0].startswith("python") else spec.argv[0]  # as Jupyter
    code = [command, "-c", "import sys, ipykernel, m5lib; print(sys.prefix)"]
    settings = {"cwd": m5lib.ROOT / "notebooks", "capture_output": True, "text": True}
    try:
        prefix = subprocess.run(code, **settings, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        prefix = ""
    return prefix, str(Path(spec.resource_dir, "kernel.json"))


def kernel() -> Iterator[Finding]:
    """Whether the kernel that the notebooks name is this Python, with ``m5lib`` in it."""
    if not list((m5lib.ROOT / "notebooks").glob("*.ipynb")):
        mend = "clone the repository and install from there: pip install -e ."
        yield Finding("kernel", "fault", f"no notebooks in {m5lib.ROOT}", mend)
        return
    if not (_installed("jupyter_client") and _installed("ipykernel")):
        return  # said by `versions`
    prefix, file = _prefix_of("python3")
    if prefix == sys.prefix:
        yield Finding("kernel", "ok", f"python3, which the notebooks name, is this Python ({file})")
        return
    said = f"python3, which the notebooks name, is {prefix or 'one that cannot run them'} ({file})"
    status, install = "fault", f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
    mend = f"{install}; {sys.executable} -m pip install --no-deps -e {m5lib.ROOT}; delete {file}"
    with patch.dict(os.environ, JUPYTER_PREFER_ENV_PATH="1"):
        preferred = _prefix_of("python3")[0] == sys.prefix
    if preferred:
        mend = "export JUPYTER_PREFER_ENV_PATH=1, as `make` and `python -m m5lib notebooks` do"
        status = "fault" if "JUPYTER_PREFER_ENV_PATH" in os.environ else "warning"
    yield Finding("kernel", status, said, mend)


def home() -> Iterator[Finding]:
    """Whether ``M5_HOME`` can be written and files in it locked, and its free space against what
    profiles need."""
    said, place = str(m5lib.home()), m5lib.home().absolute()
    place = next(folder for folder in (place, *place.parents) if os.path.lexists(folder))
    elsewhere = "export M5_HOME=a folder that you may write to, on a disk with locks and room"
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            yield Finding("home", "ok", f"{said} can be written")
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                text = f"no locks in {said}: two processes may do the same work there"
                yield Finding("locks", "warning", text, f"{elsewhere}, or run one thing at a time")
    except OSError as error:
        yield Finding("home", "fault", f"{said}: {error.strerror or error}", elsewhere)
        return
    free = shutil.disk_usage(place).free / 1e9
    status = "fault" if free < NEEDS["tiny"] else "warning" if free < NEEDS["small"] else "ok"
    needs = ", ".join(f"{profile} {need:g}" for profile, need in NEEDS.items())
    text = f"{free:.1f} GB free below {said}; a run needs about (GB): {needs}"
    yield Finding("disk", status, text, "" if status == "ok" else f"free some, or {elsewhere}")


CHECKS = (versions, builds, trials, kernel, home)


def examine() -> list[Finding]:
    """Every finding, in order. A check that itself fails is a fault, and the others go on."""
    findings = []
    for check in CHECKS:
        try:
            findings.extend(check())
        except Exception as error:  # a broken installation breaks in ways nobody thought of
            said = f"{type(error).__name__}: {error}"
            findings.append(Finding(check.__name__, "fault", said, "rm -r .venv; make environment"))
    return findings


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; returns 1 where there is a fault."""
    parser = argparse.ArgumentParser("python -m m5lib doctor", description="Is this machine ready?")
    parser.add_argument("--json", action="store_true", help="objects: check, status, found, mend")
    options, findings = parser.parse_args(arguments), examine()
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1, ensure_ascii=False))
    else:
        for check, status, said, mend in findings:
            print(f"{status:8} {check:12} {said}" + (f"\n{'':21} mend: {mend}" if mend else ""))
        statuses = [finding.status for finding in findings]
        print(", ".join(f"{statuses.count(s)} {s}" for s in ("ok", "warning", "fault")))
    return int(any(finding.status == "fault" for finding in findings))
