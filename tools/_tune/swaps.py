"""A float model with one layer at a time as a lossy pass made it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ...passes._core.ops import WEIGHTED_OPS
from ...passes._core.opset import raise_opset
from ...passes._core.output_drift import Variant
from ...passes._core.weights import weights_of
from .._run.loss_probes import Builder, Twins


@dataclass(frozen=True)
class Swap:
    """A weight whose layers have another form in a result.

    `weight`: name of the initializer that they multiply by. `places`: numbers of these layers among
    the nodes of the float model. `readers`: output of each layer, and the input at which it reads
    the weight.
    """

    weight: str
    places: tuple[int, ...]
    readers: tuple[tuple[str, int], ...]


def comparable(reference: ir.Model, result: ir.Model) -> ir.Model:
    """A copy of the float model that can hold nodes of the result."""
    copy = reference.clone()
    raise_opset(copy, result.opset_imports.get("", 0))
    for domain, version in result.opset_imports.items():
        copy.opset_imports.setdefault(domain, version)
    return copy


def swaps(whole: ir.Model, twins: Twins) -> list[Swap]:
    """Weights of the float model that have another form in the result whose layers are `twins`."""
    places = {node: index for index, node in enumerate(whole.graph)}
    found, _ = weights_of(whole)
    changed = []
    for weight in found:
        own = []
        readers = []
        for node, index in weight.uses:
            # a node of a subgraph has no place here
            place = places.get(node)
            if place is not None and twins.is_changed(node):
                own.append(place)
                readers.append((node.outputs[0].name or "", index))
        if own:
            swap = Swap(weight.name, tuple(own), tuple(readers))
            changed.append(swap)
    return changed


def swapped(whole: ir.Model, twins: Twins, swap: Swap) -> Variant:
    """The float model with the layers of one weight in their new form.

    `whole`: as `comparable` gives it; it stays as it is, and its tensors are shared.
    """
    copy = whole.clone()
    builder = Builder(copy)
    nodes = list(copy.graph)
    changed = []
    for place in swap.places:
        node = nodes[place]
        _swap(builder, twins, node)
        changed += [output.name or "" for output in node.outputs]
    # constants of the new form were appended behind what reads them
    copy.graph.sort()
    return Variant(copy, changed)


def _swap(builder: Builder, twins: Twins, node: ir.Node) -> None:
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
