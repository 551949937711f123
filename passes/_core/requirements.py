"""Requirements of a model: opset, IR version, and the oldest ONNX Runtime that loads and runs it.

Every rule was tried on releases 1.15 to 1.32 (`tools/dev/bench_runtimes.py`), older ones were not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from .graph import all_nodes
from .ops import STANDARD_DOMAINS, is_standard

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

KNOWN = frozenset({*STANDARD_DOMAINS, "ai.onnx.ml"})
"""Domains whose needs the tables state."""

FOREIGN = {
    ("com.microsoft", "DynamicQuantizeLSTM"): OLDEST,
    ("com.microsoft", "MultiHeadAttention"): (1, 23),
}
"""Operators of other domains -> the oldest release that was tried on them, and runs them."""

FOUR_BITS = frozenset({ir.DataType.INT4, ir.DataType.UINT4})

Release = tuple[int, int]


@dataclass(frozen=True)
class Requirements:
    """The standard opset, the IR version, and the oldest ONNX Runtime with the reason for it.

    `onnxruntime`: as "1.23"; None where it is not known.
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
    types = {value.dtype for value in node.inputs if value is not None}
    return not types.isdisjoint(FOUR_BITS)


def _reads_blocks(node: ir.Node) -> bool:
    if node.op_type != "DequantizeLinear":
        return False
    attribute = node.attributes.get("block_size")
    return attribute is not None and attribute.as_int() > 0


def _casts_four_bits(node: ir.Node) -> bool:
    return node.op_type == "Cast" and _reads_four_bits(node)


RULES = (
    Rule((1, 23), "Cast from INT4", _casts_four_bits),
    Rule((1, 19), "tensors of INT4", _reads_four_bits),
    Rule((1, 19), "DequantizeLinear in blocks", _reads_blocks),
)


def requirements_of(model: ir.Model) -> Requirements:
    """Requirements by the tables and rules above; those of other domains were not tried."""
    release, because = _strictest(_needs(model))
    text = None
    if release is not None:
        text = ".".join(map(str, release))
    return Requirements(
        opset=model.opset_imports.get(""),
        ir_version=model.ir_version,
        onnxruntime=text,
        because=because,
    )


Need = tuple[Release | None, str]
"""(first release that will do, None where it is not known; what asks for it)."""


def _needs(model: ir.Model) -> list[Need]:
    """Everything that asks for a release, by its numbers, its domains and its nodes."""
    opset = model.opset_imports.get("")
    ml_opset = model.opset_imports.get("ai.onnx.ml")
    needs: list[Need] = [(OLDEST, "the oldest tried")]
    needs += _by_number(OPSETS, opset, "opset")
    needs += _by_number(IR_VERSIONS, model.ir_version, "IR version")
    needs += _by_number(ML_OPSETS, ml_opset, "ai.onnx.ml")
    nodes = list(all_nodes(model))
    for domain in sorted(_foreign_domains(nodes, model)):
        needs.append((None, f"operators of {domain}"))
    own = {(domain, name) for domain, name, _ in model.functions}
    used = {(node.domain, node.op_type) for node in nodes} - own
    for key in sorted(used & FOREIGN.keys()):
        needs.append((FOREIGN[key], f"{key[1]} of {key[0]}"))
    standard = [node for node in nodes if is_standard(node)]
    for rule in RULES:
        if any(map(rule.holds, standard)):
            needs.append((rule.release, rule.because))
    return needs


def _strictest(needs: list[Need]) -> Need:
    """The need of the newest release; of two needs of one release, the first."""
    newest = OLDEST
    reason = ""
    for release, because in needs:
        # nothing is claimed where one need is not known
        if release is None:
            return None, because
        if release > newest or not reason:
            newest = release
            reason = because
    return newest, reason


def _by_number(table: dict[int, Release], number: int | None, name: str) -> list[Need]:
    if number is None:
        return []
    return [(_first(table, number), f"{name} {number}")]


def _foreign_domains(nodes: list[ir.Node], model: ir.Model) -> set[str]:
    """Domains of which nothing is known, and whose ops the model does not define itself."""
    domains = set()
    for node in nodes:
        if node.domain in KNOWN or (node.domain, node.op_type) in FOREIGN:
            continue
        if node.op_identifier() not in model.functions:
            domains.add(node.domain)
    return domains


def _first(table: dict[int, Release], number: int) -> Release | None:
    """The first release whose highest number is at least this; None where there is none."""
    for highest in sorted(table):
        if highest >= number:
            return table[highest]
    return None
