"""Recovery without training: every layer that lost inputs is fitted anew to what it computed in the
whole model.

Layer by layer in graph order, each sees the inputs that the pruned model really gives it, errors of
the layers before included, and is fitted by least squares to the whole model's output. Where its
output is added to a shortcut, the sum is what it is fitted to, so that it also makes up for what
the shortcut lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context, MomentRequest, Resumes
from .._calibrated.layers import LARGEST_WIDTH, Rows, fittable_layers
from .._core.edit import Edit
from .._core.linear import LinearLayer
from .._dims.surgery import Kept
from .joint_graph import SideBySide

HALVES: tuple[Literal["even"], Literal["odd"]] = ("even", "odd")

PULLS = (1.0, 10.0, 100.0, 1000.0, 1e6)
"""Factors of the damping that are tried; the last leaves the weights as they are and fits the
bias.
"""

JUDGED_WIDTH = 2048
"""Inputs of a layer up to which solving it for every pull is cheap."""


@dataclass(frozen=True)
class Stage:
    """How far the two models have been run: `given` are the tensors that `context` has as its
    data.
    """

    context: Context
    given: Sequence[str]

    @classmethod
    def first(cls, whole: ir.Model, context: Context) -> Stage:
        return cls(
            context,
            [v.name or "" for v in whole.graph.inputs if not v.is_initializer()],
        )

    def measured(
        self, joint: SideBySide, layers: Sequence[LinearLayer], samples: int
    ) -> dict[LinearLayer, list[NDArray[np.float64]]]:
        """The moments of both halves of the data that layers are fitted from, but for what the data
        never reached.
        """
        whole = [_request(layer, joint) for layer in layers]
        requests = {
            f"{half} {i}": replace(r, part=half)
            for i, r in enumerate(whole)
            for half in HALVES
        }
        model = joint.part(
            self.given, [name for r in whole for name in (r.tensor, r.target)]
        )
        found = self.context.collect(model, requests, samples)
        halves = (
            [found[key] for half in HALVES if (key := f"{half} {i}") in found]
            for i in range(len(layers))
        )
        return {
            layer: moments
            for layer, moments in zip(layers, halves, strict=True)
            if moments
        }

    def behind(
        self, joint: SideBySide, pending: Sequence[LinearLayer], samples: int
    ) -> Stage:
        """The stage from which only what depends on pending layers is left to run; this one where
        it cannot be kept.
        """
        if not isinstance(self.context, Resumes):
            return self
        wanted = joint.frontier(pending)
        context = (
            None
            if wanted is None
            else self.context.after(joint.part(self.given, wanted), wanted, samples)
        )
        return self if context is None or wanted is None else Stage(context, wanted)


def recover(
    whole: ir.Model,
    pruned: ir.Model,
    kept: Kept,
    context: Context,
    samples: int,
    damp: float,
) -> tuple[int, list[str]]:
    """Fit the layers of `pruned`, in place; returns how many, and the names of those that could not
    be fitted.

    `kept`: what stayed of the tensors of `whole`, by name. One run over the data for every depth of
    layers.
    """
    layers = _to_fit(pruned, kept)
    edit, fitted, left = Edit(pruned), 0, list[str]()
    waves = list(_waves(pruned, layers))
    stage = Stage.first(whole, context)
    with context.progress("recovering", len(waves)) as advance:
        for number, wave in enumerate(waves):
            found = stage.measured(SideBySide(whole, pruned, kept), wave, samples)
            for layer in wave:
                if layer in found:
                    _fit(layer, found[layer], damp, edit)
                    fitted += 1
                else:
                    left.append(layer.output.name or "")
            pending = [layer for later in waves[number + 1 :] for layer in later]
            if pending:
                stage = stage.behind(SideBySide(whole, pruned, kept), pending, samples)
            advance(1)
    return fitted, left


def _to_fit(model: ir.Model, kept: Kept) -> list[LinearLayer]:
    """Layers that lost inputs, and those whose inputs drift because others did."""
    own = {
        layer.node: layer
        for layer in fittable_layers(model)[0]
        if layer.width <= LARGEST_WIDTH
    }
    drifts: set[ir.Value] = set()
    layers = []
    for node in model.graph:
        layer = own.get(node)
        if any(value in drifts for value in node.inputs) or (
            layer is not None and _lost_inputs(layer, kept)
        ):
            drifts.update(node.outputs)
            if layer is not None:
                layers.append(layer)
    return layers


def _lost_inputs(layer: LinearLayer, kept: Kept) -> bool:
    axis = 1 if layer.node.op_type == "Conv" else len(layer.input.shape or ()) - 1
    return axis in kept.get(layer.input.name or "", {})


def _waves(
    model: ir.Model, layers: Sequence[LinearLayer]
) -> Iterator[list[LinearLayer]]:
    """Layers of equal depth, counted in layers to fit: those of one wave do not depend on each
    other.
    """
    own = {layer.output.producer(): layer for layer in layers}
    depth: dict[ir.Value, int] = {}
    waves: dict[int, list[LinearLayer]] = {}
    for node in model.graph:
        before = max((depth.get(v, 0) for v in node.inputs if v is not None), default=0)
        if node in own:
            waves.setdefault(before, []).append(own[node])
            before += 1
        for value in node.outputs:
            depth[value] = before
    return (waves[key] for key in sorted(waves))


def _request(layer: LinearLayer, joint: SideBySide) -> MomentRequest:
    return replace(
        layer.request("regression"),
        tensor=joint.name_of(layer.input),
        target=joint.target_of(layer.output),
    )


def _fit(
    layer: LinearLayer, halves: Sequence[NDArray[np.float64]], damp: float, edit: Edit
) -> None:
    """Give a layer the weights that the moments (groups, K + 1, K + 1 + M / groups) of the halves
    ask for.
    """
    moments = np.mean(halves, axis=0)
    pull = damp * (
        _best_pull(layer, halves, damp)
        if len(halves) > 1 and layer.width <= JUDGED_WIDTH
        else 1.0
    )
    rows, bias = solved(layer, *_parts(layer, moments), pull)
    if np.isfinite(rows).all() and np.isfinite(bias).all():
        layer.set_rows(rows)
        layer.set_bias(bias, edit)


def _best_pull(
    layer: LinearLayer, halves: Sequence[NDArray[np.float64]], damp: float
) -> float:
    """The factor of `damp` with which a fit to one half of the data does best on the other."""
    losses = [
        sum(
            _loss(
                solved(layer, *_parts(layer, one), damp * pull), *_parts(layer, other)
            )
            for one, other in (halves, halves[::-1])
        )
        for pull in PULLS
    ]
    return PULLS[int(np.argmin(losses))]


def _parts(
    layer: LinearLayer, moments: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The Gram matrices and the products with the target."""
    return moments[:, :, : layer.width + 1], moments[:, :, layer.width + 1 :]


def _loss(
    fit: tuple[Rows, Rows], gram: NDArray[np.float64], cross: NDArray[np.float64]
) -> float:
    """E|y - W x - b|^2 less E|y|^2."""
    both = np.concatenate([fit[0], fit[1][:, None]], axis=1).reshape(
        len(gram), -1, gram.shape[1]
    )
    loss = float(
        ((both @ gram) * both).sum() - 2 * (both * cross.transpose(0, 2, 1)).sum()
    )
    return loss if np.isfinite(loss) else np.inf


def solved(
    layer: LinearLayer,
    gram: NDArray[np.float64],
    cross: NDArray[np.float64],
    damp: float,
    gone: NDArray[np.bool_] | None = None,
) -> tuple[Rows, Rows]:
    """Weights (M, K) and bias (M,) by ridge regression towards the layer's own; inputs that are
    `gone` get none.

    Minimises E|y - W x - b|^2 + damp * mean diag(E x x^T) * |W - W_0|^2; the bias is free. gram
    (groups, K + 1, K + 1) and cross (groups, K + 1, M / groups): the means of z z^T and z y^T, z =
    [x, 1]. gone: (groups, K).
    """
    groups, width = len(gram), layer.width
    rows, bias = layer.rows(), layer.bias_row()
    start = np.concatenate([rows, bias[:, None]], axis=1).reshape(groups, -1, width + 1)
    pull = np.zeros((groups, width + 1))
    diagonal = np.einsum("gkk->gk", gram)[:, :width]
    pull[:, :width] = (
        damp * diagonal.mean(axis=1, keepdims=True) + np.finfo(np.float32).tiny
    )
    pull[:, width] = 1e-12
    left = gram + np.eye(width + 1) * pull[:, None]
    right = cross + pull[:, :, None] * start.transpose(0, 2, 1)
    if gone is not None:
        out = np.concatenate([gone, np.zeros((groups, 1), bool)], axis=1)
        left = np.where(out[:, :, None] | out[:, None, :], np.eye(width + 1), left)
        right = np.where(out[:, :, None], 0.0, right)
    found = (
        np.linalg.solve(left, right).transpose(0, 2, 1).reshape(len(rows), width + 1)
    )
    return found[:, :width], found[:, width]
