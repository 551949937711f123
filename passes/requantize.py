"""Quantized files made safe for every CPU: 8-bit weights rounded again so that no pair of products
saturates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ._base import (
    Context,
    Declined,
    Effect,
    MomentRequest,
    Option,
    Pass,
    PassOutcome,
    Stat,
)
from ._calibrated.compensation import compensated
from ._calibrated.grid import best_scales, nearest
from ._calibrated.layers import Codes, Rows
from ._calibrated.rounding import damped, input_power
from ._calibrated.select import moments_of
from ._core.edit import Edit
from ._core.graph import all_graphs, all_nodes, label
from ._core.integer_layers import (
    IntegerLayer,
    Place,
    integer_layers,
    offending_in,
    value_at,
)
from ._core.lazy import set_tensor
from ._core.linear import WeightView
from ._core.targets import TARGETS
from ._quant.grids import Grid
from ._quant.prepare import drop_unused_initializers
from ._quant.weights import INT8_LEVELS, INT32_LIMIT, Floats

DAMP = 0.01
"""Share of its mean diagonal added to the diagonal of a Gram matrix, as `gptq` does by default."""

STATS = ("layers", "weights", "mended", "offending_pairs")


@dataclass(frozen=True)
class Requantize(Pass):
    """Round 8-bit weights again if their products may saturate on x86 CPUs without VNNI.

    Effect: lossy. Touches layers between Q/DQ nodes, QLinearConv, QLinearMatMul, QGemm,
    MatMulInteger, MatMulIntegerToFloat and DynamicQuantizeMatMul if their weights hold pairs that
    may saturate, whichever tool made them. Each output channel gets the scale of least expected
    error, codes within the limit, its own zero point of 0, and a bias in units of the new scale.
    With data, layers between Q/DQ nodes are rounded so that their outputs are preserved (`gptq`);
    all others, and all without data, are rounded to the nearest code. Activations and all other
    layers stay as they are.

    Shapes: weight codes (M, C, *K), (K, N) -> same; scale and zero point -> one per output channel.

    Errors: RefusedError if calibration meets NaN or infinity.

    Stats: `layers`, `weights` (counts), `mended` (pairs that could saturate), `offending_pairs`
    (those left).

    Source: the limit follows from the definition of a saturating int16 sum; rounding: Frantar et
    al., GPTQ, ICLR 2023 (arXiv:2210.17323).
    """

    name: ClassVar[str] = "requantize"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "layers"

    rounding: Literal["gptq", "nearest"] = Option(
        "gptq",
        "How weights are rounded if there is calibration data: so that each layer's outputs are "
        "preserved (gptq), or each to the nearest.",
    )
    samples: int = Option(
        64, "Maximum number of calibration samples to use.", low=1, high=10_000_000
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        stats: dict[str, Stat] = dict.fromkeys(STATS, 0)
        outcome = PassOutcome(stats=stats)
        if not TARGETS[context.target].quant.limits_pairs:
            reason = (
                "its kernels do not saturate: weights may use the whole 8-bit range"
            )
            outcome.declined.append(Declined(f"target {context.target}", reason))
            return outcome
        counts = _offending_layers(model)
        layers = _each_weight_once(counts, outcome)
        moments = self._moments(model, context, layers)
        edit = Edit(model)
        for layer in layers:
            _round(layer, moments.get(layer), edit)
            outcome.changed += 1
            _add(outcome, "layers", 1)
            _add(outcome, "weights", layer.tensor.size)
            _add(outcome, "mended", counts[layer])
        # of the layers declined, and of those whose weight was rounded for another layer's pairs
        left = _offending_layers(model) if counts else {}
        _add(outcome, "offending_pairs", sum(left.values()))
        drop_unused_initializers(all_graphs(model))
        return outcome

    def _moments(
        self, model: ir.Model, context: Context, layers: list[IntegerLayer]
    ) -> dict[IntegerLayer, NDArray[np.float64]]:
        """Gram matrices of what dequantized layers read.

        Only where there is data, and the layer lies in the main graph.
        """
        if self.rounding == "nearest" or not context.has_data():
            return {}
        observable = []
        for layer in layers:
            # an integer operator reads codes: there is no float value to observe
            is_float = layer.dequantize is not None
            if is_float and layer.node.graph is model.graph and _is_plain(layer):
                observable.append(_Observed(layer))
        found = moments_of(
            model,
            context,
            observable,
            "gram",
            self.samples,
            [],
        )
        return {observed.layer: gram for observed, gram in found}


@dataclass(frozen=True, eq=False)
class _Observed:
    """A layer in the form that `moments_of` takes."""

    layer: IntegerLayer

    @property
    def node(self) -> ir.Node:
        return self.layer.node

    @property
    def width(self) -> int:
        return self.layer.width

    @property
    def groups(self) -> int:
        return self.layer.groups

    def request(self, kind: Literal["mean", "gram"]) -> MomentRequest:
        axes = tuple(range(len(self.layer.shape)))
        return WeightView(self.node, 1, self.layer.stored, axes).request(kind)


def _is_plain(layer: IntegerLayer) -> bool:
    """True if the layer's inputs are what its attributes say without the size of its data."""
    attributes = layer.node.attributes
    if layer.node.op_type == "Conv":
        return attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return len(layer.shape) == 2 and not attributes.get_int("transA", 0)


def _offending_layers(model: ir.Model) -> dict[IntegerLayer, int]:
    """Layers with pairs that may saturate, and how many those are."""
    found: dict[IntegerLayer, int] = {}
    for layer in integer_layers(all_nodes(model)):
        count = offending_in(layer)
        if count:
            found[layer] = count
    return found


def _each_weight_once(
    counts: dict[IntegerLayer, int], outcome: PassOutcome
) -> list[IntegerLayer]:
    """The layers to round: one of those that share codes.

    A layer that has no scale to adapt is declined.
    """
    layers: dict[ir.Value, IntegerLayer] = {}
    for layer in counts:
        scale = value_at(layer.scale)
        first = layers.get(layer.stored)
        where = label(layer.node)
        if scale is None or scale.const_value is None:
            reason = "no constant scale of its weight was found"
            outcome.declined.append(Declined(where, reason))
        elif first is None:
            # those that read the codes through the same place follow
            layers[layer.stored] = layer
        elif first.codes != layer.codes:
            # another DequantizeLinear reads the codes, with a scale that would not follow
            reason = "its weight is shared with another layer"
            outcome.declined.append(Declined(where, reason))
    return list(layers.values())


def _round(layer: IntegerLayer, gram: NDArray[np.float64] | None, edit: Edit) -> None:
    """Store codes within the limit, their scale and zero point, and the bias in units of the new
    scale.
    """
    grid = Grid(INT8_LEVELS, layer.pairs)
    rows = _dequantized(layer)
    # without data every input counts alike
    if gram is None:
        scales = best_scales(rows, grid)
        codes = nearest(rows, scales, grid)
    else:
        # one Gram matrix a group: its inputs matter alike to each of the group's channels
        power = input_power(gram)
        channels = len(rows) // len(gram)
        scales = best_scales(
            rows,
            grid,
            np.repeat(
                power,
                channels,
                axis=0,
            ),
        )
        codes = _compensated(
            rows,
            gram,
            scales,
            grid,
        )
    old = _per_channel(layer, layer.scale)
    new = scales.astype(np.float32)
    _store(
        layer,
        codes,
        new,
        edit,
    )
    _rescale_bias(
        layer,
        old,
        new,
        edit,
    )


def _compensated(
    rows: Rows, gram: NDArray[np.float64], scales: Rows, grid: Grid
) -> Codes:
    """Codes by GPTQ with the bias left as it is.

    It takes no part where the Gram matrix does not couple it.
    """
    alone = gram.copy()
    # the last row and column belong to the bias
    alone[:, -1, :-1] = 0.0
    alone[:, :-1, -1] = 0.0
    bias = np.zeros(len(rows))
    codes, _ = compensated(
        rows,
        bias,
        damped(alone, DAMP),
        scales,
        grid,
    )
    return codes


def _dequantized(layer: IntegerLayer) -> Rows:
    """The weight as (channels, width) in float64."""
    array = layer.tensor.numpy().astype(np.float64)
    channels = array.shape[layer.channel_axis]
    rows = np.moveaxis(
        array,
        layer.channel_axis,
        0,
    ).reshape(channels, -1)
    zero = _per_channel(layer, layer.zero)
    scale = _per_channel(layer, layer.scale)
    return (rows - zero[:, None]) * scale[:, None]


def _per_channel(layer: IntegerLayer, place: Place | None) -> NDArray[np.float64]:
    """A parameter of the weight, one for each channel; zeros where there is none."""
    value = value_at(place)
    channels = layer.shape[layer.channel_axis]
    if value is None or value.const_value is None:
        return np.zeros(channels)
    return np.broadcast_to(_flat(value.const_value), (channels,))


def _flat(tensor: ir.TensorProtocol) -> NDArray[np.float64]:
    return tensor.numpy().astype(np.float64).reshape(-1)


def _store(layer: IntegerLayer, codes: Codes, scales: Floats, edit: Edit) -> None:
    """Put codes, scales and zero points where the layer reads them."""
    shape = layer.shape
    axis = layer.channel_axis
    rest = [size for other, size in enumerate(shape) if other != axis]
    channels = shape[axis]
    first = codes.reshape(channels, *rest)
    moved = np.moveaxis(first, 0, axis)
    stored = np.ascontiguousarray(moved)
    set_tensor(layer.stored, ir.Tensor(stored))
    _put(layer.scale, scales, edit)
    if layer.zero is not None and value_at(layer.zero) is not None:
        zeros = np.zeros(scales.shape, np.int8)
        _put(layer.zero, zeros, edit)
    if layer.dequantize is not None:
        # a scale a tensor has become one a channel
        attributes = layer.dequantize.attributes
        attributes["axis"] = ir.AttrInt64("axis", axis)


def _put(place: Place | None, array: NDArray[np.generic], edit: Edit) -> None:
    """Put a constant at an input; one of its own, since others may read the old one."""
    assert place is not None
    node, index = place
    graph = node.graph
    old = value_at(place)
    assert isinstance(graph, ir.Graph)
    stem = old.name if old is not None and old.name else "parameter"
    edit.set_input(node, index, edit.constant(graph, array, stem))


def _rescale_bias(
    layer: IntegerLayer, old: NDArray[np.float64], new: Floats, edit: Edit
) -> None:
    """Write an int32 bias anew: runtimes read it in units of input scale times weight scale."""
    value = value_at(layer.bias)
    if value is None:
        return
    if layer.dequantize is not None:
        _rescale_dequantized_bias(
            layer,
            value,
            old,
            new,
            edit,
        )
    elif value.const_value is not None and value.dtype == ir.DataType.INT32:
        bias = _rescaled(value.const_value.numpy(), old / new)
        _put(layer.bias, bias, edit)


def _rescale_dequantized_bias(
    layer: IntegerLayer,
    value: ir.Value,
    old: NDArray[np.float64],
    new: Floats,
    edit: Edit,
) -> None:
    """Write a bias anew that a DequantizeLinear makes of int32, together with its scale."""
    maker = value.producer()
    if maker is None or maker.op_type != "DequantizeLinear":
        return
    stored = maker.inputs[0]
    if stored is None or stored.const_value is None:
        return
    if stored.dtype != ir.DataType.INT32:
        return
    bias_scale = maker.inputs[1]
    assert bias_scale is not None
    assert bias_scale.const_value is not None
    before = np.broadcast_to(_flat(bias_scale.const_value), new.shape)
    after = _bias_scales(
        layer,
        before,
        old,
        new,
    )
    _put(
        (maker, 0),
        _rescaled(stored.const_value.numpy(), before / after),
        edit,
    )
    _put((maker, 1), after, edit)
    # one zero point a channel, as many as scales
    if len(maker.inputs) > 2 and maker.inputs[2] is not None:
        _put((maker, 2), np.zeros(after.shape, np.int32), edit)
    maker.attributes["axis"] = ir.AttrInt64("axis", 0)


def _bias_scales(
    layer: IntegerLayer,
    before: NDArray[np.float64],
    old: NDArray[np.float64],
    new: Floats,
) -> Floats:
    """The scales of the bias for the new scales of the weight.

    `before`: those that it had with the `old` scales.
    """
    known = _input_scale(layer)
    if known is not None:
        input_scale = known.numpy()
        product = input_scale * old
        if np.allclose(before, product):
            # exactly the float32 product that the runtime checks for
            flat = input_scale.astype(np.float32).reshape(-1)
            exact = flat * new
            return exact.astype(np.float32)
    scaled = before / old * new
    return scaled.astype(np.float32)


def _input_scale(layer: IntegerLayer) -> ir.TensorProtocol | None:
    """The scale of what a layer reads, where it is a constant."""
    data = layer.node.inputs[0]
    if data is None:
        return None
    source = data.producer()
    if source is None or len(source.inputs) < 2:
        return None
    scale = source.inputs[1]
    if scale is None:
        return None
    return scale.const_value


def _rescaled(
    bias: NDArray[np.int32], factor: NDArray[np.float64]
) -> NDArray[np.int32]:
    """The same numbers in other units."""
    exact = bias.astype(np.float64).reshape(-1) * factor
    return np.clip(
        np.rint(exact),
        -INT32_LIMIT,
        INT32_LIMIT,
    ).astype(np.int32)


def _add(outcome: PassOutcome, key: str, count: int) -> None:
    outcome.stats[key] = int(outcome.stats[key]) + count
