"""Quantized tensors: scales and zero points follow the axis that they belong to.

Sums of integers stay as they are.
"""

from __future__ import annotations

import onnx_ir as ir

from ..._core.ops import MICROSOFT
from ..relations import Relations, axis_attribute, required_input
from ..table import rule
from .elementwise import elementwise

INTEGER = (
    "ConvInteger",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
)
"""Standard ops that compute in integers."""


@rule("QuantizeLinear", "DequantizeLinear")
def quantized(node: ir.Node, relations: Relations) -> None:
    """Scale and zero point: one number, one for each slot of `axis`, or one for each block.

    A block is `block_size` slots of the axis.
    """
    data = required_input(node, 0)
    result = node.outputs[0]
    elementwise(data, result, relations)
    axis = axis_attribute(
        node,
        1,
        relations.rank(data),
    )
    block = node.attributes.get_int("block_size", 0)
    for value in node.inputs[1:]:
        if value is None or not relations.rank(value):
            continue
        if relations.rank(value) > 1 or block:
            _relate_blocks(
                data,
                value,
                axis,
                max(block, 1),
                relations,
            )
        elif relations.size(value, 0) > 1:
            relations.same(value, 0, data, axis)


def _relate_blocks(
    data: ir.Value,
    scales: ir.Value,
    axis: int,
    block: int,
    relations: Relations,
) -> None:
    """One scale for so many slots of an axis: they go together."""
    for other in range(relations.rank(scales)):
        if other != axis:
            relations.same(scales, other, data, other)
    slots = relations.slots(data, axis)
    blocks = slots // block
    relations.link(
        data,
        axis,
        slots,
        scales,
        axis,
        blocks,
    )


@rule(*INTEGER)
def integer(node: ir.Node, relations: Relations) -> None:
    """Left whole: what a removed slot adds to such a sum depends on zero points."""
    relations.freeze_node(
        node, f"{node.op_type} computes in integers: prune before you quantize"
    )


@rule("MatMulNBits", domain=MICROSOFT)
def blocked_product(node: ir.Node, relations: Relations) -> None:
    """A (..., K) times a weight of few bits, (N, blocks, bytes) -> (..., N): both widths stay."""
    data = required_input(node, 0)
    result = node.outputs[0]
    reason = (
        f"{node.op_type} stores it in blocks of few bits: prune before you quantize"
    )
    for value in node.inputs[1:]:
        relations.freeze_all(value, reason)
    relations.freeze(data, -1, reason)
    relations.freeze(result, -1, reason)
    for axis in range(relations.rank(data) - 1):
        relations.same(data, axis, result, axis)
    last = relations.rank(data) - 1
    relations.mix(node, "contract", (0, last))


@rule("GatherBlockQuantized", domain=MICROSOFT)
def blocked_rows(node: ir.Node, relations: Relations) -> None:
    """A table of few bits stays whole; indices keep their axes in the result."""
    reason = (
        f"{node.op_type} stores it in blocks of few bits: prune before you quantize"
    )
    relations.freeze_node(node, reason)
