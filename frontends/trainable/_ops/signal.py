"""Fourier transforms; a complex number is a last dim of two."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import op

Tensor = Any


@op("DFT", 17, host=(1,))
def dft_by_attribute(
    x: Tensor, length: Any = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    return dft(
        x,
        length,
        axis,
        inverse=inverse,
        onesided=onesided,
    )


@op("DFT", 20, host=(1, 2))
def dft(
    x: Tensor,
    length: Any = None,
    axis: Any = -2,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """Over `axis`, cut or filled with zeros to `length`.

    One-sided keeps the first half; the inverse of that makes real numbers.
    """
    along = -2 if axis is None else _number(axis)
    size = None if length is None else _number(length)
    y = _transformed(
        x=x.double(),
        size=size,
        axis=along % x.ndim,
        inverse=inverse,
        onesided=onesided,
    )
    return y.to(x.dtype)


def _number(value: int | list[int]) -> int:
    """ONNX lets a setting be a number or a list of one."""
    if isinstance(value, list):
        return value[0]
    return value


def _transformed(
    x: Tensor, size: int | None, axis: int, inverse: int, onesided: int
) -> Tensor:
    if inverse and onesided:
        real = torch.fft.irfft(_complex(x), size, axis)
        return real.unsqueeze(-1)
    signal = _signal(x)
    if inverse:
        spectrum = torch.fft.ifft(signal, size, axis)
    elif onesided and not signal.is_complex():
        spectrum = torch.fft.rfft(signal, size, axis)
    else:
        spectrum = torch.fft.fft(signal, size, axis)
        if onesided:
            half = spectrum.shape[axis] // 2 + 1
            spectrum = spectrum.narrow(axis, 0, half)
    return torch.view_as_real(spectrum.resolve_conj())


def _signal(x: Tensor) -> Tensor:
    """Return real numbers where the last dim is one, else complex ones."""
    if x.shape[-1] == 1:
        return x[..., 0]
    return _complex(x)


def _complex(x: Tensor) -> Tensor:
    """Return complex numbers whose parts are the last dim; one part is real."""
    if x.shape[-1] == 1:
        x = torch.cat([x, torch.zeros_like(x)], -1)
    return torch.view_as_complex(x.contiguous())


@op("STFT", 17, host=(1, 3))
def stft(
    x: Tensor,
    step: Any,
    window: Tensor | None = None,
    length: Any = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """(B, T, 1 or 2) -> (B, frames, bins, 2)."""
    size = x.shape[1]
    if length is not None:
        size = int(_number(length))
    elif window is not None:
        size = window.shape[0]
    signal = x if x.ndim == 2 else _signal(x)
    frames = signal.unfold(1, size, _number(step))
    if window is not None:
        padding = [0, size - window.shape[0]]
        frames = frames * F.pad(window, padding)
    if onesided and not frames.is_complex():
        spectrum = torch.fft.rfft(frames)
    else:
        spectrum = torch.fft.fft(frames)
    if onesided:
        # all that rfft gives; complex frames have the mirrored half too
        spectrum = spectrum[..., : size // 2 + 1]
    return torch.view_as_real(spectrum)
