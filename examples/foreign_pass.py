"""Put your own pass, written against onnx_ir alone, into a pipeline: `python
examples/foreign_pass.py`.

A pass from outside is believed exact and verified like one: were its outputs different, it would be
rolled back and the result would carry a warning. On the command line the same pass is its dotted
name, if its module can be imported: `onnx-opt model.onnx --passes foreign_pass.MeanToPool,quant`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import onnx_ir as ir
import onnx_opt


class MeanToPool(ir.passes.InPlacePass):
    """ReduceMean over H and W of an (N, C, H, W) tensor -> GlobalAveragePool.

    The latter has an int8 kernel in ONNX Runtime.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        means = [node for node in model.graph if is_spatial_mean(node)]
        for node in means:
            replace_by_pool(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(means))


def is_spatial_mean(node: ir.Node) -> bool:
    """True if `node` averages over constant axes 2 and 3 of a tensor of rank 4."""
    # before opset 18 the axes were an attribute; then there is one input only
    if node.op_type != "ReduceMean" or len(node.inputs) < 2:
        return False
    image, axes = node.inputs
    if image is None or axes is None:
        return False
    constant = ir.convenience.get_const_tensor(axes)
    if constant is None or image.shape is None or len(image.shape) != 4:
        return False
    # negative axes count from the end
    return sorted(axis % 4 for axis in constant.numpy().tolist()) == [2, 3]


def replace_by_pool(graph: ir.Graph, node: ir.Node) -> None:
    """GlobalAveragePool keeps the dimensions; Flatten drops them where ReduceMean did."""
    pool = ir.node("GlobalAveragePool", [node.inputs[0]])
    new = [pool]
    if not node.attributes.get_int("keepdims", 1):
        new.append(ir.node("Flatten", [pool.outputs[0]], attributes={"axis": 1}))
    old = node.outputs[0]
    value = new[-1].outputs[0]
    # under the same name: it may be an output of the graph
    value.name = old.name
    value.type = old.type
    value.shape = old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [old], [value])


def main() -> None:
    demo = Path(str(files("onnx_opt.tools.demo")))
    model = onnx_opt.load(demo / "digits_cnn.onnx")
    result = onnx_opt.optimize(
        model, [MeanToPool(), "simplify", "quant"], data=demo / "digits_calib.npz"
    )
    for step in result.passes:
        print(f"{step.text}: changed {step.changed}")
    for warning in result.warnings:
        print(f"warning: {warning}")
    print(sorted({node.op_type for node in result.model.graph}))


if __name__ == "__main__":
    main()
