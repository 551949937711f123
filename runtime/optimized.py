"""ONNX Runtime's own optimized graph of a model, at each of its levels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import onnx

from ..passes._core.context import KernelNode
from ..passes._core.ops import STANDARD_DOMAINS
from ..passes._core.scratch import scratch_folder
from .session import Session

Level = Literal["basic", "extended", "all"]
"""Levels of ONNX Runtime's graph optimizations, by their names in its documentation."""

LEVELS: tuple[Level, ...] = ("basic", "extended", "all")


def optimized_nodes(session: Session) -> list[KernelNode]:
    """Nodes that a session runs, as ONNX Runtime has optimized them, those of subgraphs included.

    Errors: RemoteError, WorkerDied.
    """
    return [_kernel(node) for node in _nodes(session, "all")]


def optimized_counts(
    session: Session, levels: Iterable[Level] = LEVELS
) -> dict[Level, int]:
    """Count the nodes of the optimized graph, those of subgraphs included, at each level.

    Errors: RemoteError, WorkerDied.
    """
    return {level: len(_nodes(session, level)) for level in levels}


def _nodes(session: Session, level: Level) -> list[onnx.NodeProto]:
    with scratch_folder() as folder:
        path = Path(folder, "optimized.onnx")
        session.write_optimized(path, level)
        # its weights are in a file beside it, which nobody reads
        model = onnx.load(path, load_external_data=False)
    nodes: list[onnx.NodeProto] = []
    pending = [model.graph]
    while pending:
        for node in pending.pop().node:
            nodes.append(node)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)
    return nodes


def _kernel(node: onnx.NodeProto) -> KernelNode:
    domain = "" if node.domain in STANDARD_DOMAINS else f"{node.domain}."
    return KernelNode(
        domain + node.op_type,
        node.name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
    )
