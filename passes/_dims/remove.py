"""The walk that takes channels out of a model: slice what is constant, mend every node, check every
shape.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.edit import is_constant
from .._core.graph import refresh_shapes
from .._core.lazy import set_tensor
from .ops.elementwise import broadcast
from .sliced import SlicedTensor
from .surgery import TARGETS, Kept, Surgery, SurgeryError
from .table import MENDS, RULES
from .trace import Trace


def remove_slots(model: ir.Model, kept: Kept, old: Trace) -> None:
    """Keep only `kept` of every tensor, in place. `old`: the trace of the model as it is, or of its
    original.

    Weights are not copied. Errors: SurgeryError at the first node that cannot be made to fit; the
    model is then spoilt.
    """
    for name, axes in kept.items():
        value = model.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            set_tensor(value, SlicedTensor(value.const_value, axes))
    surgery = Surgery(model, old, Trace(model, old.sizes), kept)
    for node in list(model.graph):
        if (mend := MENDS.get((node.domain, node.op_type))) is not None and _narrowed(
            node, kept
        ):
            mend(node, surgery)
        _hold_numbers(node, surgery)
        _follow(node, surgery)
    refresh_shapes(model)


def _narrowed(node: ir.Node, kept: Kept) -> bool:
    return any(v is not None and v.name in kept for v in (*node.inputs, *node.outputs))


def _hold_numbers(node: ir.Node, surgery: Surgery) -> None:
    """Sizes that enter the arithmetic of activations, as in 1 / sqrt(width), keep the value that
    they had.
    """
    if any(
        surgery.old.arrays.get(old) is not None
        for old in map(surgery.former, node.outputs)
        if old is not None
    ):
        return
    for index, value in enumerate(node.inputs):
        old = surgery.former(value)
        if (
            value is None
            or old is None
            or is_constant(value)
            or old not in surgery.old.arrays
        ):
            continue
        before, now = surgery.old.arrays[old], surgery.new.arrays.get(value)
        enters = (
            before.dtype.kind == "f"
            or RULES.get((node.domain, node.op_type)) is broadcast
        )
        if not enters or (now is not None and np.array_equal(before, now)):
            continue
        twin = surgery.old.twin
        if twin is not None and not np.array_equal(before, twin.arrays.get(old, ())):
            raise SurgeryError(
                node,
                f"it computes with sizes that follow both channels and the input ('{value.name}')",
            )
        surgery.constant(node, index, before)


def _follow(node: ir.Node, surgery: Surgery) -> None:
    surgery.new.step(node)
    wrong = _misfit(node, surgery)
    if wrong is not None and node.op_type in TARGETS and node.domain == "":
        _retarget(node, surgery)
        surgery.new.step(node)
        wrong = _misfit(node, surgery)
    if wrong is not None:
        raise SurgeryError(
            node, f"makes {surgery.new.shape(wrong)}, not {surgery.after(wrong)}"
        )


def _misfit(node: ir.Node, surgery: Surgery) -> ir.Value | None:
    """An output whose shape is not the expected one."""
    for value in node.outputs:
        if value.name in surgery.names and surgery.new.shape(value) != surgery.after(
            value
        ):
            return value
    return None


def _retarget(node: ir.Node, surgery: Surgery) -> None:
    """Give the op the shape it must make: constants where static, its own computation where dims
    are dynamic.
    """
    index = TARGETS[node.op_type]
    value = node.inputs[index] if index < len(node.inputs) else None
    given = surgery.new.ints(value)
    expected = surgery.after(node.outputs[0])
    if value is None or given is None or len(given) != len(expected):
        raise SurgeryError(node, "the shape it is told is not known")
    free = node.op_type == "Reshape" and not node.attributes.get_int("allowzero", 0)
    wanted: list[int | None] = []
    result = surgery.names[node.outputs[0].name or ""]
    for axis, (told, size) in enumerate(zip(given, expected, strict=True)):
        dynamic = surgery.old.varies(result, axis)
        if (
            told == size
            or (free and told == 0)
            or (node.op_type == "Expand" and told == 1)
        ):
            wanted.append(told if told in (0, 1) or not dynamic else None)
        elif dynamic:
            wanted.append(-1 if free else None)
        else:
            wanted.append(size)
    if wanted.count(-1) > 1:
        raise SurgeryError(node, "two dynamic dims of the shape it is told change")
    _set_target(node, index, value, wanted, surgery)


def _set_target(
    node: ir.Node,
    index: int,
    value: ir.Value,
    wanted: list[int | None],
    surgery: Surgery,
) -> None:
    """A new shape tensor: given numbers, and what the old one computes where None is asked."""
    if None not in wanted:
        surgery.constant(node, index, [n for n in wanted if n is not None])
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    keep = surgery.edit.constant(graph, _mask(wanted), f"{value.name}_dynamic")
    numbers = surgery.edit.constant(graph, _numbers(wanted), f"{value.name}_static")
    where = surgery.edit.node_before(node, "Where", [keep, value, numbers])
    where.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    for constant in (keep, numbers):
        surgery.new.know(constant)
    surgery.new.step(where)
    surgery.edit.set_input(node, index, where.outputs[0])


def _mask(wanted: list[int | None]) -> NDArray[np.bool_]:
    return np.array([n is None for n in wanted])


def _numbers(wanted: list[int | None]) -> NDArray[np.int64]:
    return np.array([0 if n is None else n for n in wanted], np.int64)
