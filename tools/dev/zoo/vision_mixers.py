"""ConvNeXt, MLP and pooling architectures: channels last, tokens mixed without attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from .blocks import LayerNorm2d, Mlp, Residual, classifier
from .export import Net, graphs_of, image


class LayerScale(nn.Module):
    def __init__(self, width: int, value: float = 0.5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Affine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha, self.beta = (
            nn.Parameter(torch.ones(width)),
            nn.Parameter(torch.zeros(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class Transposed(nn.Module):
    """`body` over the swapped last two axes."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.transpose(1, 2)).transpose(1, 2)


class ResponseNorm(nn.Module):
    """Global response normalization of ConvNeXt V2, (N, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (
            nn.Parameter(torch.zeros(width)),
            nn.Parameter(torch.zeros(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(2, (1, 2), keepdim=True)
        return (
            x
            + self.gamma * x * (size / (size.mean(-1, keepdim=True) + 1e-6))
            + self.beta
        )


class ConvNext(nn.Module):
    def __init__(self, width: int, second: bool = False) -> None:
        super().__init__()
        self.depthwise, self.norm = (
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            nn.LayerNorm(width),
        )
        mlp = Mlp(width, 4 * width)
        self.mlp = (
            nn.Sequential(mlp[0], mlp[1], ResponseNorm(4 * width), mlp[2])
            if second
            else nn.Sequential(mlp, LayerScale(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(
            0, 3, 1, 2
        )


def convnext(second: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 48, 4, 4),
        LayerNorm2d(48),
        ConvNext(48, second),
        LayerNorm2d(48),
        nn.Conv2d(48, 96, 2, 2),
        ConvNext(96, second),
        nn.AdaptiveAvgPool2d(1),
        LayerNorm2d(96),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


class InceptionNext(nn.Module):
    """Depthwise kernels (square, two bands) over unequal splits, the first part untouched."""

    def __init__(self, width: int) -> None:
        super().__init__()
        g = width // 8
        self.sizes = [width - 3 * g, g, g, g]
        kernels = ((3, 3), (1, 7), (7, 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(g, g, k, padding=(k[0] // 2, k[1] // 2), groups=g)
            for k in kernels
        )
        self.norm = nn.BatchNorm2d(width)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, 3 * width, 1), nn.GELU(), nn.Conv2d(3 * width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        same, *parts = x.split(self.sizes, 1)
        y = torch.cat(
            [same, *(c(p) for c, p in zip(self.convs, parts, strict=True))], 1
        )
        return x + self.mlp(self.norm(y))


def inception_next() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 4, 4),
        nn.BatchNorm2d(64),
        InceptionNext(64),
        InceptionNext(64),
        classifier(64),
    )


class Patches(nn.Module):
    """(N, 3, H, W) -> (N, tokens, width)."""

    def __init__(self, width: int, size: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2)


class MeanHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean(1))


def mixer(width: int = 64, count: int = 64) -> nn.Module:
    layers = [
        part
        for _ in range(2)
        for part in (
            Residual(nn.Sequential(nn.LayerNorm(width), Transposed(Mlp(count, 32)))),
            Residual(nn.Sequential(nn.LayerNorm(width), Mlp(width, 4 * width))),
        )
    ]
    return nn.Sequential(Patches(width), *layers, MeanHead(width))


def resmlp(width: int = 64, count: int = 64) -> nn.Module:
    layers = [
        part
        for _ in range(2)
        for part in (
            Residual(
                nn.Sequential(
                    Affine(width),
                    Transposed(nn.Linear(count, count)),
                    LayerScale(width),
                )
            ),
            Residual(
                nn.Sequential(Affine(width), Mlp(width, 4 * width), LayerScale(width))
            ),
        )
    ]
    return nn.Sequential(Patches(width), *layers, Affine(width), MeanHead(width))


class SpatialGate(nn.Module):
    """gMLP's unit: half of the channels, mixed over the tokens, gates the other half."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(count, count)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, -1)
        return u * self.mix(self.norm(v).transpose(1, 2)).transpose(1, 2)


def gmlp(width: int = 64, count: int = 64) -> nn.Module:
    def layer() -> nn.Module:
        return Residual(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                SpatialGate(2 * width, count),
                nn.Linear(2 * width, width),
            )
        )

    return nn.Sequential(Patches(width), layer(), layer(), MeanHead(width))


class PoolMix(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x


def poolformer(width: int = 64) -> nn.Module:
    def layer(w: int) -> nn.Module:
        mlp = nn.Sequential(nn.Conv2d(w, 4 * w, 1), nn.GELU(), nn.Conv2d(4 * w, w, 1))
        return nn.Sequential(
            Residual(nn.Sequential(nn.GroupNorm(1, w), PoolMix())),
            Residual(nn.Sequential(nn.GroupNorm(1, w), mlp)),
        )

    return nn.Sequential(
        nn.Conv2d(3, width, 7, 4, 2),
        layer(width),
        nn.Conv2d(width, width, 3, 2, 1),
        layer(width),
        classifier(width),
    )


def conv_mixer(width: int = 64) -> nn.Module:
    def block(g: int, k: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(width, width, k, padding=k // 2, groups=g),
            nn.GELU(),
            nn.BatchNorm2d(width),
        )

    layers = [nn.Sequential(Residual(block(width, 5)), block(1, 1)) for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 4),
        nn.GELU(),
        nn.BatchNorm2d(width),
        *layers,
        classifier(width),
    )


class FocalModulation(nn.Module):
    """FocalNet: query, context levels and gates from one Linear, split unequally."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.project = width, nn.Linear(width, 2 * width + 3)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, k, padding=k // 2, groups=width), nn.GELU()
            )
            for k in (3, 5)
        )
        self.mix, self.out = nn.Conv2d(width, width, 1), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        both = self.project(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        q, context, gates = both.split([self.width, self.width, 3], 1)
        total = torch.zeros_like(q)
        for k, level in enumerate(self.levels):
            context = level(context)
            total = total + context * gates[:, k : k + 1]
        total = total + F.gelu(context.mean((2, 3), keepdim=True)) * gates[:, 2:]
        return x + self.out((q * self.mix(total)).permute(0, 2, 3, 1)).permute(
            0, 3, 1, 2
        )


def focalnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 4, 4),
        LayerNorm2d(64),
        FocalModulation(64),
        FocalModulation(64),
        classifier(64),
    )


NETS = [
    Net("convnext", convnext, image(), "dynamo18 dynamo20-raw legacy16 legacy17"),
    Net("convnext_v2", lambda: convnext(second=True), image(), "dynamo18 legacy17"),
    Net("inception_next", inception_next, image(), "legacy13-bn legacy17"),
    Net("mlp_mixer", mixer, image(), "dynamo18 legacy17"),
    Net("resmlp", resmlp, image(), "dynamo20 legacy14"),
    Net("gmlp", gmlp, image(), "dynamo18 legacy17"),
    Net("poolformer", poolformer, image(), "dynamo23 legacy17"),
    Net("conv_mixer", conv_mixer, image(), "legacy17 legacy17-bn"),
    Net("focalnet", focalnet, image(), "dynamo18 legacy17"),
]


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    return graphs_of(NETS)
