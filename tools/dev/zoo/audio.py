"""Audio and time series: Whisper, WaveNet, TCN, Conformer, wav2vec, speaker nets, source
separation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from .blocks import Attention, Encoder, Mlp, Residual, SdpaAttention
from .export import Net, graphs_of, signal


class WhisperEncoder(nn.Module):
    """Two convolutions over the mel spectrogram, fixed sinusoids, pre-norm blocks."""

    def __init__(self, attention: type[Attention] = Attention, width: int = 64) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv1d(16, width, 3, 1, 1),
            nn.Conv1d(width, width, 3, 2, 1),
        )
        angles = torch.arange(32)[:, None] * torch.exp(-torch.arange(width // 2) / 4)
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], 1))
        self.blocks = nn.Sequential(
            *(Encoder(width, attention(width)) for _ in range(2))
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.second(F.gelu(self.first(x)))).transpose(1, 2)
        return self.norm(self.blocks(x + self.positions))


class WaveNet(nn.Module):
    """Gated dilated convolutions; tanh and sigmoid halves; residual and skip paths."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.start = nn.Conv1d(16, width, 1)
        self.gated = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 2, dilation=d, padding=d) for d in (1, 2, 4)
        )
        self.skip = nn.ModuleList(nn.Conv1d(width, 64, 1) for _ in range(3))
        self.keep = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3))
        self.end = nn.Sequential(
            nn.ReLU(), nn.Conv1d(64, 64, 1), nn.ReLU(), nn.Conv1d(64, 10, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start(x), 0
        for gated, skip, keep in zip(self.gated, self.skip, self.keep, strict=True):
            a, b = gated(x)[..., : x.shape[-1]].chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + keep(y), total + skip(y)
        return self.end(total)


class Causal(nn.Module):
    """TCN: left padding, two dilated convolutions, a 1x1 shortcut."""

    def __init__(self, i: int, o: int, dilation: int) -> None:
        super().__init__()
        self.pad, self.down = 2 * dilation, nn.Conv1d(i, o, 1)
        self.a, self.b = (
            nn.Conv1d(i, o, 3, dilation=dilation),
            nn.Conv1d(o, o, 3, dilation=dilation),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(F.pad(x, (self.pad, 0))))
        return F.relu(F.relu(self.b(F.pad(y, (self.pad, 0)))) + self.down(x))


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., -1]


def tcn() -> nn.Module:
    return nn.Sequential(
        Causal(16, 48, 1),
        Causal(48, 48, 2),
        Causal(48, 64, 4),
        Last(),
        nn.Linear(64, 6),
    )


class ConformerConv(nn.Module):
    """Pointwise and GLU, depthwise, BatchNorm, pointwise, on (N, T, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first = nn.LayerNorm(width), nn.Conv1d(width, 2 * width, 1)
        self.rest = nn.Sequential(
            nn.Conv1d(width, width, 7, padding=3, groups=width),
            nn.BatchNorm1d(width),
            nn.SiLU(),
            nn.Conv1d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rest(
            F.glu(self.first(self.norm(x).transpose(1, 2)), 1)
        ).transpose(1, 2)


class Conformer(nn.Module):
    """Half-step feed-forward, attention, convolution, half-step feed-forward."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.before, self.after = (
            nn.Sequential(nn.LayerNorm(width), Mlp(width, 256, nn.SiLU))
            for _ in range(2)
        )
        self.attention = Residual(nn.Sequential(nn.LayerNorm(width), Attention(width)))
        self.conv, self.norm, self.head = (
            ConformerConv(width),
            nn.LayerNorm(width),
            nn.Linear(width, 29),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.transpose(1, 2))
        x = self.conv(self.attention(x + 0.5 * self.before(x)))
        return self.head(self.norm(x + 0.5 * self.after(x)))


class Wav2Vec(nn.Module):
    """Strided convolutions on the waveform, GroupNorm in the first, grouped positional convolution,
    an encoder.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 48, 5, 2, bias=False),
            nn.GroupNorm(48, 48),
            nn.GELU(),
            nn.Conv1d(48, 48, 3, 2, bias=False),
            nn.GELU(),
        )
        self.project = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, width))
        self.positions = nn.Conv1d(width, width, 7, padding=3, groups=4)
        self.norm, self.block = nn.LayerNorm(width), Encoder(width, Attention(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.features(x).transpose(1, 2))
        return self.block(
            self.norm(x + F.gelu(self.positions(x.transpose(1, 2))).transpose(1, 2))
        )


class XVector(nn.Module):
    """Dilated convolutions, attentive mean and deviation side by side, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.Sequential(nn.Conv1d(i, o, k, dilation=d), nn.ReLU(), nn.BatchNorm1d(o))
            for i, o, k, d in ((16, 64, 5, 1), (64, 64, 3, 2), (64, 96, 1, 1))
        ]
        self.frames = nn.Sequential(*layers)
        self.attention = nn.Sequential(
            nn.Conv1d(96, 32, 1), nn.Tanh(), nn.Conv1d(32, 96, 1)
        )
        self.embed, self.head = nn.Linear(192, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frames(x)
        weights = self.attention(x).softmax(-1)
        mean = (x * weights).sum(-1)
        deviation = ((x * x * weights).sum(-1) - mean * mean).clamp(min=1e-6).sqrt()
        return self.head(F.relu(self.embed(torch.cat([mean, deviation], 1))))


class ConvTasNet(nn.Module):
    """A learned filterbank, masks for two sources from a separable trunk, a transposed
    filterbank.
    """

    def __init__(self, bases: int = 64, width: int = 32) -> None:
        super().__init__()
        self.bases, self.encoder = bases, nn.Conv1d(1, bases, 8, 4, bias=False)
        trunk = [
            nn.Conv1d(width, 64, 1),
            nn.PReLU(),
            nn.GroupNorm(1, 64),
            nn.Conv1d(64, 64, 3, padding=1, groups=64),
            nn.PReLU(),
            nn.GroupNorm(1, 64),
            nn.Conv1d(64, width, 1),
        ]
        self.bottleneck, self.trunk = (
            nn.Conv1d(bases, width, 1),
            Residual(nn.Sequential(*trunk)),
        )
        self.masks, self.decoder = (
            nn.Conv1d(width, 2 * bases, 1),
            nn.ConvTranspose1d(bases, 1, 8, 4, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        mixture = F.relu(self.encoder(x))
        masks = self.masks(self.trunk(self.bottleneck(mixture))).sigmoid()
        masks = masks.reshape(masks.shape[0], 2, self.bases, -1)
        sources = (mixture.unsqueeze(1) * masks).flatten(0, 1)
        return self.decoder(sources).reshape(x.shape[0], 2, -1)


class GatedText(nn.Module):
    """A gated convolutional net: GLU by slices and a weighted residual."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.start, self.convs = (
            nn.Conv1d(16, width, 1),
            nn.ModuleList(nn.Conv1d(width, 2 * width, 3, padding=1) for _ in range(2)),
        )
        self.out = nn.Conv1d(width, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for layer in self.convs:
            y = layer(x)
            half = y.shape[1] // 2
            x = (x + y[:, :half] * torch.sigmoid(y[:, half:])) * 0.5**0.5
        return self.out(x)


NETS = [
    Net("whisper_encoder", WhisperEncoder, signal(), "dynamo18 legacy17"),
    Net(
        "whisper_encoder_sdpa",
        lambda: WhisperEncoder(SdpaAttention),
        signal(),
        "dynamo23 legacy14",
    ),
    Net("wavenet", WaveNet, signal(), "dynamo18 legacy17"),
    Net("tcn", tcn, signal(), "legacy13 legacy17"),
    Net("conformer", Conformer, signal(), "dynamo20 legacy17-bn"),
    Net("wav2vec", Wav2Vec, signal(1), "legacy17"),
    Net("x_vector", XVector, signal(), "dynamo18 legacy17"),
    Net("conv_tasnet", ConvTasNet, signal(1), "legacy17"),
    Net("gated_convolutions", GatedText, signal(), "legacy17"),
]


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    return graphs_of(NETS)
