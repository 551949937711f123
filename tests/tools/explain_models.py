"""Small models whose explanations are known."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model(nodes, inputs, outputs, constants=()):
    """A model of nodes; inputs and outputs are (name, type, shape)."""
    ports = [
        [helper.make_tensor_value_info(*port) for port in ports]
        for ports in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants]
    graph = helper.make_graph(nodes, "explained", *ports, tensors)
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    found.ir_version = 10
    onnx.checker.check_model(found)
    return found


def linear(weights, batch="n"):
    """Classes by a product: `x` (n, columns) times weights (columns, classes)."""
    columns, classes = np.shape(weights)
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, [batch, columns])],
        [("y", TensorProto.FLOAT, [batch, classes])],
        [("w", np.asarray(weights, np.float32))],
    )


def pixels(weights, batch="n"):
    """Two classes of a picture (n, 1, H, W): the sum of weights times pixels, and none."""
    height, width = np.shape(weights)
    table = np.zeros((height * width, 2), np.float32)
    table[:, 0] = np.ravel(weights)
    rows = 0 if isinstance(batch, str) else batch
    return model(
        [
            helper.make_node("Reshape", ["x", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, [batch, 1, height, width])],
        [("y", TensorProto.FLOAT, [batch, 2])],
        [("shape", np.array([rows, -1])), ("w", table)],
    )


def colour_bytes(weights):
    """The same two classes of a picture of bytes (n, H, W, 3): all its colours have the weights."""
    height, width = np.shape(weights)
    table = np.zeros((3, height * width, 2), np.float32)
    table[:, :, 0] = np.ravel(weights)
    return model(
        [
            helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["floats", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["y"]),
        ],
        [("x", TensorProto.UINT8, ["n", height, width, 3])],
        [("y", TensorProto.FLOAT, ["n", 2])],
        [("shape", np.array([0, -1])), ("w", table.reshape(-1, 2))],
    )


def maps_and_scores():
    """A map, and scores of three classes for it."""
    return model(
        [
            helper.make_node("Relu", ["x"], ["heat"]),
            helper.make_node("ReduceMean", ["x", "axes"], ["scores"], keepdims=0),
        ],
        [("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [
            ("heat", TensorProto.FLOAT, ["n", 3, 8, 8]),
            ("scores", TensorProto.FLOAT, ["n", 3]),
        ],
        [("axes", np.array([2, 3]))],
    )


def embedding(values):
    """The mean of token embeddings: `input_ids` and `attention_mask` (n, t), `values` (V, C)."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["y"], keepdims=0),
    ]
    ids = [
        (name, TensorProto.INT64, ["n", "t"])
        for name in ("input_ids", "attention_mask")
    ]
    classes = np.shape(values)[1]
    return model(
        nodes,
        ids,
        [("y", TensorProto.FLOAT, ["n", classes])],
        [
            ("table", np.asarray(values, np.float32)),
            ("last", np.array([2])),
            ("middle", np.array([1])),
        ],
    )


def byte_sum(values):
    """The sum of what a table has for each byte: `x` (n, t), `values` (V, C)."""
    classes = np.shape(values)[1]
    return model(
        [
            helper.make_node("Gather", ["table", "x"], ["rows"]),
            helper.make_node("ReduceSum", ["rows", "middle"], ["y"], keepdims=0),
        ],
        [("x", TensorProto.INT64, ["n", "t"])],
        [("y", TensorProto.FLOAT, ["n", classes])],
        [("table", np.asarray(values, np.float32)), ("middle", np.array([1]))],
    )


def maps():
    """A model whose output is a map (n, 1, H, W)."""
    return model(
        [helper.make_node("Relu", ["x"], ["heat"])],
        [("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [("heat", TensorProto.FLOAT, ["n", 1, 8, 8])],
    )
