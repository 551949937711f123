"""Recurrent layers: a hidden unit is a row of every gate, a column of the recurrence, a slot of
every state.
"""

from __future__ import annotations

import onnx_ir as ir

from ..._core.ops import RECURRENT
from ..relations import Relations, optional_input, required_input
from ..surgery import Surgery, set_int
from ..table import rule, update

DIRECTIONS = "directions"


@rule(*RECURRENT)
def recurrent(node: ir.Node, relations: Relations) -> None:
    """X (T, N, C), W (D, g*H, C), R (D, g*H, H), B (D, 2*g*H), P (D, 3*H), states (D, N, H) -> Y
    (T, D, N, H).

    With `layout` 1 the batch comes first. Both directions lose the same units: their weights are
    one tensor.
    """
    data = required_input(node, 0)
    weight = required_input(node, 1)
    recurrence = required_input(node, 2)
    bias = optional_input(node, 3)
    lengths = optional_input(node, 4)
    hidden = optional_input(node, 5)
    cell = optional_input(node, 6)
    peephole = optional_input(node, 7)
    units = relations.sizes[relations.find(recurrence, 2)]
    relations.same(data, 2, weight, 2)
    by_gate = (weight, recurrence, bias, peephole)
    for value in by_gate:
        relations.freeze(value, 0, DIRECTIONS)
    relations.freeze_all(lengths, "sequence lengths")
    for value in by_gate:
        if value is not None:
            # row after row of each gate in turn: row i belongs to unit i modulo H
            rows = relations.slots(value, 1)
            relations.link(
                value,
                1,
                rows,
                recurrence,
                2,
                rows % units,
            )
    for value in (hidden, cell, *node.outputs):
        if value is not None and relations.rank(value):
            relations.same(value, -1, recurrence, 2)
    _relate_steps(
        node,
        data,
        (hidden, cell),
        relations,
    )
    relations.mix(node, "contract", (0, 2))
    relations.mix(node, "contract", (2, 2))


def _relate_steps(
    node: ir.Node,
    data: ir.Value,
    states: tuple[ir.Value | None, ...],
    relations: Relations,
) -> None:
    """Time runs in order, so it stays; samples are apart from each other."""
    batch_first = node.attributes.get_int("layout", 0)
    if batch_first:
        time = 1
        batch = 0
        batch_of_every = 0
        directions_of_every = 2
        batch_of_state = 0
        directions_of_state = 1
    else:
        time = 0
        batch = 1
        batch_of_every = 2
        directions_of_every = 1
        batch_of_state = 1
        directions_of_state = 0
    relations.freeze(data, time, f"{node.op_type} needs all of it, in order")
    every, *last = node.outputs
    if relations.shape(every) is not None:
        relations.same(data, time, every, time)
        relations.same(data, batch, every, batch_of_every)
        relations.freeze(every, directions_of_every, DIRECTIONS)
    for value in (*states, *last):
        if value is not None and relations.rank(value):
            relations.same(value, batch_of_state, data, batch)
            relations.freeze(value, directions_of_state, DIRECTIONS)


@update(*RECURRENT)
def fewer_units(node: ir.Node, surgery: Surgery) -> None:
    """Set the hidden size to the units that stay."""
    recurrence = required_input(node, 2)
    if surgery.narrowed(recurrence, 2):
        units = surgery.after(recurrence)[2]
        set_int(node, "hidden_size", units)
