"""Gradients of a model's loss by its weights, for passes that rank by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..passes._core.context import Gradient
from .trainable import TrainableModule, to_torch

Array = NDArray[Any]
Batches = Iterable[tuple[Mapping[str, Array], Array | None]]
"""Feeds by input name, and labels or None."""

Tensor = Any


class Sample(NamedTuple):
    """One row, or a batch that does not come apart: feeds by name, label or None."""

    feeds: dict[str, Array]
    label: Array | None


def loss_gradients(
    model: ir.Model, batches: Batches, weights: Sequence[str], samples: int
) -> dict[str, Gradient]:
    """Return gradients by initializer, over at most `samples` samples.

    The loss of a sample: cross-entropy of the first output (N, C) against its label, or without
    labels against its own most likely class; half the mean square of the float outputs where they
    are not classes. Weights that it does not depend on are absent. Errors: UsageError for a weight
    that the model lacks; those of `to_torch`.
    """
    import torch

    module = to_torch(
        model,
        train=weights,
        qat="off",
    )
    sums: dict[str, Gradient] = {}
    seen = 0
    # callers may have gradients switched off
    with torch.enable_grad():
        for sample in _samples(batches, samples):
            outputs = module.run(sample.feeds)
            loss = _loss(list(outputs.values()), sample.label)
            seen += 1
            # it counts all the same: its gradient is zero
            if loss is None:
                continue
            # squares are of each sample's own gradient: none may add up
            module.zero_grad(set_to_none=True)
            loss.backward()
            _add_gradients(module, sums)
    found = {}
    for name, total in sums.items():
        found[name] = Gradient(
            mean=total.mean / seen,
            square=total.square / seen,
        )
    return found


def _samples(batches: Batches, count: int) -> Iterator[Sample]:
    """Yield one sample at a time; batches whose inputs do not share their first axis stay whole."""
    left = count
    for feeds, labels in batches:
        rows = _shared_rows(feeds)
        if rows is None:
            yield Sample(dict(feeds), labels)
            left -= 1
        else:
            taken = min(rows, left)
            for row in range(taken):
                yield _sample(feeds, labels, row)
            left -= taken
        if left <= 0:
            return


def _shared_rows(feeds: Mapping[str, Array]) -> int | None:
    """Return the length of the first axis that all inputs share, None if they do not."""
    lengths = set()
    for array in feeds.values():
        if array.ndim == 0:
            return None
        lengths.add(array.shape[0])
    if len(lengths) != 1:
        return None
    return int(lengths.pop())


def _sample(feeds: Mapping[str, Array], labels: Array | None, row: int) -> Sample:
    """Return one row, its first axis kept at a length of 1."""
    place = slice(row, row + 1)
    one = {name: array[place] for name, array in feeds.items()}
    label = None if labels is None else labels[place]
    return Sample(one, label)


def _loss(outputs: list[Tensor], label: Array | None) -> Tensor:
    """Return the loss of one sample, None where no output has a gradient."""
    first = outputs[0]
    if _is_float(first) and first.ndim == 2 and first.shape[1] > 1:
        return _class_loss(first, label)
    # integer outputs, such as boxes' classes, have no gradient
    loss = None
    for output in outputs:
        if _is_float(output) and output.requires_grad:
            energy = output.square().mean() / 2
            loss = energy if loss is None else loss + energy
    return loss


def _is_float(output: Tensor) -> bool:
    import torch

    return isinstance(output, torch.Tensor) and output.is_floating_point()


def _class_loss(logits: Tensor, label: Array | None) -> Tensor:
    """Return the cross-entropy of the label, or of the most likely class without a class number."""
    import torch

    if label is not None and label.ndim == 1 and label.dtype.kind in "iu":
        wanted = torch.from_numpy(np.asarray(label, np.int64))
    else:
        wanted = logits.detach().argmax(1)
    loss = torch.nn.functional.cross_entropy(
        logits,
        wanted.to(logits.device),
    )
    return loss if loss.requires_grad else None


def _add_gradients(module: TrainableModule, sums: dict[str, Gradient]) -> None:
    """Add the gradients of one sample, and their squares, to the sums by initializer."""
    for parameter_name, parameter in module.named_parameters():
        if parameter.grad is None:
            continue
        # in double, and on the CPU: sums of many small squares lose digits in float32
        gradient = parameter.grad.detach().cpu().double().numpy()
        name = module.origins[parameter_name].name
        if name not in sums:
            sums[name] = Gradient(
                mean=np.zeros(gradient.shape),
                square=np.zeros(gradient.shape),
            )
        total = sums[name]
        # in place: the arrays of a frozen value may change
        total.mean[...] += gradient
        total.square[...] += np.square(gradient)
