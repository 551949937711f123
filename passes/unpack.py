"""Packed constants turned back into plain initializers: the inverse of `pack`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Declined, Effect, Pass, PassOutcome
from ._core.edit import is_constant
from ._core.graph import Names, all_graphs
from ._core.lazy import set_tensor
from ._core.rewrites import permit
from ._packing.constant_graph import constant_nodes, own_decoders, results_of
from ._packing.decode import Decoder, Pieces
from ._simplify.evaluate import NotFoldable

KEPT = 1 << 30
"""Bytes of decoded constants that are held; further ones are decoded whenever they are read.

Chosen by hand; not measured.
"""


@dataclass(frozen=True)
class Unpack(Pass):
    """Turn constants that nodes compute from constants into plain initializers, bit for bit.

    Effect: exact. Undoes `pack`, the packed storage of `quant` and `compress-weights`, and that of
    other tools if every node computes the same bits on any runtime. Names stay. DequantizeLinear
    stays, because integer kernels are made from it. onnx's sparse initializers become dense when a
    model is loaded. A pipeline that ends with this pass leaves its result unpacked.

    Shapes: unchanged.

    Stats: `constants` (count restored), `bytes` (of them), `nodes` (count removed).

    Source: follows from the definitions of the operators.
    """

    name: ClassVar[str] = "unpack"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "constants"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        nodes = constant_nodes(model.graph)
        outcome = _restore(model, nodes)
        for graph in all_graphs(model):
            if graph is not model.graph:
                outcome.declined.extend(_in_bodies(graph))
        return outcome


def restore_packed(model: ir.Model) -> int:
    """Undo `pack` alone, in place: later passes see the weights; the number of constants."""
    return _restore(model, own_decoders(model.graph)).changed


def without_packing(model: ir.Model) -> ir.Model:
    """The model itself or, where `pack` wrote a part of it, a clone with plain initializers."""
    if not is_packed(model):
        return model
    plain = model.clone()
    restore_packed(plain)
    return plain


def starts_with_unpack(passes: Sequence[Pass]) -> bool:
    """True if a pipeline unpacks first of all: nothing is to be done before it."""
    return bool(passes) and isinstance(passes[0], Unpack)


def is_packed(model: ir.Model) -> bool:
    """True if `pack` wrote a part of the model."""
    return bool(own_decoders(model.graph))


def _restore(model: ir.Model, nodes: list[ir.Node]) -> PassOutcome:
    graph = model.graph
    opset = model.opset_imports.get("", 1)
    outcome = PassOutcome()
    names = Names(model)
    count = held = total = 0
    pieces: Pieces = {}
    for value in results_of(nodes):
        if value.is_graph_output():
            outcome.declined.append(_left(value, "it is an output of the model"))
            continue
        leave = permit(Unpack.name, "unpack", value)
        if leave is None:
            continue
        try:
            decoder = Decoder(value, opset, pieces)
            array = decoder()
        except NotFoldable as reason:
            outcome.declined.append(_left(value, str(reason)))
            continue
        tensor: ir.TensorProtocol = ir.Tensor(array)
        total += array.nbytes
        if held + array.nbytes > KEPT:
            tensor = _decoded_later(decoder, tensor)
        else:
            held += array.nbytes
        _replace(graph, value, tensor, names)
        leave.used()
        count += 1
    removed = _remove_unused(graph, nodes)
    if count:
        outcome.changed = count
        outcome.stats = {"constants": count, "bytes": total, "nodes": removed}
    return outcome


def _left(value: ir.Value, reason: str) -> Declined:
    return Declined(value.name or "", reason)


def _in_bodies(graph: ir.Graph | ir.Function) -> list[Declined]:
    """Refusal of each constant that is computed inside of a node's body or of a function."""
    if not isinstance(graph, ir.Graph):
        return []
    reason = "it lies in the body of an If, Loop or Scan"
    return [_left(value, reason) for value in results_of(constant_nodes(graph))]


def _decoded_later(decoder: Decoder, tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The same tensor without its elements: they are computed whenever they are read."""
    return ir.LazyTensor(
        lambda: ir.Tensor(decoder()),
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
    )


def _replace(
    graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol, names: Names
) -> None:
    """Let an initializer of the same name stand for a computed value."""
    name = value.name
    constant = ir.Value(name=name)
    set_tensor(constant, tensor)
    constant.metadata_props.update(value.metadata_props)
    value.replace_all_uses_with(constant)
    # two values of one name are invalid; a node that stays for another output keeps this one
    value.name = names.fresh(f"{name}_computed")
    graph.register_initializer(constant)


def _remove_unused(graph: ir.Graph, nodes: Iterable[ir.Node]) -> int:
    """Remove nodes that nobody reads any more, and the constants that only they read."""
    count = 0
    # users before what they use
    for node in reversed(list(nodes)):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        sources = {value for value in node.inputs if value is not None}
        graph.remove(node, safe=True)
        count += 1
        for value in sources:
            if is_constant(value) and not value.uses() and not value.is_graph_output():
                del graph.initializers[value.name or ""]
    return count
