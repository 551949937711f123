"""Nets that give maps: detection, segmentation, super-resolution, generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from .blocks import Branches, Residual, conv
from .export import Input, Net, graphs_of, image
from .vision_cnn import basic

silu = partial(conv, act=nn.SiLU)


class C2f(nn.Module):
    """YOLOv8: split in two, bottlenecks in a row, all the intermediate results concatenated."""

    def __init__(self, i: int, o: int, n: int = 2) -> None:
        super().__init__()
        half = o // 2
        self.first, self.last = silu(i, o, 1), silu(half * (2 + n), o, 1)
        self.blocks = nn.ModuleList(
            Residual(nn.Sequential(silu(half, half), silu(half, half)))
            for _ in range(n)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class CrossStage(nn.Module):
    """CSP of YOLOv5: one branch through bottlenecks, one around them."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        half = o // 2
        self.left = nn.Sequential(
            silu(i, half, 1),
            Residual(nn.Sequential(silu(half, half, 1), silu(half, half))),
        )
        self.right, self.last = silu(i, half, 1), silu(o, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.left(x), self.right(x)], 1))


class PyramidPool(nn.Module):
    """SPPF: the same pooling three times, all stages concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last, self.pool = (
            silu(width, width // 2, 1),
            silu(2 * width, width, 1),
            nn.MaxPool2d(5, 1, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Detect(nn.Module):
    """YOLOv8's head: 4 x 16 distance bins and the classes per cell, and the expectation over the
    bins (DFL).
    """

    def __init__(self, widths: tuple[int, ...], classes: int = 6) -> None:
        super().__init__()
        self.boxes = nn.ModuleList(
            nn.Sequential(silu(w, 32), nn.Conv2d(32, 64, 1)) for w in widths
        )
        self.classes = nn.ModuleList(
            nn.Sequential(silu(w, 32), nn.Conv2d(32, classes, 1)) for w in widths
        )
        self.number = classes
        self.dfl = nn.Conv2d(16, 1, 1, bias=False)
        self.dfl.weight.data = torch.arange(16.0).reshape(1, 16, 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        parts = [
            torch.cat([b(x), c(x)], 1)
            for b, c, x in zip(self.boxes, self.classes, maps, strict=True)
        ]
        flat = torch.cat([p.flatten(2) for p in parts], 2)
        boxes, classes = flat.split([64, self.number], 1)
        bins = boxes.reshape(boxes.shape[0], 4, 16, -1).transpose(1, 2).softmax(1)
        return torch.cat(
            [self.dfl(bins).reshape(boxes.shape[0], 4, -1), classes.sigmoid()], 1
        )


class Yolo(nn.Module):
    def __init__(self, block: Callable[[int, int], nn.Module] = C2f) -> None:
        super().__init__()
        self.stem = nn.Sequential(silu(3, 32, s=2), block(32, 32))
        self.middle = nn.Sequential(silu(32, 64, s=2), block(64, 64))
        self.deep = nn.Sequential(silu(64, 64, s=2), block(64, 64), PyramidPool(64))
        self.up, self.down = block(128, 64), silu(64, 64, s=2)
        self.merge, self.head = block(128, 64), Detect((64, 64))

    def forward(self, x: Tensor) -> Tensor:
        middle = self.middle(self.stem(x))
        deep = self.deep(middle)
        up = self.up(torch.cat([F.interpolate(deep, scale_factor=2.0), middle], 1))
        return self.head([up, self.merge(torch.cat([self.down(up), deep], 1))])


class FeaturePyramid(nn.Module):
    """FPN: lateral 1x1s, a top-down path, and one head shared by all the levels."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(conv(3, 32, s=2), basic(32, 32))
        self.stages = nn.ModuleList([first, basic(32, 64, 2), basic(64, 64, 2)])
        self.lateral = nn.ModuleList(nn.Conv2d(w, 64, 1) for w in (32, 64, 64))
        self.smooth = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(3))
        tower = [nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU()]
        self.tower, self.classes, self.boxes = (
            nn.Sequential(*tower),
            nn.Conv2d(64, 6, 1),
            nn.Conv2d(64, 4, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = [x := stage(x) for stage in self.stages]
        top: Tensor | None = None
        out = []
        for x, lateral, smooth in zip(
            maps[::-1], self.lateral[::-1], self.smooth, strict=True
        ):
            top = (
                lateral(x)
                if top is None
                else lateral(x) + F.interpolate(top, scale_factor=2.0, mode="nearest")
            )
            out.append(self.tower(smooth(top)))
        heads = (
            torch.cat([head(y).flatten(2) for y in out], 2)
            for head in (self.classes, self.boxes)
        )
        return next(heads).sigmoid(), next(heads)


class UNet(nn.Module):
    def __init__(
        self, block: Callable[[int, int], nn.Module], transposed: bool
    ) -> None:
        super().__init__()
        self.a, self.b, self.c = block(3, 32), block(32, 64), block(64, 128)
        self.up1 = self.upsample(128, 64, transposed)
        self.up2 = self.upsample(64, 32, transposed)
        self.d, self.e, self.out = block(128, 64), block(64, 32), nn.Conv2d(32, 2, 1)

    def upsample(self, i: int, o: int, transposed: bool) -> nn.Module:
        if transposed:
            return nn.ConvTranspose2d(i, o, 2, 2)
        return nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(i, o, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up1(c), b], 1))
        return self.out(self.e(torch.cat([self.up2(d), a], 1)))


def double_conv(i: int, o: int) -> nn.Module:
    return nn.Sequential(conv(i, o), conv(o, o))


def instance_block(i: int, o: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(i, o, 3, padding=1), nn.InstanceNorm2d(o, affine=True), nn.PReLU(o)
    )


def group_block(i: int, o: int) -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(i, o, 3, padding=1),
        nn.GroupNorm(8, o),
        nn.SiLU(),
        nn.Conv2d(o, o, 3, padding=1),
        nn.GroupNorm(8, o),
    )
    return Residual(body, nn.Conv2d(i, o, 1))


class HighResolution(nn.Module):
    """HRNet: parallel resolutions that exchange by strided convolutions and upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fork = conv(3, 32, s=2), conv(32, 64, s=2)
        self.high = nn.ModuleList(basic(32, 32) for _ in range(2))
        self.low = nn.ModuleList(basic(64, 64) for _ in range(2))
        self.up = nn.ModuleList(conv(64, 32, 1, act=None) for _ in range(2))
        self.down = nn.ModuleList(conv(32, 64, s=2, act=None) for _ in range(2))
        self.out = nn.Conv2d(96, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        low = self.fork(high)
        for k in range(2):
            a, b = self.high[k](high), self.low[k](low)
            high = F.relu(a + F.interpolate(self.up[k](b), scale_factor=2.0))
            low = F.relu(b + self.down[k](a))
        return self.out(
            torch.cat(
                [high, F.interpolate(low, size=high.shape[2:], mode="bilinear")], 1
            )
        )


class ImagePool(nn.Module):
    """DeepLab's image-level branch: pooled to one cell, spread again."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(i, o, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(
            self.conv(x), size=x.shape[2:], mode="bilinear", align_corners=False
        )


def deeplab() -> nn.Module:
    pyramid = Branches(
        conv(64, 32, 1), conv(64, 32, d=2), conv(64, 32, d=3), ImagePool(64, 32)
    )
    return nn.Sequential(
        conv(3, 32, s=2),
        conv(32, 64, s=2),
        pyramid,
        conv(128, 64, 1),
        nn.Conv2d(64, 5, 1),
        nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True),
    )


def super_resolution() -> nn.Module:
    """ESPCN with a residual trunk and two PixelShuffles."""
    trunk = Residual(
        nn.Sequential(
            nn.Conv2d(48, 48, 3, padding=1),
            nn.PReLU(48),
            nn.Conv2d(48, 48, 3, padding=1),
        )
    )
    up = [
        part
        for _ in range(2)
        for part in (nn.Conv2d(48, 192, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
    ]
    return nn.Sequential(
        nn.Conv2d(3, 48, 5, padding=2),
        nn.PReLU(48),
        trunk,
        *up,
        nn.Conv2d(48, 3, 3, padding=1),
    )


def focus() -> nn.Module:
    """Space to depth at the input, a small trunk, depth to space at the output."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        conv(12, 48),
        conv(48, 48),
        nn.Conv2d(48, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )


class ReshapeAutoencoder(nn.Module):
    """Convolutions, a flattened bottleneck, and back through a reshape to transposed
    convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv(1, 32, s=2), conv(32, 64, s=2), nn.Flatten(), nn.Linear(64 * 16, 32)
        )
        self.expand = nn.Linear(32, 64 * 16)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(F.relu(self.expand(self.encoder(x))).reshape(-1, 64, 4, 4))


def generator() -> nn.Module:
    """DCGAN: from a vector to an image."""
    layers: list[nn.Module] = [nn.Unflatten(1, (32, 1, 1))]
    for i, o, s, p in ((32, 64, 1, 0), (64, 64, 2, 1), (64, 32, 2, 1)):
        layers += [
            nn.ConvTranspose2d(i, o, 4, s, p, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh())


class StyleModulation(nn.Module):
    """Feature-wise scale and shift of a map from a vector (FiLM), halves of one Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.film = conv(3, 48), nn.Linear(16, 96)
        self.body, self.out = conv(48, 48), nn.Conv2d(48, 3, 3, padding=1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.film(style)[:, :, None, None].chunk(2, 1)
        return self.out(self.body(F.relu(self.stem(x) * (1 + scale) + shift)))


NETS = [
    Net("yolo_c2f", Yolo, image(), "dynamo18 legacy13-bn legacy17"),
    Net("yolo_csp", partial(Yolo, CrossStage), image(), "legacy14 legacy17-static"),
    Net("fpn", FeaturePyramid, image(), "dynamo23 legacy17"),
    Net(
        "unet_transposed",
        partial(UNet, double_conv, True),
        image(),
        "dynamo18 legacy13-bn legacy17",
    ),
    Net(
        "unet_resize",
        partial(UNet, double_conv, False),
        image(),
        "dynamo20-static legacy16",
    ),
    Net(
        "unet_instance_prelu",
        partial(UNet, instance_block, True),
        image(),
        "dynamo18 legacy17",
    ),
    Net(
        "unet_group_norm",
        partial(UNet, group_block, False),
        image(),
        "dynamo23 legacy17",
    ),
    Net("hrnet", HighResolution, image(), "legacy17 legacy17-bn"),
    Net("deeplab", deeplab, image(), "legacy15"),
    Net("super_resolution", super_resolution, image(size=16), "dynamo18 legacy17"),
    Net("space_to_depth", focus, image(), "legacy17"),
    Net("reshape_autoencoder", ReshapeAutoencoder, image(1, 16), "dynamo18 legacy17"),
    Net("generator", generator, (Input((2, 32)),), "dynamo20 legacy17-bn"),
    Net("film", StyleModulation, (*image(), Input((2, 16))), "legacy17"),
]


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    return graphs_of(NETS)
