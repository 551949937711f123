"""ONNX files in and out: nothing unsafe or broken comes in, nothing half-written goes out."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from .. import RefusedError
from ._save import check_output, save

__all__ = ["check_output", "load", "save"]


def load(path: str | Path, *, allow_hardlinks: bool = False) -> ir.Model:
    """Read an ONNX model, validated; external data stays on disk, confined to the model's folder."""
    absolute = Path(path).absolute()
    if not absolute.is_file():
        raise RefusedError(str(path), "no such file", "check the path")
    try:
        proto = onnx.load_model_from_string(absolute.read_bytes())
        model: ir.Model = ir.from_proto(proto)
    except Exception as error:
        raise RefusedError(str(path), f"not an ONNX model ({type(error).__name__})", "give an .onnx file") from error
    ir.external_data.set_base_dir(model.graph, str(absolute.parent))
    return model
