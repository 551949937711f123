"""Atomic writing of a model: temporary names beside the target, fsync, rename.

The data file comes first and the model file last, so that a former pair stays whole until then.
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
from .declared import write_declarations
from .protos import tensor_protos
from .read import LIMIT, innermost
from .slots import Slot, slots_of
from .tensors import check_tensor

INLINE_LIMIT = 3 << 29
"""Bytes of weights (1.5 GiB) up to which a model stays one file.

Protobuf ends at 2 GiB; the rest is left for the graph. Chosen by hand; not measured.
"""

SMALL = 1024
"""Tensors below this many bytes stay in the graph, where shape inference reads shapes and scalars.

Chosen by hand; onnx.save has the same default.
"""

EARLY = 4 << 20
"""Bytes (4 MiB) from which a tensor is sent to the disk as soon as it is written.

Measured when it was introduced: a quarter less time for 2 GiB.
"""

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
        if not any(_same_file(file, source) for source in sources)
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
    # an interrupt, too, leaves either the former pair or the new one
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
        if protected is not None and _same_file(target, Path(protected)):
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
        # permissions are tried, not guessed
        with _temporary(target):
            pass


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


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside `target`, gone at the end unless it was renamed.

    It has the permissions that `target` has or will have.
    """
    # file systems end names at 255 bytes
    name = f".{target.name[:200]}.{secrets.token_hex(4)}.tmp"
    temporary = target.with_name(name)
    # O_EXCL: a link that someone put there in advance is not followed
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, "wb") as file:
            if target.is_file():
                os.chmod(temporary, target.stat().st_mode & 0o777)
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


class _Commit:
    """The rename that makes a file visible, and the knowledge of having happened.

    An interrupt may fall just behind the rename, so the file itself is asked.
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
                # some network file systems cannot; the rename stands all the same
                with contextlib.suppress(OSError):
                    os.fsync(folder)
            finally:
                os.close(folder)

    def happened(self, target: Path) -> bool:
        """True if the file at `target` is the one that `run` wrote."""
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


def _write_model(
    encoded: bytes,
    target: Path,
    where: str,
    check: Callable[[Path], None] | None,
    commit: _Commit,
) -> None:
    # `check` stands outside of `_as_own_errors`: its exceptions are not about the path
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
    """Stream the large tensors into a fresh data file and point their slots at it.

    Small ones come inline. `written` receives the file.
    """
    small: list[Slot] = []
    large: list[Slot] = []
    for slot in slots:
        (small if _stays_inline(slot.tensor) else large).append(slot)
    _bring_inline(small, restore)
    if not large:
        return
    data = _reserve_data_file(target)
    # noted before the work, so that a failure removes it
    written.append(data)
    # a tensor that several slots share is written once
    offsets: dict[int, int] = {}
    with _temporary(data) as (file, temporary):
        for slot in large:
            key = id(slot.tensor)
            if key not in offsets:
                offsets[key] = _write_tensor(file, slot.tensor)
        _Commit().run(file, temporary, data)
    for slot in large:
        offset = offsets[id(slot.tensor)]
        _swap(slot, _reference(slot.tensor, data.name, offset), restore)


def _stays_inline(tensor: ir.TensorProtocol) -> bool:
    # ONNX has no external form of text
    return tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALL


def _write_tensor(file: BinaryIO, tensor: ir.TensorProtocol) -> int:
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
    _start_writeback(file, start, written)
    return start


def _start_writeback(file: BinaryIO, start: int, length: int) -> None:
    """Let the disk begin on a large tensor while the next is computed, not only at the fsync."""
    if length >= EARLY and hasattr(os, "posix_fadvise"):
        file.flush()
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


def _reserve_data_file(target: Path) -> Path:
    """Create, empty, a data file under a name that no model can be using yet."""
    number = 0
    while True:
        middle = f".{number}" if number else ""
        candidate = target.with_name(f"{target.name}{middle}.data")
        try:
            os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return candidate
        except FileExistsError:
            number += 1


def _own_data_files(target: Path) -> list[Path]:
    """Data files of the model now at `target` that bear its name: removed once it is replaced."""
    if not target.is_file():
        return []
    try:
        proto = onnx.load_model(target, load_external_data=False)
    # whatever is there is about to be replaced; not being a model is no obstacle
    except Exception:
        return []
    names: set[str] = set()
    for tensor in tensor_protos(proto):
        for entry in tensor.external_data:
            if entry.key == "location" and _is_own_name(entry.value, target):
                names.add(entry.value)
    return [target.with_name(name) for name in names]


def _is_own_name(name: str, target: Path) -> bool:
    """True for a name that `_reserve_data_file` may have given a data file of `target`."""
    prefix = f"{target.name}."
    return name.startswith(prefix) and name.endswith(".data") and "/" not in name


def _same_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False
