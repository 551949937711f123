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
from ._dtypes import CARRIERS, from_carrier, to_carrier
from ._registry import Call


def reference_kernel(
    node: ir.Node, attributes: dict[str, Any], call: Call
) -> Callable[..., tuple[Any, ...]]:
    """A function (device, inputs) -> outputs that runs one node on numpy arrays.

    Errors: RefusedError if onnx has no kernel either.
    """
    from onnx.reference import ReferenceEvaluator

    names = [
        "" if value is None or value.name == "" else f"i{i}"
        for i, value in enumerate(node.inputs)
    ]
    outputs = [f"o{i}" for i in range(len(node.outputs))]
    where = f"{node.op_type} {node.name or node.outputs[0].name}"
    try:
        evaluator = ReferenceEvaluator(
            _single_node(node, attributes, names, outputs, call.opset)
        )
    except Exception as error:
        before = ", ".join(
            f"'{value.name}'" for value in node.inputs if value is not None
        )
        fix = (
            f"end the model before it, at {before}"
            if before
            else "remove it from the model"
        )
        raise RefusedError(
            where, f"no kernel for {node.domain or 'ai.onnx'}.{node.op_type}", fix
        ) from error

    def run(device: torch.device, *values: Any) -> tuple[Any, ...]:
        pairs = zip(names, values, call.inputs, strict=True)
        feeds = {name: to_numpy(value, dtype) for name, value, dtype in pairs if name}
        return tuple(
            to_torch_value(result, device) for result in evaluator.run(None, feeds)
        )

    kernel: Callable[..., tuple[Any, ...]] = torch.compiler.disable(run)
    return kernel


def _single_node(
    node: ir.Node,
    attributes: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
    opset: int,
) -> onnx.ModelProto:
    resolved = [
        ir.Attr(name, node.attributes[name].type, value)
        for name, value in attributes.items()
    ]
    proto = ir.to_proto(
        ir.Node(node.domain, node.op_type, [], resolved, num_outputs=len(outputs))
    )
    del proto.output[:]
    proto.input.extend(inputs)
    proto.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [
            onnx.helper.make_value_info(name, onnx.TypeProto())
            for name in inputs
            if name
        ],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
    )
    imports = {node.domain: opset, "": opset if node.domain in ("", "ai.onnx") else 21}
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in imports.items()],
    )


def to_numpy(value: Any, dtype: ir.DataType | None) -> Any:
    """A carried value as numpy has it: arrays of the ONNX type, lists of them for sequences, None
    stays.
    """
    if isinstance(value, torch.Tensor):
        assert dtype is not None
        return from_carrier(value, dtype)
    return (
        [to_numpy(item, dtype) for item in value] if isinstance(value, list) else value
    )


def to_torch_value(value: Any, device: torch.device) -> Any:
    """A numpy result in its carrier; strings stay arrays, sequences lists."""
    if isinstance(value, list):
        return [to_torch_value(item, device) for item in value]
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    array = np.asarray(value)
    if (
        array.dtype.kind == "O"
        and array.size
        and not isinstance(array.reshape(-1)[0], (str, bytes))
    ):
        array = np.array(array.tolist())
    if array.dtype.kind in "OUST":
        return array
    dtype = ir.DataType.from_numpy(array.dtype)
    return to_carrier(array, dtype).to(device) if dtype in CARRIERS else array
