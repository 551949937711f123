"""Bytes gone wrong: load() answers with a model or with a refusal, quickly, never with another
exception.
"""

import time

import numpy as np
import pytest
from builders import DATA, calling, external, node, small, sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, parser
from onnx_opt import RefusedError
from onnx_opt.frontends.onnx_file import load, save

SECONDS = 2.0
SEQUENCES = """<ir_version: 10, opset_import: ["" : 21]>
    g (seq(float[2]) s, optional(float[2]) o) => (float[2] y) { y = OptionalGetElement (o) }"""


def seeds() -> list[bytes]:
    """Small valid models that between them have every kind of content."""
    rich = small()
    rich.graph.initializer.extend(
        [
            helper.make_tensor("i4", TensorProto.INT4, [5], [1, 2, 3, 4, 5]),
            helper.make_tensor("text", TensorProto.STRING, [2], ["a", "b"]),
            helper.make_tensor("half", TensorProto.BFLOAT16, [2], [1.0, 2.0]),
        ]
    )
    rich.metadata_props.add(key="a", value="b")
    rich.graph.node[0].metadata_props.add(key="x", value="y")
    rich.graph.quantization_annotation.add(tensor_name="w")
    thin = small()
    thin.graph.sparse_initializer.append(sparse([7.0, 8.0], [1, 5], [2, 3]))
    constant = helper.make_node(
        "Constant", [], ["k"], sparse_value=sparse([7.0], [1], [2])
    )
    inner = helper.make_graph(
        [constant],
        "t",
        [],
        [helper.make_tensor_value_info("k", TensorProto.FLOAT, [2])],
    )
    node(thin, "If", ["c"], ["r"], then_branch=inner, else_branch=inner)
    thin.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    protos = [
        small(),
        calling({"f": ["g", "g"], "g": []}),
        external(small()),
        rich,
        thin,
        parser.parse_model(SEQUENCES),
    ]
    return [p.SerializeToString() for p in protos]


SEEDS = seeds()


def outcome(folder, data: bytes) -> str:
    """Return "loaded" or "refused"; what loads can be saved and loads again."""
    (folder / "m.onnx.data").write_bytes(DATA)
    (folder / "m.onnx").write_bytes(data)
    start = time.perf_counter()
    refusal = None
    try:
        model = load(folder / "m.onnx")
    except RefusedError as error:
        refusal = error
    assert time.perf_counter() - start < SECONDS
    if refusal:
        assert (refusal.problem + refusal.fix).isprintable()
        return "refused"
    save(model, folder / "out.onnx")
    load(folder / "out.onnx")
    return "loaded"


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three bytes changed, some bytes cut out, or a part of the file repeated elsewhere."""
    buffer = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(buffer)))
        kind = rng.integers(4)
        if kind < 2:
            buffer[at] = int(rng.integers(256))
        elif kind == 2:
            del buffer[at : at + int(rng.integers(1, 6))]
        else:
            start = int(rng.integers(len(buffer)))
            buffer[at:at] = buffer[start : start + int(rng.integers(1, 30))]
    return bytes(buffer)


def test_the_seeds_themselves_load(tmp_path):
    assert [outcome(tmp_path, data) for data in SEEDS] == ["loaded"] * len(SEEDS)


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_300_mutations_and_no_other_exception(tmp_path, seed):
    rng = np.random.default_rng(seed)
    outcomes = [outcome(tmp_path, mutated(SEEDS[seed], rng)) for _ in range(300)]
    assert outcomes.count("refused") > 150
    assert "loaded" in outcomes


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_load(tmp_path, data):
    outcome(tmp_path, data)


def test_every_prefix_is_refused(tmp_path):
    data = SEEDS[0]
    assert {outcome(tmp_path, data[:n]) for n in range(len(data))} == {"refused"}
