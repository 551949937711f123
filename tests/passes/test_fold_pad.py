"""fold-pad: padding that a convolution cannot do, first; then what it can."""

import pytest
from exactness import ops_of, run_exact
from onnx_opt.passes.fold_pad import FoldPad

PADS = "int64[8] p = {0, 0, 1, 2, 0, 0, 3, 0}"

STAYS = {
    "reflection": (PADS, 'h = Pad <mode = "reflect"> (x, p)  y = Conv (h, w)'),
    "another value": (
        PADS + ", float one = {1}",
        "h = Pad (x, p, one)  y = Conv (h, w)",
    ),
    "channels": (
        "int64[8] p = {0, 1, 0, 0, 0, 0, 0, 0}",
        "h = Pad (x, p)  y = Conv (h, v)",
    ),
    "the batch": (
        "int64[8] p = {1, 0, 0, 0, 0, 0, 0, 0}",
        "h = Pad (x, p)  y = Conv (h, w)",
    ),
    "cropping": (
        "int64[8] p = {0, 0, -1, 0, 0, 0, 0, 0}",
        "h = Pad (x, p)  y = Conv (h, w)",
    ),
    "another user": (
        PADS,
        "h = Pad (x, p)  i = Conv (h, w)  j = ReduceSum (h)  y = Add (i, j)",
    ),
    "automatic padding": (
        PADS,
        'h = Pad (x, p)  y = Conv <auto_pad = "SAME_UPPER"> (h, w)',
    ),
}
WEIGHTS = "float[1, 1, 2, 2] w = {1, 2, 3, 4}, float[1, 2, 1, 1] v = {1, 2}"


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    constants, body = STAYS[name]
    text = f"g (float[2, 1, 5, 5] x) => (float[a, b, c, d] y) <{WEIGHTS}, {constants}> {{ {body} }}"
    model, outcome = run_exact(FoldPad(), text)
    assert outcome.changed == 0
    assert len(outcome.declined) == 1
    assert "Pad" in ops_of(model)


FOLDS = {
    "all axes": (PADS, "h = Pad (x, p)  y = Conv (h, w)", [1, 2, 3, 0]),
    "a zero given": (
        PADS + ", float z = {0}",
        "h = Pad (x, p, z)  y = Conv (h, w)",
        [1, 2, 3, 0],
    ),
    "on top of its own": (
        PADS,
        "h = Pad (x, p)  y = Conv <pads = [1, 1, 1, 1]> (h, w)",
        [2, 3, 4, 1],
    ),
    "some axes": (
        "int64[2] p = {1, 2}, float z = {0}, int64[1] a = {-1}",
        "h = Pad (x, p, z, a)  y = Conv (h, w)",
        [0, 1, 0, 2],
    ),
    "no automatic padding": (
        PADS,
        'h = Pad (x, p)  y = Conv <auto_pad = "VALID"> (h, w)',
        [1, 2, 3, 0],
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name):
    constants, body, pads = FOLDS[name]
    text = (
        f"g (float[batch, 1, 5, 5] x) => (float[a, b, c, d] y) <{WEIGHTS}, {constants}> "
        f"{{ {body} }}"
    )
    model, outcome = run_exact(FoldPad(), text)
    assert ops_of(model) == ["Conv"]
    assert list(model.graph[0].attributes.get_ints("pads")) == pads
    assert outcome.stats == {"folded": 1}
