"""Trained parameters back into the graph that they came from, in its own types and on its own
grids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ._biases import tie_biases
from ._dtypes import from_carrier
from ._ops.quant import on_grid, within_limit
from ._weights import Origin, setting_uses, stored_tensor
from .module import TrainableModule


def write_back(module: TrainableModule) -> ir.Model:
    """Put the module's parameters into `module.model`, rounded to the types that the graph has;
    returns it.

    Zeros are held and latents clamped first. Tied weights stay tied: one value, one tensor.
    """
    module.constrain()
    for name, origin in module.origins.items():
        array = stored(module.get_parameter(name), origin)
        if not np.array_equal(array, stored_tensor(origin.value).numpy()):
            if origin.shared:
                _keep_settings(origin.value)
            _put(origin, ir.Tensor(array, dtype=origin.dtype, name=origin.name))
    if any(
        origin.latent is None and origin.reach > 1 for origin in module.origins.values()
    ):
        tie_biases(module.model)
    return module.model


def stored(parameter: torch.Tensor, origin: Origin) -> NDArray[Any]:
    """A parameter as the graph stores it."""
    latent = origin.latent
    if latent is None or latent.step == 0:
        return from_carrier(parameter, origin.dtype)
    exact = parameter.detach()
    codes = on_grid(exact, latent.low, latent.high, latent.step)
    if latent.limit is not None:
        codes = within_limit(exact, codes, latent.limit)
    if latent.pack is not None:
        return latent.pack(np.rint(codes.cpu().numpy()))
    return from_carrier(codes, origin.dtype)


def _keep_settings(value: ir.Value) -> None:
    """Give the ops that read a shared weight as a setting a copy of their own, as it was."""
    uses, graph = setting_uses(value), value.graph
    if not uses or not isinstance(graph, ir.Graph):
        return
    tensor, name = stored_tensor(value), f"{value.name}_fixed"
    while name in graph.initializers:
        name += "_"
    copy = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
    )
    copy.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    graph.register_initializer(copy)
    for node, index in uses:
        node.replace_input_with(index, copy)


def _put(origin: Origin, tensor: ir.TensorProtocol) -> None:
    producer = origin.value.producer()
    if producer is None:
        origin.value.const_value = tensor
        return
    producer.attributes.clear()
    producer.attributes["value"] = ir.AttrTensor("value", tensor)
