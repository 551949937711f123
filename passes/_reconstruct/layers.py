"""Reconstruction without training: layers that lost inputs are fitted to the whole model's outputs.

Layer by layer in graph order, each sees the inputs that the pruned model really gives it, errors of
the layers before included, and is fitted by least squares to the whole model's output. Where its
output is added to a shortcut, the sum is what it is fitted to, so that it also makes up for what
the shortcut lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context, MomentRequest, Resumes
from .._calibrated.layers import LARGEST_WIDTH, Rows, fittable_layers
from .._core.edit import Edit
from .._core.joined import data_inputs
from .._core.linear import LinearLayer
from .._dims.surgery import Kept
from .joint_graph import JointGraph

Moments = NDArray[np.float64]
"""Regression moments (groups, K + 1, K + 1 + M / groups): the mean of z [z, y]^T, z = [x, 1]."""

HALVES: tuple[Literal["even"], Literal["odd"]] = ("even", "odd")

DAMPING_FACTORS = (1.0, 10.0, 100.0, 1000.0, 1e6)
"""Factors of the damping that are tried; the last leaves the weights as they are and fits the
bias.
"""

JUDGED_WIDTH = 2048
"""Inputs of a layer up to which solving it for every damping factor is cheap. Chosen by hand, not
measured.
"""

BIAS_DAMPING = 1e-12
"""Damping of the bias, free but for this: the matrix stays regular where no input varies."""


@dataclass(frozen=True)
class RunPoint:
    """Point up to which the two models have been run.

    `given`: tensors that `context` has as its data.
    """

    context: Context
    given: Sequence[str]

    @classmethod
    def first(cls, whole: ir.Model, context: Context) -> RunPoint:
        """Nothing run yet: the data are the model's inputs."""
        return cls(context, data_inputs(whole))

    def measured(
        self, joint: JointGraph, layers: Sequence[LinearLayer], samples: int
    ) -> dict[LinearLayer, list[Moments]]:
        """Moments of both halves of the data from which layers are fitted.

        Absent for layers that the data never reached.
        """
        requests: dict[str, MomentRequest] = {}
        tensors: list[str] = []
        for number, layer in enumerate(layers):
            request = _request(layer, joint)
            tensors.append(request.tensor)
            tensors.append(request.target)
            for half in HALVES:
                key = f"{half} {number}"
                requests[key] = replace(request, part=half)
        model = joint.submodel(self.given, tensors)
        found = self.context.collect(model, requests, samples)
        moments = {}
        for number, layer in enumerate(layers):
            keys = [f"{half} {number}" for half in HALVES]
            # few samples may all lie in one half
            halves = [found[key] for key in keys if key in found]
            if halves:
                moments[layer] = halves
        return moments

    def behind(
        self, joint: JointGraph, pending: Sequence[LinearLayer], samples: int
    ) -> RunPoint:
        """The point from which only what depends on pending layers is left to run.

        This one where the tensors there cannot be kept.
        """
        if not isinstance(self.context, Resumes):
            return self
        wanted = joint.frontier(pending)
        if wanted is None:
            return self
        model = joint.submodel(self.given, wanted)
        context = self.context.after(model, wanted, samples)
        return self if context is None else RunPoint(context, wanted)


Fit = Callable[[LinearLayer, Sequence[Moments], Edit], bool]
"""Gives a layer the weights and the bias that the moments of the halves of the data ask for.

False where it leaves the layer as it is.
"""


def reconstruct(
    whole: ir.Model,
    pruned: ir.Model,
    kept: Kept,
    context: Context,
    samples: int,
    damp: float,
) -> tuple[int, list[str]]:
    """Fit the layers of `pruned` that lost inputs, in place.

    `kept`: what stayed of the tensors of `whole`, by name. Returns the number of layers fitted, and
    the names of those that could not be.
    """

    def fit(layer: LinearLayer, halves: Sequence[Moments], edit: Edit) -> bool:
        _fit(layer, halves, damp, edit)
        return True

    def changed(layer: LinearLayer) -> bool:
        return _lost_inputs(layer, kept)

    layers = _to_fit(pruned, changed)
    return fit_layers(whole, pruned, kept, context, samples, layers, fit)


def fit_layers(
    whole: ir.Model,
    pruned: ir.Model,
    kept: Kept,
    context: Context,
    samples: int,
    layers: Sequence[LinearLayer],
    fit: Fit,
) -> tuple[int, list[str]]:
    """Fit some layers of `pruned`, in place, by `fit`.

    `kept`: what stayed of the tensors of `whole`, by name; none for all of them. One run over the
    data for every depth of layers. Returns the number of layers fitted, and the names of those that
    the data never reached.
    """
    edit = Edit(pruned)
    fitted = 0
    left: list[str] = []
    waves = _waves(pruned, layers)
    point = RunPoint.first(whole, context)
    joint = JointGraph(whole, pruned, kept)
    with context.progress("recovering", len(waves)) as advance:
        for number, wave in enumerate(waves):
            found = point.measured(joint, wave, samples)
            for tied in _tied(wave):
                reached = [layer for layer in tied if layer in found]
                if reached:
                    halves = _pooled(reached, found)
                    fitted += _fit_all(tied, reached[0], halves, fit, edit)
                else:
                    left += [layer.output.name or "" for layer in tied]
            pending: list[LinearLayer] = []
            for later in waves[number + 1 :]:
                pending += later
            if pending:
                # joined anew: the layers of this wave have other weights now
                joint = JointGraph(whole, pruned, kept)
                point = point.behind(joint, pending, samples)
            advance(1)
    return fitted, left


def _tied(layers: Sequence[LinearLayer]) -> list[list[LinearLayer]]:
    """Layers by their weight: those that share one are fitted as one."""
    by_weight: dict[ir.Value, list[LinearLayer]] = {}
    for layer in layers:
        by_weight.setdefault(layer.weight, []).append(layer)
    return list(by_weight.values())


def _pooled(
    layers: Sequence[LinearLayer], found: Mapping[LinearLayer, list[Moments]]
) -> list[Moments]:
    """Moments of layers of one weight as those of the first: the mean over all.

    Each was made for its own bias: its target is moved by what that differs from the first's.
    """
    first = layers[0]
    if len(layers) == 1:
        return found[first]
    count = min(len(found[layer]) for layer in layers)
    halves = []
    for half in range(count):
        moved = []
        for layer in layers:
            moments = found[layer][half].copy()
            gram, cross = regression_parts(layer, moments)
            more = layer.bias_row() - first.bias_row()
            # E z (y - d) is E z y - E z d, and the last column of the Gram matrix is E z
            cross -= gram[:, :, -1:] * more.reshape(layer.groups, 1, -1)
            moved.append(moments)
        halves.append(np.mean(moved, axis=0))
    return halves


def _fit_all(
    tied: Sequence[LinearLayer],
    first: LinearLayer,
    halves: Sequence[Moments],
    fit: Fit,
    edit: Edit,
) -> int:
    """Fit one of some layers of one weight, and move the biases of the others as its own moved.

    Returns the number of layers fitted.
    """
    before = first.bias_row()
    own = {layer: layer.bias_row() for layer in tied}
    if not fit(first, halves, edit):
        return 0
    moved = first.bias_row() - before
    for layer in tied:
        if layer is first or not moved.any():
            continue
        layer.set_bias(own[layer] + moved, edit)
        if np.array_equal(own[layer], before):
            _share_bias(layer, first)
    return len(tied)


def _share_bias(layer: LinearLayer, first: LinearLayer) -> None:
    """Let two layers of one weight and equal biases store one bias."""
    bias = layer.bias
    shared = first.bias
    assert bias is not None
    assert shared is not None
    if bias.shape != shared.shape:
        return
    bias.replace_all_uses_with(shared)
    graph = layer.node.graph
    assert isinstance(graph, ir.Graph)
    graph.initializers.pop(bias.name or "")
    layer.bias = shared


def _to_fit(
    model: ir.Model, changed: Callable[[LinearLayer], bool]
) -> list[LinearLayer]:
    """Layers that changed, and those whose inputs drift because others did."""
    by_node = {}
    found, _ = fittable_layers(model, tied=True)
    for layer in found:
        if layer.width <= LARGEST_WIDTH:
            by_node[layer.node] = layer
    weights: set[ir.Value] = set()
    while True:
        layers = _changing(model, by_node, changed, weights)
        found_weights = {layer.weight for layer in layers}
        # a weight that is fitted changes all its layers, which may lie before those found so far
        if found_weights == weights:
            return layers
        weights = found_weights


def _changing(
    model: ir.Model,
    by_node: Mapping[ir.Node, LinearLayer],
    changed: Callable[[LinearLayer], bool],
    weights: set[ir.Value],
) -> list[LinearLayer]:
    """Layers that changed, those of the given weights, and those behind any of them."""
    drifting: set[ir.Value] = set()
    layers = []
    for node in model.graph:
        own = by_node.get(node)
        drifts = any(value in drifting for value in node.inputs)
        changes = own is not None and (changed(own) or own.weight in weights)
        if not drifts and not changes:
            continue
        drifting.update(node.outputs)
        if own is not None:
            layers.append(own)
    return layers


def _lost_inputs(layer: LinearLayer, kept: Kept) -> bool:
    value = layer.input
    rank = len(value.shape or ())
    axis = 1 if layer.node.op_type == "Conv" else rank - 1
    kept_axes = kept.get(value.name or "", {})
    return axis in kept_axes


def _waves(model: ir.Model, layers: Sequence[LinearLayer]) -> list[list[LinearLayer]]:
    """Layers of equal depth, counted in layers to fit; layers of one weight are where the first is.

    But for those, the layers of one wave do not depend on each other.
    """
    by_producer = {layer.output.producer(): layer for layer in layers}
    depth: dict[ir.Value, int] = {}
    # of a weight: the wave that fits it, for all its layers
    first: dict[ir.Value, int] = {}
    waves: dict[int, list[LinearLayer]] = {}
    for node in model.graph:
        reached = 0
        for value in node.inputs:
            if value is None:
                continue
            reached = max(reached, depth.get(value, 0))
        layer = by_producer.get(node)
        if layer is not None:
            number = first.setdefault(layer.weight, reached)
            waves.setdefault(number, []).append(layer)
            reached += 1
        for value in node.outputs:
            depth[value] = reached
    return [waves[key] for key in sorted(waves)]


def _request(layer: LinearLayer, joint: JointGraph) -> MomentRequest:
    return replace(
        layer.request("regression"),
        tensor=joint.name_of(layer.input),
        target=joint.target_of(layer.output),
    )


def _fit(
    layer: LinearLayer, halves: Sequence[Moments], damp: float, edit: Edit
) -> None:
    """Give a layer the weights and the bias that the moments of the halves ask for."""
    factor = 1.0
    # one half has nothing to be judged on
    if len(halves) > 1 and layer.width <= JUDGED_WIDTH:
        factor = _best_damping_factor(layer, halves, damp)
    moments = np.mean(halves, axis=0)
    gram, cross = regression_parts(layer, moments)
    rows, bias = ridge_fit(layer, gram, cross, damp * factor)
    # data that overflows leaves the layer as it is
    if not np.isfinite(rows).all():
        return
    if not np.isfinite(bias).all():
        return
    layer.set_rows(rows)
    layer.set_bias(bias, edit)


def _best_damping_factor(
    layer: LinearLayer, halves: Sequence[Moments], damp: float
) -> float:
    """Factor of `damp` with which a fit to one half of the data does best on the other."""
    best = DAMPING_FACTORS[0]
    least = np.inf
    for factor in DAMPING_FACTORS:
        loss = 0.0
        # each half is fitted once and judged once
        for one, other in (halves, halves[::-1]):
            gram, cross = regression_parts(layer, one)
            fit = ridge_fit(layer, gram, cross, damp * factor)
            gram, cross = regression_parts(layer, other)
            loss += regression_loss(fit, gram, cross)
        # with more damping it falls, then it rises
        if loss > least:
            break
        if loss < least:
            best = factor
            least = loss
    return best


def regression_parts(layer: LinearLayer, moments: Moments) -> tuple[Moments, Moments]:
    """Gram matrices of the inputs, and their products with the target."""
    inputs = layer.width + 1
    gram = moments[:, :, :inputs]
    cross = moments[:, :, inputs:]
    return gram, cross


def regression_loss(fit: tuple[Rows, Rows], gram: Moments, cross: Moments) -> float:
    """E|y - W x - b|^2 less E|y|^2; infinite where that is not finite."""
    rows, bias = fit
    groups, size, _ = gram.shape
    both = np.concatenate([rows, bias[:, None]], axis=1)
    both = both.reshape(groups, -1, size)
    output = both @ gram
    power = (output * both).sum()
    wanted = cross.transpose(0, 2, 1)
    shared = (both * wanted).sum()
    loss = float(power - 2 * shared)
    if not np.isfinite(loss):
        return np.inf
    return loss


def ridge_fit(
    layer: LinearLayer,
    gram: Moments,
    cross: Moments,
    damp: float,
    gone: NDArray[np.bool_] | None = None,
) -> tuple[Rows, Rows]:
    """Weights (M, K) and bias (M,) of a layer by ridge regression towards its own.

    Minimises E|y - W x - b|^2 + damp * mean diag(E x x^T) * |W - W_0|^2; the bias is free. gram
    (groups, K + 1, K + 1) and cross (groups, K + 1, M / groups): the means of z z^T and z y^T, z =
    [x, 1]. gone (groups, K): inputs that get no weight.
    """
    groups, size, _ = gram.shape
    width = size - 1
    # the weights that the fit is pulled to, shaped as `cross` is
    own = rows_with_bias(layer)
    start = own.reshape(groups, -1, size)
    start = start.transpose(0, 2, 1)
    pull = damping(gram, damp)
    diagonal = np.eye(size) * pull[:, None]
    left = gram + diagonal
    # what the pull alone would give: the layer's own weights
    pulled = pull[:, :, None] * start
    right = cross + pulled
    if gone is not None:
        left, right = _without(gone, left, right)
    solution = np.linalg.solve(left, right)
    solution = solution.transpose(0, 2, 1)
    found = np.asarray(solution.reshape(len(own), size), np.float64)
    rows = found[:, :width]
    bias = found[:, width]
    return rows, bias


def own_products(layer: LinearLayer, gram: Moments) -> Moments:
    """Mean of z y^T, y being what the layer itself makes of z = [x, 1].

    Shapes: gram (groups, K + 1, K + 1) -> (groups, K + 1, M / groups).
    """
    groups, size, _ = gram.shape
    own = rows_with_bias(layer)
    each = own.reshape(groups, -1, size)
    return np.asarray(gram @ each.transpose(0, 2, 1))


def rows_with_bias(layer: LinearLayer) -> Rows:
    """Weights and bias of a layer as it is, (M, K + 1)."""
    rows = layer.rows()
    bias = layer.bias_row()
    return np.concatenate([rows, bias[:, None]], axis=1)


def damping(gram: Moments, damp: float) -> Moments:
    """Damping of each weight and of the bias, (groups, K + 1, K + 1) -> (groups, K + 1)."""
    groups, size, _ = gram.shape
    inputs = size - 1
    power = np.einsum("gkk->gk", gram)
    power = power[:, :inputs]
    mean_power = power.mean(axis=1, keepdims=True)
    # the smallest float32: inputs that were never active leave their weights as they are
    smallest = np.finfo(np.float32).tiny
    pull = np.zeros((groups, size))
    pull[:, :inputs] = damp * mean_power + smallest
    pull[:, inputs] = BIAS_DAMPING
    return pull


def _without(
    gone: NDArray[np.bool_], left: Moments, right: Moments
) -> tuple[Moments, Moments]:
    """Both sides of the normal equations with a solution of zero for the inputs that are gone."""
    groups = len(gone)
    bias_stays = np.zeros((groups, 1), bool)
    out = np.concatenate([gone, bias_stays], axis=1)
    row = out[:, :, None]
    column = out[:, None, :]
    # rows and columns of the identity: the solution there is the right side
    identity = np.eye(left.shape[1])
    left = np.where(row | column, identity, left)
    right = np.where(row, 0.0, right)
    return left, right
