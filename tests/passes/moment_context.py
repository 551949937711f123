"""A context for pass tests that collects moments in this process."""

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_opt.passes._base import NullContext
from onnx_opt.runtime.context import with_taps
from onnx_opt.runtime.moments import MomentObserver


class MomentContext(NullContext):
    """Answers `collect` over a list of feeds."""

    def __init__(self, feeds):
        super().__init__()
        self.feeds = feeds

    def has_data(self):
        return True

    def collect(self, model, requests, samples):
        session = run_session(with_taps(model, [r.tensor for r in requests.values()]))
        names = [o.name for o in session.get_outputs()]
        observers = {key: MomentObserver(r.tensor, dataclasses.asdict(r)) for key, r in requests.items()}
        for feeds in self.feeds:
            values = dict(zip(names, session.run(None, feeds), strict=True)) | feeds
            for key, request in requests.items():
                observers[key].update(values[request.tensor])
        return {key: observer.value() for key, observer in observers.items()}


def batches(shape, count=4, seed=0, name="x", spread=None):
    """Normal feeds; `spread`: a factor for each element of the last axes."""
    random = np.random.default_rng(seed)
    factor = 1 if spread is None else np.asarray(spread, np.float32)
    return [{name: (random.normal(0.3, 1, shape) * factor).astype(np.float32)} for _ in range(count)]


def run_session(model, optimize=True):
    """A session of the model on one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
