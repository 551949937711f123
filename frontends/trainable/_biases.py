"""Integer biases kept consistent with their layer's scales while these train.

Runtimes read such a bias in units of input scale x weight scale, whatever its own scale says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...passes._core.graph import Names
from ...passes._core.linear import LINEAR_OPS

LARGEST = 2.0**31 - 1
"""Largest code of a 32-bit bias; its negative is the lowest that is used."""


def integer_biases(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node, ir.Node]]:
    """Yield the DequantizeLinear nodes of bias, input and weight of each layer that has all three.

    The bias is an input of the layer, or is added to its output (a MatMul has no other).
    """
    for layer in model.graph:
        if layer.op_type not in LINEAR_OPS:
            continue
        makers = _makers(layer)
        for user, _ in layer.outputs[0].uses():
            if user.op_type == "Add":
                makers.extend(_makers(user))
        bias = next(filter(is_integer_bias, makers), None)
        source, weight = makers[:2]
        if bias is None or source is None or weight is None:
            continue
        if _dequantizes(source) and _dequantizes(weight):
            yield bias, source, weight


def _makers(node: ir.Node) -> list[ir.Node | None]:
    """List the nodes that make the inputs of a node; None where none does."""
    makers = []
    for value in node.inputs:
        maker = None if value is None else value.producer()
        makers.append(maker)
    return makers


def _dequantizes(node: ir.Node) -> bool:
    return node.op_type == "DequantizeLinear"


def is_integer_bias(maker: ir.Node | None) -> bool:
    """Return whether a node dequantizes 32-bit codes."""
    if maker is None or not _dequantizes(maker):
        return False
    codes = maker.inputs[0]
    return codes is not None and codes.dtype == ir.DataType.INT32


def tie_biases(model: ir.Model, names: Names) -> None:
    """Give biases the scale that follows from their layer's, and codes that say the same as before.

    `names`: fresh names for the constants that are shared with other nodes.
    """
    for bias, source, weight in integer_biases(model):
        codes = _constant_at(bias, 0)
        old = _constant_at(bias, 1)
        source_scale = _constant_at(source, 1)
        weight_scale = _constant_at(weight, 1)
        if codes is None or old is None:
            continue
        if source_scale is None or weight_scale is None:
            continue
        exact_product = source_scale * weight_scale
        product = exact_product.astype(np.float32)
        fits = product.size in (1, old.size)
        divides = (product > 0).all()
        if not fits or not divides:
            # one scale for all channels, or none that divides: no runtime makes one
            # kernel of that layer, so nothing reads the bias in units of the product
            continue
        shape = () if product.size == 1 else (-1,)
        scale = product.reshape(shape)
        wanted = np.broadcast_to(scale, old.shape)
        in_step = np.allclose(old, wanted, rtol=1e-6, atol=0.0)
        if in_step:
            continue
        values = codes * old.astype(np.float64)
        rounded = np.rint(values / wanted)
        clipped = np.clip(rounded, -LARGEST, LARGEST)
        new_codes = clipped.astype(np.int32)
        _put(
            bias,
            0,
            new_codes,
            model.graph,
            names,
        )
        _put(
            bias,
            1,
            np.array(wanted),
            model.graph,
            names,
        )


def _constant_at(node: ir.Node, index: int) -> NDArray[Any] | None:
    """Return the initializer that a node reads at an input; None for anything else."""
    value = node.inputs[index]
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def _put(
    node: ir.Node, index: int, array: NDArray[Any], graph: ir.Graph, names: Names
) -> None:
    """Put another constant at a node's input; other nodes that share the old one keep it."""
    value = node.inputs[index]
    assert value is not None
    if len(value.uses()) == 1:
        value.const_value = ir.Tensor(array, name=value.name)
        return
    name = names.fresh(f"{value.name}_own")
    own = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=value.type,
        const_value=ir.Tensor(array, name=name),
    )
    graph.register_initializer(own)
    node.replace_input_with(index, own)
