"""ONNX Runtime for arm64 on another machine, under qemu's user emulation.

    python tools/dev/arm64.py FOLDER
    ONNX_OPT_ARM64=FOLDER python tools/dev/bench_forms.py

The first makes FOLDER (700 MB): the emulator, Python and its libraries as packages of Debian, and
wheels for arm64 of the onnxruntime that is installed here. It takes apt-get, dpkg, pip and Linux on
x86-64; packages are unpacked below FOLDER, and none is installed.

Results are those of the instructions that an emulated CPU has. Times say nothing, and are not told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = "ONNX_OPT_ARM64"
"""Variable of the environment that names the folder."""

PYTHON = "3.11"
NUMPY = "2.2.6"
"""Python of Debian 12, and the last numpy with wheels for it and for every onnxruntime here."""

EMULATOR = "qemu-user-static"
OF_PYTHON = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6")
"""Packages of Debian: of this machine's architecture, and of arm64."""

PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux2014_aarch64",
)

RUNNER = Path(__file__).with_name("run_models.py")
TIMEOUT_S = 600


@dataclass(frozen=True)
class Cpu:
    """A CPU: its name in qemu, its part number at Arm, its features in the words of Linux."""

    name: str
    qemu: str
    part: str
    features: str


CPUS = (
    Cpu(
        "Cortex-A72",
        "cortex-a72",
        "0xd08",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid",
    ),
    Cpu(
        "Neoverse N1",
        "neoverse-n1",
        "0xd0c",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
        "lrcpc dcpop asimddp ssbs",
    ),
    Cpu(
        "Armv8.6",
        "max,sve=off,sme=off",
        "0xd40",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
        "lrcpc dcpop asimddp ssbs i8mm bf16",
    ),
)
"""Without dot products of 8 bits and float16 (Raspberry Pi 4); with them (AWS Graviton 2); with
products of 8-bit matrices too (Apple M2). SVE is left out: its emulation takes minutes a model.
"""

_PROCESSOR = """\
processor\t: 0
BogoMIPS\t: 50.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 3
"""


def make(folder: Path, onnxruntime: str) -> None:
    """Download and unpack everything; a folder that is there already is completed."""
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    _call(["apt-get", "download", EMULATOR], packages)
    _unpack(packages, folder / "emulator")
    _download_for_arm64(folder / "apt")
    _unpack(folder / "apt" / "archives", folder / "root")
    _download_wheels(folder / "wheels", onnxruntime)
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    for cpu in CPUS:
        _make_view(folder, cpu)


def _download_for_arm64(apt: Path) -> None:
    """Packages with all that they need, by lists of apt's own in `apt`."""
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    status = apt / "status"
    status.touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::State": apt,
        "Dir::State::status": status,
        "Dir::Cache": apt,
    }
    words: list[str] = ["apt-get", "-qq"]
    for name, value in settings.items():
        words += ["-o", f"{name}={value}"]
    _call([*words, "update"], apt)
    install = ["install", "--yes", "--download-only", "--no-install-recommends"]
    _call([*words, *install, *OF_PYTHON], apt)


def _download_wheels(folder: Path, onnxruntime: str) -> None:
    words = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:"]
    for platform in PLATFORMS:
        words += ["--platform", platform]
    wanted = [f"onnxruntime=={onnxruntime}", f"numpy=={NUMPY}"]
    words += ["--python-version", PYTHON, "-d", str(folder), *wanted]
    _call(words, Path.cwd())


def _unpack(packages: Path, folder: Path) -> None:
    for package in sorted(packages.glob("*.deb")):
        _call(["dpkg", "-x", str(package), str(folder)], packages)


def _make_view(folder: Path, cpu: Cpu) -> None:
    """The root as programs on that CPU see it: one processor, whose kind Linux tells in files."""
    view = folder / cpu.name
    system = view / "sys" / "devices" / "system" / "cpu"
    for made in (system, view / "proc"):
        made.mkdir(parents=True, exist_ok=True)
    for name in ("lib", "usr"):
        link = view / name
        if not link.is_symlink():
            link.symlink_to(Path("..", "root", name))
    for name in ("possible", "present"):
        (system / name).write_text("0\n")
    text = _PROCESSOR.format(features=cpu.features, part=cpu.part)
    (view / "proc" / "cpuinfo").write_text(text)


def _call(words: Sequence[str], folder: Path) -> None:
    """Run a command in a folder. Errors: SystemExit where it fails."""
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")


def folder_of_emulation() -> Path | None:
    """The folder that `make` made; None where none is named."""
    named = os.environ.get(FOLDER)
    if not named:
        return None
    folder = Path(named).absolute()
    return folder if (folder / "site" / "onnxruntime").is_dir() else None


def is_missing() -> str | None:
    """Reason why nothing can be emulated; None where it can."""
    if folder_of_emulation() is not None:
        return None
    return f"no emulator: python tools/dev/arm64.py FOLDER, and {FOLDER}=FOLDER"


def run(path: Path, feeds: Mapping[str, NDArray[Any]], cpu: Cpu) -> list[NDArray[Any]]:
    """Outputs of a model on an emulated CPU. Errors: RuntimeError."""
    folder = folder_of_emulation()
    assert folder is not None, "see is_missing"
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch, "in.npz"), Path(scratch, "out.npz")
        np.savez(inputs, **feeds)
        job = {"model": str(path), "feeds": str(inputs), "outputs": str(outputs)}
        jobs = Path(scratch, "jobs.json")
        jobs.write_text(json.dumps([job]))
        done = subprocess.run(
            _command(folder, cpu, [RUNNER, jobs]),
            env={"PYTHONPATH": str(folder / "site")},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"exit code {done.returncode}")
        error = json.loads(done.stdout.splitlines()[-1])["error"]
        if error is not None:
            raise RuntimeError(error)
        with np.load(outputs) as arrays:
            return [arrays[name] for name in arrays.files]


def _command(folder: Path, cpu: Cpu, words: Sequence[Path]) -> list[str]:
    emulator = folder / "emulator" / "usr" / "bin" / "qemu-aarch64-static"
    view = folder / cpu.name
    python = folder / "root" / "usr" / "bin" / f"python{PYTHON}"
    return list(map(str, [emulator, "-cpu", cpu.qemu, "-L", view, python, *words]))


def main() -> None:
    """Make the folder that is named."""
    if len(sys.argv) != 2:
        print("usage: arm64.py FOLDER", file=sys.stderr)
        raise SystemExit(2)
    import onnxruntime

    make(Path(sys.argv[1]).absolute(), onnxruntime.__version__)


if __name__ == "__main__":
    main()
