"""Random weights for a graph that is only an architecture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..trainable._constants import stored_tensor
from ..trainable._weights import Origin, trainable_values

Array = NDArray[Any]
_STATISTICS = {3: 0.0, 4: 1.0}
"""Inputs of BatchNormalization that become zeros and ones: mean and variance."""
_EMBEDDING = 0.02
"""Standard deviation of tables that are looked up in."""


def initialize(model: ir.Model, seed: int) -> int:
    """Draw every weight anew, in place: He's normal for what multiplies, ones for scales of
    normalizations, zeros for biases and other vectors, fresh running statistics. Returns how many
    tensors changed.

    BatchNormalizations that share a tensor of statistics get one each. Source: He et al. 2015
    (arXiv:1502.01852).
    """
    random = np.random.default_rng([seed, 4])
    _own_statistics(model)
    origins = trainable_values(model, True, False)
    for value, origin in origins.items():
        _put(origin, _drawn(value, stored_tensor(value).numpy(), random))
    count = len(origins)
    for node in model.graph:
        if node.op_type == "BatchNormalization" and not node.domain:
            for index, fill in _STATISTICS.items():
                held = node.inputs[index]
                if (
                    held is not None
                    and held.is_initializer()
                    and held.const_value is not None
                ):
                    held.const_value = ir.Tensor(
                        np.full_like(held.const_value.numpy(), fill), name=held.name
                    )
                    count += 1
    return count


def _drawn(value: ir.Value, old: Array, random: np.random.Generator) -> Array:
    node, index = next(((n, i) for n, i in _users(value)), (None, 0))
    if node is not None and "Normalization" in node.op_type:
        return np.full_like(old, 1.0 if index == 1 else 0.0)
    if old.ndim < 2 or node is None:
        return np.zeros_like(old) if old.ndim == 1 else old
    if node.op_type == "Gather":
        deviation = _EMBEDDING
    else:
        inputs = (
            _FAN_IN[node.op_type](node, old.shape)
            if node.op_type in _FAN_IN
            else old.shape[-2]
        )
        deviation = math.sqrt((2.0 if old.ndim > 2 else 1.0) / max(inputs, 1))
    drawn: Array = (deviation * random.standard_normal(old.shape)).astype(old.dtype)
    return drawn


def _gemm(node: ir.Node, shape: tuple[int, ...]) -> int:
    return shape[1] if node.attributes.get_int("transB", 0) else shape[0]


_FAN_IN: dict[str, Callable[[ir.Node, tuple[int, ...]], int]] = {
    "Conv": lambda node, shape: int(np.prod(shape[1:])),
    "ConvTranspose": lambda node, shape: int(shape[0] * np.prod(shape[2:])),
    "Gemm": _gemm,
    "LSTM": lambda node, shape: shape[-1],
    "GRU": lambda node, shape: shape[-1],
    "RNN": lambda node, shape: shape[-1],
}
"""How many products an output adds up."""


def _users(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Who multiplies by a weight, through what only moves it."""
    found: list[tuple[ir.Node, int]] = []
    waiting = [value]
    while waiting:
        for node, index in waiting.pop().uses():
            if node.op_type in ("Identity", "Transpose", "Cast"):
                waiting.extend(node.outputs)
            else:
                found.append((node, index))
    return found


def _own_statistics(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.domain:
            continue
        for index in (1, 2, 3, 4):
            value = node.inputs[index]
            if (
                value is None
                or value.const_value is None
                or not value.is_initializer()
                or len(value.uses()) == 1
            ):
                continue
            copy = ir.Value(
                name=f"{value.name}_{node.name or node.outputs[0].name}_{index}",
                shape=value.shape,
                type=value.type,
                const_value=value.const_value,
            )
            model.graph.register_initializer(copy)
            node.replace_input_with(index, copy)


def _put(origin: Origin, array: Array) -> None:
    tensor = ir.Tensor(array, dtype=origin.dtype, name=origin.name)
    producer = origin.value.producer()
    if producer is None:
        origin.value.const_value = tensor
    else:
        producer.attributes.clear()
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
