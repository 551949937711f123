"""Small facts about a graph that several passes need: its weights, its names, its shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from .._base import Declined
from .infer import infer_types
from .lazy import FLOATS

WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
"""Inputs that an op multiplies its data by; an initializer there is a weight."""

CHAIN_OPS = ("Identity", "Transpose")
"""Ops between an initializer and its user through which it is still the same weight, elements
reordered at most.
"""

QUANT_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "QLinearAdd",
        "QLinearMul",
        "QGemm",
        "QLinearConcat",
        "QLinearGlobalAveragePool",
        "MatMulNBits",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
    }
)
"""Ops that show that a part of the graph is quantized already."""


@dataclass
class Weight:
    """A float initializer and every (node, input index) that multiplies by it."""

    value: ir.Value
    uses: list[tuple[ir.Node, int]] = field(default_factory=list)
    transposed: bool = False
    """Whether some use sees it through a Transpose (its axes are then not the op's axes)."""

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def tensor(self) -> ir.TensorProtocol:
        assert self.value.const_value is not None
        return self.value.const_value

    @property
    def size(self) -> int:
        return self.tensor.size


def graphs_of(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and every subgraph under it, outer ones first (onnx_ir's own walk costs ten
    times as much).
    """
    yield model.graph
    yield from _subgraphs(model.graph)


def all_graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """The main graph, every subgraph, every function and their subgraphs."""
    yield from graphs_of(model)
    for function in model.functions.values():
        yield function
        yield from _subgraphs(function)


def _subgraphs(graph: ir.Graph | ir.Function) -> Iterator[ir.Graph]:
    """Every graph that a node of `graph` holds, each followed by those within it; no recursion."""
    waiting = _held(graph)[::-1]
    while waiting:
        inner = waiting.pop()
        yield inner
        waiting.extend(_held(inner)[::-1])


def _held(graph: ir.Graph | ir.Function) -> list[ir.Graph]:
    held: list[ir.Graph] = []
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                held.append(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
                held.extend(attribute.as_graphs())
    return held


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node once, subgraphs and functions included."""
    for graph in all_graphs(model):
        yield from graph


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Every initializer that has data, of the main graph and of every subgraph."""
    for graph in graphs_of(model):
        yield from (v for v in graph.initializers.values() if v.const_value is not None)


def weights_of(model: ir.Model) -> tuple[list[Weight], list[Declined]]:
    """All weights in graph order, each once however many nodes share it; and what is declined, with
    reasons.
    """
    found: dict[int, Weight] = {}
    declined: list[Declined] = []
    for node in all_nodes(model):
        if node.domain not in ("", "ai.onnx"):
            continue
        for index in WEIGHT_INPUTS.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            source, transposed = _behind_chain(value)
            if source is None:
                continue
            reason = _not_a_weight(source)
            if reason:
                declined.append(
                    Declined(
                        f"{node.op_type} {node.name or node.outputs[0].name}", reason
                    )
                )
            elif source.is_initializer():
                weight = found.setdefault(id(source), Weight(source))
                weight.uses.append((node, index))
                weight.transposed |= transposed
    return list(found.values()), declined


def _behind_chain(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    transposed = False
    while (
        value is not None
        and (producer := value.producer()) is not None
        and producer.op_type in CHAIN_OPS
    ):
        transposed |= producer.op_type == "Transpose"
        value = producer.inputs[0]
    return value, transposed


def _not_a_weight(source: ir.Value) -> str | None:
    producer = source.producer()
    if producer is not None:
        return "already quantized" if producer.op_type == "DequantizeLinear" else None
    if source.const_value is None:
        return None
    if source.is_graph_input():
        return f"weight '{source.name}' is also a graph input: callers may override it"
    if source.dtype not in FLOATS:
        return f"weight '{source.name}' is {source.dtype}: already quantized"
    return None


class Names:
    """Fresh value and node names for one model; build it once per pass (it walks every name)."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        self._numbers: Counter[str] = Counter()
        self.take(model)

    def take(self, model: ir.Model) -> None:
        """Give no name that this model has either: names of nodes that are gone by now stay theirs
        in reports.
        """
        for graph in all_graphs(model):
            self._taken.update(v.name or "" for v in graph.inputs)
            if isinstance(graph, ir.Graph):
                self._taken.update(graph.initializers)
            for node in graph:
                self._taken.add(node.name or "")
                self._taken.update(o.name or "" for o in node.outputs)

    def fresh(self, stem: str) -> str:
        """`stem`, or `stem_1`, `stem_2` … whichever is free first."""
        name, n = stem, 0
        while name in self._taken:
            n += 1
            name = f"{stem}_{n}"
        self._taken.add(name)
        return name

    def numbered(self, prefix: str) -> str:
        """`prefix` and a number, the next that is free: short names, for what there are many of."""
        while True:
            self._numbers[prefix] += 1
            name = f"{prefix}{self._numbers[prefix]}"
            if name not in self._taken:
                self._taken.add(name)
                return name


def become(model: ir.Model, other: ir.Model) -> None:
    """Make `model` what `other` is, in place; `other` must not be used afterwards."""
    model.graph = other.graph
    model.ir_version = other.ir_version
    model.functions.clear()
    model.functions.update(other.functions)


def refresh_shapes(model: ir.Model) -> bool:
    """Forget every inferred shape and infer anew (stale `value_info` survives inference otherwise).

    Declared shapes and types of graph inputs and outputs stay, except those of what a Loop carries
    (it may change shape from turn to turn); so do those of nodes that are not standard ops. Where
    inference finds nothing the former type is kept. Returns whether inference succeeded.
    """
    outputs = {id(v) for g in all_graphs(model) for v in g.outputs}
    declared = [
        (v, None if v.shape is None else v.shape.copy())
        for v in (*model.graph.inputs, *model.graph.outputs)
    ]
    former: list[tuple[ir.Value, ir.TypeProtocol | None]] = []
    for node in all_nodes(model):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Loop":
            for value in node.attributes["body"].as_graph().inputs[2:]:
                value.shape = None
        for value in node.outputs:
            if id(value) not in outputs:
                former.append((value, value.type))
                value.shape, value.type = None, None
    for initializer in initializers(model):
        tensor = initializer.const_value
        assert tensor is not None
        initializer.shape, initializer.type = (
            ir.Shape(tensor.shape.numpy()),
            ir.TensorType(tensor.dtype),
        )
    done = _infer(model)
    for value, declared_shape in declared:
        value.shape = declared_shape  # inference names unknown dims (unk__7)
    for value, type_ in former:
        value.type = value.type or type_
    return done


def _infer(model: ir.Model) -> bool:
    """Onnx's inference, lenient; a second try without data propagation where the first gives up."""
    return (
        len(model.graph) == 0
        or infer_types(model, data_prop=True)
        or infer_types(model, data_prop=False)
    )
