"""Taps: tensors to look at while a model runs, and those that follow from others."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import onnx_ir as ir

from ..passes._core.ops import FLOATS, REARRANGEMENTS, is_standard
from .calibrate import DerivedTap

# bfloat16 is left out on purpose: to numpy it is no float, and the observers pass it over
_OBSERVABLE = FLOATS - {ir.DataType.BFLOAT16}


class _Bounds(NamedTuple):
    """A range that a node clips its input to, infinite where it only moves elements."""

    low: float
    high: float


def with_taps(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Copy the model, sharing its weights; the copy's main graph also outputs the named tensors.

    Tensors that are known not to be float are left out, bfloat16 too.
    """
    copy = model.clone()
    present = {id(value) for value in copy.graph.outputs}
    wanted = set(names)
    outputs = copy.graph.outputs
    for node in copy.graph:
        for value in node.outputs:
            if value.name not in wanted or id(value) in present:
                continue
            if may_be_observed(value):
                outputs.append(value)
                present.add(id(value))
    return copy


def planned_taps(model: ir.Model, names: Sequence[str]) -> dict[str, DerivedTap | None]:
    """Plan every name: a DerivedTap where it is another observed tensor's elements, clipped or not.

    None: it is observed itself. A DerivedTap's source is always observed itself.
    """
    plan: dict[str, DerivedTap | None] = dict.fromkeys(names)
    for node in model.graph:
        bounds = _bounds(node)
        if bounds is None or not node.inputs:
            continue
        source = node.inputs[0]
        if source is None or source.name not in plan:
            continue
        # a source that follows from a third tensor has no counts of its own to share
        if plan[source.name] is not None:
            continue
        result = node.outputs[0]
        if result.name not in plan or not may_be_observed(result):
            continue
        if _is_run_time(model, source):
            plan[result.name] = DerivedTap(
                source.name,
                bounds.low,
                bounds.high,
            )
    return plan


def constant_names(model: ir.Model) -> set[str]:
    """Names of the outputs of Constant nodes: the same in every run."""
    names: set[str] = set()
    for node in model.graph:
        if is_standard(node, "Constant"):
            names.update(value.name for value in node.outputs if value.name)
    return names


def may_be_observed(value: ir.Value) -> bool:
    """False for a tensor that is known not to be one of floats that numpy has."""
    return value.dtype is None or value.dtype in _OBSERVABLE


def _is_run_time(model: ir.Model, value: ir.Value) -> bool:
    """Return whether a run shows the tensor: an input or what a node makes, and perhaps a float."""
    if not may_be_observed(value):
        return False
    return value.producer() is not None or value in model.graph.inputs


def _bounds(node: ir.Node) -> _Bounds | None:
    """Bounds of a Relu, of a Clip around zero, and of what only moves elements.

    None for every other node. Clip counts where its bounds are constant.
    """
    if is_standard(node, *REARRANGEMENTS):
        return _Bounds(-math.inf, math.inf)
    if is_standard(node, "Relu"):
        return _Bounds(0.0, math.inf)
    if is_standard(node, "Clip"):
        low = _clip_bound(node, 1, "min", -math.inf)
        high = _clip_bound(node, 2, "max", math.inf)
        if low is not None and high is not None and low <= 0 <= high:
            return _Bounds(low, high)
    return None


def _clip_bound(
    node: ir.Node, index: int, attribute: str, default: float
) -> float | None:
    """Bound of a Clip, None where it is not known.

    It is an attribute before opset 11 and an input since.
    """
    if attribute in node.attributes:
        return node.attributes[attribute].as_float()
    if index >= len(node.inputs):
        return default
    value = node.inputs[index]
    if value is None:
        return default
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    bound = tensor.numpy().item()
    return float(bound)
