"""Probe sizes: what fits the model, and what is seen to depend on the input."""

from onnx_opt.passes._dims.trace import traced
from pruning import model_of


def by_name(trace, name):
    return next(value for value in trace.shapes if value.name == name)


def test_sizes_that_depend_on_the_input_vary():
    trace = traced(model_of("g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }"))
    assert trace.varies(by_name(trace, "y"), 0)
    assert not trace.varies(by_name(trace, "y"), 1)


def test_a_symbol_that_takes_few_sizes_leaves_the_others_free():
    trace = traced(
        model_of("""
        g (float[N, 3, H] x) => (float[N, 3, 16] y) <float[1, 3, 16] c> { y = Add (x, c) }""")
    )
    x = by_name(trace, "x")
    assert trace.shape(x)[2] in (1, 16)
    assert trace.varies(x, 0)


def test_branches_are_followed():
    trace = traced(
        model_of("""
        g (float[N, 3] x, bool c) => (float[N, K] y) {
            b = If (c) <then_branch = t () => (float[A, B] d) { d = Neg (x) },
                        else_branch = e () => (float[C, D] f) { f = Relu (x) }>
            y = Tanh (b)
        }""")
    )
    assert trace.shape(by_name(trace, "b")) == trace.shape(by_name(trace, "x"))


def test_branches_that_differ_are_unknown():
    trace = traced(
        model_of("""
        g (float[N, 3] x, bool c) => (float[N, K] y) <int64[1] one = {1}> {
            b = If (c) <then_branch = t () => (float[A, B] d) { d = Neg (x) },
                        else_branch = e () => (float[C, D] f) { f = ReduceSum (x, one) }>
            y = Tanh (b)
        }""")
    )
    assert "b" not in {value.name for value in trace.shapes}
