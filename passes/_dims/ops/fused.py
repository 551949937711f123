"""Ops of ONNX Runtime's own domain that its optimizer makes of several standard ones."""

from __future__ import annotations

import onnx_ir as ir

from ..relations import Relations
from ..shapes import MICROSOFT
from ..surgery import Surgery
from ..table import mend, rule
from .conv import convolution, regroup
from .elementwise import broadcast, elementwise, first_input
from .matmul import product

rule("Gelu", "QuickGelu", domain=MICROSOFT)(first_input)
rule("BiasAdd", "BiasGelu", "FastGelu", domain=MICROSOFT)(broadcast)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_norm(node: ir.Node, relations: Relations) -> None:
    """Data, skip, scale, shifts: all aligned at the last axis, over which their sum is
    normalised.
    """
    data = node.inputs[0]
    assert data is not None
    for value in (*node.inputs[1:], *node.outputs):
        if value is not None and relations.shape(value):
            elementwise(value, data, relations)
    relations.mix(node, "normalise", (0, len(relations.shape(data) or ()) - 1))


@rule("SimplifiedLayerNormalization")
def simplified_norm(node: ir.Node, relations: Relations) -> None:
    """RMSNormalization as ONNX Runtime calls it, over the last axis."""
    skip_norm(node, relations)


@rule("FusedMatMul", domain=MICROSOFT)
def fused_matmul(node: ir.Node, relations: Relations) -> None:
    """MatMul of either side transposed in its last two axes, scaled."""
    flags = [
        bool(node.attributes.get_int(name, 0))
        for name in ("transA", "transB", "transBatchA", "transBatchB")
    ]
    left, right = node.inputs[:2]
    ranks = [len(relations.shape(value) or ()) for value in (left, right)]
    if any(flags[2:]) or min(ranks) < 2:
        for value in (left, right, *node.outputs):
            relations.freeze_all(
                value, "FusedMatMul of vectors or of swapped batch axes"
            )
        return
    product(node, relations, flags[0], flags[1])


@rule("FusedConv", domain=MICROSOFT)
def fused_convolution(node: ir.Node, relations: Relations) -> None:
    """Conv with an activation, and a fourth input that is added in front of it."""
    convolution(node, relations)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        elementwise(node.inputs[3], node.outputs[0], relations)


@mend("FusedConv", domain=MICROSOFT)
def regroup_fused(node: ir.Node, surgery: Surgery) -> None:
    regroup(node, surgery)
