"""Matching of a state dict's entries with a graph's constants: by name, neighbours or shape.

Never by guess: what could belong to two stays unmatched, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from ...passes._core.graph import graphs_of
from ...passes._core.layer_names import module_path
from ...passes._core.ops import REARRANGEMENTS, SELECTIONS, WEIGHTED_OPS
from .._onnx_io.slots import Setter, attribute_setter, initializer_setter

How = Literal["name", "name without prefix", "bias beside it", "node's name", "shape"]

_READERS_OF_WEIGHTS = frozenset(WEIGHTED_OPS) | {"Gather", "Einsum"}
"""Ops whose constant operand of two axes or more is a weight; Gather reads embedding tables."""

# without REPETITIONS: what Expand repeats, such as a class token, is data rather than a weight
_FOLLOWED = REARRANGEMENTS | SELECTIONS | {"Concat", "Cast"}
"""Ops behind which a constant is still the same weight."""

_PARAMETER_NAMES = (
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "in_proj_weight",
    "in_proj_bias",
)
"""Beginnings of the names that torch gives parameters and statistics."""


@dataclass(eq=False)
class GraphConstant:
    """A float constant of the graph that a state dict may fill."""

    name: str
    value: ir.Value
    tensor: ir.TensorProtocol
    put: Setter

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape.numpy())

    @property
    def is_operand(self) -> bool:
        """True if it is the right operand of a MatMul, of which torch keeps the transpose."""
        if len(self.shape) != 2:
            return False
        return any(
            _is_right_of_matmul(node, index) for node, index in self.value.uses()
        )

    @property
    def is_weight(self) -> bool:
        """True if it has a parameter's name or use, so leaving it leaves the network half old."""
        last_part = self.name.rpartition(".")[2]
        if last_part.startswith(_PARAMETER_NAMES):
            return True
        return len(self.shape) >= 2 and _is_read_as_weight(self.value)


def _is_right_of_matmul(node: ir.Node, index: int) -> bool:
    return node.op_type == "MatMul" and index == 1


def _is_read_as_weight(value: ir.Value) -> bool:
    """True if an op that takes a weight reads the value, directly or moved."""
    waiting = [value]
    seen = {value}
    while waiting:
        for use in waiting.pop().uses():
            if use.node.op_type in _READERS_OF_WEIGHTS:
                return True
            if use.node.op_type not in _FOLLOWED:
                continue
            for output in use.node.outputs:
                if output not in seen:
                    seen.add(output)
                    waiting.append(output)
    return False


@dataclass
class Match:
    """A constant, the entry that fills it, and how they were found to belong together."""

    constant: GraphConstant
    entry: str
    how: How
    transposed: bool


@dataclass
class Plan:
    """Matches, and what found no partner.

    `unused`: entries without a constant, `kept`: weights without an entry, each with the reason.
    """

    matches: list[Match] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a state dict's entries by name."""


def constants_of(model: ir.Model) -> list[GraphConstant]:
    """Every float constant: initializers of all graphs, and tensors that Constant nodes hold."""
    found: list[GraphConstant] = []
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype.is_floating_point():
                put = initializer_setter(value)
                found.append(GraphConstant(value.name or "", value, tensor, put))
        for node in graph:
            constant = _held_constant(node)
            if constant is not None:
                found.append(constant)
    return found


def _held_constant(node: ir.Node) -> GraphConstant | None:
    """The float tensor of a Constant node; None of any other node."""
    if node.op_type != "Constant":
        return None
    held = node.attributes.get("value")
    if held is None or held.type != ir.AttributeType.TENSOR:
        return None
    tensor = held.as_tensor()
    if not tensor.dtype.is_floating_point():
        return None
    output = node.outputs[0]
    return GraphConstant(
        output.name or "", output, tensor, attribute_setter(node, held)
    )


def plan_matches(constants: Sequence[GraphConstant], shapes: Shapes) -> Plan:
    """Match constants with the entries of a state dict, the surest ways first."""
    plan = Plan()
    waiting = list(constants)
    entries = dict(shapes)

    def take(constant: GraphConstant, entry: str, how: How, transposed: bool) -> None:
        plan.matches.append(Match(constant, entry, how, transposed))
        waiting.remove(constant)
        del entries[entry]

    for constant, entry, how in _by_name(waiting, entries):
        shape = entries[entry]
        if constant.shape == shape:
            take(constant, entry, how, transposed=False)
        elif constant.is_operand and constant.shape == shape[::-1]:
            take(constant, entry, how, transposed=True)
        else:
            plan.unused[entry] = (
                f"shape {list(shape)} where the graph has {list(constant.shape)}"
            )
            plan.kept[constant.name] = "the state dict has another shape for it"
            waiting.remove(constant)
            del entries[entry]
    _drop_unclear(plan)
    for constant, entry, how in _by_neighbours(waiting, entries, plan.matches):
        take(constant, entry, how, transposed=True)
    for constant, entry in _by_shape(waiting, entries):
        take(constant, entry, "shape", constant.is_operand)
    for entry, shape in entries.items():
        plan.unused[entry] = _why_unused(entry, shape, waiting)
    for constant in waiting:
        if constant.is_weight:
            plan.kept[constant.name] = "no entry of the state dict fits"
    return plan


def _by_name(
    constants: Sequence[GraphConstant], entries: Shapes
) -> list[tuple[GraphConstant, str, How]]:
    """Pairs of the same name, or where one name is the end of the other and of no third."""
    exact = {
        constant.name: constant for constant in constants if constant.name in entries
    }
    found: list[tuple[GraphConstant, str, How]] = []
    for name, constant in exact.items():
        found.append((constant, name, "name"))
    # a name without a dot (`weight`) is the end of too many
    others = [
        constant
        for constant in constants
        if constant.name not in exact and "." in constant.name
    ]
    free = [name for name in entries if name not in exact and "." in name]
    candidates = _candidates(others, free)
    claims: dict[GraphConstant, int] = {}
    for possible in candidates.values():
        for constant in possible:
            claims[constant] = claims.get(constant, 0) + 1
    for name, possible in candidates.items():
        if len(possible) == 1 and claims[possible[0]] == 1:
            found.append((possible[0], name, "name without prefix"))
    return found


def _candidates(
    constants: Sequence[GraphConstant], entries: Sequence[str]
) -> dict[str, list[GraphConstant]]:
    """Constants whose name ends in an entry's, or whose name is the end of it, by entry."""
    # an index of all ends, so that the search is not quadratic in the number of weights
    by_tail: dict[str, list[GraphConstant]] = {}
    for constant in constants:
        for tail in _tails(constant.name):
            by_tail.setdefault(tail, []).append(constant)
    by_name = {constant.name: constant for constant in constants}
    found = {}
    for entry in entries:
        longer = by_tail.get(entry, [])
        shorter = [by_name[tail] for tail in _tails(entry) if tail in by_name]
        found[entry] = list(dict.fromkeys([*longer, *shorter]))
    return found


def _tails(name: str) -> Iterator[str]:
    """`a.b.c` -> `b.c`: the ends that still have two parts."""
    parts = name.split(".")
    for start in range(1, len(parts) - 1):
        yield ".".join(parts[start:])


def _drop_unclear(plan: Plan) -> None:
    """Unmatch square operands where others are transposed: these may be transposed too, or not."""
    if not any(match.transposed for match in plan.matches):
        return
    for match in list(plan.matches):
        constant = match.constant
        if match.transposed or not constant.is_operand:
            continue
        if constant.shape[0] == constant.shape[1]:
            plan.matches.remove(match)
            plan.unused[match.entry] = (
                "is square, and others of this graph are transposed: cannot tell which way"
            )
            plan.kept[constant.name] = "square, maybe transposed"


def _by_neighbours(
    constants: Sequence[GraphConstant], entries: Shapes, matches: Sequence[Match]
) -> list[tuple[GraphConstant, str, How]]:
    """Pairs for nameless operands of a MatMul: the weight of a Linear, transposed.

    Its bias or its node's name tells which.
    """
    biases: dict[ir.Value, str] = {}
    for match in matches:
        if match.entry.endswith(".bias"):
            biases[match.constant.value] = match.entry
    found: list[tuple[GraphConstant, str, How]] = []
    taken: set[str] = set()
    for constant in constants:
        if not constant.is_operand:
            continue
        for node, index in constant.value.uses():
            if not _is_right_of_matmul(node, index):
                continue
            fitting = [
                (name, how)
                for name, how in _linear_names(node, biases, entries)
                if entries[name] == constant.shape[::-1] and name not in taken
            ]
            if fitting:
                name, how = fitting[0]
                found.append((constant, name, how))
                taken.add(name)
                break
    return found


def _linear_names(
    node: ir.Node, biases: Mapping[ir.Value, str], entries: Shapes
) -> list[tuple[str, How]]:
    """Entries that may be the weight of a MatMul, the likeliest first."""
    names: list[tuple[str, How]] = []
    for use in node.outputs[0].uses():
        if use.node.op_type != "Add":
            continue
        for value in use.node.inputs:
            if value is not None and value in biases:
                module = biases[value].removesuffix(".bias")
                names.append((f"{module}.weight", "bias beside it"))
    for scope in _scopes(node):
        weight = f"{scope}.weight"
        same = [
            name for name in entries if name == weight or name.endswith(f".{weight}")
        ]
        if len(same) == 1:
            names.append((same[0], "node's name"))
    return [(name, how) for name, how in names if name in entries]


def _scopes(node: ir.Node) -> list[str]:
    """Module that a node came from, as torch's exporters note it.

    The older one writes it into the node's name (`/a/b/MatMul`), the newer one into metadata.
    """
    named = ".".join((node.name or "").strip("/").split("/")[:-1])
    return [scope for scope in (named, module_path(node)) if scope]


def _by_shape(
    constants: Sequence[GraphConstant], entries: Shapes
) -> list[tuple[GraphConstant, str]]:
    """Weights whose shape one entry has, and no other weight."""
    candidates: dict[GraphConstant, list[str]] = {}
    for constant in constants:
        if len(constant.shape) >= 2 and constant.is_weight:
            candidates[constant] = [
                name for name, shape in entries.items() if _could_be(constant, shape)
            ]
    found = []
    for constant, names in candidates.items():
        if len(names) != 1:
            continue
        claims = [other for other, own in candidates.items() if names[0] in own]
        if claims == [constant]:
            found.append((constant, names[0]))
    return found


def _could_be(constant: GraphConstant, shape: tuple[int, ...]) -> bool:
    expected = shape[::-1] if constant.is_operand else shape
    return constant.shape == expected


def _why_unused(
    name: str, shape: tuple[int, ...], waiting: Sequence[GraphConstant]
) -> str:
    last = name.rpartition(".")[2]
    if last.startswith(("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")):
        return (
            "recurrent weights lie in another order in this graph: export it again with "
            "these weights"
        )
    if last in ("weight_g", "weight_v", "original0", "original1"):
        return (
            "weight or spectral norm: the graph has the product; remove the "
            "parametrization before saving"
        )
    if len(shape) < 2:
        return "no constant of the graph has its name or shape"
    rivals = [constant for constant in waiting if _could_be(constant, shape)]
    if len(rivals) > 1:
        return f"{len(rivals)} weights of the graph have its shape and none its name"
    return "no constant of the graph has its name or shape"
