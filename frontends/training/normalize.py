"""BatchNormalization put behind convolutions that have none, for as long as a graph learns; folded
away afterwards.

A graph whose normalizations were folded into its convolutions has lost what kept its layers in step
while it was made. Each gets one back: its statistics are those of the data, its gain and shift the
deviation and mean that each channel has in the original. Where a graph is its own original it
undoes itself; where weights were pruned, it puts channels back to the size that they had.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ..trainable import to_torch
from .device import laid_out
from .statistics import LEAST_OPSET, Arrays

Tensor = Any
Moments = tuple[Any, Any]
"""Mean and variance by channel."""
Feeds = Callable[[int], Iterable[Arrays]]
"""Takes how many rows to give at a time; what came in whole batches stays so."""
ROWS = 16
"""At a time: every convolution's output is held at once."""
EPSILON = 1e-5
LEAST_PLACES = 4
"""Values a channel and row below which its statistics say little: of pooled features, of linear
layers in disguise.
"""


@dataclass(frozen=True)
class Layer:
    """Names of the tensors of one convolution and of the normalization behind it. The convolution's
    bias moved there: it is what is added last.
    """

    weight: str
    bias: str
    gain: str
    mean: str
    variance: str


@dataclass(frozen=True)
class Normalized:
    """A copy of a graph with normalizations behind its convolutions."""

    model: ir.Model
    layers: tuple[Layer, ...]

    @property
    def added(self) -> list[str]:
        """Weights that the graph had not: gains. (Statistics are not weights.)"""
        return [layer.gain for layer in self.layers]

    def folded(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that the graph without them has, from those of this one."""
        result = dict(tensors)
        for layer in self.layers:
            mean, variance = (
                result.pop(name).double() for name in (layer.mean, layer.variance)
            )
            gain = result.pop(layer.gain, None)
            if gain is None:  # not among what was chosen to train: as it began
                stored = self.model.graph.initializers[layer.gain].const_value
                assert stored is not None
                gain = torch.from_numpy(stored.numpy().copy()).to(variance.device)
            factor = gain.double() * torch.rsqrt(variance + EPSILON)
            weight, bias = result[layer.weight], result[layer.bias]
            result[layer.weight] = (
                weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
            ).to(weight.dtype)
            result[layer.bias] = (bias - mean * factor).to(bias.dtype)
        return result


def normalized(
    model: ir.Model,
    trained: Collection[str],
    data: Feeds,
    original: ir.Model | None = None,
) -> Normalized | None:
    """With normalizations behind convolutions whose weight and bias are `trained`; None where there
    are none.

    `data`: feeds from which the statistics are taken. `original`: whose channels tell gains and
    shifts, where it has values of the same names and widths; without, the graph's own do, and the
    copy computes the same.
    """
    if model.opset_imports.get("", 0) < LEAST_OPSET:
        return None
    outputs = {value.name for value in model.graph.outputs}
    found = [
        node
        for node in model.graph
        if _lacks_one(node, trained) and node.outputs[0].name not in outputs
    ]
    taken = (
        _statistics(model, [node.outputs[0].name or "" for node in found], data)
        if found
        else {}
    )
    if not taken:
        return None
    known = (
        {value.name for node in original.graph for value in node.outputs}
        if original is not None
        else set()
    )
    named = [name for name in taken if name in known]
    wanted = (
        _statistics(original, named, data) if original is not None and named else {}
    )
    copy = model.clone()
    layers = []
    for node in list(copy.graph):
        name = node.outputs[0].name or ""
        if name in taken:
            own, target = taken[name], wanted.get(name, taken[name])
            layers.append(
                _insert(
                    copy.graph,
                    node,
                    own,
                    target if len(target[0]) == len(own[0]) else own,
                )
            )
    return Normalized(copy, tuple(layers))


def _lacks_one(node: ir.Node, trained: Collection[str]) -> bool:
    if (
        node.op_type != "Conv"
        or node.domain not in ("", "ai.onnx")
        or len(node.inputs) < 3
    ):
        return False
    uses = node.outputs[0].uses()
    if not uses or any(user.op_type == "BatchNormalization" for user, _ in uses):
        return False
    return all(
        value is not None
        and value.is_initializer()
        and value.name in trained
        and len(value.uses()) == 1
        and value.dtype == ir.DataType.FLOAT
        for value in node.inputs[1:3]
    )


def _statistics(model: ir.Model, names: list[str], data: Feeds) -> dict[str, Moments]:
    """Those of each value that has enough places."""
    module = to_torch(model, train=False, taps=names, qat="off")
    sums: dict[str, Tensor] = dict.fromkeys(names, 0.0)
    counts: dict[str, int] = dict.fromkeys(names, 0)
    for feeds in data(ROWS):
        with torch.no_grad():
            values = module.run(laid_out(feeds, "cpu"))
        for name in list(sums):
            value = values[name].float()
            if value[0, 0].numel() < LEAST_PLACES:
                del sums[name]
                continue
            variance, mean = torch.var_mean(
                value.flatten(2).transpose(0, 1).flatten(1), dim=1, correction=0
            )
            counts[name] += len(value)
            sums[name] = (
                sums[name]
                + len(value) * torch.stack([mean, variance + mean**2]).double()
            )
    taken = {}
    for name, total in sums.items():
        mean, square = total / counts[name]
        taken[name] = (mean.numpy(), (square - mean**2).clamp_min(0).numpy())
    return taken


def _insert(graph: ir.Graph, conv: ir.Node, own: Moments, target: Moments) -> Layer:
    """Put a normalization from its own mean and variance to those wanted behind, under the name
    that the convolution's output had.
    """
    weight, bias = conv.inputs[1:3]
    assert weight is not None
    assert bias is not None
    assert bias.const_value is not None
    stem, out = weight.name or "", conv.outputs[0]
    uses = list(out.uses())
    plain = (
        own[0] - bias.const_value.numpy()
    )  # without the bias, which is added last now
    bias.const_value = ir.Tensor(target[0].astype(np.float32), name=bias.name)
    gain, average, spread = (
        _initializer(graph, f"{stem}_{what}", array)
        for what, array in (
            ("gain", np.sqrt(target[1] + EPSILON)),
            ("mean", plain),
            ("variance", own[1]),
        )
    )
    conv.resize_inputs(2)
    node = ir.node(
        "BatchNormalization", [out, gain, bias, average, spread], {"epsilon": EPSILON}
    )
    new = node.outputs[0]
    new.name, out.name = out.name, f"{out.name}_plain"
    new.type, new.shape = out.type, out.shape
    for user, index in uses:
        user.replace_input_with(index, new)
    graph.insert_after(conv, node)
    return Layer(
        stem, bias.name or "", gain.name or "", average.name or "", spread.name or ""
    )


def _initializer(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    tensor = ir.Tensor(array.astype(np.float32), name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
