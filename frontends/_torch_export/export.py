"""Steps from a torch model to ONNX: trace, translate, tidy, name, record torch's outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from ... import CheckError, RefusedError, UsageError
from .capture import (
    evaluation,
    exported_program,
    onnx_program,
    quiet,
    refuse_training,
)
from .cases import Arrays, Case, Exported
from .graph import name_dims, name_values, symbolic_axes, tidy
from .inputs import Arguments, Axes, resized, tensors_in
from .open_source import open_source
from .outputs import arrays, default_output_names, refuse_numbers
from .source import Source, call_module

OTHER_SIZES: tuple[Callable[[int], int], ...] = (
    lambda n: n + 1,
    lambda n: 2 * n,
    lambda n: n + 8,
    lambda n: n + 32,
    lambda n: 3 * n,
)
"""Second sizes of dynamic dims, tried in this order until torch itself accepts one.

Some models take only multiples of 2, 8 or 32 (strides, windows). Chosen by hand; not measured.
"""


def export(
    model: Any,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Any,
    dynamic_axes: Any,
    opset: int,
    with_cases: bool,
    where: str,
) -> Exported:
    """A torch model as ONNX, and with `with_cases` what torch gives to compare it with.

    Errors: as `from_torch`, without those of the comparison.
    """
    source = open_source(model, args, kwargs, where)
    captured_here = source.program is None
    warnings = source.warnings
    with contextlib.ExitStack() as stack:
        if captured_here and stack.enter_context(evaluation(source.module)):
            warnings.append(
                "the module is in training mode: exported in evaluation mode, as after .eval()"
            )
        outputs = call_module(source)
        refuse_numbers(outputs, source.where)
        _check_names(source, outputs, input_names, output_names)
        if captured_here:
            program, axes = _capture(
                source,
                input_names,
                output_names,
                dynamic_shapes,
                dynamic_axes,
            )
        else:
            _refuse_dynamic(dynamic_shapes, dynamic_axes)
            program, axes = source.program, {}
        refuse_training(program, source.where, captured_here)
        onnx_model = onnx_program(program, opset, source.where).model
        result = Exported(onnx_model, source.where, warnings=warnings)
        # tidying renames values, so the exporter's names of inputs are noted before it
        exporters_names = [value.name or "" for value in onnx_model.graph.inputs]
        tidy(onnx_model)
        all_input_names = [*input_names, *exporters_names[len(input_names) :]]
        _name(
            result,
            source,
            outputs,
            all_input_names,
            output_names,
            axes,
        )
        if with_cases:
            _add_cases(result, source, outputs)
    return result


def _check_names(
    source: Source,
    outputs: Any,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> None:
    """Refuse names that cannot fit, before the work begins."""
    input_count = len(tensors_in(source.args, source.kwargs))
    _check_count("input_names", input_names, input_count)
    _check_count("output_names", output_names, len(tensors_in(outputs)))
    for name in output_names:
        if name in input_names:
            raise UsageError(
                "output_names",
                f"'{name}' is the name of an input",
                "give it another name",
            )


def _check_count(option: str, names: Sequence[str], count: int) -> None:
    if len(names) > count:
        raise UsageError(
            option,
            f"{len(names)} names for {count} tensors",
            "give one name each, in order",
        )


def _refuse_dynamic(dynamic_shapes: Any, dynamic_axes: Any) -> None:
    if dynamic_shapes is not None or dynamic_axes is not None:
        raise UsageError(
            "dynamic_shapes",
            "an exported program has its dynamic shapes already",
            "give them to torch.export.export, or export the module instead",
        )


def _capture(
    source: Source,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Any,
    dynamic_axes: Any,
) -> tuple[Any, Axes]:
    """The module as an ExportedProgram, and the axes that were asked to be dynamic."""
    arguments = Arguments(source.module, source.args, source.kwargs, source.where)
    older_form = dynamic_axes is not None
    shapes = dynamic_axes if older_form else dynamic_shapes
    if shapes is None:
        shapes = source.dynamic_shapes
    dynamic = arguments.dynamic(shapes, input_names, output_names, older_form)
    program = exported_program(
        source.module, source.args, source.kwargs, dynamic.tree, source.where
    )
    return program, dynamic.axes


def _name(
    result: Exported,
    source: Source,
    outputs: Any,
    input_names: Sequence[str],
    output_names: Sequence[str],
    axes: Axes,
) -> None:
    """Name inputs, outputs and dims of the exported graph."""
    model = result.model
    graph = model.graph
    given = tensors_in(source.args, source.kwargs)
    _check_tensor_count("inputs", len(given), len(graph.inputs), source.where)
    returned = tensors_in(outputs)
    _check_tensor_count("outputs", len(returned), len(graph.outputs), source.where)
    name_values(graph.inputs, input_names, model, "input_names")
    taken = {value.name for value in graph.inputs}
    defaults = [
        f"{name}_out" if name in taken else name
        for name in default_output_names(outputs)
    ]
    all_output_names = [*output_names, *defaults[len(output_names) :]]
    name_values(graph.outputs, all_output_names, model, "output_names")
    result.warnings += name_dims(model, axes)
    dims = [name or "" for name in symbolic_axes(model).values()]
    result.dims = list(dict.fromkeys(dims))
    graph.name = source.name


def _check_tensor_count(kind: str, in_torch: int, in_onnx: int, where: str) -> None:
    # numbers among the arguments become constants or inputs of the graph
    if in_torch != in_onnx:
        raise RefusedError(
            where,
            f"{in_torch} tensors are its {kind}, {in_onnx} in ONNX",
            "take and return tensors only, not numbers",
        )


def _add_cases(result: Exported, source: Source, outputs: Any) -> None:
    """Record what torch gives on the arguments, and at a second size."""
    again = call_module(source)
    first = _case(result, source.args, source.kwargs, outputs)
    result.cases.append(first)
    repeated = _case(result, source.args, source.kwargs, again)
    if repeated.compare(first.expected, None, None) is not None:
        raise CheckError(
            result.where,
            "forward gives other outputs each time, even in evaluation mode",
            "write F.dropout(x, training=self.training); or export without the comparison",
        )
    if symbolic_axes(result.model):
        _add_case_of_other_size(result, source)


def _add_case_of_other_size(result: Exported, source: Source) -> None:
    """Record a second size; a warning where torch takes none of those tried."""
    axes = symbolic_axes(result.model)
    tensors = tensors_in(source.args, source.kwargs)
    first_failure: RefusedError | None = None
    for larger in OTHER_SIZES:
        sizes: list[dict[int, int]] = [{} for _ in tensors]
        for index, axis in axes:
            sizes[index][axis] = larger(tensors[index].shape[axis])
        args, kwargs = resized(source.args, source.kwargs, sizes)
        try:
            outputs = call_module(source, args, kwargs)
        except RefusedError as error:
            first_failure = first_failure or error
            continue
        result.cases.append(_case(result, args, kwargs, outputs))
        return
    reason = getattr(first_failure, "problem", "")
    result.warnings.append(
        f"dynamic dims are not checked at a second size: torch takes none of those tried ({reason})"
    )


def _case(result: Exported, args: Any, kwargs: Any, outputs: Any) -> Case:
    graph = result.model.graph
    tensors = tensors_in(args, kwargs)
    sizes: dict[str, int] = {}
    for (index, axis), symbol in symbolic_axes(result.model).items():
        sizes.setdefault(symbol or "", tensors[index].shape[axis])
    feeds = _by_name(graph.inputs, tensors)
    expected = _by_name(graph.outputs, tensors_in(outputs))
    return Case(sizes, feeds, expected, tensors)


def _by_name(values: Sequence[ir.Value], tensors: Sequence[Any]) -> Arrays:
    names = [value.name or "" for value in values]
    return dict(zip(names, arrays(tensors), strict=True))


def run_here(exported: Exported) -> list[Arrays]:
    """Outputs of ONNX Runtime for every case, run in this process as torch's exporter does.

    Errors: CheckError where ONNX Runtime fails.
    """
    program = torch.onnx.ONNXProgram(exported.model, None)
    outputs = exported.model.graph.outputs
    try:
        with quiet():
            return [
                _by_name(outputs, program(*case.tensors)) for case in exported.cases
            ]
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        raise CheckError(
            exported.where,
            f"ONNX Runtime does not run the exported graph: {message[:300]}",
            "try another opset",
        ) from error
    finally:
        with contextlib.suppress(AttributeError):
            program.release()
