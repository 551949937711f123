"""Files of a bundle: model, ORT format, operators, samples, programs."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ... import OnnxOptError, RefusedError
from ...runtime.bundles import FILES, Content, ReferenceSample, licence_of_onnx_opt
from ...runtime.session import Session, TensorInfo
from .._run.figures import LARGE, bytes_on_disk, files_of
from .packaged_model import PackagedModel

Files = dict[str, Content]

MODEL = "model/model.onnx"
ORT = "model/model.ort"
OPERATORS = "model/operators.config"

_OPERATORS_HEAD = (
    "# Operators and types of the model, for build.sh --include_ops_by_config"
)

_PROGRAMS = {
    "run.py": FILES.with_name("run.py"),
    "cpp/main.cpp": FILES / "main.cpp",
    "cpp/CMakeLists.txt": FILES / "CMakeLists.txt",
}


def model_files(packaged: PackagedModel) -> Iterator[tuple[str, Path]]:
    """The model file, byte by byte, and its external data under the names that it has for them.

    Errors: RefusedError where one of these is the model's own in the bundle.
    """
    path = packaged.request.model
    yield MODEL, path
    folder = os.path.realpath(path.parent)
    for file in sorted(files_of(path, packaged.model) - {path}):
        name = os.path.relpath(os.path.realpath(file), folder)
        inside = f"model/{Path(name).as_posix()}"
        if inside in (MODEL, ORT, OPERATORS) or name.startswith(".."):
            raise RefusedError(
                str(path),
                f"its weights lie in '{name}', where a bundle cannot have them",
                "onnx-opt MODEL --passes remove-unused -o NEW.onnx names them anew",
            )
        yield inside, file


def ort_files(packaged: PackagedModel, scratch: Path) -> dict[str, Path]:
    """The model in ORT format, and its operators; empty where the target has no use for them.

    Both are of ONNX Runtime's CPU provider.
    """
    target = packaged.target
    # other runtimes read ONNX alone; where a target hands the graph on, ORT format has no part
    if target.provider != "cpu" or not target.folds_constants:
        return {}
    path = packaged.session.path
    worker = packaged.session.worker
    if bytes_on_disk(path, packaged.model) > LARGE:
        return {}
    plain = scratch / "plain.ort"
    optimized = scratch / "model.ort"
    operators = scratch / "operators.config"
    try:
        worker.call("write_ort_format", str(path), str(plain), False)
        worker.call("write_ort_format", str(path), str(optimized), True)
        written = [str(plain), str(optimized)]
        worker.call("write_operators", written, str(operators))
    except OnnxOptError as error:
        packaged.warnings.append(f"no model in ORT format: {error.problem}")
        return {}
    # its head names the files that it was made from
    lines = operators.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("#")]
    text = "\n".join([_OPERATORS_HEAD, *kept, ""])
    operators.write_text(text, encoding="utf-8", newline="\n")
    return {ORT: optimized, OPERATORS: operators}


def sample_names(session: Session, number: int) -> dict[str, list[str]]:
    """Files of a sample, as the manifest lists them."""
    names = {}
    for side in ("input", "output"):
        infos: list[TensorInfo] = getattr(session, f"{side}s")
        count = range(len(infos))
        names[f"{side}s"] = [f"samples/{number}/{side}_{index}.npy" for index in count]
    return names


def sample_files(
    session: Session, samples: list[ReferenceSample]
) -> Iterator[tuple[str, bytes]]:
    """The samples as .npy files."""
    for number, sample in enumerate(samples):
        names = sample_names(session, number)
        inputs = zip(names["inputs"], session.inputs, strict=True)
        outputs = zip(names["outputs"], session.outputs, strict=True)
        for name, info in inputs:
            yield name, _npy(sample.feeds[info.name])
        for name, info in outputs:
            yield name, _npy(sample.outputs[info.name])


def _npy(array: NDArray[np.generic]) -> bytes:
    # texts as numpy holds them without objects, which would be pickled
    if array.dtype.kind == "O":
        array = array.astype(str)
    file = io.BytesIO()
    np.lib.format.write_array(
        file, np.asarray(array, order="C"), (1, 0), allow_pickle=False
    )
    return file.getvalue()


def has_texts(packaged: PackagedModel) -> bool:
    """True if an input or output is of texts, whose .npy files Python alone reads."""
    session = packaged.session
    infos = (*session.inputs, *session.outputs)
    return any(info.dtype == "object" for info in infos)


def programs(packaged: PackagedModel) -> Files:
    """run.py, the example in C++ where its arrays are numbers, and the licence of both."""
    files: Files = dict(_PROGRAMS)
    session = packaged.session
    if has_texts(packaged) or not session.inputs or not session.outputs:
        files = {"run.py": files["run.py"]}
        packaged.warnings.append("no C++ example: it has arrays of numbers alone")
    licence = licence_of_onnx_opt()
    if licence is not None:
        files["LICENSE.onnx-opt"] = licence
    return files
