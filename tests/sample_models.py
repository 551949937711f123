"""Small models as text, for tests of any layer. An initializer declared without values gets random
ones, by seed.
"""

import numpy as np
import onnx
import onnx.parser

MLP = """
<ir_version: 10, opset_import: ["" : 21], producer_name: "by hand">
mlp (float[batch, 8] x) => (float[batch, 4] y)
<float[8, 16] w1, float[16, 4] w2>
{
    h = MatMul (x, w1)
    r = Relu (h)
    y = MatMul (r, w2)
}
"""

CLASSIFIER = """
<ir_version: 10, opset_import: ["" : 21]>
classifier (float[batch, 64] x) => (float[batch, 10] y)
<float[64, 128] w1, float[128, 64] w2, float[64, 10] w3>
{
    h1 = MatMul (x, w1)
    r1 = Relu (h1)
    h2 = MatMul (r1, w2)
    r2 = Relu (h2)
    y = MatMul (r2, w3)
}
"""

CNN = """
<ir_version: 10, opset_import: ["" : 21]>
cnn (float[batch, 3, 8, 8] x) => (float[batch, 10] y)
<float[16, 3, 3, 3] k1, float[16] b1, float[16] scale = {1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1,
    2, 1, 2},
 float[16] shift, float[16] mean, float[16] var = {1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2, 2},
 float[16, 16, 3, 3] k2,
 float[16, 10] w, float[10] b, int64[2] flat = {0, -1}>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, k1, b1)
    n1 = BatchNormalization (c1, scale, shift, mean, var)
    r1 = Relu (n1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, k2)
    s = Add (c2, r1)
    i = Identity (s)
    p = GlobalAveragePool (i)
    f = Reshape (p, flat)
    y = Gemm (f, w, b)
}
"""

IF = """
<ir_version: 10, opset_import: ["" : 21]>
branches (bool flag, float[batch, 4] x) => (float[batch, 4] y)
<float[4, 4] w>
{
    h = MatMul (x, w)
    y = If (flag) <
        then_branch = then_graph () => (float[batch, 4] t)
        <float[4, 4] u = {1, 0, 2, 0, 0, 3, 0, 1, 2, 0, 1, 0, 0, 1, 0, 2}> {
            t = MatMul (h, u)
        },
        else_branch = else_graph () => (float[batch, 4] e) {
            k = Constant <value = float[4, 4] {2, 0, 1, 0, 0, 1, 0, 3, 1, 0, 2, 0, 0, 2, 0, 1}> ()
            e = MatMul (h, k)
        }
    >
}
"""

LSTM = """
<ir_version: 10, opset_import: ["" : 21]>
recurrent (float[time, batch, 6] x) => (float[time, 1, batch, 5] y, float[1, batch, 5] last)
<float[1, 20, 6] w, float[1, 20, 5] r, float[1, 40] b>
{
    y, last = LSTM <hidden_size = 5> (x, w, r, b)
}
"""

ALL = {"mlp": MLP, "cnn": CNN, "if": IF, "lstm": LSTM}


def model_from(text: str, seed: int = 0) -> onnx.ModelProto:
    """The model of a text; what its `<…>` declares without values becomes an initializer from N(0,
    1).
    """
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(seed)
    produced = {name for node in proto.graph.node for name in node.output}
    for value in list(proto.graph.value_info):
        if value.name not in produced:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            array = random.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(array, value.name)
            )
            proto.graph.value_info.remove(value)
    return proto


TREES = """
<ir_version: 8, opset_import: ["" : 18, "ai.onnx.ml" : 3]>
trees (float[n, 2] x) => (float[n, 1] y)
{
    [forest] y = ai.onnx.ml.TreeEnsembleRegressor <n_targets = 1,
        nodes_treeids = [0, 0, 0], nodes_nodeids = [0, 1, 2], nodes_featureids = [1, 0, 0],
        nodes_modes = ["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values = [0.2, 0.0, 0.0],
        nodes_hitrates = [1.0, 1.0, 1.0],
        nodes_truenodeids = [1, 0, 0], nodes_falsenodeids = [2, 0, 0],
        target_treeids = [0, 0], target_nodeids = [1, 2], target_ids = [0, 0],
        target_weights = [1.0, 3.0]> (x)
}
"""
