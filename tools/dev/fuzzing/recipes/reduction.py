"""Ops that sum, rank or normalize along axes."""

from __future__ import annotations

import numpy as np

from ..builder import FLOATS, Builder, Rejected, Value
from .movement import axis_of
from .registry import recipe

REDUCTIONS = [
    "ReduceSum",
    "ReduceSum",
    "ReduceMean",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
]


@recipe(4)
def reduce(b: Builder) -> None:
    op = b.one_of(REDUCTIONS)
    dtypes = FLOATS if op != "ReduceSum" else (*FLOATS, "int64", "int32")
    x = b.pick(dtypes, rank=(1, 2, 3, 4))
    axes = sorted(b.random.permutation(x.rank)[: b.number(1, x.rank)].tolist())
    if b.chance(0.3):
        axes = [axis - x.rank for axis in axes]
    keepdims = b.number(0, 1)
    as_input = op == "ReduceSum" or b.opset >= 18
    if b.chance(0.1):
        # no axes: all of them, or none
        extra = {"noop_with_empty_axes": b.number(0, 1)} if as_input else {}
        b.node(op, [x], keepdims=keepdims, **extra)
    elif as_input:
        b.node(op, [x, b.ints(*axes)], keepdims=keepdims)
    else:
        b.node(op, [x], axes=axes, keepdims=keepdims)


def _untied(b: Builder, x: Value, axis: int) -> None:
    """Reject inexact values of which two on the axis are nearly equal."""
    if x.exact or x.shape[axis] < 2:
        return
    ordered = np.sort(x.array.astype(np.float64), axis=axis)
    gaps = np.diff(ordered, axis=axis)
    if np.any(gaps < 1e-3 * (1 + np.abs(x.array).max(initial=0))):
        raise Rejected("a result would jump with float noise")


@recipe(1.5)
def arg_extreme(b: Builder) -> None:
    x = b.pick(rank=(1, 2, 3))
    axis = axis_of(b, x)
    _untied(b, x, axis)
    extra = {"select_last_index": 1} if b.chance(0.2) else {}
    op = b.one_of(["ArgMax", "ArgMin"])
    b.node(op, [x], axis=axis, keepdims=b.number(0, 1), **extra)


@recipe(1)
def top_k(b: Builder) -> None:
    x = b.pick(rank=(1, 2, 3))
    axis = axis_of(b, x)
    _untied(b, x, axis)
    count = b.ints(b.number(1, max(x.shape[axis], 1)))
    b.nodes("TopK", [x, count], 2, axis=axis, largest=b.number(0, 1))


@recipe(3)
def softmax(b: Builder) -> None:
    x = b.pick(rank=(1, 2, 3))
    b.node(b.one_of(["Softmax", "Softmax", "LogSoftmax"]), [x], axis=axis_of(b, x))


@recipe(0.4)
def hardmax(b: Builder) -> None:
    x = b.pick(rank=(1, 2))
    _untied(b, x, -1)
    b.node("Hardmax", [x], axis=-1)


@recipe(0.8)
def cumulative_sum(b: Builder) -> None:
    x = b.pick((*FLOATS, "int64", "int32"), rank=(1, 2, 3))
    axis = b.constant(np.asarray(axis_of(b, x), np.int64))
    b.node("CumSum", [x, axis], exclusive=b.number(0, 1), reverse=b.number(0, 1))


@recipe(0.4)
def unique(b: Builder) -> None:
    x = b.pick(("int64", "int32"), rank=(1,))
    b.nodes("Unique", [x], b.number(1, 4))


@recipe(0.5)
def lp_normalization(b: Builder) -> None:
    x = b.pick(rank=(2, 3), test=lambda v: v.array.size > 0)
    norm = b.number(1, 2)
    sizes = np.linalg.norm(x.array.astype(np.float64), norm, axis=-1)
    if np.any(sizes < 0.1):
        raise Rejected("ill conditioned")
    b.node("LpNormalization", [x], axis=-1, p=norm)
