"""The doctor finds real faults and names the mend: broken packages, unwritable folders, other
people's kernels."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

from m5lib.lab import doctor, trials


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), str(ROOT)]))
    env = os.environ | environment | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True
    )


def one(found, check: str) -> doctor.Finding:
    return next(finding for finding in found if finding.check == check)


@pytest.fixture
def versions(monkeypatch):
    """A function: packages get these versions; None takes one away."""

    def change(**given):
        real = metadata.version

        def version(name):
            if name.replace("-", "_") not in given:
                return real(name)
            if given[name.replace("-", "_")] is None:
                raise metadata.PackageNotFoundError(name)
            return given[name.replace("-", "_")]

        monkeypatch.setattr(metadata, "version", version)

    return change


def test_this_environment_is_ready(tmp_path):
    done = shell("-m", "m5lib", "doctor", "--json", M5_HOME=str(tmp_path / "new"))
    found = [doctor.Finding(**entry) for entry in json.loads(done.stdout)]
    faults = [finding for finding in found if finding.status == "fault"]
    assert done.returncode == 0 and not faults, faults
    assert {
        "python",
        "packages",
        "builds",
        *trials.TRIALS,
        "kernel",
        "home",
        "disk",
        "memory",
        "threads",
        "commit",
    } == {f.check for f in found}
    assert "H.264" in one(found, "ffmpeg").found and not (tmp_path / "new").exists(), (
        "the doctor leaves nothing behind"
    )


def test_bounds():
    assert doctor.within("2.11.0+cpu", ">=2.11,<2.12") and not doctor.within(
        "2.12.0", ">=2.11,<2.12"
    )
    assert (
        doctor.within("3", ">=3.0,<4")
        and not doctor.within("0.9", ">=0.10")
        and doctor.within("1.2.3", "")
    )
    assert not doctor.within("2.12.0.dev20260101", "==2.11.0") and doctor.within(
        "2.11.0", "==2.11.0"
    )


def test_packages_that_are_absent_or_of_another_version(versions):
    versions(
        captum=None,
        umap_learn=None,
        numpy="1.26.4",
        torch="2.9.0",
        pytest=None,
        submitit=None,
        distributed=None,
    )
    found = list(doctor.packages())
    captum, numpy, torch, pytest_ = (
        one(found, name) for name in ("captum", "numpy", "torch", "pytest")
    )
    assert (
        captum.status == "fault"
        and "absent" in captum.found
        and '-m pip install "captum>=0.8,<1"' in captum.mend
    )
    assert one(found, "umap-learn").mend.endswith('"umap-learn>=0.5.7,<0.6"')
    assert (
        numpy.status == "fault"
        and "1.26.4 is installed; >=2.0,<3 is needed" in numpy.found
        and '"numpy>=2.0,<3"' in numpy.mend
    )
    assert all(f'"{name}>=' in torch.mend for name in doctor.TORCH), "the three are mended together"
    assert pytest_.status == "warning" and "make test" in pytest_.found
    assert "distributed and submitit" in one(found, "packages").found


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    (found,) = doctor.python()
    assert found.status == "fault" and "make PYTHON=" in found.mend


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ({"torch": "2.10.0"}, "fault", "torchvision 0.26.0 was built for torch 2.11.0"),
        ({"torchaudio": "2.10.0"}, "fault", "torchaudio 2.10.0 was built for torch 2.10"),
        (
            {"torch": "2.11.0+cpu", "torchvision": "0.26.0", "torchaudio": "2.11.0"},
            "fault",
            "builds for processors beside others",
        ),
        (
            {"torch": "2.11.0", "torchvision": "0.26.0+cu130", "torchaudio": "2.11.0"},
            "warning",
            "several indexes",
        ),
        (
            {"torch": "2.11.0+cpu", "torchvision": "0.26.0+cpu", "torchaudio": "2.11.0+cpu"},
            "ok",
            "0.26.0+cpu",
        ),
    ],
)
def test_accelerator_builds_that_do_not_fit(versions, given, status, said):
    versions(**{"torch": "2.11.0", "torchvision": "0.26.0", "torchaudio": "2.11.0"} | given)
    (found,) = doctor.builds()
    assert found.status == status and said in found.found
    assert status == "ok" or all(f'"{name}>=' in found.mend for name in doctor.TORCH)


def test_a_package_that_takes_python_down_is_a_fault_and_the_others_go_on(tmp_path, monkeypatch):
    """What really happens where builds do not fit: torchvision raises at import, torchaudio kills
    the process."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("import os; os.abort()")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    found = list(doctor.tried())
    assert [finding.check for finding in found] == list(trials.TRIALS)
    assert (
        "nms does not exist" in one(found, "torchvision").found
        and "took Python down" in one(found, "torchaudio").found
    )
    for name in ("torchvision", "torchaudio"):
        assert one(found, name).status == "fault" and "from one index" in one(found, name).mend
    assert one(found, "torch").status == one(found, "ffmpeg").status == "ok"


def test_an_ffmpeg_without_encoders(tmp_path, monkeypatch):
    (tmp_path / "av").mkdir()
    (tmp_path / "av" / "__init__.py").write_text(
        "codecs_available = {'h264', 'mp3'}\ndef open(*a, **k): raise ValueError('libx264')"
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.setattr(
        doctor, "TRIED", {name: doctor.TRIED[name] for name in ("ffmpeg", "decoders")}
    )
    found = list(doctor.tried())
    assert (
        one(found, "ffmpeg").status == "fault"
        and "libx264" in one(found, "ffmpeg").found
        and "wheel" in one(found, "ffmpeg").mend
    )
    assert "aac, hevc, av1, vp9" in one(found, "decoders").found


def kernel(folder: Path, command: str) -> Path:
    spec = folder / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [command, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    return spec


def test_a_kernel_of_another_python(tmp_path, monkeypatch):
    """A kernel in the user's folder comes before the environment's, unless JUPYTER_PREFER_ENV_PATH
    is set."""
    spec = kernel(tmp_path, "/bin/false")
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    (found,) = doctor.kernels()
    assert (
        found.status == "fault"
        and str(spec) in found.found
        and found.mend.startswith("export JUPYTER_PREFER_ENV_PATH=1")
    )
    assert os.environ["JUPYTER_PREFER_ENV_PATH"] == "0"
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    (found,) = doctor.kernels()
    assert found.status == "ok"
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))  # before everything else
    (found,) = doctor.kernels()
    assert (
        found.status == "fault"
        and "ipykernel install --sys-prefix" in found.mend
        and f"delete {spec}" in found.mend
    )


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("M5_HOME", str(tmp_path / "file" / "below"))
    (found,) = doctor.home()
    assert (
        found.status == "fault" and str(tmp_path) in found.found and "export M5_HOME=" in found.mend
    )
    done = shell(
        "-c",
        "from m5lib import __main__; from m5lib.lab import doctor; "
        "doctor.CHECKS = (doctor.home,); raise SystemExit(__main__.main())",
        "doctor",
    )
    assert (
        done.returncode == 1 and "mend: export M5_HOME=" in done.stdout and "1 fault" in done.stdout
    )


def test_a_home_without_locks(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setenv("M5_HOME", str(tmp_path))
    monkeypatch.setattr(fcntl, "flock", refuse)
    (found,) = doctor.home()
    assert found.status == "warning" and "locks" in found.mend


def test_too_little_disk_memory_and_too_many_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("M5_HOME", str(tmp_path))
    for free, status in ((0.01, "fault"), (0.2, "warning"), (100, "ok")):
        monkeypatch.setattr(
            doctor.shutil,
            "disk_usage",
            lambda _, free=free: doctor.shutil._ntuple_diskusage(0, 0, free * 1e9),
        )
        (found,) = doctor.disk()
        assert found.status == status and (status == "ok") == (not found.mend)
    monkeypatch.setattr(doctor, "available", lambda: 0.5)
    (found,) = doctor.memory()
    assert found.status == "fault" and "0.5 GB" in found.found
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    (found,) = doctor.threads()
    assert found.status == "warning" and "OMP_NUM_THREADS" in found.mend


def test_an_unpacked_archive_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.m5lib, "ROOT", tmp_path)
    (found,) = doctor.commit()
    assert found.status == "warning" and "clone" in found.mend
    (found,) = doctor.kernels()
    assert found.check == "notebooks" and found.status == "fault"


def test_a_check_that_breaks_is_a_fault_and_the_others_go_on(monkeypatch):
    def broken():
        raise KeyError("what nobody thought of")

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.threads))
    assert [finding.status for finding in doctor.examine()] == ["fault", "ok"]


def test_it_speaks_where_nothing_is_installed(tmp_path):
    """Python alone (-S: no site-packages): every package is named with its mend, and the exit code
    is 1."""
    done = shell("-S", "-m", "m5lib", "doctor", M5_HOME=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    for name in ("torch", "av", "captum", "umap-learn", "papermill"):
        assert f"fault    {name} " in done.stdout, name
    assert done.stdout.count("mend:") > 20 and "FFmpeg" not in done.stdout


def test_it_imports_nothing_heavy():
    done = shell(
        "-c",
        "import sys; before = set(sys.modules); import m5lib.lab.doctor, m5lib.__main__; "
        "print(set(sys.modules) & {'torch', 'numpy', 'av'})",
    )
    assert done.stdout.strip() == "set()", done.stderr
