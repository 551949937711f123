"""The facts of `onnx-opt inspect`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import OnnxOptError, UsageError
from ..frontends.onnx_file import load
from ..passes._core.context import NullContext
from ..passes._core.contract import Pass
from ..passes._core.graph import all_nodes, initializers, label
from ..passes._core.lazy import blocks
from ..passes._core.normalize import normalize
from ..passes._core.ops import QUANT_OPS, is_standard
from ..passes._core.registry import pass_class, pass_names
from ..passes._core.requirements import requirements_of
from ..passes._core.stats import model_macs
from ..passes._core.tabular import held_bytes, held_numbers
from ..passes._core.weights import Weight, weights_of
from ..passes.unpack import restore_packed
from ..runtime.hardware import hardware
from ..runtime.worker import Worker
from ._run.checks import Port, first_line, interface_of
from ._run.figures import (
    LARGE,
    Figures,
    figures_of,
    tensor_attributes,
    weight_bytes,
)
from ._run.kernels import is_quantized, saturating_pairs
from ._run.load import opsets_of, producer_of
from ._run.provenance import provenance

PLACES = (
    "main_graph",
    "main_constants",
    "subgraphs",
    "subgraph_constants",
    "function_constants",
    "operator_attributes",
)
"""Places of tensors in a file, in the order of reports."""


def inspection(path: Path) -> dict[str, Any]:
    """Facts about a model that need no run of it; weights above 1 GiB are not read."""
    model = load(path)
    large = weight_bytes(model) > LARGE
    interface = interface_of(model)
    facts: dict[str, Any] = {
        "model": {
            "path": str(path),
            "name": model.graph.name,
            "ir_version": model.ir_version,
            "producer": producer_of(model),
            "opset": opsets_of(model),
        },
        "inputs": [_port(port) for port in interface.inputs],
        "outputs": [_port(port) for port in interface.outputs],
        "weights": weight_places(model),
        "provenance": provenance(model),
    }
    figures = figures_of(model, path, count_nonzero=not large)
    # everything above tells of the file as it is; what follows reads the graph
    normalize(model)
    facts["requires"] = requirements_of(model).as_dict()
    facts["packed"] = restore_packed(model)
    facts.update(integers(model, large))
    figures.macs = model_macs(model)
    ops = Counter(_op_name(node) for node in all_nodes(model))
    quantized = {op: n for op, n in ops.items() if op.rpartition(".")[2] in QUANT_OPS}
    return {
        **facts,
        "figures": figures.as_dict(),
        "sparsity": _model_sparsity(figures),
        "ops": dict(ops.most_common()),
        "quantized": quantized,
        "layers": layers_by_size(model, count_zeros=not large),
        "others": others_by_size(model),
        "passes": [] if large else _lossy_trials(model),
    }


def _op_name(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _model_sparsity(figures: Figures) -> float | None:
    if figures.nonzero is None or not figures.params:
        return None
    return 1 - figures.nonzero / figures.params


def integers(model: ir.Model, large: bool) -> dict[str, Any]:
    """`saturation`: weight pairs that may saturate; `hardware`: this CPU.

    Both None for a model that is not quantized; pairs of large models are not counted.
    """
    if not is_quantized(model):
        return {"saturation": None, "hardware": None}
    # a kernel tells what the flags of a CPU do not: they may be masked
    with Worker() as worker:
        machine = hardware(worker)
    return {
        "saturation": None if large else saturating_pairs(model).to_json(),
        "hardware": machine.to_json(),
    }


def _port(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "type": port.type,
        "shape": None if port.shape is None else list(port.shape),
        "default": port.has_default,
    }


def weight_places(model: ir.Model) -> dict[str, dict[str, int]]:
    """Places of tensors in the file, each with its bytes and number of tensors."""
    places = {name: {"bytes": 0, "tensors": 0} for name in PLACES}

    def add(place: str, tensor: Any) -> None:
        places[place]["bytes"] += tensor.nbytes
        places[place]["tensors"] += 1

    for graph in model.graphs():
        is_main = graph is model.graph
        for value in graph.initializers.values():
            if value.const_value is not None:
                add("main_graph" if is_main else "subgraphs", value.const_value)
        for tensor in _constants(graph):
            add("main_constants" if is_main else "subgraph_constants", tensor)
    for function in model.functions.values():
        for tensor in _constants(function.all_nodes()):
            add("function_constants", tensor)
    for node in all_nodes(model):
        for tensor in held_numbers(node):
            add("operator_attributes", tensor)
    return places


def _constants(nodes: Iterable[ir.Node]) -> Iterator[Any]:
    for node in nodes:
        if is_standard(node, "Constant"):
            yield from tensor_attributes(node)


def layers_by_size(model: ir.Model, count_zeros: bool) -> list[dict[str, Any]]:
    """Every weight, largest first: name, the ops that use it, type, shape, bytes, sparsity."""
    weights, _ = weights_of(model)
    # by the negative: a reversed sort would turn the order of equal sizes
    weights.sort(key=lambda weight: -weight.tensor.nbytes)
    return [_layer(weight, count_zeros) for weight in weights]


def _layer(weight: Weight, count_zeros: bool) -> dict[str, Any]:
    tensor = weight.tensor
    return {
        "name": weight.name,
        "ops": sorted({label(node) for node, _ in weight.uses}),
        "dtype": str(tensor.dtype),
        "shape": list(tensor.shape.numpy()),
        "bytes": tensor.nbytes,
        "sparsity": _sparsity(tensor) if count_zeros and weight.size else None,
    }


def others_by_size(model: ir.Model) -> list[dict[str, Any]]:
    """Everything else that the file holds, largest first, in the form of `layers_by_size`.

    Tables, biases and other constants; tree ensembles and their kind, whose bytes are attributes.
    """
    weights, _ = weights_of(model)
    known = {weight.value for weight in weights}
    others: list[dict[str, Any]] = []
    for value in initializers(model):
        if value in known or value.const_value is None:
            continue
        tensor = value.const_value
        others.append(
            {
                "name": value.name,
                "ops": sorted({label(node) for node in value.consumers()}),
                "dtype": str(tensor.dtype),
                "shape": list(tensor.shape.numpy()),
                "bytes": tensor.nbytes,
                "sparsity": None,
            }
        )
    for node in all_nodes(model):
        numbers = held_numbers(node)
        if numbers:
            others.append(
                {
                    "name": node.name or node.outputs[0].name,
                    "ops": [label(node)],
                    "dtype": "FLOAT",
                    "shape": [sum(int(tensor.size) for tensor in numbers)],
                    "bytes": held_bytes(node),
                    "sparsity": None,
                }
            )
    others.sort(key=lambda part: -int(part["bytes"]))
    return others


def _sparsity(tensor: Any) -> float:
    # in blocks: a weight may be larger than memory
    nonzero = sum(int(np.count_nonzero(block)) for _, block in blocks(tensor))
    return 1 - nonzero / int(tensor.size)


def _lossy_trials(model: ir.Model) -> list[dict[str, Any]]:
    kinds = [pass_class(name) for name in pass_names()]
    return [trial(kind, model) for kind in kinds if kind.effect == "lossy"]


def trial(kind: type[Pass], model: ir.Model) -> dict[str, Any]:
    """Account of a pass on a clone of the model, with its default options and without data."""
    found: dict[str, Any] = {
        "pass": kind.name,
        "changed": 0,
        "stats": {},
        "declined": [],
        "error": None,
    }
    try:
        # a clone: every pass starts from the model as it is
        outcome = kind().run(model.clone(), NullContext())
    except UsageError as error:
        # of a default pass: it asks for data, which inspect has not
        found["error"] = f"needs --data: {error.problem}"
    except OnnxOptError as error:
        found["error"] = f"{error.where}: {error.problem}"
    except Exception as error:
        # a pass that fails must not hide the rest of the facts
        found["error"] = f"{type(error).__name__}: {first_line(error)}"
    else:
        found.update(
            changed=outcome.changed,
            stats=outcome.stats,
            declined=[dataclasses.asdict(d) for d in outcome.declined],
        )
    return found
