"""Channels that are the same number whatever the input: they go first, and their readers' biases
keep what they gave.

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
from .._dims.groups import Group
from .._dims.ops.elementwise import BROADCAST, FIRST_INPUT, UNARY
from .._dims.solve import Solution
from .._dims.surgery import Kept
from .._simplify.evaluate import Inputs, NotFoldable, evaluate
from .contractions import consumers_of
from .importance.scores import Scores, by_channel, power_sums

FOLLOWED = frozenset({*UNARY, *FIRST_INPUT, *BROADCAST})

Values = NDArray[np.float64]
"""The number that each channel is, NaN where it is none."""


@dataclass(frozen=True)
class Reader:
    """A layer and what is known of the channels that it sums."""

    layer: LinearLayer
    values: Values


def constant_readers(model: ir.Model) -> Iterator[Reader]:
    """Layers of the main graph that read channels of which some are constant. Weights are read once
    each.
    """
    layers = fittable_layers(model)[0]
    by_input: dict[ir.Value, list[LinearLayer]] = {}
    for layer in layers:
        by_input.setdefault(layer.input, []).append(layer)
    for maker in layers:
        dead = power_sums(maker.weight, maker.channel_axis, 1) == 0
        if dead.any():
            start = np.where(dead, maker.bias_row(), np.nan)
            for value, values in _followed(maker.output, start, _axis(maker), model):
                yield from (
                    Reader(layer, values)
                    for layer in by_input.get(value, ())
                    if _axis(layer) == _axis(maker)
                )


def _axis(layer: LinearLayer) -> int:
    return 1 if layer.node.op_type == "Conv" else -1


def _followed(
    value: ir.Value, values: Values, axis: int, model: ir.Model
) -> Iterator[tuple[ir.Value, Values]]:
    """A tensor and all that elementwise ops with constants alone make of it, with the numbers of
    its channels.
    """
    waiting = [(value, values)]
    while waiting:
        value, values = waiting.pop()
        yield value, values
        for node in dict.fromkeys(value.consumers()):
            others = [v for v in node.inputs if v is not None and v is not value]
            if (
                node.op_type in FOLLOWED
                and node.domain == ""
                and all(map(is_constant, others))
            ):
                made = _made(node, value, values, axis, model)
                if made is not None:
                    waiting.append((node.outputs[0], made))


def _made(
    node: ir.Node, value: ir.Value, values: Values, axis: int, model: ir.Model
) -> Values | None:
    """What an elementwise op makes of the numbers of the channels; None if it cannot be told."""
    rank = len(value.shape or ())
    if not rank or value.dtype is None:
        return None
    shape = [1] * rank
    shape[axis] = len(values)
    inputs: Inputs = []
    for source in node.inputs:
        if source is value:
            inputs.append(values.astype(value.dtype.numpy()).reshape(shape))
        elif source is None:
            inputs.append(None)
        else:
            assert source.const_value is not None
            inputs.append(source.const_value.numpy())
    try:
        result = evaluate(node, inputs, model.opset_imports.get("", 1))[0]
    except NotFoldable:
        return None
    return result.astype(np.float64).reshape(-1) if result.size == len(values) else None


def constants_first(
    scores: Sequence[Scores],
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
) -> list[Scores]:
    """The scores, with those of channels that are constants for all who read them below all
    others.
    """
    known = {reader.layer.node: reader.values for reader in constant_readers(model)}
    changed = list(scores)
    for index, (group, readers) in enumerate(
        zip(groups, consumers_of(groups, solution), strict=True)
    ):
        if readers and all(reader.node in known for reader in readers):
            varying = sum(
                by_channel(
                    group,
                    solution,
                    (reader.tensor, reader.axis),
                    np.isnan(known[reader.node]).astype(np.float64),
                )
                for reader in readers
            )
            changed[index] = np.where(varying > 0, changed[index], -1.0)
    return changed


def keep_constants(model: ir.Model, kept: Kept) -> int:
    """Add to each layer's bias what the constant channels that it is about to lose gave; returns
    how many layers.
    """
    edit, done = Edit(model), 0
    for reader in list(constant_readers(model)):
        layer = reader.layer
        stays = kept.get(layer.input.name or "", {}).get(
            _axis(layer) % len(layer.input.shape or ())
        )
        if stays is None or layer.groups != 1:
            continue
        gone = np.setdiff1d(np.arange(len(reader.values)), stays)
        values = np.nan_to_num(reader.values[gone])
        if not values.any() or _padded(layer):
            continue
        share = (
            layer.rows().reshape(layer.channels, len(reader.values), -1)[:, gone].sum(2)
            @ values
        )
        layer.set_bias(layer.bias_row() + share, edit)
        done += 1
    return done


def _padded(layer: LinearLayer) -> bool:
    return (
        any(layer.node.attributes.get_ints("pads", []))
        or layer.node.attributes.get_string("auto_pad", "") == "SAME"
    )
