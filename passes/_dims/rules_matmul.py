"""Products of matrices: the summed axes are one index space, the others go into the result."""

from __future__ import annotations

import onnx_ir as ir

from .relations import Relations
from .rules_elementwise import elementwise
from .table import rule


@rule("MatMul")
def matmul(node: ir.Node, relations: Relations) -> None:
    """A (*B, M, K), B (*B, K, N) -> (*B, M, N), vectors as in numpy. Batch axes of two activations are heads."""
    left, right, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert left is not None
    assert right is not None
    a, b = relations.shape(left) or (), relations.shape(right) or ()
    relations.same(left, -1, right, -2 if len(b) > 1 else -1)
    relations.mix(node, "contract", (0, len(a) - 1))
    if len(b) > 1:
        relations.same(right, -1, result, -1)
    if len(a) > 1:
        relations.same(left, -2, result, -2 if len(b) > 1 else -1)
    both = not _constant(left) and not _constant(right)
    for value, shape in ((left, a), (right, b)):
        for back in range(3, len(shape) + 1):
            relations.same(value, -back, result, -back + (len(b) < 2) + (len(a) < 2))
            if both:
                relations.tag_heads(value, -back)


def _constant(value: ir.Value) -> bool:
    return value.is_initializer()


@rule("Gemm")
def gemm(node: ir.Node, relations: Relations) -> None:
    """op(A) (M, K), op(B) (K, N), C broadcast to (M, N)."""
    left, right, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert left is not None
    assert right is not None
    a, b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    relations.same(left, 0 if a else 1, right, 1 if b else 0)
    relations.same(left, 1 if a else 0, result, 0)
    relations.same(right, 0 if b else 1, result, 1)
    relations.mix(node, "contract", (0, 0 if a else 1))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        elementwise(node.inputs[2], result, relations)
