"""Configuration objects of onnxruntime.quantization, as calls of its functions.

They are known by the names of their classes, so that subclasses are taken, too.
"""

from __future__ import annotations

from typing import Any

from ... import UsageError

_OF_BOTH = (
    "weight_type",
    "op_types_to_quantize",
    "nodes_to_quantize",
    "nodes_to_exclude",
    "per_channel",
    "reduce_range",
    "use_external_data_format",
    "extra_options",
)
_OF_STATIC = (
    "calibration_data_reader",
    "calibrate_method",
    "quant_format",
    "activation_type",
    "calibration_providers",
)
CALLS = {
    "StaticQuantConfig": ("quantize_static", (*_OF_STATIC, *_OF_BOTH)),
    "DynamicQuantConfig": ("quantize_dynamic", _OF_BOTH),
}
"""Function for a class, and its arguments, which are attributes of the configuration."""

INSTEAD = {
    "WeightOnlyQuantConfig": 'optimize(model, "quant(blocked)") stores weights of MatMul in 4 bits',
}
_ANY = "give a StaticQuantConfig or a DynamicQuantConfig"


def call_of(config: Any) -> tuple[str, dict[str, Any]]:
    """Name of the function for a configuration, and its arguments. Errors: UsageError."""
    names = [base.__name__ for base in type(config).__mro__]
    for name in names:
        if name in CALLS:
            function, fields = CALLS[name]
            # older releases lack some
            found = [field for field in fields if hasattr(config, field)]
            return function, {field: getattr(config, field) for field in found}
    fixes = [INSTEAD[name] for name in names if name in INSTEAD]
    raise UsageError(
        "quant_config", f"{names[0]} has no counterpart here", *(fixes or [_ANY])
    )
