"""Clean-up of exported graphs: names of values and dims, folded constants, no exporter metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir

from ... import UsageError
from ...passes._core.graph import Names
from .inputs import Axes

_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
"""Metadata key that the exporter puts on parameters, buffers and inputs."""

_TRACES = "pkg.torch"
"""Prefix of every metadata key of the exporter."""

_FOLDED_BYTES = 1 << 18
"""Bytes (256 KiB) of the largest constant that folding may make. Chosen by hand; not measured."""


def tidy(model: ir.Model) -> None:
    """Inline functions, fold what depends on no parameter, drop what is not used or only noted.

    Every parameter keeps its name and value, so that state dicts fit the graph; `simplify` folds
    the rest.
    """
    common.InlinePass()(model)
    fold_constants_ir(
        model, output_size_limit=_FOLDED_BYTES, should_fold=_without_parameters
    )
    for step in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(model)
    _drop_traces(model)
    opsets = [
        helper.make_opsetid(domain, version)
        for domain, version in model.opset_imports.items()
    ]
    # the exporter writes one IR version for all opsets, too low for the newest
    least = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    model.ir_version = max(model.ir_version, least)


def _without_parameters(node: ir.Node) -> bool | None:
    """False keeps a node that reads a parameter or a buffer; None leaves it to the folder."""
    for value in node.inputs:
        if value is None or not value.is_initializer():
            continue
        if _KIND in value.metadata_props:
            return False
    return None


def _drop_traces(model: ir.Model) -> None:
    """Drop stack traces: they name local files and outweigh the graph."""
    holders: list[Any] = [model]
    for graph in model.graphs():
        holders += [graph, *graph.inputs, *graph.initializers.values()]
        for node in graph:
            holders += [node, *node.outputs]
            node.doc_string = None
    for holder in holders:
        for key in list(holder.metadata_props):
            if key.startswith(_TRACES) or key == "namespace":
                del holder.metadata_props[key]


def name_values(
    values: Sequence[ir.Value], names: Sequence[str], model: ir.Model, option: str
) -> None:
    """Rename inputs or outputs, the first ones first; another value of that name is renamed.

    Errors: UsageError for repeated names.
    """
    rest = [value.name or "" for value in values[len(names) :]]
    _refuse_repeated([*names, *rest], option)
    fresh = Names(model)
    graph = model.graph
    for value, name in zip(values, names, strict=False):
        if value.name == name:
            continue
        for other in _values(graph):
            if other.name == name:
                other.name = fresh.fresh(f"{name}_inner")
        value.name = name


def _refuse_repeated(names: Sequence[str], option: str) -> None:
    wrong = [name for name in names if names.count(name) > 1 or not name]
    if not wrong:
        return
    first = min(wrong)
    raise UsageError(
        option,
        f"'{first}' is there twice" if first else "a name is empty",
        "give each a name of its own",
    )


def name_dims(model: ir.Model, wanted: Axes) -> list[str]:
    """Replace torch's symbols (`s77`) in all shapes by the wanted names, or `batch`, `x_axis_1`.

    Returns warnings: two names for one size, an axis that stayed fixed.
    """
    names: dict[str, str] = {}
    warnings: list[str] = []
    for (index, axis), name in wanted.items():
        value = model.graph.inputs[index]
        symbol = _symbol(value, axis)
        if symbol is None:
            size = "fixed" if value.shape is None else str(value.shape[axis])
            warnings.append(
                f"axis {axis} of '{value.name}' stays {size}: forward "
                "depends on that size"
            )
        elif name and names.setdefault(symbol, name) != name:
            warnings.append(
                f"axis {axis} of '{value.name}' is called '{names[symbol]}', not "
                f"'{name}': forward needs "
                "both to be the same size"
            )
    _name_other_symbols(model, names)
    _replace_symbols(model, names)
    return warnings


def _name_other_symbols(model: ir.Model, names: dict[str, str]) -> None:
    """Add a name for every symbol of an input that has none yet."""
    for (index, axis), symbol in symbolic_axes(model).items():
        # an expression such as 2*s77 follows from the symbols in it
        if symbol is None or symbol in names or not symbol.isidentifier():
            continue
        if re.fullmatch(r"[su]\d+", symbol) is None:
            names[symbol] = symbol
        elif axis == 0 and "batch" not in names.values():
            names[symbol] = "batch"
        else:
            names[symbol] = f"{model.graph.inputs[index].name}_axis_{axis}"


def _replace_symbols(model: ir.Model, names: Mapping[str, str]) -> None:
    if not names:
        return
    # all at once: one name may be the symbol of another
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b")

    def renamed(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        if not isinstance(dim, ir.SymbolicDim) or not dim.value:
            return dim
        text = pattern.sub(lambda match: names[match[0]], str(dim.value))
        return ir.SymbolicDim(text)

    for graph in model.graphs():
        for value in _values(graph):
            if value.shape is None:
                continue
            if any(isinstance(dim, ir.SymbolicDim) for dim in value.shape):
                value.shape = ir.Shape([renamed(dim) for dim in value.shape])


def symbolic_axes(model: ir.Model) -> Axes:
    """Axes of inputs that have a symbol."""
    found: Axes = {}
    for index, value in enumerate(model.graph.inputs):
        rank = len(value.shape) if value.shape is not None else 0
        for axis in range(rank):
            symbol = _symbol(value, axis)
            if symbol is not None:
                found[index, axis] = symbol
    return found


def _symbol(value: ir.Value, axis: int) -> str | None:
    dim = value.shape[axis] if value.shape is not None else None
    return str(dim.value) if isinstance(dim, ir.SymbolicDim) else None


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
