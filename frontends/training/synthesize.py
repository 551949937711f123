"""Inputs made up so that a model's BatchNormalizations see the statistics of their training.

They need no data, and are weak. Source: ZeroQ (arXiv:2001.00281); DeepInversion
(arXiv:1912.08795), of which the classes drawn at random are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from ... import RefusedError
from ...passes._core.ops import is_standard
from ..trainable import TrainableModule, to_torch
from .heads import Head, find_heads

Tensor = Any

STEPS = 150
"""Steps of gradient descent for each batch; chosen by hand, not measured."""

BATCH = 64
"""Rows that are made up together: enough for statistics of a batch. Chosen by hand."""

RATE = 0.1
"""Adam's rate, in units of the inputs, which start with a deviation of 1; chosen by hand."""

CLASSES_WEIGHT = 0.1
"""Weight of the cross-entropy against classes drawn at random; chosen by hand, not measured."""

LEAST_VARIANCE = 1e-5
"""Floor of a wanted variance, which is divided by: BatchNormalization's usual epsilon."""

SMALLEST_VARIANCE = 1e-12
"""Floor of a batch's variance: at 0 the gradient of its root is not finite."""


class RunningMoments(NamedTuple):
    """Mean and variance by channel, (C,)."""

    mean: Tensor
    variance: Tensor


def synthesize(model: ir.Model, rows: int, seed: int) -> list[dict[str, NDArray[Any]]]:
    """Return about `rows` inputs, in batches by name, from noise by gradient descent.

    Errors: RefusedError without BatchNormalization, for several inputs, or open axes besides the
    batch.
    """
    name, shape = _only_input(model)
    wanted = _running_moments(model)
    if not wanted:
        raise RefusedError(
            "finetune.synthesize",
            "the graph has no BatchNormalization to learn inputs from",
            "give --data; exporters and simplify fold BatchNormalization away",
        )
    heads = find_heads(model, model)
    classes = None
    if heads[0].kind == "classes":
        classes = heads[0]
    module = _module(model, [tap for tap, _ in wanted], heads)
    batches = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(0, rows, BATCH):
            batch = _batch(
                module,
                name=name,
                shape=shape,
                wanted=wanted,
                classes=classes,
            )
            batches.append({name: batch})
    return batches


def _module(
    model: ir.Model, names: Sequence[str], heads: Sequence[Head]
) -> TrainableModule:
    """Return the model as a module that gives these values and the logits of its heads."""
    # by name, each once
    taps = dict.fromkeys(names)
    for head in heads:
        if head.kind == "classes":
            taps[head.student] = None
    for output in model.graph.outputs:
        taps.pop(output.name or "", None)
    return to_torch(
        model,
        train=False,
        taps=list(taps),
        qat="off",
    )


def _batch(
    module: TrainableModule,
    name: str,
    shape: Sequence[int],
    wanted: Sequence[tuple[str, RunningMoments]],
    classes: Head | None,
) -> NDArray[Any]:
    """Return one batch, (BATCH, *shape). `wanted`: moments of values by name."""
    x = torch.randn(BATCH, *shape, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=RATE)
    drawn: Tensor = None
    for _ in range(STEPS):
        values = module.run({name: x})
        loss: Tensor = 0.0
        for tap, moments in wanted:
            loss = loss + _distance(values[tap], moments)
        if classes is not None:
            logits = values[classes.student]
            rows = logits.movedim(classes.axis, -1).flatten(0, -2)
            # drawn once a batch, so that every step pulls a row towards the same class
            if drawn is None:
                count, number = rows.shape
                drawn = torch.randint(number, (count,))
            entropy = F.cross_entropy(rows, drawn)
            loss = loss + CLASSES_WEIGHT * entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    array: NDArray[Any] = x.detach().numpy()
    return array


def _only_input(model: ir.Model) -> tuple[str, list[int]]:
    """Return name and shape, without the batch, of the model's only input."""
    inputs = [value for value in model.graph.inputs if value.const_value is None]
    first = inputs[0] if len(inputs) == 1 else None
    if first is not None and first.dtype == ir.DataType.FLOAT and first.shape:
        dims = list(first.shape)[1:]
        fixed = [dim for dim in dims if isinstance(dim, int)]
        if len(fixed) == len(dims):
            return first.name or "", fixed
    raise RefusedError(
        "finetune.synthesize",
        "the model does not take one float tensor whose axes are known",
        "give --data",
    )


def _running_moments(model: ir.Model) -> list[tuple[str, RunningMoments]]:
    """Return the input of each BatchNormalization by name, with the moments that it expects."""
    found = []
    for node in model.graph:
        if not is_standard(node, "BatchNormalization"):
            continue
        x, _, _, mean, variance = node.inputs
        moments = RunningMoments(_constant(mean), _constant(variance))
        if x is None or moments.mean is None or moments.variance is None:
            continue
        found.append((x.name or "", moments))
    return found


def _constant(value: ir.Value | None) -> Tensor:
    """Return a constant as a tensor, None for every other value."""
    if value is None:
        return None
    stored = ir.convenience.get_const_tensor(value)
    if stored is None:
        return None
    # a copy: torch warns about arrays that cannot be written, as stored ones cannot
    array = np.array(stored.numpy())
    return torch.from_numpy(array)


def _distance(x: Tensor, wanted: RunningMoments) -> Tensor:
    """Return the distance of a batch's moments from those wanted, relative to the deviation."""
    # channels are axis 1 of what a BatchNormalization reads
    axes = list(range(x.ndim))
    axes.remove(1)
    variance, mean = torch.var_mean(
        x,
        dim=axes,
        correction=0,
    )
    # deviations, not variances: their errors are in units of the inputs
    floored = variance.clamp_min(SMALLEST_VARIANCE)
    unit = wanted.variance.clamp_min(LEAST_VARIANCE)
    mean_error = mean - wanted.mean
    deviation_error = floored.sqrt() - unit.sqrt()
    of_mean = mean_error.square() / unit
    of_deviation = deviation_error.square() / unit
    return of_mean.mean() + of_deviation.mean()
