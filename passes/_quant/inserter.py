"""Adding to a graph: initializers and nodes under fresh names, equal small constants once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from .._core.graph import Names
from .._core.provenance import set_float_weight

ADDED = "added by quant"
"""Key of `node.meta` that marks the nodes made here."""


class Inserter:
    """Adds initializers and nodes to one graph under fresh names; equal small constants are made
    once.

    What stores a weight is called after it. All else has the initial of its role and a number,
    "scale" s1, s2 and so on: in a file of few bits names weigh as much as weights.
    """

    def __init__(self, graph: ir.Graph, names: Names) -> None:
        self.graph = graph
        self.names = names
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def constant(self, role: str, array: np.ndarray, shared: bool = True) -> ir.Value:
        """An initializer holding `array`; if `shared`, one that was made before and is equal."""
        if not shared:
            tensor = ir.Tensor(np.asarray(array, order="C"))
            return self._registered(self._short(role), tensor)
        # by bytes: -0.0 equals 0.0, and NaN not even itself
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.constant(
                role,
                array,
                shared=False,
            )
        return self._constants[key]

    def initializer(self, stem: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer called `stem`, or nearly so; the tensor may be lazy."""
        return self._registered(self.names.fresh(stem), tensor)

    def encoded(
        self, float_name: str, suffix: str, tensor: ir.TensorProtocol
    ) -> ir.Value:
        """A new initializer that encodes the float one of that name; it says so in memory."""
        value = self.initializer(f"{float_name}_{suffix}", tensor)
        set_float_weight(value, float_name)
        return value

    def _registered(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        # value and tensor state the same facts, and writers read either
        tensor.name = name
        value = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        role: str,
        dtype: ir.DataType,
        shape: ir.Shape | None,
        attributes: dict[str, int] | None = None,
        outputs: int = 1,
    ) -> ir.Node:
        """A new node, not yet in the graph, whose first output has a name and a type.

        The node itself has no name: that of its output says as much.
        """
        node = ir.node(
            op,
            inputs,
            attributes=attributes or {},
            num_outputs=outputs,
            name="",
        )
        node.meta[ADDED] = True
        for value in node.outputs:
            value.name = self._short(role)
        node.outputs[0].type = ir.TensorType(dtype)
        node.outputs[0].shape = shape
        return node

    def step(
        self,
        op: str,
        inputs: Sequence[ir.Value],
        dtype: ir.DataType,
        dims: list[int],
        attributes: dict[str, int] | None = None,
    ) -> ir.Node:
        """A node between a stored tensor and its user, folded at load."""
        shape = ir.Shape(dims)
        return self.node(
            op,
            inputs,
            "unpacked",
            dtype,
            shape,
            attributes,
        )

    def _short(self, role: str) -> str:
        return self.names.numbered(role[0])

    def place_after(self, value: ir.Value, nodes: list[ir.Node]) -> None:
        """Put nodes right behind the producer of `value`, or at the top of the graph where it comes
        from outside.
        """
        producer = value.producer()
        if producer is not None and producer.graph is self.graph:
            self.graph.insert_after(producer, nodes)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], nodes)


def take_over(old: ir.Node, new: ir.Node) -> None:
    """Let `new`'s output replace `old`'s under the old name, and remove `old`."""
    before, after = old.outputs[0], new.outputs[0]
    after.name = before.name
    before.name = f"{before.name}_removed"
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    assert old.graph is not None
    old.graph.remove(old, safe=True)


def turned(inserter: Inserter, before: ir.Node, matrix: ir.Value) -> ir.Value:
    """A stored matrix transposed while the model is loaded, for a node that stands behind."""
    assert matrix.const_value is not None
    assert matrix.dtype is not None
    rows, columns = (int(dim) for dim in matrix.const_value.shape.numpy())
    node = inserter.step("Transpose", [matrix], matrix.dtype, [columns, rows])
    before.prepend([node])
    return node.outputs[0]


def forget_redundant(nodes: Iterable[ir.Node]) -> None:
    """Drop types that any reader can infer, of values between a stored tensor or a Q and its DQ.

    They would take a tenth of the file of a 1-bit model. Those that MatMulInteger reads stay:
    without them nobody sees that its weight is one of integers.
    """
    constant: set[ir.Value] = set()
    for node in nodes:
        if ADDED not in node.meta:
            continue
        # nodes come in order, so what a constant is computed from was seen before
        stored = all(_is_stored(value, constant) for value in node.inputs)
        if stored:
            constant.update(node.outputs)
        if not stored and node.op_type != "QuantizeLinear":
            continue
        for value in node.outputs:
            readers = {use.node.op_type for use in value.uses()}
            if "MatMulInteger" not in readers:
                value.type = None
                value.shape = None


def _is_stored(value: ir.Value | None, constant: set[ir.Value]) -> bool:
    """True if an input is absent, an initializer, or computed from initializers alone."""
    return value is None or value in constant or value.const_value is not None
