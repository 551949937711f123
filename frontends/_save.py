"""Writing a model atomically: temporary names beside the target, fsync, rename; the graph last, old pairs whole."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from .. import OnnxOptError, RefusedError, UsageError
from ._slots import Slot, slots_of, tensor_protos

INLINE_LIMIT = 3 << 29
"""Bytes of weights (1.5 GiB) up to which a model stays one file; protobuf ends at 2 GiB."""

SMALL = 1024
"""Tensors below this many bytes stay in the graph: shapes and scalars are read by shape inference."""


def save(
    model: ir.Model, path: str | Path, *, external: bool | None = None, check: Callable[[Path], None] | None = None
) -> list[Path]:
    """Write `model` atomically; return the files written, the model file last.

    External data (one file, `<name>.data`, or `<name>.<n>.data` where that is taken) is used when `external` is true,
    or by default when the weights exceed 1.5 GiB or the model has external tensors. Tensors are streamed; `model` is
    unchanged. A former model at `path` stays whole until the moment it is replaced; its own data file then goes,
    unless `model` still reads it.
    Errors: UsageError if `path` cannot be written, OnnxOptError if writing fails (nothing is left behind then).
    """
    target = Path(path)
    slots = list(slots_of(model))
    sources = _source_files(slots)
    if any(_same_file(target, source) for source in sources):
        raise UsageError(str(path), "is the weights file of the model being written", "choose another output path")
    if external is None:
        external = bool(sources) or sum(s.tensor.nbytes for s in slots) > INLINE_LIMIT
    stale = [file for file in _own_data_files(target) if not any(_same_file(file, s) for s in sources)]
    written: list[Path] = []
    try:
        with _as_own_errors(path), contextlib.ExitStack() as restore:
            if external:
                written += _write_data(target, slots, restore)
            else:
                _bring_inline(slots, restore)
            written.append(_write_model(model, target, path, check))
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    for file in stale:
        if file not in written:
            file.unlink(missing_ok=True)
    return written


def check_output(path: str | Path, input_path: str | Path | None = None, force: bool = False) -> None:
    """Raise UsageError unless a model can be written to `path`: call it before any work.

    Another existing file is overwritten; the input itself (also behind a symbolic or hard link) only with `force`.
    """
    target = Path(path)
    if os.fspath(path) in ("", ".", "..") or target.is_dir():
        raise UsageError(str(path) or "output", "is a folder, not a file to write", "add a file name, as in out.onnx")
    if input_path is not None and not force and _same_file(target, Path(input_path)):
        raise UsageError(str(path), "is the input model itself", "choose another output path, or pass --force")
    with _as_own_errors(path):
        if not target.parent.is_dir():
            raise UsageError(str(path), f"folder '{target.parent}' does not exist", f"mkdir -p '{target.parent}'")
        if target.exists() and not target.is_file():
            raise UsageError(str(path), "is not a regular file", "choose a path to a new or an existing file")
        with _temporary(target):
            pass


@contextlib.contextmanager
def _as_own_errors(path: str | Path) -> Iterator[None]:
    """Name what the file system or protobuf refused, and the cure."""
    try:
        yield
    except (EncodeError, MemoryError) as error:
        raise OnnxOptError(str(path), f"the model cannot be encoded ({error})", "save it with external data") from error
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename2 is None and error.filename is None:
            raise OnnxOptError(str(path), f"writing failed: {reason}", "free space, or use another folder") from error
        raise UsageError(str(path), f"cannot be written: {reason}", "choose a folder you can write to") from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise UsageError(repr(str(path)), "is not a file name", "choose another output path") from error


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside `target`, gone at the end unless it was renamed; permissions as `target` has or will have."""
    name = f".{target.name[:200]}.{secrets.token_hex(4)}.tmp"
    temporary = target.with_name(name)
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, "wb") as file:
            if target.is_file():
                os.chmod(temporary, target.stat().st_mode & 0o777)
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def _commit(file: BinaryIO, temporary: Path, target: Path) -> None:
    """Make what was written durable, then visible, in one step."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(temporary, target)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_model(
    model: ir.Model, target: Path, path: str | Path, check: Callable[[Path], None] | None
) -> Path:
    proto = ir.to_proto(model)
    proto.ir_version = max(proto.ir_version, _needed_ir_version(model))
    if proto.ByteSize() >= 1 << 31:
        raise RefusedError(str(path), "the model exceeds protobuf's 2 GiB in one file", "save it with external data")
    with _temporary(target) as (file, temporary):
        file.write(proto.SerializeToString())
        if check is not None:
            file.flush()
            check(temporary)
        _commit(file, temporary, target)
    return target


def _write_data(target: Path, slots: list[Slot], restore: contextlib.ExitStack) -> list[Path]:
    """Stream the large tensors into a fresh data file and point their slots at it; small ones come inline."""
    large = [s for s in slots if s.tensor.nbytes >= SMALL and s.tensor.dtype != ir.DataType.STRING]
    _bring_inline([s for s in slots if s.tensor.nbytes < SMALL], restore)
    if not large:
        return []
    data = _fresh_data_file(target)
    offsets: dict[int, int] = {}
    with _temporary(data) as (file, temporary):
        for slot in large:
            if id(slot.tensor) not in offsets:
                offsets[id(slot.tensor)] = _write_tensor(file, slot.tensor)
        _commit(file, temporary, data)
    for slot in large:
        _swap(slot, _reference(slot.tensor, data.name, offsets[id(slot.tensor)]), restore)
    return [data]


def _write_tensor(file: BinaryIO, tensor: ir.TensorProtocol) -> int:
    """Append one tensor; its offset. Nothing short or long passes: a hole of zeros would be a silent loss."""
    start = file.tell()
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    written = file.tell() - start
    if written != tensor.nbytes:
        raise OnnxOptError(
            f"tensor '{tensor.name}'", f"gave {written} bytes where its shape and type need {tensor.nbytes}",
            "this is a fault in the pass or tool that made the tensor: please report it",
        )
    return start


def _reference(tensor: ir.TensorProtocol, location: str, offset: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "",
        doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props),
    )


def _bring_inline(slots: list[Slot], restore: contextlib.ExitStack) -> None:
    """Have external tensors written as bytes, read one at a time while the graph is encoded."""
    for slot in slots:
        tensor = slot.tensor
        if isinstance(tensor, ir.ExternalTensor):
            inline = ir.LazyTensor(
                functools.partial(_in_memory, tensor), tensor.dtype, shape=tensor.shape, name=tensor.name,
                doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props),
            )
            _swap(slot, inline, restore)


def _in_memory(tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    if tensor.size == 0:
        return ir.Tensor(np.empty(tensor.shape.numpy(), tensor.dtype.numpy()), dtype=tensor.dtype)
    mapped = tensor.raw is not None
    array = tensor.numpy().copy()
    if not mapped:
        tensor.release()
    return ir.Tensor(array, dtype=tensor.dtype)


def _swap(slot: Slot, tensor: ir.TensorProtocol, restore: contextlib.ExitStack) -> None:
    restore.callback(slot.put, slot.tensor)
    slot.put(tensor)


def _source_files(slots: list[Slot]) -> set[Path]:
    """Files that the tensors, or what they are computed from, are read from."""
    found: set[Path] = set()
    for slot in slots:
        tensor: Any = slot.tensor
        while not isinstance(tensor, ir.ExternalTensor) and hasattr(tensor, "source"):
            tensor = tensor.source
        if isinstance(tensor, ir.ExternalTensor):
            found.add(Path(tensor.path))
    return found


def _fresh_data_file(target: Path) -> Path:
    """A data file name that no model can be using yet."""
    candidate, n = target.with_name(f"{target.name}.data"), 0
    while os.path.lexists(candidate):
        n += 1
        candidate = target.with_name(f"{target.name}.{n}.data")
    return candidate


def _own_data_files(target: Path) -> list[Path]:
    """Data files of the model now at `target` that bear its name: ours to remove once it is replaced."""
    if not target.is_file():
        return []
    try:
        proto = onnx.load_model(target, load_external_data=False)
    except Exception:  # whatever is there is about to be replaced; not being a model is no obstacle
        return []
    names = {e.value for tensor in tensor_protos(proto) for e in tensor.external_data if e.key == "location"}
    ours = (n for n in names if n.startswith(f"{target.name}.") and n.endswith(".data") and "/" not in n)
    return [target.with_name(name) for name in ours]


def _same_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False


_NEEDED_FOR_TYPE = {
    "FLOAT8E4M3FN": 9, "FLOAT8E4M3FNUZ": 9, "FLOAT8E5M2": 9, "FLOAT8E5M2FNUZ": 9, "INT4": 10, "UINT4": 10,
    "FLOAT4E2M1": 11, "FLOAT8E8M0": 12, "INT2": 13, "UINT2": 13, "FLOAT6E2M3": 14, "FLOAT6E3M2": 14,
}  # fmt: skip


def _needed_ir_version(model: ir.Model) -> int:
    """The lowest IR version that can express the model: initializers apart from inputs need 4, functions 8."""
    needed = [8] if model.functions else [1]
    for graph in model.graphs():
        for value in graph.initializers.values():
            needed.append(1 if value.is_graph_input() else 4)
            assert value.const_value is not None
            needed.append(_NEEDED_FOR_TYPE.get(value.const_value.dtype.name, 1))
    return max(needed)
