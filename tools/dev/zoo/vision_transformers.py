"""Vision transformers: plain, windowed, pyramid, cross-covariance, detection by queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from .blocks import Attention, Encoder, Mlp, Residual, SdpaAttention, conv, split_heads
from .export import Input, Net, graphs_of, image
from .vision_cnn import basic
from .vision_mixers import LayerScale, MeanHead, Patches


class ClassToken(nn.Module):
    """Patches, a class token, positions, `layers`; the class token is classified. `distilled`: a
    second token.
    """

    def __init__(
        self, layers: list[nn.Module], width: int = 64, distilled: bool = False
    ) -> None:
        super().__init__()
        self.patches, self.layers, self.norm = (
            Patches(width),
            nn.Sequential(*layers),
            nn.LayerNorm(width),
        )
        self.extra = 2 if distilled else 1
        self.token = nn.Parameter(torch.randn(1, self.extra, width))
        self.positions = nn.Parameter(torch.randn(1, 64 + self.extra, width))
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(self.extra))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = self.norm(self.layers(x))
        return sum(head(x[:, k]) for k, head in enumerate(self.heads)) / self.extra


def vit(
    attention: type[Attention], fused: bool = True, distilled: bool = False
) -> nn.Module:
    return ClassToken(
        [Encoder(64, attention(64, fused=fused)) for _ in range(2)], distilled=distilled
    )


class TalkingHeads(Attention):
    """CaiT: heads mixed by a Linear before and after the softmax."""

    def __init__(self, width: int) -> None:
        super().__init__(width, fused=True)
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        scores = self.before(
            (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).permute(0, 2, 3, 1)
        ).permute(0, 3, 1, 2)
        return self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ClassAttention(nn.Module):
    """CaiT's last stage: only the class token asks."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers = [
            Residual(nn.Sequential(nn.LayerNorm(width), body, LayerScale(width)))
            for _ in range(2)
            for body in (TalkingHeads(width), Mlp(width, 4 * width))
        ]
        self.body, self.token = (
            nn.Sequential(Patches(width), *layers),
            nn.Parameter(torch.randn(1, 1, width)),
        )
        self.norm, self.attention, self.head = (
            nn.LayerNorm(width),
            Attention(width),
            nn.Linear(width, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        token = self.token.expand(x.shape[0], -1, -1)
        everything = self.norm(torch.cat([token, x], 1))
        return self.head(token + self.attention(everything[:, :1], everything))[:, 0]


class WindowAttention(Attention):
    """Swin: attention in 4 x 4 windows of an 8 x 8 map, shifted in every second block, with a
    relative bias.
    """

    def __init__(self, width: int, shift: int, cosine: bool = False) -> None:
        super().__init__(width, fused=True)
        self.shift, self.cosine, w = shift, cosine, 4
        self.table = nn.Parameter(torch.randn((2 * w - 1) ** 2, self.heads))
        self.scale = nn.Parameter(torch.full((self.heads, 1, 1), 5.0))
        cells = torch.stack(
            torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij")
        ).flatten(1)
        offsets = (cells[:, :, None] - cells[:, None] + w - 1).permute(1, 2, 0)
        self.register_buffer("index", offsets[..., 0] * (2 * w - 1) + offsets[..., 1])
        self.register_buffer("mask_fixed", self.mask() if shift else None)

    def mask(self) -> Tensor:
        region = torch.zeros(8)
        region[4 : -self.shift], region[-self.shift :] = 1, 2
        cells = self.windows((region[:, None] * 3 + region)[None, ..., None]).squeeze(
            -1
        )
        return (cells[:, None] != cells[:, :, None]).float() * -100

    def windows(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        return x.reshape(-1, 2, 4, 2, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        if self.cosine:
            scores = (
                F.normalize(q, dim=-1)
                @ F.normalize(k, dim=-1).transpose(-2, -1)
                * self.scale
            )
        else:
            scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        scores = scores + self.table[self.index.flatten()].reshape(16, 16, -1).permute(
            2, 0, 1
        )
        if self.shift:
            scores = (
                scores.reshape(-1, 4, self.heads, 16, 16)
                + self.mask_fixed[None, :, None]
            )
            scores = scores.reshape(-1, self.heads, 16, 16)
        return scores.softmax(-1)

    def forward(
        self, x: Tensor, kv: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        c = x.shape[-1]
        x = x.reshape(-1, 8, 8, c)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = super().forward(self.windows(x))
        x = x.reshape(-1, 2, 2, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, c)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x.reshape(-1, 64, c)


class PatchMerging(nn.Module):
    """2 x 2 neighbours side by side, normed, reduced: (N, 64, C) -> (N, 16, 2C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = (
            nn.LayerNorm(4 * width),
            nn.Linear(4 * width, 2 * width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 8, 8, x.shape[-1])
        x = torch.cat([x[:, a::2, b::2] for b in (0, 1) for a in (0, 1)], -1)
        return self.reduce(self.norm(x.flatten(1, 2)))


def swin(cosine: bool = False) -> nn.Module:
    return nn.Sequential(
        Patches(64),
        nn.LayerNorm(64),
        Encoder(64, WindowAttention(64, 0, cosine)),
        Encoder(64, WindowAttention(64, 2, cosine)),
        PatchMerging(64),
        Encoder(128, Attention(128, fused=True)),
        MeanHead(128),
    )


class ReducedAttention(Attention):
    """PVT: keys and values from a spatially reduced map, one Linear for both."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        del self.k, self.v
        self.reduce, self.norm = nn.Conv2d(width, width, 2, 2), nn.LayerNorm(width)
        self.kv = nn.Linear(width, 2 * width)

    def project(self, x: Tensor, kv: Tensor | None = None) -> list[Tensor]:
        b, _, c = x.shape
        small = self.norm(
            self.reduce(x.transpose(1, 2).reshape(b, c, 8, 8))
            .flatten(2)
            .transpose(1, 2)
        )
        k, v = (
            self.kv(small)
            .reshape(b, -1, 2, self.heads, c // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        return [split_heads(self.q(x), self.heads), k, v]


class MixMlp(nn.Module):
    """SegFormer and PVT v2: a depthwise convolution inside the feed-forward layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        y = (
            self.depthwise(y.transpose(1, 2).reshape(y.shape[0], -1, 8, 8))
            .flatten(2)
            .transpose(1, 2)
        )
        return self.down(F.gelu(y))


def pvt() -> nn.Module:
    layers = [
        Residual(nn.Sequential(nn.LayerNorm(64), body))
        for body in (ReducedAttention(64), MixMlp(64)) * 2
    ]
    return nn.Sequential(Patches(64), *layers, MeanHead(64))


class CrossCovariance(nn.Module):
    """XCiT: attention between the channels of a head."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = (
            heads,
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(b, t, 3, self.heads, c // self.heads)
            .permute(2, 0, 3, 4, 1)
            .unbind(0)
        )
        weights = (
            F.normalize(q, dim=-1)
            @ F.normalize(k, dim=-1).transpose(-2, -1)
            * self.temperature
        ).softmax(-1)
        return self.out((weights @ v).permute(0, 3, 1, 2).reshape(b, t, c))


class LocalPatch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(2)
        )
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        y = self.b(self.norm(F.gelu(self.a(x.transpose(1, 2).reshape(b, c, 8, 8)))))
        return y.reshape(b, c, t).transpose(1, 2)


def xcit() -> nn.Module:
    layers = [
        Residual(nn.Sequential(nn.LayerNorm(64), body, LayerScale(64)))
        for body in (CrossCovariance(64), LocalPatch(64), Mlp(64, 256))
    ]
    return nn.Sequential(Patches(64), *layers, MeanHead(64))


class MobileVit(nn.Module):
    """Convolutions, unfolding into 2 x 2 patches, a transformer across patches, folding back,
    fusion.
    """

    def __init__(self, width: int = 32, inner: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, width, s=2, act=nn.SiLU), conv(width, width, act=nn.SiLU)
        )
        self.local, self.encoder = (
            nn.Conv2d(width, inner, 1, bias=False),
            Encoder(inner, Attention(inner, fused=True)),
        )
        self.back, self.fuse = (
            conv(inner, width, 1, act=nn.SiLU),
            conv(2 * width, width, act=nn.SiLU),
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.local(x)
        b, c = y.shape[:2]
        y = y.reshape(b, c, 8, 2, 8, 2).permute(0, 3, 5, 2, 4, 1).reshape(b * 4, 64, c)
        y = (
            self.encoder(y)
            .reshape(b, 2, 2, 8, 8, c)
            .permute(0, 5, 3, 1, 4, 2)
            .reshape(b, c, 16, 16)
        )
        return self.head(self.fuse(torch.cat([x, self.back(y)], 1)).mean((2, 3)))


class LinearAttention(nn.Module):
    """EfficientViT: ReLU linear attention on a convolutional qkv, heads as channel blocks."""

    def __init__(self, width: int = 64, d: int = 16) -> None:
        super().__init__()
        self.d, self.qkv = d, nn.Conv2d(width, 3 * width, 1, bias=False)
        self.out = conv(width, width, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (
            self.qkv(x).reshape(b, -1, 3 * self.d, h * w).transpose(2, 3).chunk(3, -1)
        )
        q, k = F.relu(q), F.relu(k)
        y = q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(-2).unsqueeze(-1) + 1e-3)
        return x + self.out(y.transpose(2, 3).reshape(b, -1, h, w))


class Detr(nn.Module):
    """A convolutional backbone, an encoder, learned queries, a decoder, boxes and classes."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            conv(3, 32, s=2), basic(32, 64, 2), nn.Conv2d(64, width, 1)
        )
        self.positions, self.queries = (
            nn.Parameter(torch.randn(1, 64, width)),
            nn.Parameter(torch.randn(1, 5, width)),
        )
        self.encoder = Encoder(width, Attention(width))
        self.own, self.cross, self.mlp = (
            Attention(width),
            Attention(width),
            Mlp(width, 128, nn.ReLU),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.classes, self.boxes = (
            nn.Linear(width, 6),
            nn.Sequential(Mlp(width, width, nn.ReLU), nn.Linear(width, 4)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encoder(
            self.backbone(x).flatten(2).transpose(1, 2) + self.positions
        )
        q = self.queries.expand(x.shape[0], -1, -1)
        q = self.norms[0](q + self.own(q))
        q = self.norms[1](q + self.cross(q, memory))
        q = self.norms[2](q + self.mlp(q))
        return self.classes(q), self.boxes(q).sigmoid()


class Perceiver(nn.Module):
    """A few latents read a long input by cross-attention, twice with the same weights."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.latents = (
            nn.Linear(24, width),
            nn.Parameter(torch.randn(8, width)),
        )
        self.cross, self.norm, self.own = (
            SdpaAttention(width),
            nn.LayerNorm(width),
            Encoder(width, Attention(width)),
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        z = self.latents.expand(x.shape[0], -1, -1)
        for _ in range(2):
            z = self.own(z + self.cross(self.norm(z), x))
        return self.head(z.mean(1))


class TwoTowers(nn.Module):
    """CLIP: an image and a text tower, normalized, compared."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.image = nn.Sequential(
            Patches(width), Encoder(width, Attention(width)), nn.LayerNorm(width)
        )
        self.text = nn.Sequential(
            nn.Embedding(200, width),
            Encoder(width, SdpaAttention(width)),
            nn.LayerNorm(width),
        )
        self.left, self.right = (
            nn.Linear(width, 32, bias=False),
            nn.Linear(width, 32, bias=False),
        )

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        a, b = self.left(self.image(x).mean(1)), self.right(self.text(ids)[:, -1])
        return 10 * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).t()


def efficient_vit() -> nn.Module:
    return nn.Sequential(
        conv(3, 64, s=4, act=nn.Hardswish),
        LinearAttention(),
        LinearAttention(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


NETS = [
    Net(
        "vit",
        lambda: vit(Attention),
        image(),
        "dynamo18 dynamo20-raw legacy13 legacy17-static",
    ),
    Net(
        "vit_sdpa",
        lambda: vit(SdpaAttention, fused=False),
        image(),
        "dynamo23 legacy17",
    ),
    Net("deit_distilled", lambda: vit(Attention, distilled=True), image(), "legacy17"),
    Net("cait", ClassAttention, image(), "dynamo20 legacy17"),
    Net("swin", swin, image(), "dynamo18 legacy14 legacy17-static"),
    Net("swin_v2", lambda: swin(cosine=True), image(), "legacy17"),
    Net("pvt", pvt, image(), "dynamo18 legacy17"),
    Net("xcit", xcit, image(), "dynamo18 legacy17"),
    Net("mobilevit", MobileVit, image(), "legacy17 legacy17-bn"),
    Net("efficientvit", efficient_vit, image(), "legacy16"),
    Net("detr", Detr, image(), "dynamo18 legacy17"),
    Net("perceiver", Perceiver, (Input((2, 32, 24)),), "dynamo23 legacy17"),
    Net("clip", TwoTowers, (*image(), Input((2, 12), 200)), "legacy17"),
]


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    return graphs_of(NETS)
