"""What torch's exporter leaves, made fit to keep: chosen names, dims by name, constants folded, no
traces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir

from ... import UsageError
from .inputs import Axes

_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
_TRACES = "pkg.torch"
_FOLDED_BYTES = 1 << 18


def tidy(model: ir.Model) -> None:
    """Inline functions, fold what depends on no parameter, drop what is not used and what the
    exporter noted.

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
    model.ir_version = max(
        model.ir_version, helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    )


def _without_parameters(node: ir.Node) -> bool | None:
    """False keeps a node that reads a parameter or a buffer; None leaves it to the folder."""
    return (
        False
        if any(
            value is not None
            and _KIND in value.metadata_props
            and value.is_initializer()
            for value in node.inputs
        )
        else None
    )


def _drop_traces(model: ir.Model) -> None:
    """Stack traces name local files and outweigh the graph."""
    holders: list[Any] = [model]
    for graph in model.graphs():
        holders += [graph, *graph.inputs, *graph.initializers.values()]
        for node in graph:
            holders += [node, *node.outputs]
            node.doc_string = None
    for holder in holders:
        for key in [
            key
            for key in holder.metadata_props
            if key.startswith(_TRACES) or key == "namespace"
        ]:
            del holder.metadata_props[key]


def name_values(
    values: Sequence[ir.Value], names: Sequence[str], graph: ir.Graph, option: str
) -> None:
    """Rename inputs or outputs, the first ones first; another value of that name gets out of the
    way.

    Errors: UsageError for repeated names.
    """
    final = [*names, *(value.name or "" for value in values[len(names) :])]
    repeated = sorted({name for name in final if final.count(name) > 1 or not name})
    if repeated:
        raise UsageError(
            option,
            f"'{repeated[0]}' is there twice" if repeated[0] else "a name is empty",
            "give each a name of its own",
        )
    for value, name in zip(values, names, strict=False):
        if value.name != name:
            for other in _values(graph):
                if other.name == name:
                    other.name = _free(f"{name}_inner", graph)
            value.name = name


def _free(name: str, graph: ir.Graph) -> str:
    taken = {value.name for value in _values(graph)}
    while name in taken:
        name += "_"
    return name


def name_dims(model: ir.Model, wanted: Axes) -> tuple[dict[str, str], list[str]]:
    """Replace torch's symbols (`s77`) in all shapes by the wanted names, or by `batch`, `x_axis_1`.

    Returns the renamed symbols and warnings: two names for one size, an axis that stayed fixed.
    """
    names: dict[str, str] = {}
    warnings: list[str] = []
    for (index, axis), name in wanted.items():
        value = model.graph.inputs[index]
        symbol = _symbol(value, axis)
        if symbol is None:
            warnings.append(
                f"axis {axis} of '{value.name}' stays {_shown(value, axis)}: forward "
                "depends on that size"
            )
        elif name and names.setdefault(symbol, name) != name:
            warnings.append(
                f"axis {axis} of '{value.name}' is called '{names[symbol]}', not "
                f"'{name}': forward needs "
                "both to be the same size"
            )
    for value in model.graph.inputs:
        for axis in range(len(value.shape) if value.shape is not None else 0):
            symbol = _symbol(value, axis)
            if symbol is not None and symbol not in names and symbol.isidentifier():
                made_up = re.fullmatch(r"[su]\d+", symbol) is not None
                default = (
                    "batch"
                    if axis == 0 and "batch" not in names.values()
                    else f"{value.name}_axis_{axis}"
                )
                names[symbol] = default if made_up else symbol
    _replace_symbols(model, names)
    return names, warnings


def _replace_symbols(model: ir.Model, names: Mapping[str, str]) -> None:
    if not names:
        return
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b")

    def swap(match: re.Match[str]) -> str:
        return names[match[0]]

    for graph in model.graphs():
        for value in _values(graph):
            if value.shape is not None and any(
                isinstance(dim, ir.SymbolicDim) for dim in value.shape
            ):
                value.shape = ir.Shape(
                    [
                        ir.SymbolicDim(pattern.sub(swap, str(dim.value)))
                        if isinstance(dim, ir.SymbolicDim) and dim.value
                        else dim
                        for dim in value.shape
                    ]
                )


def symbolic_axes(model: ir.Model) -> Axes:
    """The axes of inputs that have a symbol."""
    return {
        (index, axis): symbol
        for index, value in enumerate(model.graph.inputs)
        for axis in range(len(value.shape) if value.shape is not None else 0)
        if (symbol := _symbol(value, axis)) is not None
    }


def _symbol(value: ir.Value, axis: int) -> str | None:
    dim = value.shape[axis] if value.shape is not None else None
    return str(dim.value) if isinstance(dim, ir.SymbolicDim) else None


def _shown(value: ir.Value, axis: int) -> str:
    return "fixed" if value.shape is None else str(value.shape[axis])


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
