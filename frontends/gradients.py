"""Gradients of a model's loss by its weights, for passes that rank by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .trainable import TrainableModule, to_torch

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]


def loss_gradients(
    model: ir.Model,
    batches: Iterable[tuple[Mapping[str, NDArray[Any]], NDArray[Any] | None]],
    weights: Sequence[str],
    samples: int,
) -> dict[str, Moments]:
    """By initializer the mean of the samples' gradients and the mean of their squares, in the
    weight's shape.

    The loss of a sample: cross-entropy of the first output (N, C) against its label, or without
    labels against its own most likely class; half the mean square of the float outputs where they
    are not classes. Weights that it does not depend on are absent. Errors: UsageError for a weight
    that the model lacks; those of `to_torch`.
    """
    import torch

    module = to_torch(model, train=weights, qat="off")
    sums: dict[str, list[NDArray[np.float64]]] = {}
    seen = 0
    with torch.enable_grad():
        for feeds, label in _rows(batches, samples):
            loss = _loss(list(module.run(feeds).values()), label)
            seen += 1
            if loss is None:
                continue
            module.zero_grad(set_to_none=True)
            loss.backward()
            for name, gradient in _gradients(module):
                mean, square = sums.setdefault(
                    name, [np.zeros(gradient.shape), np.zeros(gradient.shape)]
                )
                mean += gradient
                square += np.square(gradient)
    return {name: (mean / seen, square / seen) for name, (mean, square) in sums.items()}


def _rows(
    batches: Iterable[tuple[Mapping[str, NDArray[Any]], NDArray[Any] | None]],
    samples: int,
) -> Iterator[tuple[dict[str, NDArray[Any]], Any]]:
    """One sample at a time; a batch whose inputs do not share their first axis stays whole."""
    left = samples
    for feeds, labels in batches:
        lengths = {array.shape[0] if array.ndim else -1 for array in feeds.values()}
        if len(lengths) != 1 or -1 in lengths:
            yield dict(feeds), labels
            left -= 1
        else:
            for row in range(min(lengths.pop(), left)):
                one = {name: array[row : row + 1] for name, array in feeds.items()}
                yield one, None if labels is None else labels[row : row + 1]
                left -= 1
        if left <= 0:
            return


def _loss(outputs: list[Any], label: NDArray[Any] | None) -> Any:
    """The loss of one sample; None where nothing that comes out has a gradient."""
    import torch

    first = outputs[0]
    if (
        isinstance(first, torch.Tensor)
        and first.is_floating_point()
        and first.ndim == 2
        and first.shape[1] > 1
    ):
        integers = label is not None and label.ndim == 1 and label.dtype.kind in "iu"
        wanted = (
            torch.from_numpy(np.asarray(label, np.int64))
            if integers
            else first.detach().argmax(1)
        )
        loss = torch.nn.functional.cross_entropy(first, wanted.to(first.device))
        return loss if loss.requires_grad else None
    floats = [
        y
        for y in outputs
        if isinstance(y, torch.Tensor) and y.is_floating_point() and y.requires_grad
    ]
    return sum(y.square().mean() / 2 for y in floats) if floats else None


def _gradients(module: TrainableModule) -> Iterator[tuple[str, NDArray[np.float64]]]:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            yield (
                module.origins[name].name,
                parameter.grad.detach().cpu().double().numpy(),
            )
