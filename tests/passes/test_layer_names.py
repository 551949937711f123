"""Names of layers in reports: the user's own, not those that exporters count up."""

import onnx.parser
import onnx_ir as ir
import pytest
from onnx_opt.passes._core.graph import label
from onnx_opt.passes._core.layer_names import module_path
from onnx_opt.passes._core.patterns import layer_names, matches

ONE_LAYER = """
<ir_version: 10, opset_import: ["" : 21]>
one (float[1, 2] x) => (float[1, 2] OUTPUT)
<float[2, 2] "WEIGHT" = {1, 2, 3, 4}>
{
    ["NAME"] OUTPUT = MatMul (x, "WEIGHT")
}
"""


def node_of(name, weight="w", output="y", **notes):
    text = ONE_LAYER.replace("NAME", "n")
    text = text.replace('"WEIGHT"', "weight").replace("OUTPUT", "output")
    model = ir.from_proto(onnx.parser.parse_model(text))
    node = model.graph[0]
    # the parser takes fewer names than files have
    node.name = name
    model.graph.initializers["weight"].name = weight
    node.outputs[0].name = output
    node.metadata_props.update(notes)
    return node


SCOPES = {"pkg.torch.onnx.name_scopes": "['', 'blocks.0', 'blocks.0.fc', 'linear_4']"}
SPACES = {
    "namespace": ": pkg.Net/blocks.0: pkg.Block/blocks.0.fc: Linear/linear_4: aten.linear"
}


@pytest.mark.parametrize(
    ("node", "name"),
    [
        # a name that says something stays
        (node_of("/blocks.0/fc/MatMul", "onnx::MatMul_7"), "/blocks.0/fc/MatMul"),
        (node_of("", "w", "logits"), "logits"),
        (node_of("head", **SCOPES), "head"),
        # numbers of exporters give way to the module, or the weight
        (node_of("node_MatMul_47", "val_50", "val_51", **SCOPES), "blocks.0.fc"),
        (node_of("node_MatMul_47", "val_50", "val_51", **SPACES), "blocks.0.fc"),
        (node_of("MatMul_12", "blocks.0.fc.weight", "213"), "blocks.0.fc"),
        (node_of("", "fc.weight_scaled", "213"), "fc"),
        # where nothing says anything, the file's name finds the node at least
        (node_of("MatMul_12", "onnx::MatMul_7", "213"), "MatMul_12"),
        (node_of("", "val_50", "val_51"), "val_51"),
    ],
)
def test_a_layer_goes_by_what_a_user_knows(node, name):
    assert label(node) == f"MatMul {name}"
    # what reports say can be pasted into include and exclude
    assert matches(layer_names(node), [name])


def test_operations_of_one_module_have_names_of_their_own():
    scopes = "['', 'blocks.0', 'matmul_1']"
    node = node_of("node_matmul_1", **{"pkg.torch.onnx.name_scopes": scopes})
    node.replace_input_with(1, node.inputs[0])
    assert label(node) == "MatMul blocks.0.matmul_1"
    assert module_path(node) == "blocks.0"
