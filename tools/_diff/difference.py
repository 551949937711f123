"""Two models compared: their files, and the nodes that only one has or that changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...frontends.onnx_file import load
from ...passes._core.graph import all_nodes, label
from ...passes._core.normalize import normalize
from ...passes._core.stats import model_macs
from ...passes.unpack import restore_packed
from .._run.figures import figures_of
from .._run.load import opsets_of, producer_of
from .._run.provenance import sha256_of
from .file import file_changes, interface_changes, op_changes
from .match import matched_nodes
from .nodes import node_changes
from .weights import by_distance, is_change, weight_changes, weight_words


@dataclass
class ComparedModel:
    """One of two models: its file, and the graph as passes would see it."""

    path: Path
    model: ir.Model
    facts: dict[str, Any]

    @classmethod
    def of(cls, path: Path) -> ComparedModel:
        """Load a model. Errors: RefusedError."""
        model = load(path)
        figures = figures_of(model, path, count_nonzero=True)
        facts = {
            "path": str(path),
            "sha256": sha256_of(path),
            "producer": producer_of(model),
            "ir_version": model.ir_version,
            "opset": opsets_of(model),
            "metadata": dict(model.metadata_props),
        }
        normalize(model)
        facts["unpacked"] = restore_packed(model)
        figures.macs = model_macs(model)
        facts["figures"] = figures.as_dict()
        return cls(path, model, facts)


@dataclass
class NodeChange:
    """A node that both models have, and what differs; or one that only one of them has.

    `node`: its number among the nodes of B; of a removed one among those of A.
    """

    layer: str
    op: str
    node: ir.Node
    changes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"layer": self.layer, "op": self.op, "changes": self.changes}


@dataclass
class ModelDifference:
    """All that differs between two models; `same`: nodes that do not."""

    a: ComparedModel
    b: ComparedModel
    pairs: dict[ir.Node, ir.Node]
    added: list[NodeChange]
    removed: list[NodeChange]
    changed: list[NodeChange]
    weights: list[dict[str, Any]]
    same: int

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "a": self.a.facts,
            "b": self.b.facts,
            "interface": interface_changes(self.a.model, self.b.model),
            "file": file_changes(self.a.facts, self.b.facts),
            "ops": op_changes(self.a.model, self.b.model),
            "nodes": {
                "same": self.same,
                "added": [each.as_dict() for each in self.added],
                "removed": [each.as_dict() for each in self.removed],
                "changed": [each.as_dict() for each in self.changed],
            },
            "weights": self.weights,
        }


def difference(first: Path, second: Path) -> ModelDifference:
    """Compare two models. Errors: RefusedError for a file that is none."""
    a = ComparedModel.of(first)
    b = ComparedModel.of(second)
    pairs = matched_nodes(a.model, b.model)
    weights = []
    changed = []
    for node, other in pairs.items():
        change = NodeChange(
            label(other), other.op_type, other, node_changes(node, other)
        )
        for weight in weight_changes(node, other):
            if is_change(weight):
                weights.append(weight)
                change.changes.append(weight_words(weight))
        if change.changes:
            changed.append(change)
    found = set(pairs.values())
    return ModelDifference(
        a,
        b,
        pairs,
        added=_alone(b.model, found),
        removed=_alone(a.model, set(pairs)),
        changed=changed,
        weights=sorted(weights, key=by_distance),
        same=len(pairs) - len(changed),
    )


def _alone(model: ir.Model, found: set[ir.Node]) -> list[NodeChange]:
    """Nodes of a model that the other lacks."""
    rest = []
    for node in all_nodes(model):
        if node in found:
            continue
        change = NodeChange(label(node), node.op_type, node)
        rest.append(change)
    return rest
