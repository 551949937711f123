"""Large model files, read without the bytes of their large tensors: these stay in the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from ...passes._core.held import HeldTensor
from ...passes._core.held_file import FileBytes, HeldFile, large_file
from ...passes._core.wire import Extent, skeleton
from .protos import tensor_protos
from .read import refuse_bytes_in_text, refuse_other_formats
from .slots import slots_of
from .tensors import is_whole

_HERE = "\0"
"""Location of tensors that lie in the model file itself: no file has this name."""


@dataclass(frozen=True)
class HeldModel:
    """A parsed model whose large tensors are external ones, at no location but in `file`."""

    proto: onnx.ModelProto
    file: HeldFile

    def bind(self, model: ir.Model) -> None:
        """Put tensors in the file into the places of a model made of `proto`."""
        for slot in slots_of(model):
            tensor = slot.tensor
            if isinstance(tensor, ir.ExternalTensor) and tensor.location == _HERE:
                assert tensor.offset is not None
                slot.put(HeldTensor(self.file, tensor.offset, tensor))


def is_held(tensor: onnx.TensorProto) -> bool:
    """True for a tensor of a `HeldModel` that lies in the model file."""
    entries = tensor.external_data
    return bool(entries) and entries[0].value == _HERE


def read_held(path: str | Path) -> HeldModel | None:
    """Read the model file at `path`, held open for its large tensors.

    None where it is small, has none, or is anything else than what writers of ONNX make: `read`
    judges it then. Errors: RefusedError, as `read_proto`.
    """
    file = large_file(path)
    if file is None:
        return None
    where = str(path)
    data = FileBytes(file)
    refuse_other_formats(data, where)
    found = skeleton(data, _HERE)
    if found is None:
        return None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(found.encoded)
    except DecodeError:
        return None
    if not proto.HasField("graph") or not _are_sound(proto, found.extents):
        return None
    refuse_bytes_in_text(proto, where)
    return HeldModel(proto, file)


def _are_sound(proto: onnx.ModelProto, extents: frozenset[Extent]) -> bool:
    """True if the tensors that were left out are there once each, and as long as they must be.

    Protobuf merges messages that stand in a file twice, and with them what was left out of each.
    """
    held = [tensor for tensor in tensor_protos(proto) if is_held(tensor)]
    places = list(_places(held))
    if len(places) != len(extents) or set(places) != extents:
        return False
    return all(
        is_whole(tensor, place.length)
        for tensor, place in zip(held, places, strict=True)
    )


def _places(held: list[onnx.TensorProto]) -> Iterator[Extent]:
    for tensor in held:
        entries = [(entry.key, entry.value) for entry in tensor.external_data]
        place = dict(entries)
        # one that was merged has more of them
        if len(entries) == len(Extent._fields) + 1:
            yield Extent(int(place["offset"]), int(place["length"]))
