"""Models as people write them in torch, and a training step as they write it.

`bench_training.py` sets a step of `finetune` beside these. Convolutions come with a normalization
behind them (`norm`) or without, in the order of their nodes in an ONNX file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

Tensor = torch.Tensor
Values = tuple[Tensor, list[Tensor]]
"""Output, and values inside that student and teacher are compared on."""


class Unit(nn.Sequential):
    """A convolution, with a normalization if `norm`, and an activation."""

    def __init__(
        self, conv: nn.Conv2d, norm: bool, activation: nn.Module | None = None
    ) -> None:
        layers: list[nn.Module] = [conv]
        if norm:
            # the normalization adds last
            conv.bias = None
            layers.append(nn.BatchNorm2d(conv.out_channels))
        if activation is not None:
            layers.append(activation)
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """Two convolutions and a way around them, of ResNets for CIFAR (option A)."""

    def __init__(self, inside: int, outside: int, norm: bool) -> None:
        super().__init__()
        self.stride = outside // inside
        self.extra = outside - inside
        first = nn.Conv2d(inside, outside, 3, self.stride, padding=1)
        self.first = Unit(first, norm, nn.ReLU(inplace=True))
        self.second = Unit(nn.Conv2d(outside, outside, 3, padding=1), norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        if self.extra:
            half = self.extra // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        return F.relu(x + y, inplace=True)


class ResNet(nn.Module):
    """ResNet for CIFAR of 6 n + 2 layers; gives the ends of its stages too (He et al. 2015)."""

    def __init__(self, blocks: int, norm: bool) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 16, 3, padding=1)
        self.stem = Unit(stem, norm, nn.ReLU(inplace=True))
        stages = []
        inside = 16
        for width in (16, 32, 64):
            stage = []
            for _ in range(blocks):
                stage.append(ResidualBlock(inside, width, norm))
                inside = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Values:
        x = self.stem(x)
        ends = []
        for stage in self.stages:
            x = stage(x)
            ends.append(x)
        return self.head(x.mean((2, 3))), ends


LITE0 = (
    # kernel, stride, expansion, output channels, repeats
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Stages of EfficientNet-Lite0."""


class InvertedBlock(nn.Module):
    """Expansion, depthwise convolution and projection; added to its input where sizes agree."""

    def __init__(
        self,
        kernel: int,
        stride: int,
        expansion: int,
        inside: int,
        outside: int,
        norm: bool,
    ) -> None:
        super().__init__()
        wide = inside * expansion
        units: list[nn.Module] = []
        if expansion > 1:
            units.append(Unit(nn.Conv2d(inside, wide, 1), norm, nn.ReLU6(inplace=True)))
        padding: int | str = kernel // 2
        if stride == 2:
            # as in TensorFlow: of an odd padding more goes to the end
            before = (kernel - 2) // 2
            after = (kernel - 2) - before
            units.append(nn.ZeroPad2d((before, after, before, after)))
            padding = 0
        depthwise = nn.Conv2d(wide, wide, kernel, stride, padding, groups=wide)
        units.append(Unit(depthwise, norm, nn.ReLU6(inplace=True)))
        units.append(Unit(nn.Conv2d(wide, outside, 1), norm))
        self.body = nn.Sequential(*units)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        if self.residual:
            return x + y
        return y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 of 224 x 224 pixels and 1,000 classes."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 32, 3, 2)
        pad = nn.ZeroPad2d((0, 1, 0, 1))
        layers = [pad, Unit(stem, norm, nn.ReLU6(inplace=True))]
        inside = 32
        for kernel, stride, expansion, outside, repeats in LITE0:
            for index in range(repeats):
                step = stride if index == 0 else 1
                block = InvertedBlock(kernel, step, expansion, inside, outside, norm)
                layers.append(block)
                inside = outside
        last = nn.Conv2d(inside, 1280, 1)
        layers.append(Unit(last, norm, nn.ReLU6(inplace=True)))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Values:
        maps = self.layers(x)
        return self.head(maps.mean((2, 3))), []


class SentenceEncoder(nn.Module):
    """MiniLM by transformers, with the mean over the tokens and unit norm."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=30522,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Values:
        found = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        mask = attention_mask[..., None].float()
        total = (found.last_hidden_state * mask).sum(1)
        mean = total / mask.sum(1).clamp_min(1e-9)
        return F.normalize(mean, dim=-1), []


class LineReader(nn.Module):
    """CRNN: convolutions over an image of a line, then an LSTM in both directions (Shi 2015)."""

    def __init__(self, norm: bool, classes: int = 96) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 1
        for width, pool in ((32, 2), (64, 2), (128, (2, 1)), (128, (2, 1))):
            conv = nn.Conv2d(inside, width, 3, padding=1)
            layers += [Unit(conv, norm, nn.ReLU(inplace=True)), nn.MaxPool2d(pool)]
            inside = width
        self.layers = nn.Sequential(*layers)
        self.lstm = nn.LSTM(256, 128, bidirectional=True)
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Values:
        maps = self.layers(x)
        # (N, C, H, W) -> (W, N, C H)
        columns = maps.permute(3, 0, 1, 2).flatten(2)
        states, _ = self.lstm(columns)
        return self.head(states).transpose(0, 1), []


class OutputAlone(nn.Module):
    """A model without the values inside, as it is exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        output, _ = self.model(*inputs)
        return output


@dataclass
class HandWritten:
    """A training as people write it: tensors in memory, a plain loop, one optimizer.

    `inputs`: tensors of each batch (rows on axis 0), all of them as one where they are alike.
    `variances`: of the teacher's output and of its values inside. `changed`: flips and shifts by
    so many pixels, drawn anew at each step; without them the teacher is asked once, before.
    """

    student: nn.Module
    teacher: nn.Module
    rate: float
    half: bool
    variances: Sequence[float]
    loss: str
    temperature: float
    logit_mse: float
    clip: float
    changed: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    matched: bool = False

    def __post_init__(self) -> None:
        for module in (self.student, self.teacher):
            module.to(memory_format=torch.channels_last)
        self.teacher.eval()
        self.student.train()
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.parameters = parameters

    def step(self, inputs: Sequence[Tensor], targets: Values | None) -> float:
        """Do one step on a batch; `targets`: the teacher's values where they do not change."""
        if self.changed:
            inputs = [shifted(flipped(inputs[0]), self.changed)]
        inputs = [_channels_last(value) for value in inputs]
        self.optimizer.zero_grad()
        if targets is None:
            targets = self.ask(inputs)
        loss = self.loss_of(self.learn(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        with torch.no_grad():
            for name, kept in self.kept.items():
                self.student.get_parameter(name).mul_(kept)
        return float(loss.detach())

    def ask(self, inputs: Sequence[Tensor]) -> Values:
        """The teacher's values."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            values: Values = self.teacher(*inputs)
        return values

    def learn(self, inputs: Sequence[Tensor]) -> Values:
        """The student's values."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            values: Values = self.student(*inputs)
        return values

    def loss_of(self, own: Values, theirs: Values) -> Tensor:
        """The distance of outputs, and of what is inside where that is matched."""
        y, t = own[0].float(), theirs[0].float()
        if self.loss == "kl":
            q = F.log_softmax(y / self.temperature, -1)
            p = F.log_softmax(t / self.temperature, -1)
            rows = q.flatten(0, -2), p.flatten(0, -2)
            loss = F.kl_div(*rows, reduction="batchmean", log_target=True)
            loss = loss * self.temperature**2
            loss = loss + self.logit_mse * F.mse_loss(y, t) / self.variances[0]
        else:
            loss = F.mse_loss(y, t) / self.variances[0]
        if self.matched:
            pairs = zip(own[1], theirs[1], self.variances[1:], strict=True)
            for a, b, variance in pairs:
                loss = loss + F.mse_loss(a.float(), b.float()) / variance
        return loss


def _channels_last(value: Tensor) -> Tensor:
    if value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def flipped(images: Tensor) -> Tensor:
    """Images of which half, by a coin, are mirrored."""
    coins = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(coins, images.flip(-1), images)


def shifted(images: Tensor, most: int) -> Tensor:
    """Images that are moved by up to `most` pixels each, edges repeated."""
    count, _, height, width = images.shape
    padded = F.pad(images, (most,) * 4, mode="replicate")
    top = torch.randint(2 * most + 1, (count, 1, 1))
    left = torch.randint(2 * most + 1, (count, 1, 1))
    rows = torch.arange(height)[None, :, None] + top
    columns = torch.arange(width)[None, None, :] + left
    index = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2)
