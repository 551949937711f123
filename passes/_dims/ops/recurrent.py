"""Recurrent layers: a hidden unit is one row of every gate, one column of the recurrence, one slot
of every state.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..relations import Relations
from ..surgery import Surgery
from ..table import mend, rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule(*GATES)
def recurrent(node: ir.Node, relations: Relations) -> None:
    """X (T, N, C), W (D, g*H, C), R (D, g*H, H), B (D, 2*g*H), P (D, 3*H), states (D, N, H) -> Y
    (T, D, N, H).

    With `layout` 1 the batch comes first. Both directions lose the same units: their weights are
    one tensor.
    """
    data, weight, recurrence = node.inputs[:3]
    assert data is not None
    assert weight is not None
    assert recurrence is not None
    width = relations.sizes[relations.find(recurrence, 2)]
    relations.same(data, 2, weight, 2)
    bias, lengths, hidden, cell, peephole = [*node.inputs[3:], *[None] * 5][:5]
    for value in (weight, recurrence, bias, peephole):
        relations.freeze(value, 0, "directions")
    relations.freeze_all(lengths, "sequence lengths")
    for value, axis in ((weight, 1), (recurrence, 1), (bias, 1), (peephole, 1)):
        if value is not None:
            slots = np.arange((relations.shape(value) or ())[axis])
            relations.link(value, axis, slots, recurrence, 2, slots % width)
    for value in (hidden, cell, *node.outputs):
        if value is not None and relations.shape(value):
            relations.same(value, -1, recurrence, 2)
    _steps(node, data, (hidden, cell), relations)
    relations.mix(node, "contract", (0, 2))
    relations.mix(node, "contract", (2, 2))


def _steps(
    node: ir.Node,
    data: ir.Value,
    states: tuple[ir.Value | None, ...],
    relations: Relations,
) -> None:
    """Time runs in order, so it stays; samples are apart from each other."""
    batch_first = node.attributes.get_int("layout", 0)
    time, batch = (1, 0) if batch_first else (0, 1)
    relations.freeze(data, time, f"{node.op_type} runs along it")
    every, *last = node.outputs
    if relations.shape(every) is not None:
        relations.same(data, time, every, time)
        relations.same(data, batch, every, 0 if batch_first else 2)
        relations.freeze(every, 2 if batch_first else 1, "directions")
    for value in (*states, *last):
        if value is not None and relations.shape(value):
            relations.same(value, 0 if batch_first else 1, data, batch)
            relations.freeze(value, 1 if batch_first else 0, "directions")


@mend(*GATES)
def fewer_units(node: ir.Node, surgery: Surgery) -> None:
    recurrence = node.inputs[2]
    assert recurrence is not None
    if surgery.narrowed(recurrence, 2):
        node.attributes["hidden_size"] = ir.AttrInt64(
            "hidden_size", surgery.after(recurrence)[2]
        )
