"""Preparation of a model by an expert, for a tool that stumbles over it."""

from __future__ import annotations

import onnx
from onnx import numpy_helper, version_converter


def lifted_to_17(model: str, out: str) -> str:
    """Path of the model in opset 17 where it was older, with tensors of Constant nodes as
    initializers.
    """
    upgraded = f"{out}.17.onnx"
    loaded = onnx.load(model)
    old = next(o.version for o in loaded.opset_import if o.domain == "") < 17
    onnx.save(
        _lifted(version_converter.convert_version(loaded, 17) if old else loaded),
        upgraded,
    )
    return upgraded


def _lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in list(model.graph.node):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = numpy_helper.from_array(
                numpy_helper.to_array(node.attribute[0].t), node.output[0]
            )
            model.graph.initializer.append(tensor)
            model.graph.node.remove(node)
    return model
