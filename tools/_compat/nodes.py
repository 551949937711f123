"""Choices of nodes by name and by operator, as patterns of the pass `quant`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ... import RefusedError
from ...passes._core.graph import all_nodes
from ...passes._core.patterns import Part, weighted_parts
from .notes import Notes

TABLES = "Gather"
"""Operator whose tables `quant` stores in 8 bits."""


@dataclass(frozen=True)
class NodeChoice:
    """Arguments of onnxruntime.quantization that choose nodes; None: all."""

    op_types_to_quantize: Sequence[str] | None
    nodes_to_quantize: Sequence[str] | None
    nodes_to_exclude: Sequence[str] | None


@dataclass(frozen=True)
class ChosenLayers:
    """Names of layers for `include` and `exclude`; `tables`: whether tables are quantized, too."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tables: bool = True


def chosen_layers(model: ir.Model, choice: NodeChoice, notes: Notes) -> ChosenLayers:
    """The layers that the arguments choose. Errors: RefusedError where they choose none."""
    layers = weighted_parts(model)
    wanted = layers
    types = choice.op_types_to_quantize
    if types is not None:
        wanted = [layer for layer in wanted if layer.kind in types]
    if choice.nodes_to_quantize is not None:
        wanted = _of_names(wanted, choice.nodes_to_quantize)
        _note_others(
            model,
            layers,
            "nodes_to_quantize",
            choice,
            notes,
        )
    excluded: list[Part] = []
    if choice.nodes_to_exclude:
        excluded = _of_names(wanted, choice.nodes_to_exclude)
        _note_others(
            model,
            layers,
            "nodes_to_exclude",
            choice,
            notes,
        )
    if len(excluded) == len(wanted):
        raise RefusedError(
            "nodes",
            "none of the layers with weights is left to quantize",
            "see onnx-opt inspect MODEL for their names and operators",
        )
    include: list[str] = []
    if len(wanted) < len(layers):
        include = [layer.names[0] for layer in wanted]
    return ChosenLayers(
        include=tuple(include),
        exclude=tuple(layer.names[0] for layer in excluded),
        tables=types is None or TABLES in types,
    )


def _of_names(layers: Sequence[Part], names: Sequence[str]) -> list[Part]:
    wanted = set(names)
    return [layer for layer in layers if wanted.intersection(layer.names)]


def _note_others(
    model: ir.Model,
    layers: Sequence[Part],
    argument: str,
    choice: NodeChoice,
    notes: Notes,
) -> None:
    """Note names that are no layer: of other nodes, and of none."""
    names: Sequence[str] = getattr(choice, argument)
    of_layers: set[str] = set()
    for layer in layers:
        of_layers.update(layer.names)
    of_nodes = {node.name for node in all_nodes(model)}
    without_weights = of_nodes - of_layers
    others = [name for name in names if name in without_weights]
    if others:
        notes.add(
            f"{argument}={others}",
            "these have no weights, and follow the layers around them",
        )
    known = of_nodes | of_layers
    missing = [name for name in names if name not in known]
    if missing:
        notes.add(f"{argument}={missing}", "the model has no such nodes")
