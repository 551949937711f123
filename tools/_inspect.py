"""The facts of `onnx-opt inspect`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import OnnxOptError
from ..frontends.onnx_file import load
from ..passes._core.context import NullContext
from ..passes._core.contract import Pass
from ..passes._core.graph import all_nodes, weights_of
from ..passes._core.lazy import blocks
from ..passes._core.normalize import normalize
from ..passes._core.ops import QUANT_OPS
from ..passes._core.registry import pass_class, pass_names
from ..passes._core.requirements import requirements_of
from ..runtime.hardware import hardware
from ..runtime.worker import Worker
from ._run.checks import Port, first_line, interface_of
from ._run.figures import figures_of, weight_bytes
from ._run.kernels import is_quantized
from ._run.provenance import provenance
from ._run.result import LARGE
from ._run.saturation import saturating_pairs


def inspection(path: Path) -> dict[str, Any]:
    """Everything about a model that needs no run of it; weights above 1 GiB are not read."""
    model = load(path)
    large = weight_bytes(model) > LARGE
    facts: dict[str, Any] = {
        "model": {
            "path": str(path),
            "name": model.graph.name,
            "ir_version": model.ir_version,
            "producer": " ".join(
                filter(None, (model.producer_name, model.producer_version))
            )
            or None,
            "opset": {
                domain or "ai.onnx": version
                for domain, version in model.opset_imports.items()
            },
        },
        "inputs": list(map(_port, interface_of(model).inputs)),
        "outputs": list(map(_port, interface_of(model).outputs)),
        "weights": weight_places(model),
        "provenance": provenance(model),
    }
    figures = figures_of(model, path, count_nonzero=not large)
    normalize(model)
    facts["requires"] = requirements_of(model).as_dict()
    facts.update(integers(model, large))
    figures.macs = figures_of(model, None, count_nonzero=False).macs
    ops = Counter(
        f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in all_nodes(model)
    )
    sparsity = (
        None
        if figures.nonzero is None or not figures.params
        else 1 - figures.nonzero / figures.params
    )
    return {
        **facts,
        "figures": dataclasses.asdict(figures),
        "sparsity": sparsity,
        "ops": dict(ops.most_common()),
        "quantized": {
            op: n for op, n in ops.items() if op.rpartition(".")[2] in QUANT_OPS
        },
        "layers": layers_by_size(model, count_zeros=not large),
        "passes": []
        if large
        else [
            reach(pass_class(name), model)
            for name in pass_names()
            if pass_class(name).effect == "lossy"
        ],
    }


def integers(model: ir.Model, large: bool) -> dict[str, Any]:
    """Of a quantized model, the weight pairs that may saturate (None where not counted), and what
    this CPU does.
    """
    if not is_quantized(model):
        return {"saturation": None, "hardware": None}
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
    """Where tensors live in the file, as bytes and number of tensors."""
    places = {
        name: {"bytes": 0, "tensors": 0}
        for name in (
            "main_graph",
            "main_constants",
            "subgraphs",
            "subgraph_constants",
            "function_constants",
        )
    }

    def add(place: str, tensor: Any) -> None:
        places[place]["bytes"] += tensor.nbytes
        places[place]["tensors"] += 1

    for graph in model.graphs():
        main = graph is model.graph
        for value in graph.initializers.values():
            if value.const_value is not None:
                add("main_graph" if main else "subgraphs", value.const_value)
        for tensor in _constants(graph):
            add("main_constants" if main else "subgraph_constants", tensor)
    for function in model.functions.values():
        for node in function.all_nodes():
            for tensor in _constants([node]):
                add("function_constants", tensor)
    return places


def _constants(nodes: Iterable[ir.Node]) -> list[Any]:
    return [
        attribute.value
        for node in nodes
        if node.op_type == "Constant"
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()
    ]


def layers_by_size(model: ir.Model, count_zeros: bool) -> list[dict[str, Any]]:
    """Every weight, largest first: name, the ops that use it, type, shape, bytes, sparsity."""
    weights, _ = weights_of(model)
    return [
        {
            "name": w.name,
            "ops": sorted(
                {
                    f"{node.op_type} {node.name or node.outputs[0].name}"
                    for node, _ in w.uses
                }
            ),
            "dtype": str(w.tensor.dtype),
            "shape": list(w.tensor.shape.numpy()),
            "bytes": w.tensor.nbytes,
            "sparsity": _sparsity(w.tensor) if count_zeros and w.size else None,
        }
        for w in sorted(weights, key=lambda w: -w.tensor.nbytes)
    ]


def _sparsity(tensor: Any) -> float:
    nonzero = sum(int(np.count_nonzero(block)) for _, block in blocks(tensor))
    return 1 - nonzero / int(tensor.size)


def reach(kind: type[Pass], model: ir.Model) -> dict[str, Any]:
    """What a pass does to a clone of the model with its default options and without data."""
    found: dict[str, Any] = {
        "pass": kind.name,
        "changed": 0,
        "stats": {},
        "declined": [],
        "error": None,
    }
    try:
        outcome = kind().run(model.clone(), NullContext())
    except OnnxOptError as error:
        found["error"] = f"{error.where}: {error.problem}"
    except Exception as error:  # a pass that fails must not hide the rest of the facts
        found["error"] = f"{type(error).__name__}: {first_line(error)}"
    else:
        found.update(
            changed=outcome.changed,
            stats=outcome.stats,
            declined=[dataclasses.asdict(d) for d in outcome.declined],
        )
    return found
