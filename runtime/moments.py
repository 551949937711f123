"""Moments of activations in constant memory: channel means and maxima, and Gram matrices of what a
layer multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError
from ._statistics.fold_moments import (
    fold_extremes,
    fold_means,
    fold_sums,
    samples_of,
    seen_folds,
    take_extremes,
)

POSITIONS = 128
"""Output positions of a convolution looked at in each sample, at most: the same ones in all, so
that shards agree.
"""

PATCH_VALUES = 1 << 19
"""Values of one sample's patches at most, as long as that leaves 16 positions: wide depthwise
layers have fewer.
"""


class MomentObserver:
    """One moment of everything seen; mergeable, so that shards can be combined.

    `request`: `kind` (`absmax`, `mean`, `profile`, `extremes`, `gram`, `regression`), `axis` (of
    the channels) and, for the patches of a convolution, `kernel`, `strides`, `pads`, `dilations`,
    `groups`. Errors: RefusedError where a value is NaN or infinite.

    `absmax` -> (C,) max|x|. `mean` -> (C,), or (groups, K) of patches. `gram` -> (groups, K + 1, K
    + 1): the mean of z z^T with z = [x, 1], so that its last column is the mean of x. `profile` ->
    (folds, 3, C): means of x, |x|, x^2. `extremes` -> (folds, 3, C): how many values were seen,
    lowest and highest x. `regression` -> (groups, K + 1, K + 1 + M / groups): behind it the mean of
    z y^T, y being the target at the same places; of every second update where `part` is `even` or
    `odd`. All in float64.
    """

    def __init__(self, name: str, request: Mapping[str, Any]) -> None:
        self.name = name
        self.request = request
        self.total: NDArray[np.float64] | None = None
        self.count = 0
        self.samples = 0
        self.calls = 0

    def update(
        self,
        array: NDArray[Any],
        target: NDArray[Any] | None = None,
        *,
        samples: int | None = None,
    ) -> None:
        """Take a float array with samples on axis 0; for a regression its target too, channels on
        the same axis.
        """
        self.calls += 1
        if (
            array.size == 0
            or self.request.get("part", "all") == ("even", "odd")[self.calls % 2]
        ):
            return
        if not np.isfinite(array).all() or not (
            target is None or np.isfinite(target).all()
        ):
            raise RefusedError(
                f"tensor '{self.name}'",
                "is NaN or infinite on the calibration data",
                "check the data and the model: run `onnx-opt verify` with the same data",
            )
        rows = self._rows(
            array if array.dtype.itemsize >= 4 else array.astype(np.float32)
        )  # halves overflow soon
        kind = self.request["kind"]
        if kind == "absmax":
            self._take(np.abs(rows).max(axis=1).astype(np.float64), rows.shape[1])
        elif kind == "mean":
            self._take(rows.sum(axis=1, dtype=np.float64), rows.shape[1])
        elif kind == "profile":
            fed = samples_of(array, self.request["axis"], samples)
            self._take(fold_sums(rows[0], fed, self.samples), rows.shape[1])
            self.samples += fed
        elif kind == "extremes":
            fed = samples_of(array, self.request["axis"], samples)
            self._take(fold_extremes(rows[0], fed, self.samples), rows.shape[1])
            self.samples += fed
        elif target is None:
            self._take(_products(rows), rows.shape[1])
        else:
            cross = _cross(rows, self._targets(target, array.shape[1]))
            self._take(np.concatenate([_products(rows), cross], axis=2), rows.shape[1])

    def _targets(self, target: NDArray[Any], channels: int) -> NDArray[Any]:
        """(groups, rows, M / groups): the values of the target where `_rows` looks at an input of
        `channels`.
        """
        axis, groups = self.request["axis"] % target.ndim, self.request["groups"]
        if not self.request["kernel"]:
            return np.moveaxis(target, axis, -1).reshape(1, -1, target.shape[axis])
        chosen = looked_at(self.request, channels, math.prod(target.shape[2:]))
        flat = target.reshape(len(target), groups, -1, math.prod(target.shape[2:]))[
            ..., chosen
        ]
        return flat.transpose(1, 0, 3, 2).reshape(groups, len(target) * len(chosen), -1)

    def _rows(self, array: NDArray[Any]) -> NDArray[Any]:
        """(groups, rows, K): the vectors that a layer multiplies, one group where nothing is
        grouped.
        """
        if self.request["kernel"]:
            return patches(array, self.request)
        axis = self.request["axis"] % array.ndim
        return np.moveaxis(array, axis, -1).reshape(1, -1, array.shape[axis])

    def _take(self, part: NDArray[np.float64], count: int) -> None:
        if self.total is None:
            self.total = part
        elif self.request["kind"] == "absmax":
            np.maximum(self.total, part, out=self.total)
        elif self.request["kind"] == "extremes":
            take_extremes(self.total, part)
        else:
            with np.errstate(
                invalid="ignore"
            ):  # infinities of overflow may cancel: still not finite
                self.total += part
        self.count += count

    def merge(self, other: MomentObserver) -> None:
        """Take everything another observer of the same request saw; associative and commutative."""
        if other.total is not None:
            self._take(other.total.copy(), other.count)
            self.samples += other.samples

    def value(self) -> NDArray[np.float64]:
        """The moment of everything seen so far, which must not be nothing."""
        assert self.total is not None
        if self.request["kind"] == "profile":
            return fold_means(self.total)
        if self.request["kind"] == "extremes":
            return seen_folds(self.total)
        result = (
            self.total if self.request["kind"] == "absmax" else self.total / self.count
        )
        return (
            result
            if self.request["kernel"] or self.request["kind"] in ("gram", "regression")
            else result[0]
        )


def _products(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of z z^T, z = [x, 1]: (groups, rows, K) -> (groups, K + 1, K + 1); float32, may
    overflow.
    """
    groups, count, width = rows.shape
    out = np.empty((groups, width + 1, width + 1))
    with np.errstate(over="ignore", invalid="ignore"):
        out[:, :width, :width] = np.matmul(rows.transpose(0, 2, 1), rows)
    out[:, width, :width] = out[:, :width, width] = rows.sum(axis=1, dtype=np.float64)
    out[:, width, width] = count
    return out


def _cross(rows: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of z y^T, z = [x, 1]: (groups, rows, K), (groups, rows, M) -> (groups, K + 1, M);
    float32, may overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.matmul(rows.transpose(0, 2, 1), targets).astype(np.float64)
    return np.concatenate(
        [product, targets.sum(axis=1, keepdims=True, dtype=np.float64)], axis=1
    )


def patches(array: NDArray[Any], window: Mapping[str, Any]) -> NDArray[Any]:
    """What a convolution multiplies at some places of each sample: (N, C, *S) -> (groups, N *
    places, C/g * K).
    """
    kernel, strides, dilations = (
        window["kernel"],
        window["strides"],
        window["dilations"],
    )
    rank, groups = len(kernel), window["groups"]
    pads = [
        (0, 0),
        (0, 0),
        *zip(window["pads"][:rank], window["pads"][rank:], strict=True),
    ]
    padded = np.pad(array, pads) if any(window["pads"]) else array
    sizes = padded.shape[2:]
    outs = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    chosen = looked_at(window, array.shape[1], math.prod(outs))
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(rank)]
    starts = _offsets(np.unravel_index(chosen, outs), strides, steps)
    taps = _offsets(
        np.unravel_index(np.arange(math.prod(kernel)), kernel), dilations, steps
    )
    flat = padded.reshape(*padded.shape[:2], -1)[
        :, :, starts[:, None] + taps
    ]  # (N, C, places, K)
    samples, channels, places, width = flat.shape
    grouped = flat.reshape(
        samples, groups, channels // groups, places, width
    ).transpose(1, 0, 3, 2, 4)
    return grouped.reshape(groups, samples * places, channels // groups * width)


def looked_at(
    window: Mapping[str, Any], channels: int, count: int
) -> NDArray[np.int64]:
    """The output positions looked at, of `count`: spread at random but always the same ones."""
    most = min(
        max(PATCH_VALUES // (channels * math.prod(window["kernel"])), 16), POSITIONS
    )
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def _offsets(
    index: tuple[NDArray[Any], ...], scales: list[int], steps: list[int]
) -> NDArray[np.int64]:
    total = np.zeros(len(index[0]), np.int64)
    for coordinate, scale, step in zip(index, scales, steps, strict=True):
        total += coordinate * (scale * step)
    return total
