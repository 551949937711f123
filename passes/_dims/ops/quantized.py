"""Quantized tensors: scales and zero points follow the axis that they belong to. Sums of integers
stay as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..relations import Relations
from ..table import rule
from .elementwise import elementwise


@rule("QuantizeLinear", "DequantizeLinear")
def quantized(node: ir.Node, relations: Relations) -> None:
    """Scale and zero point: one number, one for each slot of `axis`, or one for each block of
    `block_size` of them.
    """
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    elementwise(data, result, relations)
    shape = relations.shape(data) or ()
    axis = node.attributes.get_int("axis", 1) % max(len(shape), 1)
    block = node.attributes.get_int("block_size", 0)
    for value in node.inputs[1:]:
        own = relations.shape(value) or ()
        if value is None or not own:
            continue
        if len(own) == 1 and not block:
            if own[0] > 1:
                relations.same(value, 0, data, axis)
            continue
        for other in range(len(own)):
            if other != axis:
                relations.same(value, other, data, other)
        slots = np.arange(shape[axis])
        relations.link(data, axis, slots, value, axis, slots // max(block, 1))


INTEGER = (
    "ConvInteger",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
)


@rule(*INTEGER)
def integer(node: ir.Node, relations: Relations) -> None:
    """Left whole: what a removed slot adds to such a sum depends on zero points."""
    for value in (*node.inputs, *node.outputs):
        relations.freeze_all(value, f"{node.op_type} computes in integers")
