"""Small models for the tests of loading and saving, sound unless a test breaks them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, parser

DATA = np.array([[1, 2], [3, 4]], np.float32).tobytes()
"""The weights of `small()` as they lie in a data file."""

SMALL = """
<ir_version: 10, opset_import: ["" : 21]>
small (float[N, 2] x) => (float[N, 2] y)
<float[2, 2] w = {1, 2, 3, 4}>
{
    h = MatMul (x, w)
    y = Relu (h)
}
"""


def small() -> onnx.ModelProto:
    return parser.parse_model(SMALL)


def written(folder, proto, name="m.onnx"):
    path = folder / name
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return path


def node(m: onnx.ModelProto, *arguments, **attributes) -> None:
    m.graph.node.append(helper.make_node(*arguments, **attributes))


def external(
    m: onnx.ModelProto, location: str = "m.onnx.data", **more
) -> onnx.ModelProto:
    """`m` with its first initializer moved to external data (the file is not made)."""
    tensor = m.graph.initializer[0]
    array = onnx.numpy_helper.to_array(tensor)
    for field in ("raw_data", "float_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": array.nbytes, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return m


def calling(calls: dict[str, list[str]]) -> onnx.ModelProto:
    """A model whose function `f` calls the functions listed, one after the other; the graph calls
    the first.
    """
    proto = small()
    proto.opset_import.append(helper.make_opsetid("local", 1))
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    for name, callees in calls.items():
        nodes = [
            helper.make_node(c, [f"v{i}"], [f"v{i + 1}"], domain="local")
            for i, c in enumerate(callees)
        ]
        nodes.append(helper.make_node("Relu", [f"v{len(callees)}"], ["out"]))
        proto.functions.append(
            helper.make_function("local", name, ["v0"], ["out"], nodes, imports)
        )
    node(proto, next(iter(calls)), ["x"], ["called"], domain="local")
    return proto


def sparse(
    values, indices, dims, name="s", kind=TensorProto.FLOAT
) -> onnx.SparseTensorProto:
    indices = np.array(indices, np.int64)
    return helper.make_sparse_tensor(
        helper.make_tensor(name, kind, [len(values)], values),
        helper.make_tensor(
            name + "_indices", TensorProto.INT64, indices.shape, indices.ravel()
        ),
        dims,
    )
