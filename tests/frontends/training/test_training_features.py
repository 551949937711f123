"""Choice of the inner values that are matched."""

import textwrap

import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.frontends.training.features import Tap, find_taps
from training_models import MLP, agreement, batches, model_of, pruned, rows, trained

STAGES = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 1, 8, 8] x) => (float[n, 4] y)
<float[6, 1, 3, 3] k, float[6] kb, float[6, 6, 3, 3] m, float[6] mb, float[6, 4] w, float[4] b>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, k, kb)
    r = Relu (c)
    d = Conv <pads = [1, 1, 1, 1]> (r, m, mb)
    s = Add (d, r)
    t = Relu (s)
    u = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t)
    p = GlobalAveragePool (u)
    f = Flatten (p)
    y = Gemm (f, w, b)
}
"""
NARROW = STAGES.replace("[6", "[5").replace(", 6, 3", ", 5, 3").replace("n, ", "rows, ")
OTHERS = (
    ("c", "c2"),
    ("r", "r2"),
    ("d", "d2"),
    ("s", "s2"),
    ("t", "t2"),
    ("u", "u2"),
    ("p", "p2"),
    ("f", "f2"),
)


def other_names(text):
    for old, new in OTHERS:
        text = (
            text.replace(f" {old} =", f" {new} =")
            .replace(f"({old})", f"({new})")
            .replace(f"({old}, ", f"({new}, ")
        )
    return text.replace("(d2, r)", "(d2, r2)")


def test_by_themselves_the_last_of_each_size():
    assert find_taps(model_of(STAGES), model_of(STAGES), ["auto"]) == [
        Tap("t", "t"),
        Tap("u", "u"),
        Tap("p", "p"),
    ]


def test_of_another_graph_those_of_the_same_size():
    found = find_taps(model_of(NARROW), model_of(other_names(STAGES)), ["auto", "r=c2"])
    assert found == [Tap("t", "t2"), Tap("u", "u2"), Tap("p", "p2"), Tap("r", "c2")]


def test_a_narrow_student_learns_by_them():
    teacher, student = model_of(STAGES), pruned(model_of(NARROW, seed=7), 0.3)
    fresh = rows(512, (1, 8, 8), seed=9)
    before = agreement(student, teacher, fresh)
    assert (
        trained(
            student,
            teacher,
            batches(rows(256, (1, 8, 8))),
            steps=150,
            features=("auto",),
        ).weights
        == 6
    )
    assert agreement(student, teacher, fresh) > before


def test_a_mask_may_pass_beside():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    net (int64[n, s] ids, float[n, s, 1] mask) => (float[n, s, 4] y)
    <float[6, 4] u, float[4, 4] v>
    {
        e = Gather (u, ids)
        a = Mul (e, mask)
        h = Tanh (a)
        k = MatMul (h, v)
        y = Mul (k, mask)
    }
    """
    model = model_of(textwrap.dedent(text))
    assert find_taps(model, model, ["auto"]) == [Tap("k", "k")]


def test_none_to_find():
    with pytest.raises(RefusedError, match="auto finds no values"):
        find_taps(model_of(MLP), model_of(MLP), ["auto"])


def test_unknown_names():
    with pytest.raises(UsageError, match="the teacher has no value 'q'"):
        find_taps(model_of(STAGES), model_of(STAGES), ["t=q"])
