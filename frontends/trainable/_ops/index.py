"""Ops that pick or place elements by index."""

from __future__ import annotations

from typing import Any

import torch

from .._registry import op

Tensor = Any


def positive(indices: Tensor, size: int) -> Tensor:
    """Indices that count from the end, from the front."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@op("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis % x.ndim
    picked = x.index_select(axis, positive(indices, x.shape[axis]).reshape(-1))
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@op("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, positive(indices, x.shape[axis]))


@op("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    depth = indices.shape[-1]
    lead = []
    for dim in range(batch_dims):
        shape = [1] * (indices.ndim - 1)
        shape[dim] = x.shape[dim]
        lead.append(torch.arange(x.shape[dim], device=x.device).reshape(shape))
    tail = [positive(indices[..., i], x.shape[batch_dims + i]) for i in range(depth)]
    return x[tuple(lead + tail)]


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("Scatter")
@op("ScatterElements")
def scatter_elements(
    x: Tensor,
    indices: Tensor,
    updates: Tensor,
    *,
    axis: int = 0,
    reduction: str = "none",
) -> Tensor:
    at = positive(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, at, updates)
    return x.scatter_reduce(axis, at, updates, _REDUCE[reduction])


@op("ScatterND")
def scatter_nd(
    x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none"
) -> Tensor:
    """Rows of the leading dims flattened to one, so that a scatter along it does all reductions."""
    depth = indices.shape[-1]
    row = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for dim in range(depth):
        row = row * x.shape[dim] + positive(indices[..., dim], x.shape[dim])
    inner = x.shape[depth:].numel()
    flat = x.reshape(-1, inner)
    at = row.reshape(-1, 1).expand(-1, inner)
    values = updates.reshape(-1, inner)
    if reduction == "none":
        return flat.scatter(0, at, values).reshape(x.shape)
    return flat.scatter_reduce(0, at, values, _REDUCE[reduction]).reshape(x.shape)


@op("TensorScatter")
def tensor_scatter(
    past: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """New steps of a cache written at each sequence's own place."""
    axis = axis % past.ndim
    at = torch.arange(update.shape[axis], device=past.device).expand(past.shape[0], -1)
    at = at if write_indices is None else at + write_indices.reshape(-1, 1)
    at = at % past.shape[axis] if mode == "circular" else at
    shape = [
        past.shape[0],
        *(1,) * (axis - 1),
        update.shape[axis],
        *(1,) * (past.ndim - axis - 1),
    ]
    return past.scatter(axis, at.reshape(shape).expand(update.shape), update)


@op("TopK", many=True)
def top_k_by_attribute(x: Tensor, *, axis: int = -1, k: int) -> tuple[Tensor, ...]:
    return _top_k(x, k, axis, True)


@op("TopK", 10, many=True, host=(1,))
def top_k(
    x: Tensor, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, ...]:
    return _top_k(x, k[0] if isinstance(k, list) else k, axis, bool(largest))


def _top_k(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, ...]:
    """Of equal elements the first comes first (torch.topk promises no order)."""
    values, where = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), where.narrow(axis, 0, k)


@op("OneHot", 9, host=(1,), gradient=False)
def one_hot(indices: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    size = int(depth[0] if isinstance(depth, list) else depth)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    classes = torch.arange(size, device=indices.device).reshape(
        -1, *(1,) * (indices.ndim - axis)
    )
    at = indices.to(torch.int64).unsqueeze(axis)
    return torch.where(
        (at % size == classes) & (at >= -size) & (at < size), values[1], values[0]
    )


@op("NonZero", gradient=False)
def non_zero(x: Tensor) -> Tensor:
    return (
        torch.stack(torch.nonzero(x, as_tuple=True))
        if x.ndim
        else torch.nonzero(x).T.reshape(0, -1)
    )


@op("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    where = torch.nonzero(condition)[:, 0]
    return (
        x.reshape(-1).index_select(0, where)
        if axis is None
        else x.index_select(axis, where)
    )
