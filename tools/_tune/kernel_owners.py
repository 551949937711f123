"""The layers that kernels of ONNX Runtime belong to: those whose weights the kernels multiply by.

ONNX Runtime fuses nodes, and moves values into other layouts. A kernel is known by the names of its
outputs, which mostly are those of the last node that went into it, else by its own name: ONNX
Runtime makes that from the name of a node or value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from ...passes._core.context import KernelNode
from ...passes._core.weights import weights_of
from .._run.loss_probes import Twins

SERVE_NEXT = frozenset({"DynamicQuantizeLinear"})
"""Ops that serve the layer behind them; all others serve the one before."""

ADDED = re.compile(r"(_nchwc|_quant|_token_\d+)+$")
"""Ends that ONNX Runtime adds to names: for channels in blocks, for integers, to be unique."""

Owners = dict[str, str]
"""Names of weights by the names of the values and nodes that belong to their layers."""


def owners_of(whole: ir.Model, result: ir.Model) -> Owners:
    """Owners in a result of the float model `whole`; what lies between layers is the former's."""
    twins = Twins(result)
    layers: dict[ir.Node, str] = {}
    weights, _ = weights_of(whole)
    for weight in weights:
        for node, _ in weight.uses:
            twin = twins.layer(node)
            if twin is not None:
                layers[twin] = weight.name
    found: dict[ir.Node, str] = {}
    nodes = list(result.graph)
    for node in nodes:
        owner = layers.get(node)
        if owner is None and node.op_type not in SERVE_NEXT:
            owner = _last(_producers(node), found)
        if owner is not None:
            found[node] = owner
    # what is before the first layer, and what makes integers, is the next one's
    for node in reversed(nodes):
        if node not in found:
            owner = _last(_readers(node), found)
            if owner is not None:
                found[node] = owner
    names: Owners = {}
    for node, owner in found.items():
        if node.name:
            names[node.name] = owner
        for value in node.outputs:
            if value.name:
                names[value.name] = owner
    return names


def with_names(model: ir.Model) -> ir.Model:
    """A copy whose nodes all have a name: ONNX Runtime tells times by it."""
    named = model.clone()
    taken = {node.name for node in named.graph}
    for node in named.graph:
        if not node.name:
            name = node.outputs[0].name or ""
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
    return named


def _producers(node: ir.Node) -> list[ir.Node]:
    found = []
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None:
            found.append(producer)
    return found


def _readers(node: ir.Node) -> list[ir.Node]:
    found = []
    for value in node.outputs:
        found += [use.node for use in value.uses()]
    return found


def _last(nodes: Iterable[ir.Node], owners: Mapping[ir.Node, str]) -> str | None:
    owner = None
    for node in nodes:
        owner = owners.get(node, owner)
    return owner


def kernel_owners(kernels: Sequence[KernelNode], owners: Owners) -> list[str | None]:
    """The weight that each kernel belongs to; None where nothing tells."""
    found = [_by_name(kernel, owners) for kernel in kernels]
    # layouts that ONNX Runtime changes by itself, on the way to a layer or from it
    of_values: Owners = {}
    for index, kernel in enumerate(kernels):
        if found[index] is None:
            found[index] = _first(kernel.inputs, of_values)
        owner = found[index]
        if owner is not None:
            of_values.update(dict.fromkeys(kernel.outputs, owner))
    read: Owners = {}
    for index, kernel in reversed(list(enumerate(kernels))):
        if found[index] is None:
            found[index] = _first(kernel.outputs, read)
        owner = found[index]
        if owner is not None:
            read.update(dict.fromkeys(kernel.inputs, owner))
    return found


def _by_name(kernel: KernelNode, owners: Owners) -> str | None:
    names = [
        *kernel.outputs,
        kernel.name,
        ADDED.sub("", kernel.name),
    ]
    return _first(names, owners)


def _first(names: Iterable[str], owners: Owners) -> str | None:
    for name in names:
        if name in owners:
            return owners[name]
    return None
