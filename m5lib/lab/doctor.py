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

import m5lib

#: GB of disk that a run of a profile on the shop takes; ``full`` is scaled from ``small`` to
#: 100,000 listings and the paper's 250 M parameters.
NEEDS = {"tiny": 0.1, "quick": 0.2, "small": 0.4, "full": 15}
TORCH = ("torch", "torchvision", "torchaudio")


class Finding(NamedTuple):
    """What one check found; ``mend`` is what to do about it."""

    check: str
    status: str
    found: str
    mend: str = ""

    @classmethod
    def of(cls, check: str, good: bool, found: str, mend: str, bad: str = "fault") -> "Finding":
        """``ok``; or ``bad``, with its mend."""
        return cls(check, "ok", found) if good else cls(check, bad, found, mend)


def _wanted() -> dict[str, tuple]:
    """Package -> its requirement, and the extra that asks for it, empty where none does."""
    from packaging.requirements import Requirement

    specs = [Requirement(spec) for spec in metadata.requires("m5lib")]
    extras = (re.search(r'extra == "(\w+)"', str(spec.marker)) for spec in specs)
    return {r.name: (r, extra[1] if extra else "") for r, extra in zip(specs, extras, strict=True)}


def _pip(name: str) -> str:
    """The command that installs a package for this Python, one of torch with the other two."""
    names, wanted = TORCH if name in TORCH else (name,), _wanted()
    specs = " ".join(json.dumps(f"{name}{wanted[name][0].specifier}") for name in names)
    together = ' --force-reinstall  (all at once, from one index: a "+cpu" build fits no other)'
    return f"{sys.executable} -m pip install {specs}{together * (len(names) > 1)}"


def _installed(name: str) -> str:
    """The version of an installed package, empty where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def versions() -> Iterator[Finding]:
    """Python and every package against the bounds of ``pyproject.toml``, as it was installed. Of
    the extras only packages of ``dev`` are missed where they are absent."""
    from packaging.specifiers import SpecifierSet

    have, needs, good = platform.python_version(), metadata.metadata("m5lib")["Requires-Python"], 0
    mend = "rm -r .venv, then say which Python: make PYTHON=python3.12 environment"
    said = f"{have} in {sys.prefix}; {needs} is needed"
    yield Finding.of("python", SpecifierSet(needs).contains(have), said, mend)
    for name, (wanted, extra) in _wanted().items():
        have = _installed(name)
        if have and wanted.specifier.contains(have, prereleases=True):
            good += 1
        elif have or extra in ("", "dev"):
            said = f"{have} is installed" if have else "absent"
            said += f"; {wanted.specifier} is needed" + f", only by the extra {extra}" * bool(extra)
            yield Finding(name, "warning" if extra else "fault", said, _pip(name))
    yield Finding("packages", "ok", f"{good} within the bounds of pyproject.toml")


#: What is tried -> the package that it tries, and code that prints what it found, or raises.
TRIALS = {
    "torch": ("torch", """
import shutil, torch
if shutil.which("nvidia-smi"):
    assert torch.version.cuda, "an NVIDIA driver, but a torch that was built without CUDA"
    torch.zeros(1, device="cuda")  # raises with the reason: a driver too old, no device visible
devices = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
for device in ["cpu", *devices]:
    for kind in [torch.float32, torch.bfloat16]:
        x = torch.eye(64, device=device, dtype=kind)
        assert torch.equal(x @ x, x), f"{device}: a product in {kind} comes out wrong"
names = ", ".join(map(torch.cuda.get_device_name, devices)) or "the processor: no CUDA device"
fast = devices or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
print(f"{torch.__version__} trains on {names}, in {'bf16' if fast else 'float32: no fast bf16'}")
"""),
    "torchvision": ("torchvision", """
import torchvision, torch
assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
print(f"{torchvision.__version__}: compiled operators load and run (nms)")
"""),
    "torchaudio": ("torchaudio", """
import torchaudio, torch
assert torchaudio.transforms.MFCC(16000, 13)(torch.zeros(16000)).shape[0] == 13
print(f"{torchaudio.__version__}: MFCC run")
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
        said = (child.stderr.strip().splitlines() or [""])[-1]
        said = said if child.returncode == 1 else f"took Python down ({child.returncode}) {said}"
        driver = "CUDA" in said or "NVIDIA" in said
        mend = "update the NVIDIA driver, or install builds for yours: " * driver + _pip(package)
        mend += " --force-reinstall --only-binary av  (FFmpeg is in its wheel)" * (name == "ffmpeg")
        good = child.returncode == 0
        yield Finding.of(name, good, child.stdout.strip() if good else said, mend)


def kernel() -> Iterator[Finding]:
    """Whether the kernel that the notebooks name is this Python, with ``m5lib`` in it."""
    from jupyter_client.kernelspec import KernelSpecManager

    books, clone = m5lib.ROOT / "notebooks", "clone the repository and install it: pip install -e ."
    if not list(books.glob("*.ipynb")):
        yield Finding("kernel", "fault", f"no notebooks in {m5lib.ROOT}", clone)
        return
    spec = KernelSpecManager().get_kernel_spec("python3")
    file = Path(spec.resource_dir, "kernel.json")
    command = sys.executable if spec.argv[0].startswith("python") else spec.argv[0]  # as Jupyter
    code = [command, "-c", "import sys, ipykernel, m5lib; print(sys.prefix)"]
    try:
        child = subprocess.run(code, cwd=books, capture_output=True, text=True, timeout=60)
        prefix = child.stdout.strip() or "one that cannot run them"
    except (OSError, subprocess.SubprocessError) as error:
        prefix = f"one that does not start ({error})"
    mend = "export JUPYTER_PREFER_ENV_PATH=1, as `make` and `python -m m5lib notebooks` do; if that"
    mend += f" is not enough, {sys.executable} -m ipykernel install --sys-prefix --name python3;"
    mend += f" {sys.executable} -m pip install --no-deps -e {m5lib.ROOT}; delete {file}"
    said = "this Python" if prefix == sys.prefix else prefix
    said = f"python3, which the notebooks name, is {said} ({file})"
    yield Finding.of("kernel", prefix == sys.prefix, said, mend)


def home() -> Iterator[Finding]:
    """Whether ``M5_HOME`` can be written and locked in, and has the room that profiles need."""
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
    needs = ", ".join(f"{profile} {need:g}" for profile, need in NEEDS.items())
    text = f"{free:.1f} GB free below {said}; a run needs about (GB): {needs}"
    bad = "fault" if free < NEEDS["tiny"] else "warning"
    yield Finding.of("disk", free >= NEEDS["small"], text, f"free some, or {elsewhere}", bad)


def fonts() -> Iterator[Finding]:
    """Whether figures can draw Chinese, the language of the paper's data."""
    code = "import m5lib.figures.style as s; print(*s.families()[1:], s.INSTALL, sep='\\n')"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *found, mend = child.stdout.splitlines()
    said = f"{found[0]} has Chinese" if found else "none has Chinese; figures show □ for it"
    yield Finding.of("fonts", bool(found), said, mend, "warning")


CHECKS = (versions, trials, kernel, fonts, home)


def examine() -> list[Finding]:
    """Every finding, in order. A check that itself fails is a fault, and the others go on."""
    findings = []
    for check in CHECKS:
        try:
            findings.extend(check())
        except Exception as error:  # a broken installation breaks in ways nobody thought of
            said, mend = f"{type(error).__name__}: {error}", "rm -r .venv; make environment"
            if isinstance(error, ImportError):
                said, mend = f"the project's packages are absent ({error})", "make environment"
            findings.append(Finding(check.__name__, "fault", said, mend))
    return findings


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; returns 1 where there is a fault."""
    argparse.ArgumentParser("python -m m5lib doctor", description=__doc__).parse_args(arguments)
    findings = examine()
    for check, status, said, mend in findings:
        print(f"{status:8} {check:12} {said}" + (f"\n{'':21} mend: {mend}" if mend else ""))
    statuses = [finding.status for finding in findings]
    print(", ".join(f"{statuses.count(s)} {s}" for s in ("ok", "warning", "fault")))
    return int("fault" in statuses)
