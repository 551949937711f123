"""Trained parameters written back into the original graph, in its types and on its grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...passes._core.graph import Names
from ...passes._core.half_precision import (
    SMALLEST,
    are_halves,
    on_halves,
    scales_on_halves,
)
from ._biases import tie_biases
from ._constants import stored_tensor
from ._dtypes import from_carrier
from ._rounding import on_grid, within_limit
from ._weights import Origin, setting_uses
from .module import TrainableModule, palette_names


def write_back(module: TrainableModule) -> ir.Model:
    """Put the module's parameters into `module.model`, rounded to the types of the graph.

    Returns that model. Zeros are held and latents clamped first. Tied weights stay tied: one value,
    one tensor.
    """
    module.constrain()
    names = Names(module.model)
    for name, origin in module.origins.items():
        if origin.is_palette:
            continue
        array = stored(module, name)
        if np.array_equal(array, stored_tensor(origin.value).numpy()):
            continue
        if origin.shared:
            _keep_settings(origin.value, names)
        tensor = ir.Tensor(array, dtype=origin.dtype, name=origin.name)
        _put(origin, tensor)
    if any(_is_scale(origin) for origin in module.origins.values()):
        tie_biases(module.model, names)
    return module.model


def _is_scale(origin: Origin) -> bool:
    """Return whether a parameter is a scale of quantization."""
    return origin.latent is None and origin.reach > 1


def stored(module: TrainableModule, name: str) -> NDArray[Any]:
    """Return a parameter as the graph stores it."""
    parameter = module.get_parameter(name)
    origin = module.origins[name]
    latent = origin.latent
    if latent is None or latent.step == 0:
        trained = from_carrier(parameter, origin.dtype)
        return _as_precise(trained, origin.value)
    exact = parameter.detach()
    codes = on_grid(
        exact,
        latent.low,
        latent.high,
        latent.step,
    )
    if latent.palette is not None:
        shared = palette_names(module.origins)[name]
        values = module.get_parameter(shared).detach()
        codes = latent.palette.rounded(exact, values)
    elif latent.limit is not None:
        codes = within_limit(exact, codes, latent.limit)
    if latent.pack is not None:
        return latent.pack(np.rint(codes.cpu().numpy()))
    return from_carrier(codes, origin.dtype)


def _as_precise(trained: NDArray[Any], value: ir.Value) -> NDArray[Any]:
    """A trained scale or bias of few-bit weights, as precise as it was: two bytes hold it."""
    former = stored_tensor(value)
    if former.dtype != ir.DataType.FLOAT or not _belongs_to_codes(value):
        return trained
    if not are_halves(former.numpy()):
        return trained
    if any(node.op_type == "DequantizeLinear" for node, _ in value.uses()):
        return scales_on_halves(trained)
    return on_halves(trained, SMALLEST)


def _belongs_to_codes(value: ir.Value) -> bool:
    """True for scales of dequantized weights, and for biases of the layers that read these."""
    uses = value.uses()
    return bool(uses) and all(_is_beside_codes(node, index) for node, index in uses)


def _is_beside_codes(node: ir.Node, index: int) -> bool:
    """True if a node reads a scale at `index`, or the bias beside dequantized weights."""
    if node.op_type == "DequantizeLinear":
        return index == 1
    weight = node.inputs[1] if node.op_type in ("Conv", "Gemm") and index == 2 else None
    producer = None if weight is None else weight.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _keep_settings(value: ir.Value, names: Names) -> None:
    """Give the ops that read a shared weight as a setting a copy of their own, as it was."""
    uses = setting_uses(value)
    graph = value.graph
    # once they have their copy, a later call finds no setting that reads the weight
    if not uses or not isinstance(graph, ir.Graph):
        return
    tensor = stored_tensor(value)
    name = names.fresh(f"{value.name}_fixed")
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
    """Store a tensor where the constant is: as initializer, or as attribute of its node."""
    producer = origin.value.producer()
    if producer is None:
        origin.value.const_value = tensor
        return
    # the node may have held `value_floats`, and may hold one attribute only
    producer.attributes.clear()
    producer.attributes["value"] = ir.AttrTensor("value", tensor)
