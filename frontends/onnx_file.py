"""ONNX files in and out: nothing unsafe or broken comes in, nothing half-written goes out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from .. import RefusedError
from ._onnx_io.declared import note_declarations
from ._onnx_io.held import is_held, read_held
from ._onnx_io.protos import tensor_protos
from ._onnx_io.read import EXPORT_AGAIN, innermost, read_proto
from ._onnx_io.save import check_output, copy, is_split, save
from ._onnx_io.slots import slots_of
from ._onnx_io.sparse import densify
from ._onnx_io.tensors import ExternalFiles, nbytes_of
from ._onnx_io.validate import validate

__all__ = [
    "Reading",
    "check_output",
    "copy",
    "is_split",
    "load",
    "read",
    "read_in_memory",
    "save",
]


@dataclass(frozen=True)
class Reading:
    """A model as read, and what is not as in its file.

    `mended`: faults of the file. `changes`: what ONNX allows to be written in several ways.
    """

    model: ir.Model
    mended: list[str]
    changes: list[str]


def load(path: str | Path, *, allow_hardlinks: bool = False) -> ir.Model:
    """Read an ONNX model, validated; external data stays on disk, confined to the model's folder.

    Beyond what ONNX allows to be written in several ways (unsorted nodes are sorted, negative dims
    become unknown, sparse tensors dense, `ai.onnx` the empty domain) nothing is changed, but for
    imports that are missing and that ONNX Runtime adds. Errors: RefusedError, where = the path as
    given, if the file is not a sound ONNX model. `allow_hardlinks` admits weights files with
    several hard links (deduplicating stores), which may otherwise be someone else's file.
    """
    return read(path, allow_hardlinks=allow_hardlinks).model


def read(path: str | Path, *, allow_hardlinks: bool = False) -> Reading:
    """`load`, and an account of what was changed."""
    where = str(path)
    held = read_held(path)
    proto = read_proto(path) if held is None else held.proto
    findings = validate(proto, where)
    mended = _add_imports(proto, findings.imports)
    files = ExternalFiles(path, allow_hardlinks)
    _check_external(proto, files, is_held if held else None)
    changes = []
    if findings.unsorted:
        changes.append("nodes that stood before what they read were sorted")
    dense = densify(proto, where)
    if dense:
        changes.append(f"{dense} sparse tensors became dense")
    _regularize(proto)
    try:
        model: ir.Model = ir.from_proto(proto)
    # a fault that the checks above do not know of; whatever it is, it is the file's
    except Exception as error:
        raise RefusedError(
            where,
            f"is not a model that onnx_ir can hold ({innermost(error)})",
            EXPORT_AGAIN,
        ) from error
    note_declarations(model, proto)
    if held is not None:
        held.bind(model)
    _bind_external(model, files)
    if findings.unsorted:
        _sort(model, where)
    return Reading(model, mended, changes)


def _add_imports(proto: onnx.ModelProto, missing: dict[str, int]) -> list[str]:
    """Import the domains that are missing; what was done, in words."""
    mended = []
    for domain, version in missing.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
        name = domain or "ai.onnx"
        mended.append(
            f"uses operators of {name} without importing it: version {version} is taken"
        )
    return mended


def read_in_memory(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX model as its file has it, weights in memory and nothing validated beyond that.

    For tools that look into models which `load` refuses, too. Errors: RefusedError, as `load`.
    """
    proto = read_proto(path)
    files = ExternalFiles(path, allow_hardlinks=False)
    _check_external(proto, files)
    onnx.load_external_data_for_model(proto, str(Path(path).parent))
    return proto


def _check_external(
    proto: onnx.ModelProto,
    files: ExternalFiles,
    is_left_out: Callable[[onnx.TensorProto], bool] | None = None,
) -> None:
    """Refuse external data that is missing, misplaced or short; make empty tensors inline ones.

    `is_left_out`: says which tensors are none of it, but left out of the message.
    """
    for tensor in tensor_protos(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if is_left_out is not None and is_left_out(tensor):
            continue
        files.check(tensor)
        # ONNX Runtime adds keys of its own (prepacked weights)
        known = [
            entry
            for entry in tensor.external_data
            if entry.key in ("location", "offset", "length")
        ]
        tensor.ClearField("external_data")
        tensor.external_data.extend(known)
        # an empty file cannot be mapped
        if nbytes_of(tensor) == 0:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
    files.report_missing()


def _regularize(proto: onnx.ModelProto) -> None:
    """Give the graph a name and make dims of -1 unknown, as ONNX Runtime reads them.

    onnx.checker refuses both.
    """
    graph = proto.graph
    graph.name = graph.name or "graph"
    for info in (*graph.input, *graph.output, *graph.value_info):
        # reading tensor_type of another type would make it one
        if not info.type.HasField("tensor_type"):
            continue
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def _bind_external(model: ir.Model, files: ExternalFiles) -> None:
    """Give external tensors their absolute folder, in functions too (onnx_ir leaves those out)."""
    for slot in slots_of(model):
        tensor = slot.tensor
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        tensor.base_dir = str(files.folder)
        # onnx_ir refuses these unless it is given no folder to confine them to
        if str(tensor.location) in files.hardlinked:
            absolute = ir.ExternalTensor(
                os.path.join(files.folder, tensor.location),
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )
            slot.put(absolute)


def _sort(model: ir.Model, where: str) -> None:
    try:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except ValueError:
        raise RefusedError(where, "its nodes form a cycle", EXPORT_AGAIN) from None
