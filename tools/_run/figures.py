"""A model in numbers: bytes on disk and the counts of `passes/_core/stats.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...passes._core.graph import all_graphs, initializers
from ...passes._core.stats import model_stats
from ...runtime.session import TensorInfo
from .checks import stripped
from .result import Figures


def figures_of(model: ir.Model, path: Path | None, count_nonzero: bool) -> Figures:
    """Everything but latency. `bytes` counts the file at `path`, which holds `model`, and its
    external data.
    """
    stats = model_stats(model, count_nonzero)
    size = None if path is None else bytes_on_disk(path, model)
    return Figures(size, stats.params, stats.nonzero, stats.nodes, stats.macs)


def bytes_on_disk(path: Path, model: ir.Model) -> int:
    """Bytes of a model file and of the external data files that `model`, loaded from it, refers
    to.
    """
    files = {Path(t.path) for t in _tensors(model) if isinstance(t, ir.ExternalTensor)}
    return os.path.getsize(path) + sum(os.path.getsize(file) for file in files)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all tensors, wherever they live."""
    return sum(int(t.nbytes) for t in _tensors(model))


def expected_bytes(model: ir.Model) -> int:
    """What the model will take on disk: its graph without the big weights, and those weights;
    nothing is written.
    """
    bare = stripped(model)
    graph = int(ir.to_proto(bare).ByteSize())
    return graph + weight_bytes(model) - weight_bytes(bare)


def input_infos(model: ir.Model) -> list[TensorInfo]:
    """The inputs that a caller must feed, as a session would list them; without running
    anything.
    """
    return [_info(v) for v in model.graph.inputs if not v.is_initializer()]


def _info(value: ir.Value) -> TensorInfo:
    shape = (
        tuple(d if isinstance(d, int) else d.value for d in value.shape)
        if value.shape is not None
        else ()
    )
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        return TensorInfo(value.name or "", f"({value.type})", shape)
    name = "object" if value.dtype == ir.DataType.STRING else value.dtype.numpy().name
    return TensorInfo(value.name or "", name, shape)


def _tensors(model: ir.Model) -> list[Any]:
    held: dict[int, Any] = {
        id(v.const_value): v.const_value for v in initializers(model)
    }
    for graph in all_graphs(model):
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    held[id(attribute.value)] = attribute.value
    return list(held.values())
