"""Products of matrices: the summed axes are one index space, the others go into the result."""

from __future__ import annotations

import onnx_ir as ir

from ..._core.edit import is_constant
from ..relations import Relations, optional_input, required_input
from ..table import rule
from .elementwise import elementwise


@rule("MatMul")
def matmul(node: ir.Node, relations: Relations) -> None:
    """A (*B, M, K), B (*B, K, N) -> (*B, M, N), vectors as in numpy."""
    product(node, relations, flip_left=False, flip_right=False)


def product(
    node: ir.Node,
    relations: Relations,
    *,
    flip_left: bool,
    flip_right: bool,
) -> None:
    """Relate the axes of a MatMul, the last two of either side swapped where asked.

    Batch axes of two activations count attention heads.
    """
    left = required_input(node, 0)
    right = required_input(node, 1)
    result = node.outputs[0]
    left_rank = relations.rank(left)
    right_rank = relations.rank(right)
    last_axes = (-2, -1)
    row, summed = _read_as(last_axes, flip_left)
    summed_right, column = _read_as(last_axes, flip_right)
    # a vector has one axis, which is summed over, and none in the result
    if right_rank == 1:
        summed_right = -1
    relations.summed(left, summed, right, summed_right)
    # counted from the front: `mix` takes axes as they are
    axis = left_rank + summed
    relations.mix(node, "contract", (0, axis))
    if right_rank > 1:
        relations.same(right, column, result, -1)
    if left_rank > 1:
        row_of_result = -2 if right_rank > 1 else -1
        relations.same(left, row, result, row_of_result)
    # batch axes move to the right by each axis that the result lacks
    vectors = (left_rank < 2) + (right_rank < 2)
    # a product with a weight counts no heads
    both_computed = not is_constant(left) and not is_constant(right)
    for value in (left, right):
        rank = relations.rank(value)
        for back in range(3, rank + 1):
            relations.same(value, -back, result, vectors - back)
            if both_computed:
                relations.tag_heads(value, -back)


def _read_as(axes: tuple[int, int], flipped: bool) -> tuple[int, int]:
    """Axes of a matrix as rows and columns, exchanged where it is read transposed."""
    first, second = axes
    if flipped:
        return second, first
    return first, second


@rule("Gemm")
def gemm(node: ir.Node, relations: Relations) -> None:
    """op(A) (M, K), op(B) (K, N), C broadcast to (M, N)."""
    left = required_input(node, 0)
    right = required_input(node, 1)
    result = node.outputs[0]
    flip_left = bool(node.attributes.get_int("transA", 0))
    flip_right = bool(node.attributes.get_int("transB", 0))
    row, summed = _read_as((0, 1), flip_left)
    summed_right, column = _read_as((0, 1), flip_right)
    relations.summed(left, summed, right, summed_right)
    relations.same(left, row, result, 0)
    relations.same(right, column, result, 1)
    relations.mix(node, "contract", (0, summed))
    bias = optional_input(node, 2)
    if bias is not None:
        elementwise(bias, result, relations)
