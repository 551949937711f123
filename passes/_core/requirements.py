"""What a model needs of whoever runs it: opset, IR version, and the oldest ONNX Runtime that loads
and runs it.

Every rule was tried on releases 1.15 to 1.32 (`tools/dev/bench_runtimes.py`), older ones were not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from .graph import all_nodes
from .schemas import is_standard

OLDEST = (1, 15)
"""The oldest release that was tried."""

OPSETS = {
    19: (1, 15),
    20: (1, 17),
    21: (1, 18),
    22: (1, 21),
    23: (1, 23),
    25: (1, 24),
    26: (1, 25),
    28: (1, 32),
}
"""Highest opset -> the first release that accepts it."""

IR_VERSIONS = {9: (1, 15), 10: (1, 18), 11: (1, 23), 13: (1, 24), 14: (1, 32)}
"""Highest IR version -> the first release that accepts it."""

ML_OPSETS = {3: (1, 15), 4: (1, 17), 5: (1, 18)}
"""Highest version of ai.onnx.ml -> the first release that accepts it."""

KNOWN = frozenset({"", "ai.onnx", "ai.onnx.ml"})

Release = tuple[int, int]


@dataclass(frozen=True)
class Requirements:
    """The standard opset, the IR version, the oldest ONNX Runtime ("1.23"; None: not known), and
    what asks for it.
    """

    opset: int | None
    ir_version: int | None
    onnxruntime: str | None
    because: str

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Rule:
    """A node that older releases do not run, though they accept its opset."""

    release: Release
    because: str
    holds: Callable[[ir.Node], bool]


def _reads_four_bits(node: ir.Node) -> bool:
    return any(
        value is not None and value.dtype in (ir.DataType.INT4, ir.DataType.UINT4)
        for value in node.inputs
    )


def _reads_blocks(node: ir.Node) -> bool:
    attribute = node.attributes.get("block_size")
    return (
        node.op_type == "DequantizeLinear"
        and attribute is not None
        and attribute.as_int() > 0
    )


RULES = (
    Rule(
        (1, 23),
        "Cast from INT4",
        lambda node: node.op_type == "Cast" and _reads_four_bits(node),
    ),
    Rule((1, 19), "tensors of INT4", _reads_four_bits),
    Rule((1, 19), "DequantizeLinear in blocks", _reads_blocks),
)


def requirements_of(model: ir.Model) -> Requirements:
    """What the model needs, by the tables and rules above; what other domains need was not
    tried.
    """
    opset, ir_version = model.opset_imports.get(""), model.ir_version
    needs: list[tuple[Release | None, str]] = [(OLDEST, "the oldest tried")]
    for table, number, name in (
        (OPSETS, opset, "opset"),
        (IR_VERSIONS, ir_version, "IR version"),
        (ML_OPSETS, model.opset_imports.get("ai.onnx.ml"), "ai.onnx.ml"),
    ):
        if number is not None:
            needs.append((_first(table, number), f"{name} {number}"))
    nodes = list(all_nodes(model))
    foreign = {
        n.domain
        for n in nodes
        if n.domain not in KNOWN and n.op_identifier() not in model.functions
    }
    needs += [(None, f"operators of {domain}") for domain in sorted(foreign)]
    needs += [
        (rule.release, rule.because)
        for rule in RULES
        if any(is_standard(n) and rule.holds(n) for n in nodes)
    ]
    unknown = [because for release, because in needs if release is None]
    if unknown:
        return Requirements(opset, ir_version, None, unknown[0])
    release, because = max(
        ((r, b) for r, b in needs if r is not None), key=lambda need: need[0]
    )
    return Requirements(opset, ir_version, ".".join(map(str, release)), because)


def _first(table: dict[int, Release], number: int) -> Release | None:
    """The first release whose highest number is at least this; None where there is none."""
    return next(
        (table[highest] for highest in sorted(table) if highest >= number), None
    )
