"""PyTorch models to ONNX: nn.Module, ExportedProgram, .pt2 and Hugging Face folders.

The result is compared with torch. Needs torch; importing this module does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from .. import UsageError
from ._torch_export.cases import Arrays, Exported

OPSETS = range(18, 24)
"""Opsets that torch's exporter writes."""

Runner = Callable[[ir.Model, Sequence[Arrays]], Sequence[Arrays]]
"""Runs a model on feeds (input name -> array) and returns its outputs by name."""


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
    if callable(verify):
        exported.check(lambda feeds: verify(exported.model, feeds), atol, rtol)
    elif verify:
        from ._torch_export.export import run_here

        exported.check(lambda feeds: run_here(exported), atol, rtol)
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
    """Export like `from_torch`, without running ONNX Runtime.

    `cases`: keep what torch gives, to compare with. `where`: the model's name in errors.
    """
    require_torch()
    _check_options(opset, dynamic_shapes, dynamic_axes)
    # torch takes seconds to import, and all but this frontend work without it
    from ._torch_export.export import export

    return export(
        model,
        args,
        kwargs,
        input_names=input_names or (),
        output_names=output_names or (),
        dynamic_shapes=dynamic_shapes,
        dynamic_axes=dynamic_axes,
        opset=opset,
        with_cases=cases,
        where=where,
    )


def require_torch() -> None:
    """Refuse to go on where torch is not installed. Errors: UsageError."""
    try:
        import torch  # noqa: F401 - only asked for
    except ModuleNotFoundError as error:
        raise UsageError(
            "torch",
            "not installed, and exporting needs it",
            "pip install 'onnx-opt[torch]'",
        ) from error


def _check_options(opset: int, dynamic_shapes: Any, dynamic_axes: Any) -> None:
    lowest, highest = OPSETS[0], OPSETS[-1]
    if opset not in OPSETS:
        nearest = min(max(opset, lowest), highest)
        raise UsageError(
            "opset",
            f"{opset} is outside [{lowest}, {highest}], which torch writes",
            f"choose {nearest}; the default is 21",
        )
    if dynamic_shapes is not None and dynamic_axes is not None:
        raise UsageError(
            "dynamic_axes", "given together with dynamic_shapes", "keep dynamic_shapes"
        )


__all__ = [
    "OPSETS",
    "Exported",
    "Runner",
    "export_torch",
    "from_torch",
    "require_torch",
]
