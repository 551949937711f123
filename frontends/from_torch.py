"""PyTorch models to ONNX: nn.Module, ExportedProgram and .pt2, a Hugging Face folder; checked
against torch.

Needs torch; importing this module does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from .. import CheckError, RefusedError, UsageError

if TYPE_CHECKING:
    from ._torch_export.outputs import Arrays, Case

OPSETS = range(18, 24)
"""What torch's exporter writes."""

Runner = Callable[[ir.Model, Sequence["Arrays"]], Sequence["Arrays"]]
"""Runs a model on feeds (input name -> array) and returns its outputs by name."""

SIZES: tuple[Callable[[int], int], ...] = (
    lambda n: n + 1,
    lambda n: 2 * n,
    lambda n: n + 8,
    lambda n: n + 32,
    lambda n: 3 * n,
)
"""Second sizes of dynamic dims, tried in this order until torch itself accepts one."""


@dataclass
class Exported:
    """`model`; `cases`: what torch gives, at the given sizes and at others; `dims`: the dynamic
    dims; warnings.
    """

    model: ir.Model
    where: str
    cases: list[Case] = field(default_factory=list)
    dims: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def check(
        self,
        run: Callable[[Sequence[Arrays]], Sequence[Arrays]],
        atol: float | None = None,
        rtol: float | None = None,
    ) -> None:
        """Compare with torch. Errors: CheckError, with the output that is furthest off."""
        for case, got in zip(
            self.cases, run([case.feeds for case in self.cases]), strict=True
        ):
            problem = case.compare(got, atol, rtol)
            if problem is not None:
                raise CheckError(
                    self.where,
                    f"ONNX Runtime does not agree with torch: {problem}",
                    "set --atol and --rtol if that is close enough; else try another opset",
                )


def from_torch(
    model: Any,
    args: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    dynamic_axes: Any = None,
    opset: int = 21,
    verify: bool | Runner = True,
    atol: float | None = None,
    rtol: float | None = None,
) -> ir.Model:
    """A torch model as ONNX, weights shared with torch (nothing is copied until it is saved).

    `model`: an nn.Module (exported in evaluation mode, and left as it was), an ExportedProgram, a
    .pt2 file or a Hugging Face folder; the last three have example arguments of their own.
    `dynamic_shapes`: as torch.export takes them, with strings for dims as well: `{"x": {0:
    "batch"}}`, by argument or by input; `dynamic_axes` in the older form. `verify`: compare with
    torch on the arguments, and at a second size where dims are dynamic: True runs ONNX Runtime in
    this process, a function runs it your way. |y - y'| <= atol + rtol |y|; the defaults follow the
    type. Errors: UsageError (names, axes, opset), RefusedError (what torch.export cannot trace,
    with the line of code; checkpoints, TorchScript, pickles), CheckError (ONNX Runtime does not
    agree with torch).
    """
    exported = export_torch(
        model,
        args,
        kwargs=kwargs,
        input_names=input_names,
        output_names=output_names,
        dynamic_shapes=dynamic_shapes,
        dynamic_axes=dynamic_axes,
        opset=opset,
        cases=bool(verify),
    )
    if verify:
        if callable(verify):
            exported.check(lambda feeds: verify(exported.model, feeds), atol, rtol)
        else:
            exported.check(lambda feeds: _run_here(exported), atol, rtol)
    import warnings

    for message in exported.warnings:
        warnings.warn(message, stacklevel=2)
    return exported.model


def export_torch(
    model: Any,
    args: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    dynamic_axes: Any = None,
    opset: int = 21,
    cases: bool = True,
    where: str = "",
) -> Exported:
    """`from_torch` without running ONNX Runtime: the model and, with `cases`, what torch gives to
    compare with.
    """
    require_torch()
    from ._torch_export import capture
    from ._torch_export import graph as graph_module
    from ._torch_export import outputs as outputs_module
    from ._torch_export import source as source_module

    _check_options(opset, dynamic_shapes, dynamic_axes)
    source = source_module.opened(model, args, kwargs, where)
    result = Exported(
        ir.Model(ir.Graph([], [], nodes=[]), ir_version=10),
        source.where,
        warnings=source.warnings,
    )
    with contextlib.ExitStack() as stack:
        trained = (
            stack.enter_context(capture.evaluation(source.module))
            if source.program is None
            else 0
        )
        if trained:
            result.warnings.append(
                "the module is in training mode: exported in evaluation mode, as after .eval()"
            )
        outputs = source_module.called(source)
        outputs_module.refuse_numbers(outputs, source.where)
        _check_names(source, outputs, input_names or (), output_names or ())
        program, axes = _captured(
            source, input_names or (), output_names or (), dynamic_shapes, dynamic_axes
        )
        capture.refuse_training(program, source.where, source.program is None)
        result.model = capture.onnx_program(program, opset, source.where).model
        inputs = [value.name or "" for value in result.model.graph.inputs]
        graph_module.tidy(result.model)
        inputs[: len(input_names or ())] = input_names or ()
        _name(result, source, outputs, inputs, output_names or (), axes)
        if cases:
            _add_cases(result, source, outputs)
    return result


def require_torch() -> None:
    """Errors: UsageError where torch is not installed."""
    try:
        import torch  # noqa: F401 - only asked for
    except ModuleNotFoundError as error:
        raise UsageError(
            "torch",
            "not installed, and exporting needs it",
            "pip install 'onnx-opt[torch]'",
        ) from error


def _check_options(opset: int, dynamic_shapes: Any, dynamic_axes: Any) -> None:
    if opset not in OPSETS:
        raise UsageError(
            "opset",
            f"{opset} is outside [{OPSETS[0]}, {OPSETS[-1]}], which torch writes",
            f"choose {min(max(opset, OPSETS[0]), OPSETS[-1])}; the default is 21",
        )
    if dynamic_shapes is not None and dynamic_axes is not None:
        raise UsageError(
            "dynamic_axes", "given together with dynamic_shapes", "keep dynamic_shapes"
        )


def _check_names(
    source: Any, outputs: Any, input_names: Sequence[str], output_names: Sequence[str]
) -> None:
    """What can be said of names before the work begins."""
    from ._torch_export import inputs as inputs_module

    for option, names, values in (
        ("input_names", input_names, (source.args, source.kwargs)),
        ("output_names", output_names, (outputs,)),
    ):
        count = len(inputs_module.tensors_in(*values))
        if len(names) > count:
            raise UsageError(
                option,
                f"{len(names)} names for {count} tensors",
                "give one name each, in order",
            )
    for name in (name for name in output_names if name in input_names):
        raise UsageError(
            "output_names", f"'{name}' is the name of an input", "give it another name"
        )


def _captured(
    source: Any,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Any,
    dynamic_axes: Any,
) -> tuple[Any, Any]:
    """The ExportedProgram, and the axes that were asked to be dynamic."""
    from ._torch_export import capture
    from ._torch_export import inputs as inputs_module

    if source.program is not None:
        if dynamic_shapes is not None or dynamic_axes is not None:
            raise UsageError(
                "dynamic_shapes",
                "an exported program has its dynamic shapes already",
                "give them to torch.export.export, or export the module instead",
            )
        return source.program, {}
    if dynamic_shapes is None and dynamic_axes is None:
        dynamic_shapes = source.dynamic_shapes
    arguments = inputs_module.Arguments(
        source.module, source.args, source.kwargs, source.where
    )
    old = dynamic_shapes is None and dynamic_axes is not None
    dynamic = arguments.dynamic(
        dynamic_axes if old else dynamic_shapes, input_names, output_names, old
    )
    return capture.exported_program(
        source.module, source.args, source.kwargs, dynamic.tree, source.where
    ), dynamic.axes


def _name(
    result: Exported,
    source: Any,
    outputs: Any,
    input_names: Sequence[str],
    output_names: Sequence[str],
    axes: Any,
) -> None:
    """Names of inputs, outputs and dims."""
    from ._torch_export import graph as graph_module
    from ._torch_export import inputs as inputs_module
    from ._torch_export import outputs as outputs_module

    graph = result.model.graph
    given = inputs_module.tensors_in(source.args, source.kwargs)
    made = inputs_module.tensors_in(outputs)
    for kind, tensors, values in (
        ("inputs", given, graph.inputs),
        ("outputs", made, graph.outputs),
    ):
        if len(tensors) != len(values):
            raise RefusedError(
                source.where,
                f"{len(tensors)} tensors are its {kind}, {len(values)} in ONNX",
                "take and return tensors only, not numbers",
            )
    graph_module.name_values(graph.inputs, input_names, graph, "input_names")
    taken = {value.name for value in graph.inputs}
    names = [
        f"{name}_out" if name in taken else name
        for name in outputs_module.output_names(outputs)
    ]
    graph_module.name_values(
        graph.outputs,
        [*output_names, *names[len(output_names) :]],
        graph,
        "output_names",
    )
    _, warnings = graph_module.name_dims(result.model, axes)
    result.dims = list(
        dict.fromkeys(
            name or "" for name in graph_module.symbolic_axes(result.model).values()
        )
    )
    result.warnings += warnings
    result.model.graph.name = source.name


def _add_cases(result: Exported, source: Any, outputs: Any) -> None:
    """What torch gives on the arguments, and at a second size."""
    from ._torch_export import graph as graph_module
    from ._torch_export import inputs as inputs_module
    from ._torch_export import source as source_module

    again = source_module.called(source)
    result.cases.append(_case(result, source.args, source.kwargs, outputs))
    repeated = _case(result, source.args, source.kwargs, again)
    problem = repeated.compare(result.cases[0].expected, None, None)
    if problem is not None:
        raise CheckError(
            result.where,
            "forward gives other outputs each time, even in evaluation mode",
            "write F.dropout(x, training=self.training); or export without the comparison",
        )
    axes = graph_module.symbolic_axes(result.model)
    if not axes:
        return
    failure: Exception | None = None
    for larger in SIZES:
        sizes = [
            {
                axis: larger(tensor.shape[axis])
                for (index, axis) in axes
                if index == position
            }
            for position, tensor in enumerate(
                inputs_module.tensors_in(source.args, source.kwargs)
            )
        ]
        args, kwargs = inputs_module.resized(source.args, source.kwargs, sizes)
        try:
            outputs = source_module.called(source, args, kwargs)
        except RefusedError as error:
            failure = failure or error
            continue
        result.cases.append(_case(result, args, kwargs, outputs))
        return
    reason = getattr(failure, "problem", "")
    result.warnings.append(
        f"dynamic dims are not checked at a second size: torch takes none of those tried ({reason})"
    )


def _case(result: Exported, args: Any, kwargs: Any, outputs: Any) -> Case:
    from ._torch_export import graph as graph_module
    from ._torch_export import inputs as inputs_module
    from ._torch_export import outputs as outputs_module

    tensors = inputs_module.tensors_in(args, kwargs)
    graph = result.model.graph
    feeds = outputs_module.arrays(tensors)
    sizes: dict[str, int] = {}
    for (index, axis), symbol in graph_module.symbolic_axes(result.model).items():
        sizes.setdefault(symbol or "", tensors[index].shape[axis])
    expected = outputs_module.arrays(inputs_module.tensors_in(outputs))
    return outputs_module.Case(
        sizes,
        dict(zip((v.name or "" for v in graph.inputs), feeds, strict=True)),
        dict(zip((v.name or "" for v in graph.outputs), expected, strict=True)),
        tensors,
    )


def _run_here(exported: Exported) -> list[Arrays]:
    """ONNX Runtime as torch's exporter runs it, in this process."""
    import torch

    from ._torch_export.capture import quiet
    from ._torch_export.outputs import arrays

    names = [value.name or "" for value in exported.model.graph.outputs]
    program = torch.onnx.ONNXProgram(exported.model, None)
    try:
        with quiet():
            return [
                dict(zip(names, arrays(program(*case.tensors)), strict=True))
                for case in exported.cases
            ]
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise CheckError(
            exported.where,
            f"ONNX Runtime does not run the exported graph: {first[:300]}",
            "try another opset",
        ) from error
    finally:
        with contextlib.suppress(AttributeError):
            program.release()


__all__ = [
    "OPSETS",
    "Exported",
    "Runner",
    "export_torch",
    "from_torch",
    "require_torch",
]
