"""The least opset and IR version that a model's content allows, and moves between versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx import helper

from .context import Context
from .contract import Pass
from .graph import all_graphs, all_nodes
from .infer import infer_types
from .ir_versions import FOR_NOTES, has_notes, ir_version_of_content
from .ops import is_standard
from .outcome import Effect, PassOutcome
from .schemas import least_version, means_the_same, schema_of

FLOOR = 13
"""Opset below which none is lowered.

Weights have one scale a channel from here on, and older runtimes are not tried.
"""


@dataclass(frozen=True)
class LeastVersions(Pass):
    """Lower the opset and the IR version as far as the content allows.

    The last step of every run; on no list of passes.

    Effect: exact. Touches nothing else but attributes that state a default which the lower opset
    does not spell.

    Source: the schemas of ONNX's operators; see `schemas`.
    """

    name: ClassVar[str] = "least-versions"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "models"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        return PassOutcome(int(lower_versions(model)))


def lower_versions(model: ir.Model) -> bool:
    """Lower the standard opset and the IR version to the least at which the model means the same.

    Returns whether the opset fell. Neither is ever raised, and an opset of 13 or less stays.
    Attributes that state their default, and that the lower version does not know, go. Values,
    names, types and shapes stay.
    """
    version = model.opset_imports.get("", 0)
    least = least_opset(model)
    # the opset first: the IR version must be as new as it
    if least < version:
        set_opset(model, least)
    if model.ir_version is not None:
        model.ir_version = min(model.ir_version, least_ir_version(model))
    return least < version


def lowers_opset(model: ir.Model) -> bool:
    """True if the opset can be lowered; IR versions alone change no kernel."""
    return least_opset(model) < model.opset_imports.get("", 0)


def least_opset(model: ir.Model) -> int:
    """The lowest opset, 13 or above, at which every standard node keeps its meaning."""
    version = model.opset_imports.get("", 0)
    if version <= FLOOR or not _one_opset(model):
        return version
    least = FLOOR
    for node in all_nodes(_typed(model)):
        if is_standard(node):
            least = max(least, least_version(node, version, FLOOR))
    return least


def least_ir_version(model: ir.Model) -> int:
    """The lowest IR version that can express the model, at least as new as its opsets."""
    opsets = []
    for domain, version in model.opset_imports.items():
        opsets.append(helper.make_opsetid(domain, version))
    paired = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    for_content = ir_version_of_content(model)
    least = max(int(paired), for_content)
    if has_notes(model):
        least = max(least, FOR_NOTES)
    return least


def renumber(model: ir.Model, version: int) -> bool:
    """Make `version` the standard opset if every node means the same there.

    False, and no change, otherwise.
    """
    before = model.opset_imports.get("", 0)
    if min(before, version) < FLOOR:
        return False
    if not _one_opset(model):
        return False
    # a node whose types are known means the same at more versions
    for node in all_nodes(_typed(model)):
        if is_standard(node) and not means_the_same(node, before, version):
            return False
    set_opset(model, version)
    return True


def _typed(model: ir.Model) -> ir.Model:
    """The model, if all values have types, else a copy with those that onnx infers.

    The copy shares all tensors.
    """
    for node in all_nodes(model):
        if any(value.type is None for value in node.outputs):
            copy = model.clone()
            infer_types(copy, data_prop=False)
            return copy
    return model


def _one_opset(model: ir.Model) -> bool:
    """True if functions are written for the opset of the model."""
    version = model.opset_imports.get("", 0)
    for function in model.functions.values():
        if function.opset_imports.get("", version) != version:
            return False
    return True


def set_opset(model: ir.Model, version: int) -> None:
    """Make `version` the standard opset, at which every node must mean the same."""
    for node in all_nodes(model):
        if not is_standard(node):
            continue
        schema = schema_of(node.op_type, version)
        assert schema is not None, node.op_type
        # they state their defaults, or the node would not mean the same
        unknown = [name for name in node.attributes if name not in schema.attributes]
        for name in unknown:
            del node.attributes[name]
    for graph in all_graphs(model):
        if "" in graph.opset_imports:
            graph.opset_imports[""] = version
