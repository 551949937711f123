"""Contexts for pass tests: calibration in this process, by the smallest means."""

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._quant import rules as quant_rules


class CalibratedContext(NullContext):
    """Answers `activation_ranges` with min and max over a list of feeds."""

    def __init__(self, feeds, target="cpu"):
        super().__init__(target)
        self.feeds = feeds

    def has_data(self):
        return True

    def activation_ranges(self, model, names, method, percentile, samples):
        tapped = model.clone()
        present = {v.name for v in tapped.graph.outputs}
        for node in tapped.graph:
            tapped.graph.outputs.extend(v for v in node.outputs if v.name in names and v.name not in present)
        session = run_session(tapped)
        ranges = {}
        for feeds in self.feeds:
            values = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True)) | feeds
            for name in names:
                low, high = ranges.get(name, (np.inf, -np.inf))
                ranges[name] = (min(low, float(values[name].min())), max(high, float(values[name].max())))
        return ranges


def run_session(model, optimize=True):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def calibrated():
    return CalibratedContext


@pytest.fixture(autouse=True)
def layers_of_any_size(request, monkeypatch):
    """Test layers are tiny; the rules that leave tiny ones float have a test of their own."""
    if request.module.__name__.startswith("test_quant") and "the_rules_of_size" not in request.keywords:
        rules = dataclasses.replace(quant_rules.TARGETS["cpu"], min_weights=0, min_image_channels=0)
        monkeypatch.setitem(quant_rules.TARGETS, "cpu", rules)
