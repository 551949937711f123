"""One initializer for each distinct content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ._base import Context, Effect, Pass, PassOutcome
from ._core.edit import is_constant
from ._core.graph import subgraphs
from ._core.lazy import blocks
from ._core.rewrites import permit


@dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Merge initializers of the same type, shape and content.

    Effect: exact. Compares bytes, so 0.0 and -0.0 stay apart. Keeps initializers that callers can
    override, graph outputs, and zero points of stored weights. An initializer of a subgraph may be
    replaced by one of an enclosing graph.

    Shapes: unchanged.

    Stats: `initializers` removed (count), `bytes` saved.

    Source: follows from the definition. If the first blocks of large tensors differ, the rest is
    not read.
    """

    name: ClassVar[str] = "deduplicate-initializers"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "initializers"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        count = saved = 0
        for group in _groups(model):
            if len(group) == 1:
                continue
            for same in _equal(group):
                for value in _merge(same):
                    assert value.const_value is not None
                    count += 1
                    saved += value.const_value.nbytes
        return PassOutcome(count, {"initializers": count, "bytes": saved})


_ZERO_POINT = 2
"""Place of the zero point among the inputs of DequantizeLinear."""

Path = tuple[int, ...]
"""Ids of the graphs that lead to a graph, the main graph first and itself last."""

Group = list[tuple[Path, ir.Value]]
"""Initializers, each with the path of its graph."""


def _groups(model: ir.Model) -> Iterable[Group]:
    """Constants that may go, those of one type and shape together, outer graphs first."""
    groups: dict[Hashable, Group] = defaultdict(list)
    for path, graph in _scopes(model.graph, ()):
        for value in graph.initializers.values():
            # an output keeps its name, so that it cannot give way
            if not is_constant(value) or value.is_graph_output():
                continue
            if _is_zero_of_weight(value):
                continue
            assert value.const_value is not None
            shape = tuple(value.const_value.shape.numpy())
            groups[value.const_value.dtype, shape].append((path, value))
    return groups.values()


def _is_zero_of_weight(value: ir.Value) -> bool:
    """True for the zero point of a stored weight.

    ONNX Runtime's option session.x64quantprecision refuses weights that share one.
    """
    for use in value.uses():
        if use.node.op_type != "DequantizeLinear" or use.idx != _ZERO_POINT:
            continue
        codes = use.node.inputs[0]
        producer = None if codes is None else codes.producer()
        # of an activation where QuantizeLinear makes it
        if producer is None or producer.op_type != "QuantizeLinear":
            return True
    return False


def _scopes(graph: ir.Graph, path: Path) -> Iterator[tuple[Path, ir.Graph]]:
    """Every graph after those around it, with the path that leads to it."""
    path = (*path, id(graph))
    yield path, graph
    for node in graph:
        for inner in subgraphs(node):
            yield from _scopes(inner, path)


def _equal(group: Group) -> Iterator[Group]:
    """Split a group of one type and shape into groups of equal content."""
    # most large tensors differ in their first block: the rest of them is never read
    for likely in _alike(group, _digest_of_first_block):
        yield from _alike(likely, _digest)


def _alike(
    group: Group, digest: Callable[[ir.TensorProtocol], bytes]
) -> Iterator[Group]:
    """Groups of two or more whose tensors have one digest."""
    parts: dict[bytes, Group] = defaultdict(list)
    for path, value in group:
        assert value.const_value is not None
        parts[digest(value.const_value)].append((path, value))
    for part in parts.values():
        if len(part) > 1:
            yield part


def _digest_of_first_block(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return _digest(tensor)
    for _, block in blocks(tensor):
        return hashlib.blake2b(_bytes(block), digest_size=16).digest()
    return b""


def _digest(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist()).encode()
    digest = hashlib.blake2b(digest_size=16)
    for _, block in blocks(tensor):
        digest.update(_bytes(block))
    return digest.digest()


def _bytes(block: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(block).view(np.uint8).data


def _merge(same: Group) -> Iterator[ir.Value]:
    """Replace each value by the first one that it can see; yield those that went."""
    kept: Group = []
    for path, value in same:
        seen = _visible(path, kept)
        leave = permit(DeduplicateInitializers.name, "merge", value)
        if seen is None or leave is None:
            kept.append((path, value))
            continue
        value.replace_all_uses_with(seen)
        assert value.graph is not None
        assert value.name is not None
        del value.graph.initializers[value.name]
        leave.used()
        yield value


def _visible(path: Path, kept: Group) -> ir.Value | None:
    """The first value whose graph is the one at `path` or around it."""
    for outer, value in kept:
        if path[: len(outer)] == outer:
            return value
    return None
