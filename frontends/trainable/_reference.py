"""Ops that have no gradient and no torch kernel (strings, trees, images): onnx's own numpy kernels,
detached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from ... import RefusedError
from ...passes._core.graph import label
from ...passes._core.ops import is_standard
from ._dtypes import CARRIERS, from_carrier, to_carrier
from ._registry import Call

OTHER_OPSET = 21
"""Opset of the standard's ops beside a node of another domain; none of them is run."""


def reference_kernel(
    node: ir.Node, attributes: dict[str, Any], call: Call
) -> Callable[..., tuple[Any, ...]]:
    """Make a function (device, inputs) -> outputs that runs one node on numpy arrays.

    Errors: RefusedError if onnx has no kernel either.
    """
    # an import that models without such ops are spared
    from onnx.reference import ReferenceEvaluator

    names = []
    for index, value in enumerate(node.inputs):
        is_given = value is not None and value.name != ""
        names.append(f"i{index}" if is_given else "")
    outputs = [f"o{index}" for index in range(len(node.outputs))]
    try:
        single = _single_node(
            node,
            attributes,
            names,
            outputs,
            call.opset,
        )
        evaluator = ReferenceEvaluator(single)
    except Exception as error:
        # the evaluator raises whatever its own lookup happens to meet
        raise _refused(node) from error

    def run(device: torch.device, *values: Any) -> tuple[Any, ...]:
        feeds = {}
        for name, value, dtype in zip(names, values, call.inputs, strict=True):
            if name:
                feeds[name] = to_numpy(value, dtype)
        results = evaluator.run(None, feeds)
        return tuple(to_torch_value(result, device) for result in results)

    # a graph break: torch cannot trace onnx's evaluator
    kernel: Callable[..., tuple[Any, ...]] = torch.compiler.disable(run)
    return kernel


def _refused(node: ir.Node) -> RefusedError:
    problem = f"no kernel for {node.domain or 'ai.onnx'}.{node.op_type}"
    before = [f"'{value.name}'" for value in node.inputs if value is not None]
    if before:
        fix = f"end the model before it, at {', '.join(before)}"
    else:
        fix = "remove it from the model"
    return RefusedError(label(node), problem, fix)


def _single_node(
    node: ir.Node,
    attributes: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
    opset: int,
) -> onnx.ModelProto:
    """Make a model of one node, with the attributes of the enclosing function's call."""
    resolved = []
    for name, value in attributes.items():
        kind = node.attributes[name].type
        resolved.append(ir.Attr(name, kind, value))
    plain = ir.Node(
        node.domain,
        node.op_type,
        [],
        resolved,
        num_outputs=len(outputs),
    )
    proto = ir.to_proto(plain)
    del proto.output[:]
    proto.input.extend(inputs)
    proto.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [_untyped(name) for name in inputs if name],
        [_untyped(name) for name in outputs],
    )
    versions = {node.domain: opset}
    versions[""] = opset if is_standard(node) else OTHER_OPSET
    imports = []
    for domain, version in versions.items():
        imports.append(onnx.helper.make_opsetid(domain, version))
    return onnx.helper.make_model(graph, opset_imports=imports)


def _untyped(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_value_info(name, onnx.TypeProto())


def to_numpy(value: Any, dtype: ir.DataType | None) -> Any:
    """Return a carried value as numpy has it.

    Arrays of the ONNX type, lists of them for sequences; None stays.
    """
    if isinstance(value, torch.Tensor):
        assert dtype is not None
        return from_carrier(value, dtype)
    if isinstance(value, list):
        return [to_numpy(item, dtype) for item in value]
    return value


def to_torch_value(value: Any, device: torch.device) -> Any:
    """Return a numpy result in its carrier; strings stay arrays, sequences lists."""
    if isinstance(value, list):
        return [to_torch_value(item, device) for item in value]
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "O" and array.size:
        # some kernels of the reference give numbers as objects
        first = array.reshape(-1)[0]
        if not isinstance(first, (str, bytes)):
            array = np.array(array.tolist())
    if array.dtype.kind in "OUST":
        return array
    dtype = ir.DataType.from_numpy(array.dtype)
    if dtype not in CARRIERS:
        return array
    return to_carrier(array, dtype).to(device)
