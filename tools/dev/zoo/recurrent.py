"""Recurrent nets: LSTM, GRU and RNN in both directions, stacked, attended, with their states in the
interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .export import Input, Net, graphs_of, sequence, tokens


class Tagger(nn.Module):
    """An embedding, a stacked recurrent layer, a label per token."""

    def __init__(
        self,
        kind: type[nn.RNNBase],
        layers: int = 1,
        both: bool = False,
        hidden: int = 48,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, 32)
        self.layers = kind(32, hidden, layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(hidden * (2 if both else 1), 6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(ids))[0])


class LastState(nn.Module):
    """Classifies the last hidden states of both directions, side by side."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int = 48) -> None:
        super().__init__()
        self.project, self.layers = (
            nn.Linear(32, 64),
            kind(64, hidden, 1, batch_first=True, bidirectional=True),
        )
        self.norm, self.head = nn.LayerNorm(2 * hidden), nn.Linear(2 * hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        states = self.layers(torch.relu(self.project(x)))[1]
        hidden = states[0] if isinstance(states, tuple) else states
        return self.head(self.norm(torch.cat([hidden[0], hidden[1]], -1)))


class Stateful(nn.Module):
    """The hidden state comes in and goes out; what is between the layers is free."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.GRU(32, 48, batch_first=True),
            nn.GRU(48, 40, batch_first=True),
        )
        self.head = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.first(x)
        y, state = self.second(y, state)
        return self.head(y), state


class Seq2Seq(nn.Module):
    """GRU encoder and decoder with dot-product attention."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, 32)
        self.encoder, self.decoder = (
            nn.GRU(32, width, batch_first=True),
            nn.GRU(32, width, batch_first=True),
        )
        self.combine, self.head = nn.Linear(2 * width, 64), nn.Linear(64, 200)

    def forward(self, ids: Tensor, decoded: Tensor) -> Tensor:
        memory, state = self.encoder(self.embed(ids))
        x, _ = self.decoder(self.embed(decoded), state)
        context = (x @ memory.transpose(1, 2)).softmax(-1) @ memory
        return self.head(torch.tanh(self.combine(torch.cat([context, x], -1))))


class SpeechRecognizer(nn.Module):
    """CRNN and DeepSpeech: 2-D convolutions, channels and height folded into features, a recurrent
    stack.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(1, 32, 3, (2, 1), 1),
            nn.BatchNorm2d(32),
            nn.Hardtanh(0, 20),
            nn.Conv2d(32, 48, 3, (2, 1), 1),
            nn.BatchNorm2d(48),
            nn.Hardtanh(0, 20),
        )
        self.recurrent, self.head = (
            nn.LSTM(48 * 4, 40, 2, bidirectional=True),
            nn.Linear(80, 29),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs(x).flatten(1, 2).permute(2, 0, 1)
        return self.head(self.recurrent(y)[0]).log_softmax(-1)


TWO_TEXTS = (Input((2, 12), 200), Input((2, 8), 200))
WITH_STATE = (*sequence(), Input((1, 2, 40), open=(None, "batch")))

NETS = [
    Net("lstm_tagger", partial(Tagger, nn.LSTM), tokens(), "legacy14 legacy17-static"),
    Net(
        "lstm_stacked",
        partial(Tagger, nn.LSTM, 2),
        tokens(),
        "dynamo18-static legacy17",
    ),
    Net(
        "lstm_bidirectional",
        partial(Tagger, nn.LSTM, 2, True),
        tokens(),
        "legacy13 legacy17",
    ),
    Net("gru_tagger", partial(Tagger, nn.GRU), tokens(), "dynamo20-static legacy17"),
    Net("gru_bidirectional", partial(Tagger, nn.GRU, 2, True), tokens(), "legacy16"),
    Net("rnn_tagger", partial(Tagger, nn.RNN, 2), tokens(), "legacy17"),
    Net("lstm_last_state", partial(LastState, nn.LSTM), sequence(), "legacy17"),
    Net("gru_last_state", partial(LastState, nn.GRU), sequence(), "legacy17"),
    Net("gru_stateful", Stateful, WITH_STATE, "legacy17"),
    Net("seq2seq", Seq2Seq, TWO_TEXTS, "legacy17"),
    Net("crnn", SpeechRecognizer, (Input((2, 1, 16, 24)),), "legacy17 legacy17-bn"),
]


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    return graphs_of(NETS)
