"""The peers, the models they are compared on, and how one runs: a child process in an environment
of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Task:
    """A shared model with its loaders; up to `samples` rows calibrate, `rows_timed` rows of a batch
    are timed.

    `batches_together`: how many batches in a row the metric needs (sentence pairs: 2).
    """

    model: str
    calibration: str
    samples: int
    evaluation: str
    metric: str
    rows_timed: int
    batches_together: int = 1


TASKS = [
    Task("cifar10_resnet20", "cifar10_calib", 128, "cifar10_val", "top1", 16),
    Task("efficientnet_lite0", "imagenet_calib", 128, "imagenet_val", "top1", 2),
    Task("ch_PP-OCRv4_rec_infer", "ocr_calib", 50, "ocr_val", "ocr_exact", 4),
    Task(
        "minilm_l6_v2",
        "stsb_calib",
        128,
        "stsb_val",
        "stsb_spearman",
        8,
        batches_together=2,
    ),
]


@dataclass(frozen=True)
class Peer:
    """One way to quantize: recipe `recipe` of `by_<driver>.py`; `environment` "" is this
    interpreter.

    `only`: the models it is meant for; empty: all.
    """

    name: str
    driver: str
    environment: str
    recipe: str
    only: tuple[str, ...] = ()


CNNS = ("cifar10_resnet20", "efficientnet_lite0")
OCR, MINILM = ("ch_PP-OCRv4_rec_infer",), ("minilm_l6_v2",)
PEERS = [
    Peer("onnxruntime defaults", "ort", "ort", "defaults"),
    Peer("onnxruntime guide", "ort", "ort", "guide"),
    Peer("onnxruntime by hand", "ort", "ort", "by hand", OCR),
    Peer("onnxruntime MatMul only", "ort", "ort", "matmul", MINILM),
    Peer("onnxruntime dynamic", "ort", "ort", "dynamic"),
    Peer("nncf", "nncf", "nncf", "defaults"),
    Peer("nncf transformer", "nncf", "nncf", "transformer", MINILM),
    Peer("neural compressor", "inc", "inc", "static"),
    Peer("onnxsim static", "onnxsim", "onnxsim", "static"),
    Peer("quark", "quark", "quark", "corrected", (*CNNS, *OCR)),
    Peer("quark by hand", "quark", "quark", "by hand", OCR),
    Peer("quark", "quark", "quark", "everything", MINILM),
    Peer("quark MatMul only", "quark", "quark", "matmul", MINILM),
    Peer("modelopt", "modelopt", "modelopt", "int8"),
    Peer("modelopt every tensor", "modelopt", "modelopt", "every tensor", CNNS),
    Peer("aimet", "aimet", "aimet", "defaults"),
    Peer("aimet placed", "aimet", "aimet", "placed", OCR),
    Peer("aimet placed", "aimet", "aimet", "searched", CNNS),
    Peer("aimet MatMul only", "aimet", "aimet", "matmul", MINILM),
]


@dataclass
class Row:
    """One variant's figures; None where there are none (then `note` says why). `file`: the result,
    "" without one.
    """

    model: str
    variant: str
    own: bool = False
    metric: float | None = None
    drop: float | None = None
    sqnr_db: float | None = None
    size_ratio: float | None = None
    latency_one: float | None = None
    latency_all: float | None = None
    kernels: str = ""
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mb: float | None = None
    note: str = ""
    file: str = ""


def ours(pipelines: Sequence[str]) -> list[Peer]:
    """This project with each of the pipelines."""
    return [Peer(f"ours: {text}", "onnx_opt", "", text) for text in pipelines]


def python_of(peer: Peer, envs: Path) -> Path:
    """The interpreter that runs the peer."""
    scripts = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    return (
        envs / peer.environment / scripts if peer.environment else Path(sys.executable)
    )


def install(name: str, envs: Path) -> None:
    """Make (or complete) the environment of one peer; `NAME.alone.txt` lists what would pull in
    gigabytes.

    What stopped it is left in the environment's folder for the table (`missing`).
    """
    folder = envs / name
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [
        python_of(Peer(name, name, name, ""), envs),
        "-m",
        "pip",
        "install",
        "--quiet",
    ]
    problem = folder / "problem.txt"
    problem.unlink(missing_ok=True)
    for suffix, options in ((".txt", []), (".alone.txt", ["--no-deps"])):
        requirements = HERE / "requirements" / f"{name}{suffix}"
        if requirements.exists():
            done = subprocess.run(
                [*pip, *options, "-r", requirements],
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                problem.write_text(
                    (done.stderr.strip().splitlines() or ["pip failed"])[-1]
                )
                print(f"{name}: {problem.read_text()}", flush=True)
                return


def missing(peer: Peer, envs: Path) -> str:
    """Reason why the peer's environment cannot be used; empty if it can."""
    problem = envs / peer.environment / "problem.txt"
    if peer.environment and problem.exists():
        return f"not installed: {problem.read_text()[:120]}"
    return (
        ""
        if python_of(peer, envs).exists()
        else f"not installed (--install {peer.environment})"
    )


def quantize(
    peer: Peer,
    model: Path,
    calibration: Path,
    out: Path,
    options: argparse.Namespace,
    row: Row,
) -> None:
    """Run the peer's driver within the time limit; its file and costs, or its error, go to the
    row.
    """
    row.own = not peer.environment
    command = [
        python_of(peer, options.envs),
        HERE / f"by_{peer.driver}.py",
        peer.recipe,
        model,
        calibration,
        out,
    ]
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=out.parent,
        start_new_session=True,
        text=True,
    )
    try:
        printed, problems = process.communicate(timeout=options.timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        row.note = f"failed: stopped after {options.timeout:g} s"
        return
    row.seconds = time.perf_counter() - start
    told = (
        json.loads(printed.splitlines()[-1])
        if printed.strip()
        else {"error": _last_words(process, problems)}
    )
    row.cpu_seconds, row.peak_mb = told.get("cpu_seconds"), told.get("peak_mb")
    if "error" in told:
        row.note = f"failed: {told['error'][:120]}"
    else:
        row.file = str(out)
        row.size_ratio = _bytes_of(out) / _bytes_of(model)


def _last_words(process: subprocess.Popen[str], problems: str) -> str:
    """Reason why a driver said nothing: an import that failed, or a signal."""
    if process.returncode < 0:
        return f"ended by {signal.Signals(-process.returncode).name}"
    return (problems.strip().splitlines() or [f"exit status {process.returncode}"])[-1]


def _bytes_of(model: Path) -> int:
    """Size of a model file and of data files written beside it under its name."""
    return sum(
        file.stat().st_size
        for file in model.parent.glob(f"{model.name}*")
        if ".prepared" not in file.name and ".17." not in file.name
    )
