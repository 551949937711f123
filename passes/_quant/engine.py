"""Engines: ways to run a quantized layer. Each says which layers it takes, and writes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from .._core.bodies import Body
from .._core.graph import Names
from .._core.targets import QuantRules
from .calibrate import Calibration
from .layers import QuantLayer
from .weight_codes import Codes
from .weights import Floats

Counts = dict[str, int]
"""Stats of an insertion: `layers`, `weights`, `pairs` (of Q and DQ)."""

PaletteBits = Callable[[Sequence[str]], int | None]
"""Bits of a weight's palettes by the names that patterns may call it by; None: it has 8 bits."""


def stat_of(width: int) -> str:
    """Key of the number of weights of so many bits."""
    return f"weights_{width}_bit"


@dataclass(frozen=True)
class LayerCase:
    """One layer and the facts by which an engine takes it or declines.

    `named`: an override names this very layer, so that no rule weighs whether it gains anything.
    `calibrated`: ranges of the values around it are at hand; `has_data`: those of the main graph.
    `body`: that it lies in, None in the main graph.
    """

    layer: QuantLayer
    bits: int
    block: int
    named: bool
    has_data: bool
    calibrated: bool
    rules: QuantRules
    body: Body | None = None


@dataclass(frozen=True)
class StoredRows:
    """Rows of a table in 8 bits: codes (rows, ...) int8, scales (rows,)."""

    codes: ir.Value
    scales: Floats


@dataclass(frozen=True)
class Insertion:
    """One graph and all that engines need to write its layers.

    `bits`: of each layer's weights. `codes`: their codes, but for engines that encode weights
    themselves. `block`: weights that share a scale. `calibration`: None where no layer needs
    ranges. `tables`: weights that are tables of rows, to be stored once for both uses. `rows`:
    those of them that engines have stored.
    """

    graph: ir.Graph
    names: Names
    rules: QuantRules
    bits: dict[QuantLayer, int]
    block: int
    codes: dict[QuantLayer, Codes]
    calibration: Calibration | None
    tables: Collection[ir.Value] = ()
    rows: dict[ir.Value, StoredRows] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """One way to run layers.

    `why_not`: the reason why a layer cannot run so, or None. `insert`: rewrite layers of a graph.
    `needs_ranges`: it reads calibrated ranges. `integer`: its kernels multiply integers, which a
    target may lack.
    """

    name: str
    why_not: Callable[[LayerCase], str | None]
    insert: Callable[[Insertion, list[QuantLayer]], Counts]
    needs_ranges: bool = False
    integer: bool = True


def needs_ranges(case: LayerCase) -> str:
    """Reason of a layer that only calibrated ranges make an integer one."""
    need = f"{case.layer.node.op_type} needs calibrated ranges"
    if case.has_data:
        return f"{need}, and no calibration sample entered {case.body}"
    return f"{need}: give --data"
