"""Writing a model atomically: temporary names beside the target, fsync, rename; the graph last, old
pairs whole.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from ... import OnnxOptError, RefusedError, UsageError
from ...passes._core.ir_versions import ir_version_of_content
from .._state_dicts.slots import Slot, slots_of, tensor_protos
from .read import LIMIT, innermost
from .tensors import check_tensor

INLINE_LIMIT = 3 << 29
"""Bytes of weights (1.5 GiB) up to which a model stays one file; protobuf ends at 2 GiB."""

SMALL = 1024
"""Tensors below this many bytes stay in the graph: shapes and scalars are read by shape
inference.
"""

EARLY = 4 << 20
"""Bytes from which a tensor is sent to the disk as soon as it is written."""

_TOO_LARGE = "the model exceeds protobuf's 2 GiB in one file"
_FAULT = "this is a fault of the pass or tool that made it: please report it"


def save(
    model: ir.Model,
    path: str | Path,
    *,
    external: bool | None = None,
    check: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Write `model` atomically; return the files written, the model file last.

    External data (one file, `<name>.data`, or `<name>.<n>.data` where that is taken) is used when
    `external` is true, or by default when the weights exceed 1.5 GiB or the model has external
    tensors. Tensors are streamed; `model` is unchanged. A former model at `path` stays whole until
    the moment it is replaced; its own data file then goes, unless `model` still reads it. `check`
    sees the complete model file before it takes its name, and may raise. Errors: UsageError if
    `path` cannot be written, OnnxOptError if writing fails (nothing is left behind then).
    """
    target = Path(path)
    slots = list(slots_of(model))
    sources = _source_files(slots)
    if any(_same_file(target, source) for source in sources):
        raise UsageError(
            str(path),
            "is the weights file of the model being written",
            "choose another output path",
        )
    nbytes = sum(slot.tensor.nbytes for slot in slots)
    if external is None:
        external = bool(sources) or nbytes > INLINE_LIMIT
    if not external and nbytes >= LIMIT:
        raise RefusedError(str(path), _TOO_LARGE, "save it with external data")
    stale = [
        file
        for file in _own_data_files(target)
        if not any(_same_file(file, s) for s in sources)
    ]
    written: list[Path] = []
    commit = _Commit()
    try:
        with contextlib.ExitStack() as restore:
            if external:
                with _as_own_errors(path):
                    _write_data(target, slots, restore, written)
            else:
                _bring_inline(slots, restore)
            encoded = _encoded(model, str(path))
        _write_model(encoded, target, str(path), check, commit)
    except BaseException:
        if not commit.happened(target):
            for file in written:
                file.unlink(missing_ok=True)
        raise
    for file in stale:
        file.unlink(missing_ok=True)
    return [*written, target]


def check_output(
    path: str | Path, input_path: str | Path | None = None, force: bool = False
) -> None:
    """Raise UsageError unless a model can be written to `path`: call it before any work.

    Another existing file is overwritten; the input itself (also behind a symbolic or hard link)
    only with `force`.
    """
    target = Path(path)
    with _as_own_errors(path):
        if str(path) in ("", ".", "..") or target.is_dir():
            raise UsageError(
                str(path) or "output",
                "is a folder, not a file",
                "add a file name, as in out.onnx",
            )
        if (
            input_path is not None
            and not force
            and _same_file(target, Path(input_path))
        ):
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
        with _temporary(target):
            pass


@contextlib.contextmanager
def _as_own_errors(path: str | Path) -> Iterator[None]:
    """Name what the file system or protobuf refused, and the cure."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
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


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside `target`, gone at the end unless it was renamed; permissions as `target`
    has or will have.
    """
    name = f".{target.name[:200]}.{secrets.token_hex(4)}.tmp"
    temporary = target.with_name(name)
    descriptor = os.open(
        temporary,
        os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0),
        0o666,
    )
    try:
        with open(descriptor, "wb") as file:
            if target.is_file():
                os.chmod(temporary, target.stat().st_mode & 0o777)
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


class _Commit:
    """The rename that makes a file visible, and whether it has happened (an interrupt may fall just
    behind it).
    """

    def __init__(self) -> None:
        self._identity: tuple[int, int] | None = None

    def run(self, file: BinaryIO, temporary: Path, target: Path) -> None:
        """Make what was written durable, then visible, in one step."""
        file.flush()
        os.fsync(file.fileno())
        status = os.fstat(file.fileno())
        self._identity = (status.st_dev, status.st_ino)
        file.close()
        os.replace(temporary, target)
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with contextlib.suppress(
                    OSError
                ):  # some network file systems cannot; the rename stands all the same
                    os.fsync(folder)
            finally:
                os.close(folder)

    def happened(self, target: Path) -> bool:
        try:
            status = os.stat(target)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity


def _encoded(model: ir.Model, where: str) -> bytes:
    """The model file's bytes; every tensor in it has the length that its shape and type need."""
    try:
        proto = ir.to_proto(model)
    except ir.serde.SerdeError as error:
        raise OnnxOptError(where, f"not written: {innermost(error)}", _FAULT) from error
    proto.ir_version = max(proto.ir_version, ir_version_of_content(model))
    _drop_repeated_types(proto.graph)
    if proto.ByteSize() >= LIMIT:
        raise RefusedError(where, _TOO_LARGE, "save it with external data")
    for tensor in tensor_protos(proto):
        properties = {entry.key: entry.value for entry in tensor.metadata_props}
        if len(properties) < len(
            tensor.metadata_props
        ):  # onnx_ir writes those of a tensor read from a file twice
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


def _drop_repeated_types(graph: onnx.GraphProto) -> None:
    """Take out `value_info` of tensors, which state type and shape themselves (onnx_ir writes it
    for each).
    """
    tensors = {tensor.name for tensor in graph.initializer}
    kept = [
        v
        for v in graph.value_info
        if v.name not in tensors or v.metadata_props or v.doc_string
    ]
    if len(kept) < len(graph.value_info):
        kept = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in kept]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _write_model(
    encoded: bytes,
    target: Path,
    where: str,
    check: Callable[[Path], None] | None,
    commit: _Commit,
) -> None:
    with contextlib.ExitStack() as stack:
        with _as_own_errors(where):
            file, temporary = stack.enter_context(_temporary(target))
            file.write(encoded)
            file.flush()
        if check is not None:
            check(temporary)
        with _as_own_errors(where):
            commit.run(file, temporary, target)


def _write_data(
    target: Path, slots: list[Slot], restore: contextlib.ExitStack, written: list[Path]
) -> None:
    """Stream the large tensors into a fresh data file and point their slots at it; small ones come
    inline.
    """
    small = [
        s.tensor.nbytes < SMALL or s.tensor.dtype == ir.DataType.STRING for s in slots
    ]
    _bring_inline(
        [slot for slot, is_small in zip(slots, small, strict=True) if is_small], restore
    )
    large = [slot for slot, is_small in zip(slots, small, strict=True) if not is_small]
    if not large:
        return
    data = _reserve_data_file(target)
    written.append(data)
    offsets: dict[int, int] = {}
    with _temporary(data) as (file, temporary):
        for slot in large:
            if id(slot.tensor) not in offsets:
                offsets[id(slot.tensor)] = _write_tensor(file, slot.tensor)
        _Commit().run(file, temporary, data)
    for slot in large:
        _swap(
            slot, _reference(slot.tensor, data.name, offsets[id(slot.tensor)]), restore
        )


def _write_tensor(file: BinaryIO, tensor: ir.TensorProtocol) -> int:
    """Append one tensor; its offset. Nothing short or long passes: a hole of zeros would be a
    silent loss.
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
    _start_writeback(file, start, written)
    return start


def _start_writeback(file: BinaryIO, start: int, length: int) -> None:
    """Let the disk begin on a large tensor while the next one is computed, not only at the fsync
    after the last.
    """
    if length >= EARLY and hasattr(os, "posix_fadvise"):
        file.flush()
        os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_DONTNEED)


def _reference(
    tensor: ir.TensorProtocol, location: str, offset: int
) -> ir.ExternalTensor:
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
    if tensor.size == 0:
        return ir.Tensor(
            np.empty(tensor.shape.numpy(), tensor.dtype.numpy()), dtype=tensor.dtype
        )
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


def _reserve_data_file(target: Path) -> Path:
    """Create, empty, a data file under a name that no model can be using yet."""
    n = 0
    while True:
        candidate = target.with_name(
            f"{target.name}.{n}.data" if n else f"{target.name}.data"
        )
        try:
            os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return candidate
        except FileExistsError:
            n += 1


def _own_data_files(target: Path) -> list[Path]:
    """Data files of the model now at `target` that bear its name: ours to remove once it is
    replaced.
    """
    if not target.is_file():
        return []
    try:
        proto = onnx.load_model(target, load_external_data=False)
    except (
        Exception
    ):  # whatever is there is about to be replaced; not being a model is no obstacle
        return []
    names = {
        e.value
        for tensor in tensor_protos(proto)
        for e in tensor.external_data
        if e.key == "location"
    }
    ours = (
        n
        for n in names
        if n.startswith(f"{target.name}.") and n.endswith(".data") and "/" not in n
    )
    return [target.with_name(name) for name in ours]


def _same_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False
