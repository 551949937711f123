"""Where gradients go and where they end: carried beside every value while the source is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ._dtypes import FLOATS, RANGES
from ._program import Known


@dataclass(frozen=True)
class Cut:
    """A node at which gradients end, why, and the graph outputs that get none because of it."""

    node: str
    reason: str
    outputs: tuple[str, ...] = ()


GRID_OPS = frozenset(
    {
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "MatMulInteger",
        "ConvInteger",
    }
)
"""Ops whose integers carry gradients when they train."""


def follow(
    node: ir.Node,
    inputs: Iterable[Known | None],
    output: ir.DataType | None,
    obstacle: str,
    qat: bool,
) -> tuple[bool, frozenset[Cut]]:
    """(whether an output carries gradients, the cuts behind it). `obstacle`: why the kernel has
    none, or empty.
    """
    sources = [k for k in inputs if k is not None]
    behind = frozenset[Cut]().union(*(k.cuts for k in sources))
    arriving = [k for k in sources if k.gradient]
    if not arriving:
        return False, behind
    grid = (
        qat
        and output in RANGES
        and (node.op_type in GRID_OPS or any(k.dtype in RANGES for k in arriving))
    )
    if not obstacle and not grid and output not in FLOATS:
        obstacle = "its result is not float"
    if not obstacle:
        return True, frozenset()
    name = f"{node.op_type} {node.name or node.outputs[0].name}"
    return False, behind | {Cut(name, obstacle)}


def cuts_of(outputs: Sequence[tuple[str, Known | None]]) -> list[Cut]:
    """The cuts that leave some graph output without gradients, each with those outputs."""
    found: dict[Cut, list[str]] = {}
    for name, known in outputs:
        if known is not None and not known.gradient:
            for cut in sorted(known.cuts, key=lambda c: c.node):
                found.setdefault(cut, []).append(name)
    return [Cut(cut.node, cut.reason, tuple(names)) for cut, names in found.items()]
