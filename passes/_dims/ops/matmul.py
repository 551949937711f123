"""Products of matrices: the summed axes are one index space, the others go into the result."""

from __future__ import annotations

import onnx_ir as ir

from ..._core.edit import is_constant
from ..relations import Relations
from ..table import rule
from .elementwise import elementwise


@rule("MatMul")
def matmul(node: ir.Node, relations: Relations) -> None:
    """A (*B, M, K), B (*B, K, N) -> (*B, M, N), vectors as in numpy. Batch axes of two activations
    are heads.
    """
    product(node, relations, False, False)


def product(
    node: ir.Node, relations: Relations, flip_left: bool, flip_right: bool
) -> None:
    """What MatMul says of its axes, with the last two of either side swapped where asked."""
    left, right, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert left is not None
    assert right is not None
    a, b = relations.shape(left) or (), relations.shape(right) or ()
    row, summed = (-1, -2) if flip_left else (-2, -1)
    summed_right, column = (-1, -2) if flip_right else (-2, -1)
    relations.summed(left, summed, right, summed_right if len(b) > 1 else -1)
    relations.mix(node, "contract", (0, len(a) + summed))
    if len(b) > 1:
        relations.same(right, column, result, -1)
    if len(a) > 1:
        relations.same(left, row, result, -2 if len(b) > 1 else -1)
    both = not is_constant(left) and not is_constant(right)
    for value, shape in ((left, a), (right, b)):
        for back in range(3, len(shape) + 1):
            relations.same(value, -back, result, -back + (len(b) < 2) + (len(a) < 2))
            if both:
                relations.tag_heads(value, -back)


@rule("Gemm")
def gemm(node: ir.Node, relations: Relations) -> None:
    """op(A) (M, K), op(B) (K, N), C broadcast to (M, N)."""
    left, right, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert left is not None
    assert right is not None
    a, b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    relations.summed(left, 0 if a else 1, right, 1 if b else 0)
    relations.same(left, 1 if a else 0, result, 0)
    relations.same(right, 0 if b else 1, result, 1)
    relations.mix(node, "contract", (0, 0 if a else 1))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        elementwise(node.inputs[2], result, relations)
