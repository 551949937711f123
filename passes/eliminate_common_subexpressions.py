"""One node for each distinct computation."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Effect, Pass, PassOutcome
from ._core.edit import Edit, is_constant
from ._core.graph import holds_graphs, subgraphs
from ._core.ops import QUANT_OPS, is_standard
from ._core.rewrites import permit

RANDOM_OPS = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)
"""Ops whose every run may give something else (Dropout: where it trains)."""

COMMUTATIVE_OPS = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Sum"})


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merge nodes that compute the same: equal op, attributes and inputs.

    Effect: exact. Takes time linear in the number of nodes. Constants of one element are compared
    by content, others by name. A node of a subgraph may be replaced by an earlier one of an
    enclosing graph. Random ops, nodes with subgraphs, ops of other domains, and quantization ops
    stay (ONNX Runtime fuses a DequantizeLinear into its only reader).

    Shapes: unchanged.

    Stats: `nodes` removed (count).

    Source: Cocke, Global common subexpression elimination, 1970; with hashing instead of pairwise
    comparison.
    """

    name: ClassVar[str] = "eliminate-common-subexpressions"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "nodes"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        count = _eliminate(model.graph, [], Edit(model))
        return PassOutcome(count, {"nodes": count})


Seen = dict[Hashable, ir.Node]


def _eliminate(graph: ir.Graph, outer: list[Seen], edit: Edit) -> int:
    """One walk in order; `outer` holds the nodes that run before this graph does."""
    seen: Seen = {}
    scopes = [seen, *outer]
    count = 0
    for node in graph:
        # a subgraph sees the nodes before its own
        for inner in subgraphs(node):
            count += _eliminate(inner, scopes, edit)
        key = _key(node)
        if key is None:
            continue
        first = next((scope[key] for scope in scopes if key in scope), None)
        if first is not None and _merge(node, first, edit):
            count += 1
        else:
            seen.setdefault(key, node)
    return count


def _merge(node: ir.Node, first: ir.Node, edit: Edit) -> bool:
    """Let the first of two equal nodes stand for both."""
    leave = permit(EliminateCommonSubexpressions.name, "merge", node)
    if leave is None or not _replace(node, first, edit):
        return False
    edit.remove(node)
    leave.used()
    return True


def _replace(node: ir.Node, first: ir.Node, edit: Edit) -> bool:
    """Replace all outputs of a node by those of the first, or none."""
    needed = []
    for old, new in zip(node.outputs, first.outputs, strict=True):
        if old.uses() or old.is_graph_output():
            needed.append((old, new))
    # all are looked at before one is replaced: a graph output cannot always be
    for old, new in needed:
        if not new.name:
            # an output that the first node left out
            return False
        if not old.is_graph_output():
            continue
        if new.is_graph_output() or first.graph is not node.graph:
            return False
    return all(edit.replace(old, new) for old, new in needed)


def _key(node: ir.Node) -> Hashable | None:
    """A key that only nodes of one computation share; None for a node that must stay."""
    if not is_standard(node) or holds_graphs(node):
        return None
    if node.op_type in RANDOM_OPS or node.op_type in QUANT_OPS:
        return None
    inputs = [_identity(value) for value in node.inputs]
    if node.op_type in COMMUTATIVE_OPS:
        inputs.sort()
    frozen = [(name, _frozen(a)) for name, a in node.attributes.items()]
    attributes = tuple(sorted(frozen))
    return node.op_type, node.overload, tuple(inputs), attributes, len(node.outputs)


def _identity(value: ir.Value | None) -> str:
    """Name of a value that only equal ones share: constants of one element are equal by content."""
    if value is None:
        return ""
    tensor = value.const_value
    if tensor is None or not is_constant(value) or tensor.size != 1:
        return str(id(value))
    if tensor.dtype == ir.DataType.STRING:
        return str(id(value))
    return f"{tensor.dtype} {tensor.shape} {tensor.tobytes().hex()}"


def _frozen(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"ref {attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        # the elements of large ones are not compared
        same = tensor.tobytes().hex() if tensor.nbytes <= 1024 else str(id(tensor))
        return f"{tensor.dtype} {tensor.shape} {same}"
    return repr(attribute.value)
