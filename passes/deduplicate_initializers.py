"""One initializer for each distinct content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ._base import Context, Effect, Pass, PassOutcome
from ._core.edit import is_constant
from ._core.graph import subgraphs
from ._core.lazy import blocks


@dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Keep one initializer of each distinct type, shape and content.

    Effect: exact. Compares bytes, so 0.0 and -0.0 stay apart. Initializers that callers can
    override, and those that are graph outputs, stay. A subgraph's initializer may give way to one
    of a graph around it.

    Shapes: unchanged.

    Stats: `initializers` removed (count), `bytes` saved.

    Source: follows from the definition. A first block that differs saves reading the rest of a
    large tensor.
    """

    name: ClassVar[str] = "deduplicate-initializers"
    effect: ClassVar[Effect] = "exact"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        scopes = list(_scopes(model.graph, ()))
        groups: dict[Hashable, list[tuple[tuple[int, ...], ir.Value]]] = defaultdict(
            list
        )
        for path, graph in scopes:
            for value in graph.initializers.values():
                if is_constant(value) and not value.is_graph_output():
                    assert value.const_value is not None
                    shape = tuple(value.const_value.shape.numpy())
                    groups[value.const_value.dtype, shape].append((path, value))
        count = saved = 0
        for group in groups.values():
            for same in _equal(group) if len(group) > 1 else []:
                for value in _merge(same):
                    count += 1
                    assert value.const_value is not None
                    saved += value.const_value.nbytes
        return PassOutcome(count, {"initializers": count, "bytes": saved})


def _scopes(
    graph: ir.Graph, path: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], ir.Graph]]:
    """Every graph after those around it, with the path of graphs that leads to it."""
    path = (*path, id(graph))
    yield path, graph
    for node in graph:
        for inner in subgraphs(node):
            yield from _scopes(inner, path)


Group = list[tuple[tuple[int, ...], ir.Value]]


def _equal(group: Group) -> Iterator[Group]:
    """Split a group of one type and shape into groups of equal content, reading no more than
    needed.
    """
    for digest in (_digest_of_first_block, _digest):
        parts: dict[bytes, Group] = defaultdict(list)
        for item in group:
            tensor = item[1].const_value
            assert tensor is not None
            parts[digest(tensor)].append(item)
        candidates = [part for part in parts.values() if len(part) > 1]
        if digest is _digest:
            yield from candidates
        else:
            group = [item for part in candidates for item in part]


def _digest_of_first_block(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return _digest(tensor)
    return next((_bytes(block) for _, block in blocks(tensor)), b"")


def _digest(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist()).encode()
    digest = hashlib.blake2b(digest_size=16)
    for _, block in blocks(tensor):
        digest.update(np.ascontiguousarray(block).view(np.uint8).data)
    return digest.digest()


def _bytes(block: NDArray[Any]) -> bytes:
    return hashlib.blake2b(
        np.ascontiguousarray(block).view(np.uint8).data, digest_size=16
    ).digest()


def _merge(same: Group) -> Iterator[ir.Value]:
    """Replace each value by the first one that it can see; yield those that went."""
    kept: Group = []
    for path, value in same:
        seen = next((v for p, v in kept if path[: len(p)] == p), None)
        if seen is None:
            kept.append((path, value))
            continue
        value.replace_all_uses_with(seen)
        assert value.graph is not None
        assert value.name is not None
        del value.graph.initializers[value.name]
        yield value
