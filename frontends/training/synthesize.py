"""Inputs made up so that a model's BatchNormalizations see what they saw in training: weak, but
without data.

Source: ZeroQ (arXiv:2001.00281); DeepInversion (arXiv:1912.08795), of which the classes drawn at
random are taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from ... import RefusedError
from ..trainable import to_torch
from .heads import find_heads

STEPS = 150
BATCH = 64
RATE = 0.1
CLASSES_WEIGHT = 0.1


def synthesize(model: ir.Model, rows: int, seed: int) -> list[dict[str, NDArray[Any]]]:
    """About `rows` inputs, in batches by name, from noise by gradient descent.

    Errors: RefusedError without BatchNormalization, for several inputs, or open axes besides the
    batch.
    """
    name, shape = _input_of(model)
    normal = [
        n
        for n in model.graph
        if n.op_type == "BatchNormalization" and not n.domain and _statistics(n)
    ]
    if not normal:
        raise RefusedError(
            "finetune.synthesize",
            "the graph has no BatchNormalization to learn inputs from",
            "give --data; exporters and simplify fold BatchNormalization away",
        )
    heads = find_heads(model, model)
    taps = [n.inputs[0].name or "" for n in normal if n.inputs[0] is not None]
    tapped = [
        *dict.fromkeys([*taps, *(h.student for h in heads if h.kind == "classes")])
    ]
    outputs = {value.name for value in model.graph.outputs}
    module = to_torch(
        model, train=False, taps=[t for t in tapped if t not in outputs], qat="off"
    )
    wanted = [_statistics(node) for node in normal]
    batches = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(-(-rows // BATCH)):
            x = torch.randn(BATCH, *shape, requires_grad=True)
            optimizer = torch.optim.Adam([x], lr=RATE)
            truth: Any = None
            for _ in range(STEPS):
                values = module.run({name: x})
                loss = sum(
                    _distance(values[tap], *stats)
                    for tap, stats in zip(taps, wanted, strict=True)
                )
                if heads[0].kind == "classes":
                    logits = (
                        values[heads[0].student]
                        .movedim(heads[0].axis, -1)
                        .flatten(0, -2)
                    )
                    truth = (
                        torch.randint(logits.shape[-1], logits.shape[:1])
                        if truth is None
                        else truth
                    )
                    loss = loss + CLASSES_WEIGHT * F.cross_entropy(logits, truth)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            batches.append({name: x.detach().numpy()})
    return batches


def _input_of(model: ir.Model) -> tuple[str, list[int]]:
    inputs = [value for value in model.graph.inputs if value.const_value is None]
    shape = (
        inputs[0].shape
        if len(inputs) == 1 and inputs[0].dtype == ir.DataType.FLOAT
        else None
    )
    if shape is None or any(not isinstance(dim, int) for dim in list(shape)[1:]):
        raise RefusedError(
            "finetune.synthesize",
            "the model does not take one float tensor whose axes are known",
            "give --data",
        )
    return inputs[0].name or "", [
        int(dim) for dim in list(shape)[1:] if isinstance(dim, int)
    ]


def _statistics(node: ir.Node) -> Any:
    """Running mean and variance as tensors; None where they are not constant."""
    tensors = [
        None if v is None else ir.convenience.get_const_tensor(v)
        for v in node.inputs[3:5]
    ]
    return (
        None
        if None in tensors
        else [torch.from_numpy(np.array(t.numpy())) for t in tensors if t is not None]
    )


def _distance(x: Any, mean: Any, variance: Any) -> Any:
    """Of the statistics of a batch from those wanted, in units of the wanted deviation."""
    over = tuple(d for d in range(x.ndim) if d != 1)
    found_variance, found_mean = torch.var_mean(x, dim=over, correction=0)
    floor = variance.clamp_min(1e-5)
    spread = (found_variance.clamp_min(1e-12).sqrt() - floor.sqrt()).square() / floor
    return ((found_mean - mean).square() / floor).mean() + spread.mean()
