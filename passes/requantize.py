"""Quantized files made safe for every CPU: 8-bit weights rounded anew so that no pair of products
saturates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ._base import Context, Declined, Effect, MomentRequest, Option, Pass, PassOutcome
from ._calibrated.compensation import compensated
from ._calibrated.grid import best_scales, nearest
from ._calibrated.layers import Codes, Rows
from ._calibrated.rounding import damped, input_power
from ._calibrated.select import moments_of
from ._core.edit import Edit
from ._core.graph import all_graphs, all_nodes, label
from ._core.integer_layers import IntegerLayer, Place, integer_layers, value_at
from ._core.lazy import set_tensor
from ._core.linear import WeightView
from ._core.targets import TARGETS
from ._quant.grids import Grid
from ._quant.prepare import drop_unused_initializers
from ._quant.saturating import offending_in
from ._quant.weights import INT8_LEVELS, Floats

DAMP = 0.01
"""Share of its mean diagonal added to the diagonal of a Gram matrix, as `gptq` does by default."""


@dataclass(frozen=True)
class Requantize(Pass):
    """Round the 8-bit weights of a quantized model anew where products may saturate on x86 CPUs
    without VNNI.

    Effect: lossy. Touches weights of layers between Q/DQ nodes and of QLinearConv, QLinearMatMul,
    QGemm, MatMulInteger, MatMulIntegerToFloat and DynamicQuantizeMatMul that hold such pairs,
    whichever tool made them: each output channel gets the scale of least expected error, codes that
    stay within the limit, a zero point of its own that is 0, and a bias that follows. With data,
    layers between Q/DQ nodes are rounded so that their outputs stay (`gptq`); without, each weight
    to the nearest code. Activations and all other layers stay as they are.

    Shapes: weight codes (M, C, *K), (K, N) -> same; scale and zero point -> one for each output
    channel.

    Errors: RefusedError if calibration data brings NaN or infinity.

    Stats: `layers`, `weights` (counts), `mended` (pairs that could saturate), `offending_pairs`
    (those left).

    Source: the limit follows from the definition of a saturating int16 sum; rounding: Frantar et
    al., GPTQ, ICLR 2023 (arXiv:2210.17323).
    """

    name: ClassVar[str] = "requantize"
    effect: ClassVar[Effect] = "lossy"

    rounding: Literal["gptq", "nearest"] = Option(
        "gptq",
        "How weights are rounded where there is calibration data: so that each "
        "layer's outputs stay, or each "
        "to the nearest.",
    )
    samples: int = Option(
        64, "Calibration samples to use at most.", low=1, high=10_000_000
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        outcome = PassOutcome(
            stats={"layers": 0, "weights": 0, "mended": 0, "offending_pairs": 0}
        )
        if not TARGETS[context.target].quant.limits_pairs:
            reason = (
                "its kernels do not saturate: weights may use the whole 8-bit range"
            )
            outcome.declined.append(Declined(f"target {context.target}", reason))
            return outcome
        counts = {
            v: count
            for v in integer_layers(all_nodes(model))
            if (count := offending_in(v))
        }
        layers = _each_weight_once(counts, outcome)
        moments = self._moments(model, context, layers)
        edit = Edit(model)
        for layer in layers:
            _round(layer, moments.get(layer), edit)
            outcome.changed += 1
            _add(outcome, layers=1, weights=layer.tensor.size, mended=counts[layer])
        left = sum(map(offending_in, integer_layers(all_nodes(model)))) if counts else 0
        _add(outcome, offending_pairs=left)
        drop_unused_initializers(all_graphs(model))
        return outcome

    def _moments(
        self, model: ir.Model, context: Context, layers: list[IntegerLayer]
    ) -> dict[IntegerLayer, NDArray[np.float64]]:
        """Gram matrices of what dequantized layers read, where there is data and the layer lies in
        the main graph.
        """
        if self.rounding == "nearest" or not context.has_data():
            return {}
        observable = [
            _Observed(v)
            for v in layers
            if v.dequantize is not None and v.node.graph is model.graph and _is_plain(v)
        ]
        found = moments_of(model, context, observable, "gram", self.samples, [])
        return {observed.layer: gram for observed, gram in found}


@dataclass(frozen=True, eq=False)
class _Observed:
    """A layer as `moments_of` looks at it."""

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
    """Whether the layer's inputs are what its attributes say without the size of its data."""
    if layer.node.op_type == "Conv":
        return layer.node.attributes.get_string("auto_pad", "NOTSET") in (
            "NOTSET",
            "VALID",
        )
    return len(layer.shape) == 2 and not layer.node.attributes.get_int("transA", 0)


def _each_weight_once(
    counts: dict[IntegerLayer, int], outcome: PassOutcome
) -> list[IntegerLayer]:
    """The layers to round: one of those that share codes. What has no scale to adapt is
    declined.
    """
    layers: dict[ir.Value, IntegerLayer] = {}
    for layer in counts:
        first = layers.get(layer.stored)
        if value_at(layer.scale) is None or value_at(layer.scale).const_value is None:  # type: ignore[union-attr]
            outcome.declined.append(
                Declined(label(layer.node), "no constant scale of its weight was found")
            )
        elif first is None:
            layers[layer.stored] = layer
        elif first.codes != layer.codes:
            outcome.declined.append(
                Declined(label(layer.node), "its weight is shared with another layer")
            )
    return list(layers.values())


def _round(layer: IntegerLayer, gram: NDArray[np.float64] | None, edit: Edit) -> None:
    """Store codes within the limit, their scale and zero point, and the bias in units of the new
    scale.
    """
    grid, rows = Grid(INT8_LEVELS, layer.pairs), _dequantized(layer)
    if gram is None:
        scales = best_scales(rows, grid)
        codes = nearest(rows, scales, grid)
    else:
        scales = best_scales(
            rows, grid, np.repeat(input_power(gram), len(rows) // len(gram), axis=0)
        )
        codes = _compensated(rows, gram, scales, grid)
    old = _per_channel(layer, layer.scale)
    new = scales.astype(np.float32)
    _store(layer, codes, new, edit)
    _follow(layer, old, new, edit)


def _compensated(
    rows: Rows, gram: NDArray[np.float64], scales: Rows, grid: Grid
) -> Codes:
    """Codes by GPTQ with the bias left as it is: it takes no part where the Gram matrix does not
    couple it.
    """
    alone = gram.copy()
    alone[:, -1, :-1] = alone[:, :-1, -1] = 0.0
    codes, _ = compensated(rows, np.zeros(len(rows)), damped(alone, DAMP), scales, grid)
    return codes


def _dequantized(layer: IntegerLayer) -> Rows:
    """The weight as (channels, width) in float64."""
    array = layer.tensor.numpy().astype(np.float64)
    rows = np.moveaxis(array, layer.channel_axis, 0).reshape(
        array.shape[layer.channel_axis], -1
    )
    zero = _per_channel(layer, layer.zero)
    return (rows - zero[:, None]) * _per_channel(layer, layer.scale)[:, None]


def _per_channel(layer: IntegerLayer, place: Place | None) -> NDArray[np.float64]:
    """A parameter of the weight, one for each channel; zeros where there is none."""
    value, channels = value_at(place), layer.shape[layer.channel_axis]
    if value is None or value.const_value is None:
        return np.zeros(channels)
    return np.broadcast_to(
        value.const_value.numpy().astype(np.float64).reshape(-1), (channels,)
    )


def _store(layer: IntegerLayer, codes: Codes, scales: Floats, edit: Edit) -> None:
    shape, axis = layer.shape, layer.channel_axis
    first = (shape[axis], *(d for i, d in enumerate(shape) if i != axis))
    set_tensor(
        layer.stored,
        ir.Tensor(np.ascontiguousarray(np.moveaxis(codes.reshape(first), 0, axis))),
    )
    _put(layer.scale, scales, edit)
    if layer.zero is not None and value_at(layer.zero) is not None:
        _put(layer.zero, np.zeros(scales.shape, np.int8), edit)
    if layer.dequantize is not None:
        layer.dequantize.attributes["axis"] = ir.AttrInt64("axis", axis)


def _put(place: Place | None, array: NDArray[np.generic], edit: Edit) -> None:
    """A constant of its own at an input."""
    assert place is not None
    node, index = place
    graph, old = node.graph, value_at(place)
    assert isinstance(graph, ir.Graph)
    stem = old.name if old is not None and old.name else "parameter"
    edit.set_input(node, index, edit.constant(graph, array, stem))


def _follow(
    layer: IntegerLayer, old: NDArray[np.float64], new: Floats, edit: Edit
) -> None:
    """Write an int32 bias anew: runtimes read it in units of input scale times weight scale."""
    value = value_at(layer.bias)
    if value is None:
        return
    if layer.dequantize is None:
        if value.const_value is not None and value.dtype == ir.DataType.INT32:
            _put(layer.bias, _rescaled(value.const_value.numpy(), old / new), edit)
        return
    maker = value.producer()
    stored = (
        maker.inputs[0]
        if maker is not None and maker.op_type == "DequantizeLinear"
        else None
    )
    if (
        maker is None
        or stored is None
        or stored.const_value is None
        or stored.dtype != ir.DataType.INT32
    ):
        return
    bias_scale = maker.inputs[1]
    assert bias_scale is not None
    assert bias_scale.const_value is not None
    before = np.broadcast_to(
        bias_scale.const_value.numpy().astype(np.float64).reshape(-1), new.shape
    )
    after = (before / old * new).astype(np.float32)
    source = (
        layer.node.inputs[0].producer() if layer.node.inputs[0] is not None else None
    )
    known = source.inputs[1] if source is not None and len(source.inputs) > 1 else None
    if (
        known is not None
        and known.const_value is not None
        and np.allclose(before, known.const_value.numpy() * old)
    ):
        after = (known.const_value.numpy().astype(np.float32).reshape(-1) * new).astype(
            np.float32
        )
    _put((maker, 0), _rescaled(stored.const_value.numpy(), before / after), edit)
    _put((maker, 1), after, edit)
    if len(maker.inputs) > 2 and maker.inputs[2] is not None:
        _put((maker, 2), np.zeros(after.shape, np.int32), edit)
    maker.attributes["axis"] = ir.AttrInt64("axis", 0)


def _rescaled(
    bias: NDArray[np.int32], factor: NDArray[np.float64]
) -> NDArray[np.int32]:
    """The same numbers in other units."""
    limit = 2.0**31 - 1
    return np.clip(
        np.rint(bias.astype(np.float64).reshape(-1) * factor), -limit, limit
    ).astype(np.int32)


def _add(outcome: PassOutcome, **counts: int) -> None:
    for key, count in counts.items():
        outcome.stats[key] = int(outcome.stats[key]) + count
