"""Atomic writing of a model: all files are complete, on the disk, before one rename shows them.

The data file has a name that no model knows, until the model that names it takes the target's.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from ... import OnnxOptError, RefusedError, UsageError
from ...passes._core import wire
from ...passes._core.ir_versions import ir_version_of_content
from .declared import write_declarations
from .leftovers import OwnFiles, same_file, sync_folder
from .protos import tensor_protos
from .read import LIMIT, innermost
from .scratch_files import ScratchFiles
from .slots import Slot, slots_of
from .tensors import check_tensor

INLINE_LIMIT = 3 << 29
"""Bytes of weights (1.5 GiB) up to which a model stays one file.

Protobuf ends at 2 GiB; the rest is left for the graph. Chosen by hand; not measured.
"""

SCRATCH_LIMIT = 64 << 20
"""The same (64 MiB) of files that go with the run.

One file is encoded whole in memory, twice: of a model of 0.54 GB that took 1.5 GB.
"""

SMALL = 1024
"""Tensors below this many bytes stay in the graph, where shape inference reads shapes and scalars.

Chosen by hand; onnx.save has the same default.
"""

EARLY = 4 << 20
"""Bytes (4 MiB) from which a tensor is sent to the disk as soon as it is written.

Measured when it was introduced: a quarter less time for 2 GiB.
"""

Files = OwnFiles | ScratchFiles
"""Files of the model that is written."""

_LEFT_OUT = f"left out {secrets.token_hex(16)}"
"""Location of tensors that are left out of a message; it is in no model."""

_TOO_LARGE = "the model exceeds protobuf's 2 GiB in one file"
_FAULT = "this is a fault of the pass or tool that made it: please report it"


def save(
    model: ir.Model,
    path: str | Path,
    *,
    external: bool | None = None,
    check: Callable[[Path], None] | None = None,
    durable: bool = True,
) -> list[Path]:
    """Write `model` atomically; return the files written, the model file last.

    External data (one file, `<name>.data`, or `<name>.<n>.data` where that is taken) is used when
    `external` is true, or by default when the model `is_split`. Tensors are streamed; `model` is
    unchanged. A former model at `path` stays whole until the moment it is replaced; its own data
    file then goes, unless `model` still reads it. `check` sees the complete model file before it
    takes its name, and may raise. `durable` False: for files in a folder of the run's own; the disk
    is not waited for, nor are other writers looked out for, and weights of more than 64 MiB are
    external by default. Errors: UsageError if `path` cannot be written, OnnxOptError if writing
    fails (nothing is left behind then).
    """
    target = Path(path)
    slots = list(slots_of(model))
    sources = _source_files(slots)
    if any(same_file(target, source) for source in sources):
        raise UsageError(
            str(path),
            "is the weights file of the model being written",
            "choose another output path",
        )
    nbytes = sum(slot.tensor.nbytes for slot in slots)
    if external is None:
        limit = INLINE_LIMIT if durable else SCRATCH_LIMIT
        external = _is_split(slots, limit)
    if not external and nbytes >= LIMIT:
        raise RefusedError(str(path), _TOO_LARGE, "save it with external data")
    written: list[Path] = []
    with contextlib.ExitStack() as stack:
        with _as_own_errors(path):
            files = stack.enter_context(_files_of(target, durable))
        with contextlib.ExitStack() as restore:
            left_out: list[ir.TensorProtocol] = []
            if external:
                with _as_own_errors(path):
                    written += _write_data(files, slots, restore)
            else:
                left_out = _leave_out(slots, restore)
            encoded = _encoded(model, str(path))
        parts = _with_tensors(encoded, left_out, str(path))

        def write(file: BinaryIO) -> None:
            for part in parts:
                if isinstance(part, bytes):
                    file.write(part)
                else:
                    _write_tensor(file, part, files.durable)

        _put(files, write, check, sources)
    return [*written, target]


def is_split(model: ir.Model) -> bool:
    """True if a saved model has external data: beyond 1.5 GiB, or if it came with some."""
    return _is_split(list(slots_of(model)), INLINE_LIMIT)


def _is_split(slots: list[Slot], limit: int) -> bool:
    nbytes = sum(slot.tensor.nbytes for slot in slots)
    return nbytes > limit or bool(_source_files(slots))


def copy(
    source: Path,
    path: str | Path,
    *,
    check: Callable[[Path], None] | None = None,
    durable: bool = True,
) -> list[Path]:
    """Write a model file as it is, atomically, as `save` does; it has no external data.

    Returns the one file written. Errors: as `save`.
    """
    target = Path(path)

    def write(file: BinaryIO) -> None:
        # closed before the switch: Windows puts nothing in the place of an open file
        with open(source, "rb") as original:
            shutil.copyfileobj(original, file)

    with contextlib.ExitStack() as stack:
        with _as_own_errors(path):
            files = stack.enter_context(_files_of(target, durable))
        _put(files, write, check, set())
    return [target]


def _files_of(target: Path, durable: bool) -> contextlib.AbstractContextManager[Files]:
    if durable or not ScratchFiles.fit(target):
        return OwnFiles(target, durable)
    return ScratchFiles(target)


def _put(
    files: Files,
    write: Callable[[BinaryIO], object],
    check: Callable[[Path], None] | None,
    still_read: set[Path],
) -> None:
    """Write the model file, and give it the target's name unless `check` raises."""
    path = files.target
    with _as_own_errors(path):
        temporary = files.temporary()
        with open(temporary, "wb") as file:
            write(file)
            if files.durable:
                _make_durable(file)
    # outside of `_as_own_errors`: its exceptions are not about the path
    if check is not None:
        check(temporary)
    with _as_own_errors(path):
        files.switch(temporary, still_read)


def check_output(
    path: str | Path, input_path: str | Path | None = None, force: bool = False
) -> None:
    """Refuse a path to which no model can be written: call it before any work.

    Another existing file is overwritten; the input itself (also behind a symbolic or hard link)
    only with `force`. Errors: UsageError.
    """
    target = Path(path)
    with _as_own_errors(path):
        if str(path) in ("", ".", "..") or target.is_dir():
            raise UsageError(
                str(path) or "output",
                "is a folder, not a file",
                "add a file name, as in out.onnx",
            )
        protected = None if force else input_path
        if protected is not None and same_file(target, Path(protected)):
            raise UsageError(
                str(path),
                "is the input model itself",
                "choose another output path, or pass --force",
            )
        if not target.parent.is_dir():
            raise UsageError(
                str(path),
                f"folder '{target.parent}' does not exist",
                f"mkdir -p '{target.parent}'",
            )
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(target).st_mode):
                raise UsageError(
                    str(path),
                    "is not a regular file",
                    "choose a path to a new or an existing file",
                )
        # permissions are tried, not guessed; what a killed run left goes before the work
        with OwnFiles(target) as files:
            files.temporary()


@contextlib.contextmanager
def _as_own_errors(path: str | Path) -> Iterator[None]:
    """Name what the file system or protobuf refused, and the cure."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        # an error of a write or fsync knows a descriptor only, one of open knows the name
        if error.filename2 is None and error.filename is None:
            raise OnnxOptError(
                str(path),
                f"writing failed: {reason}",
                "free space, or use another folder",
            ) from error
        raise UsageError(
            str(path),
            f"cannot be written: {reason}",
            "choose a folder you can write to",
        ) from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise UsageError(
            repr(str(path)), "is not a file name", "choose another output path"
        ) from error


def _make_durable(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _encoded(model: ir.Model, where: str) -> bytes:
    """The model file's bytes; every tensor in it has the length that its shape and type need."""
    try:
        proto = ir.to_proto(model)
    except ir.serde.SerdeError as error:
        raise OnnxOptError(where, f"not written: {innermost(error)}", _FAULT) from error
    proto.ir_version = max(proto.ir_version, ir_version_of_content(model))
    write_declarations(model, proto)
    _drop_repeated_types(proto.graph)
    if proto.ByteSize() >= LIMIT:
        raise RefusedError(where, _TOO_LARGE, "save it with external data")
    for tensor in tensor_protos(proto):
        properties = {entry.key: entry.value for entry in tensor.metadata_props}
        # onnx_ir writes those of a tensor read from a file twice
        if len(properties) < len(tensor.metadata_props):
            del tensor.metadata_props[:]
            onnx.helper.set_model_props(tensor, properties)
        try:
            check_tensor(tensor, where)
        except RefusedError as error:
            raise OnnxOptError(
                where, f"not written: {error.problem}", _FAULT
            ) from error
    encoded: bytes = proto.SerializeToString()
    return encoded


def _with_tensors(
    encoded: bytes, tensors: list[ir.TensorProtocol], where: str
) -> list[bytes | ir.TensorProtocol]:
    """Parts of the model file, with tensors in the place of the references that `encoded` has."""
    parts, length = wire.filled(encoded, _LEFT_OUT)
    if length >= LIMIT:
        raise RefusedError(where, _TOO_LARGE, "save it with external data")
    return [
        tensors[part.offset] if isinstance(part, wire.LeftOut) else part
        for part in parts
    ]


def _drop_repeated_types(graph: onnx.GraphProto) -> None:
    """Take out `value_info` of initializers, which state type and shape themselves.

    onnx_ir writes it for each.
    """
    tensors = {tensor.name for tensor in graph.initializer}
    kept = [
        info
        for info in graph.value_info
        if info.name not in tensors or info.metadata_props or info.doc_string
    ]
    if len(kept) < len(graph.value_info):
        # copied, since deleting the field deletes its messages
        kept = [
            onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in kept
        ]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _write_data(
    files: Files, slots: list[Slot], restore: contextlib.ExitStack
) -> list[Path]:
    """Stream the large tensors into a fresh data file and point their slots at it.

    Small ones come inline. Returns the file, if there is one.
    """
    small: list[Slot] = []
    large: list[Slot] = []
    for slot in slots:
        (small if _stays_inline(slot.tensor) else large).append(slot)
    _bring_inline(small, restore)
    if not large:
        return []
    data = files.data_file()
    # a tensor that several slots share is written once
    offsets: dict[int, int] = {}
    with open(data, "wb") as file:
        for slot in large:
            key = id(slot.tensor)
            if key not in offsets:
                offsets[key] = _write_tensor(file, slot.tensor, files.durable)
        if files.durable:
            _make_durable(file)
    if files.durable:
        sync_folder(data.parent)
    for slot in large:
        offset = offsets[id(slot.tensor)]
        _swap(slot, _reference(slot.tensor, data.name, offset), restore)
    return [data]


def _leave_out(
    slots: list[Slot], restore: contextlib.ExitStack
) -> list[ir.TensorProtocol]:
    """Point the slots of large tensors at nothing; their tensors, which are written as they come.

    A message would hold all of them at once, and its encoding once more.
    """
    small: list[Slot] = []
    tensors: list[ir.TensorProtocol] = []
    for slot in slots:
        tensor = slot.tensor
        if tensor.nbytes < wire.LEAST or _is_typed(tensor):
            small.append(slot)
            continue
        # numbered by the offset
        _swap(slot, _reference(tensor, _LEFT_OUT, len(tensors)), restore)
        tensors.append(tensor)
    _bring_inline(small, restore)
    return tensors


def _is_typed(tensor: ir.TensorProtocol) -> bool:
    """True for a tensor that is written as a list of numbers or texts, as its file has it."""
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        return not tensor.raw.HasField("raw_data")
    return tensor.dtype == ir.DataType.STRING


def _stays_inline(tensor: ir.TensorProtocol) -> bool:
    # ONNX has no external form of text
    return tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALL


def _write_tensor(file: BinaryIO, tensor: ir.TensorProtocol, durable: bool) -> int:
    """Append one tensor, and return its offset.

    Errors: OnnxOptError for one of another length: a hole of zeros would be a silent loss.
    """
    start = file.tell()
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    written = file.tell() - start
    if written != tensor.nbytes:
        raise OnnxOptError(
            f"tensor '{tensor.name}'",
            f"gave {written} bytes where its shape and type need {tensor.nbytes}",
            _FAULT,
        )
    file.flush()
    # numpy's tofile loses the error of its last bytes, as on a full disk
    if os.fstat(file.fileno()).st_size < file.tell():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if durable:
        _start_writeback(file, start, written)
    return start


def _start_writeback(file: BinaryIO, start: int, length: int) -> None:
    """Let the disk begin on a large tensor while the next is computed, not only at the fsync."""
    if length >= EARLY and hasattr(os, "posix_fadvise"):
        # the advice drops clean pages; Linux starts writing dirty ones on it
        os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_DONTNEED)


def _reference(
    tensor: ir.TensorProtocol, location: str, offset: int
) -> ir.ExternalTensor:
    """A tensor that the data file holds from `offset` on."""
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _bring_inline(slots: list[Slot], restore: contextlib.ExitStack) -> None:
    """Have external tensors written as bytes, read one at a time while the graph is encoded."""
    for slot in slots:
        tensor = slot.tensor
        if isinstance(tensor, ir.ExternalTensor):
            inline = ir.LazyTensor(
                functools.partial(_in_memory, tensor),
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )
            _swap(slot, inline, restore)


def _in_memory(tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    # an empty file cannot be mapped
    if tensor.size == 0:
        empty = np.empty(tensor.shape.numpy(), tensor.dtype.numpy())
        return ir.Tensor(empty, dtype=tensor.dtype)
    mapped = tensor.raw is not None
    array = tensor.numpy().copy()
    # a file that was mapped before is someone's; one mapped here would stay in memory
    if not mapped:
        tensor.release()
    return ir.Tensor(array, dtype=tensor.dtype)


def _swap(slot: Slot, tensor: ir.TensorProtocol, restore: contextlib.ExitStack) -> None:
    """Put a tensor until `restore` closes: the caller's model is unchanged afterwards."""
    restore.callback(slot.put, slot.tensor)
    slot.put(tensor)


def _source_files(slots: list[Slot]) -> set[Path]:
    """Files that the tensors, or what they are computed from, are read from."""
    found: set[Path] = set()
    for slot in slots:
        tensor: Any = slot.tensor
        # derived tensors nest: each has the one that it is computed from as its source
        while not isinstance(tensor, ir.ExternalTensor) and hasattr(tensor, "source"):
            tensor = tensor.source
        if isinstance(tensor, ir.ExternalTensor):
            found.add(Path(tensor.path))
    return found
