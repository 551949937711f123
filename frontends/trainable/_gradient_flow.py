"""Tracking of gradients while source is generated: what carries them, and where they stop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from ...passes._core.graph import label
from ._dtypes import DIFFERENTIABLE, RANGES
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
"""Ops whose integer outputs carry gradients when their inputs train.

Those of `QUANT_OPS` (passes/_core/ops.py) that give integers and have a torch kernel:
DequantizeLinear gives floats, and the ops of com.microsoft have none.
"""


def follow(
    node: ir.Node,
    inputs: Iterable[Known | None],
    output: ir.DataType | None,
    obstacle: str,
    qat: bool,
) -> tuple[bool, frozenset[Cut]]:
    """Return whether an output carries gradients, and the cuts behind it.

    `output`: its element type. `obstacle`: why the kernel has no gradient, empty if it has one.
    `qat`: integers on a trained grid carry gradients.
    """
    sources = [known for known in inputs if known is not None]
    behind: set[Cut] = set()
    for known in sources:
        behind.update(known.cuts)
    arriving = [known for known in sources if known.gradient]
    if not arriving:
        return False, frozenset(behind)
    if not obstacle and output not in DIFFERENTIABLE:
        on_grid = qat and output in RANGES and _keeps_grid(node, arriving)
        if not on_grid:
            obstacle = "its result is not float"
    if not obstacle:
        # one way that gradients pass is enough: what other inputs lack is no loss then
        return True, frozenset()
    behind.add(Cut(label(node), obstacle))
    return False, frozenset(behind)


def _keeps_grid(node: ir.Node, arriving: Sequence[Known]) -> bool:
    """Return whether integers that a node gives are floats on a grid by now."""
    if node.op_type in GRID_OPS:
        return True
    return any(known.dtype in RANGES for known in arriving)


def cuts_of(outputs: Sequence[tuple[str, Known | None]]) -> list[Cut]:
    """List the cuts that leave some graph output without gradients, each with those outputs."""
    stopped: dict[Cut, list[str]] = {}
    for name, known in outputs:
        if known is None or known.gradient:
            continue
        # sets have no order of their own, and reports should
        for cut in sorted(known.cuts, key=lambda cut: cut.node):
            stopped.setdefault(cut, []).append(name)
    found = []
    for cut, names in stopped.items():
        found.append(replace(cut, outputs=tuple(names)))
    return found
