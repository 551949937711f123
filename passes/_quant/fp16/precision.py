"""Nodes that may compute in float16, and those that stay float32 islands.

An operator's types decide, the numbers of its constants, and the ranges of its values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from ..._base import Context
from ..._core.edit import is_constant
from ..._core.graph import holds_graphs
from ..._core.lazy import blocks
from ..._core.ops import MOVES, QUANT_OPS, is_standard
from .runtime_ops import TAKES_HALF

LARGEST = 65504.0
"""Largest finite float16."""

SMALLEST_NORMAL = 2.0**-14
"""Below it float16 loses digits, and below 2**-24 everything."""

HEADROOM = 0.5
"""Share of float16's range that calibrated values may fill: other data reaches further."""

SAMPLES = 128
"""Calibration samples whose ranges are looked at (count); chosen by hand."""

SINGLE_OPS: dict[str, str] = {
    **dict.fromkeys(
        ("Softmax", "LogSoftmax", "ReduceLogSumExp", "Exp", "Softplus"),
        "its exponentials may exceed the range of float16",
    ),
    **dict.fromkeys(
        ("Log", "Pow", "Reciprocal"), "small and large numbers lose digits in float16"
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
        "long sums lose digits in float16, or exceed its range",
    ),
    **dict.fromkeys(
        (
            "InstanceNormalization",
            "GroupNormalization",
            "MeanVarianceNormalization",
            "LpNormalization",
        ),
        "sums of squares may exceed the range of float16",
    ),
    # others are initializers once a model is loaded
    "Constant": "it is an output of its graph",
    "Range": "counts beyond 2048 are not exact in float16",
    **dict.fromkeys(QUANT_OPS, "it is quantized already"),
}
"""Ops that stay float32 whatever their numbers, and why."""

_STASHED = frozenset({"LayerNormalization", "RMSNormalization"})
"""Normalisations that say in which type they sum squares: `stash_type`, float32 by default."""

_SCATTERS = frozenset({"ScatterElements", "ScatterND"})
"""Ops that have a float16 kernel, which refuses their reductions as it runs."""

_CHOSEN_TYPE = ("dtype", "output_dtype", "output_datatype")
"""Attributes by which a node chooses its output's type."""

_PASS_ON = MOVES | {"Cast"}
_HUGE_PASSES = _PASS_ON | {"Add", "Sub", "Mul", "Neg", "Where", "Max", "Min", "Softmax"}
"""Ops whose output may be a huge number that they read."""

_TINY_PASSES = frozenset({"Sqrt", "Max", "Clip", "Abs", "Reciprocal", "Div"})
"""Ops that a tiny number, an epsilon mostly, keeps from dividing by zero further on."""

_TINY_ENDS = frozenset({"Reciprocal", "Div"})
"""Ops after which it is no tiny number any more."""

_SIZE_OPS = _PASS_ON | {"Add", "Sub", "Mul", "Div", "Floor", "Ceil", "Round"}
_SIZE_OPS |= {"Max", "Min"}
"""Ops by which models compute sizes and indices in float."""

Reasons = dict[ir.Node, str]


@dataclass(frozen=True)
class HalfOperands:
    """Inputs and outputs of a node, by index, at which float16 may stand for float32."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def is_float(value: ir.Value | None) -> bool:
    """True for a float32 tensor."""
    return (
        value is not None
        and isinstance(value.type, ir.TensorType)
        and value.dtype == ir.DataType.FLOAT
    )


def half_operands(node: ir.Node, opset: int) -> HalfOperands | str:
    """The operands of a node that may be float16, or the reason why none may."""
    single = TAKES_HALF.get((node.domain, node.op_type))
    if single is not None:
        return HalfOperands(
            _floats_but(node.inputs, single.inputs),
            _floats_but(node.outputs, single.outputs),
        )
    if not is_standard(node):
        return f"nothing says that {node.domain}.{node.op_type} takes float16"
    if holds_graphs(node):
        return "what enters and leaves its subgraphs stays float32"
    if node.op_type in SINGLE_OPS:
        return SINGLE_OPS[node.op_type]
    if (
        node.op_type in _SCATTERS
        and node.attributes.get_string("reduction", "none") != "none"
    ):
        return "ONNX Runtime's CPU provider does not reduce float16 there"
    if (
        node.op_type in _STASHED
        and node.attributes.get_int("stash_type", 1) != ir.DataType.FLOAT
    ):
        return "its sums of squares are not asked for in float32 (stash_type)"
    around = [value for value in (*node.inputs, *node.outputs) if value is not None]
    # a Cast that another run of this pass inserted
    is_mixed = any(value.dtype == ir.DataType.FLOAT16 for value in around)
    if node.op_type == "Cast" and is_mixed:
        return "it stands between float16 and float32"
    if any(value.type is None for value in around):
        return "the types around it are unknown"
    try:
        schema = onnx.defs.get_schema(
            node.op_type,
            opset,
            "",
        )
    except onnx.defs.SchemaError:
        return f"{node.op_type} is unknown in opset {opset}"
    chooses = any(name in schema.attributes for name in _CHOSEN_TYPE)
    # before opset 6 Cast names its type by a string
    if chooses or (node.op_type == "Cast" and opset < 6):
        return "an attribute fixes its type"
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    inputs = _operands(
        node.inputs,
        schema.inputs,
        allowed,
    )
    outputs = _operands(
        node.outputs,
        schema.outputs,
        allowed,
    )
    if inputs is None or outputs is None:
        return f"{node.op_type} has no float16 form in opset {opset}"
    return HalfOperands(inputs, outputs)


def _floats_but(
    values: Iterable[ir.Value | None], single: frozenset[int]
) -> frozenset[int]:
    """Indices of float32 values but for those that always are."""
    floats = {index for index, value in enumerate(values) if is_float(value)}
    return frozenset(floats - single)


def _operands(
    values: Iterable[ir.Value | None],
    formal: list[onnx.defs.OpSchema.FormalParameter],
    allowed: dict[str, list[str]],
) -> frozenset[int] | None:
    """Indices of float32 values that may be float16; None where one has no such form."""
    found = set()
    for index, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value.type, ir.TensorType):
            return None
        # the last formal parameter of a variadic operator stands for all that follow
        kind = formal[min(index, len(formal) - 1)].type_str
        types = allowed.get(kind, [])
        always_single = kind == "tensor(float)" or types == ["tensor(float)"]
        if always_single or not is_float(value):
            continue
        if "tensor(float16)" not in types:
            return None
        found.add(index)
    return frozenset(found)


def constants_out_of_range(operands: dict[ir.Node, HalfOperands]) -> Reasons:
    """Nodes that read a constant which float16 cannot hold, and the nodes that such numbers run on
    to.
    """
    extremes: dict[ir.Value, float] = {}
    huge: Reasons = {}
    tiny: Reasons = {}
    for node, own in operands.items():
        for index in own.inputs:
            value = node.inputs[index]
            if value is None or not is_constant(value):
                continue
            # a shared weight is read once
            if value not in extremes:
                extremes[value] = _absmax(value)
            extreme = extremes[value]
            if extreme > LARGEST:
                huge[node] = (
                    f"constant '{value.name}' is beyond 65504, the largest of float16"
                )
            elif extreme > 0 and extreme < SMALLEST_NORMAL:
                tiny[node] = (
                    f"constant '{value.name}' is below 2**-14, where float16 has few digits"
                )
    reason = "a number beyond 65504, the largest of float16, may reach it"
    _spread(
        huge,
        operands,
        reason,
        _HUGE_PASSES,
    )
    reason = "a number below 2**-14, where float16 has few digits, may reach it"
    _spread(
        tiny,
        operands,
        reason,
        _TINY_PASSES,
        ends=_TINY_ENDS,
    )
    return tiny | huge


def _absmax(value: ir.Value) -> float:
    """max|x| of a constant, as far as float16 holds it; NaN does not count."""
    assert value.const_value is not None
    highest = 0.0
    for _, block in blocks(value.const_value):
        # in this order: a comparison with NaN keeps the first
        highest = max(highest, float(np.max(np.abs(block), initial=0.0)))
        if highest > LARGEST:
            # reason enough: the rest of a large weight need not be read
            break
    return highest


def _spread(
    reasons: Reasons,
    operands: dict[ir.Node, HalfOperands],
    reason: str,
    passes: Collection[str],
    ends: Collection[str] = (),
) -> None:
    """Add every node that values of `reasons` reach through ops that pass them on."""
    waiting = list(reasons)
    while waiting:
        node = waiting.pop()
        if node.op_type in ends or node not in operands:
            continue
        for index in operands[node].outputs:
            for use in node.outputs[index].uses():
                user = use.node
                if user not in operands or user in reasons:
                    continue
                if user.op_type in passes:
                    reasons[user] = reason
                    waiting.append(user)


def size_arithmetic(operands: dict[ir.Node, HalfOperands]) -> Reasons:
    """Float arithmetic on sizes (vectors at most) that ends in integers.

    Half would round sizes above 2048.
    """
    waiting = []
    for node, own in operands.items():
        is_to_integers = bool(own.inputs) and not own.outputs
        if node.op_type == "Cast" and is_to_integers and _is_vector(node):
            waiting.append(node)
    reasons: Reasons = {}
    # backwards from the Casts
    while waiting:
        node = waiting.pop()
        reasons[node] = "it computes sizes or indices"
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is None or producer not in operands or producer in reasons:
                continue
            if producer.op_type in _SIZE_OPS and _is_vector(producer):
                waiting.append(producer)
    return reasons


def _is_vector(node: ir.Node) -> bool:
    shape = node.outputs[0].shape
    return shape is not None and len(shape) <= 1


def ranges_out_of_range(
    model: ir.Model, context: Context, operands: dict[ir.Node, HalfOperands]
) -> Reasons:
    """Nodes of the main graph that make or read values which float16 cannot hold well.

    So they are on the calibration data.
    """
    values = _observable(model, operands)
    ranges = context.activation_ranges(
        model,
        list(values),
        "minmax",
        100.0,
        SAMPLES,
    )
    reasons: Reasons = {}
    for name, (low, high) in ranges.items():
        reason = _range_problem(name, max(-low, high))
        if reason is None:
            continue
        value = values[name]
        around = [value.producer(), *(use.node for use in value.uses())]
        for node in around:
            if node is not None and node in operands:
                reasons[node] = reason
    return reasons


def _observable(
    model: ir.Model, operands: dict[ir.Node, HalfOperands]
) -> dict[str, ir.Value]:
    """Values of the main graph that nodes would make or read in float16, by name."""
    made: list[ir.Value | None] = []
    read: list[ir.Value | None] = []
    for node, own in operands.items():
        # calibration observes values of the main graph alone
        if node.graph is model.graph:
            made += [node.outputs[index] for index in own.outputs]
            read += [node.inputs[index] for index in own.inputs]
    values: dict[str, ir.Value] = {}
    for value in (*made, *read):
        if value is None or not value.name or value.is_initializer():
            continue
        if value.producer() is not None or value.is_graph_input():
            values[value.name] = value
    return values


def _range_problem(name: str, bound: float) -> str | None:
    """Reason why a value up to `bound` is not for float16, or None."""
    if bound > LARGEST * HEADROOM:
        return f"'{name}' reaches {bound:.4g}"
    if bound > 0 and bound < SMALLEST_NORMAL:
        return f"'{name}' stays below {bound:.2g}, where float16 has few digits"
    return None
