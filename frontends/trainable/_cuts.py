"""Where gradients end: nodes behind which a graph output no longer depends on the weights differentiably."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Cut:
    """A node at which gradients end, why, and the graph outputs that lie behind it only."""

    node: str
    reason: str
    outputs: tuple[str, ...]


def find_cuts(model: ir.Model, weights: Collection[ir.Value], detached: Mapping[ir.Node, str]) -> list[Cut]:
    """Cuts of the main graph, in graph order."""
    return []
