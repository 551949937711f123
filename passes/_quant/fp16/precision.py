"""Which nodes may compute in float16, and which stay float32 islands: the operator's type, its
numbers, its ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from ..._base import Context
from ..._core.edit import is_constant
from ..._core.graph import holds_graphs
from ..._core.lazy import blocks
from ..._core.ops import QUANT_OPS

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
"""Below it float16 loses digits, and below 2**-24 everything."""

HEADROOM = 0.5
"""Share of float16's range that calibrated values may fill: other data reaches further."""

SAMPLES = 128

SINGLE_OPS: dict[str, str] = {
    **dict.fromkeys(
        ("Softmax", "LogSoftmax", "ReduceLogSumExp", "Exp", "Softplus"),
        "exponentials leave its range",
    ),
    **dict.fromkeys(
        ("Log", "Pow", "Reciprocal"), "small and large arguments lose their digits"
    ),
    **dict.fromkeys(
        (
            "ReduceSum",
            "ReduceMean",
            "ReduceSumSquare",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceProd",
            "CumSum",
        ),
        "long sums lose digits or leave its range",
    ),
    **dict.fromkeys(
        (
            "LayerNormalization",
            "InstanceNormalization",
            "GroupNormalization",
            "RMSNormalization",
            "MeanVarianceNormalization",
            "LpNormalization",
            "SimplifiedLayerNormalization",
        ),
        "sums of squares leave its range",
    ),
    "Range": "counts beyond 2048 are not exact",
    **dict.fromkeys(QUANT_OPS, "it is quantized already"),
}
"""Ops that stay float32 whatever their numbers, and why."""

_CHOSEN_TYPE = ("dtype", "output_dtype", "output_datatype")
"""Attributes by which a node chooses its output's type."""

_MOVERS = frozenset(
    {
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Expand",
        "Slice",
        "Gather",
        "Concat",
        "Identity",
        "Tile",
        "Cast",
        "Split",
    }
)
_HUGE_PASSES = _MOVERS | {"Add", "Sub", "Mul", "Neg", "Where", "Max", "Min", "Softmax"}
_TINY_PASSES = frozenset({"Sqrt", "Max", "Clip", "Abs", "Reciprocal", "Div"})
_TINY_ENDS = frozenset({"Reciprocal", "Div"})
_SIZE_OPS = _MOVERS | {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Floor",
    "Ceil",
    "Round",
    "Max",
    "Min",
}

Reasons = dict[ir.Node, str]


@dataclass(frozen=True)
class Slots:
    """Where a node's operator lets float16 stand for float32: its inputs and outputs of variable
    type, by index.
    """

    inputs: frozenset[int]
    outputs: frozenset[int]


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a float32 tensor."""
    return (
        value is not None
        and isinstance(value.type, ir.TensorType)
        and value.dtype == ir.DataType.FLOAT
    )


def half_slots(node: ir.Node, opset: int) -> Slots | str:
    """Where the node may have float16, or why it must not."""
    if node.domain != "":
        return f"nothing says that {node.domain}.{node.op_type} takes float16"
    if holds_graphs(node):
        return "what enters and leaves its subgraphs stays float32"
    if node.op_type in SINGLE_OPS:
        return SINGLE_OPS[node.op_type]
    if node.op_type == "Cast" and any(
        v is not None and v.dtype == ir.DataType.FLOAT16
        for v in (*node.inputs, *node.outputs)
    ):
        return "it stands between float16 and float32"
    if any(v is not None and v.type is None for v in (*node.inputs, *node.outputs)):
        return "the types around it are unknown"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return f"{node.op_type} is unknown in opset {opset}"
    if any(name in schema.attributes for name in _CHOSEN_TYPE) or (
        node.op_type == "Cast" and opset < 6
    ):
        return "an attribute chooses its type"
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    found = [
        _slots(values, formal, allowed)
        for values, formal in (
            (node.inputs, schema.inputs),
            (node.outputs, schema.outputs),
        )
    ]
    if found[0] is None or found[1] is None:
        return f"{node.op_type} has no float16 form in opset {opset}"
    return Slots(found[0], found[1])


def _slots(
    values: Iterable[ir.Value | None],
    formal: list[onnx.defs.OpSchema.FormalParameter],
    allowed: dict[str, list[str]],
) -> frozenset[int] | None:
    found = set()
    for index, value in enumerate(values):
        if value is None:
            continue
        kind = formal[min(index, len(formal) - 1)].type_str
        if not isinstance(value.type, ir.TensorType):
            return None
        if (
            not is_float(value)
            or allowed.get(kind, []) == ["tensor(float)"]
            or kind == "tensor(float)"
        ):
            continue
        if "tensor(float16)" not in allowed.get(kind, []):
            return None
        found.add(index)
    return frozenset(found)


def constants_out_of_range(slots: dict[ir.Node, Slots]) -> Reasons:
    """Nodes that read a constant which float16 cannot hold, and the nodes that such numbers run on
    to.
    """
    extremes: dict[ir.Value, float] = {}
    huge: Reasons = {}
    tiny: Reasons = {}
    for node, slot in slots.items():
        for index in slot.inputs:
            value = node.inputs[index]
            if value is None or not is_constant(value):
                continue
            if value not in extremes:
                extremes[value] = _absmax(value)
            if not extremes[value] <= LARGEST:
                huge[node] = f"constant '{value.name}' is beyond 65504"
            elif 0 < extremes[value] < SMALLEST_NORMAL:
                tiny[node] = f"constant '{value.name}' is below 2**-14"
    _spread(
        huge,
        slots,
        "a number beyond 65504 may reach it",
        lambda n: n.op_type in _HUGE_PASSES,
        lambda n: False,
    )
    _spread(
        tiny,
        slots,
        "a number below 2**-14 may reach it",
        lambda n: n.op_type in _TINY_PASSES,
        lambda n: n.op_type in _TINY_ENDS,
    )
    return tiny | huge


def _absmax(value: ir.Value) -> float:
    assert value.const_value is not None
    highest = 0.0
    for _, block in blocks(value.const_value):
        highest = max(highest, float(np.max(np.abs(block), initial=0.0)))
        if not highest <= LARGEST:
            break
    return highest if highest == highest else np.inf


def _spread(
    reasons: Reasons,
    slots: dict[ir.Node, Slots],
    reason: str,
    passes: Callable[[ir.Node], bool],
    ends: Callable[[ir.Node], bool],
) -> None:
    """Add every node that values of `reasons` reach through nodes that pass them on."""
    open_ = list(reasons)
    while open_:
        node = open_.pop()
        if ends(node):
            continue
        for index in slots[node].outputs if node in slots else ():
            for user, _ in node.outputs[index].uses():
                if user in slots and user not in reasons and passes(user):
                    reasons[user] = reason
                    open_.append(user)


def size_arithmetic(slots: dict[ir.Node, Slots]) -> Reasons:
    """Float arithmetic on sizes (vectors at most) that ends in integers: half would round sizes
    above 2048.
    """
    reasons: Reasons = {}
    open_ = [
        n
        for n in slots
        if n.op_type == "Cast"
        and slots[n].inputs
        and not slots[n].outputs
        and _is_vector(n)
    ]
    while open_:
        node = open_.pop()
        reasons[node] = "it computes sizes or indices"
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if (
                producer in slots
                and producer not in reasons
                and producer.op_type in _SIZE_OPS
                and _is_vector(producer)
            ):
                open_.append(producer)
    return reasons


def _is_vector(node: ir.Node) -> bool:
    shape = node.outputs[0].shape
    return shape is not None and len(shape) <= 1


def ranges_out_of_range(
    model: ir.Model, context: Context, slots: dict[ir.Node, Slots]
) -> Reasons:
    """Nodes of the main graph that make or read values which, on the calibration data, float16
    cannot hold well.
    """
    main = [n for n in slots if n.graph is model.graph]
    made = [n.outputs[i] for n in main for i in slots[n].outputs]
    read = [n.inputs[i] for n in main for i in slots[n].inputs]
    values = {
        v.name: v
        for v in (*made, *read)
        if v is not None
        and v.name
        and not v.is_initializer()
        and (v.producer() is not None or v.is_graph_input())
    }
    ranges = context.activation_ranges(model, list(values), "minmax", 100.0, SAMPLES)
    reasons: Reasons = {}
    for name, (low, high) in ranges.items():
        bound, value = max(-low, high), values[name]
        if bound > LARGEST * HEADROOM:
            reason = f"'{name}' reaches {bound:.4g}"
        elif 0 < bound < SMALLEST_NORMAL:
            reason = f"'{name}' stays below {bound:.2g}, where float16 has few digits"
        else:
            continue
        for node in (value.producer(), *(user for user, _ in value.uses())):
            if node is not None and node in slots:
                reasons[node] = reason
    return reasons
