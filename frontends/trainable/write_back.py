"""Trained parameters back into the graph that they came from, in its own types."""

from __future__ import annotations

import onnx_ir as ir

from ._dtypes import from_carrier
from ._weights import Origin
from .module import TrainableModule


def write_back(module: TrainableModule) -> ir.Model:
    """Put the module's parameters into `module.model`, rounded to the types that the graph has; returns it."""
    for name, origin in module.origins.items():
        array = from_carrier(module.get_parameter(name), origin.dtype)
        _put(origin, ir.Tensor(array, dtype=origin.dtype, name=origin.name))
    return module.model


def _put(origin: Origin, tensor: ir.TensorProtocol) -> None:
    producer = origin.value.producer()
    if producer is None:
        origin.value.const_value = tensor
        return
    producer.attributes.clear()
    producer.attributes["value"] = ir.AttrTensor("value", tensor)
