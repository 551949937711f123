"""Recovery without training: every layer that lost inputs is fitted anew to what it computed in the whole model.

Layer by layer in graph order, each sees the inputs that the pruned model really gives it, errors of the layers before
included, and is fitted by least squares to the whole model's output. Where its output is added to a shortcut, the sum
is what it is fitted to, so that it also makes up for what the shortcut lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context, Request
from .._calibrated.layers import LARGEST_WIDTH, Linear, linear_layers
from .._dims.surgery import Kept
from .._edit import Edit
from .side_by_side import SideBySide


@dataclass(frozen=True)
class Fit:
    """A layer of the pruned model and the names of its input and of its target in the joint graph."""

    layer: Linear
    source: str
    target: str


def recover(
    whole: ir.Model, pruned: ir.Model, kept: Kept, context: Context, samples: int, damp: float
) -> tuple[int, list[str]]:
    """Fit the layers of `pruned`, in place; returns how many, and the names of those that could not be fitted.

    `kept`: what stayed of the tensors of `whole`, by name. One run over the data for every depth of layers.
    """
    layers = [layer for layer in linear_layers(pruned)[0] if _worth_fitting(layer, kept)]
    edit, fitted, left = Edit(pruned), 0, list[str]()
    waves = list(_waves(pruned, layers))
    with context.progress("recovering", len(waves)) as advance:
        for wave in waves:
            joint = SideBySide(whole, pruned, kept)
            fits = [Fit(layer, joint.name_of(layer.input), joint.target_of(layer.output)) for layer in wave]
            requests = {str(i): _request(fit) for i, fit in enumerate(fits)}
            found = context.collect(joint.model, requests, samples)
            for i, fit in enumerate(fits):
                if str(i) in found:
                    _fit(fit.layer, found[str(i)], damp, edit)
                    fitted += 1
                else:
                    left.append(fit.layer.output.name or "")
            advance(1)
    return fitted, left


def _worth_fitting(layer: Linear, kept: Kept) -> bool:
    axis = 1 if layer.node.op_type == "Conv" else len(layer.input.shape or ()) - 1
    return axis in kept.get(layer.input.name or "", {}) and layer.width <= LARGEST_WIDTH


def _waves(model: ir.Model, layers: Sequence[Linear]) -> Iterator[list[Linear]]:
    """Layers of equal depth, counted in layers to fit: those of one wave do not depend on each other."""
    own = {layer.output.producer(): layer for layer in layers}
    depth: dict[ir.Value, int] = {}
    waves: dict[int, list[Linear]] = {}
    for node in model.graph:
        before = max((depth.get(v, 0) for v in node.inputs if v is not None), default=0)
        if node in own:
            waves.setdefault(before, []).append(own[node])
            before += 1
        for value in node.outputs:
            depth[value] = before
    return (waves[key] for key in sorted(waves))


def _request(fit: Fit) -> Request:
    plain = fit.layer.request("regression")
    return Request(fit.source, "regression", plain.axis, plain.kernel, plain.strides, plain.pads, plain.dilations,
                   plain.groups, target=fit.target)


def _fit(layer: Linear, moments: NDArray[np.float64], damp: float, edit: Edit) -> None:
    """Ridge regression towards the weights as they are: moments (groups, K + 1, K + 1 + M / groups).

    Minimises E|y - W x - b|^2 + damp * mean diag(E x x^T) * |W - W_0|^2; the bias is free.
    """
    groups, width = len(moments), layer.width
    rows, bias = layer.rows(), layer.bias_row()
    start = np.concatenate([rows, bias[:, None]], axis=1).reshape(groups, -1, width + 1)
    gram, cross = moments[:, :, : width + 1], moments[:, :, width + 1 :]
    pull = np.zeros((groups, width + 1))
    diagonal = np.einsum("gkk->gk", gram)[:, :width]
    pull[:, :width] = damp * diagonal.mean(axis=1, keepdims=True) + np.finfo(np.float32).tiny
    pull[:, width] = 1e-12
    left = gram + np.eye(width + 1) * pull[:, None]
    right = cross + pull[:, :, None] * start.transpose(0, 2, 1)
    solved = np.linalg.solve(left, right).transpose(0, 2, 1).reshape(len(rows), width + 1)
    if np.isfinite(solved).all():
        layer.set_rows(solved[:, :width])
        layer.set_bias(solved[:, width], edit)
