"""Runtimes that run our files: ONNX Runtime, here and on arm64, OpenVINO, and onnxruntime-web."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arm64
import numpy as np
from numpy.typing import NDArray
from onnx_opt.tools._package.web import MODULES

RUNS = 20
"""Runs of which the fastest is told: the others waited for the machine."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Ran:
    """Outputs of a model, in its order, and milliseconds of a run (one thread); None: no times."""

    outputs: list[NDArray[Any]]
    ms: float | None


@dataclass(frozen=True)
class Runtime:
    """A runtime: the target that files are made for, how it runs one, why it may not be here.

    `rows`: of the feeds that it is given; None: all.
    """

    name: str
    target: str
    run: Callable[[Path, Arrays], Ran]
    missing: Callable[[], str | None]
    rows: int | None = None


def timed(call: Callable[[], list[NDArray[Any]]]) -> Ran:
    """Run several times; the outputs of the last run."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        outputs = call()
        times.append(1000 * (time.perf_counter() - start))
    return Ran(outputs, min(times))


def in_onnxruntime(path: Path, feeds: Arrays) -> Ran:
    """Run on ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        path,
        options,
        providers=["CPUExecutionProvider"],
    )
    return timed(lambda: session.run(None, dict(feeds)))


def in_openvino(path: Path, feeds: Arrays) -> Ran:
    """Run on OpenVINO's CPU device, in float32 where the model does not say otherwise."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(path), "CPU", options)

    def run() -> list[NDArray[Any]]:
        found = compiled(dict(feeds))
        return [np.array(found[output]) for output in compiled.outputs]

    return timed(run)


def in_web(path: Path, feeds: Arrays) -> Ran:
    """Run in onnxruntime-web's WebAssembly, under node."""
    modules = node_modules()
    assert modules is not None, "see web_is_missing"
    with tempfile.TemporaryDirectory() as folder:
        inputs = {}
        for index, (name, array) in enumerate(feeds.items()):
            file = Path(folder, f"input{index}.bin")
            file.write_bytes(np.ascontiguousarray(array).tobytes())
            inputs[name] = {
                "file": str(file),
                "type": array.dtype.name,
                "dims": list(array.shape),
            }
        request = Path(folder, "request.json")
        asked = {"model": str(path), "inputs": inputs, "folder": folder, "runs": RUNS}
        request.write_text(json.dumps(asked))
        script = Path(__file__).with_name("run_web.cjs")
        done = subprocess.run(
            ["node", script, modules, request],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        # the module may print lines of its own before
        answer = json.loads(done.stdout.splitlines()[-1])
        outputs = []
        for each in answer["outputs"].values():
            array = np.fromfile(each["file"], each["type"])
            outputs.append(array.reshape(each["dims"]))
    return Ran(outputs, answer["ms"])


def in_arm64(cpu: arm64.Cpu, path: Path, feeds: Arrays) -> Ran:
    """Run in ONNX Runtime for arm64, on an emulated CPU."""
    return Ran(arm64.run(path, feeds, cpu), None)


def node_modules() -> Path | None:
    """The folder that has onnxruntime-web; None where there is none."""
    named = os.environ.get(MODULES, "node_modules")
    folder = Path(named).absolute()
    return folder if (folder / "onnxruntime-web").is_dir() else None


def web_is_missing() -> str | None:
    """Reason why onnxruntime-web cannot run; None where it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    if node_modules() is None:
        return f"no onnxruntime-web: npm install onnxruntime-web, and {MODULES}=node_modules"
    return None


def openvino_is_missing() -> str | None:
    """Reason why OpenVINO cannot run; None where it can."""
    found = importlib.util.find_spec("openvino")
    return "pip install openvino" if found is None else None


EMULATED_ROWS = 100
"""Rows that an emulated CPU is given: it takes a hundred times as long."""

RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("onnxruntime", "cpu", in_onnxruntime, lambda: None),
        Runtime("openvino", "openvino", in_openvino, openvino_is_missing),
        Runtime("onnxruntime-web", "web", in_web, web_is_missing),
        *(
            Runtime(
                f"arm64, {cpu.name}",
                "arm64",
                functools.partial(in_arm64, cpu),
                arm64.is_missing,
                EMULATED_ROWS,
            )
            for cpu in arm64.CPUS
        ),
    )
}
