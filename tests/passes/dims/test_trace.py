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


def test_a_size_that_a_reshape_spells_out_is_found():
    trace = traced(
        model_of("""
        g (float[N, L, 6] x) => (float[N, L, 6] y) <int64[3] s = {7, -1, 6}, float[7, 1, 6] c> {
            t = Transpose <perm = [1, 0, 2]> (x)
            r = Reshape (t, s)
            a = Add (r, c)
            y = Transpose <perm = [1, 0, 2]> (a)
        }""")
    )
    y = by_name(trace, "y")
    assert trace.varies(y, 0)
    assert trace.shape(y)[1:] == (7, 6)
    assert not trace.contradicted


def test_a_reshape_that_fixes_the_batch_is_followed():
    trace = traced(
        model_of("""
        g (float[N, 1, 32] x) => (float[1, 32] y) <int64[2] s = {1, 32}> { y = Reshape (x, s) }""")
    )
    assert trace.shape(by_name(trace, "x")) == (1, 1, 32)
    assert not trace.varies(by_name(trace, "y"), 0)


def test_a_multiple_of_what_a_reshape_was_made_for_fits_too():
    trace = traced(
        model_of("""
        g (float[N, 4] x) => (float[3, M, 4] y) <int64[3] s = {3, -1, 4}> {
            y = Reshape (x, s) }""")
    )
    y = by_name(trace, "y")
    assert trace.shape(y)[0] == 3
    assert trace.varies(y, 1)


def test_a_table_of_positions_bounds_the_length():
    trace = traced(
        model_of("""
        g (float[N, L, 3] x) => (float[N, L, 3] y)
        <float[1, 20, 3] p, int64[1] zero = {0}, int64[1] one = {1}> {
            s = Shape (x)
            l = Gather (s, one)
            r = Slice (p, zero, l, one)
            y = Add (x, r)
        }""")
    )
    y = by_name(trace, "y")
    assert 1 < trace.shape(y)[1] <= 20
    assert trace.varies(y, 1)
