"""Values of bodies, brought out to the main graph of a copy, where a run can look at them.

    If    the branch gives the value as one more output, the other branch an empty tensor
    Loop  one more carried tensor, to which every turn appends the value's elements
    Scan  one more output, a slice a turn

A body that a run does not enter thus gives nothing to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from ..passes._core.bodies import Body, bodies_of
from ..passes._core.graph import Names, subgraphs
from ..passes._core.ops import is_standard
from .taps import may_be_observed

Step = Callable[[Body, ir.Value], ir.Value]
"""Brings a value out of one body into the graph around it."""


def with_body_values(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy, sharing the weights, whose main graph also has the named values of bodies.

    `names`: as `RunNames` gives them. Returns the model itself where none of them lies in a body.
    Left out: values that are known not to be float, and bodies of other operators.
    """
    inner = _inner_names(model)
    wanted = set(names) & inner
    if not wanted:
        return model
    copy = model.clone()
    bodies = bodies_of(copy)
    outwards = _Outwards(bodies, Names(copy))
    for body in list(bodies.values()):
        for value in _values_of(body.graph):
            name = f"{body.path}{value.name}"
            if name in wanted and value.dtype is not None and may_be_observed(value):
                outwards.bring(value, body, name)
    return copy


def _inner_names(model: ir.Model) -> set[str]:
    """Names by which a run knows the values of bodies."""
    names: set[str] = set()
    for body in bodies_of(model).values():
        names.update(f"{body.path}{value.name}" for value in _values_of(body.graph))
    return names


def _values_of(graph: ir.Graph) -> list[ir.Value]:
    """Inputs of a graph, and the values that its nodes read and make."""
    values = dict.fromkeys(graph.inputs)
    for node in graph:
        for value in node.inputs:
            if value is not None:
                values[value] = None
        values.update(dict.fromkeys(node.outputs))
    return list(values)


class _Outwards:
    """Ways out of the bodies of one model, which is changed."""

    def __init__(self, bodies: dict[ir.Graph, Body], names: Names) -> None:
        self._bodies = bodies
        self._names = names

    def bring(self, value: ir.Value, body: Body, name: str) -> None:
        """Let the main graph have a value of a body under a name, where there is a way out."""
        way = self._way_out(body)
        for passed, step in way:
            value = step(passed, value)
        if way:
            value.name = name

    def _way_out(self, body: Body) -> list[tuple[Body, Step]]:
        """Bodies to leave, the innermost first, and how; none where one of them lets nothing
        out.
        """
        way: list[tuple[Body, Step]] = []
        outer: Body | None = body
        while outer is not None:
            step = self._step(outer)
            # slices of a Scan have one shape, what leaves a body within has not
            if step is None or (way and is_standard(outer.node, "Scan")):
                return []
            way.append((outer, step))
            outer = self._bodies.get(outer.outer)
        return way

    def _step(self, body: Body) -> Step | None:
        """The way out of one body, None where its holder has none."""
        if is_standard(body.node, "If"):
            return self._out_of_if
        if is_standard(body.node, "Loop"):
            return self._out_of_loop
        if is_standard(body.node, "Scan"):
            return self._out_of_scan
        return None

    def _out_of_if(self, body: Body, value: ir.Value) -> ir.Value:
        for branch in subgraphs(body.node):
            if branch is body.graph:
                branch.outputs.append(self._copied(branch, value))
            else:
                branch.outputs.append(self._empty(branch, value))
        return self._further_output(body.node, value)

    def _out_of_scan(self, body: Body, value: ir.Value) -> ir.Value:
        body.graph.outputs.append(self._copied(body.graph, value))
        for name in ("scan_output_axes", "scan_output_directions"):
            given = body.node.attributes.get_ints(name)
            if given:
                body.node.attributes[name] = ir.AttrInt64s(name, [*given, 0])
        return self._further_output(body.node, value)

    def _out_of_loop(self, body: Body, value: ir.Value) -> ir.Value:
        """Carry what former turns gave: a value may have another shape in every turn."""
        node, graph = body.node, body.graph
        carried = len(graph.inputs) - 2
        former = ir.Value(
            name=self._names.numbered("tap"),
            type=value.type,
            shape=ir.Shape([None]),
        )
        first = self._empty(body.outer, value, before=node)
        node.resize_inputs(2 + carried + 1)
        node.replace_input_with(2 + carried, first)
        graph.inputs.append(former)
        flat = self._flattened(graph, value)
        joined = self._appended(
            graph,
            "Concat",
            [former, flat],
            value,
            {"axis": 0},
        )
        # behind the condition and the other carried ones, before what turns stack
        graph.outputs.insert(1 + carried, joined)
        last = self._further_output(node, value)
        return _moved_to(node, carried, last)

    def _flattened(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        all_of_it = self._constant(graph, np.array([-1], np.int64))
        return self._appended(graph, "Reshape", [value, all_of_it], value)

    def _copied(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """The value once more: it may be an output already, or an input."""
        return self._appended(graph, "Identity", [value], value)

    def _empty(
        self, graph: ir.Graph, like: ir.Value, before: ir.Node | None = None
    ) -> ir.Value:
        assert like.dtype is not None
        return self._constant(graph, np.zeros(0, like.dtype.numpy()), before)

    def _constant(
        self, graph: ir.Graph, array: np.ndarray, before: ir.Node | None = None
    ) -> ir.Value:
        """A node's output: not every runtime takes an initializer for an output of a branch."""
        tensor = ir.Tensor(array)
        node = ir.node("Constant", [], attributes={"value": tensor})
        made = node.outputs[0]
        made.name = self._names.numbered("tap")
        made.type = ir.TensorType(tensor.dtype)
        made.shape = ir.Shape(array.shape)
        if before is None:
            graph.append(node)
        else:
            graph.insert_before(before, node)
        return made

    def _appended(
        self,
        graph: ir.Graph,
        op: str,
        inputs: list[ir.Value],
        like: ir.Value,
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes or {})
        made = node.outputs[0]
        made.name = self._names.numbered("tap")
        made.type = like.type
        graph.append(node)
        return made

    def _further_output(self, node: ir.Node, like: ir.Value) -> ir.Value:
        """One more output, the last, of which only the type is known."""
        node.resize_outputs(len(node.outputs) + 1)
        made = node.outputs[-1]
        made.name = self._names.numbered("tap")
        made.type = like.type
        return made


def _moved_to(node: ir.Node, index: int, last: ir.Value) -> ir.Value:
    """Let a node's last output come at an index: those from there on move up by one."""
    outputs = node.outputs
    name = last.name
    type_ = last.type
    for place in range(len(outputs) - 1, index, -1):
        old = outputs[place - 1]
        new = outputs[place]
        old_name = old.name
        # two values cannot have one name at a time
        old.name = f"{old_name}_moved"
        new.name = old_name
        new.type = old.type
        new.shape = old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    made = outputs[index]
    made.name = name
    made.type = type_
    made.shape = None
    return made
