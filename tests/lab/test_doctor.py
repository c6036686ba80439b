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

from m5lib.lab import doctor


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), str(ROOT)]))
    env = os.environ | environment | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True
    )


def one(findings, check: str) -> doctor.Finding:
    return next(finding for finding in findings if finding.check == check)


@pytest.fixture
def versions(monkeypatch):
    """A function: packages get these versions; None takes one away."""

    def change(**versions):
        real = metadata.version

        def version(name):
            if name.replace("-", "_") not in versions:
                return real(name)
            if versions[name.replace("-", "_")] is None:
                raise metadata.PackageNotFoundError(name)
            return versions[name.replace("-", "_")]

        monkeypatch.setattr(metadata, "version", version)

    return change


def test_this_environment_is_ready(tmp_path):
    done = shell("-m", "m5lib", "doctor", M5_HOME=str(tmp_path / "new"))
    *lines, counts = done.stdout.splitlines()
    assert done.returncode == 0 and counts.endswith(", 0 fault"), done.stdout
    said = {line.split()[1]: line for line in lines if not line.startswith(" ")}
    assert set(said) == {"python", "packages", *doctor.TRIALS, "kernel", "fonts", "home", "disk"}
    assert "H.264" in said["ffmpeg"]
    assert not (tmp_path / "new").exists(), "the doctor leaves nothing behind"


def test_packages_that_are_absent_or_of_another_version(versions):
    versions(captum=None, umap_learn=None, numpy="1.26.4", torch="2.9.0", pytest=None)
    findings = list(doctor.versions())
    captum, numpy, torch, pytest_ = (
        one(findings, name) for name in ("captum", "numpy", "torch", "pytest")
    )
    assert captum.status == "fault" and "absent" in captum.found
    assert '-m pip install "captum<1,>=0.8"' in captum.mend
    assert one(findings, "umap-learn").mend.endswith('"umap-learn<0.6,>=0.5.7"')
    assert numpy.status == "fault" and '"numpy<3,>=2.0"' in numpy.mend
    assert "1.26.4 is installed; <3,>=2.0 is needed" in numpy.found
    assert all(f'"{name}<' in torch.mend for name in doctor.TORCH), "the three are mended together"
    assert pytest_.status == "warning" and "only by the extra dev" in pytest_.found


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    found = one(doctor.versions(), "python")
    assert found.status == "fault" and "make PYTHON=" in found.mend


def broken(folder: Path, monkeypatch, **modules: str) -> None:
    """Packages that child processes import instead of the real ones."""
    for name, source in modules.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(source)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)


def test_a_package_that_takes_python_down_is_a_fault_and_the_others_go_on(tmp_path, monkeypatch):
    """What really happens where builds do not fit: torchvision raises at import, torchaudio kills
    the process; and an FFmpeg without encoders."""
    raises = 'raise RuntimeError("operator torchvision::nms does not exist")'
    codecs = "codecs_available = {'h264', 'mp3'}"
    abort = "import os; os.abort()"
    broken(tmp_path, monkeypatch, torchvision=raises, torchaudio=abort, av=codecs)
    trials = {name: doctor.TRIALS[name] for name in ("torchvision", "torchaudio", "ffmpeg")}
    trials["last"] = "av", "print('runs')"
    monkeypatch.setattr(doctor, "TRIALS", trials)
    findings = list(doctor.trials())
    assert [finding.check for finding in findings] == list(trials)
    assert "nms does not exist" in one(findings, "torchvision").found
    assert "took Python down" in one(findings, "torchaudio").found
    for name in ("torchvision", "torchaudio"):
        assert one(findings, name).status == "fault"
        assert "from one index" in one(findings, name).mend
    assert "aac, av1, hevc, vp9" in one(findings, "ffmpeg").found
    assert "wheel" in one(findings, "ffmpeg").mend and one(findings, "last").status == "ok"


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
    (found,) = doctor.kernel()
    assert found.status == "fault" and str(spec) in found.found
    assert found.mend.startswith("export JUPYTER_PREFER_ENV_PATH=1")
    assert os.environ["JUPYTER_PREFER_ENV_PATH"] == "0"
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    (found,) = doctor.kernel()
    assert found.status == "ok"
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))  # before everything else
    (found,) = doctor.kernel()
    assert found.status == "fault" and "ipykernel install --sys-prefix" in found.mend
    assert f"delete {spec}" in found.mend


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("M5_HOME", str(tmp_path / "file" / "below"))
    (found,) = doctor.home()
    assert found.status == "fault" and str(tmp_path) in found.found
    assert "export M5_HOME=" in found.mend
    monkeypatch.setattr(doctor, "CHECKS", (doctor.home,))
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "mend: export M5_HOME=" in said and "1 fault" in said


def test_a_home_without_locks_or_room(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setenv("M5_HOME", str(tmp_path))
    usage = doctor.shutil._ntuple_diskusage
    for free, status in ((0.01, "fault"), (0.2, "warning"), (100, "ok")):
        space = usage(0, 0, free * 1e9)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, space=space: space)
        found = one(doctor.home(), "disk")
        assert found.status == status and (status == "ok") == (not found.mend)
    monkeypatch.setattr(fcntl, "flock", refuse)
    found = one(doctor.home(), "locks")
    assert found.status == "warning" and "locks" in found.mend


def test_an_unpacked_archive_has_no_notebooks(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.m5lib, "ROOT", tmp_path)
    (found,) = doctor.kernel()
    assert found.status == "fault" and "clone" in found.mend


def test_a_check_that_breaks_is_a_fault_and_the_others_go_on(monkeypatch):
    def broken():
        raise KeyError("what nobody thought of")

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.home))
    assert [finding.check for finding in doctor.examine()] == ["broken", "home", "disk"]


def test_it_speaks_where_nothing_is_installed(tmp_path):
    """Python alone (-S: no site-packages): says so with the mend, and the exit code is 1."""
    done = shell("-S", "-m", "m5lib", "doctor", M5_HOME=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    assert "the project's packages are absent" in done.stdout
    assert "mend: make environment" in done.stdout and "FFmpeg" not in done.stdout


def test_it_imports_nothing_heavy():
    done = shell(
        "-c",
        "import sys; import m5lib.lab.doctor, m5lib.__main__; "
        "print(set(sys.modules) & {'torch', 'numpy', 'av'})",
    )
    assert done.stdout.strip() == "set()", done.stderr
