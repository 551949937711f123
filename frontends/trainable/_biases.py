"""32-bit biases in step with the scales of their layer: runtimes read them in units of input scale
x weight scale.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

LAYERS = ("Conv", "Gemm", "MatMul")
LARGEST = 2.0**31 - 1


def integer_biases(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node, ir.Node]]:
    """The DequantizeLinear nodes of the bias, of the input and of the weight, of each layer that
    has all three.
    """
    for layer in model.graph:
        if layer.op_type not in LAYERS:
            continue
        made = [None if value is None else value.producer() for value in layer.inputs]
        adds = [user for user, _ in layer.outputs[0].uses() if user.op_type == "Add"]
        made += [
            value.producer()
            for add in adds
            for value in add.inputs
            if value is not None
        ]
        bias = next((m for m in made if is_integer_bias(m)), None)
        source, weight = made[:2]
        if (
            bias is not None
            and source is not None
            and weight is not None
            and {source.op_type, weight.op_type} == {"DequantizeLinear"}
        ):
            yield bias, source, weight


def is_integer_bias(maker: ir.Node | None) -> bool:
    """Whether a node dequantizes 32-bit codes."""
    codes = (
        None
        if maker is None or maker.op_type != "DequantizeLinear"
        else maker.inputs[0]
    )
    return codes is not None and codes.dtype == ir.DataType.INT32


def tie_biases(model: ir.Model) -> None:
    """Give biases the scale that follows from their layer's, and codes that say the same as
    before.
    """
    for bias, source, weight in integer_biases(model):
        constants = [
            node.inputs[1].const_value if node.inputs[1] is not None else None
            for node in (bias, source, weight)
        ]
        codes = bias.inputs[0]
        if (
            any(c is None for c in constants)
            or codes is None
            or codes.const_value is None
        ):
            continue
        old, *factors = (c.numpy() for c in constants if c is not None)
        product = (factors[0] * factors[1]).astype(np.float32)
        if product.size not in (1, old.size) or not (product > 0).all():
            continue  # one scale for all channels, or none that divides: no runtime makes one kernel of that
        wanted = np.broadcast_to(
            product.reshape(-1) if product.size > 1 else product.reshape(()), old.shape
        )
        if np.allclose(old, wanted, rtol=1e-6, atol=0.0):
            continue
        values = codes.const_value.numpy() * old.astype(np.float64)
        stored = np.clip(np.rint(values / wanted), -LARGEST, LARGEST).astype(np.int32)
        for index, array in ((0, stored), (1, np.array(wanted))):
            _put(bias, index, array, model.graph)


def _put(node: ir.Node, index: int, array: np.ndarray, graph: ir.Graph) -> None:
    """Another constant at a node's input; others that share the old one keep it."""
    value = node.inputs[index]
    assert value is not None
    if len(value.uses()) == 1:
        value.const_value = ir.Tensor(array, name=value.name)
        return
    name = f"{value.name}_own"
    while name in graph.initializers:
        name += "_"
    own = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=value.type,
        const_value=ir.Tensor(array, name=name),
    )
    graph.register_initializer(own)
    node.replace_input_with(index, own)
