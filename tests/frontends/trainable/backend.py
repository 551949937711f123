"""The trainable module as a backend of onnx's own test suite, and a run of that suite."""

import unittest
import warnings
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.backend.base
import onnx.backend.test
import onnx_ir as ir
import torch
from onnx_opt.frontends.trainable import to_torch
from onnx_opt.frontends.trainable._reference import to_numpy

KINDS = frozenset(
    {
        "OnnxBackendNodeModelTest",
        "OnnxBackendPyTorchConvertedModelTest",
        "OnnxBackendPyTorchOperatorModelTest",
        "OnnxBackendSimpleModelTest",
    }
)
"""All of the suite but the models that it would download."""

NETWORK_OPS = frozenset(
    {
        "Abs",
        "Add",
        "AffineGrid",
        "Attention",
        "AveragePool",
        "BatchNormalization",
        "CausalConvWithState",
        "Celu",
        "Clip",
        "Col2Im",
        "Concat",
        "Conv",
        "ConvTranspose",
        "Cos",
        "CumSum",
        "DeformConv",
        "DepthToSpace",
        "DequantizeLinear",
        "Div",
        "Dropout",
        "Einsum",
        "Elu",
        "Erf",
        "Exp",
        "Expand",
        "Flatten",
        "GRU",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "GridSample",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LRN",
        "LSTM",
        "LayerNormalization",
        "LeakyRelu",
        "LinearAttention",
        "Log",
        "LogSoftmax",
        "LpNormalization",
        "LpPool",
        "MatMul",
        "Max",
        "MaxPool",
        "MaxUnpool",
        "Mean",
        "MeanVarianceNormalization",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "NegativeLogLikelihoodLoss",
        "PRelu",
        "Pad",
        "Pow",
        "RMSNormalization",
        "RNN",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Relu",
        "Reshape",
        "Resize",
        "RoiAlign",
        "RotaryEmbedding",
        "STFT",
        "ScatterElements",
        "ScatterND",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sin",
        "Slice",
        "Softmax",
        "SoftmaxCrossEntropyLoss",
        "Softplus",
        "Softsign",
        "SpaceToDepth",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "SwiGLU",
        "Swish",
        "Tanh",
        "TensorScatter",
        "ThresholdedRelu",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Upsample",
        "Where",
    }
)
"""Ops through which networks train; their cases of one node with float outputs are counted
apart.
"""

FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}


class TorchModel(onnx.backend.base.BackendRep):
    """One model; inputs are given in the order of the graph."""

    def __init__(self, model):
        super().__init__()
        self.module = to_torch(ir.from_proto(model))

    def run(self, inputs, **_):
        with torch.no_grad():
            outputs = self.module(*inputs)
        outputs = (outputs,) if len(self.module.provenance.outputs) == 1 else outputs
        return [
            _bare(to_numpy(o, d))
            for o, d in zip(
                outputs, self.module.provenance.outputs.values(), strict=True
            )
        ]


def _bare(value):
    return value if isinstance(value, list) or value is None else np.asarray(value)


class TorchBackend(onnx.backend.base.Backend):
    """`onnx.backend.test` calls `prepare` for every case; what it made last is kept for the
    count.
    """

    proto = None
    model = None

    @classmethod
    def prepare(cls, model, device="CPU", **_):
        cls.proto, cls.model = model, None
        cls.model = TorchModel(model)
        return cls.model

    @classmethod
    def supports_device(cls, device):
        return device == "CPU"


@dataclass
class Count:
    """Cases of the suite: names that passed; failed names with the reason; how many there are of
    some kinds.
    """

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    by_reference: int = 0
    network: int = 0
    network_passed: int = 0


class Outcomes(unittest.TestResult):
    """Counts instead of printing."""

    def __init__(self):
        super().__init__()
        self.count = Count()

    def addSuccess(self, test):  # noqa: N802 - unittest's name
        self.count.passed.append(_case(test))
        self.count.by_reference += bool(TorchBackend.model.module.provenance.detached)
        self.count.network += _of_network(TorchBackend.proto)
        self.count.network_passed += _of_network(TorchBackend.proto)

    def addError(self, test, err):  # noqa: N802 - unittest's name
        text = str(err[1]).strip().splitlines() or [""]
        self.count.failed[_case(test)] = (
            f"{err[0].__name__}: {' '.join(text[:6])[:160]}"
        )
        self.count.network += _of_network(TorchBackend.proto)

    addFailure = addError  # noqa: N815 - unittest's name


def _case(test):
    return test._testMethodName.removesuffix("_cpu")


def _of_network(proto):
    nodes, outputs = proto.graph.node, proto.graph.output
    single = len(nodes) == 1 and nodes[0].op_type in NETWORK_OPS
    return single and all(
        output.type.tensor_type.elem_type in FLOATS for output in outputs
    )


def run_suite(pattern=None):
    """The count of all cases, or of those whose name matches."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = onnx.backend.test.runner.Runner(TorchBackend, __name__)
        if pattern:
            runner.include(pattern)
        outcomes = Outcomes()
        for name, cases in runner.test_cases.items():
            if name in KINDS:
                unittest.defaultTestLoader.loadTestsFromTestCase(cases).run(outcomes)
    return outcomes.count
