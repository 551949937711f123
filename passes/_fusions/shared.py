"""Values that layers have in common: constants, masks and angles, each made once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.edit import Edit


class Shared:
    """New values by what they stand for. They are made in front of the first node that asks.

    A body asks for its own: what is made inside is seen nowhere else.
    """

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self._made: dict[Hashable, ir.Value] = {}

    def get(self, node: ir.Node, *key: Hashable) -> ir.Value | None:
        """The value of a key in the graph of a node."""
        return self._made.get((node.graph, *key))

    def keep(self, value: ir.Value, node: ir.Node, *key: Hashable) -> ir.Value:
        """Let later layers of the same graph find a value by its key."""
        self._made[(node.graph, *key)] = value
        return value

    def integers(self, node: ir.Node, *numbers: int) -> ir.Value:
        """A constant vector of integers."""
        return self._constant(node, np.array(numbers, np.int64))

    def number(self, node: ir.Node, number: float) -> ir.Value:
        """A constant float32 scalar."""
        return self._constant(node, np.array(number, np.float32))

    def _constant(self, node: ir.Node, array: NDArray[Any]) -> ir.Value:
        key = (array.dtype.str, array.ndim, array.tobytes())
        found = self.get(node, *key)
        if found is not None:
            return found
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        value = self.edit.constant(
            graph,
            array,
            "fused_constant",
        )
        return self.keep(
            value,
            node,
            *key,
        )

    def result(
        self,
        node: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Output of a new node in front of `node`."""
        made = self.edit.node_before(
            node,
            op_type,
            inputs,
            **attributes,
        )
        made.domain = domain
        return made.outputs[0]

    def finish(
        self,
        node: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        **attributes: Any,
    ) -> bool:
        """Put a new node in the place of the last one of a pattern; False if it must stay."""
        fused = self.result(
            node,
            op_type,
            inputs,
            **attributes,
        )
        return self.edit.bypass(node, fused)
