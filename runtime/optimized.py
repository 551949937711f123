"""ONNX Runtime's own optimized graph of a model, at each of its levels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
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
    (nodes,) = _nodes(session, ["all"])
    return [kernel(node) for node in nodes]


def optimized_counts(
    session: Session, levels: Sequence[Level] = LEVELS, folder: Path | None = None
) -> dict[Level, int]:
    """Count the nodes of the optimized graph, those of subgraphs included, at each level.

    `folder`: one that goes with the caller, and may take the graphs; None: a new one. Errors:
    RemoteError, WorkerDied.
    """
    counts = map(len, _nodes(session, levels, folder))
    return dict(zip(levels, counts, strict=True))


def _nodes(
    session: Session, levels: Sequence[Level], given: Path | None = None
) -> list[list[onnx.NodeProto]]:
    """Nodes of the optimized graph at each of the levels."""
    with scratch_folder() if given is None else nullcontext(given) as folder:
        paths: dict[str, Path] = {each: folder / f"{each}.onnx" for each in levels}
        session.write_optimized(paths)
        # the weights are in a file beside them, which nobody reads
        models = [onnx.load(path, load_external_data=False) for path in paths.values()]
    return [_nodes_of(model) for model in models]


def _nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
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


def kernel(node: onnx.NodeProto) -> KernelNode:
    """A node with its domain before its operator, unless that is a standard one."""
    domain = "" if node.domain in STANDARD_DOMAINS else f"{node.domain}."
    return KernelNode(
        domain + node.op_type,
        node.name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
    )
