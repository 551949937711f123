"""Convolutional classifiers: residual, dense, grouped and multi-branch nets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from .blocks import Branches, Residual, SqueezeExcite, classifier, conv
from .export import Net, graphs_of, image


def basic(i: int, o: int, s: int = 1) -> nn.Module:
    shortcut = conv(i, o, 1, s, act=None) if s > 1 or i != o else None
    return Residual(
        nn.Sequential(conv(i, o, s=s), conv(o, o, act=None)), shortcut, nn.ReLU()
    )


def bottleneck(i: int, o: int, s: int = 1, g: int = 1, se: bool = False) -> nn.Module:
    hidden = o // 2
    shortcut = conv(i, o, 1, s, act=None) if s > 1 or i != o else None
    body = nn.Sequential(
        conv(i, hidden, 1),
        conv(hidden, hidden, 3, s, g),
        conv(hidden, o, 1, act=None),
        *([SqueezeExcite(o, o // 4)] if se else []),
    )
    return Residual(body, shortcut, nn.ReLU())


def staged(block: Callable[..., nn.Module]) -> nn.Module:
    """A stem, three stages of 32, 64 and 128 channels, a classifier."""
    stages = [block(32, 32), block(32, 64, 2), block(64, 64), block(64, 128, 2)]
    return nn.Sequential(conv(3, 32), *stages, classifier(128))


class PreActivation(nn.Module):
    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.norm = nn.Sequential(nn.BatchNorm2d(i), nn.ReLU())
        self.shortcut = nn.Conv2d(i, o, 1, s, bias=False) if s > 1 or i != o else None
        self.body = nn.Sequential(
            nn.Conv2d(i, o, 3, s, 1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU(),
            nn.Conv2d(o, o, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.body(y) + (self.shortcut(y) if self.shortcut else x)


class PadShortcut(nn.Module):
    """Option A of the ResNet paper: the shortcut is subsampled and padded with zero channels."""

    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(i, o, s=s), conv(o, o, act=None))
        self.extra, self.stride = o - i, s

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.extra:
            low = self.extra // 2
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride],
                (0, 0, 0, 0, low, self.extra - low),
            )
        return F.relu(y + x)


class Dense(nn.Module):
    def __init__(self, i: int, growth: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(i),
            nn.ReLU(),
            nn.Conv2d(i, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet() -> nn.Module:
    transition = [
        nn.BatchNorm2d(80),
        nn.ReLU(),
        nn.Conv2d(80, 40, 1, bias=False),
        nn.AvgPool2d(2),
    ]
    return nn.Sequential(
        conv(3, 32),
        *(Dense(32 + 16 * k) for k in range(3)),
        *transition,
        *(Dense(40 + 16 * k) for k in range(3)),
        nn.BatchNorm2d(88),
        nn.ReLU(),
        classifier(88),
    )


class DualPath(nn.Module):
    """DPN: the output splits into a part that is added and a part that is appended."""

    def __init__(self, i: int, residual: int, growth: int) -> None:
        super().__init__()
        self.residual, self.body = (
            residual,
            nn.Sequential(
                conv(i, 64, 1),
                conv(64, 64, g=8),
                conv(64, residual + growth, 1, act=None),
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        y, r = self.body(x), self.residual
        return F.relu(torch.cat([x[:, :r] + y[:, :r], x[:, r:], y[:, r:]], 1))


class Res2(nn.Module):
    """Res2Net: a hierarchy of convolutions over four splits of the channels."""

    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.down = conv(i, o, 1, s, act=None)
        self.first, self.last = conv(i, o, 1, s), conv(o, o, 1, act=None)
        self.convs = nn.ModuleList(conv(o // 4, o // 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.first(x).chunk(4, 1)
        out = [parts[0]]
        for k, layer in enumerate(self.convs):
            out.append(layer(parts[k + 1] if k == 0 else parts[k + 1] + out[-1]))
        return F.relu(self.last(torch.cat(out, 1)) + self.down(x))


def inception(i: int, o: int, s: int = 1) -> nn.Module:
    q = o // 4
    return Branches(
        conv(i, q, 1, s),
        nn.Sequential(conv(i, 32, 1), conv(32, q, s=s)),
        nn.Sequential(conv(i, 32, 1), conv(32, 32), conv(32, q, s=s)),
        nn.Sequential(nn.MaxPool2d(3, s, 1), conv(i, q, 1)),
    )


def fire(i: int, squeeze: int, o: int) -> nn.Module:
    def layer(a: int, b: int, k: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(a, b, k, padding=k // 2), nn.ReLU())

    return nn.Sequential(
        layer(i, squeeze, 1),
        Branches(layer(squeeze, o // 2, 1), layer(squeeze, o // 2, 3)),
    )


def squeezenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        fire(32, 16, 64),
        fire(64, 16, 128),
        nn.Dropout(),
        nn.Conv2d(128, 10, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def vgg(norm: bool = True) -> nn.Module:
    parts: list[nn.Module] = []
    for i, o in ((3, 32), (32, 64), (64, 64)):
        parts += [
            nn.Conv2d(i, o, 3, padding=1),
            *([nn.BatchNorm2d(o)] if norm else []),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(
        *parts,
        nn.Flatten(),
        nn.Linear(1024, 128),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(128, 10),
    )


def zero_bias(module: nn.Module) -> nn.Module:
    """Every bias zero: exporters make one shared initializer of the equal ones."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return module


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 120),
        nn.Tanh(),
        nn.Linear(120, 10),
    )


class RepVGG(nn.Module):
    """Training form: 3x3, 1x1 and identity branches, each with its BatchNorm."""

    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.wide, self.narrow = conv(i, o, 3, s, act=None), conv(i, o, 1, s, act=None)
        self.identity = nn.BatchNorm2d(i) if i == o and s == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x) + self.narrow(x)
        return F.relu(y + self.identity(x) if self.identity else y)


class StandardConv(nn.Conv2d):
    """Weight standardisation with a learned gain, as in NFNet."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        centred = self.weight - mean
        scale = torch.rsqrt(
            centred.pow(2).mean((1, 2, 3), keepdim=True) * self.weight[0].numel() + 1e-4
        )
        return F.conv2d(
            x, centred * scale * self.gain, self.bias, self.stride, self.padding
        )


class NormFree(nn.Module):
    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.a, self.b, self.down = (
            StandardConv(i, o, 3, s, 1),
            StandardConv(o, o, 3, 1, 1),
            StandardConv(i, o, 1, s),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(x) * 1.7
        return self.down(y) + 0.2 * self.b(F.gelu(self.a(y)) * 1.7)


class SelectiveKernel(nn.Module):
    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.small, self.large = conv(i, o, 3, s), conv(i, o, 3, s, d=2)
        self.squeeze, self.select = conv(o, o // 2, 1), nn.Conv2d(o // 2, 2 * o, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.small(x), self.large(x)], 1)
        gate = self.select(self.squeeze(both.sum(1).mean((2, 3), keepdim=True)))
        return (both * gate.reshape(gate.shape[0], 2, -1, 1, 1).softmax(1)).sum(1)


class ConvAttention(nn.Module):
    """CBAM: channel attention from average and maximum, then spatial attention."""

    def __init__(self, i: int, o: int, s: int = 1) -> None:
        super().__init__()
        self.conv, self.spatial = conv(i, o, 3, s), nn.Conv2d(2, 1, 7, padding=3)
        self.mlp = nn.Sequential(nn.Linear(o, o // 4), nn.ReLU(), nn.Linear(o // 4, o))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * gate[:, :, None, None]
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial(maps))


class NonLocal(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(width, width // 2, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv2d(width // 2, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        y = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
        return x + self.out(y.reshape(b, -1, h, w))


class Siamese(nn.Module):
    """Two images, one encoder; embeddings of unit length and their distance."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv(3, 32, s=2), basic(32, 64, 2), classifier(64, 32)
        )

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (F.normalize(self.encoder(x), dim=1) for x in (a, b))
        return first, (first - second).abs()


class TwoPools(nn.Module):
    """Average and maximum pooling, and the same average twice, side by side before the
    classifier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = (
            nn.Sequential(conv(3, 32, s=2), conv(32, 64, s=2)),
            nn.Linear(192, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        mean = x.mean((2, 3))
        return self.head(torch.cat([mean, x.amax((2, 3)), mean], 1))


def non_local() -> nn.Module:
    return nn.Sequential(
        conv(3, 32, s=2), NonLocal(32), conv(32, 64, s=2), NonLocal(64), classifier(64)
    )


def dual_path() -> nn.Module:
    return nn.Sequential(
        conv(3, 48, s=2), DualPath(48, 32, 16), DualPath(64, 32, 16), classifier(80)
    )


NETS = [
    Net(
        "resnet_basic",
        partial(staged, basic),
        image(),
        "dynamo18 dynamo20-raw legacy13-bn legacy17",
    ),
    Net(
        "resnet_basic_fresh",
        partial(staged, basic),
        image(),
        "legacy13 legacy14-bn",
        fresh=True,
    ),
    Net(
        "resnet_bottleneck",
        partial(staged, bottleneck),
        image(),
        "dynamo23 legacy16-static",
    ),
    Net(
        "resnet_preact", partial(staged, PreActivation), image(), "dynamo18 legacy17-bn"
    ),
    Net(
        "resnet_option_a",
        partial(staged, PadShortcut),
        image(),
        "dynamo18 legacy13 legacy15-bn",
    ),
    Net("densenet", densenet, image(), "dynamo20 legacy17"),
    Net("dual_path", dual_path, image(), "legacy17"),
    Net(
        "resnext",
        partial(staged, partial(bottleneck, g=8)),
        image(),
        "dynamo18 legacy14-bn",
    ),
    Net(
        "se_resnet", partial(staged, partial(bottleneck, se=True)), image(), "legacy17"
    ),
    Net("res2net", partial(staged, Res2), image(), "dynamo18 legacy16"),
    Net("inception", partial(staged, inception), image(), "legacy13-bn legacy17"),
    Net("squeezenet", squeezenet, image(), "dynamo20 legacy15"),
    Net("vgg", vgg, image(), "dynamo18-static legacy13-bn"),
    Net(
        "vgg_zero_bias",
        lambda: zero_bias(vgg(norm=False)),
        image(),
        "dynamo18 legacy17",
        fresh=True,
    ),
    Net("lenet", lenet, image(1), "legacy14"),
    Net("repvgg", partial(staged, RepVGG), image(), "legacy17 legacy17-bn"),
    Net(
        "nfnet", partial(staged, NormFree), image(), "dynamo18-raw legacy17 legacy17-bn"
    ),
    Net(
        "selective_kernel",
        partial(staged, SelectiveKernel),
        image(),
        "dynamo18 legacy17",
    ),
    Net("cbam", partial(staged, ConvAttention), image(), "dynamo20 legacy14"),
    Net("non_local", non_local, image(size=16), "dynamo18 legacy17"),
    Net("siamese", Siamese, image() * 2, "dynamo18 legacy17"),
    Net("two_pools", TwoPools, image(), "legacy17"),
]


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    return graphs_of(NETS)
