"""Tensors that have the same shape because they are made alike.

Keys and values with a cache are: inference names the length of each by a symbol of its own.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .._core.edit import array_of, dims_of

DEPTH = 32
"""Nodes that are followed back from a value: the walk recurses. Chosen by hand."""

VIEWS = {
    # how many inputs, the first ones, count by their shapes; the others by what they hold
    "Concat": None,
    "Expand": 1,
    "Reshape": 1,
    "Squeeze": 1,
    "Transpose": None,
    "Unsqueeze": 1,
}

COUNTS = {
    # integers that shapes are computed with
    "Add",
    "Cast",
    "Concat",
    "Gather",
    "Mul",
    "Reshape",
    "Slice",
    "Squeeze",
    "Unsqueeze",
}


def is_same_shape(value: ir.Value, other: ir.Value) -> bool:
    """True if two tensors have the same shape in every run, as far as it is seen."""
    return _Comparison().has_shape(value, other, DEPTH)


class _Comparison:
    """Two values compared by what makes them; a pair that was met before is not walked again."""

    def __init__(self) -> None:
        self._met: dict[tuple[ir.Value, ir.Value, bool], bool] = {}

    def has_shape(
        self, value: ir.Value | None, other: ir.Value | None, depth: int
    ) -> bool:
        """True if both have the same shape."""
        if value is other:
            return True
        dims = dims_of(value)
        if dims is not None and None not in dims and dims == dims_of(other):
            return True
        return self._is_made_alike(
            value,
            other,
            depth,
            by_content=False,
        )

    def has_content(
        self, value: ir.Value | None, other: ir.Value | None, depth: int
    ) -> bool:
        """True if both, of integers, hold the same."""
        if value is other:
            return True
        held, others = array_of(value), array_of(other)
        if held is not None and others is not None:
            return np.array_equal(held, others)
        return self._is_made_alike(
            value,
            other,
            depth,
            by_content=True,
        )

    def _is_made_alike(
        self,
        value: ir.Value | None,
        other: ir.Value | None,
        depth: int,
        by_content: bool,
    ) -> bool:
        if value is None or other is None or depth == 0:
            return False
        place = (value, other, by_content)
        if place not in self._met:
            self._met[place] = self._compare(
                value.producer(),
                other.producer(),
                depth - 1,
                by_content,
            )
        return self._met[place]

    def _compare(
        self,
        node: ir.Node | None,
        twin: ir.Node | None,
        depth: int,
        by_content: bool,
    ) -> bool:
        if node is None or twin is None or not _is_like(node, twin):
            return False
        if by_content and node.op_type == "Shape":
            return self.has_shape(node.inputs[0], twin.inputs[0], depth)
        if node.op_type not in (COUNTS if by_content else VIEWS):
            return False
        shapes = 0 if by_content else VIEWS[node.op_type]
        pairs = list(zip(node.inputs, twin.inputs, strict=True))
        first = pairs[:shapes]
        rest = pairs[len(first) :]
        return all(self.has_shape(*pair, depth) for pair in first) and all(
            self.has_content(*pair, depth) for pair in rest
        )


def _is_like(node: ir.Node, twin: ir.Node) -> bool:
    """True for two nodes of one standard operator with equal attributes."""
    return (
        node.domain == ""
        and node.op_identifier() == twin.op_identifier()
        and len(node.inputs) == len(twin.inputs)
        and dict(node.attributes) == dict(twin.attributes)
    )
