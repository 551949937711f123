"""Round trip: load, save, load again, and the model is the same and runs the same."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx_opt.frontends._onnx_io.protos import tensor_protos
from onnx_opt.frontends.onnx_file import load, save

MODELS = (
    Path(
        os.environ.get(
            "ONNX_OPT_DATA", Path(__file__).resolve().parents[2] / "../shared/data"
        )
    )
    / "models"
)


def through(folder: Path, proto: onnx.ModelProto, **options) -> onnx.ModelProto:
    """`proto` after load and save, with its external data read back in."""
    onnx.save(proto, folder / "in.onnx")
    save(load(folder / "in.onnx"), folder / "out.onnx", **options)
    return onnx.load(folder / "out.onnx")


def contents(proto: onnx.ModelProto) -> dict[str, tuple[int, list[int], bytes]]:
    """Every initializer by name: type, dims, and its bytes in one form."""
    return {
        t.name: (t.data_type, list(t.dims), numpy_helper.to_array(t).tobytes())
        for t in proto.graph.initializer
    }


def run(path: Path) -> list[np.ndarray]:
    """Outputs for seeded feeds; unknown dims are 1, or 32 for the sides of an image."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    feeds = {}
    for entry in session.get_inputs():
        shape = [
            d if isinstance(d, int) else 32 if len(entry.shape) == 4 and i > 1 else 1
            for i, d in enumerate(entry.shape)
        ]
        if entry.type == "tensor(float)":
            feeds[entry.name] = rng.random(shape, np.float32)
        elif entry.name == "sr":
            feeds[entry.name] = np.array(16000, np.int64)
        else:
            feeds[entry.name] = np.ones(
                shape,
                {"tensor(int64)": np.int64, "tensor(int32)": np.int32}[entry.type],
            )
        if entry.name == "input" and len(shape) == 2 and entry.type == "tensor(float)":
            feeds[entry.name] = rng.random(
                (1, 576), np.float32
            )  # silero_vad: context and a frame of 16 kHz sound
    return session.run(None, feeds)


@pytest.mark.needs("onnxruntime", "1.21", "older ones die of one of them")
@pytest.mark.skipif(
    not MODELS.is_dir(), reason="the shared models are not here (ONNX_OPT_DATA)"
)
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", sorted(p.name for p in MODELS.glob("*.onnx")))
def test_real_models_run_identically(tmp_path, name, external):
    save(load(MODELS / name), tmp_path / "first.onnx", external=external)
    save(load(tmp_path / "first.onnx"), tmp_path / "second.onnx")
    before, after = (
        onnx.load(p).opset_import for p in (MODELS / name, tmp_path / "second.onnx")
    )
    assert {o.domain: o.version for o in before} == {o.domain: o.version for o in after}
    for before, after in zip(
        run(MODELS / name), run(tmp_path / "second.onnx"), strict=True
    ):
        np.testing.assert_array_equal(before, after)


RICH = """
<ir_version: 10, opset_import: ["" : 21, "my.domain" : 3], producer_name: "someone",
    model_version: 7,
 doc_string: "a model", metadata_props: ["author" : "someone", "labels" : "a,b"]>
rich (float[N, 3, "height", 4] x, float[N] unused, float[2] bias) => (float[N, 3, "height",
    4] y, float[2] b)
<float[2] bias = {1, 2}, float[1] one = {1}>
{
    h = Add (x, one)
    y = my.domain.Keep <names = ["p", "q"]> (h)
    b = Neg (bias)
}
"""


def test_interface_metadata_and_custom_domains_stay(tmp_path):
    proto = parser.parse_model(RICH)
    for item in proto.graph.node:
        if not item.domain:
            item.ClearField("domain")  # the parser writes "" out
    proto.graph.node[0].name = "adder"
    proto.graph.node[0].doc_string = "adds one"
    proto.graph.node[0].metadata_props.add(key="layer", value="first")
    proto.graph.metadata_props.add(key="graph", value="g")
    proto.graph.initializer[0].metadata_props.add(key="tensor", value="t")
    proto.graph.doc_string = "a graph"
    out = through(tmp_path, proto)
    for field in (
        "producer_name",
        "model_version",
        "doc_string",
        "metadata_props",
        "opset_import",
        "ir_version",
    ):
        assert getattr(out, field) == getattr(proto, field), field
    for field in ("name", "input", "output", "node", "doc_string", "metadata_props"):
        assert getattr(out.graph, field) == getattr(proto.graph, field), field
    assert contents(out) == contents(proto)
    assert (
        out.graph.initializer[0].metadata_props
        == proto.graph.initializer[0].metadata_props
    )


def numbers(kind: int, dims: list[int]) -> TensorProto:
    size = int(np.prod(dims, dtype=int))
    return helper.make_tensor("t", kind, dims, [i % 2 for i in range(size)])


TYPES = [
    TensorProto.BFLOAT16,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.COMPLEX64,
    TensorProto.BOOL,
    TensorProto.INT4,
    TensorProto.UINT4,
    TensorProto.INT8,
    TensorProto.UINT64,
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E5M2FNUZ,
    # onnx has it from 1.18 on
    *([TensorProto.FLOAT4E2M1] if hasattr(TensorProto, "FLOAT4E2M1") else []),
]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("dims", [[3, 1001], [0, 4], []])
@pytest.mark.parametrize("kind", TYPES, ids=TensorProto.DataType.Name)
def test_every_type_of_tensor(tmp_path, kind, dims, external):
    proto = parser.parse_model(RICH)
    proto.ir_version = 11
    proto.graph.initializer.append(numbers(kind, dims))
    out = through(tmp_path, proto, external=external)
    assert contents(out) == contents(proto)
    assert out.ir_version == 11
    save(load(tmp_path / "out.onnx"), tmp_path / "again.onnx", external=False)
    assert contents(onnx.load(tmp_path / "again.onnx")) == contents(proto)


@pytest.mark.parametrize("external", [False, True])
def test_text_tensors(tmp_path, external):
    proto = parser.parse_model(RICH)
    words = [b"a", "é".encode(), b"\xff not UTF-8"] * 200
    proto.graph.initializer.append(
        helper.make_tensor("t", TensorProto.STRING, [600], words)
    )
    out = through(tmp_path, proto, external=external)
    assert list(out.graph.initializer[-1].string_data) == words


def nested(tensor: TensorProto) -> onnx.ModelProto:
    """A model that holds `tensor` as an initializer of a subgraph, a Constant there, and a Constant
    of a function.
    """
    tensor = onnx.TensorProto.FromString(tensor.SerializeToString())
    dims = list(tensor.dims)
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    add = helper.make_node("Add", ["k", "t"], ["z"])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, dims)
    branch = helper.make_graph([constant, add], "branch", [], [z], [tensor])
    function = helper.make_function(
        "local",
        "f",
        ["a"],
        ["r"],
        [constant, helper.make_node("Add", ["a", "k"], ["r"])],
        [helper.make_opsetid("", 21)],
    )
    nodes = [
        helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("f", ["i"], ["y"], domain="local"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
    )
    return helper.make_model(
        graph,
        ir_version=10,
        functions=[function],
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("local", 1)],
    )


@pytest.mark.parametrize("external_in", [False, True])
@pytest.mark.parametrize("external_out", [False, True])
def test_tensors_of_subgraphs_constants_and_functions_move_too(
    tmp_path, external_in, external_out
):
    array = np.arange(1000, dtype=np.float32)
    tensor = numpy_helper.from_array(array, "t")
    if external_in:
        (tmp_path / "w.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "in.onnx").write_bytes(nested(tensor).SerializeToString())
    files = save(
        load(tmp_path / "in.onnx"), tmp_path / "out.onnx", external=external_out
    )
    out = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    held = list(tensor_protos(out))
    assert len(held) == 5
    assert {t.data_location for t in held} == {
        TensorProto.EXTERNAL if external_out else TensorProto.DEFAULT
    }
    assert len(files) == 1 + external_out
    session = onnxruntime.InferenceSession(
        tmp_path / "out.onnx", providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(
        session.run(None, {"c": np.array(True)})[0], 3 * array
    )
    assert [f.name for f in out.functions] == ["f"]


def test_sparse_models_run_identically(tmp_path):
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[2, 3] x) => (float[2, 3] y) { y = Mul (x, s) }""")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            helper.make_tensor("s", TensorProto.FLOAT, [2], [7, 8]),
            helper.make_tensor("i", TensorProto.INT64, [2], [1, 5]),
            [2, 3],
        )
    )
    out = through(tmp_path, proto)
    feeds = {"x": np.ones((2, 3), np.float32)}
    before, after = (
        onnxruntime.InferenceSession(
            p.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, feeds)[0]
        for p in (proto, out)
    )
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(after, [[0, 7, 0], [0, 0, 8]])
