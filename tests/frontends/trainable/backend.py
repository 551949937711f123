"""The trainable module as a backend of onnx's own test suite, and a run of that suite."""

import unittest
import warnings

import numpy as np
import onnx
import onnx.backend.base
import onnx.backend.test
import onnx_ir as ir
import torch
from onnx_opt.frontends.trainable import to_torch
from onnx_opt.frontends.trainable._reference import to_numpy

KINDS = {
    "OnnxBackendNodeModelTest": "node",
    "OnnxBackendPyTorchConvertedModelTest": "pytorch-converted",
    "OnnxBackendPyTorchOperatorModelTest": "pytorch-operator",
    "OnnxBackendSimpleModelTest": "simple",
}


class TorchModel(onnx.backend.base.BackendRep):
    """One model; inputs are given in the order of the graph."""

    def __init__(self, model, qat):
        super().__init__()
        self.module = to_torch(ir.from_proto(model), qat=qat)

    def run(self, inputs, **_):
        with torch.no_grad():
            outputs = self.module(*inputs)
        outputs = (outputs,) if len(self.module.output_names) == 1 else outputs
        return [_bare(to_numpy(o, d)) for o, d in zip(outputs, self.module.output_dtypes, strict=True)]


def _bare(value):
    return value if isinstance(value, list) or value is None else np.asarray(value)


class TorchBackend(onnx.backend.base.Backend):
    """`onnx.backend.test` calls `prepare` for every case."""

    qat = "off"

    @classmethod
    def prepare(cls, model, device="CPU", **_):
        return TorchModel(model, cls.qat)

    @classmethod
    def supports_device(cls, device):
        return device == "CPU"


class Outcomes(unittest.TestResult):
    """Failures as {case: first line of the reason}."""

    def __init__(self):
        super().__init__()
        self.passed, self.failed = [], {}

    def addSuccess(self, test):  # noqa: N802 - unittest's name
        self.passed.append(case_of(test))

    def addError(self, test, err):  # noqa: N802
        text = str(err[1]).strip().splitlines() or [""]
        self.failed[case_of(test)] = f"{err[0].__name__}: {' '.join(text[:6])[:160]}"

    addFailure = addError  # noqa: N815


def case_of(test):
    return test._testMethodName.removesuffix("_cpu")


def run_suite(pattern=None):
    """(passed names, {failed name: reason}) of all cases, or of those whose name matches."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = onnx.backend.test.runner.Runner(TorchBackend, __name__)
        if pattern:
            runner.include(pattern)
        outcomes = Outcomes()
        for name, cases in runner.test_cases.items():
            if name in KINDS:
                unittest.defaultTestLoader.loadTestsFromTestCase(cases).run(outcomes)
    return outcomes.passed, outcomes.failed
