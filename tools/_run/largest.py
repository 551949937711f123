"""The largest tensors of a result: why they stayed as they are, and what would shrink them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from ...passes._core.chains import CHAIN_OPS
from ...passes._core.graph import label
from ...passes._core.integer_layers import INTEGER_OPS
from ...passes._core.ops import is_standard
from ...passes._core.stored import StoredConstant
from ...passes._core.weights import weight_inputs
from ...passes.compress_weights import CompressWeights
from .result import Remaining, Step

MOST = 10
"""Tensors that are named: no more than one reads."""


def largest_parts(
    constants: Sequence[StoredConstant], steps: Sequence[Step]
) -> list[Remaining]:
    """The largest constants of a result, the largest first; `steps`: the passes that it has had."""
    ranked = sorted(constants, key=lambda constant: -constant.nbytes)
    reasons = _reasons(steps)
    tried = {step.name for step in steps}
    return [_remaining(each, reasons, tried) for each in ranked[:MOST] if each.nbytes]


def _reasons(steps: Sequence[Step]) -> dict[str, str]:
    """Words of passes on a node or tensor that they left, by its name; the last one's count."""
    reasons: dict[str, str] = {}
    for step in steps:
        for declined in step.declined:
            reasons[declined["where"]] = f"{step.name}: {declined['reason']}"
    return reasons


def _remaining(
    constant: StoredConstant, reasons: Mapping[str, str], tried: set[str]
) -> Remaining:
    readers = [use.node for use in constant.value.uses()]
    layers = [label(node) for node in readers]
    names = [constant.name, constant.value.name or "", *layers]
    told = [reasons[name] for name in names if name in reasons]
    why = "no pass of this run touches it"
    if told:
        why = told[0]
    elif _is_coded(constant):
        why = f"stored in {constant.bits} bits a weight"
    return Remaining(
        tensor=constant.name,
        layer=layers[0] if layers else "",
        bytes=constant.nbytes,
        why=why,
        pass_text=_shrinking(constant, tried),
    )


def _is_coded(constant: StoredConstant) -> bool:
    return constant.is_parameter and constant.bits < 32


class _Rule(NamedTuple):
    """Passes that shrink the weight of an operator, if it has more bits than `above`."""

    ops: tuple[str, ...]
    above: int
    passes: tuple[str, ...]


RULES = (
    _Rule(("Conv", "Gemm", "MatMul"), 8, ("quant", "compress-weights")),
    _Rule(("Conv", "Gemm"), 4, ("quant(bits=4)",)),
    _Rule(("MatMul",), 5, ("quant(blocked)",)),
    _Rule(("Gather", "LSTM", "GRU", "RNN"), 8, ("quant", "compress-weights")),
    _Rule(("ConvTranspose",), 16, ("compress-weights",)),
)
"""Passes that would shrink a constant by its reader, the first that was not tried counts."""


def _shrinking(constant: StoredConstant, tried: set[str]) -> str | None:
    """Pipeline text of a pass that would shrink a constant; None where none is known."""
    if constant.elements < CompressWeights().min_size or not constant.is_parameter:
        return None
    for op_type in _weighing(constant.value):
        for rule in RULES:
            if op_type not in rule.ops or constant.bits <= rule.above:
                continue
            for text in rule.passes:
                if text not in tried:
                    return text
    return None


def _weighing(value: ir.Value) -> list[str]:
    """Operators that read a value as their weight or table, also through what reorders it."""
    found: list[str] = []
    waiting = [value]
    while waiting:
        for use in waiting.pop().uses():
            node = use.node
            is_table = is_standard(node, "Gather") and use.idx == 0
            if is_table or use.idx in weight_inputs(node):
                found.append(node.op_type)
            elif node.op_type in INTEGER_OPS:
                if use.idx == INTEGER_OPS[node.op_type].weight:
                    found.append(_float_form(node.op_type))
            elif is_standard(node, *CHAIN_OPS):
                waiting += node.outputs
    return found


def _float_form(integer_op: str) -> str:
    """The operator of which an integer one is a form."""
    for op_type in ("Conv", "Gemm"):
        if op_type in integer_op:
            return op_type
    return "MatMul"
