"""Ops of ONNX Runtime's own domain that its optimizer makes of several standard ones."""

from __future__ import annotations

import onnx_ir as ir

from ..._core.ops import MICROSOFT
from ..relations import Relations, optional_input, required_input
from ..surgery import Surgery
from ..table import rule, update
from .conv import convolution, regroup
from .elementwise import broadcast, elementwise, first_input
from .matmul import gemm, product

rule("Gelu", "QuickGelu", domain=MICROSOFT)(first_input)
rule("BiasAdd", "BiasGelu", "FastGelu", domain=MICROSOFT)(broadcast)
rule("FusedGemm", domain=MICROSOFT)(gemm)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_norm(node: ir.Node, relations: Relations) -> None:
    """Data, skip, scale, shifts: aligned at the last axis, over which their sum is normalised."""
    data = required_input(node, 0)
    for value in (*node.inputs[1:], *node.outputs):
        if value is not None and relations.rank(value):
            elementwise(value, data, relations)
    last = relations.rank(data) - 1
    relations.mix(node, "normalise", (0, last))


@rule("SimplifiedLayerNormalization")
def simplified_norm(node: ir.Node, relations: Relations) -> None:
    """RMSNormalization as ONNX Runtime calls it, over the last axis."""
    skip_norm(node, relations)


@rule("FusedMatMul", "FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul(node: ir.Node, relations: Relations) -> None:
    """MatMul of either side transposed in its last two axes, scaled."""
    left, right = node.inputs[:2]
    lowest_rank = min(relations.rank(left), relations.rank(right))
    has_vector = lowest_rank < 2
    if has_vector or _is_set(node, "transBatchA") or _is_set(node, "transBatchB"):
        reason = "it belongs to a FusedMatMul of vectors or of swapped batch axes"
        for value in (left, right, *node.outputs):
            relations.freeze_all(value, reason)
        return
    product(
        node,
        relations,
        flip_left=_is_set(node, "transA"),
        flip_right=_is_set(node, "transB"),
    )


def _is_set(node: ir.Node, attribute: str) -> bool:
    return bool(node.attributes.get_int(attribute, 0))


@rule("FusedConv", domain=MICROSOFT)
def fused_convolution(node: ir.Node, relations: Relations) -> None:
    """Conv with an activation, and a fourth input that is added in front of it."""
    convolution(node, relations)
    added = optional_input(node, 3)
    if added is not None:
        result = node.outputs[0]
        elementwise(added, result, relations)


@update("FusedConv", domain=MICROSOFT)
def regroup_fused(node: ir.Node, surgery: Surgery) -> None:
    """Set as many groups as the weight has room for."""
    regroup(node, surgery)
