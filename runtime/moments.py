"""Moments of activations in constant memory.

Means and maxima of channels, and Gram matrices of what a layer multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError
from ..passes._core.context import MomentRequest
from ._statistics.fold_moments import (
    fold_extremes,
    fold_means,
    fold_sums,
    samples_of,
    seen_folds,
    take_extremes,
)

POSITIONS = 128
"""Output positions of a convolution that are looked at in each sample, at most.

The same positions in all samples, so that shards agree. Measured when it was chosen: as good a Gram
matrix as from 256 positions, in two thirds of the time.
"""

PATCH_VALUES = 1 << 19
"""Values of one sample's patches, at most, as long as that leaves `FEWEST_POSITIONS`.

2 MiB in float32; wide layers with large kernels get fewer positions. Chosen by hand; not measured.
"""

FEWEST_POSITIONS = 16
"""Output positions that every convolution gets, however large its patches are. Chosen by hand; not
measured.
"""


class WaitingRows:
    """Rows of several updates that are multiplied at once, when they are as many as their columns.

    Few rows take nearly as long as many: the matrix that their product is added to is as large. 256
    rows of 1,536 columns took 32 ms of CPU, and 14 ms as one of six.
    """

    def __init__(self) -> None:
        self._rows: list[NDArray[Any]] = []
        self._targets: list[NDArray[Any]] = []
        self.count = 0

    def add(self, rows: NDArray[Any], targets: NDArray[Any] | None) -> None:
        """Let (groups, rows, K) wait, and (groups, rows, M) with them."""
        self._rows.append(rows)
        if targets is not None:
            self._targets.append(targets)
        self.count += rows.shape[1]

    def taken(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """All of them, (groups, count, K) and (groups, count, M): they wait no longer."""
        rows = _joined(self._rows)
        targets = _joined(self._targets) if self._targets else None
        self._rows = []
        self._targets = []
        self.count = 0
        return rows, targets


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Arrays (groups, rows, K) one behind the other; a single one as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


class MomentObserver:
    """One moment of everything seen; mergeable, so that shards can be combined.

    `absmax` -> (C,) max|x|. `mean` -> (C,), or (groups, K) of patches. `gram` -> (groups, K + 1, K
    + 1): the mean of z z^T with z = [x, 1], so that its last column is the mean of x. `profile` ->
    (folds, 3, C): means of x, |x|, x^2. `extremes` -> (folds, 3, C): count of values, lowest and
    highest x. `regression` -> (groups, K + 1, K + 1 + M / groups): the Gram matrix, and behind it
    the mean of z y^T, y being the target at the same places; of every second update where `part` is
    `even` or `odd`. All in float64.

    Errors: RefusedError where a value is NaN or infinite.
    """

    def __init__(self, request: MomentRequest) -> None:
        self.request = request
        self.total: NDArray[np.float64] | None = None
        self._waiting = WaitingRows()
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
        """Take a float array with samples on axis 0, which may be read until the next updates.

        `target`: of a regression, channels on the same axis. `samples`: how many samples the array
        is made from; None: as many as its axis 0 has.
        """
        self.calls += 1
        if array.size == 0 or self._is_left_out():
            return
        self._check_finite(array, target)
        if array.dtype.itemsize < 4:
            # squares of half-precision values overflow soon
            array = array.astype(np.float32)
        rows = self._rows(array)
        kind = self.request.kind
        if kind == "absmax":
            highest = np.abs(rows).max(axis=1)
            part = highest.astype(np.float64)
        elif kind == "mean":
            part = rows.sum(axis=1, dtype=np.float64)
        elif kind == "row_noise":
            part = _row_noise(rows)
        elif kind in ("profile", "extremes"):
            fed = samples_of(array, self.request.axis, samples)
            part = self._by_fold(rows[0], fed)
            self.samples += fed
        else:
            wanted = None if target is None else self._targets(target, array)
            self._waiting.add(rows, wanted)
            self.count += rows.shape[1]
            if self._waiting.count >= rows.shape[2]:
                self._multiply()
            return
        self._take(part)
        self.count += rows.shape[1]

    def _multiply(self) -> None:
        """Take the products of the rows that wait."""
        if not self._waiting.count:
            return
        rows, targets = self._waiting.taken()
        part = _products(rows)
        if targets is not None:
            cross = _cross(rows, targets)
            part = np.concatenate([part, cross], axis=2)
        self._take(part)

    def _by_fold(self, rows: NDArray[Any], fed: int) -> NDArray[np.float64]:
        first = self.samples
        if self.request.kind == "profile":
            return fold_sums(rows, fed, first)
        return fold_extremes(rows, fed, first)

    def _is_left_out(self) -> bool:
        """True if this update, the first being even, is of the half that is not asked for."""
        is_even = self.calls % 2 == 1
        if is_even:
            return self.request.part == "odd"
        return self.request.part == "even"

    def _check_finite(self, array: NDArray[Any], target: NDArray[Any] | None) -> None:
        for values in (array, target):
            if values is None or np.isfinite(values).all():
                continue
            raise RefusedError(
                f"tensor '{self.request.tensor}'",
                "is NaN or infinite on the calibration data",
                "check the data and the model: run `onnx-opt verify` with the same data",
            )

    def _targets(self, target: NDArray[Any], array: NDArray[Any]) -> NDArray[Any]:
        """Values of the target where `_rows` looks at an array.

        (N, M, *S) -> (groups, rows, M / groups).
        """
        if not self.request.kernel:
            return _as_rows(target, self.request.axis)
        groups = self.request.groups
        samples = len(target)
        sizes = target.shape[2:]
        places = math.prod(sizes)
        chosen = looked_at(self.request, array.shape[1], places)
        flat = target.reshape(
            samples,
            groups,
            -1,
            places,
        )
        seen = flat[..., chosen]
        rows = seen.transpose(1, 0, 3, 2)
        count = samples * len(chosen)
        return rows.reshape(groups, count, -1)

    def _rows(self, array: NDArray[Any]) -> NDArray[Any]:
        """Vectors that a layer multiplies, (groups, rows, K); one group without a kernel."""
        if self.request.kernel:
            return patches(array, self.request)
        return _as_rows(array, self.request.axis)

    def _take(self, part: NDArray[np.float64]) -> None:
        if self.total is None:
            self.total = part
        elif self.request.kind == "absmax":
            np.maximum(self.total, part, out=self.total)
        elif self.request.kind == "extremes":
            take_extremes(self.total, part)
        else:
            # infinities of overflow may cancel to NaN: still not finite, which readers check
            with np.errstate(invalid="ignore"):
                self.total += part

    def merge(self, other: MomentObserver) -> None:
        """Take everything another observer of the same request saw; associative and commutative."""
        other._multiply()
        if other.total is not None:
            self._take(other.total.copy())
            self.count += other.count
            self.samples += other.samples

    def value(self) -> NDArray[np.float64]:
        """Moment of everything seen so far, which must not be nothing."""
        self._multiply()
        assert self.total is not None
        kind = self.request.kind
        if kind == "profile":
            return fold_means(self.total)
        if kind == "extremes":
            return seen_folds(self.total)
        result = self.total
        if kind != "absmax":
            result = result / self.count
        if not self.request.kernel and kind in ("absmax", "mean", "row_noise"):
            # one group, as nothing is grouped
            result = result[0]
        return result


def _as_rows(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Move the channels to the end: (*, C, *) -> (1, rows, C)."""
    moved = np.moveaxis(array, axis, -1)
    channels = moved.shape[-1]
    return moved.reshape(1, -1, channels)


def _row_noise(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Sum over rows of the share that 8-bit rounding takes: (groups, rows, K) -> (groups, 1).

    One grid for all, as DynamicQuantizeLinear makes it: from the lowest to the highest value, zero
    among them.
    """
    lowest = float(rows.min())
    highest = float(rows.max())
    low = min(lowest, 0.0)
    high = max(highest, 0.0)
    step = (high - low) / 255 or 1.0
    error = rows - _on_grid(rows, step)
    noise = _square_sums(error)
    power = _square_sums(rows)
    # a row of zeros loses nothing
    least = np.finfo(np.float32).tiny
    divisors = np.maximum(power, least)
    shares = noise / divisors
    total: NDArray[np.float64] = shares.sum(axis=1, keepdims=True)
    return total


def _on_grid(values: NDArray[Any], step: float) -> NDArray[Any]:
    """Values rounded to whole steps."""
    exact = values / step
    codes = np.round(exact)
    return codes * step


def _square_sums(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of the squares of each row: (groups, rows, K) -> (groups, rows)."""
    squares = np.square(rows)
    sums: NDArray[np.float64] = squares.sum(axis=2, dtype=np.float64)
    return sums


def _products(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of z z^T with z = [x, 1]: (groups, rows, K) -> (groups, K + 1, K + 1).

    Products are computed in the type of the rows and may overflow.
    """
    groups, count, width = rows.shape
    columns = rows.transpose(0, 2, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        products = np.matmul(columns, rows)
    sums = rows.sum(axis=1, dtype=np.float64)
    side = width + 1
    out = np.empty((groups, side, side))
    inner = slice(width)
    out[:, inner, inner] = products
    out[:, width, inner] = sums
    out[:, inner, width] = sums
    out[:, width, width] = count
    return out


def _cross(rows: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of z y^T with z = [x, 1]: (groups, rows, K), (groups, rows, M) -> (groups, K + 1, M).

    Products are computed in the type of the rows and may overflow.
    """
    columns = rows.transpose(0, 2, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        products = np.matmul(columns, targets)
    sums = targets.sum(
        axis=1,
        keepdims=True,
        dtype=np.float64,
    )
    return np.concatenate([products.astype(np.float64), sums], axis=1)


def patches(array: NDArray[Any], window: MomentRequest) -> NDArray[Any]:
    """Patches that a convolution multiplies, at some output positions of each sample.

    (N, C, *S) -> (groups, N * places, C / groups * K), K being the elements of the kernel.
    """
    padded = _padded(array, window)
    samples, channels, *sizes = padded.shape
    outs = _output_sizes(sizes, window)
    chosen = looked_at(window, channels, math.prod(outs))
    places = np.unravel_index(chosen, outs)
    every_tap = np.arange(math.prod(window.kernel))
    taps = np.unravel_index(every_tap, window.kernel)
    # spatial axes are flattened, so that a place and a tap of the kernel are offsets to be added
    steps = _steps(sizes)
    starts = _offsets(places, window.strides, steps)
    reach = _offsets(taps, window.dilations, steps)
    flat = padded.reshape(samples, channels, -1)
    # (N, C, places, K)
    seen = flat[:, :, starts[:, None] + reach]
    groups = window.groups
    each = channels // groups
    grouped = seen.reshape(
        samples,
        groups,
        each,
        len(starts),
        len(reach),
    )
    rows = grouped.transpose(1, 0, 3, 2, 4)
    return rows.reshape(
        groups,
        samples * len(starts),
        each * len(reach),
    )


def _padded(array: NDArray[Any], window: MomentRequest) -> NDArray[Any]:
    if not any(window.pads):
        return array
    # the beginnings of all axes stand before the ends
    rank = len(window.kernel)
    begins = window.pads[:rank]
    ends = window.pads[rank:]
    spatial = zip(begins, ends, strict=True)
    of_samples = (0, 0)
    of_channels = (0, 0)
    return np.pad(array, [of_samples, of_channels, *spatial])


def _steps(sizes: Sequence[int]) -> list[int]:
    """Elements from one position to the next of each axis, in an array of those sizes."""
    steps = []
    step = 1
    for size in reversed(sizes):
        steps.append(step)
        step *= size
    return steps[::-1]


def _output_sizes(sizes: Sequence[int], window: MomentRequest) -> list[int]:
    """Lengths of a convolution's output, from those of its padded input."""
    found = []
    for axis, size in enumerate(sizes):
        gaps = window.kernel[axis] - 1
        covered = window.dilations[axis] * gaps + 1
        free = size - covered
        steps = free // window.strides[axis]
        found.append(steps + 1)
    return found


def looked_at(window: MomentRequest, channels: int, count: int) -> NDArray[np.int64]:
    """Choose output positions, of `count`: spread at random but always the same ones."""
    patch = channels * math.prod(window.kernel)
    affordable = max(PATCH_VALUES // patch, FEWEST_POSITIONS)
    most = min(affordable, POSITIONS)
    if count <= most:
        return np.arange(count)
    # the same seed for all tensors: a target must be looked at where its input is
    random = np.random.default_rng(0)
    chosen = random.choice(count, most, replace=False)
    return np.sort(chosen)


def _offsets(
    index: Sequence[NDArray[Any]], scales: Sequence[int], steps: Sequence[int]
) -> NDArray[np.int64]:
    """Offsets in a flattened array of coordinates, one array an axis, times a scale each."""
    total = np.zeros(len(index[0]), np.int64)
    axes = zip(index, scales, steps, strict=True)
    for coordinate, scale, step in axes:
        total += coordinate * (scale * step)
    return total
