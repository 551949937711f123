"""Trained parameters back into the graph that they came from, in its own types and on its own grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ._dtypes import from_carrier
from ._ops_quant import on_grid
from ._weights import Origin
from .module import TrainableModule


def write_back(module: TrainableModule) -> ir.Model:
    """Put the module's parameters into `module.model`, rounded to the types that the graph has; returns it.

    Pruned zeros are held first. Tied weights stay tied: one value, one tensor.
    """
    module.hold_zeros()
    for name, origin in module.origins.items():
        _put(origin, ir.Tensor(stored(module.get_parameter(name), origin), dtype=origin.dtype, name=origin.name))
    return module.model


def stored(parameter: torch.Tensor, origin: Origin) -> NDArray[Any]:
    """A parameter as the graph stores it."""
    latent = origin.latent
    if latent is None or latent.step == 0:
        return from_carrier(parameter, origin.dtype)
    codes = on_grid(parameter.detach(), latent.low, latent.high, latent.step)
    if latent.pack is not None:
        return latent.pack(np.rint(codes.cpu().numpy()))
    return from_carrier(codes, origin.dtype)


def _put(origin: Origin, tensor: ir.TensorProtocol) -> None:
    producer = origin.value.producer()
    if producer is None:
        origin.value.const_value = tensor
        return
    producer.attributes.clear()
    producer.attributes["value"] = ir.AttrTensor("value", tensor)
