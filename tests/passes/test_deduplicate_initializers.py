"""deduplicate-initializers: what differs in a bit, or may differ later, first; then what is
equal.
"""

import numpy as np
import onnx_ir as ir
import pytest
from exactness import model_of, run_exact
from onnx_opt.passes import deduplicate_initializers
from onnx_opt.passes._base import NullContext
from onnx_opt.passes.deduplicate_initializers import DeduplicateInitializers

STAYS = {
    "zero and minus zero": "float[2] a = {0, 1}, float[2] b = {-0.0, 1}",
    "other shapes": "float[2] a = {1, 1}, float[1, 2] b = {1, 1}",
    "other numbers": "float[2] a = {1, 2}, float[2] b = {1, 3}",
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    text = f"g (float[2] x) => (float[m, n] y) <{STAYS[name]}> {{ h = Mul (x, a)  y = Div (h, b) }}"
    text = text if "shapes" in name else text.replace("[m, n]", "[n]")
    model, outcome = run_exact(DeduplicateInitializers(), text)
    assert outcome.changed == 0
    assert set(model.graph.initializers) == {"a", "b"}


def test_other_types_stay():
    text = """g (float[2] x) => (float[2] y) <float[2] a = {1, 1}, int32[2] b = {1065353216,
        1065353216}>
    { c = Cast <to: int = 1> (b)  h = Mul (x, a)  y = Mul (h, c) }"""
    assert run_exact(DeduplicateInitializers(), text)[1].changed == 0


def test_an_overridable_default_stays():
    text = (
        "g (float[2] x, float[2] b) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}> "
        "{ h = Mul (x, a)  y = Add (h, b) }"
    )
    assert run_exact(DeduplicateInitializers(), text)[1].changed == 0


def test_branches_keep_their_own():
    text = """
    g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) <float[2] p = {1, 2}> { a = Mul (x, p) },
                    else_branch = e () => (float[2] b) <float[2] q = {1, 2}> { b = Add (x, q) }>
    }"""
    assert run_exact(DeduplicateInitializers(), text)[1].changed == 0


def test_equal_ones_become_one():
    text = """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2},
        float[2] c = {1, 2}>
    { h = Mul (x, a)  i = Add (h, b)  y = Div (i, c) }"""
    model, outcome = run_exact(DeduplicateInitializers(), text)
    assert list(model.graph.initializers) == ["a"]
    assert outcome.stats == {"initializers": 2, "bytes": 16}


def test_a_branch_takes_that_of_the_graph_around_it():
    text = """
    g (float[2] x, bool c) => (float[2] y) <float[2] o = {1, 2}> {
        h = If (c) <then_branch = t () => (float[2] a) <float[2] p = {1, 2}> { a = Mul (x, p) },
                    else_branch = e () => (float[2] b) <float[2] q = {1, 2}> { b = Add (x, q) }>
        y = Add (h, o)
    }"""
    model, outcome = run_exact(DeduplicateInitializers(), text)
    assert outcome.stats["initializers"] == 2
    assert [len(graph.initializers) for graph in model.graphs()] == [1, 0, 0]


def test_texts_are_compared_too():
    text = """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}> { y = Add (x, a) }"""
    model = model_of(text)
    for name, words in (("s", [b"one"]), ("t", [b"one"]), ("u", [b"two"])):
        tensor = ir.StringTensor(words, shape=ir.Shape([1]), name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.STRING),
            shape=ir.Shape([1]),
            const_value=tensor,
        )
        model.graph.register_initializer(value)
    DeduplicateInitializers().run(model, NullContext())
    assert set(model.graph.initializers) == {"a", "s", "u"}


def test_a_large_tensor_is_read_no_further_than_its_first_difference(
    tmp_path, monkeypatch
):
    model = model_of("g (float[1] x) => (float[1] y) { y = Neg (x) }")
    size, read = 1 << 20, []
    for index in range(3):
        array = np.zeros(size, np.float32)
        array[0] = index // 2 if index < 2 else 5
        (tmp_path / f"w{index}").write_bytes(array.tobytes())
        tensor = ir.ExternalTensor(
            f"w{index}",
            0,
            array.nbytes,
            ir.DataType.FLOAT,
            name=f"w{index}",
            shape=ir.Shape([size]),
            base_dir=str(tmp_path),
        )
        value = ir.Value(
            name=f"w{index}",
            shape=ir.Shape([size]),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=tensor,
        )
        model.graph.register_initializer(value)
    original = deduplicate_initializers.blocks

    def counted(tensor, granule=1):
        for start, block in original(tensor, granule):
            read.append(tensor.name)
            yield start, block

    monkeypatch.setattr(deduplicate_initializers, "blocks", counted)
    outcome = DeduplicateInitializers().run(model, NullContext())
    assert outcome.stats == {"initializers": 1, "bytes": 4 * size}
    assert (read.count("w0"), read.count("w1"), read.count("w2")) == (5, 5, 1)
