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


class Moments(NamedTuple):
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
    classes = heads[0] if heads[0].kind == "classes" else None
    outputs = {value.name for value in model.graph.outputs}
    seen = [tap for tap, _ in wanted]
    seen += [head.student for head in heads if head.kind == "classes"]
    taps = [tap for tap in dict.fromkeys(seen) if tap not in outputs]
    module = to_torch(model, train=False, taps=taps, qat="off")
    count = -(-rows // BATCH)  # rounded up
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [
            {name: _batch(module, name, shape, wanted, classes)} for _ in range(count)
        ]


def _batch(
    module: TrainableModule,
    name: str,
    shape: Sequence[int],
    wanted: Sequence[tuple[str, Moments]],
    classes: Head | None,
) -> NDArray[Any]:
    """Return one batch, (BATCH, *shape). `wanted`: moments of values by name."""
    x = torch.randn(BATCH, *shape, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=RATE)
    drawn: Tensor = None
    for _ in range(STEPS):
        values = module.run({name: x})
        loss = sum(_distance(values[tap], moments) for tap, moments in wanted)
        if classes is not None:
            logits = values[classes.student].movedim(classes.axis, -1).flatten(0, -2)
            # drawn once a batch, so that every step pulls a row towards the same class
            if drawn is None:
                drawn = torch.randint(logits.shape[-1], logits.shape[:1])
            loss = loss + CLASSES_WEIGHT * F.cross_entropy(logits, drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.asarray(x.detach().numpy())


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


def _running_moments(model: ir.Model) -> list[tuple[str, Moments]]:
    """Return the input of each BatchNormalization by name, with the moments that it expects."""
    found = []
    for node in model.graph:
        if not is_standard(node, "BatchNormalization"):
            continue
        mean = _constant(node.inputs[3])
        variance = _constant(node.inputs[4])
        before = node.inputs[0]
        if mean is not None and variance is not None and before is not None:
            found.append((before.name or "", Moments(mean, variance)))
    return found


def _constant(value: ir.Value | None) -> Tensor:
    """Return a constant as a tensor, None for every other value."""
    stored = None if value is None else ir.convenience.get_const_tensor(value)
    # a copy: torch warns about arrays that cannot be written, as stored ones cannot
    return None if stored is None else torch.from_numpy(np.array(stored.numpy()))


def _distance(x: Tensor, wanted: Moments) -> Tensor:
    """Return the distance of a batch's moments from those wanted, relative to the deviation."""
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    variance, mean = torch.var_mean(x, dim=axes, correction=0)
    floor = wanted.variance.clamp_min(LEAST_VARIANCE)
    deviation = variance.clamp_min(SMALLEST_VARIANCE).sqrt()
    of_mean = (mean - wanted.mean).square() / floor
    of_deviation = (deviation - floor.sqrt()).square() / floor
    return of_mean.mean() + of_deviation.mean()
