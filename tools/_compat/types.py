"""Types, formats and methods of onnxruntime.quantization, as options of the pass `quant`.

They are known by their names, so that members of its enumerations and plain texts are both taken.
"""

from __future__ import annotations

from typing import Any

from ... import UsageError
from ...passes._core.nearest import did_you_mean
from .notes import Notes

WEIGHT_BITS = {"QInt8": 8, "QUInt8": 8, "QInt4": 4, "QUInt4": 4}
ACTIVATION_FORMS = {
    "QInt8": "int8",
    "QUInt8": "int8",
    "QInt16": "int16",
    "QUInt16": "int16",
}
CALIBRATION = {"MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile"}
FORMATS = {"QDQ": "QDQ", "QOperator": "QOperator"}

_UNSIGNED_WEIGHTS = ("QUInt8", "QUInt4")


def weight_bits(given: Any, notes: Notes) -> int:
    """Bits of weights for a `weight_type`; None: 8. Errors: UsageError."""
    if given is None:
        return 8
    name = _member("weight_type", given, WEIGHT_BITS)
    if name in _UNSIGNED_WEIGHTS:
        notes.add(
            f"weight_type={name}",
            "weights are signed, of as many bits: CPUs are faster",
        )
    return WEIGHT_BITS[name]


def activation_form(given: Any) -> str:
    """Form of `quant` for an `activation_type`; None: int8. Errors: UsageError."""
    if given is None:
        return "int8"
    return ACTIVATION_FORMS[_member("activation_type", given, ACTIVATION_FORMS)]


def calibration_method(given: Any) -> str:
    """Method of `quant` for a `calibrate_method`; None: its own choice. Errors: UsageError."""
    if given is None:
        return "auto"
    return CALIBRATION[_member("calibrate_method", given, CALIBRATION)]


def check_format(given: Any, notes: Notes) -> None:
    """Note a `quant_format` that is not written. Errors: UsageError."""
    if given is None:
        return
    if _member("quant_format", given, FORMATS) != "QDQ":
        notes.add(
            "quant_format=QOperator",
            "QDQ is written, of which ONNX Runtime makes the same kernels",
        )


def _member(argument: str, given: Any, known: dict[str, Any]) -> str:
    name = getattr(given, "name", given)
    if name not in known:
        raise UsageError(
            argument,
            f"{name} has no counterpart here",
            did_you_mean(str(name), known),
        )
    return str(name)
