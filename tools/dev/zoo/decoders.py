"""Causal language models: GPT-2, GPT-NeoX, Llama, Qwen, a cached step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from .blocks import Mlp, RMSNorm, merge_heads, split_heads
from .export import Input, Net, graphs_of, tokens


class Conv1D(nn.Module):
    """GPT-2's transposed Linear, weight (in, out), as an addmm over flattened tokens."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(i, o) * 0.2),
            nn.Parameter(torch.zeros(o)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).reshape(
            *x.shape[:-1], -1
        )


def causal(scores: Tensor) -> Tensor:
    length = scores.shape[-1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    return torch.where(allowed, scores, torch.tensor(-1e4)).softmax(-1)


class Gpt2Block(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.attend, self.project = Conv1D(width, 3 * width), Conv1D(width, width)
        self.up, self.down = Conv1D(width, 4 * width), Conv1D(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            split_heads(y, self.heads)
            for y in self.attend(self.norm1(x)).split(self.width, 2)
        )
        x = x + self.project(
            merge_heads(causal(q @ k.transpose(-2, -1) / k.shape[-1] ** 0.5) @ v)
        )
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    """The embedding is the head's weight as well."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(200, width), nn.Embedding(32, width)
        self.blocks, self.norm = (
            nn.Sequential(*(Gpt2Block(width) for _ in range(2))),
            nn.LayerNorm(width),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.positions(torch.arange(ids.shape[1]))
        return F.linear(self.norm(self.blocks(x)), self.embed.weight)


def rotate(x: Tensor, part: int | None = None, interleaved: bool = False) -> Tensor:
    """Rotary embedding of the first `part` features of (B, heads, T, d), by halves or by
    neighbours.
    """
    d = part or x.shape[-1]
    x, rest = x[..., :d], x[..., d:]
    angles = torch.arange(x.shape[2])[:, None] * 100.0 ** (-torch.arange(0, d, 2) / d)
    if interleaved:
        cos, sin = angles.cos(), angles.sin()
        a, b = x[..., ::2], x[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        a, b = x.chunk(2, -1)
        turned = x * cos + torch.cat([-b, a], -1) * sin
    return torch.cat([turned, rest], -1) if part else turned


class LlamaBlock(nn.Module):
    """Grouped queries (4 heads, 2 key heads), rotary positions, SwiGLU; `qk_norm` as in Qwen 3."""

    def __init__(
        self, width: int, kv: int = 2, qk_norm: bool = False, interleaved: bool = False
    ) -> None:
        super().__init__()
        self.d, self.kv, self.turn = (
            width // 4,
            kv,
            partial(rotate, interleaved=interleaved),
        )
        self.q, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, kv * self.d, bias=False) for _ in range(2))
        self.gate, self.up, self.down = (
            nn.Linear(a, b, bias=False)
            for a, b in ((width, 160), (width, 160), (160, width))
        )
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.qk = nn.ModuleList(
            RMSNorm(self.d) if qk_norm else nn.Identity() for _ in range(2)
        )

    def repeated(self, x: Tensor) -> Tensor:
        b, kv, t, d = x.shape
        return (
            x[:, :, None].expand(b, kv, 4 // kv, t, d).reshape(b, 4, t, d)
            if kv < 4
            else x
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q = self.turn(self.qk[0](split_heads(self.q(y), 4)))
        k = self.repeated(self.turn(self.qk[1](split_heads(self.k(y), self.kv))))
        v = self.repeated(split_heads(self.v(y), self.kv))
        x = x + self.out(
            merge_heads(causal(q @ k.transpose(-2, -1) * self.d**-0.5) @ v)
        )
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(
        self,
        block: Callable[[int], nn.Module] = LlamaBlock,
        tied: bool = False,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.embed, self.blocks = (
            nn.Embedding(200, width),
            nn.Sequential(*(block(width) for _ in range(2))),
        )
        self.norm, self.head = RMSNorm(width), nn.Linear(width, 200, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(ids))))


class FusedSdpa(LlamaBlock):
    """Phi: one Linear for q, k and v of unequal sizes, one for gate and up; torch's fused
    operator.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        del self.q, self.k, self.v, self.gate, self.up
        self.qkv, self.gate_up = (
            nn.Linear(width, 2 * width, bias=False),
            nn.Linear(width, 320, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).split(
            [4 * self.d, 2 * self.d, 2 * self.d], -1
        )
        q, k = rotate(split_heads(q, 4)), self.repeated(rotate(split_heads(k, 2)))
        v = self.repeated(split_heads(v, 2))
        x = x + self.out(
            merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        )
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class NeoxBlock(nn.Module):
    """GPT-NeoX: qkv interleaved by head, a quarter of each head rotated, attention and feed-forward
    in parallel.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp, self.norm1, self.norm2 = (
            Mlp(width, 4 * width),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            self.qkv(self.norm1(x))
            .reshape(b, t, 4, 3 * c // 4)
            .transpose(1, 2)
            .chunk(3, -1)
        )
        q, k = rotate(q, c // 16), rotate(k, c // 16)
        y = self.out(
            merge_heads(causal(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5) @ v)
        )
        return x + y + self.mlp(self.norm2(x))


class CachedStep(nn.Module):
    """One decoding step: the keys and values so far come in, and go out one longer."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.norm, self.head = (
            nn.Embedding(200, width),
            nn.LayerNorm(width),
            nn.Linear(width, 200),
        )
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = Mlp(width, 4 * width)

    def forward(
        self, ids: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = self.embed(ids)
        y = self.norm(x)
        q, k, v = (split_heads(layer(y), 4) for layer in (self.q, self.k, self.v))
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        weights = (q @ keys.transpose(-2, -1) * 0.25).softmax(-1)
        x = x + self.out(merge_heads(weights @ values))
        return self.head(x + self.mlp(x)), keys, values


CACHE = (
    Input((2, 1), 200),
    *(Input((2, 4, 6, 16), open=("batch", None, "past")) for _ in range(2)),
)

NETS = [
    Net("gpt2", Gpt2, tokens(), "dynamo18 dynamo20-raw legacy14 legacy17"),
    Net("gpt_neox", partial(Llama, NeoxBlock), tokens(), "dynamo18 legacy17"),
    Net("llama", Llama, tokens(), "dynamo18 dynamo23 legacy17"),
    Net("llama_tied", partial(Llama, tied=True), tokens(), "dynamo20 legacy17"),
    Net("llama_open_length", Llama, tokens(open_length=True), "legacy17"),
    Net(
        "qwen_qk_norm",
        partial(Llama, partial(LlamaBlock, qk_norm=True)),
        tokens(),
        "legacy17",
    ),
    Net(
        "gpt_j_interleaved",
        partial(Llama, partial(LlamaBlock, kv=4, interleaved=True)),
        tokens(),
        "legacy17",
    ),
    Net("phi_fused", partial(Llama, FusedSdpa), tokens(), "dynamo23 legacy17"),
    Net("cached_step", CachedStep, CACHE, "legacy17"),
]


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    return graphs_of(NETS)
