"""Checks of a model by onnx's checker and strict shape inference."""

from __future__ import annotations

import functools

import onnx
import onnx_ir as ir

from .graph import all_nodes
from .infer import FAILURES, PROTOBUF_LIMIT, without_weights
from .ops import is_standard

ASIDE = "onnx_opt.deprecated"
"""Domain of deprecated operators while a model is checked."""


def structural_problem(model: ir.Model) -> str:
    """Complaint of onnx's checker or strict shape inference in one line; "" if there is none.

    The weights stay out of it. Empty also for a model too large to be shown to them.
    """
    model = deprecated_set_aside(model)
    with without_weights(model):
        proto = ir.to_proto(model)
    if proto.ByteSize() >= PROTOBUF_LIMIT:
        return ""
    try:
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=False
        )
    except FAILURES as error:
        return " ".join(str(error).split())[:300]
    return ""


def deprecated_set_aside(model: ir.Model) -> ir.Model:
    """The model or, where it has deprecated operators, a clone in which they are unknown ones.

    The checker refuses them and looks no further; runtimes run those that have a body.
    """
    opset = model.opset_imports.get("", 1)
    if not any(_is_deprecated(node, opset) for node in all_nodes(model)):
        return model
    clone = model.clone()
    for node in all_nodes(clone):
        if _is_deprecated(node, opset):
            node.domain = ASIDE
    clone.opset_imports[ASIDE] = 1
    for function in clone.functions.values():
        function.opset_imports[ASIDE] = 1
    return clone


def _is_deprecated(node: ir.Node, opset: int) -> bool:
    return is_standard(node) and _has_deprecated(node.op_type, opset)


@functools.cache
def _has_deprecated(op_type: str, opset: int) -> bool:
    # an operator that is not known is refused for that
    if not onnx.defs.has(op_type, opset):
        return False
    return bool(onnx.defs.get_schema(op_type, opset).deprecated)
