"""`quantize_static`, `quantize_dynamic` and `quantize` as onnxruntime.quantization has them.

A script moves over by its import: `from onnx_opt.compat import QuantType, quantize_static`. Names
and order of the arguments are the same. An argument that has no counterpart is named in a warning
where it is not at its default, and refused where the result would be another without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import UsageError
from ._compat.configurations import call_of
from ._compat.extra_options import percentile_of
from ._compat.nodes import ChosenLayers, NodeChoice, chosen_layers
from ._compat.notes import Notes
from ._compat.types import (
    activation_form,
    calibration_method,
    check_format,
    weight_bits,
)
from .model_forms import as_model
from .optimize import optimize
from .result import Result

__all__ = ["quantize", "quantize_dynamic", "quantize_static"]

_FROM_ONNXRUNTIME = (
    "CalibrationDataReader",
    "CalibrationMethod",
    "DynamicQuantConfig",
    "QuantFormat",
    "QuantType",
    "StaticQuantConfig",
)
Nodes = Sequence[str] | None


def __getattr__(name: str) -> Any:
    """The classes that scripts import beside the functions: onnxruntime's own."""
    if name in _FROM_ONNXRUNTIME:
        from ..runtime.quantization_classes import quantization_class

        return quantization_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def quantize_static(
    model_input: Any,
    model_output: str | Path,
    calibration_data_reader: Any = None,
    quant_format: Any = None,
    op_types_to_quantize: Nodes = None,
    per_channel: bool = False,
    reduce_range: bool = False,
    activation_type: Any = None,
    weight_type: Any = None,
    nodes_to_quantize: Nodes = None,
    nodes_to_exclude: Nodes = None,
    use_external_data_format: bool = False,
    calibrate_method: Any = None,
    calibration_providers: Sequence[str] | None = None,
    extra_options: Mapping[str, Any] | None = None,
    calibration_cache_path: str | Path | None = None,
    *,
    target: str = "cpu",
    force: bool = False,
) -> Result:
    """Quantize a model by calibration data, and write it: `optimize` with the pass `quant`.

    `calibration_data_reader`: a CalibrationDataReader, or data of any form that `optimize` takes.
    Weights always have a scale per channel; where products of 8 bits could saturate, the target
    `cpu` keeps weights that do not, with and without `reduce_range`. Layers become integers also
    where they measure slower so on this machine (`quant(measure=false)`). Methods and types that
    are not given are chosen by the pass. 16-bit activations are written for the target `generic`
    where `target` is `cpu`, whose runtime has no kernels for them. `target`, `force`: as of
    `optimize`.

    Errors: UsageError for arguments without which the result would be another, and without data;
    those of `optimize`.
    """
    notes = Notes("quantize_static")
    if calibration_data_reader is None:
        raise UsageError(
            "calibration_data_reader",
            "there is no data to calibrate on",
            "give a reader, or call quantize_dynamic, which needs none",
        )
    check_format(quant_format, notes)
    form = activation_form(activation_type)
    if form == "int16" and target == "cpu":
        target = "generic"
    options: dict[str, Any] = {
        "form": form,
        "bits": _bits(weight_type, reduce_range, target, notes),
        "calibration": calibration_method(calibrate_method),
    }
    percentile = percentile_of(extra_options, notes)
    if percentile is not None:
        options["percentile"] = percentile
    if calibration_providers:
        notes.add(
            f"calibration_providers={list(calibration_providers)}",
            "the model is calibrated on the provider of its target",
        )
    if calibration_cache_path is not None:
        notes.add(
            f"calibration_cache_path={calibration_cache_path}",
            "ranges are measured anew, and not kept",
        )
    _note_external_data(use_external_data_format, notes)
    choice = _node_choice(op_types_to_quantize, nodes_to_quantize, nodes_to_exclude)
    return _quantized(
        model_input,
        model_output,
        options,
        choice,
        notes,
        data=calibration_data_reader,
        target=target,
        force=force,
    )


def quantize_dynamic(
    model_input: Any,
    model_output: str | Path,
    op_types_to_quantize: Nodes = None,
    per_channel: bool = False,
    reduce_range: bool = False,
    weight_type: Any = None,
    nodes_to_quantize: Nodes = None,
    nodes_to_exclude: Nodes = None,
    use_external_data_format: bool = False,
    extra_options: Mapping[str, Any] | None = None,
    *,
    target: str = "cpu",
    force: bool = False,
) -> Result:
    """Quantize a model whose activations are quantized at run time: `quant(dynamic)`, no data.

    The arguments are those of `quantize_static`. Errors: as of `quantize_static`.
    """
    notes = Notes("quantize_dynamic")
    options: dict[str, Any] = {
        "form": "dynamic",
        "bits": _bits(weight_type, reduce_range, target, notes),
    }
    percentile_of(extra_options, notes)
    _note_external_data(use_external_data_format, notes)
    choice = _node_choice(op_types_to_quantize, nodes_to_quantize, nodes_to_exclude)
    return _quantized(
        model_input,
        model_output,
        options,
        choice,
        notes,
        data=None,
        target=target,
        force=force,
    )


def quantize(
    model_input: Any,
    model_output: str | Path,
    quant_config: Any,
    *,
    target: str = "cpu",
    force: bool = False,
) -> Result:
    """Quantize a model by a configuration: a StaticQuantConfig or a DynamicQuantConfig.

    Its values are the arguments of `quantize_static` and `quantize_dynamic`. Errors: UsageError for
    anything else, and for values without which the result would be another.
    """
    call, arguments = call_of(quant_config)
    return _CALLS[call](
        model_input, model_output, **arguments, target=target, force=force
    )


_CALLS: dict[str, Callable[..., Result]] = {
    "quantize_static": quantize_static,
    "quantize_dynamic": quantize_dynamic,
}


def _node_choice(op_types: Nodes, include: Nodes, exclude: Nodes) -> NodeChoice:
    """Layers by operator and name; empty lists choose nothing in particular, as None does."""
    return NodeChoice(op_types or None, include or None, exclude or None)


def _quantized(
    model_input: Any,
    model_output: str | Path,
    options: Mapping[str, Any],
    choice: NodeChoice,
    notes: Notes,
    *,
    data: Any,
    target: str,
    force: bool,
) -> Result:
    """Quantize the chosen layers, and say what is not followed, at the line of the script."""
    model = as_model(model_input)
    layers = _layers(model, choice, notes)
    every = {**options, **_layer_options(layers)}
    notes.warn()
    return optimize(
        model,
        [("quant", every)],
        out=model_output,
        data=data,
        target=target,
        force=force,
        bench=False,
    )


def _bits(weight_type: Any, reduce_range: bool, target: str, notes: Notes) -> int:
    from ..passes._core.targets import target_named

    bits = weight_bits(weight_type, notes)
    # where no pair of weights saturates, the eighth bit does no harm
    if reduce_range and not target_named(target).quant.limits_pairs:
        return min(bits, 7)
    return bits


def _note_external_data(is_asked: bool, notes: Notes) -> None:
    if is_asked:
        notes.add(
            "use_external_data_format=True",
            "weights lie beside the file where it would be too large",
        )


def _layers(model: Any, choice: NodeChoice, notes: Notes) -> ChosenLayers:
    """The layers that are chosen; the model is read only where names or operators are given."""
    if choice == NodeChoice(None, None, None):
        return ChosenLayers()
    if isinstance(model, Path):
        from ..frontends.onnx_file import load

        model = load(model)
    return chosen_layers(model, choice, notes)


def _layer_options(layers: ChosenLayers) -> dict[str, Any]:
    return {
        "include": layers.include,
        "exclude": layers.exclude,
        "tables": "int8" if layers.tables else "float",
        # who calls these wants integers, of small models and on a busy machine, too
        "measure": False,
    }
