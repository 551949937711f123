"""Shape arithmetic outside of tensors, element types, half precision, devices of inputs, and life
without torch.
"""

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_opt import UsageError
from onnx_opt.frontends.trainable import to_torch, write_back
from sample_models import MLP
from trainable_models import difference, ir_model, normal, ort_run

SHAPES = """
<ir_version: 10, opset_import: ["" : 21]>
shapes (float[n, 3, h, w] x) => (float[a, b, c] y, int64[3] dims, int64 count)
<int64 zero = {0}, int64[1] first = {0}, int64[1] minus = {-1}, int64[2] last = {2, 3},
    int64 two = {2}>
{
    s = Shape (x)
    n = Gather (s, first)
    hw = Gather (s, last)
    area = ReduceProd <keepdims = 1> (hw)
    three = Shape <start = 1, end = 2> (x)
    wanted = Concat <axis = 0> (n, three, area)
    isminus = Equal (wanted, minus)
    dims = Where (isminus, minus, wanted)
    y = Reshape (x, dims)
    h0 = Gather (hw, zero)
    half = Div (h0, two)
    f = Cast <to = 1> (half)
    g = Floor (f)
    count = Cast <to = 7> (g)
}
"""

ROWS = """
<ir_version: 10, opset_import: ["" : 21]>
rows (float[n, 4] x) => (float[n, 4] y)
<int64 zero = {0}, int64 one = {1}, int64[1] axis = {0}, float[4] w>
{
    s = Shape (x)
    n = Gather (s, zero)
    r = Range (zero, n, one)
    f = Cast <to = 1> (r)
    u = Unsqueeze (f, axis)
    t = Transpose (u)
    m = Mul (x, w)
    y = Add (m, t)
}
"""


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 3, 7, 1), (5, 3, 2, 2)])
def test_shapes_are_python_numbers_and_change_from_call_to_call(shape):
    module = to_torch(ir_model(SHAPES))
    assert difference(module, {"x": normal(*shape)}) == 0.0
    assert "to_host" not in module.provenance.source
    assert module.run({"x": normal(*shape)})["count"].item() == shape[2] // 2


@pytest.mark.parametrize(("text", "shape"), [(SHAPES, (2, 3, 4, 6)), (ROWS, (3, 4))])
def test_dynamic_shapes_compile_to_one_graph(text, shape):
    module = to_torch(ir_model(text))
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    for rows in (shape[0], shape[0] + 3):
        x = torch.from_numpy(normal(rows, *shape[1:]))
        got, expected = compiled(x), module(x)
        for one, other in zip(
            got if isinstance(got, tuple) else [got],
            expected if isinstance(expected, tuple) else [expected],
            strict=True,
        ):
            assert torch.equal(one, other)


def test_half_precision_trains_in_float32_and_goes_back_in_half():
    model = ir_model(MLP.replace("float[", "float16["))
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(
            normal(*value.shape).astype(np.float16), name=value.name
        )
    module = to_torch(model)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    x = normal(2, 8).astype(np.float16)
    with torch.no_grad():
        module.w1.add_(1e-5)
    write_back(module)
    stored = model.graph.initializers["w1"].const_value
    assert stored.dtype == ir.DataType.FLOAT16
    assert np.abs(module(x).detach().numpy() - ort_run(model, {"x": x})[0]).max() < 0.02


@pytest.mark.parametrize(
    ("feeds", "problem"), [({}, "'x' is not given"), ({"x": 1, "z": 1}, "no input 'z'")]
)
def test_wrong_feeds_are_refused(feeds, problem):
    with pytest.raises(UsageError, match=problem):
        to_torch(ir_model(MLP)).run(feeds)


def test_inputs_may_be_arrays_or_tensors_by_place_or_name():
    module, x = to_torch(ir_model(MLP)), normal(2, 8)
    expected = module(torch.from_numpy(x))
    for got in (
        module(x),
        module(x=x),
        module(torch.from_numpy(x).double()),
        module.run({"x": x})["y"],
    ):
        assert torch.equal(got, expected)


def test_a_module_moves_as_a_whole():
    module = to_torch(ir_model(SHAPES)).to("meta")
    y, dims, count = module(torch.empty(2, 3, 4, 6, device="meta"))
    assert (y.shape, y.device.type, dims.device.type, count.device.type) == (
        (2, 3, 24),
        "meta",
        "meta",
        "meta",
    )


def test_without_torch_everything_else_works_and_this_says_how_to_get_it():
    code = """
import sys
sys.modules["torch"] = None
import onnx_opt, onnx_opt.tools.cli, onnx_opt.frontends.onnx_file, onnx_opt.passes.quant
try:
    import onnx_opt.frontends.trainable
except onnx_opt.UsageError as error:
    print(error.where, "|", error.fix)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "torch | pip install 'onnx-opt[torch]'"
