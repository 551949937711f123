"""Safe changes to a graph: facts about values, and one value replaced by another.

The interface, names and order of inputs and outputs, is never touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .bodies import repeated_bodies
from .graph import Names, input_of, subgraphs
from .lazy import set_tensor

SMALL = 64 * 1024
"""Elements up to which a rule may look at the values of a constant; larger ones stay unread.

Chosen by hand, above every shape, axis or channel factor; not measured.
"""

Dim = int | str | None
"""A dim: its size, the name of a symbol that always stands for the same size, or unknown."""


def release(graph: ir.Graph) -> None:
    """Let a graph that goes away stop using the values of outer graphs."""
    for node in graph:
        for inner in subgraphs(node):
            release(inner)
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def is_constant(value: ir.Value | None) -> bool:
    """True if a value is an initializer that no caller can override."""
    if value is None or value.const_value is None:
        return False
    return value.is_initializer() and not value.is_graph_input()


def array_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The values of a small constant; None if it is none, is large, or is not numeric."""
    if value is None or not is_constant(value):
        return None
    tensor = value.const_value
    assert tensor is not None
    if tensor.size > SMALL:
        return None
    if tensor.dtype == ir.DataType.STRING:
        return None
    if tensor.dtype.bitwidth < 8:
        return None
    return tensor.numpy()


def ints_of(value: ir.Value | None) -> list[int] | None:
    """A small integer constant as a flat list."""
    array = array_of(value)
    if array is None or array.dtype.kind not in "iu":
        return None
    flat = array.reshape(-1)
    return [int(element) for element in flat]


def ints_given(node: ir.Node, name: str, index: int) -> list[int] | None:
    """Integers that older opsets give as attribute `name`, and newer ones as input `index`.

    None if they are computed, or not given.
    """
    given = list(node.attributes.get_ints(name, []))
    if given:
        return given
    return ints_of(input_of(node, index))


def dims_of(value: ir.Value | None) -> list[Dim] | None:
    """The dims of a value as far as they are proved; None for an unknown rank.

    The declared shape of a graph output that a node makes is not believed: runtimes do not enforce
    it.
    """
    if value is None:
        return None
    if is_constant(value):
        assert value.const_value is not None
        return list(value.const_value.shape.numpy())
    # what is declared there is a promise of the exporter, not a proof
    if value.is_graph_output() and value.producer() is not None:
        return None
    if value.shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def rank_of(value: ir.Value | None) -> int | None:
    """The rank of a value, if known."""
    dims = dims_of(value)
    return None if dims is None else len(dims)


def static_dims(value: ir.Value | None) -> list[int] | None:
    """The dims of a value if every one is a known size."""
    dims = dims_of(value)
    if dims is None:
        return None
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return sizes if len(sizes) == len(dims) else None


def used_once(value: ir.Value) -> bool:
    """True if exactly one node input, and no graph output, needs the value."""
    if value.is_graph_output():
        return False
    return len(value.uses()) == 1


class Edit:
    """Changes to one model: fresh names, new constants, replaced values.

    `touched` collects nodes to look at again. `found` remembers what is known of the elements of
    shape tensors.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.opset = model.opset_imports.get("", 1)
        self.touched: list[ir.Node] = []
        self.found: dict[ir.Value, Any] = {}
        self._names: Names | None = None
        self._repeated: set[ir.Graph] | None = None

    def is_repeated(self, node: ir.Node) -> bool:
        """True if a node lies in the body of a Loop or Scan.

        What is inferred of its outputs there is what the runtime gives after no turns.
        """
        if self._repeated is None:
            self._repeated = repeated_bodies(self.model)
        return node.graph in self._repeated

    def fresh(self, stem: str) -> str:
        """A name that no value or node of the model has."""
        # the walk over all names is spared where nothing new is named
        if self._names is None:
            self._names = Names(self.model)
        return self._names.fresh(stem)

    def constant(self, graph: ir.Graph, array: NDArray[Any], stem: str) -> ir.Value:
        """A new initializer of `graph` holding `array`."""
        contiguous = np.ascontiguousarray(array)
        # which makes a scalar one axis
        same_shape = contiguous.reshape(array.shape)
        return self.initializer(graph, ir.Tensor(same_shape), stem)

    def initializer(
        self, graph: ir.Graph, tensor: ir.TensorProtocol, stem: str
    ) -> ir.Value:
        """A new initializer of `graph` that is a tensor, perhaps computed later."""
        value = ir.Value(name=self.fresh(stem))
        set_tensor(value, tensor)
        graph.register_initializer(value)
        return value

    def node_before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        **attributes: Any,
    ) -> ir.Node:
        """A new standard node with one named output, inserted before `node`."""
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        new = ir.node(op_type, inputs, attributes=attributes)
        new.name = self.fresh(node.name or op_type)
        output_stem = f"{node.outputs[0].name}_{op_type.lower()}"
        new.outputs[0].name = self.fresh(output_stem)
        graph.insert_before(node, new)
        self.touched.append(new)
        return new

    def replace(self, old: ir.Value, new: ir.Value) -> bool:
        """Let every user of `old` use `new`; False if the interface forbids it.

        A graph output keeps its name, type and shape, so `new` takes them over: it must then be
        made by a node of the same graph and not be an output already.
        """
        users = old.consumers()
        if old.is_graph_output():
            if not self._replace_output(old, new):
                return False
        elif new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        old.replace_all_uses_with(new)
        self.touched.extend(users)
        self._touch_producer(new)
        return True

    def _replace_output(self, old: ir.Value, new: ir.Value) -> bool:
        """Make `new` the graph output that `old` is, if it can be one."""
        graph = old.graph
        producer = new.producer()
        if graph is None or producer is None:
            return False
        if producer.graph is not graph or new.is_graph_output():
            return False
        name = old.name
        # two values of one name are invalid, even for a moment
        old.name = self.fresh(f"{name}_replaced")
        new.name = name
        new.type = old.type or new.type
        new.shape = old.shape
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
        return True

    def _touch_producer(self, value: ir.Value | None) -> None:
        producer = value.producer() if value is not None else None
        if producer is not None:
            self.touched.append(producer)

    def bypass(self, node: ir.Node, new: ir.Value) -> bool:
        """Replace the only used output of `node` by `new` and remove the node."""
        if not self.replace(node.outputs[0], new):
            return False
        self.remove(node)
        return True

    def remove(self, node: ir.Node) -> None:
        """Remove a node whose outputs nobody uses; the makers of its inputs are touched."""
        graph = node.graph
        assert graph is not None
        for value in node.inputs:
            self._touch_producer(value)
        graph.remove(node, safe=True)

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Make `value` input `index` of `node`, which is extended if it has fewer."""
        # optional inputs between are left out
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        node.replace_input_with(index, value)
        self.touched.append(node)
        self._touch_producer(old)
