"""``python -m m5lib doctor``: is this machine ready, and where it is not, what mends it.

One line a check, ``ok``, ``warning`` (works, with something less) or ``fault``, with the mend below
it. Needs nothing but Python, so that it speaks where everything else is missing. What can take a
process down, builds that do not fit each other above all, is tried in a child process
(:mod:`m5lib.lab.trials`).
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import m5lib
from m5lib.lab import trials

#: GB of disk and of memory that one run of a profile on the synthetic shop takes: media, features,
#: model, checkpoint. ``tiny`` and ``small`` as measured on the demo, rounded up; ``full`` scaled
#: from ``small`` to 100,000 listings and the paper's 250 M parameters.
NEEDS = {"tiny": (0.1, 1), "small": (0.4, 2), "full": (15, 16)}
TORCH = ("torch", "torchvision", "torchaudio")
ANEW = "rm -r .venv; make environment"


Status = Literal["ok", "warning", "fault"]


class Finding(NamedTuple):
    """What one check found; ``mend`` is what to do about it."""

    check: str
    status: Status
    found: str
    mend: str = ""


def _pip(*wanted: str) -> str:
    """The command that installs these with the Python that runs now."""
    return f"{sys.executable} -m pip install {' '.join(json.dumps(spec) for spec in wanted)}"


def _project() -> dict:
    """``requires-python``, ``dependencies`` and ``optional-dependencies``: of ``pyproject.toml``,
    or of the installed package."""
    path = m5lib.ROOT / "pyproject.toml"
    if path.exists():
        return tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    found = metadata.metadata("m5lib")
    plain = [line for line in found.get_all("Requires-Dist") or [] if "extra ==" not in line]
    return {
        "requires-python": found["Requires-Python"],
        "dependencies": plain,
        "optional-dependencies": {},
    }


# --- Python and packages
# ------------------------------------------------------------------------------------------------


def _tuple(version: str) -> tuple[int, ...]:
    return tuple(
        int(number) for number in re.findall(r"\d+", re.split(r"[^0-9.]", version.split("+")[0])[0])
    )


def within(version: str, bounds: str) -> bool:
    """Whether a version lies within bounds such as ``>=2.11,<2.12``. Build tags (``+cpu``) and what
    follows the numbers do not count."""
    for sign, limit in re.findall(r"(>=|<=|==|<|>)\s*([0-9][^,\s]*)", bounds):
        length = max(len(_tuple(version)), len(_tuple(limit)))
        ours, theirs = ((*_tuple(v), *[0] * length)[:length] for v in (version, limit))
        if not {
            ">=": ours >= theirs,
            "<=": ours <= theirs,
            "==": ours == theirs,
            "<": ours < theirs,
            ">": ours > theirs,
        }[sign]:
            return False
    return True


def _installed(name: str) -> str:
    """The version of an installed package, empty where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def python() -> Iterator[Finding]:
    """This Python against ``requires-python``."""
    bounds, found = _project()["requires-python"], f"{platform.python_version()} in {sys.prefix}"
    if within(platform.python_version(), bounds):
        yield Finding("python", "ok", found)
    else:
        yield Finding(
            "python",
            "fault",
            f"{found}; {bounds} is needed",
            "rm -r .venv, then say which Python: make PYTHON=python3.12 environment",
        )


def packages() -> Iterator[Finding]:
    """Every package of ``pyproject.toml`` against its bounds; those of ``dev`` are missed by ``make
    test`` only."""
    project, good, bad, without = _project(), 0, 0, []
    extras = project["optional-dependencies"]
    for group, specs in (("", project["dependencies"]), *extras.items()):
        for spec in specs:
            name, bounds = re.match(r"([A-Za-z0-9_.-]+)(?:\[.*?\])?\s*(.*)", spec).groups()
            version = _installed(name)
            if version and within(version, bounds):
                good += 1
                continue
            if not version and group == "cluster":
                without.append(name)
                continue
            bad += 1
            if version:
                mend = (
                    _pip(*(s for s in specs if s.startswith(TORCH))) + TOGETHER
                    if name in TORCH
                    else _pip(spec)
                )
                yield Finding(
                    name,
                    "warning" if group else "fault",
                    f"{version} is installed; {bounds} is needed",
                    mend,
                )
            else:
                said = (
                    "absent; only `make test` needs it"
                    if group
                    else f"absent; {bounds or 'any version'} is needed"
                )
                yield Finding(name, "warning" if group else "fault", said, _pip(spec))
    said = (
        f'; for clusters {" and ".join(without)}: pip install "m5lib[cluster]"' if without else ""
    )
    if bad:
        yield Finding(
            "packages",
            "warning",
            f"{good} within the bounds of pyproject.toml, {bad} not (above){said}",
            f"all at once: {ANEW}",
        )
    else:
        yield Finding("packages", "ok", f"{good} within the bounds of pyproject.toml{said}")


# --- builds, tried out
# ------------------------------------------------------------------------------------------------

TOGETHER = (
    ' --force-reinstall  (all three in one command, from one index: a "+cpu" build fits no other)'
)


def _mend_torch() -> str:
    wanted = [spec for spec in _project()["dependencies"] if spec.startswith(TORCH)]
    return _pip(*wanted) + TOGETHER


def builds() -> Iterator[Finding]:
    """Whether torch, torchvision and torchaudio belong together, by what they say of themselves."""
    found = {name: _installed(name) for name in TORCH}
    if not all(found.values()):
        return  # said by `packages`
    wrong = []
    for line in metadata.requires("torchvision") or []:
        if (exact := re.match(r"torch\s*\(?==\s*([^);\s]+)", line)) and not within(
            found["torch"], f"=={exact[1]}"
        ):
            wrong.append(f"torchvision {found['torchvision']} was built for torch {exact[1]}")
    if _tuple(found["torchaudio"])[:2] != _tuple(found["torch"])[:2]:
        wrong.append(
            f"torchaudio {found['torchaudio']} was built for torch "
            f"{'.'.join(map(str, _tuple(found['torchaudio'])[:2]))}"
        )
    said = ", ".join(f"{name} {version}" for name, version in found.items())
    tags = {version.partition("+")[2] for version in found.values()}
    if wrong or ("cpu" in tags and len(tags) > 1):
        yield Finding(
            "builds",
            "fault",
            f"{said}: {'; '.join(wrong) or 'builds for processors beside others'}",
            _mend_torch(),
        )
    elif len(tags) > 1:
        yield Finding(
            "builds",
            "warning",
            f"{said}: from several indexes; below is whether they run together",
            _mend_torch(),
        )
    else:
        yield Finding("builds", "ok", said)


def _mend_av() -> str:
    spec = next(spec for spec in _project()["dependencies"] if spec.startswith("av"))
    return (
        _pip(spec)
        + " --force-reinstall --only-binary av  (FFmpeg is in its wheel; one built from source has the system's)"  # noqa: E501
    )


def _mend_cuda() -> str:
    return (
        "update the NVIDIA driver, or install builds for yours (see pytorch.org, Get Started): "
        + _mend_torch()
    )


#: What is tried out -> the package without which it is not, the status of a failure, its mend.
TRIED: dict[str, tuple[str, Status, Callable[[], str]]] = {
    "torch": ("torch", "fault", _mend_torch),
    "torchvision": ("torchvision", "fault", _mend_torch),
    "torchaudio": ("torchaudio", "fault", _mend_torch),
    "cuda": ("torch", "fault", _mend_cuda),
    "ffmpeg": ("av", "fault", _mend_av),
    "decoders": ("av", "warning", _mend_av),
}


def tried() -> Iterator[Finding]:
    """Everything of :data:`TRIED` whose package is installed (:mod:`m5lib.lab.trials`)."""
    todo = [name for name, (package, *_) in TRIED.items() if _installed(package)]
    for name, (worked, said) in trials.in_child(todo).items():
        _, status, mend = TRIED[name]
        yield Finding(name, "ok", said) if worked else Finding(name, status, said, mend())


# --- Jupyter
# ------------------------------------------------------------------------------------------------


def _prefix_of(kernel: str) -> tuple[str, str]:
    """Where the Python of a kernel lies, empty with the reason where it cannot run a notebook; and
    its ``kernel.json``."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        spec = KernelSpecManager().get_kernel_spec(kernel)
    except NoSuchKernel:
        return "", ""
    command = (
        sys.executable if re.fullmatch(r"python[0-9.]*", spec.argv[0]) else spec.argv[0]
    )  # as jupyter_client starts it
    code = "import sys, ipykernel, m5lib; print(sys.prefix)"
    try:
        child = subprocess.run(
            [command, "-c", code],
            cwd=m5lib.ROOT / "notebooks",
            capture_output=True,
            text=True,
            timeout=60,
        )
        return child.stdout.strip(), str(Path(spec.resource_dir, "kernel.json"))
    except (OSError, subprocess.SubprocessError):
        return "", str(Path(spec.resource_dir, "kernel.json"))


def kernels() -> Iterator[Finding]:
    """Whether the kernel that the notebooks name is this Python, with ``m5lib`` in it."""
    books = sorted((m5lib.ROOT / "notebooks").glob("*.ipynb"))
    if not books:
        yield Finding(
            "notebooks",
            "fault",
            f"none in {m5lib.ROOT}",
            "clone the repository and install from there: pip install -e .",
        )
        return
    if not (_installed("jupyter_client") and _installed("ipykernel")):
        return  # said by `packages`
    for name in sorted(
        {
            json.loads(book.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"]
            for book in books
        }
    ):
        prefix, spec = _prefix_of(name)
        if prefix == sys.prefix:
            yield Finding(
                "kernel",
                "ok",
                f"{name}, which {len(books)} notebooks name, is this Python ({spec})",
            )
            continue
        other = (
            f"the Python in {prefix}"
            if prefix
            else "one that cannot import ipykernel and m5lib"
            if spec
            else "not there"
        )
        before = os.environ.get("JUPYTER_PREFER_ENV_PATH")
        os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
        try:
            preferred = _prefix_of(name)[0] == sys.prefix
        finally:
            os.environ.pop("JUPYTER_PREFER_ENV_PATH") if before is None else os.environ.update(
                JUPYTER_PREFER_ENV_PATH=before
            )
        said = f"{name}, which the notebooks name, is {other}{f' ({spec})' if spec else ''}"
        if preferred:
            mend = "export JUPYTER_PREFER_ENV_PATH=1, which `make` and `python -m m5lib.lab.notebooks` set where it is not set"  # noqa: E501
            yield Finding("kernel", "warning" if before is None else "fault", said, mend)
        else:
            mend = f"{sys.executable} -m ipykernel install --sys-prefix --name {name}"
            mend += f"; {sys.executable} -m pip install --no-deps -e {m5lib.ROOT}" + (
                f"; and delete {spec}" if spec else ""
            )
            yield Finding("kernel", "fault", said, mend)


# --- the machine
# ------------------------------------------------------------------------------------------------


def _there(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(
        place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place)
    )


def home() -> Iterator[Finding]:
    """Whether ``M5_HOME`` can be written, and files in it locked."""
    place = _there(m5lib.home())
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            lockable = _lockable(file)
    except OSError as error:
        yield Finding(
            "home",
            "fault",
            f"{m5lib.home()}: {error.strerror or error}",
            "export M5_HOME=a folder that you may write to",
        )
        return
    if lockable:
        yield Finding("home", "ok", f"{m5lib.home()} can be written")
    else:
        yield Finding(
            "home",
            "warning",
            f"{m5lib.home()}: files cannot be locked there, so two processes may do the same work",
            "export M5_HOME=a folder on a disk with locks, or run one notebook at a time",
        )


def _lockable(file) -> bool:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (ImportError, OSError):
        return False


def disk() -> Iterator[Finding]:
    """Free space below ``M5_HOME`` against what profiles need."""
    free = shutil.disk_usage(_there(m5lib.home())).free / 1e9
    yield _against(
        "disk",
        free,
        0,
        f"{free:.1f} GB free below {m5lib.home()}",
        "free some, or export M5_HOME=a folder on a larger disk",
    )


def memory() -> Iterator[Finding]:
    """Memory that is available, a container's limit included, against what profiles need."""
    have = available()
    if have is None:
        yield Finding("memory", "ok", "this system does not say")
    else:
        yield _against(
            "memory",
            have,
            1,
            f"{have:.1f} GB available",
            "close other programs, or allow the container more",
        )


def _against(check: str, have: float, column: int, said: str, mend: str) -> Finding:
    fits = [profile for profile, needs in NEEDS.items() if have >= needs[column]]
    needs = ", ".join(f"{profile} {needs[column]:g}" for profile, needs in NEEDS.items())
    status = "ok" if "small" in fits else "warning" if fits else "fault"
    return Finding(
        check, status, f"{said}; a run needs about (GB): {needs}", "" if status == "ok" else mend
    )


def available() -> float | None:
    """GB of memory that may still be used; ``None`` where the system does not say."""
    found = []
    with contextlib.suppress(OSError, AttributeError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9)
    with contextlib.suppress(OSError, AttributeError, TypeError):
        found.append(
            int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
            * 1024
            / 1e9
        )
    with contextlib.suppress(OSError, ValueError):
        used, limit = (
            int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("current", "max")
        )
        found.append((limit - used) / 1e9)
    return min(found, default=None)


def cores() -> int:
    """Cores that this process may use: affinity and a container's quota count, where joblib is
    there to ask."""
    try:
        from joblib import cpu_count
    except ImportError:
        return os.cpu_count() or 1
    return cpu_count()


def threads() -> Iterator[Finding]:
    """Cores, and what the environment says of threads."""
    have, given = (
        cores(),
        {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
            if os.environ.get(name)
        },
    )
    said = f"{have} core{'s' * (have != 1)}" + "".join(
        f", {name}={value}" for name, value in given.items()
    )
    if bad := [name for name, value in given.items() if not value.isdigit() or int(value) > have]:
        yield Finding(
            "threads",
            "warning",
            f"{said}: threads that wait for each other are many times slower",
            f"unset {' '.join(bad)}",
        )
    else:
        yield Finding("threads", "ok", said)


def commit() -> Iterator[Finding]:
    """Whether results can name the commit that made them."""
    try:
        command = [
            "git",
            "-C",
            str(m5lib.ROOT),
            "describe",
            "--always",
            "--dirty=+",
            "--abbrev=12",
            "--exclude=*",
        ]
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()
        yield Finding(
            "commit",
            "ok",
            found
            + (
                " (+: files differ from it, and results will say so)" if found.endswith("+") else ""
            ),
        )
    except (OSError, subprocess.SubprocessError):
        mend = "install git, and clone the repository instead of unpacking an archive"
        yield Finding(
            "commit",
            "warning",
            "unknown: recorded results will not name the code that made them",
            mend,
        )


CHECKS = (python, packages, builds, tried, kernels, home, disk, memory, threads, commit)


def examine() -> list[Finding]:
    """Every finding, in order. A check that itself fails is a fault, and the others go on."""
    found = []
    for check in CHECKS:
        try:
            found += check()
        except Exception as error:  # a broken installation breaks in ways nobody thought of
            found.append(Finding(check.__name__, "fault", f"{type(error).__name__}: {error}", ANEW))
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument(
        "--json", action="store_true", help="a list of objects: check, status, found, mend"
    )


def run(options: argparse.Namespace) -> int:
    """Print the findings; returns 1 where there is a fault."""
    found = examine()
    if options.json:
        print(json.dumps([finding._asdict() for finding in found], indent=1, ensure_ascii=False))
    else:
        for finding in found:
            print(f"{finding.status:8} {finding.check:12} {finding.found}")
            if finding.mend:
                print(f"{'':21} mend: {finding.mend}")
        count = {
            status: sum(finding.status == status for finding in found)
            for status in ("ok", "warning", "fault")
        }
        print(", ".join(f"{number} {status}" for status, number in count.items()))
    return int(any(finding.status == "fault" for finding in found))
