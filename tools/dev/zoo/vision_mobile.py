"""Mobile classifiers: depthwise convolutions, channel shuffle, squeeze-and-excite, hard
activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .blocks import Branches, Residual, SqueezeExcite, classifier, conv
from .export import Net, graphs_of, image
from .vision_cnn import staged


def inverted(
    i: int,
    o: int,
    s: int = 1,
    k: int = 3,
    act: type[nn.Module] = nn.ReLU6,
    gate: type[nn.Module] | None = None,
) -> nn.Module:
    hidden = 4 * i if i < 64 else 2 * i
    body = nn.Sequential(
        conv(i, hidden, 1, act=act),
        conv(hidden, hidden, k, s, hidden, act),
        *([SqueezeExcite(hidden, hidden // 4, gate)] if gate else []),
        conv(hidden, o, 1, act=None),
    )
    return Residual(body) if s == 1 and i == o else body


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleV1(nn.Module):
    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.extends = s > 1
        hidden, self.groups = o // 2, 4
        self.first = conv(i, hidden, 1, g=self.groups)
        self.rest = nn.Sequential(
            conv(hidden, hidden, 3, s, hidden, None),
            conv(hidden, o - i if self.extends else o, 1, g=self.groups, act=None),
        )
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rest(shuffle(self.first(x), self.groups))
        return torch.relu(torch.cat([self.pool(x), y], 1) if self.extends else x + y)


class ShuffleV2(nn.Module):
    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.stride, half = s, o // 2
        side = i if s > 1 else half
        self.left = (
            nn.Sequential(conv(i, i, 3, s, i, None), conv(i, half, 1))
            if s > 1
            else None
        )
        self.right = nn.Sequential(
            conv(side, half, 1), conv(half, half, 3, s, half, None), conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.left is not None:
            return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)
        a, b = x.chunk(2, 1)
        return shuffle(torch.cat([a, self.right(b)], 1), 2)


class Ghost(nn.Module):
    """Half of the channels from a convolution, half from a cheap depthwise one of those; sliced to
    `o`.
    """

    def __init__(self, i: int, o: int, act: type[nn.Module] | None = nn.ReLU) -> None:
        super().__init__()
        half = -(-o // 2)
        self.width, self.main, self.cheap = (
            o,
            conv(i, half, 1, act=act),
            conv(half, half, 3, 1, half, act),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.main(x)
        return torch.cat([x, self.cheap(x)], 1)[:, : self.width]


def ghost(i: int, o: int, s: int = 1) -> nn.Module:
    down = [conv(2 * o, 2 * o, 3, s, 2 * o, None)] if s > 1 else []
    body = nn.Sequential(
        Ghost(i, 2 * o),
        *down,
        SqueezeExcite(2 * o, o // 2, nn.Hardsigmoid),
        Ghost(2 * o, o, None),
    )
    shortcut = (
        nn.Sequential(conv(i, i, 3, s, i, None), conv(i, o, 1, act=None))
        if s > 1 or i != o
        else None
    )
    return Residual(body, shortcut)


class MixedKernels(nn.Module):
    """MixNet: depthwise kernels of 3, 5 and 7 over unequal splits of the channels."""

    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        hidden = 2 * i
        self.sizes = [hidden // 2, hidden // 4, hidden // 4]
        self.expand, self.project = (
            conv(i, hidden, 1, act=nn.SiLU),
            conv(hidden, o, 1, act=None),
        )
        self.convs = nn.ModuleList(
            nn.Conv2d(n, n, k, s, k // 2, groups=n)
            for n, k in zip(self.sizes, (3, 5, 7), strict=True)
        )
        self.norm, self.keep = nn.BatchNorm2d(hidden), s == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        parts = self.expand(x).split(self.sizes, 1)
        y = torch.cat([c(p) for c, p in zip(self.convs, parts, strict=True)], 1)
        y = self.project(nn.functional.silu(self.norm(y)))
        return x + y if self.keep else y


class Star(nn.Module):
    """StarNet: the product of two linear branches."""

    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.down = conv(i, o, 3, s, act=None)
        self.depthwise, self.last = (
            conv(o, o, 7, g=o, act=None),
            conv(o, o, 7, g=o, act=None),
        )
        self.left, self.right, self.project = (
            conv(o, 3 * o, 1, act=None),
            conv(o, 3 * o, 1, act=None),
            conv(3 * o, o, 1, act=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        y = self.depthwise(x)
        return x + self.last(
            self.project(nn.functional.relu6(self.left(y)) * self.right(y))
        )


class Coordinate(nn.Module):
    """Coordinate attention: pooled rows and columns share one convolution, then split again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shared, self.rows, self.columns = (
            conv(width, width // 2, 1, act=nn.Hardswish),
            nn.Conv2d(width // 2, width, 1),
            nn.Conv2d(width // 2, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        y = self.shared(
            torch.cat(
                [x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2
            )
        )
        rows, columns = y.split([h, w], 2)
        return (
            x
            * self.rows(rows).sigmoid()
            * self.columns(columns.transpose(2, 3)).sigmoid()
        )


def coordinate(i: int, o: int, s: int = 1) -> nn.Module:
    return nn.Sequential(inverted(i, o, s, act=nn.Hardswish), Coordinate(o))


def mnas() -> nn.Module:
    """Depthwise-separable layers without residuals, as in MobileNetV1, and a wide head."""
    sizes = ((32, 64, 1), (64, 128, 2), (128, 128, 1))
    layers = [nn.Sequential(conv(i, i, 3, s, i), conv(i, o, 1)) for i, o, s in sizes]
    return nn.Sequential(conv(3, 32, s=2), *layers, conv(128, 256, 1), classifier(256))


v3 = partial(inverted, act=nn.Hardswish, gate=nn.Hardsigmoid, k=5)
efficient = partial(inverted, act=nn.SiLU, gate=nn.Sigmoid)

NETS = [
    Net("mobilenet_v1", mnas, image(), "legacy17-bn"),
    Net(
        "mobilenet_v2",
        partial(staged, inverted),
        image(),
        "dynamo18 legacy13-bn legacy17",
    ),
    Net("mobilenet_v3", partial(staged, v3), image(), "dynamo20 legacy14 legacy17-bn"),
    Net(
        "efficientnet",
        partial(staged, efficient),
        image(),
        "dynamo18 legacy13 legacy16-bn",
    ),
    Net(
        "shufflenet_v1", partial(staged, ShuffleV1), image(), "dynamo18 legacy17-static"
    ),
    Net(
        "shufflenet_v2",
        lambda: nn.Sequential(
            conv(3, 32),
            ShuffleV2(32, 64, 2),
            ShuffleV2(64, 64),
            ShuffleV2(64, 128, 2),
            ShuffleV2(128, 128),
            classifier(128),
        ),
        image(),
        "dynamo18 legacy13-bn legacy17",
    ),
    Net("ghostnet", partial(staged, ghost), image(), "dynamo18 legacy17"),
    Net("mixnet", partial(staged, MixedKernels), image(), "dynamo23 legacy17"),
    Net("starnet", partial(staged, Star), image(), "dynamo18 legacy17-bn"),
    Net("coordinate_attention", partial(staged, coordinate), image(), "legacy17"),
    Net(
        "parallel_pools",
        lambda: nn.Sequential(
            conv(3, 32),
            Branches(nn.AvgPool2d(2), nn.MaxPool2d(2), conv(32, 32, s=2)),
            conv(96, 64),
            classifier(64),
        ),
        image(),
        "legacy17",
    ),
]


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    return graphs_of(NETS)
