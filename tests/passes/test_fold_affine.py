"""fold-affine: constants that must stay, first; then Mul, Div, Add and Sub into what comes
before.
"""

import pytest
from exactness import ops_of, run_exact
from onnx_opt.passes.fold_affine import FoldAffine

CONV = "float[2, 1, 1, 1] w = {2, 3}"

STAYS = {
    "a constant along the width": (
        "float[4] c = {1, 2, 3, 4}",
        "h = Conv (x, w)  y = Mul (h, c)",
        True,
    ),
    "a constant that widens the batch": (
        "float[3, 1, 1, 1] c = {1, 2, 3}",
        "h = Conv (x, w)  y = Mul (h, c)",
        True,
    ),
    "a constant of a higher rank": (
        "float[1, 1, 1, 1, 1] c = {2}",
        "h = Conv (x, w)  y = Mul (h, c)",
        True,
    ),
    "a shared output": (
        "float c = {2}",
        "h = Conv (x, w)  i = Mul (h, c)  y = Add (h, i)",
        True,
    ),
    "a shared weight": (
        "float c = {2}",
        "h = Conv (x, w)  i = Mul (h, c)  k = Conv (x, w)  y = Add (i, k)",
        True,
    ),
    "zero, which would hide infinities": (
        "float c = {0}",
        "h = Conv (x, w)  y = Mul (h, c)",
        True,
    ),
    "a wild factor": ("float c = {1e30}", "h = Conv (x, w)  y = Mul (h, c)", True),
    "one over": ("float c = {2}", "h = Conv (x, w)  y = Div (c, h)", True),
    "after an activation": (
        "float c = {2}",
        "h = Conv (x, w)  r = Relu (h)  y = Mul (r, c)",
        False,
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    constant, body, declined = STAYS[name]
    output = "float[a, b, c, d, e] y" if "rank" in name else "float[a, b, c, d] y"
    _, outcome = run_exact(
        FoldAffine(),
        f"g (float[1, 1, 4, 4] x) => ({output}) <{CONV}, {constant}> {{ {body} }}",
    )
    assert outcome.changed == 0
    assert bool(outcome.declined) is declined


@pytest.mark.parametrize("default", ["float[2, 1, 1, 1] w", "float k"])
def test_overridable_constants_stay(default):
    text = f"""g (float[1, 1, 4, 4] x, {default}) => (float[a, b, c, d] y) <{CONV}, float k = {{2}}>
    {{ h = Conv (x, w)  y = Mul (h, k) }}"""
    assert run_exact(FoldAffine(), text)[1].changed == 0


FOLDS = {
    "mul by a number": ("float c = {2}", "h = Conv (x, w)  y = Mul (h, c)"),
    "mul on the left": ("float[1] c = {2}", "h = Conv (x, w)  y = Mul (c, h)"),
    "mul per channel": (
        "float[2, 1, 1] c = {2, -3}",
        "h = Conv (x, w)  y = Mul (h, c)",
    ),
    "div": ("float[1, 2, 1, 1] c = {2, -3}", "h = Conv (x, w)  y = Div (h, c)"),
    "add": ("float[2, 1, 1] c = {2, -3}", "h = Conv (x, w)  y = Add (h, c)"),
    "add to a bias": (
        "float[2] b = {1, 2}, float c = {2}",
        "h = Conv (x, w, b)  y = Add (c, h)",
    ),
    "sub": ("float c = {2}", "h = Conv (x, w)  y = Sub (h, c)"),
    "number minus": (
        "float[2] b = {1, 2}, float c = {2}",
        "h = Conv (x, w, b)  y = Sub (c, h)",
    ),
    "mul and add": (
        "float c = {0.5}, float d = {3}",
        "h = Conv (x, w)  i = Mul (c, h)  y = Add (i, d)",
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds_into_a_convolution(name):
    constants, body = FOLDS[name]
    text = (
        f"g (float[batch, 1, 4, 4] x) => (float[a, b, c, d] y) <{CONV}, {constants}> {{ "
        f"{body} }}"
    )
    model, outcome = run_exact(FoldAffine(), text)
    assert ops_of(model) == ["Conv"]
    assert outcome.stats == {"folded": body.count("=") - 1}


@pytest.mark.parametrize("body", ["Mul (h, c)", "Add (h, c)", "Sub (c, h)"])
def test_folds_into_a_gemm(body):
    text = f"""g (float[batch, 2] x) => (float[a, b] y)
    <float[2, 2] w = {{1, 2, 3, 4}}, float[1, 2] b = {{5, 6}}, float[2] c = {{2, -3}}>
    {{ h = Gemm <beta: float = 0.5> (x, w, b)  y = {body} }}"""
    assert ops_of(run_exact(FoldAffine(), text)[0]) == ["Gemm"]


def test_an_addition_leaves_the_weight_untouched():
    text = f"""g (float[1, 1, 4, 4] x) => (float[a, b, c, d] y) <{CONV}, float c = {{2}}>
    {{ h = Conv (x, w)  y = Add (h, c) }}"""
    model, _ = run_exact(FoldAffine(), text)
    assert model.graph[0].inputs[1].name == "w"
