"""Raise a model's opset where a pass needs newer operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx import version_converter

from ... import RefusedError
from .declared import keep_declarations
from .graph import all_nodes, label, refresh_shapes
from .infer import FAILURES, without_weights
from .normalize import lift_constants
from .ops import normalizes_by_batch
from .versions import least_ir_version, renumber, set_opset

STATED = 14
"""Opset from which BatchNormalization says by an attribute, not by its outputs, that it trains."""


class OpsetRefused(RefusedError):
    """A model whose opset cannot be raised."""


def raise_opset(model: ir.Model, minimum: int) -> bool:
    """Bring the standard opset to `minimum` where it is lower, in place; True if it was.

    Where every node means the same there, only the number changes. Otherwise onnx's own converter
    does it (onnxscript's gives invalid models below opset 18). Weights stay the tensors that they
    are: it sees only their shapes. Names, types and shapes of inputs and outputs stay.

    Errors: OpsetRefused where the converter fails, or loses a tensor, an input or an output; the
    model is then what it was, perhaps at an opset in between.
    """
    version = model.opset_imports.get("")
    if version is None:
        model.opset_imports[""] = minimum
        return True
    if version >= minimum:
        return False
    if version < STATED <= minimum and any(map(normalizes_by_batch, all_nodes(model))):
        _state_training(model, minimum)
        version = STATED
    if not renumber(model, minimum):
        _check_functions(model, minimum)
        converted = _converted(model, version, minimum)
        _adopt_tensors(model, converted, version, minimum)
        model.graph = converted.graph
        # the converter writes axes as Constants
        lift_constants(model)
        refresh_shapes(model)
    model.ir_version = max(model.ir_version or 0, least_ir_version(model))
    return True


def can_be_raised(model: ir.Model, minimum: int) -> bool:
    """True if the standard opset is `minimum` or can be raised to it; the model stays as it is."""
    if model.opset_imports.get("", 0) >= minimum:
        return True
    try:
        # it shares the weights
        raise_opset(model.clone(), minimum)
    except OpsetRefused:
        return False
    return True


def _state_training(model: ir.Model, minimum: int) -> None:
    """Bring a model to opset 14, where BatchNormalization says by an attribute that it trains.

    Before, five outputs say it, used or not; onnx's converter fails on them.
    """
    version = model.opset_imports[""]
    _check_functions(model, STATED)
    for node in all_nodes(model):
        if normalizes_by_batch(node) and any(map(_is_needed, node.outputs[3:])):
            problem = (
                f"{label(node)} gives its batch's statistics, which opset 14 does not"
            )
            raise _refused(version, minimum, problem)
    raise_opset(model, STATED - 1)
    for node in filter(normalizes_by_batch, all_nodes(model)):
        node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
        # the mean and variance of the batch, which come last, are no longer given
        node.resize_outputs(3)
    # no other operator means something else from 14 on
    set_opset(model, STATED)


def _is_needed(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _refused(version: int, minimum: int, problem: str) -> OpsetRefused:
    return OpsetRefused(
        "opset",
        f"cannot be raised from {version} to {minimum}: {problem}",
        f"export the model again with opset {minimum} or newer",
    )


def _check_functions(model: ir.Model, minimum: int) -> None:
    for function in model.functions.values():
        version = function.opset_imports.get("", minimum)
        if version < minimum:
            problem = f"function '{function.name}' is written for opset {version}"
            raise _refused(version, minimum, problem)


def _converted(model: ir.Model, version: int, minimum: int) -> ir.Model:
    """The model as onnx's converter makes it of the shapes of its weights alone."""
    inputs = len(model.graph.inputs)
    with without_weights(model):
        proto = ir.to_proto(model)
    try:
        converted_proto = version_converter.convert_version(proto, minimum)
        converted = ir.from_proto(converted_proto)
    except FAILURES as error:
        first_line = str(error).strip().splitlines()[0]
        raise _refused(version, minimum, first_line) from None
    assert isinstance(converted, ir.Model)
    # weights went in as inputs behind the real ones, and become initializers again
    ports = list(converted.graph.inputs)
    kept = ports[:inputs]
    added = ports[inputs:]
    converted.graph.inputs.clear()
    converted.graph.inputs.extend(kept)
    for value in added:
        source = model.graph.initializers.get(value.name or "")
        if source is not None:
            value.const_value = source.const_value
            converted.graph.register_initializer(value)
    return converted


def _adopt_tensors(
    model: ir.Model, converted: ir.Model, version: int, minimum: int
) -> None:
    """Give the converted model the original's own tensors, metadata and interface.

    Errors: RefusedError if anything is missing.
    """
    before = list(model.graphs())
    after = list(converted.graphs())
    if len(before) != len(after):
        raise _refused(version, minimum, "the converter lost a subgraph")
    for old, new in zip(before, after, strict=True):
        for name, value in old.initializers.items():
            if name in new.initializers and value.const_value is not None:
                new.initializers[name].const_value = value.const_value
            elif value.uses():
                raise _refused(version, minimum, f"the converter lost tensor '{name}'")
        is_same = _adopt_ports(old.inputs, new.inputs)
        is_same = _adopt_ports(old.outputs, new.outputs) and is_same
        if not is_same:
            problem = "the converter changed inputs or outputs"
            raise _refused(version, minimum, problem)
        _adopt_metadata(old, new)
        keep_declarations(old, new)


def _adopt_ports(old: Sequence[ir.Value], new: Sequence[ir.Value]) -> bool:
    """Give inputs or outputs their former types and shapes; False if they are others."""
    if [value.name for value in old] != [value.name for value in new]:
        return False
    for source, target in zip(old, new, strict=True):
        target.type = source.type
        target.shape = source.shape
    return True


def _adopt_metadata(old: ir.Graph, new: ir.Graph) -> None:
    """Give a graph and the nodes that make the same values their former names and metadata."""
    new.metadata_props.update(old.metadata_props)
    new.name = old.name
    new.doc_string = old.doc_string
    producers = {}
    for node in old:
        if node.outputs:
            producers[node.outputs[0].name] = node
    for node in new:
        if not node.outputs:
            continue
        source = producers.get(node.outputs[0].name)
        if source is None or source.op_type != node.op_type:
            continue
        node.name = source.name
        node.metadata_props.update(source.metadata_props)
