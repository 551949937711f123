"""Nets outside the usual families: kernels made by the net, points, graphs, tables, diffusion,
grids of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from .blocks import (
    Attention,
    Encoder,
    LayerNorm2d,
    Mlp,
    Residual,
    classifier,
    conv,
    merge_heads,
    split_heads,
)
from .export import Input, Net, graphs_of, image, sequence, signal, tokens
from .vision_mixers import MeanHead, Patches


class ConditionalConv(nn.Module):
    """CondConv: each image mixes its kernel from four experts; a grouped convolution over batch
    times channels.
    """

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.o, self.router = o, nn.Linear(i, 4)
        self.experts = nn.Parameter(torch.randn(4, o, i, 3, 3) * (9 * i) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x.mean((2, 3))).sigmoid()
        kernel = (
            (gates[:, :, None] * self.experts.flatten(1)[None])
            .sum(1)
            .reshape(-1, x.shape[1], 3, 3)
        )
        b, c, h, w = x.shape
        return F.conv2d(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b).reshape(
            b, self.o, h, w
        )


class PointNet(nn.Module):
    """Shared layers over points, a predicted 32 x 32 transform of the features, a maximum over the
    points.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = self.layers(3, 32), self.layers(32, 64)
        self.transform = nn.Sequential(
            nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32 * 32)
        )
        self.head = nn.Linear(64, 8)

    @staticmethod
    def layers(i: int, o: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(i, o, 1), nn.BatchNorm1d(o), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        matrix = self.transform(x.amax(2)).reshape(-1, 32, 32)
        return self.head(self.second(matrix @ x).amax(2))


class GraphNet(nn.Module):
    """Graph convolutions with the adjacency as an input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 48), nn.Linear(48, 48)])
        self.own, self.head = (
            nn.ModuleList([nn.Linear(16, 48), nn.Linear(48, 48)]),
            nn.Linear(48, 4),
        )

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for layer, own in zip(self.layers, self.own, strict=True):
            x = F.relu(layer(adjacency @ x) + own(x))
        return self.head(x)


class Recommender(nn.Module):
    """DLRM: embeddings and dense features, pairwise products of their vectors, a final MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(200, 32) for _ in range(3))
        self.bottom, self.top = (
            Mlp(13, 64, nn.ReLU),
            nn.Sequential(nn.Linear(38, 64), nn.ReLU(), nn.Linear(64, 1)),
        )
        self.bottom[2] = nn.Linear(64, 32)

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        dense = self.bottom(dense)
        vectors = torch.stack(
            [dense, *(table(ids[:, k]) for k, table in enumerate(self.tables))], 1
        )
        products = (vectors @ vectors.transpose(1, 2)).flatten(1)
        pairs = products[:, [1, 2, 3, 6, 7, 11]]
        return self.top(torch.cat([dense, pairs], 1)).sigmoid()


class Radiance(nn.Module):
    """NeRF: sines of the coordinates, a deep MLP with the input appended halfway."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            Mlp(27, 96, nn.ReLU),
            nn.Sequential(nn.Linear(54, 64), nn.ReLU(), nn.Linear(64, 4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        angles = [x, *(f(x * 2.0**k) for k in range(4) for f in (torch.sin, torch.cos))]
        y = torch.cat(angles, -1)
        return self.second(torch.cat([F.relu(self.first(y)), y], -1))


class Diffusion(nn.Module):
    """A small denoising UNet: time added to the maps, GroupNorm, attention over the cells, text by
    cross-attention.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.start, self.time = (
            nn.Conv2d(4, width, 3, padding=1),
            nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 64)),
        )
        self.times = nn.ModuleList(nn.Linear(64, w) for w in (width, 2 * width, width))
        sizes = ((width, width), (width, 2 * width), (3 * width, width))
        self.blocks = nn.ModuleList(self.block(i, o) for i, o in sizes)
        self.shortcuts = nn.ModuleList(
            [
                nn.Identity(),
                nn.Conv2d(width, 2 * width, 1),
                nn.Conv2d(3 * width, width, 1),
            ]
        )
        self.norm, self.text, self.attention = (
            nn.LayerNorm(2 * width),
            nn.Linear(24, 2 * width),
            Attention(2 * width),
        )
        self.own, self.end = Attention(2 * width), nn.Conv2d(width, 4, 3, padding=1)

    @staticmethod
    def block(i: int, o: int) -> nn.ModuleList:
        return nn.ModuleList(
            [
                nn.Sequential(
                    nn.GroupNorm(4, i), nn.SiLU(), nn.Conv2d(i, o, 3, padding=1)
                ),
                nn.Sequential(
                    nn.GroupNorm(4, o), nn.SiLU(), nn.Conv2d(o, o, 3, padding=1)
                ),
            ]
        )

    def step(self, k: int, x: Tensor, t: Tensor) -> Tensor:
        y = self.blocks[k][0](x) + self.times[k](t)[:, :, None, None]
        return self.shortcuts[k](x) + self.blocks[k][1](y)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        t = self.time(t)
        high = self.step(0, self.start(x), t)
        low = self.step(1, F.avg_pool2d(high, 2), t)
        b, c, h, w = low.shape
        cells = low.flatten(2).transpose(1, 2)
        cells = cells + self.own(self.norm(cells))
        cells = cells + self.attention(cells, self.text(text))
        low = cells.transpose(1, 2).reshape(b, c, h, w)
        return self.end(
            self.step(2, torch.cat([F.interpolate(low, scale_factor=2.0), high], 1), t)
        )


class VariationalAutoencoder(nn.Module):
    """Mean and log-variance are halves of one convolution; both leave the net, with the
    reconstruction of the mean.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv(3, 32, s=2), conv(32, 48, s=2), nn.Conv2d(48, 32, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(16, 48, 1),
            nn.Upsample(scale_factor=2),
            conv(48, 32),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean), mean, variance.clamp(-10, 10).exp()


class GridAttention(nn.Module):
    """MaxViT: attention within 4 x 4 blocks, then across a dilated 4 x 4 grid, on maps (N, C, 8,
    8).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block, self.grid = (
            Encoder(width, Attention(width, fused=True)),
            Encoder(width, Attention(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        y = x.reshape(b, c, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        x = (
            self.block(y)
            .reshape(b, 2, 2, 4, 4, c)
            .permute(0, 5, 1, 3, 2, 4)
            .reshape(b, c, 8, 8)
        )
        y = x.reshape(b, c, 4, 2, 4, 2).permute(0, 3, 5, 2, 4, 1).reshape(-1, 16, c)
        return (
            self.grid(y)
            .reshape(b, 2, 2, 4, 4, c)
            .permute(0, 5, 3, 1, 4, 2)
            .reshape(b, c, 8, 8)
        )


class SplitTranspose(nn.Module):
    """EdgeNeXt: a cascade of depthwise convolutions over splits, then attention between
    channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width // 4, width // 4, 3, padding=1, groups=width // 4)
            for _ in range(3)
        )
        self.qkv, self.out, self.norm = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        parts, out = x.chunk(4, 1), []
        for k, layer in enumerate(self.convs):
            out.append(layer(parts[k] + out[-1] if out else parts[k]))
        y = torch.cat([*out, parts[3]], 1)
        b, c, h, w = y.shape
        y = self.qkv(self.norm(y.flatten(2).transpose(1, 2)))
        q, k, v = y.reshape(b, h * w, 3, 4, c // 4).permute(2, 0, 3, 4, 1)
        y = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(
            -1
        ) @ v
        y = self.out(y.permute(0, 3, 1, 2).reshape(b, h * w, c))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


class Alibi(nn.Module):
    """BLOOM: a slope of the distance per head instead of positions."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.norm, self.head = (
            nn.Embedding(200, width),
            nn.LayerNorm(width),
            nn.Linear(width, 200),
        )
        self.attention, self.mlp = Attention(width), Mlp(width, 4 * width)

    def forward(self, ids: Tensor) -> Tensor:
        x, steps = self.embed(ids), torch.arange(ids.shape[1])
        distance = (steps[None] - steps[:, None]).clamp(max=0)
        slopes = 2.0 ** -torch.arange(1.0, 5.0)
        x = x + self.attention(self.norm(x), bias=slopes[:, None, None] * distance)
        return self.head(x + self.mlp(x))


class Disentangled(nn.Module):
    """DeBERTa: scores of contents and of contents against relative positions, gathered by
    distance.
    """

    def __init__(self, width: int = 64, length: int = 16) -> None:
        super().__init__()
        self.embed, self.relative = (
            nn.Embedding(200, width),
            nn.Parameter(torch.randn(2 * length, width)),
        )
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)
        steps = torch.arange(length)
        self.register_buffer(
            "index", (steps[:, None] - steps[None] + length)[None, None]
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = (split_heads(layer(x), 4) for layer in (self.q, self.k, self.v))
        position = split_heads(self.k(self.relative)[None], 4)
        content = q @ k.transpose(-2, -1)
        relative = torch.gather(
            q @ position.transpose(-2, -1), -1, self.index.expand(q.shape[0], 4, -1, -1)
        )
        y = merge_heads(((content + relative) * 48**-0.5).softmax(-1) @ v)
        return self.head(self.norm(x + self.out(y))[:, 0])


class ConvLstm(nn.Module):
    """A convolutional LSTM cell, unrolled over three frames; four gates of one convolution."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.hidden, self.gates = (
            hidden,
            nn.Conv2d(3 + hidden, 4 * hidden, 3, padding=1),
        )
        self.out = nn.Conv2d(hidden, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros_like(x[:, 0, :1]).expand(-1, self.hidden, -1, -1)
        for t in range(3):
            i, f, o, g = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


class Involution(nn.Module):
    """Kernels from each cell, one a group, applied to unfolded neighbourhoods."""

    def __init__(self, width: int, groups: int = 4) -> None:
        super().__init__()
        self.groups, self.reduce = groups, conv(width, width // 2, 1)
        self.span, self.norm = (
            nn.Conv2d(width // 2, 9 * groups, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernel = self.span(self.reduce(x)).reshape(b, self.groups, 1, 9, h, w)
        patches = F.unfold(x, 3, padding=1).reshape(
            b, self.groups, c // self.groups, 9, h, w
        )
        return F.relu(self.norm((kernel * patches).sum(3).reshape(b, c, h, w)))


class AdaptiveInstance(nn.Module):
    """AdaIN: instance statistics replaced by scales and shifts from a style vector;
    weight-normalized convolutions.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.start = nn.utils.parametrizations.weight_norm(
            nn.Conv1d(16, width, 3, padding=1)
        )
        self.style, self.norm = nn.Linear(16, 2 * width), nn.InstanceNorm1d(width)
        self.body, self.end = (
            nn.Conv1d(width, width, 3, padding=1),
            nn.ConvTranspose1d(width, 1, 4, 2, 1),
        )

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = F.leaky_relu(self.start(x), 0.2)
        scale, shift = self.style(style).unsqueeze(2).chunk(2, 1)
        y = (1 + scale) * self.norm(self.body(x)) + shift
        return self.end(x + y + torch.sin(y) ** 2).tanh()


class Detokenized(nn.Module):
    """Token outputs back to pixels through a Linear and a pixel rearrangement, as masked
    autoencoders do.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches, self.block, self.out = (
            Patches(width),
            Encoder(width, Attention(width)),
            nn.Linear(width, 48),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.block(self.patches(x)))
        return (
            y.reshape(-1, 8, 8, 4, 4, 3)
            .permute(0, 5, 1, 3, 2, 4)
            .reshape(-1, 3, 32, 32)
        )


def grid_net() -> nn.Module:
    return nn.Sequential(conv(3, 64, s=4), GridAttention(64), classifier(64))


def edge_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 4, 4),
        LayerNorm2d(64),
        SplitTranspose(64),
        SplitTranspose(64),
        classifier(64),
    )


def cumulative() -> nn.Module:
    """Token mixing by cumulative sums, linear in the length, as state-space and RWKV layers do."""

    class Cumulative(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.k, self.v, self.gate = (nn.Linear(width, width) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            k = self.k(x).clamp(max=4).exp()
            return torch.sigmoid(self.gate(x)) * (k * self.v(x)).cumsum(1) / k.cumsum(1)

    layer = Residual(nn.Sequential(nn.LayerNorm(64), Cumulative(64), nn.Linear(64, 64)))
    return nn.Sequential(
        nn.Embedding(200, 64), layer, Residual(Mlp(64, 192)), MeanHead(64)
    )


NETS = [
    Net(
        "conditional_conv",
        lambda: nn.Sequential(
            conv(3, 32), ConditionalConv(32, 48), conv(48, 64), classifier(64)
        ),
        image(size=16),
        "legacy17-static",
    ),
    Net("pointnet", PointNet, signal(3, 40), "dynamo18 legacy17-bn"),
    Net("graph_net", GraphNet, (*sequence(10, 16), Input((2, 10, 10))), "legacy17"),
    Net("recommender", Recommender, (Input((2, 3), 200), Input((2, 13))), "legacy17"),
    Net("radiance_field", Radiance, (Input((8, 3)),), "legacy17"),
    Net(
        "diffusion",
        Diffusion,
        (*image(4, 16), Input((2, 16)), Input((2, 6, 24))),
        "dynamo18 legacy17",
    ),
    Net("variational_autoencoder", VariationalAutoencoder, image(), "legacy17"),
    Net("maxvit", grid_net, image(), "dynamo20 legacy17"),
    Net("edgenext", edge_net, image(), "legacy17"),
    Net("bloom_alibi", Alibi, tokens(), "legacy17"),
    Net("deberta", Disentangled, tokens(), "legacy17"),
    Net("conv_lstm", ConvLstm, (Input((2, 3, 3, 16, 16)),), "legacy17"),
    Net(
        "involution",
        lambda: nn.Sequential(
            conv(3, 32, s=2), Involution(32), conv(32, 64), classifier(64)
        ),
        image(size=16),
        "legacy17",
    ),
    Net(
        "adaptive_instance_norm",
        AdaptiveInstance,
        (*signal(), Input((2, 16))),
        "legacy17",
    ),
    Net("masked_autoencoder", Detokenized, image(), "legacy17"),
    Net("cumulative_mixing", cumulative, tokens(), "legacy17"),
]


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    return graphs_of(NETS)
