"""Building blocks that several families share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(
    i: int,
    o: int,
    k: int = 3,
    s: int = 1,
    g: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
    d: int = 1,
) -> nn.Sequential:
    """Conv (no bias), BatchNorm, activation; same padding."""
    parts: list[nn.Module] = [
        nn.Conv2d(i, o, k, s, d * (k // 2), d, g, bias=False),
        nn.BatchNorm2d(o),
    ]
    return nn.Sequential(*parts, *([act()] if act else []))


def classifier(width: int, classes: int = 10) -> nn.Sequential:
    """Global average pool and a Linear layer."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


class SqueezeExcite(nn.Module):
    def __init__(
        self, width: int, hidden: int, gate: type[nn.Module] = nn.Sigmoid
    ) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class Residual(nn.Module):
    """x + body(x), or shortcut(x) + body(x), then `act`."""

    def __init__(
        self,
        body: nn.Module,
        shortcut: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = (
            body,
            shortcut or nn.Identity(),
            act or nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.body(x))


class Branches(nn.Module):
    """Parallel branches, concatenated over the channels."""

    def __init__(self, *branches: nn.Module, dim: int = 1) -> None:
        super().__init__()
        self.branches, self.dim = nn.ModuleList(branches), dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([b(x) for b in self.branches], self.dim)


class Mlp(nn.Sequential):
    def __init__(self, width: int, hidden: int, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__(nn.Linear(width, hidden), act(), nn.Linear(hidden, width))


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads * d) -> (B, heads, T, d)."""
    return x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, T, d) -> (B, T, heads * d)."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, x.shape[1] * x.shape[3])


class Attention(nn.Module):
    """Multi-head attention with separate q, k, v; `kv` gives cross-attention."""

    def __init__(self, width: int, heads: int = 4, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def project(self, x: Tensor, kv: Tensor | None = None) -> list[Tensor]:
        if self.fused:
            b, t, c = x.shape
            return list(
                self.qkv(x)
                .reshape(b, t, 3, self.heads, c // self.heads)
                .permute(2, 0, 3, 1, 4)
                .unbind(0)
            )
        source = x if kv is None else kv
        return [
            split_heads(y, self.heads)
            for y in (self.q(x), self.k(source), self.v(source))
        ]

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias).softmax(-1)

    def forward(
        self, x: Tensor, kv: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        q, k, v = self.project(x, kv)
        return self.out(merge_heads(self.weights(q, k, bias) @ v))


class SdpaAttention(Attention):
    """The same through torch's fused operator."""

    def forward(
        self, x: Tensor, kv: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        q, k, v = self.project(x, kv)
        if bias is not None:
            bias = bias.expand(
                -1, -1, x.shape[1], -1
            )  # ONNX Runtime's Attention does not broadcast over the queries
        return self.out(
            merge_heads(nn.functional.scaled_dot_product_attention(q, k, v, bias))
        )


class Encoder(nn.Module):
    """A pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        attention: nn.Module,
        hidden: int = 0,
        act: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = attention, Mlp(width, hidden or 4 * width, act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
