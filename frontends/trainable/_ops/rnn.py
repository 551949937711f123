"""LSTM, GRU and RNN, in torch's fused kernels where the activations are the default ones, else step
by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import op
from .shape import reversed_steps

Tensor = Any
Step = Callable[..., Any]


@op("LSTM", many=True)
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    """Gates in ONNX's order: input, output, forget, cell."""
    fused = (
        p is None
        and lengths is None
        and not clip
        and not input_forget
        and _default(activations, _LSTM)
    )
    states = [h, c]
    if fused:
        return _fused(torch.lstm, (0, 2, 3, 1), x, w, r, b, states, direction, layout)
    chosen = _activations(
        activations or _LSTM * 2, activation_alpha, activation_beta, 3
    )

    def step(
        gates: Tensor, state: list[Tensor], weights: dict[str, Tensor], act: list[Step]
    ) -> list[Tensor]:
        hidden, cell = state
        i, o, f, g = (gates + hidden @ weights["r"].T).chunk(4, -1)
        if p is not None:
            pi, po, pf = weights["p"].chunk(3, -1)
            i, f = i + pi * cell, f + pf * cell
        i, f, g = (
            act[0](_clipped(i, clip)),
            act[0](_clipped(f, clip)),
            act[1](_clipped(g, clip)),
        )
        f = 1 - i if input_forget else f
        cell = f * cell + i * g
        o = o if p is None else o + po * cell
        return [act[0](_clipped(o, clip)) * act[2](cell), cell]

    return _unrolled(step, 4, x, w, r, b, p, lengths, states, chosen, direction, layout)


@op("GRU", many=True)
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    """Gates in ONNX's order: update, reset, hidden."""
    fused = (
        lengths is None
        and not clip
        and linear_before_reset
        and _default(activations, _GRU)
    )
    if fused:
        return _fused(torch.gru, (1, 0, 2), x, w, r, b, [h], direction, layout)
    chosen = _activations(activations or _GRU * 2, activation_alpha, activation_beta, 2)

    def step(
        gates: Tensor, state: list[Tensor], weights: dict[str, Tensor], act: list[Step]
    ) -> list[Tensor]:
        (hidden,) = state
        xz, xr, xh = gates.chunk(3, -1)
        rz, rr, rh = weights["r"].chunk(3, 0)
        bz, br, bh = weights["rb"].chunk(3, -1)
        z = act[0](_clipped(xz + hidden @ rz.T + bz, clip))
        reset = act[0](_clipped(xr + hidden @ rr.T + br, clip))
        inner = (
            reset * (hidden @ rh.T + bh)
            if linear_before_reset
            else (reset * hidden) @ rh.T + bh
        )
        new = act[1](_clipped(xh + inner, clip))
        return [(1 - z) * new + z * hidden]

    return _unrolled(
        step,
        3,
        x,
        w,
        r,
        b,
        None,
        lengths,
        [h],
        chosen,
        direction,
        layout,
        split_bias=True,
    )


@op("RNN", many=True)
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output: list[float] | None = None,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    if lengths is None and not clip and _default(activations, _RNN):
        return _fused(torch.rnn_tanh, (0,), x, w, r, b, [h], direction, layout)
    chosen = _activations(activations or _RNN * 2, activation_alpha, activation_beta, 1)

    def step(
        gates: Tensor, state: list[Tensor], weights: dict[str, Tensor], act: list[Step]
    ) -> list[Tensor]:
        return [act[0](_clipped(gates + state[0] @ weights["r"].T, clip))]

    return _unrolled(step, 1, x, w, r, b, None, lengths, [h], chosen, direction, layout)


_LSTM, _GRU, _RNN = ["Sigmoid", "Tanh", "Tanh"], ["Sigmoid", "Tanh"], ["Tanh"]


def _default(activations: list[str] | None, names: list[str]) -> bool:
    lowered = [a.lower() for a in activations or []]
    return not activations or lowered in (
        [n.lower() for n in names],
        [n.lower() for n in names] * 2,
    )


def _clipped(x: Tensor, clip: float | None) -> Tensor:
    return x if not clip else x.clamp(-clip, clip)


def _fused(
    kernel: Any,
    order: tuple[int, ...],
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    states: list[Tensor | None],
    direction: str,
    layout: int,
) -> tuple[Tensor, ...]:
    """Torch's kernel over gates put in torch's order; only it, so that torch.compile unrolls
    nothing.
    """
    x, given = _time_first(x, states, layout)
    hidden, flip = r.shape[-1], direction == "reverse"
    x = x.flip(0) if flip else x
    weights = []
    for way in range(w.shape[0]):
        weights += [_reordered(w[way], order), _reordered(r[way], order)]
        if b is not None:
            weights += [_reordered(half, order) for half in b[way].chunk(2)]
    start = [
        s if s is not None else x.new_zeros(w.shape[0], x.shape[1], hidden)
        for s in given
    ]
    first = (
        tuple(s.contiguous() for s in start)
        if len(start) > 1
        else start[0].contiguous()
    )
    y, *last = kernel(
        x, first, weights, b is not None, 1, 0.0, False, w.shape[0] == 2, False
    )
    y = y.reshape(y.shape[0], y.shape[1], w.shape[0], hidden).transpose(1, 2)
    return _laid_out(y.flip(0) if flip else y, list(last), layout)


def _reordered(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    parts = tensor.chunk(len(order))
    return torch.cat([parts[i] for i in order])


def _time_first(
    x: Tensor, states: list[Tensor | None], layout: int
) -> tuple[Tensor, list[Tensor | None]]:
    if not layout:
        return x, states
    return x.transpose(0, 1), [None if s is None else s.transpose(0, 1) for s in states]


def _laid_out(y: Tensor, last: list[Tensor], layout: int) -> tuple[Tensor, ...]:
    """(T, ways, B, H) and (ways, B, H), or batch first in both."""
    return (
        (y, *last)
        if not layout
        else (y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in last))
    )


def _unrolled(
    step: Step,
    gates: int,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    p: Tensor | None,
    lengths: Tensor | None,
    states: list[Tensor | None],
    activations: list[list[Step]],
    direction: str,
    layout: int,
    split_bias: bool = False,
) -> tuple[Tensor, ...]:
    x, given = _time_first(x, states, layout)
    hidden, ways = r.shape[-1], w.shape[0]
    sequences, finals = [], []
    for way in range(ways):
        backwards = direction == "reverse" or way == 1
        source = _backwards(x, lengths) if backwards else x
        wb, rb = (
            b[way].chunk(2) if b is not None else (w.new_zeros(gates * hidden),) * 2
        )
        weights = {"r": r[way], "rb": rb, "p": p[way] if p is not None else None}
        projected = F.linear(source, w[way], wb if split_bias else wb + rb)
        state = [
            s[way] if s is not None else x.new_zeros(x.shape[1], hidden) for s in given
        ]
        outputs = []
        for time in range(x.shape[0]):
            new = step(projected[time], state, weights, activations[way])
            if lengths is not None:
                running = (lengths > time)[:, None]
                outputs.append(torch.where(running, new[0], 0.0))
                new = [
                    torch.where(running, n, s) for n, s in zip(new, state, strict=True)
                ]
            else:
                outputs.append(new[0])
            state = new
        sequence = torch.stack(outputs)
        sequences.append(_backwards(sequence, lengths) if backwards else sequence)
        finals.append(state)
    last = [torch.stack([final[i] for final in finals]) for i in range(len(states))]
    return _laid_out(torch.stack(sequences, 1), last, layout)


def _backwards(x: Tensor, lengths: Tensor | None) -> Tensor:
    return x.flip(0) if lengths is None else reversed_steps(x, lengths)


def _activations(
    names: list[str], alphas: list[float] | None, betas: list[float] | None, each: int
) -> list[list[Step]]:
    """For each direction its activations; alphas and betas are dealt to those that take them, in
    order.
    """
    left = {"alpha": list(alphas or []), "beta": list(betas or [])}
    made = [_activation(name.lower(), left) for name in names]
    return [made[i : i + each] for i in range(0, len(made), each)]


def _activation(name: str, left: dict[str, list[float]]) -> Step:
    def take(kind: str, default: float) -> float:
        return left[kind].pop(0) if left[kind] else default

    match name:
        case "affine":
            a, b = take("alpha", 1.0), take("beta", 0.0)
            return lambda x: a * x + b
        case "leakyrelu":
            a = take("alpha", 0.01)
            return lambda x: F.leaky_relu(x, a)
        case "thresholdedrelu":
            a = take("alpha", 1.0)
            return lambda x: F.threshold(x, a, 0.0)
        case "scaledtanh":
            a, b = take("alpha", 1.0), take("beta", 1.0)
            return lambda x: a * torch.tanh(b * x)
        case "hardsigmoid":
            a, b = take("alpha", 0.2), take("beta", 0.5)
            return lambda x: torch.clamp(a * x + b, 0.0, 1.0)
        case "elu":
            a = take("alpha", 1.0)
            return lambda x: F.elu(x, a)
    return _PLAIN[name]


_PLAIN: dict[str, Step] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "softplus": F.softplus,
}
