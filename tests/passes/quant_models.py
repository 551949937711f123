"""Small nets and the ways of looking at what `quant` made of them, shared by its tests."""

import collections

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from integer_graphs import run_integers
from integer_kernels import ARITHMETICS
from onnx_opt.passes._core.normalize import normalize

RNG = np.random.default_rng(7)


def normal(*shape, scale=1.0):
    return RNG.normal(size=shape).astype(np.float32) * np.float32(scale)


def seeded_normal(*shape, scale=1.0, seed=0):
    """Weights that do not depend on what other tests drew."""
    random = np.random.default_rng((seed, *shape))
    return (scale * random.normal(size=shape)).astype(np.float32)


WIDE = """
<ir_version: 8, opset_import: ["" : 17]>
wide (float[N, 4, 9, 9] x) => (float[N, 4] y)
{
    a = Conv (x, w1)  ar = Relu (a)
    m = Conv (ar, w2, b2)  mr = Relu (m)
    n = Conv (mr, w3)  nr = Relu (n)
    p = GlobalAveragePool (nr)  f = Flatten (p)  y = Gemm <transB = 1> (f, w4)
}
"""
"""Three convolutions and a Gemm, wide enough for codes of few bits."""


def codes_in(model):
    """Weights of layers: codes by the name of the float weight."""
    return {
        value.name.removesuffix("_q"): value.const_value.numpy()
        for value in model.graph.initializers.values()
        if value.name.endswith("_q")
    }


def model_of(text, **weights):
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(a, n) for n, a in weights.items()
    )
    model = ir.from_proto(proto)
    normalize(model)
    return model


def session(model, optimize=True, saved=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if saved:
        options.optimized_model_filepath = str(saved)
    if not optimize:
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def outputs(model, feeds, optimize=True):
    return session(model, optimize).run(None, feeds)[0]


def everywhere(model, feeds):
    """The first output by this CPU's kernels, and by models of the kernels of either class of
    CPU.
    """
    return [
        outputs(model, feeds),
        *(run_integers(model, feeds, arithmetic)[0] for arithmetic in ARITHMETICS),
    ]


def kernels(model, folder):
    """Number of nodes of each type that ONNX Runtime runs."""
    session(model, saved=folder / "optimized.onnx")
    return collections.Counter(
        n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node
    )


def ops(model):
    return collections.Counter(n.op_type for n in model.graph.all_nodes())


def initial(model, name):
    return model.graph.initializers[name].const_value.numpy()


def grid(model, name):
    """(scale, zero point): of the Q that reads the value called `name`, or of what reads the codes
    stored under it.
    """
    quantizers = {
        n.inputs[0].name: n for n in model.graph if n.op_type == "QuantizeLinear"
    }
    node = quantizers.get(name)
    if node is None:
        value = model.graph.initializers[name]
        while (node := value.uses()[0].node).op_type not in (
            "DequantizeLinear",
            "Mul",
        ) or not floats(node.inputs[1]):
            value = node.outputs[0]
    return [value.const_value.numpy() for value in node.inputs[1:]]


def floats(value):
    return (
        value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
    )


def dequantized(model, name):
    """The name under which the value called `name` comes out of its Q and DQ."""
    (quantizer,) = [
        n
        for n in model.graph
        if n.op_type == "QuantizeLinear" and n.inputs[0].name == name
    ]
    return quantizer.outputs[0].uses()[0].node.outputs[0].name


def sqnr(reference, got):
    reference = reference.astype(np.float64)
    return 10 * np.log10(
        (reference**2).sum() / max(((reference - got) ** 2).sum(), 1e-300)
    )


CHAIN = """
<ir_version: 10, opset_import: ["" : 17]>
chain (float[N, 3, 9, 9] x) => (float[N, 4] y)
{
    a = Conv (x, w1, b1)  ar = Relu (a)
    m = Conv (ar, w2, b2) mr = Relu (m)
    p = GlobalAveragePool (mr)  f = Flatten (p)  y = Gemm <transB = 1> (f, w3, b3)
}
"""
CHAIN_WEIGHTS = {
    "w1": normal(8, 3, 3, 3),
    "b1": normal(8),
    "w2": normal(7, 8, 3, 3),
    "b2": normal(7),
    "w3": normal(4, 7),
    "b3": normal(4),
}
FEEDS = {"x": normal(4, 3, 9, 9)}


def chain(**other):
    """Conv 3->8, conv 8->7 (504 weights: no multiple of 5), gemm 7->4."""
    return model_of(CHAIN, **{**CHAIN_WEIGHTS, **other})
