"""The dictionary `extra_options` of onnxruntime.quantization: a table of what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import UsageError
from ...passes._core.nearest import did_you_mean
from .notes import Notes

FOLLOWED: dict[str, tuple[Any, ...]] = {
    "ActivationSymmetric": (False,),
    "WeightSymmetric": (True,),
    "EnableSubgraph": (True, False),
    "MatMulConstBOnly": (True, False),
    "AddQDQPairToWeight": (False,),
    "ForceQuantizeNoInputCheck": (False,),
    "DedicatedQDQPair": (False,),
    "CalibTensorRangeSymmetric": (False,),
    "CalibMovingAverage": (False,),
    "SmoothQuant": (True,),
    "SmoothQuantFolding": (True,),
    "UseQDQContribOps": (False,),
    "QDQKeepRemovableActivations": (False,),
    "QDQDisableWeightAdjustForInt32Bias": (False,),
    "QuantizeBias": (True,),
}
"""Options whose values agree with what is done here. Weights are layers' own, in bodies too."""

INSTEAD = {
    "ActivationSymmetric": "the target decides it (tensorrt: symmetric)",
    "ActivationRestrictedAsymmetric": "zero points follow from the ranges",
    "WeightSymmetric": "weights are symmetric",
    "ForceQuantizeNoInputCheck": "an operator runs on integers where its neighbours do",
    "AddQDQPairToWeight": "weights are written as integers",
    "OpTypesToExcludeOutputQuantization": "the target's kernels decide it",
    "DedicatedQDQPair": "readers of one value share a pair",
    "QDQOpTypePerChannelSupportToAxis": "each layer's output channels have their own scales",
    "CalibTensorRangeSymmetric": "the target decides it (tensorrt: symmetric)",
    "CalibStridedMinMax": "all samples are read, without keeping them in memory",
    "CalibMovingAverage": "ranges are those of all samples",
    "CalibMovingAverageConstant": "ranges are those of all samples",
    "CalibMaxIntermediateOutputs": "samples are read one by one, within a fixed memory",
    "SmoothQuant": "activations are evened out where that lowers the error (pass smooth)",
    "SmoothQuantAlpha": "the exponent is chosen for each layer",
    "SmoothQuantFolding": "scales go into the layer before",
    "UseQDQContribOps": "standard operators are written",
    "MinimumRealRange": "ranges are those of the data",
    "QDQKeepRemovableActivations": "activations go into the quantization behind them",
    "QDQDisableWeightAdjustForInt32Bias": "scales of weights fit their int32 bias",
    "QuantizeBias": "biases of integer layers are int32",
    "CalibNumBins": "the histogram's resolution is fixed",
    "CalibNumQuantizedBins": "the histogram's resolution is fixed",
}
"""Behaviour in place of other values of an option."""

REFUSED = {
    "TensorQuantOverrides": (
        "names the types and scales of single tensors, which are chosen here",
        "leave it out; quant(layers=[PATTERN=FORM:bits]) chooses a layer's form and bits",
    ),
}
"""Options without which the result would be another: the problem, and the fix."""

PERCENTILE = "CalibPercentile"


def percentile_of(options: Mapping[str, Any] | None, notes: Notes) -> float | None:
    """The percentile among `extra_options`; what is not followed is noted.

    Errors: UsageError for an option without which the result would be another.
    """
    given = {} if options is None else dict(options)
    percentile = given.pop(PERCENTILE, None)
    for name, value in given.items():
        if name in REFUSED and value:
            problem, fix = REFUSED[name]
            where = f"extra_options[{name!r}]"
            raise UsageError(where, problem, fix)
        _note(name, value, notes)
    if percentile is None:
        return None
    return float(percentile)


def _note(name: str, value: Any, notes: Notes) -> None:
    if value in FOLLOWED.get(name, ()):
        return
    # empty lists and None ask for nothing
    if name in (*INSTEAD, *REFUSED) and not value and value is not False:
        return
    instead = INSTEAD.get(name)
    if instead is None:
        known = [
            *INSTEAD,
            *FOLLOWED,
            *REFUSED,
            PERCENTILE,
        ]
        instead = did_you_mean(
            name,
            known,
            "it is not known here",
        )
    argument = f"extra_options[{name!r}]={value!r}"
    notes.add(argument, instead)
