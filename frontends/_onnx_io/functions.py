"""Limits on function calls: no cycles, and no chains that expand beyond measure."""

from __future__ import annotations

from typing import Any

import onnx

from ... import RefusedError
from ...passes._core.limits import limit
from .protos import held_graphs, standard_domain
from .read import EXPORT_AGAIN
from .tensors import shown

Key = tuple[str, str, str]
"""Domain, name and overload of a function."""


def check_calls(
    proto: onnx.ModelProto, functions: dict[Key, onnx.FunctionProto], where: str
) -> None:
    """Refuse calls that form a cycle, nest too deep or expand to too many nodes.

    Errors: RefusedError.
    """
    if not functions:
        return
    calls: dict[Key, list[Key]] = {}
    for key, function in functions.items():
        calls[key] = _calls(function.node, functions, where)
    # forty functions that call the next one twice would be 2^40 nodes; some readers recurse
    most_nodes, most_calls = limit("CALL_NODES"), limit("CALL_DEPTH")
    expanded: dict[Key, int] = {}
    depth: dict[Key, int] = {}
    for key in _callees_first(calls, where):
        own_nodes = max(len(functions[key].node), 1)
        expanded[key] = own_nodes + sum(expanded[callee] for callee in calls[key])
        depth[key] = 1 + max((depth[callee] for callee in calls[key]), default=0)
        if depth[key] > most_calls:
            raise RefusedError(
                where,
                f"function calls nest deeper than {most_calls}",
                "inline them when exporting",
            )
    called = _calls(proto.graph.node, functions, where)
    total = sum(expanded[key] for key in called)
    # functions that nothing calls count too
    if max(total, *expanded.values()) > most_nodes:
        raise RefusedError(
            where,
            f"function calls expand to more than {most_nodes:,} nodes",
            EXPORT_AGAIN,
        )


def _calls(
    nodes: Any, functions: dict[Key, onnx.FunctionProto], where: str
) -> list[Key]:
    """Functions called by these nodes and by their subgraphs, once for each call."""
    found: list[Key] = []
    waiting = [nodes]
    while waiting:
        for node in waiting.pop():
            key = (standard_domain(node.domain), node.op_type, node.overload)
            if key in functions:
                found.append(key)
                _check_arity(node, functions[key], where)
            waiting += [graph.node for graph in held_graphs(node)]
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
    """All functions, each after those it calls. Errors: RefusedError on a cycle."""
    order: list[Key] = []
    # False while being visited, True when done
    done: dict[Key, bool] = {}
    for root in calls:
        if root in done:
            continue
        done[root] = False
        # a stack of our own, since the file sets the depth
        stack = [(root, iter(calls[root]))]
        while stack:
            key, rest = stack[-1]
            callee = next(rest, None)
            if callee is None:
                done[key] = True
                order.append(key)
                stack.pop()
            elif callee not in done:
                done[callee] = False
                stack.append((callee, iter(calls[callee])))
            elif not done[callee]:
                raise RefusedError(
                    where, f"function {shown(callee[1])} calls itself", EXPORT_AGAIN
                )
    return order
