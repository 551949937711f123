"""Codes and palettes of a layer in turns, each the best for the other, while outputs gain by it.

    codes     coordinate descent: column by column the value that makes the outputs' error least
    values    least squares: the palette that fits these codes best, in whole numbers
    scales    least squares: one factor a channel

Source: the alternation of Lloyd's algorithm, by the error of the layer's outputs; codes as in Nagel
et al., Up or Down?, ICML 2020 (arXiv:2004.10568), section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core.half_precision import SMALLEST, on_halves
from .._quant.palette_values import HIGHEST
from .._quant.palettes import Palettes
from .layers import Codes, PerChannel, Rows

ROUNDS = 2
"""Turns of codes, values and scales. Measured: two gain 0.4 to 0.6 dB, a third one 0.03 more."""

BLOCK = 64
"""Columns between two exact slopes: the rest of the weight follows by a matrix product."""

RIDGE = 1e-6
"""Share of its mean diagonal that makes the problem of a palette solvable: of a value that no code
has it says nothing.
"""

MOST_PRODUCTS = 1e12
"""Multiplications beyond which the palettes of a layer stay, and only its codes are improved.

MiniLM's largest layer takes 1.4e10 at 4 bits. Chosen by hand.
"""

LEAST_CURVATURE = np.float32(1e-30)
"""Curvature of an input that is nearly silent beside the others: any code is as good there."""

Floats = NDArray[np.float32]


def refined(
    rows: Rows,
    hessian: NDArray[np.float64],
    codes: Codes,
    palettes: Palettes,
) -> tuple[Codes, PerChannel]:
    """Improve codes and the palettes that they are from; weights of 0 keep their code.

    Shapes: rows (M, K), hessian (groups, K, K), positive definite, codes (M, K) -> codes (M, K) of
    as many values a channel, scales (M,). Channels that share a palette go on sharing it.
    """
    descent = _PaletteDescent(rows, hessian, codes, palettes)
    for _ in range(ROUNDS):
        descent.choose_codes()
        if descent.products <= MOST_PRODUCTS:
            descent.fit_values()
        descent.fit_scales()
    descent.choose_codes()
    whole = descent.codes().astype(np.int8)
    scales = descent.scales.astype(np.float64)
    return whole.reshape(rows.shape), scales.reshape(-1)


class _PaletteDescent:
    """Weights as places in the palettes of their channels, (groups, channels, K), and the scales.

    `values`: (groups, channels, count).
    """

    def __init__(
        self,
        rows: Rows,
        hessian: NDArray[np.float64],
        codes: Codes,
        palettes: Palettes,
    ) -> None:
        groups, width, _ = hessian.shape
        # of single precision: only ratios matter, and the squares of inputs may be of any size
        relative = hessian / np.abs(hessian).max()
        self._hessian = relative.astype(np.float32)
        by_group = rows.reshape(groups, -1, width)
        self._weights = by_group.astype(np.float32)
        self._is_zero = self._weights == 0
        self._sharing = _sharing(palettes.values)
        channels = by_group.shape[1]
        values = palettes.values.reshape(groups, channels, -1)
        self._values = values.astype(np.float32)
        self._places = _places_of(codes.reshape(by_group.shape), values)
        scales = palettes.scales.reshape(groups, channels)
        self.scales = scales.astype(np.float32)

    @property
    def products(self) -> float:
        """Multiplications that it takes to fit the values once."""
        width = self._weights.shape[2]
        return float(self._values.size) * width**2

    def codes(self) -> Floats:
        """The code of each weight: (groups, channels, K)."""
        return _taken(self._values, self._places)

    def choose_codes(self) -> None:
        """Give each weight in turn the value that makes the error least, all channels at once."""
        levels: Floats = self._values * self.scales[:, :, None]
        chosen = _taken(levels, self._places)
        width = self._weights.shape[2]
        for start in range(0, width, BLOCK):
            stop = min(start + BLOCK, width)
            block = slice(start, stop)
            difference = chosen - self._weights
            slope = difference @ self._hessian[:, :, block]
            self._choose_in_block(
                block,
                levels,
                chosen[:, :, block],
                np.asarray(slope, np.float32),
            )

    def _choose_in_block(
        self, block: slice, levels: Floats, chosen: Floats, slope: Floats
    ) -> None:
        """Choose the codes of some columns: `chosen` follows, and `slope`, half of the error's."""
        inner = self._hessian[:, block, block]
        places = self._places[:, :, block]
        is_zero = self._is_zero[:, :, block]
        for column in range(slope.shape[2]):
            now = chosen[:, :, column]
            own = inner[:, column, column, None]
            curvature = np.maximum(own, LEAST_CURVATURE)
            # the error is quadratic: the value nearest to where its slope is 0
            step = slope[:, :, column] / curvature
            wanted = now - step
            distances = np.abs(levels - wanted[:, :, None])
            nearest = distances.argmin(axis=2)
            held = is_zero[:, :, column]
            place = np.where(held, places[:, :, column], nearest)
            new = _taken(levels, place[:, :, None])
            moves = new - now[:, :, None]
            places[:, :, column] = place
            chosen[:, :, column] = new[:, :, 0]
            # the columns still to come make up for the move
            coupling = inner[:, None, column]
            slope += moves * coupling

    def fit_values(self) -> None:
        """Fit palettes to their codes: in whole numbers within reach, where that is better."""
        former = self._values
        before = self._errors()
        fitted = self._fitted_values()
        rounded = np.rint(fitted)
        whole = np.clip(rounded, -HIGHEST, HIGHEST)
        for_all = np.repeat(whole, self._sharing, axis=0)
        self._values = for_all.reshape(former.shape).astype(np.float32)
        gains = before - self._errors()
        by_palette = gains.reshape(-1, self._sharing).sum(axis=1)
        # in whole numbers a palette may be worse than it was
        is_better = np.repeat(by_palette > 0, self._sharing)
        by_channel = is_better.reshape(*gains.shape, 1)
        self._values = np.where(by_channel, self._values, former)

    def _fitted_values(self) -> NDArray[np.float64]:
        """The best value for the codes of each place, (palettes, count), not rounded."""
        count = self._values.shape[2]
        squares, products = self._normal_equations()
        of_channels = squares.reshape(-1, self._sharing, count, count)
        square = of_channels.sum(axis=1)
        by_channel = products.reshape(-1, self._sharing, count)
        product = by_channel.sum(axis=1)
        values = self._values.reshape(-1, self._sharing, count)
        return _solved(square, product, values[:, 0])

    def _normal_equations(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Squares (groups, channels, count, count) and products (groups, channels, count)."""
        groups, channels, count = self._values.shape
        squares = np.zeros((groups, channels, count, count))
        products = np.zeros((groups, channels, count))
        wanted = self._weights @ self._hessian
        choices = np.eye(count, dtype=np.float32)
        for channel in range(channels):
            scale = self.scales[:, channel, None, None]
            places = self._places[:, channel]
            # which weights take which value, as the scale weighs them
            used = choices[places] * scale
            across = used.transpose(0, 2, 1)
            squares[:, channel] = across @ self._hessian @ used
            own = wanted[:, channel, :, None]
            product = across @ own
            products[:, channel] = product[:, :, 0]
        return squares, products

    def fit_scales(self) -> None:
        """Fit the scale of each channel to its codes, of half precision."""
        codes = self.codes()
        weighted = codes @ self._hessian
        power = (weighted * codes).sum(axis=2)
        product = (weighted * self._weights).sum(axis=2)
        # a scale is positive
        is_usable = (power > 0) & (product > 0)
        divisor = np.where(is_usable, power, 1)
        fitted = np.where(is_usable, product / divisor, self.scales)
        self.scales = on_halves(fitted, SMALLEST)

    def _errors(self) -> Floats:
        """Error of each output channel: (groups, channels)."""
        restored = self.codes() * self.scales[:, :, None]
        difference = restored - self._weights
        weighted = difference @ self._hessian
        return np.asarray((weighted * difference).sum(axis=2))


def _taken(values: Floats, places: NDArray[Any]) -> Floats:
    """Values (…, count) at places (…, K): (…, K)."""
    return np.take_along_axis(values, places, axis=-1)


def _places_of(codes: Codes, values: Codes) -> NDArray[np.int8]:
    """Place of each code in its channel's palette: (…, K) and (…, count) -> (…, K)."""
    places = np.zeros(codes.shape, np.int8)
    # one value after the other: all at once would take many times the memory of the weight
    for place in range(values.shape[-1]):
        value = values[..., place, None]
        places[codes == value] = place
    return places


def _sharing(values: Codes) -> int:
    """Number of neighbouring channels that have a palette in common: (channels, count)."""
    channels, count = values.shape
    for sharing in range(channels, 1, -1):
        if channels % sharing:
            continue
        together = values.reshape(-1, sharing, count)
        first = together[:, :1]
        if (together == first).all():
            return sharing
    return 1


def _solved(
    square: NDArray[np.float64], product: NDArray[np.float64], old: Floats
) -> NDArray[np.float64]:
    """Solutions (n, count) of n palettes; their zeros, which pruned weights have, stay."""
    diagonal = np.einsum("nii->ni", square)
    mean = diagonal.mean(axis=1, keepdims=True)
    ridge = RIDGE * np.where(mean > 0, mean, 1)
    # towards the old value, which one without codes keeps
    diagonal += ridge
    right = product + ridge * old
    is_fixed = old == 0
    is_free = ~is_fixed
    both_free = is_free[:, :, None] & is_free[:, None, :]
    square = np.where(both_free, square, 0)
    diagonal = np.einsum("nii->ni", square)
    diagonal += is_fixed
    right = np.where(is_fixed, 0, right)
    solution = np.linalg.solve(square, right[:, :, None])
    return np.asarray(solution[:, :, 0])
