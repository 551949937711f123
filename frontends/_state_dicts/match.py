"""Which entry of a state dict is which constant of a graph: by name, by neighbours, by shape; never
by guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

How = Literal["name", "name without prefix", "bias beside it", "node's name", "shape"]

_CONTRACTIONS = {
    "MatMul",
    "Gemm",
    "Conv",
    "ConvTranspose",
    "LSTM",
    "GRU",
    "RNN",
    "Gather",
    "Einsum",
}
_VIEWS = {
    "Identity",
    "Cast",
    "Transpose",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Slice",
    "Concat",
    "Split",
}
_PARAMETER_NAMES = (
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "in_proj_weight",
    "in_proj_bias",
)


@dataclass(eq=False)
class Target:
    """A float constant of the graph that a state dict may fill."""

    name: str
    value: ir.Value
    tensor: ir.TensorProtocol
    put: Callable[[ir.TensorProtocol], None]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape.numpy())

    @property
    def is_operand(self) -> bool:
        """Whether it is, as it stands, the right operand of a MatMul (where torch keeps the
        transpose).
        """
        return len(self.shape) == 2 and any(
            node.op_type == "MatMul" and index == 1 for node, index in self.value.uses()
        )

    @property
    def is_weight(self) -> bool:
        """Whether leaving it as it is would leave the network half old: it has a parameter's name
        or use.
        """
        return self.name.rpartition(".")[2].startswith(_PARAMETER_NAMES) or (
            len(self.shape) >= 2 and _meets(self.value, _CONTRACTIONS)
        )


@dataclass
class Match:
    """A target, the entry that fills it, and how they were found to belong together."""

    target: Target
    source: str
    how: How
    transposed: bool


@dataclass
class Plan:
    """`matches`; `unused`: entries without a place, and `kept`: weights without an entry, each with
    the reason.
    """

    matches: list[Match] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def targets_of(model: ir.Model) -> list[Target]:
    """Every float constant: initializers of all graphs, and what Constant nodes hold."""
    found = []
    for graph in model.graphs():
        found += [
            Target(
                value.name or "", value, value.const_value, _initializer_setter(value)
            )
            for value in graph.initializers.values()
            if value.const_value is not None
            and value.const_value.dtype.is_floating_point()
        ]
        for node in graph:
            held = node.attributes.get("value") if node.op_type == "Constant" else None
            if (
                held is not None
                and held.type == ir.AttributeType.TENSOR
                and held.as_tensor().dtype.is_floating_point()
            ):
                found.append(
                    Target(
                        node.outputs[0].name or "",
                        node.outputs[0],
                        held.as_tensor(),
                        _node_setter(node),
                    )
                )
    return found


def _initializer_setter(value: ir.Value) -> Callable[[ir.TensorProtocol], None]:
    def put(tensor: ir.TensorProtocol) -> None:
        value.const_value = tensor

    return put


def _node_setter(node: ir.Node) -> Callable[[ir.TensorProtocol], None]:
    def put(tensor: ir.TensorProtocol) -> None:
        node.attributes["value"] = ir.AttrTensor("value", tensor)

    return put


def planned(targets: Sequence[Target], state: Mapping[str, tuple[int, ...]]) -> Plan:
    """Match targets with the entries (name -> shape) of a state dict."""
    plan = Plan()
    waiting, entries = list(targets), dict(state)

    def take(target: Target, source: str, how: How, transposed: bool) -> None:
        plan.matches.append(Match(target, source, how, transposed))
        waiting.remove(target)
        del entries[source]

    for target, source, how in _by_name(waiting, entries):
        shape = entries[source]
        if target.shape == shape:
            take(target, source, how, False)
        elif target.is_operand and target.shape == shape[::-1]:
            take(target, source, how, True)
        else:
            plan.unused[source] = (
                f"shape {list(shape)} where the graph has {list(target.shape)}"
            )
            waiting.remove(target)
            del entries[source]
            plan.kept[target.name] = "the state dict has another shape for it"
    _drop_unclear(plan)
    for target, source, how in _by_neighbours(waiting, entries, plan.matches):
        take(target, source, how, True)
    for target, source, transposed in _by_shape(waiting, entries):
        take(target, source, "shape", transposed)
    plan.unused.update(
        {name: _why_unused(name, shape, waiting) for name, shape in entries.items()}
    )
    plan.kept.update(
        {
            target.name: "no entry of the state dict fits"
            for target in waiting
            if target.is_weight
        }
    )
    return plan


def _by_name(
    targets: Sequence[Target], entries: Mapping[str, tuple[int, ...]]
) -> list[tuple[Target, str, How]]:
    """The same name; or one name is the end of the other, and of no third."""
    exact = {target.name: target for target in targets if target.name in entries}
    found: list[tuple[Target, str, How]] = [
        (target, name, "name") for name, target in exact.items()
    ]
    others = [
        target for target in targets if target.name not in exact and "." in target.name
    ]
    free = [name for name in entries if name not in exact and "." in name]
    ends: dict[str, list[Target]] = {}
    for target in others:
        for tail in _tails(target.name):
            ends.setdefault(tail, []).append(target)
    names = {target.name: target for target in others}
    pairs: dict[str, list[Target]] = {}
    for name in free:
        longer = ends.get(name, [])
        shorter = [names[tail] for tail in _tails(name) if tail in names]
        pairs[name] = list(dict.fromkeys([*longer, *shorter]))
    claims: dict[Target, list[str]] = {}
    for name, candidates in pairs.items():
        for target in candidates:
            claims.setdefault(target, []).append(name)
    found += [
        (candidates[0], name, "name without prefix")
        for name, candidates in pairs.items()
        if len(candidates) == 1 and len(claims[candidates[0]]) == 1
    ]
    return found


def _tails(name: str) -> Iterator[str]:
    """`a.b.c` -> `b.c`: the ends that still have two parts."""
    parts = name.split(".")
    for start in range(1, len(parts) - 1):
        yield ".".join(parts[start:])


def _drop_unclear(plan: Plan) -> None:
    """Where names were kept over transposed values, a square one may be transposed too, or not."""
    if not any(match.transposed for match in plan.matches):
        return
    for match in list(plan.matches):
        target = match.target
        if (
            not match.transposed
            and target.is_operand
            and target.shape[0] == target.shape[1]
        ):
            plan.matches.remove(match)
            plan.unused[match.source] = (
                "is square, and others of this graph are transposed: cannot tell which way"
            )
            plan.kept[target.name] = "square, maybe transposed"


def _by_neighbours(
    targets: Sequence[Target],
    entries: Mapping[str, tuple[int, ...]],
    matches: Sequence[Match],
) -> list[tuple[Target, str, How]]:
    """Nameless operands of a MatMul are transposed weights of Linear: its bias or its node's name
    says whose.
    """
    biases = {
        match.target.value: match.source
        for match in matches
        if match.source.endswith(".bias")
    }
    found: list[tuple[Target, str, How]] = []
    taken: set[str] = set()
    for target in targets:
        if not target.is_operand:
            continue
        for node, index in target.value.uses():
            candidates = (
                _linear_names(node, biases, entries)
                if node.op_type == "MatMul" and index == 1
                else []
            )
            fitting = [
                c
                for c in candidates
                if entries[c[0]] == target.shape[::-1] and c[0] not in taken
            ]
            if fitting:
                found.append((target, *fitting[0]))
                taken.add(fitting[0][0])
                break
    return found


def _linear_names(
    node: ir.Node,
    biases: Mapping[ir.Value, str],
    entries: Mapping[str, tuple[int, ...]],
) -> list[tuple[str, How]]:
    names: list[tuple[str, How]] = []
    for user, _ in node.outputs[0].uses():
        names += [
            (f"{biases[value].removesuffix('.bias')}.weight", "bias beside it")
            for value in user.inputs
            if user.op_type == "Add" and value is not None and value in biases
        ]
    for scope in _scopes(node):
        same = [
            name
            for name in entries
            if name == f"{scope}.weight" or name.endswith(f".{scope}.weight")
        ]
        names += [(same[0], "node's name")] if len(same) == 1 else []
    return [(name, how) for name, how in names if name in entries]


def _scopes(node: ir.Node) -> list[str]:
    """The module that a node came from, as the older exporter writes it in names and the newer one
    in notes.
    """
    noted = re.findall(
        r"'([^',]*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    )
    named = ".".join((node.name or "").strip("/").split("/")[:-1])
    return [scope for scope in (named, *noted[-2:-1]) if scope]


def _by_shape(
    targets: Sequence[Target], entries: Mapping[str, tuple[int, ...]]
) -> list[tuple[Target, str, bool]]:
    """A weight whose shape one entry has, and no other weight."""
    candidates = {
        target: [name for name, shape in entries.items() if _could_be(target, shape)]
        for target in targets
        if len(target.shape) >= 2 and target.is_weight
    }
    found = []
    for target, names in candidates.items():
        rivals = [
            other
            for other, claimed in candidates.items()
            if other is not target and set(claimed) & set(names)
        ]
        if len(names) == 1 and not rivals:
            found.append((target, names[0], target.is_operand))
    return found


def _could_be(target: Target, shape: tuple[int, ...]) -> bool:
    return target.shape == (shape[::-1] if target.is_operand else shape)


def _why_unused(name: str, shape: tuple[int, ...], waiting: Sequence[Target]) -> str:
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
    rivals = [
        target.name
        for target in waiting
        if len(shape) >= 2 and _could_be(target, shape)
    ]
    if len(rivals) > 1:
        return f"{len(rivals)} weights of the graph have its shape and none its name"
    return "no constant of the graph has its name or shape"


def _meets(value: ir.Value, ops: set[str]) -> bool:
    """Whether a value is read by one of `ops`, views of it included."""
    waiting, seen = [value], {value}
    while waiting:
        for node, _ in waiting.pop().uses():
            if node.op_type in ops:
                return True
            if node.op_type in _VIEWS:
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                waiting += fresh
    return False
