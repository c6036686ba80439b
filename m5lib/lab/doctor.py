"""``python -m m5lib doctor``: is this machine ready, and where it is not, what mends it.

A line a check: ``ok``, ``warning`` (works, with something less) or ``fault``, and its mend below.
What may take Python down, builds that do not fit each other above all, is tried in a child process.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import m5lib

try:
    from packaging.requirements import Requirement
except ImportError:  # nothing is installed
    Requirement = None

#: GB of disk that a run of a profile on the shop takes; ``full`` is scaled from ``small`` to
#: 100,000 listings and the paper's 250 M parameters.
NEEDS = {"tiny": 0.1, "small": 0.4, "full": 15}
TORCH = ("torch", "torchvision", "torchaudio")
ANEW = "rm -r .venv; make environment"
TOGETHER = '--force-reinstall  (all three at once, from one index: a "+cpu" build fits no other)'


class Finding(NamedTuple):
    """What one check found; ``mend`` is what to do about it."""

    check: str
    status: str
    found: str
    mend: str = ""


def _project() -> dict:
    """The project's requirements: of ``pyproject.toml``, or of the installed package."""
    path = m5lib.ROOT / "pyproject.toml"
    if path.exists():
        return tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    specs = [spec for spec in metadata.requires("m5lib") or [] if "extra ==" not in spec]
    return {"requires-python": metadata.metadata("m5lib")["Requires-Python"], "dependencies": specs}


def _pip(*names: str) -> str:
    """The command that installs these with the Python that runs now, as the project wants them."""
    groups = _project().get("optional-dependencies", {})
    specs = [*_project()["dependencies"], *(spec for group in groups.values() for spec in group)]
    specs = [spec for name in names for spec in specs if spec.startswith((f"{name}>", f"{name}["))]
    return f"{sys.executable} -m pip install {' '.join(map(json.dumps, specs))}"


def _installed(name: str) -> str:
    """The version of an installed package, empty where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def versions() -> Iterator[Finding]:
    """Python and every package against the bounds of ``pyproject.toml``; those of ``dev`` are
    missed by ``make test`` only, those of ``cluster`` by sweeps on clusters."""
    if Requirement is None:
        yield Finding("packages", "fault", "the project's packages are absent", "make environment")
        return
    project, good = _project(), 0
    have, bounds = platform.python_version(), Requirement(f"python{project['requires-python']}")
    if have not in bounds.specifier:
        mend = "rm -r .venv, then say which Python: make PYTHON=python3.12 environment"
        yield Finding(
            "python", "fault", f"{have} in {sys.prefix}; {bounds.specifier} is needed", mend
        )
    else:
        yield Finding("python", "ok", f"{have} in {sys.prefix}")
    groups = {"": project["dependencies"], **project.get("optional-dependencies", {})}
    for group, wanted in [(g, Requirement(spec)) for g, specs in groups.items() for spec in specs]:
        name, have = wanted.name, _installed(wanted.name)
        if have and wanted.specifier.contains(have, prereleases=True):
            good += 1
        elif have or group != "cluster":
            said = f"{have} is installed" if have else "absent"
            said += (
                f"; only `make {'test' if group == 'dev' else 'results'}` needs it" if group else ""
            )
            mend = f"{_pip(*TORCH)} {TOGETHER}" if name in TORCH else _pip(name)
            status = "warning" if group else "fault"
            yield Finding(name, status, f"{said}; {wanted.specifier} is needed", mend)
    yield Finding("packages", "ok", f"{good} within the bounds of pyproject.toml")


def builds() -> Iterator[Finding]:
    """Whether torch, torchvision and torchaudio belong together, by what they say of themselves."""
    have = {name: _installed(name) for name in TORCH}
    if not all(have.values()):
        return  # said by `versions`
    tags, said = {v.partition("+")[2] for v in have.values()}, []
    plain = {name: version.partition("+")[0] for name, version in have.items()}
    for spec in map(Requirement, metadata.requires("torchvision") or []):
        if spec.name == "torch" and not spec.specifier.contains(plain["torch"], prereleases=True):
            exact = str(spec.specifier).removeprefix("==")
            said.append(f"torchvision {plain['torchvision']} was built for torch {exact}")
    own, torch = (plain[name].rpartition(".")[0] for name in ("torchaudio", "torch"))
    if own != torch:
        said.append(f"torchaudio {plain['torchaudio']} was built for torch {own}")
    if "cpu" in tags and len(tags) > 1:
        said.append("builds for processors beside others")
    status = "fault" if said else "warning" if len(tags) > 1 else "ok"
    said += ["from several indexes; below is whether they run together"] * (status == "warning")
    text = "; ".join([", ".join(f"{name} {v}" for name, v in have.items()), *said])
    yield Finding("builds", status, text, "" if status == "ok" else f"{_pip(*TORCH)} {TOGETHER}")


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
        mend = f"{_pip(*TORCH)} {TOGETHER}"
        if name == "cuda":
            mend = f"update the NVIDIA driver, or install builds for yours: {mend}"
        elif name == "ffmpeg":
            mend = f"{_pip('av')} --force-reinstall --only-binary av  (FFmpeg is in its wheel)"
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
    file, command = str(Path(spec.resource_dir, "kernel.json")), spec.argv[0]
    command = sys.executable if command.startswith("python") else command  # as Jupyter starts it
    code = [command, "-c", "import sys, ipykernel, m5lib; print(sys.prefix)"]
    try:
        child = subprocess.run(
            code, cwd=m5lib.ROOT / "notebooks", capture_output=True, text=True, timeout=60
        )
        return child.stdout.strip(), file
    except (OSError, subprocess.SubprocessError):
        return "", file


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
    before = os.environ.get("JUPYTER_PREFER_ENV_PATH")
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    preferred = _prefix_of("python3")[0] == sys.prefix
    del os.environ["JUPYTER_PREFER_ENV_PATH"]
    os.environ |= {} if before is None else {"JUPYTER_PREFER_ENV_PATH": before}
    if preferred:
        mend = "export JUPYTER_PREFER_ENV_PATH=1, as `make` and `python -m m5lib notebooks` do"
        yield Finding("kernel", "warning" if before is None else "fault", said, mend)
    else:
        mend = (
            f"{sys.executable} -m ipykernel install --sys-prefix --name python3; {sys.executable}"
        )
        mend += f" -m pip install --no-deps -e {m5lib.ROOT}; and delete {file}"
        yield Finding("kernel", "fault", said, mend)


def home() -> Iterator[Finding]:
    """Whether ``M5_HOME`` can be written and files in it locked, and its free space against what
    profiles need."""
    place, said = m5lib.home().absolute(), str(m5lib.home())
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
    fits = [profile for profile, need in NEEDS.items() if free >= need]
    status = "ok" if "small" in fits else "warning" if fits else "fault"
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
            findings.append(Finding(check.__name__, "fault", said, ANEW))
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
