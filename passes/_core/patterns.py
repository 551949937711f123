"""Choice of layers by name: what `include` and `exclude` mean, the same in every pass.

A pattern matches a name that it equals, or by the rules of the shell: `*`, `?` and `[...]`. A layer
is known by the names of its node, its weight and its output.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from ... import UsageError
from .chains import chain_of
from .graph import all_nodes, input_of, label
from .layer_names import layer_name
from .ops import FLOATS, is_standard
from .weights import Weight, weight_inputs

NEAREST = 3
"""Most names that an error shows for a pattern that matches none: a line of them."""

SIMILARITY = 0.3
"""Similarity from which a name is shown (difflib's ratio, 0-1).

Below difflib's own 0.6 since a pattern is often a part of a name; chosen by hand, not measured.
"""


@dataclass(frozen=True)
class Part:
    """Node that `exclude` can name.

    `label`: its name in reports. `kind`: its operator. `names`: those that find it, and as a rule
    nothing else.
    """

    label: str
    kind: str
    names: tuple[str, ...]


def part_of(node: ir.Node) -> Part:
    """A node as a part that a pass can leave as it is."""
    # not by its weight's name, which other nodes may share
    names = (node.name, node.outputs[0].name)
    return Part(label(node), node.op_type, tuple(name for name in names if name))


def weighted_parts(model: ir.Model, tables: bool = False) -> list[Part]:
    """Layers of a model that have or may have a weight, in its order; `tables`: Gather too."""
    return [part_of(node) for node in all_nodes(model) if _weight_inputs(node, tables)]


def matches(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Return whether any of the patterns matches any of the names."""
    for name in names:
        for pattern in patterns:
            # equality first: names such as `w[0]` read as a pattern match something else
            if name == pattern or fnmatchcase(name, pattern):
                return True
    return False


def left_out(
    names: Iterable[str], include: Sequence[str], exclude: Sequence[str]
) -> str | None:
    """Reason why a layer known by these names is not to be touched; None if it is."""
    known = list(names)
    if include and not matches(known, include):
        return "not matched by include"
    if matches(known, exclude):
        return "matched by exclude"
    return None


def require_matches(
    where: str, patterns: Sequence[str], names: Iterable[str], listing: str = ""
) -> None:
    """Raise UsageError for a pattern that matches none of the names, with the nearest of them.

    `where`: the pass and its option, as `prune.include`. `names`: those of all layers that the pass
    could touch, and of those that it declines. A model without such layers is not an error of the
    pattern. `listing`: a command that lists all names, for the fix.
    """
    known = sorted(set(names))
    if not known:
        return
    for pattern in patterns:
        if matches(known, [pattern]):
            continue
        near = difflib.get_close_matches(
            pattern.strip("*"),
            known,
            NEAREST,
            SIMILARITY,
        )
        shown = near or known[:NEAREST]
        fix = f"the nearest names are {', '.join(shown)}"
        if listing:
            fix += f"; `{listing}` lists all"
        raise UsageError(where, f"'{pattern}' matches no layer", fix)


def layer_names(node: ir.Node, weight: ir.Value | None = None) -> list[str]:
    """Names that a pattern may call a layer by: its node's, its weight's and its output's.

    `weight`: the initializer; by default the node's second input, and what it is a chain from.
    """
    names = [node.name]
    if weight is not None:
        names.append(weight.name)
    elif chain := chain_of(input_of(node, 1)):
        names += [value.name for value in chain.values]
    names += [node.outputs[0].name, layer_name(node)]
    return list(dict.fromkeys(name for name in names if name))


def node_names(node: ir.Node) -> list[str]:
    """Names that a pattern may call any node by: its own, its outputs' and its constants'."""
    values = [*node.outputs, *(v for v in node.inputs if v is not None)]
    known = [v.name for v in values if v.producer() is node or v.is_initializer()]
    return [name for name in (node.name, *known, layer_name(node)) if name]


def weight_names(weight: Weight) -> list[str]:
    """Names that a pattern may call a weight by: those of every layer that uses it."""
    names: list[str] = []
    for node, _ in weight.uses:
        names.extend(layer_names(node, weight.value))
    return names


def weighted_names(model: ir.Model, tables: bool = False) -> list[str]:
    """Names for `require_matches`, of every layer of a model that has or may have a weight.

    Layers with a weight that a pass declines (quantized, computed at run time) are among them.
    `tables`: also those of Gather, which takes rows from a table of floats.
    """
    names: list[str | None] = []
    for node in all_nodes(model):
        for index in _weight_inputs(node, tables):
            names += [node.name, node.outputs[0].name, layer_name(node)]
            # computed values too: a weight that `compress-weights` stored keeps its name on one
            chain = chain_of(input_of(node, index))
            if chain is not None and not _is_fed(chain.source):
                names.append(chain.source.name)
                casts = [node for node in chain.nodes if node.op_type == "Cast"]
                names += [node.outputs[0].name for node in casts]
    return [name for name in names if name]


def _is_fed(value: ir.Value) -> bool:
    return value.is_graph_input() and value.const_value is None


def _weight_inputs(node: ir.Node, tables: bool) -> tuple[int, ...]:
    if tables and is_standard(node, "Gather"):
        data = input_of(node, 0)
        if data is not None and data.dtype in FLOATS:
            return (0,)
    return weight_inputs(node)
