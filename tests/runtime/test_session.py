import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.passes._core.targets import TARGETS, target_named
from onnx_opt.runtime.optimized import LEVELS, optimized_counts, optimized_nodes
from onnx_opt.runtime.providers import PROVIDERS, provider_named
from onnx_opt.runtime.session import TensorInfo, open_session
from onnx_opt.runtime.worker import RemoteError

LINEAR = """
<ir_version: 10, opset_import: ["" : 21]>
linear (float[N, 4] x, int64[2] unused) => (float[N, 2] y)
<float[4, 2] w = {1, 0, 0, 1, 0, 0, 0, 0}>
{ y = MatMul (x, w) }
"""
BRANCHES = """
<ir_version: 10, opset_import: ["" : 21]>
branches (bool c, float[2] x) => (float[2] y)
{
    y = If (c) <
        then_branch = yes () => (float[2] a) { a = Abs (x) },
        else_branch = no () => (float[2] b) { b = Neg (x) }
    >
}
"""
BFLOAT16 = """
<ir_version: 10, opset_import: ["" : 21]>
narrow (bfloat16[N] x) => (float[N] y, bfloat16[N] z)
{
    y = Cast <to = 1> (x)
    z = Identity (x)
}
"""
SEQUENCE = """
<ir_version: 10, opset_import: ["" : 21]>
pair (float[2] x) => (seq(float[2]) s)
{
    n = Neg (x)
    s = SequenceConstruct (x, n)
}
"""


def test_describes_the_interface_and_runs(worker, write):
    session = open_session(worker, write(LINEAR))
    assert session.inputs == [
        TensorInfo("x", "float32", ("N", 4)),
        TensorInfo("unused", "int64", (2,)),
    ]
    assert session.outputs == [TensorInfo("y", "float32", ("N", 2))]
    got = session.run(
        {"x": np.array([[1, 2, 3, 4]], np.float32), "unused": np.zeros(2, np.int64)}
    )
    np.testing.assert_array_equal(got["y"], [[1, 2]])


def test_nodes_of_the_optimized_graph_are_those_of_subgraphs_too(worker, write):
    nodes = optimized_nodes(open_session(worker, write(BRANCHES)))
    assert sorted(node.op for node in nodes) == ["Abs", "If", "Neg"]
    (branch,) = [node for node in nodes if node.op == "If"]
    assert (branch.inputs, branch.outputs) == (("c",), ("y",))


def test_nodes_are_counted_at_each_level(worker, write):
    counts = optimized_counts(open_session(worker, write(LINEAR)))
    assert list(counts) == list(LEVELS)
    # a MatMul and nothing else
    assert set(counts.values()) == {1}


def test_without_optimization_the_graph_stays(worker, write):
    session = open_session(worker, write(LINEAR), optimize=False, threads=1)
    assert session.run(
        {"x": np.ones((1, 4), np.float32), "unused": np.zeros(2, np.int64)}
    )["y"].tolist() == [[1, 1]]


def test_bfloat16_goes_in_and_comes_out(worker, write):
    session = open_session(worker, write(BFLOAT16))
    x = np.array([1.5, -2], ml_dtypes.bfloat16)
    got = session.run({"x": x})
    assert session.inputs[0].dtype == "bfloat16"
    assert got["z"].dtype == x.dtype
    assert got["z"].tolist() == got["y"].tolist() == [1.5, -2]


def test_sequences_are_flattened(worker, write):
    session = open_session(worker, write(SEQUENCE))
    got = session.run({"x": np.array([1, 2], np.float32)})
    assert not session.outputs[0].is_tensor
    assert {name: value.tolist() for name, value in got.items()} == {
        "s[0]": [1, 2],
        "s[1]": [-1, -2],
    }


def test_what_cannot_be_loaded_is_refused(worker, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"hello")
    with pytest.raises(
        RefusedError, match=r"^bad\.onnx: ONNX Runtime cannot load it: .*[Pp]rotobuf"
    ):
        open_session(worker, path)
    with pytest.raises(RefusedError, match=r"none\.onnx"):
        open_session(worker, tmp_path / "none.onnx")


def test_a_failing_run_names_the_model_and_the_cause(worker, write):
    session = open_session(worker, write(LINEAR))
    with pytest.raises(
        RemoteError, match=r"^model\.onnx: ONNX Runtime fails to run it: .*x"
    ):
        session.run({"x": np.ones((1, 5), np.float32), "unused": np.zeros(2, np.int64)})


def test_a_closed_session_opens_again_when_used(worker, write):
    session = open_session(worker, write(BRANCHES))
    session.close()
    got = session.run({"c": np.array(False), "x": np.array([1, 2], np.float32)})
    assert got["y"].tolist() == [-1, -2]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_missing_provider_says_how_to_install_it(worker, write, provider):
    name = PROVIDERS[provider].ort_name
    if name in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has it")
    with pytest.raises(RefusedError) as error:
        open_session(worker, write(LINEAR), provider=provider)
    assert name in error.value.problem
    assert "onnxruntime-gpu[cuda,cudnn]" in error.value.fix
    assert ("tensorrt<11" in error.value.fix) == (provider == "tensorrt")


def test_unknown_names_get_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'tensorrt'"):
        provider_named("tensorrrt")
    with pytest.raises(
        UsageError,
        match="choose one of cpu, cpu-vnni, arm64, cuda, tensorrt, generic, openvino",
    ):
        target_named("xyz")


def test_every_target_has_a_provider():
    assert {target.provider for target in TARGETS.values()} <= PROVIDERS.keys()
    assert target_named("generic").provider == "cpu"


def test_threads_that_do_not_spin_compute_the_same(worker, write):
    path, feeds = (
        write(LINEAR),
        {
            "x": np.arange(8, dtype=np.float32).reshape(2, 4),
            "unused": np.zeros(2, np.int64),
        },
    )
    spinning, calm = open_session(worker, path), open_session(worker, path, spin=False)
    np.testing.assert_array_equal(calm.run(feeds)["y"], spinning.run(feeds)["y"])
    assert worker.call("run", calm.handle(), feeds)["y"].shape == (2, 2)
