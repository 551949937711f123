"""Large models in one file, loaded without a parse of their tensors."""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx_opt.passes._core import held_file, wire
from onnx_opt.runtime._worker import light_load
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import Worker

pytestmark = pytest.mark.skipif(
    not held_file.CAN_HOLD, reason="files are not held open on Windows"
)

CPU = [("CPUExecutionProvider", {})]
TWO_LAYERS = """
<ir_version: 10, opset_import: ["" : 21]>
two_layers (float[1, 4] x) => (float[1, 2] y)
<float[2] b = {0.5, -0.5}>
{
    h = MatMul (x, w)
    y = Add (h, b)
}
"""
W = np.arange(8, dtype=np.float32).reshape(4, 2)
X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def low(monkeypatch):
    """Thresholds below which nothing of these small models lies."""
    monkeypatch.setattr(held_file, "SMALLEST", 0)
    monkeypatch.setattr(wire, "LEAST", 16)


@pytest.fixture
def given(monkeypatch):
    """Models that ONNX Runtime is given, load by load: a path, or the bytes of one."""
    seen = []
    make = onnxruntime.InferenceSession

    def recorded(model, *arguments, **options):
        seen.append(model)
        return make(model, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    return seen


def model() -> onnx.ModelProto:
    proto = parser.parse_model(TWO_LAYERS)
    proto.graph.initializer.insert(0, numpy_helper.from_array(W, "w"))
    return proto


def outputs_of(path) -> list:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = light_load.load(str(path), options, CPU)
    return session.run(None, {"x": X})[0].tolist()


EXPECTED = (X @ W + np.array([0.5, -0.5], np.float32)).tolist()


def test_tensors_stay_in_the_file(tmp_path, low, given):
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    assert outputs_of(path) == EXPECTED
    (encoded,) = given
    (left_out, _) = onnx.ModelProto.FromString(encoded).graph.initializer
    assert {entry.key: entry.value for entry in left_out.external_data} == {
        "location": "m.onnx",
        "offset": str(path.read_bytes().index(W.tobytes())),
        "length": "32",
    }


def test_a_link_leads_to_the_file(tmp_path, low, given):
    (tmp_path / "blobs").mkdir()
    onnx.save(model(), tmp_path / "blobs" / "abc")
    path = tmp_path / "m.onnx"
    path.symlink_to(tmp_path / "blobs" / "abc")
    assert outputs_of(path) == EXPECTED
    assert [type(each) for each in given] == [bytes]


def test_small_files_are_loaded_as_they_are(tmp_path, given):
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    assert outputs_of(path) == EXPECTED
    assert given == [str(path)]


def test_external_data_of_its_own(tmp_path, low, given):
    proto = model()
    proto.graph.initializer.append(numpy_helper.from_array(W, "inline"))
    proto.graph.node.append(helper.make_node("Identity", ["inline"], ["unused"]))
    path = tmp_path / "m.onnx"
    onnx.save(
        proto,
        path,
        save_as_external_data=True,
        location="m.onnx.data",
        size_threshold=0,
    )
    again = onnx.load(path, load_external_data=False)
    again.graph.initializer[-1].CopyFrom(numpy_helper.from_array(W, "inline"))
    path.write_bytes(again.SerializeToString())
    assert outputs_of(path) == EXPECTED
    assert given == [str(path)]


def test_a_faulty_file_is_loaded_for_its_error(tmp_path, low, given):
    proto = model()
    proto.graph.initializer[0].dims[0] = 5
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(Exception, match=r"m\.onnx") as light:
        outputs_of(path)
    with pytest.raises(type(light.value)) as plain:
        onnxruntime.InferenceSession(str(path))
    assert str(light.value) == str(plain.value)
    assert [type(each) for each in given] == [bytes, str, str]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_other_providers_get_the_file(tmp_path, low, given):
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    options = onnxruntime.SessionOptions()
    # it is not there, and need not be: the model is handed over before anyone looks
    providers = [("CUDAExecutionProvider", {}), *CPU]
    light_load.load(str(path), options, providers)
    assert given == [str(path)]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells")
def test_it_takes_less_memory(tmp_path):
    width = 1024
    layers = 17
    names = ["x", *(f"h{index}" for index in range(layers))]
    nodes = [
        helper.make_node("MatMul", [names[index], f"w{index}"], [names[index + 1]])
        for index in range(layers)
    ]
    weight = np.zeros((width, width), np.float32)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width])
        for name in (names[0], names[-1])
    )
    weights = [numpy_helper.from_array(weight, f"w{index}") for index in range(layers)]
    graph = helper.make_graph(nodes, "layers", [x], [y], weights)
    opset = helper.make_opsetid("", 21)
    proto = helper.make_model(graph, ir_version=10, opset_imports=[opset])
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    peaks = []
    for as_deployed in (False, True):
        with Worker() as worker:
            session = open_session(worker, path, as_deployed=as_deployed)
            peaks.append(worker.call("peak_memory"))
            assert session.run({"x": weight[:1]})[names[-1]].shape == (1, width)
    light, plain = peaks
    # without one of two copies of the weights, but for what is read at the moment
    assert plain - light > 0.5 * layers * weight.nbytes
