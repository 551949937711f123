"""Text encoders and encoder-decoders: BERT, ALBERT, DistilBERT, T5, BART, experts, convolutions
over text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from .blocks import Attention, Mlp, RMSNorm, SdpaAttention
from .export import Input, Net, graphs_of, tokens


class PostNorm(nn.Module):
    """BERT's layer: norms after the additions, an additive mask."""

    def __init__(
        self, width: int, attention: type[Attention] = Attention, hidden: int = 256
    ) -> None:
        super().__init__()
        self.attention, self.mlp = attention(width), Mlp(width, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.attention(x, bias=mask))
        return self.norm2(x + self.mlp(x))


class Embeddings(nn.Module):
    """Words, positions and segments, added and normed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(200, width), nn.Embedding(32, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.positions(torch.arange(ids.shape[1]))
        return self.norm(
            self.words(ids) + positions + self.types(torch.zeros_like(ids))
        )


class Bert(nn.Module):
    """With a pooler and a classifier; with `lm` instead a masked-language head tied to the
    embedding.
    """

    def __init__(
        self, attention: type[Attention] = Attention, lm: bool = False, width: int = 64
    ) -> None:
        super().__init__()
        self.embeddings, self.layers = (
            Embeddings(width),
            nn.ModuleList(PostNorm(width, attention) for _ in range(2)),
        )
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 3)
        self.transform = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
            if lm
            else None
        )
        self.bias = nn.Parameter(torch.zeros(200))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embeddings(ids)
        bias = (1.0 - (mask > 0)[:, None, None].float()) * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        if self.transform is not None:
            return F.linear(self.transform(x), self.embeddings.words.weight, self.bias)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class Albert(nn.Module):
    """A factorized embedding and one layer applied three times."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embeddings, self.expand, self.layer = (
            Embeddings(32),
            nn.Linear(32, width),
            PostNorm(width),
        )
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.expand(self.embeddings(ids))
        for _ in range(3):
            x = self.layer(x)
        return self.head(x.mean(1))


class SentenceEncoder(nn.Module):
    """MiniLM: token states averaged under the mask, then of unit length."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embeddings, self.layers = (
            Embeddings(width),
            nn.ModuleList(PostNorm(width) for _ in range(2)),
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights = (mask > 0).float()
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x, (1.0 - weights)[:, None, None] * -10000.0)
        summed = (x * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(
            min=1e-6
        )
        return F.normalize(summed, dim=-1)


class TorchEncoder(nn.Module):
    """torch's own nn.TransformerEncoder, fused in_proj."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.backends.mha.set_fastpath_enabled(
            False
        )  # one operator that no exporter knows
        self.embed = nn.Embedding(200, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 128, batch_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids))[:, 0])


class RelativeBias(nn.Module):
    """T5: buckets of distances, an embedding over the heads."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(16, heads)

    def forward(self, length: int) -> Tensor:
        steps = torch.arange(length)
        distance = (steps[None] - steps[:, None]).clamp(-8, 7) + 8
        return self.table(distance).permute(2, 0, 1).unsqueeze(0)


class T5Block(nn.Module):
    """RMS norms, no biases, unscaled attention; `cross` in the decoder; gated feed-forward."""

    def __init__(self, width: int, cross: bool = False) -> None:
        super().__init__()
        self.own, self.cross = Attention(width), Attention(width) if cross else None
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(3 if cross else 2))
        self.gate, self.up, self.down = (
            nn.Linear(a, b, bias=False)
            for a, b in ((width, 128), (width, 128), (128, width))
        )

    def forward(self, x: Tensor, bias: Tensor, memory: Tensor | None = None) -> Tensor:
        x = x + self.own(self.norms[0](x), bias=bias)
        if self.cross is not None:
            x = x + self.cross(self.norms[2](x), memory)
        y = self.norms[1](x)
        return x + self.down(F.gelu(self.gate(y)) * self.up(y))


class T5Encoder(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.bias = nn.Embedding(200, width), RelativeBias()
        self.layers, self.norm = (
            nn.ModuleList(T5Block(width) for _ in range(2)),
            RMSNorm(width),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x, bias = self.embed(ids), self.bias(ids.shape[1])
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x)


class T5(nn.Module):
    """Encoder and decoder over one embedding, which is the head's weight as well."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.encoder, self.bias, self.norm = (
            T5Encoder(width),
            RelativeBias(),
            RMSNorm(width),
        )
        self.layers = nn.ModuleList(T5Block(width, cross=True) for _ in range(2))

    def forward(self, ids: Tensor, decoded: Tensor) -> Tensor:
        memory, length = self.encoder(ids), decoded.shape[1]
        causal = torch.full((length, length), -10000.0).triu(1)
        x, bias = self.encoder.embed(decoded), self.bias(length) + causal
        for layer in self.layers:
            x = layer(x, bias, memory)
        return F.linear(self.norm(x) * x.shape[-1] ** -0.5, self.encoder.embed.weight)


class Bart(nn.Module):
    """Post-norm encoder and decoder, learned positions, a shared embedding, a separate head."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(200, width), nn.Embedding(32, width)
        self.encoder, self.decoder = PostNorm(width, SdpaAttention), PostNorm(width)
        self.cross, self.norm, self.head = (
            Attention(width),
            nn.LayerNorm(width),
            nn.Linear(width, 200),
        )

    def embedded(self, ids: Tensor) -> Tensor:
        return self.embed(ids) * 8.0 + self.positions(torch.arange(ids.shape[1]))

    def forward(self, ids: Tensor, decoded: Tensor) -> Tensor:
        memory, length = self.encoder(self.embedded(ids)), decoded.shape[1]
        x = self.decoder(
            self.embedded(decoded), torch.full((length, length), -10000.0).triu(1)
        )
        return self.head(self.norm(x + self.cross(x, memory)))


class Experts(nn.Module):
    """A mixture of experts as batched products: (E, C, F) and (E, F, C) weights, a softmax
    router.
    """

    def __init__(self, width: int = 64, hidden: int = 96, experts: int = 4) -> None:
        super().__init__()
        self.embed, self.router = nn.Embedding(200, width), nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)
        self.attention, self.norm, self.head = (
            Attention(width),
            nn.LayerNorm(width),
            nn.Linear(width, 5),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.attention(self.norm(x))
        gates = self.router(x).softmax(-1)
        y = F.gelu(x.unsqueeze(1) @ self.up) @ self.down
        return self.head((x + torch.einsum("betc,bte->btc", y, gates)).mean(1))


class TextCnn(nn.Module):
    """Convolutions of 3, 4 and 5 words, pooled and concatenated."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(200, width), nn.Linear(3 * 32, 4)
        self.convs = nn.ModuleList(nn.Conv1d(width, 32, k) for k in (3, 4, 5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        return self.head(torch.cat([F.relu(c(x)).amax(2) for c in self.convs], 1))


PAIR = (Input((2, 12), 200), Input((2, 12), 2))
TWO_TEXTS = (Input((2, 12), 200), Input((2, 8), 200))
OPEN_PAIR = (
    Input((2, 12), 200, ("batch", "length")),
    Input((2, 12), 2, ("batch", "length")),
)

NETS = [
    Net("bert", Bert, PAIR, "dynamo18 dynamo20-raw legacy13 legacy17-static"),
    Net("bert_open_length", Bert, OPEN_PAIR, "dynamo18 legacy17"),
    Net("bert_sdpa", lambda: Bert(SdpaAttention), PAIR, "dynamo23 legacy16"),
    Net("bert_masked_lm", lambda: Bert(lm=True), PAIR, "dynamo18 legacy17"),
    Net("albert", Albert, tokens(), "dynamo18 legacy17"),
    Net("sentence_encoder", SentenceEncoder, OPEN_PAIR, "legacy17"),
    Net("torch_encoder", TorchEncoder, tokens(), "dynamo20 legacy17"),
    Net("t5_encoder", T5Encoder, tokens(), "dynamo18 legacy17"),
    Net("t5", T5, TWO_TEXTS, "dynamo20 legacy17"),
    Net("bart", Bart, TWO_TEXTS, "legacy17"),
    Net("experts", Experts, tokens(), "dynamo18 legacy17"),
    Net("text_cnn", TextCnn, tokens(), "legacy15"),
]


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    return graphs_of(NETS)
