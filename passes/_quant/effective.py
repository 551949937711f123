"""What a quantized value must be able to say: less than its range, where a Relu behind an Add cuts
it anyway.

In relu(y + s) every y below -s gives the same 0, so y may be read as max(y, -s): its range is
shorter, its steps finer.
"""

from __future__ import annotations

import onnx_ir as ir

from .placement import Placement


def with_effective_values(
    model: ir.Model, placement: Placement
) -> tuple[ir.Model, dict[str, str]]:
    """A copy of the model to calibrate on, and for each quantized value whose effective form it
    adds, that form's name.

    `placement` lies in the main graph of `model`; the copy shares its weights. At most one input of
    an Add is cut: with both, two cut values could add up to what neither means.
    """
    found = {
        add.outputs[0].name: (y.name, s.name) for add, y, s in _cut_sums(placement)
    }
    copy = model.clone()
    names: dict[str, str] = {}
    for node in list(copy.graph):
        if node.op_type != "Add" or node.outputs[0].name not in found:
            continue
        y_name, s_name = found[node.outputs[0].name]
        assert y_name is not None
        values = {value.name: value for value in node.inputs if value is not None}
        y, s = values[y_name], values[s_name]
        negative = ir.node("Neg", [s])
        effective = ir.node("Max", [y, negative.outputs[0]])
        negative.outputs[0].name, effective.outputs[0].name = (
            f"{y_name}_floor",
            f"{y_name}_effective",
        )
        effective.outputs[0].type, effective.outputs[0].shape = y.type, y.shape
        node.prepend([negative, effective])
        names[y_name] = f"{y_name}_effective"
    return copy, names


def _cut_sums(placement: Placement) -> list[tuple[ir.Node, ir.Value, ir.Value]]:
    """(Add, y, s) for each quantized sum that a Relu follows: y is the input that nothing else
    reads.
    """
    made = {layer.output for layer in placement.layers}
    found = []
    for carried in placement.carried:
        node = carried.node
        if (
            node.op_type != "Add"
            or carried.outputs[0] is node.outputs[0]
            or len(carried.inputs) != 2
        ):
            continue  # no folded activation, or a value added to itself
        for y, s in (carried.inputs, carried.inputs[::-1]):
            if (
                y in made
                and len(y.uses()) == 1
                and not y.is_graph_output()
                and y is not s
            ):
                found.append((node, y, s))
                break
    return found
