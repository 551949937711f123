"""Random weights for a graph that is only an architecture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...passes._core.ops import WEIGHTED_OPS, is_standard, summed_axes
from ..trainable._constants import stored_tensor
from ..trainable._weights import Origin, trainable_values

Array = NDArray[Any]

SEED_STREAM = 4
"""Second word of the seed: training draws with 1 to 3 from the same seed."""

FRESH_STATISTICS = {3: 0.0, 4: 1.0}
"""Inputs of BatchNormalization and their fill: mean and variance of normalized values."""

EMBEDDING_DEVIATION = 0.02
"""Standard deviation of tables that are looked up in: that of BERT's (arXiv:1810.04805)."""


class Use(NamedTuple):
    """A node that reads a value, and the number of the input by which it does."""

    node: ir.Node
    place: int


def initialize(model: ir.Model, seed: int) -> int:
    """Draw every weight anew, in place; return how many tensors changed.

    He's normal for factors, ones for scales of normalizations, zeros for biases and other vectors,
    fresh running statistics. BatchNormalizations that share a tensor of statistics get one each.
    Source: He et al. 2015 (arXiv:1502.01852).
    """
    random = np.random.default_rng([seed, SEED_STREAM])
    _unshare_statistics(model)
    origins = trainable_values(
        model,
        train=True,
        scales=False,
    )
    for value, origin in origins.items():
        old = stored_tensor(value).numpy()
        new = _drawn(value, old, random)
        _store(origin, new)
    return len(origins) + _reset_statistics(model)


def _batch_normalizations(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph:
        if is_standard(node, "BatchNormalization"):
            yield node


def _reset_statistics(model: ir.Model) -> int:
    """Fill running statistics; return how many."""
    count = 0
    for node in _batch_normalizations(model):
        for index, fill in FRESH_STATISTICS.items():
            held = node.inputs[index]
            if held is None or not held.is_initializer() or held.const_value is None:
                continue
            array = np.full_like(held.const_value.numpy(), fill)
            held.const_value = ir.Tensor(array, name=held.name)
            count += 1
    return count


def _drawn(value: ir.Value, old: Array, random: np.random.Generator) -> Array:
    """Return a fresh array in place of a weight, by the first operator that reads it."""
    use = next(_uses_behind_moves(value), None)
    if use is not None and "Normalization" in use.node.op_type:
        fill = 1.0 if use.place == 1 else 0.0
        return np.full_like(old, fill)
    if old.ndim == 1:
        return np.zeros_like(old)
    if old.ndim == 0 or use is None:
        return old
    if use.node.op_type == "Gather":
        deviation = EMBEDDING_DEVIATION
    else:
        # He's factor 2 makes up for a Relu behind, as convolutions mostly have one
        gain = 2.0 if old.ndim > 2 else 1.0
        products = _fan_in(use, old.shape)
        deviation = math.sqrt(gain / max(products, 1))
    noise = random.standard_normal(old.shape)
    drawn: Array = deviation * noise
    return drawn.astype(old.dtype)


def _fan_in(use: Use, shape: tuple[int, ...]) -> int:
    """Return the number of products that one output adds up."""
    rank = len(shape)
    # of other operators, such as Einsum, the rows of a matrix
    axes = [rank - 2]
    if use.node.op_type in WEIGHTED_OPS:
        axes = summed_axes(use.node, use.place, rank)
    count = 1
    for axis in axes:
        count *= shape[axis]
    return count


def _uses_behind_moves(value: ir.Value) -> Iterator[Use]:
    """Yield the uses of a weight, looking through Identity, Transpose and Cast."""
    waiting = [value]
    while waiting:
        for node, index in waiting.pop().uses():
            if node.op_type in ("Identity", "Transpose", "Cast"):
                waiting.extend(node.outputs)
            else:
                yield Use(node, index)


def _unshare_statistics(model: ir.Model) -> None:
    """Give each BatchNormalization tensors of its own.

    Exporters store equal tensors once; fresh ones would be moved by several layers.
    """
    for node in _batch_normalizations(model):
        stem = node.name or node.outputs[0].name
        for index in (1, 2, 3, 4):
            value = node.inputs[index]
            if value is None or not value.is_initializer():
                continue
            if value.const_value is None or len(value.uses()) == 1:
                continue
            copy = ir.Value(
                name=f"{value.name}_{stem}_{index}",
                shape=value.shape,
                type=value.type,
                const_value=value.const_value,
            )
            model.graph.register_initializer(copy)
            node.replace_input_with(index, copy)


def _store(origin: Origin, array: Array) -> None:
    tensor = ir.Tensor(
        array,
        dtype=origin.dtype,
        name=origin.name,
    )
    producer = origin.value.producer()
    if producer is None:
        origin.value.const_value = tensor
        return
    # a Constant may spell its tensor in several attributes, of which only one may stay
    producer.attributes.clear()
    producer.attributes["value"] = ir.AttrTensor("value", tensor)
