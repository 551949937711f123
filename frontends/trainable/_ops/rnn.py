"""LSTM, GRU and RNN, in torch's fused kernels where these compute the same, else step by step.

Shapes: x (T, B, inputs), w (directions, gates * H, inputs), r (directions, gates * H, H), b
(directions, 2 * gates * H): biases of w, then of r. With `layout` the batch comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import op
from .shape import reversed_steps

Tensor = Any
Activation = Callable[[Any], Any]
Step = Callable[..., Any]
"""(gates, state, weights, activations) -> new state, the output first."""

_LSTM = ["Sigmoid", "Tanh", "Tanh"]
_GRU = ["Sigmoid", "Tanh"]
_RNN = ["Tanh"]


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
    states = [h, c]
    weights = Weights(w, r, b, p)
    plain = lengths is None and not clip and _default(activations, _LSTM)
    if plain and p is None and not input_forget:
        order = (0, 2, 3, 1)
        return _fused(
            kernel=torch.lstm,
            order=order,
            x=x,
            weights=weights,
            states=states,
            direction=direction,
            layout=layout,
        )
    names = activations or _LSTM * 2
    chosen = _activations(
        names,
        activation_alpha,
        activation_beta,
        each=3,
    )

    def step(
        gates: Tensor, state: list[Tensor], own: OneWay, act: list[Activation]
    ) -> list[Tensor]:
        hidden, cell = state
        total = gates + hidden @ own.recurrent.T
        i, o, f, g = total.chunk(4, -1)
        if own.peepholes is not None:
            # input and forget gates see the cell as it was
            pi, po, pf = own.peepholes.chunk(3, -1)
            i = i + pi * cell
            f = f + pf * cell
        i = act[0](_clipped(i, clip))
        f = act[0](_clipped(f, clip))
        g = act[1](_clipped(g, clip))
        if input_forget:
            f = 1 - i
        cell = f * cell + i * g
        if own.peepholes is not None:
            # the output gate sees the new one
            o = o + po * cell
        o = act[0](_clipped(o, clip))
        return [o * act[2](cell), cell]

    unrolled = Unrolled(step, 4, chosen)
    return _unrolled(
        op=unrolled,
        x=x,
        weights=weights,
        lengths=lengths,
        states=states,
        direction=direction,
        layout=layout,
    )


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
    weights = Weights(w, r, b)
    plain = lengths is None and not clip and _default(activations, _GRU)
    # torch's GRU always resets behind the recurrent product
    if plain and linear_before_reset:
        return _fused(
            kernel=torch.gru,
            order=(1, 0, 2),
            x=x,
            weights=weights,
            states=[h],
            direction=direction,
            layout=layout,
        )
    names = activations or _GRU * 2
    chosen = _activations(
        names,
        activation_alpha,
        activation_beta,
        each=2,
    )

    def step(
        gates: Tensor, state: list[Tensor], own: OneWay, act: list[Activation]
    ) -> list[Tensor]:
        (hidden,) = state
        xz, xr, xh = gates.chunk(3, -1)
        rz, rr, rh = own.recurrent.chunk(3, 0)
        bz, br, bh = own.bias.chunk(3, -1)
        update_gate = xz + hidden @ rz.T + bz
        reset_gate = xr + hidden @ rr.T + br
        z = act[0](_clipped(update_gate, clip))
        reset = act[0](_clipped(reset_gate, clip))
        if linear_before_reset:
            candidate = xh + reset * (hidden @ rh.T + bh)
        else:
            candidate = xh + ((reset * hidden) @ rh.T + bh)
        new = act[1](_clipped(candidate, clip))
        return [(1 - z) * new + z * hidden]

    # the recurrent bias of the hidden gate is inside the reset
    unrolled = Unrolled(
        step,
        gates=3,
        activations=chosen,
        split_bias=True,
    )
    return _unrolled(
        op=unrolled,
        x=x,
        weights=weights,
        lengths=lengths,
        states=[h],
        direction=direction,
        layout=layout,
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
    weights = Weights(w, r, b)
    if lengths is None and not clip and _default(activations, _RNN):
        return _fused(
            kernel=torch.rnn_tanh,
            order=(0,),
            x=x,
            weights=weights,
            states=[h],
            direction=direction,
            layout=layout,
        )
    names = activations or _RNN * 2
    chosen = _activations(
        names,
        activation_alpha,
        activation_beta,
        each=1,
    )

    def step(
        gates: Tensor, state: list[Tensor], own: OneWay, act: list[Activation]
    ) -> list[Tensor]:
        (hidden,) = state
        total = gates + hidden @ own.recurrent.T
        return [act[0](_clipped(total, clip))]

    unrolled = Unrolled(step, 1, chosen)
    return _unrolled(
        op=unrolled,
        x=x,
        weights=weights,
        lengths=lengths,
        states=[h],
        direction=direction,
        layout=layout,
    )


def _default(activations: list[str] | None, names: list[str]) -> bool:
    """Return whether activations are the ones that ops have without any, in each direction."""
    if not activations:
        return True
    given = [name.lower() for name in activations]
    default = [name.lower() for name in names]
    return given in (default, default * 2)


def _clipped(x: Tensor, clip: float | None) -> Tensor:
    if not clip:
        return x
    return x.clamp(-clip, clip)


@dataclass(frozen=True)
class Weights:
    """The weights of an op, of all directions."""

    inputs: Tensor
    recurrent: Tensor
    bias: Tensor | None = None
    peepholes: Tensor | None = None

    @property
    def directions(self) -> int:
        """1, or 2 of a bidirectional op."""
        count: int = self.inputs.shape[0]
        return count

    @property
    def hidden(self) -> int:
        """Size of the state."""
        size: int = self.recurrent.shape[-1]
        return size


@dataclass(frozen=True)
class OneWay:
    """The weights that a step of one direction needs."""

    recurrent: Tensor
    bias: Tensor
    peepholes: Tensor | None


@dataclass(frozen=True)
class Unrolled:
    """An op that runs step by step.

    `gates`: how many it has. `activations`: those of each direction. `split_bias`: steps add the
    recurrent bias themselves.
    """

    step: Step
    gates: int
    activations: list[list[Activation]]
    split_bias: bool = False


def _fused(
    kernel: Any,
    order: tuple[int, ...],
    x: Tensor,
    weights: Weights,
    states: list[Tensor | None],
    direction: str,
    layout: int,
) -> tuple[Tensor, ...]:
    """Run torch's kernel over gates put in torch's order.

    Nothing but that kernel, so that torch.compile unrolls nothing.
    """
    x, given = _time_first(x, states, layout)
    ways = weights.directions
    hidden = weights.hidden
    # torch has a backward direction only beside a forward one
    flip = direction == "reverse"
    if flip:
        x = x.flip(0)
    flat = []
    for way in range(ways):
        flat.append(_reordered(weights.inputs[way], order))
        flat.append(_reordered(weights.recurrent[way], order))
        if weights.bias is not None:
            of_inputs, of_recurrent = weights.bias[way].chunk(2)
            flat.append(_reordered(of_inputs, order))
            flat.append(_reordered(of_recurrent, order))
    start = []
    for state in given:
        if state is None:
            state = x.new_zeros(ways, x.shape[1], hidden)
        start.append(state.contiguous())
    # the LSTM takes two states as a tuple, the others one
    first = tuple(start) if len(start) > 1 else start[0]
    y, *last = kernel(
        x,
        first,
        flat,
        has_biases=weights.bias is not None,
        num_layers=1,
        dropout=0.0,
        train=False,
        bidirectional=ways == 2,
        batch_first=False,
    )
    steps, batch = y.shape[:2]
    y = y.reshape(steps, batch, ways, hidden)
    y = y.transpose(1, 2)
    if flip:
        y = y.flip(0)
    return _laid_out(y, list(last), layout)


def _reordered(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """Put the gates of a weight or bias, its first axis, in another order."""
    parts = tensor.chunk(len(order))
    return torch.cat([parts[i] for i in order])


def _time_first(
    x: Tensor, states: list[Tensor | None], layout: int
) -> tuple[Tensor, list[Tensor | None]]:
    """Return inputs and states with the batch behind the time or direction."""
    if not layout:
        return x, states
    turned = [None if state is None else state.transpose(0, 1) for state in states]
    return x.transpose(0, 1), turned


def _laid_out(y: Tensor, last: list[Tensor], layout: int) -> tuple[Tensor, ...]:
    """Return (T, ways, B, H) and states (ways, B, H), with `layout` the batch first in both."""
    if not layout:
        return y, *last
    turned = [state.transpose(0, 1) for state in last]
    return y.permute(2, 0, 1, 3), *turned


def _unrolled(
    op: Unrolled,
    x: Tensor,
    weights: Weights,
    lengths: Tensor | None,
    states: list[Tensor | None],
    direction: str,
    layout: int,
) -> tuple[Tensor, ...]:
    """Run an op step by step, one direction after another."""
    x, given = _time_first(x, states, layout)
    sequences = []
    finals = []
    for way in range(weights.directions):
        backwards = direction == "reverse" or way == 1
        source = _backwards(x, lengths) if backwards else x
        own, projected = _projected(op, source, weights, way)
        state = []
        for start in given:
            if start is None:
                state.append(x.new_zeros(x.shape[1], weights.hidden))
            else:
                state.append(start[way])
        activations = op.activations[way]
        sequence, state = _steps(
            op.step,
            projected,
            state,
            own,
            activations,
            lengths,
        )
        sequences.append(_backwards(sequence, lengths) if backwards else sequence)
        finals.append(state)
    # from states of each direction to directions of each state
    last = [torch.stack(ways) for ways in zip(*finals, strict=True)]
    return _laid_out(torch.stack(sequences, 1), last, layout)


def _projected(
    op: Unrolled, x: Tensor, weights: Weights, way: int
) -> tuple[OneWay, Tensor]:
    """Return the weights of a direction, and its gates' share of the inputs, (T, B, gates * H)."""
    if weights.bias is None:
        of_inputs = weights.inputs.new_zeros(op.gates * weights.hidden)
        of_recurrent = of_inputs
    else:
        of_inputs, of_recurrent = weights.bias[way].chunk(2)
    peepholes = None if weights.peepholes is None else weights.peepholes[way]
    own = OneWay(weights.recurrent[way], of_recurrent, peepholes)
    # all steps in one product: only the recurrent part depends on the state
    bias = of_inputs if op.split_bias else of_inputs + of_recurrent
    return own, F.linear(x, weights.inputs[way], bias)


def _steps(
    step: Step,
    gates: Tensor,
    state: list[Tensor],
    own: OneWay,
    activations: list[Activation],
    lengths: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """Run all steps; returns the outputs, (T, B, H), and the last state."""
    outputs = []
    for time in range(gates.shape[0]):
        new = step(
            gates[time],
            state,
            own,
            activations,
        )
        # the first state is what the op gives out
        if lengths is None:
            outputs.append(new[0])
            state = new
            continue
        # sequences that have ended give zeros, and keep their state
        running = (lengths > time)[:, None]
        outputs.append(torch.where(running, new[0], 0.0))
        pairs = zip(new, state, strict=True)
        state = [torch.where(running, after, before) for after, before in pairs]
    return torch.stack(outputs), state


def _backwards(x: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return x.flip(0)
    return reversed_steps(x, lengths)


def _activations(
    names: list[str], alphas: list[float] | None, betas: list[float] | None, each: int
) -> list[list[Activation]]:
    """Return for each direction its activations, `each` of them.

    Alphas and betas are dealt to those that take them, in order.
    """
    left = {"alpha": list(alphas or []), "beta": list(betas or [])}
    made = [_activation(name.lower(), left) for name in names]
    starts = range(0, len(made), each)
    return [made[start : start + each] for start in starts]


def _activation(name: str, left: dict[str, list[float]]) -> Activation:
    """Return an activation, with the next parameters that are `left`, or ONNX's defaults."""

    # lists of parameters have no gaps: an activation without any takes none
    def take(kind: str, default: float) -> float:
        if left[kind]:
            return left[kind].pop(0)
        return default

    match name:
        case "affine":
            a = take("alpha", 1.0)
            b = take("beta", 0.0)
            return lambda x: a * x + b
        case "leakyrelu":
            a = take("alpha", 0.01)
            return lambda x: F.leaky_relu(x, a)
        case "thresholdedrelu":
            a = take("alpha", 1.0)
            return lambda x: F.threshold(x, a, 0.0)
        case "scaledtanh":
            a = take("alpha", 1.0)
            b = take("beta", 1.0)
            return lambda x: a * torch.tanh(b * x)
        case "hardsigmoid":
            a = take("alpha", 0.2)
            b = take("beta", 0.5)
            return lambda x: torch.clamp(a * x + b, 0.0, 1.0)
        case "elu":
            a = take("alpha", 1.0)
            return lambda x: F.elu(x, a)
    return _PLAIN[name]


_PLAIN: dict[str, Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "softplus": F.softplus,
}
"""Activations without parameters, by their names in small letters: ONNX takes either case."""
