"""Ops that pick or place elements by index."""

from __future__ import annotations

from typing import Any

import torch

from .._registry import op

Tensor = Any


def positive(indices: Tensor, size: int) -> Tensor:
    """Return indices that may count from the end as indices from the front."""
    indices = indices.to(torch.int64)
    counted_from_end = indices < 0
    return torch.where(counted_from_end, indices + size, indices)


@op("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis % x.ndim
    # index_select takes a vector of indices only
    size = x.shape[axis]
    at = positive(indices, size)
    flat = at.reshape(-1)
    picked = x.index_select(axis, flat)
    before = x.shape[:axis]
    after = x.shape[axis + 1 :]
    shape = [*before, *indices.shape, *after]
    return picked.reshape(shape)


@op("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    size = x.shape[axis]
    at = positive(indices, size)
    return x.gather(axis, at)


@op("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """(*batch, *positions, depth) indices of the first `depth` dims behind the batch dims."""
    places = []
    # along a batch dim every index stays at its own row
    for dim in range(batch_dims):
        size = x.shape[dim]
        rank = indices.ndim - 1
        shape = [1] * rank
        shape[dim] = size
        rows = torch.arange(size, device=x.device)
        places.append(rows.reshape(shape))
    depth = indices.shape[-1]
    for i in range(depth):
        size = x.shape[batch_dims + i]
        component = indices[..., i]
        places.append(positive(component, size))
    return x[tuple(places)]


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""ONNX's words for reductions -> torch's."""


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
    size = x.shape[axis]
    at = positive(indices, size)
    if reduction == "none":
        return x.scatter(axis, at, updates)
    return x.scatter_reduce(
        axis,
        at,
        updates,
        _REDUCE[reduction],
    )


@op("ScatterND")
def scatter_nd(
    x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none"
) -> Tensor:
    """Rows of the leading dims flattened to one, so that a scatter along it does all reductions."""
    depth = indices.shape[-1]
    positions = indices.shape[:-1]
    row = torch.zeros(positions, dtype=torch.int64, device=x.device)
    for dim in range(depth):
        size = x.shape[dim]
        component = indices[..., dim]
        place = positive(component, size)
        row = row * size + place
    inner = x.shape[depth:].numel()
    flat = x.reshape(-1, inner)
    column = row.reshape(-1, 1)
    at = column.expand(-1, inner)
    values = updates.reshape(-1, inner)
    if reduction == "none":
        y = flat.scatter(0, at, values)
    else:
        y = flat.scatter_reduce(
            0,
            at,
            values,
            _REDUCE[reduction],
        )
    return y.reshape(x.shape)


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
    batch = past.shape[0]
    steps = update.shape[axis]
    new_steps = torch.arange(steps, device=past.device)
    at = new_steps.expand(batch, -1)
    if write_indices is not None:
        starts = write_indices.reshape(-1, 1)
        at = at + starts
    if mode == "circular":
        # a full cache overwrites its oldest steps
        capacity = past.shape[axis]
        at = at % capacity
    shape = [1] * past.ndim
    shape[0] = batch
    shape[axis] = steps
    index = at.reshape(shape)
    index = index.expand(update.shape)
    return past.scatter(axis, index, update)


@op("TopK", many=True)
def top_k_by_attribute(x: Tensor, *, axis: int = -1, k: int) -> tuple[Tensor, ...]:
    return _top_k(x, k, axis, True)


@op("TopK", 10, many=True, host=(1,))
def top_k(
    x: Tensor, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, ...]:
    count = k[0] if isinstance(k, list) else k
    return _top_k(
        x,
        count,
        axis,
        bool(largest),
    )


def _top_k(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, ...]:
    """Sort all: equal elements must come in their own order, and torch.topk promises none."""
    values, where = torch.sort(
        x,
        dim=axis,
        descending=largest,
        stable=True,
    )
    best = values.narrow(axis, 0, k)
    places = where.narrow(axis, 0, k)
    return best, places


@op("OneHot", 9, host=(1,), gradient=False)
def one_hot(indices: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    """`values`: (off, on); indices out of range are off everywhere."""
    number = depth[0] if isinstance(depth, list) else depth
    size = int(number)
    if axis < 0:
        # the result has one dim more than the indices
        axis += indices.ndim + 1
    dims_behind = indices.ndim - axis
    trailing = (1,) * dims_behind
    classes = torch.arange(size, device=indices.device)
    classes = classes.reshape(-1, *trailing)
    at = indices.to(torch.int64)
    at = at.unsqueeze(axis)
    # negative indices count from the end, down to -depth
    inside = (at >= -size) & (at < size)
    matches = at % size == classes
    chosen = matches & inside
    off = values[0]
    on = values[1]
    return torch.where(chosen, on, off)


@op("NonZero", gradient=False)
def non_zero(x: Tensor) -> Tensor:
    """(rank, count) indices; a scalar has rank 0."""
    if x.ndim:
        by_dim = torch.nonzero(x, as_tuple=True)
        return torch.stack(by_dim)
    found = torch.nonzero(x)
    return found.T.reshape(0, -1)


@op("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    where = torch.nonzero(condition)[:, 0]
    if axis is None:
        flat = x.reshape(-1)
        return flat.index_select(0, where)
    return x.index_select(axis, where)
