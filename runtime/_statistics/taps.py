"""Which tensors to look at while a model runs, and what follows from others or never changes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir

from ..calibrate import Tap

_MOVES = {
    "Identity",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "DepthToSpace",
    "SpaceToDepth",
}
FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}


def with_taps(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy of the model, weights shared, whose main graph also outputs the named float
    tensors.
    """
    copy = model.clone()
    present = {id(value) for value in copy.graph.outputs}
    wanted = set(names)
    for node in list(copy.graph):
        for value in node.outputs:
            if (
                value.name in wanted
                and id(value) not in present
                and _may_be_float(value)
            ):
                copy.graph.outputs.append(value)
                present.add(id(value))
    return copy


def planned_taps(model: ir.Model, names: Sequence[str]) -> dict[str, Tap | None]:
    """Every name, with a Tap where it is another, itself observed name's elements, clipped or
    not.
    """
    plan: dict[str, Tap | None] = dict.fromkeys(names)
    for node in model.graph:
        for bounds in _bounds(node):
            source, result = node.inputs[0], node.outputs[0]
            if (
                source is not None
                and source.name in plan
                and plan[source.name] is None
                and result.name in plan
                and _is_run_time(model, source)
                and _may_be_float(result)
            ):
                plan[result.name] = Tap(source.name, *bounds)
    return plan


def constant_names(model: ir.Model) -> set[str]:
    """Outputs of Constant nodes: the same in every run."""
    return {
        value.name
        for node in model.graph
        if node.op_type == "Constant"
        for value in node.outputs
        if value.name
    }


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype in FLOATS


def _is_run_time(model: ir.Model, value: ir.Value) -> bool:
    """Whether a run shows it: an input or what a node makes, and a float as far as one knows."""
    return _may_be_float(value) and (
        value.producer() is not None or value in model.graph.inputs
    )


def _bounds(node: ir.Node) -> Iterator[tuple[float, float]]:
    """(low, high) of a Relu, of a Clip with constant bounds around zero, and of what only moves
    elements.
    """
    if node.domain or not node.inputs:
        return
    if node.op_type in _MOVES:
        yield -math.inf, math.inf
    elif node.op_type == "Relu":
        yield 0.0, math.inf
    elif node.op_type == "Clip":
        low, high = _bound(node, 1, "min", -math.inf), _bound(node, 2, "max", math.inf)
        if low is not None and high is not None and low <= 0 <= high:
            yield low, high


def _bound(node: ir.Node, index: int, attribute: str, default: float) -> float | None:
    """A bound of Clip, an attribute before opset 11 and an input since; None where it is not
    known.
    """
    if attribute in node.attributes:
        return node.attributes[attribute].as_float()
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return default
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size != 1 else float(tensor.numpy().item())
