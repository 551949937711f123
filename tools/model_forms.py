"""Models in every form that Python callers have: a path, bytes, a ModelProto, an `ir.Model`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from .. import UsageError
from ..frontends.onnx_file import load, save
from ..passes._core.scratch import scratch_folder

FORMS = (
    "a path, bytes, an onnx.ModelProto, an onnx_ir.Model or a torch.onnx.ONNXProgram"
)


def as_model(model: Any) -> Path | ir.Model:
    """A path as it is, every other form in memory; the caller's object is not modified.

    Errors: UsageError for another form, RefusedError for bytes that are no sound model. External
    data of a model in memory has no folder, and is refused.
    """
    if isinstance(model, (str, Path)):
        return Path(model)
    if isinstance(model, ir.Model):
        return model
    # torch's program holds the model that it would write
    program = getattr(model, "model", None)
    if isinstance(program, ir.Model):
        return program
    if isinstance(model, onnx.ModelProto):
        return _loaded(model.SerializeToString())
    if isinstance(model, (bytes, bytearray, memoryview)):
        return _loaded(bytes(model))
    raise UsageError("model", f"a {type(model).__name__} is no model", f"give {FORMS}")


@contextlib.contextmanager
def as_file(model: Any) -> Iterator[Path]:
    """Path of a model: its own, or of a file that goes with the block."""
    found = as_model(model)
    if isinstance(found, Path):
        yield found
        return
    with scratch_folder() as folder:
        path = Path(folder, "model.onnx")
        save(found, path)
        yield path


def _loaded(content: bytes) -> ir.Model:
    """Read a model in memory by the checks that a file passes."""
    with scratch_folder() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(content)
        return load(path)
