"""A calibrated context for pass tests: ranges and moments by the smallest means, in process."""

import copy

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_opt.passes._base import HeldBack, NullContext
from onnx_opt.passes._core.context import Difference
from onnx_opt.runtime.body_values import with_body_values
from onnx_opt.runtime.difference import largest_error, largest_loss, unlike
from onnx_opt.runtime.moments import MomentObserver
from onnx_opt.runtime.taps import with_taps


class CalibratedContext(NullContext):
    """Answers `activation_ranges` (min and max), `collect` and `difference` over some feeds."""

    def __init__(self, feeds, target="cpu"):
        super().__init__(target)
        self.feeds = feeds

    def has_data(self):
        return True

    def held_back(self):
        """Every fourth batch judges, as if data were plenty."""
        judging = self.feeds[3::4]
        if not judging:
            return None
        fitting, judges = copy.copy(self), copy.copy(self)
        fitting.feeds = [f for i, f in enumerate(self.feeds) if i % 4 != 3]
        judges.feeds = judging
        return HeldBack(fitting, judges, 1000)

    def collect(self, model, requests, samples):
        named = [
            name for r in requests.values() for name in (r.tensor, r.target) if name
        ]
        tapped = with_taps(with_body_values(model, named), named)
        session = run_session(tapped)
        names = [o.name for o in session.get_outputs()]
        observers = {key: MomentObserver(request) for key, request in requests.items()}
        for feeds in self.feeds:
            values = dict(zip(names, session.run(None, feeds), strict=True)) | feeds
            for key, request in requests.items():
                # of a body
                if request.tensor not in values:
                    continue
                observers[key].update(
                    values[request.tensor],
                    values[request.target] if request.target else None,
                )
        seen = {key: each for key, each in observers.items() if each.count}
        return {key: observer.value() for key, observer in seen.items()}

    def activation_ranges(self, model, names, method, percentile, samples, levels=255):
        tapped = with_taps(with_body_values(model, names), names)
        session = run_session(tapped)
        ranges = {}
        for feeds in self.feeds:
            values = (
                dict(
                    zip(
                        [o.name for o in session.get_outputs()],
                        session.run(None, feeds),
                        strict=True,
                    )
                )
                | feeds
            )
            for name in names:
                # of a body that was not entered
                if not values[name].size:
                    continue
                low, high = ranges.get(name, (np.inf, -np.inf))
                ranges[name] = (
                    min(low, float(values[name].min())),
                    max(high, float(values[name].max())),
                )
        return ranges

    def difference(self, model, other):
        outputs, failures = [], []
        for each in (model, other):
            try:
                session = run_session(each)
                names = [o.name for o in session.get_outputs()]
                outputs.append(
                    [
                        dict(zip(names, session.run(None, feeds), strict=True))
                        for feeds in self.feeds[:2]
                    ]
                )
                failures.append("")
            except Exception as error:  # ONNX Runtime's own types have no common base
                failures.append(str(error).splitlines()[0])
        if not any(failures):
            failures[1] = unlike(*outputs)
        reference_failure, failure = failures
        if any(failures):
            return Difference(np.inf, failure, reference_failure)
        return Difference(largest_error(*outputs), "", "", largest_loss(*outputs))


def batches(shape, count=4, seed=0, name="x", spread=None):
    """Normal feeds; `spread`: a factor for each element of the last axes."""
    random = np.random.default_rng(seed)
    factor = 1 if spread is None else np.asarray(spread, np.float32)
    return [
        {name: (random.normal(0.3, 1, shape) * factor).astype(np.float32)}
        for _ in range(count)
    ]


def run_session(model, optimize=True):
    """A session of the model, an ir.Model or a ModelProto, on one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
