"""A float model with one weight at a time as a lossy pass made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ...passes._core.ops import WEIGHTED_OPS
from ...passes._core.opset import raise_opset
from ...passes._core.output_drift import Variant
from ...passes._core.tables import tables_of
from ...passes._core.weights import Weight, weights_of
from .._run.loss_probes import Builder, Twins


@dataclass
class Swap:
    """A weight that has another form in a result.

    `weight`: name of the initializer. `layers`: numbers, among the nodes of the float model, of
    those that multiply by it, each with the input at which it reads the weight. `tables`: numbers
    of the Gather nodes that take rows of it.
    """

    weight: str
    layers: list[tuple[int, int]] = field(default_factory=list)
    tables: list[int] = field(default_factory=list)


def comparable(reference: ir.Model, result: ir.Model) -> ir.Model:
    """A copy of the float model that can hold nodes of the result."""
    copy = reference.clone()
    raise_opset(copy, result.opset_imports.get("", 0))
    for domain, version in result.opset_imports.items():
        copy.opset_imports.setdefault(domain, version)
    return copy


def swaps(whole: ir.Model, twins: Twins) -> list[Swap]:
    """Weights of the float model that have another form in the result whose nodes are `twins`."""
    places = {node: index for index, node in enumerate(whole.graph)}
    found: dict[str, Swap] = {}
    weights, _ = weights_of(whole)
    for weight in weights:
        for node, index in weight.uses:
            # a node of a subgraph has no place here
            place = places.get(node)
            if place is None or not twins.is_changed(node):
                continue
            swap = found.setdefault(weight.name, Swap(weight.name))
            swap.layers.append((place, index))
    for table in tables_of(whole).values():
        for node, _ in table.uses:
            place = places.get(node)
            if place is None or not _are_other_rows(table, node, twins):
                continue
            swap = found.setdefault(table.name, Swap(table.name))
            swap.tables.append(place)
    return list(found.values())


def _are_other_rows(table: Weight, node: ir.Node, twins: Twins) -> bool:
    """True if the result computes the rows that a Gather takes from something else."""
    maker = twins.by_output.get(node.outputs[0].name)
    if maker is None:
        return False
    if maker.op_type != "Gather":
        return True
    source = maker.inputs[0]
    return source is None or source.const_value is not table.tensor


def swapped(whole: ir.Model, twins: Twins, swap: Swap) -> Variant:
    """The float model with one weight in its new form.

    `whole`: as `comparable` gives it; it stays as it is, and its tensors are shared.
    """
    copy = whole.clone()
    builder = Builder(copy)
    nodes = list(copy.graph)
    changed = []
    for place, _ in swap.layers:
        node = nodes[place]
        _swap_layer(builder, twins, node)
        changed += [output.name or "" for output in node.outputs]
    if swap.tables:
        values = _values_of(copy)
        for place in swap.tables:
            node = nodes[place]
            # before what now computes the rows takes the name over
            changed.append(node.outputs[0].name or "")
            _swap_rows(builder, twins, node, values)
    # constants of the new form were appended behind what reads them
    copy.graph.sort()
    return Variant(copy, changed)


def _swap_layer(builder: Builder, twins: Twins, node: ir.Node) -> None:
    """Give one layer the weights, the bias and the input that the result has."""
    new_weights, new_input = twins.changes(node)
    replaced = {index: make(builder) for index, make in new_weights.items()}
    bias = twins.bias(node)
    if bias is not None:
        place = WEIGHTED_OPS[node.op_type].bias
        assert place is not None
        replaced[place] = builder.transplanted(bias)
    source = node.inputs[0]
    if new_input is not None and source is not None:
        replaced[0] = new_input(builder, source)
    for index, value in replaced.items():
        node.replace_input_with(index, value)


def _swap_rows(
    builder: Builder, twins: Twins, node: ir.Node, values: Mapping[str, ir.Value]
) -> None:
    """Let what reads the rows of a table read them as the result computes them."""
    rows = node.outputs[0]
    maker = twins.by_output[rows.name]
    made = next(value for value in maker.outputs if value.name == rows.name)
    # the indices are those of the float model; all else is constant
    ids = node.inputs[1]
    assert ids is not None
    new = builder.rebuilt(made, {ids.name or "": values[ids.name or ""]})
    rows.replace_all_uses_with(new, replace_graph_outputs=True)
    # they may be an output of the model, which keeps its name
    new.name, rows.name = rows.name, new.name


def _values_of(model: ir.Model) -> dict[str, ir.Value]:
    """Values of the main graph by name."""
    values = {value.name or "": value for value in model.graph.inputs}
    values.update(model.graph.initializers)
    for node in model.graph:
        for value in node.outputs:
            values[value.name or ""] = value
    return values
