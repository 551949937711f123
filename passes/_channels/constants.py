"""Constant channels, the same number whatever the input: they go first, their readers keep their
share.

A layer whose weights for a channel are all zero makes its bias of it; elementwise ops on the way
make another number of that. Where a reader sums it without padding, or where it is zero, its share
is a constant of the reader's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._calibrated.layers import fittable_layers
from .._core.edit import Edit, is_constant
from .._core.linear import LinearLayer
from .._core.ops import is_standard
from .._dims.groups import Group
from .._dims.ops.elementwise import BROADCAST, FIRST_INPUT, UNARY
from .._dims.solve import Solution
from .._dims.surgery import Kept
from .._simplify.evaluate import Inputs, NotFoldable, evaluate
from .contractions import consumers_of
from .importance.scores import Scores, by_channel, power_sums

FOLLOWED = frozenset({*UNARY, *FIRST_INPUT, *BROADCAST})
"""Elementwise operators through which a constant channel stays constant."""

CONSTANT_SCORE = -1.0
"""Score of a constant channel: below all others, which are never negative."""

Values = NDArray[np.float64]
"""The number that each channel is, NaN where it is none."""


@dataclass(frozen=True)
class ConstantReader:
    """A layer that sums constant channels, and the values of all that it sums."""

    layer: LinearLayer
    values: Values


def constant_readers(model: ir.Model) -> Iterator[ConstantReader]:
    """Layers of the main graph that read channels of which some are constant.

    Weights are read once each.
    """
    layers, _ = fittable_layers(model)
    by_input: dict[ir.Value, list[LinearLayer]] = {}
    for layer in layers:
        by_input.setdefault(layer.input, []).append(layer)
    for maker in layers:
        magnitudes = power_sums(maker.weight, maker.channel_axis, 1)
        dead = magnitudes == 0
        if not dead.any():
            continue
        axis = _channel_axis(maker)
        start = np.where(dead, maker.bias_row(), np.nan)
        followed = _followed(
            maker.output,
            start,
            axis,
            model,
        )
        for value, values in followed:
            for layer in by_input.get(value, ()):
                # a MatMul behind a Conv sums over its width, not its channels
                if _channel_axis(layer) == axis:
                    yield ConstantReader(layer, values)


def _channel_axis(layer: LinearLayer) -> int:
    """Axis of a layer's input and output along which channels lie."""
    return 1 if layer.node.op_type == "Conv" else -1


def _followed(
    value: ir.Value, values: Values, axis: int, model: ir.Model
) -> Iterator[tuple[ir.Value, Values]]:
    """A tensor and all that elementwise ops with constants alone make of it.

    Each with the numbers of its channels.
    """
    waiting = [(value, values)]
    while waiting:
        value, values = waiting.pop()
        yield value, values
        for node in dict.fromkeys(value.consumers()):
            if not is_standard(node, *FOLLOWED):
                continue
            others = [v for v in node.inputs if v is not None and v is not value]
            # two activations: what comes of them varies
            if not all(is_constant(other) for other in others):
                continue
            made = _made(
                node,
                value,
                values,
                axis,
                model,
            )
            if made is not None:
                waiting.append((node.outputs[0], made))


def _made(
    node: ir.Node, value: ir.Value, values: Values, axis: int, model: ir.Model
) -> Values | None:
    """Numbers that an elementwise op makes of those of the channels; None if it cannot be told."""
    rank = len(value.shape or ())
    if rank == 0 or value.dtype is None:
        return None
    shape = [1] * rank
    shape[axis] = len(values)
    inputs: Inputs = []
    for source in node.inputs:
        if source is value:
            numbers = values.astype(value.dtype.numpy())
            inputs.append(numbers.reshape(shape))
        elif source is None:
            inputs.append(None)
        else:
            assert source.const_value is not None
            inputs.append(source.const_value.numpy())
    opset = model.opset_imports.get("", 1)
    try:
        result, *_ = evaluate(node, inputs, opset)
    except NotFoldable:
        return None
    # a constant that varies along another axis makes more numbers than channels
    if result.size != len(values):
        return None
    return result.astype(np.float64).reshape(-1)


def constants_first(
    scores: Sequence[Scores],
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
) -> list[Scores]:
    """Scores, with those of channels that are constant for all their readers below all others."""
    known = {reader.layer.node: reader.values for reader in constant_readers(model)}
    consumers = consumers_of(groups, solution)
    changed = []
    for own, group, readers in zip(scores, groups, consumers, strict=True):
        unknown = [reader for reader in readers if reader.node not in known]
        if unknown or not readers:
            changed.append(own)
            continue
        varying = np.zeros(len(own))
        for reader in readers:
            values = known[reader.node]
            unknown_values = np.isnan(values)
            varies = unknown_values.astype(np.float64)
            axis = (reader.tensor, reader.axis)
            varying += by_channel(
                group,
                solution,
                axis,
                varies,
            )
        changed.append(np.where(varying > 0, own, CONSTANT_SCORE))
    return changed


def keep_constants(model: ir.Model, kept: Kept) -> int:
    """Add to each layer's bias what the constant channels that it is about to lose gave.

    Returns the number of layers changed.
    """
    edit = Edit(model)
    done = 0
    # all are found first: biases change on the way
    for reader in list(constant_readers(model)):
        layer = reader.layer
        rank = len(layer.input.shape or ())
        axis = _channel_axis(layer) % rank
        axes = kept.get(layer.input.name or "", {})
        stays = axes.get(axis)
        if stays is None or layer.groups != 1:
            continue
        channels = len(reader.values)
        every = np.arange(channels)
        gone = np.setdiff1d(every, stays)
        # NaN marks channels that vary: the bias keeps nothing of them
        values = np.nan_to_num(reader.values[gone])
        # at a padded border fewer taps sum the constant: its share is no constant there
        if not values.any() or _padded(layer):
            continue
        rows = layer.rows()
        weights = rows.reshape(layer.channels, channels, -1)
        summed = weights[:, gone].sum(axis=2)
        share = summed @ values
        bias = layer.bias_row() + share
        layer.set_bias(bias, edit)
        done += 1
    return done


def _padded(layer: LinearLayer) -> bool:
    attributes = layer.node.attributes
    if any(attributes.get_ints("pads", [])):
        return True
    return attributes.get_string("auto_pad", "") == "SAME"
