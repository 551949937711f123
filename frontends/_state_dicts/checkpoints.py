"""Named weights out of files: .safetensors (read lazily), .pt and .pth (by torch, tensors only)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ... import RefusedError, UsageError

State = dict[str, ir.TensorProtocol]
"""Weights by name."""

_TYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
    "I16": ir.DataType.INT16,
    "I8": ir.DataType.INT8,
    "U64": ir.DataType.UINT64,
    "U32": ir.DataType.UINT32,
    "U16": ir.DataType.UINT16,
    "U8": ir.DataType.UINT8,
    "BOOL": ir.DataType.BOOL,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "F8_E5M2": ir.DataType.FLOAT8E5M2,
}
"""Types as safetensors spells them."""

_LONGEST_HEADER = 100 << 20
"""Bytes (100 MiB) of a header; the safetensors library itself takes 100 MB."""

_FETCH_AGAIN = "fetch or save the file again"

# in the order in which they are looked for
_NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "weights",
    "ema_state_dict",
)
"""Keys under which training checkpoints keep the state dict."""


def read_state(state: str | Path | Mapping[str, Any]) -> State:
    """Weights by name, from a file (an index of shards too) or from tensors and arrays at hand.

    Errors: RefusedError for a file that is damaged, unsafe or something else.
    """
    if isinstance(state, Mapping):
        return {str(name): _tensor(str(name), value) for name, value in state.items()}
    path, where = Path(state), str(state)
    if not path.is_file():
        raise RefusedError(
            where,
            "is a folder" if path.is_dir() else "no such file",
            "give a .safetensors, .pt or .pth file, or its .safetensors.index.json",
        )
    if path.name.endswith(".index.json"):
        return _shards(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".onnx":
        raise RefusedError(
            where,
            "is an ONNX model, not a state dict",
            "give a .safetensors, .pt or .pth file",
        )
    return _read_torch(path)


def _tensor(name: str, value: Any) -> ir.TensorProtocol:
    # told by an attribute, so that torch need not be imported
    if hasattr(value, "detach"):
        from onnx_ir.tensor_adapters import TorchTensor

        tensor: ir.TensorProtocol = TorchTensor(
            value.detach().cpu().contiguous(), name=name
        )
        return tensor
    if isinstance(value, ir.TensorProtocol):
        return value
    return ir.tensor(np.asarray(value), name=name)


def read_safetensors(path: Path) -> State:
    """Tensors of a .safetensors file; their bytes stay in it until they are needed.

    The file: 8 bytes with the header's length, the header (JSON), the data.

    Errors: RefusedError where header and file do not fit together.
    """
    where = str(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        available = size - 8 - length
        if size < 8 or length > _LONGEST_HEADER or available < 0:
            raise RefusedError(
                where, "is not a safetensors file, or is cut short", _FETCH_AGAIN
            )
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {
                str(name): _entry(entry, available) for name, entry in header.items()
            }
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise RefusedError(
                where, f"has a damaged safetensors header ({error})", _FETCH_AGAIN
            ) from error
    state: State = {}
    for name, (dtype, shape, begin, nbytes) in entries.items():
        state[name] = ir.ExternalTensor(
            os.path.realpath(path),
            8 + length + begin,
            nbytes,
            dtype,
            shape=ir.Shape(shape),
            name=name,
        )
    return state


def _entry(
    entry: Mapping[str, Any], available: int
) -> tuple[ir.DataType, list[int], int, int]:
    """Type, shape, first byte behind the header and number of bytes of one tensor.

    Errors: ValueError, KeyError or TypeError for an entry that is damaged.
    """
    if entry["dtype"] not in _TYPES:
        raise ValueError(f"the type {entry['dtype']} is not known")
    dtype = _TYPES[entry["dtype"]]
    shape = entry["shape"]
    begin, end = entry["data_offsets"]
    # JSON's true is an int to Python, so the type is asked for exactly
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError("a size is not a number")
    if end > available or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            "a tensor lies outside of the file or does not have its length"
        )
    return dtype, shape, begin, end - begin


def _shards(path: Path) -> State:
    """Weights of all shards that an index names."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(
            str(path),
            "is not an index of safetensors shards",
            "give the .safetensors file",
        ) from error
    state: State = {}
    for name in files:
        # the index may come from anyone: it reaches no file outside its folder
        if Path(name).name != name:
            raise RefusedError(
                str(path), f"names a file outside its folder: {name}", _FETCH_AGAIN
            )
        state.update(read_state(path.with_name(name)))
    return state


def _read_torch(path: Path) -> State:
    where = str(path)
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UsageError(
            "torch",
            f"not installed, and {path.suffix or 'such'} files need it",
            "pip install 'onnx-opt[torch]', or save the weights as .safetensors",
        ) from error
    from .._torch_export.capture import quiet
    from .._torch_export.file_kinds import PICKLE, first_bytes, is_torchscript

    # a zip archive, or a pickle of torch.save before 1.6
    if first_bytes(path)[:1] not in (b"P", PICKLE):
        raise RefusedError(
            where,
            "is not a file of torch.save",
            "give a .safetensors, .pt or .pth file",
        )
    if is_torchscript(path):
        raise RefusedError(
            where,
            "is a TorchScript file, not a state dict",
            "torch.save(module.state_dict(), …)",
        )
    try:
        with quiet():
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        message = str(error)
        # torch has no exception of its own for what weights_only refuses
        refusals = ("weights_only", "Unsupported global", "WeightsUnpickler")
        if any(words in message for words in refusals):
            raise RefusedError(
                where,
                "holds pickled objects besides tensors; reading them could run any code",
                "torch.save(module.state_dict(), …), or save as .safetensors",
            ) from error
        first_line = (message.splitlines() or [""])[0]
        raise RefusedError(
            where, f"torch cannot read it: {first_line[:200]}", _FETCH_AGAIN
        ) from error
    tensors = _tensors_in(held)
    if not tensors:
        raise RefusedError(
            where, "holds no named tensors", "torch.save(module.state_dict(), …)"
        )
    return {name: _tensor(name, value) for name, value in tensors.items()}


def _tensors_in(held: Any) -> dict[str, Any]:
    """The state dict, also inside a training checkpoint."""
    if not isinstance(held, Mapping):
        return {}
    for key in _NESTED:
        inner = held.get(key)
        if isinstance(inner, Mapping) and _all_tensors(inner):
            return {str(name): value for name, value in inner.items()}
    return {
        str(name): value for name, value in held.items() if hasattr(value, "detach")
    }


def _all_tensors(held: Mapping[Any, Any]) -> bool:
    """True if a mapping has entries and all of them are torch tensors."""
    return bool(held) and all(hasattr(value, "detach") for value in held.values())
