"""Do a model's functions call each other without end, or without measure?"""

from __future__ import annotations

from typing import Any

import onnx

from ... import RefusedError
from .read import EXPORT_AGAIN
from .tensors import shown

Key = tuple[str, str, str]
MAX_NODES = 1_000_000
"""Nodes after every call is expanded: forty functions that call the next one twice would be
2^40.
"""

MAX_DEPTH = 200
"""Calls inside calls: some readers of ONNX recurse."""


def check_calls(
    proto: onnx.ModelProto, functions: dict[Key, onnx.FunctionProto], where: str
) -> None:
    """RefusedError if calls form a cycle, nest deeper than 200 or expand to more than a million
    nodes.
    """
    if not functions:
        return
    calls = {
        key: _calls(function.node, functions, where)
        for key, function in functions.items()
    }
    own = {key: max(len(function.node), 1) for key, function in functions.items()}
    size: dict[Key, int] = {}
    depth: dict[Key, int] = {}
    for key in _callees_first(calls, where):
        size[key] = own[key] + sum(size[c] for c in calls[key])
        depth[key] = 1 + max((depth[c] for c in calls[key]), default=0)
        if depth[key] > MAX_DEPTH:
            raise RefusedError(
                where,
                f"function calls nest deeper than {MAX_DEPTH}",
                "inline them when exporting",
            )
    total = sum(size[c] for c in _calls(proto.graph.node, functions, where))
    if max(total, *size.values()) > MAX_NODES:
        raise RefusedError(
            where,
            f"function calls expand to more than {MAX_NODES:,} nodes",
            EXPORT_AGAIN,
        )


def _calls(
    nodes: Any, functions: dict[Key, onnx.FunctionProto], where: str
) -> list[Key]:
    """The functions called by these nodes and by their subgraphs, once for each call."""
    found: list[Key] = []
    waiting = [nodes]
    while waiting:
        for node in waiting.pop():
            key = (
                "" if node.domain == "ai.onnx" else node.domain,
                node.op_type,
                node.overload,
            )
            if key in functions:
                found.append(key)
                _check_arity(node, functions[key], where)
            for attribute in node.attribute:
                waiting += [attribute.g.node] if attribute.HasField("g") else []
                waiting += [graph.node for graph in attribute.graphs]
    return found


def _check_arity(
    node: onnx.NodeProto, function: onnx.FunctionProto, where: str
) -> None:
    if len(node.input) > len(function.input) or len(node.output) > len(function.output):
        raise RefusedError(
            where,
            f"a call of function {shown(function.name)} has more inputs or outputs than it",
            EXPORT_AGAIN,
        )


def _callees_first(calls: dict[Key, list[Key]], where: str) -> list[Key]:
    """All functions, each after those it calls. RefusedError on a cycle. Iterative: the file sets
    the depth.
    """
    order: list[Key] = []
    state: dict[Key, bool] = {}  # False while being visited, True when done
    for root in calls:
        stack = [(root, iter(calls[root]))] if root not in state else []
        state.setdefault(root, False)
        while stack:
            key, rest = stack[-1]
            callee = next(rest, None)
            if callee is None:
                state[key] = True
                order.append(key)
                stack.pop()
            elif callee not in state:
                state[callee] = False
                stack.append((callee, iter(calls[callee])))
            elif not state[callee]:
                raise RefusedError(
                    where, f"function {shown(callee[1])} calls itself", EXPORT_AGAIN
                )
    return order
