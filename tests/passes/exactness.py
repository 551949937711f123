"""Run an exact pass on a model given as text and prove, with ONNX Runtime, that outputs and
interface are equal.
"""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import parser
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.graph import all_nodes
from onnx_opt.passes._core.normalize import normalize

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
KINDS = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


def model_of(text):
    """A model from text; the usual header is put before a bare graph."""
    proto = parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)
    return ir.from_proto(proto)


def run_exact(pass_, text, feeds=None, batch=3):
    """Normalize, run the pass, prove equality; gives (model, outcome). `feeds`: some inputs, the
    rest is random.
    """
    model = model_of(text)
    normalize(model)
    before = ir.to_proto(model)
    outcome = pass_.run(model, NullContext())
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert_equal_outputs(before, after, feeds or {}, batch)
    once = after.SerializeToString(deterministic=True)
    assert pass_.run(model, NullContext()).changed == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once
    return model, outcome


def assert_equal_outputs(before, after, given, batch, rtol=1e-5, atol=1e-6):
    sessions = [_session(proto) for proto in (before, after)]
    overridable = sessions[0].get_overridable_initializers()
    for seed in range(2):
        feeds = _feeds(
            [*sessions[0].get_inputs(), *(overridable if seed else [])],
            np.random.default_rng(seed),
            batch,
        )
        wanted, got = (session.run(None, feeds | given) for session in sessions)
        for a, b in zip(wanted, got, strict=True):
            assert np.shape(a) == np.shape(b)
            assert_close(b, a, rtol, atol)


def assert_close(got, wanted, rtol=1e-5, atol=1e-6):
    """Equal to float noise; `atol` in units of the largest value, as sums that cancel err by what
    they are sums of.
    """
    largest = (
        np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
        if np.issubdtype(wanted.dtype, np.floating)
        else 0
    )
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol * float(largest))


def _session(proto):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _feeds(inputs, random, batch):
    feeds = {}
    for value in inputs:
        shape = [d if isinstance(d, int) else batch for d in value.shape]
        feeds[value.name] = np.asarray(random.normal(0, 2, shape)).astype(
            KINDS[value.type]
        )
    return feeds


def ops_of(model):
    """Op types of all graphs in order."""
    return [node.op_type for node in all_nodes(model)]
