"""Shared parts of these tests: models from text, ONNX Runtime's answer, numeric gradients."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from onnx_opt.frontends.trainable import to_torch
from sample_models import model_from

torch.set_num_threads(1)


def ir_model(text, seed=0):
    return ir.from_proto(model_from(text, seed))


def ort_run(model, feeds, optimize=True):
    """ONNX Runtime's outputs of an ir.Model, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(
        data, options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def difference(module, feeds, optimize=True):
    """Largest difference between the module and ONNX Runtime on its model, in units of the largest
    value if over 1.
    """
    expected = ort_run(module.model, feeds, optimize)
    got = module.run(feeds)
    return max(
        float(
            np.abs(got[n].detach().double().numpy() - e).max(initial=0)
            / max(np.abs(e).max(initial=0), 1)
        )
        for n, e in zip(module.provenance.outputs, expected, strict=True)
    )


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gradient_error(text, feeds, names=None, step=1e-4, seed=0, **options):
    """Largest relative error of gradients against central differences, in double precision, over
    all parameters.
    """
    module = to_torch(ir_model(text, seed), **options).double()
    inputs = {
        n: torch.from_numpy(v).double()
        if v.dtype == np.float32
        else torch.from_numpy(v)
        for n, v in feeds.items()
    }
    module._accept = lambda value, dtype: value

    def loss():
        outputs = module.run(inputs).values()
        return sum(
            (o.double() * torch.linspace(0.5, 1.5, o.numel()).reshape(o.shape)).sum()
            for o in outputs
        )

    loss().backward()
    worst = 0.0
    for name, parameter in module.named_parameters():
        if names and name not in names:
            continue
        values, given = parameter.data, parameter.grad
        for i in np.random.default_rng(0).permutation(values.numel())[:6]:
            # by indices, since a layout with channels last has no flat view
            place = np.unravel_index(i, tuple(values.shape))
            kept = values[place].item()
            with torch.no_grad():
                values[place] = kept + step
                above = loss().item()
                values[place] = kept - step
                below = loss().item()
                values[place] = kept
            numeric = (above - below) / (2 * step)
            worst = max(
                worst, abs(numeric - given[place].item()) / max(abs(numeric), 1.0)
            )
    return worst


QDQ = """
<ir_version: 10, opset_import: ["" : 21]>
qdq (float[{x}] x) => (float[{y}] y)
<float xs = {{0.125}}, uint8 xz = {{128}}, int8[{w}] w_q, float[4] ws = {{0.5, 0.25, 0.5, 1.0}},
 int8[4] wz = {{0, 0, 0, 0}}>
{{
    xq = QuantizeLinear (x, xs, xz)
    xd = DequantizeLinear (xq, xs, xz)
    wd = DequantizeLinear <axis = {axis}> (w_q, ws, wz)
    y = {op} (xd, wd)
}}
"""


def conv_of_codes(channels):
    """Text of a Conv 3x3 from so many channels to 4, on images of 5x5, with int8 weights."""
    dims = {"x": f"2, {channels}, 5, 5", "w": f"4, {channels}, 3, 3", "y": "2, 4, 3, 3"}
    return QDQ.format(op="Conv", axis=0, **dims)


def matmul_of_codes(width):
    """Text of a MatMul from so many inputs to 4, with int8 weights."""
    dims = {"x": f"2, {width}", "w": f"{width}, 4", "y": "2, 4"}
    return QDQ.format(op="MatMul", axis=1, **dims)
