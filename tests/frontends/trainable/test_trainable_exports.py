"""Exports of torch come back as the same module: values, and gradients by parameter name."""

import pytest
import torch
from onnx_opt.frontends.trainable import to_torch
from torch import nn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]  # the exporter warns about itself


class Residual(nn.Module):
    """Convolutions with BatchNormalization, grouped and strided, a shortcut, a classifier."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.two, self.more = nn.Conv2d(8, 8, 3, 1, 1, groups=4), nn.GroupNorm(2, 8)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = nn.functional.silu(self.norm(self.one(x)))
        x = nn.functional.hardswish(x + self.more(self.two(x)))
        return self.last(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Encoder(nn.Module):
    """A transformer layer over embedded tokens, with the embedding tied to the head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.place = nn.Parameter(torch.randn(12, 16))
        self.layer = nn.TransformerEncoderLayer(
            16, 4, 32, batch_first=True, activation="gelu"
        )

    def forward(self, tokens):
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        return self.layer(x) @ self.embed.weight.T


class Recurrent(nn.Module):
    """Two bidirectional LSTM layers and a GRU, unrolled by the exporter."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 4, 2, bidirectional=True)
        self.gru = nn.GRU(8, 3)

    def forward(self, x):
        return self.gru(self.lstm(x)[0])[0]


CASES = {
    "residual": (
        Residual,
        torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
    ),
    "encoder": (Encoder, torch.arange(24).reshape(2, 12) * 7 % 50),
    "recurrent": (
        Recurrent,
        torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(0)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_module_that_was_exported(name):
    torch.manual_seed(0)
    make, x = CASES[name]
    original = make().eval()
    program = torch.onnx.export(
        original, (x,), dynamo=True, optimize=False, verbose=False
    )
    ours = to_torch(program.model)
    expected, got = original(x), ours(x)
    assert float((expected - got).detach().abs().max()) < 1e-5
    for output in (expected, got):
        (
            output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)
        ).sum().backward()
    given = {
        origin.name: ours.get_parameter(key).grad
        for key, origin in ours.origins.items()
    }
    checked = 0
    for key, parameter in original.named_parameters():
        if key in given:
            error = (given[key] - parameter.grad).norm() / parameter.grad.norm().clamp(
                min=1e-6
            )
            assert float(error) <= 1e-5, key
            checked += 1
    assert checked == len(list(original.parameters()))
