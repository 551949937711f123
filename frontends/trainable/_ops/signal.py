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
    return dft(x, length, axis, inverse=inverse, onesided=onesided)


@op("DFT", 20, host=(1, 2))
def dft(
    x: Tensor,
    length: Any = None,
    axis: Any = -2,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """Over `axis`, cut or filled with zeros to `length`; one-sided keeps the first half, or makes
    real from it.
    """
    axis = -2 if axis is None else axis[0] if isinstance(axis, list) else axis
    axis = axis % x.ndim
    size = length[0] if isinstance(length, list) else length
    return _transformed(x.double(), size, axis, inverse, onesided).to(x.dtype)


def _transformed(
    x: Tensor, size: int | None, axis: int, inverse: int, onesided: int
) -> Tensor:
    if inverse and onesided:
        real = torch.fft.irfft(_complex(x), size, axis)
        return real.unsqueeze(-1)
    signal = x[..., 0] if x.shape[-1] == 1 else _complex(x)
    if inverse:
        return torch.view_as_real(torch.fft.ifft(signal, size, axis))
    if onesided and not signal.is_complex():
        return torch.view_as_real(torch.fft.rfft(signal, size, axis))
    spectrum = torch.fft.fft(signal, size, axis)
    if onesided:
        spectrum = spectrum.narrow(axis, 0, spectrum.shape[axis] // 2 + 1)
    return torch.view_as_real(spectrum.resolve_conj())


def _complex(x: Tensor) -> Tensor:
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
    step = step[0] if isinstance(step, list) else step
    length = length[0] if isinstance(length, list) else length
    size = (
        int(length)
        if length is not None
        else window.shape[0]
        if window is not None
        else x.shape[1]
    )
    signal = x if x.ndim == 2 else x[..., 0] if x.shape[-1] == 1 else _complex(x)
    frames = signal.unfold(1, size, step)
    if window is not None:
        frames = frames * F.pad(window, [0, size - window.shape[0]])
    real = not frames.is_complex()
    spectrum = torch.fft.rfft(frames) if onesided and real else torch.fft.fft(frames)
    spectrum = spectrum[..., : size // 2 + 1] if onesided else spectrum
    return torch.view_as_real(spectrum)
