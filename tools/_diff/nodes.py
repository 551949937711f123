"""Differences of two nodes that are each other's twins, but for their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ...passes._core.graph import input_of
from ...passes._core.ops import FLOATS

ABSENT = "absent"
"""Word for what one of two has not."""

SHOWN = 8
"""Elements of a constant that are shown."""


def node_changes(node: ir.Node, other: ir.Node) -> list[str]:
    """Differences of two nodes but for their weights."""
    found = []
    if node.op_type != other.op_type:
        found.append(f"{node.op_type} became {other.op_type}")
    else:
        if len(node.inputs) != len(other.inputs):
            found.append(f"{len(node.inputs)} inputs became {len(other.inputs)}")
        found += _constant_changes(node, other)
    before = _attributes(node)
    after = _attributes(other)
    return found + list(value_changes("", before, after))


def value_changes(
    kind: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[str]:
    """Values by name that differ, in words; `kind`: a word in front of their names."""
    for name in dict.fromkeys([*before, *after]):
        old = before.get(name, ABSENT)
        new = after.get(name, ABSENT)
        if old != new:
            yield f"{kind} {name}: {old} became {new}".strip()


def _attributes(node: ir.Node) -> dict[str, str]:
    """Attributes as text; what is in graphs is compared node by node."""
    found = {}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            found[name] = f"the caller's {attribute.ref_attr_name}"
        elif attribute.type == ir.AttributeType.TENSOR:
            found[name] = _tensor_text(attribute.value)
        elif attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            found[name] = str(attribute.value)
    return found


def _constant_changes(node: ir.Node, other: ir.Node) -> Iterator[str]:
    """Constants that are no weights, such as shapes and indices."""
    for index, value in enumerate(node.inputs):
        twin = input_of(other, index)
        old = None if value is None else _plain_constant(value)
        new = None if twin is None else _plain_constant(twin)
        if old is not None and new is not None:
            before = _tensor_text(old)
            after = _tensor_text(new)
            if before != after:
                yield f"input {index}: {before} became {after}"


def _plain_constant(value: ir.Value) -> ir.TensorProtocol | None:
    tensor = value.const_value
    if tensor is None or tensor.dtype in FLOATS:
        return None
    return tensor


def _tensor_text(tensor: ir.TensorProtocol) -> str:
    """Elements of a small tensor; of a larger one its type, shape and a digest."""
    array = tensor.numpy()
    if array.size <= SHOWN:
        elements = array.tolist()
        return str(elements)
    in_order = np.ascontiguousarray(array)
    digest = hashlib.sha256(in_order.tobytes())
    dims = " × ".join(map(str, array.shape))
    short = digest.hexdigest()[:8]
    return f"{tensor.dtype} {dims} ({short})"
