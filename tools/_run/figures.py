"""Figures of a model: bytes on disk, and the counts of `passes/_core/stats.py`."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...passes._core.graph import all_nodes, initializers
from ...passes._core.stats import model_stats
from ...passes.unpack import without_packing
from ...runtime.session import TensorInfo
from .checks import dims_of, stripped

LARGE = 1 << 30
"""Bytes of weights above which `verify="auto"` does not run the model, and zeros are not counted.

Chosen by hand; not measured.
"""

BLOCK = 1 << 20
"""Bytes of a file that are compressed at a time."""


@dataclass
class Figures:
    """A model in numbers; None where unknown.

    `latency_ms`: median of one run on the first feed. `step_ms`: of one more token, of a model with
    a cache. `zipped_bytes`: of the files in a zip
    archive, where that was asked for. `bits`: parameters by the bits that each is stored in.
    """

    bytes: int | None = None
    params: int | None = None
    nonzero: int | None = None
    nodes: int | None = None
    macs: int | None = None
    bits: dict[str, int] | None = None
    latency_ms: float | None = None
    step_ms: float | None = None
    zipped_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; without `step_ms` and `zipped_bytes` where they are not known."""
        fields = dataclasses.asdict(self)
        for name in ("step_ms", "zipped_bytes"):
            if fields[name] is None:
                del fields[name]
        return fields


def figures_of(model: ir.Model, path: Path | None, count_nonzero: bool) -> Figures:
    """Everything but latency and MACs, for which shapes are inferred.

    `bytes` counts the file at `path`, which holds `model`, and its external data. The counts are
    those of the model that a runtime unpacks, whatever form the file stores.
    """
    stats = model_stats(without_packing(model), count_nonzero, count_macs=False)
    return Figures(
        bytes=None if path is None else bytes_on_disk(path, model),
        params=stats.params,
        nonzero=stats.nonzero,
        nodes=stats.nodes,
    )


def bytes_on_disk(path: Path, model: ir.Model) -> int:
    """Bytes of a model file and of the external data that `model`, loaded from it, refers to."""
    return sum(os.path.getsize(file) for file in files_of(path, model))


def zipped_bytes(path: Path, model: ir.Model) -> int:
    """Bytes of the same files deflated at level 9, as in a zip archive without its directory.

    They are streamed, and nothing is written.
    """
    total = 0
    for file in files_of(path, model):
        # raw deflate, as zip stores it
        squeezer = zlib.compressobj(level=9, wbits=-zlib.MAX_WBITS)
        with file.open("rb") as content:
            while block := content.read(BLOCK):
                total += len(squeezer.compress(block))
        total += len(squeezer.flush())
    return total


def files_of(path: Path, model: ir.Model) -> set[Path]:
    """The model file, and the files of external data that `model`, loaded from it, refers to."""
    # a set: many tensors share one data file
    files = {path}
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            files.add(Path(tensor.path))
    return files


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all tensors, wherever they live."""
    return sum(int(tensor.nbytes) for tensor in _tensors(model))


def expected_bytes(model: ir.Model) -> int:
    """Size that the model will take on disk; nothing is written.

    Adds up its graph without the big weights, and those weights.
    """
    bare = stripped(model)
    graph_bytes = int(ir.to_proto(bare).ByteSize())
    big_weights = weight_bytes(model) - weight_bytes(bare)
    return graph_bytes + big_weights


def input_infos(model: ir.Model) -> list[TensorInfo]:
    """Inputs that a caller must feed, as a session would list them; nothing is run."""
    return [_info(v) for v in model.graph.inputs if not v.is_initializer()]


def output_infos(model: ir.Model) -> list[TensorInfo]:
    """Outputs as a session would list them; nothing is run."""
    return [_info(value) for value in model.graph.outputs]


def _info(value: ir.Value) -> TensorInfo:
    name = value.name or ""
    shape = dims_of(value) or ()
    return TensorInfo(name, _session_type(value), shape, _rows_of_table(value))


_TABLES = ("Gather", "GatherBlockQuantized")
_SAME_IDS = ("Cast", "Identity", "Reshape")
"""Operators that look rows of a table up, and those that pass ids on."""


def _rows_of_table(ids: ir.Value) -> int | None:
    """Rows of the constant table that an input of ids indexes; None where it indexes none."""
    pending = [ids]
    while pending:
        for node, index in pending.pop().uses():
            if node.op_type in _TABLES and index == 1:
                return _rows_read_by(node)
            if node.op_type in _SAME_IDS and index == 0:
                pending.extend(node.outputs)
    return None


def _rows_read_by(node: ir.Node) -> int | None:
    """Rows of the constant table that a node reads; None where it is none, or read by columns."""
    table = node.inputs[0]
    if table is None or table.const_value is None:
        return None
    if node.attributes.get_int("axis", 0) != 0:
        return None
    shape = table.const_value.shape
    rows = shape[0] if shape.rank() else None
    return rows if isinstance(rows, int) else None


def _session_type(value: ir.Value) -> str:
    # sequences, maps and optional values
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        return f"({value.type})"
    # numpy, and so a session, knows texts as objects
    if value.dtype == ir.DataType.STRING:
        return "object"
    return value.dtype.numpy().name


def _tensors(model: ir.Model) -> list[Any]:
    """Every tensor once: initializers, and tensors that nodes hold as attributes."""
    tensors: list[Any] = [value.const_value for value in initializers(model)]
    for node in all_nodes(model):
        tensors.extend(tensor_attributes(node))
    # by identity: initializers of several subgraphs may share one tensor
    once = {id(tensor): tensor for tensor in tensors}
    return list(once.values())


def tensor_attributes(node: ir.Node) -> Iterator[Any]:
    """Tensors that a node holds as attributes."""
    for attribute in node.attributes.values():
        # in a function's body an attribute may stand for one of the call
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.value
