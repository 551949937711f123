"""BatchNormalization into the weights before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ._base import Context, Declined, Effect, Pass, PassOutcome
from ._core.edit import Edit, is_constant, rank_of, used_once
from ._core.graph import graphs_of, label
from ._simplify.affine import FLOATS, Affine, Target, fold, target_of


@dataclass(frozen=True)
class FoldBatchnorm(Pass):
    """Fold BatchNormalization in inference into the Conv, ConvTranspose, Gemm or MatMul before it.

    Effect: exact. Weights are recomputed in float64 and rounded once. Declines training mode,
    weights that are shared, computed, overridable or of 16 bits, and outputs that something else
    uses too.

    Shapes: weight (M, C, *K) * scale (M,); bias (M,) * scale + shift, where scale = gamma /
    sqrt(var + epsilon) and shift = beta - mean * scale. A MatMul of matrices becomes a Gemm.

    Stats: `folded` (count).

    Source: Jacob et al., Quantization and training of neural networks, CVPR 2018, section 3.2
    (arXiv:1712.05877).
    """

    name: ClassVar[str] = "fold-batchnorm"
    effect: ClassVar[Effect] = "exact"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        edit, declined, count = Edit(model), list[Declined](), 0
        for graph in graphs_of(model):
            for node in graph:
                if node.op_type == "BatchNormalization" and node.domain == "":
                    reason = _fold(node, edit)
                    count += reason is None
                    if reason is not None:
                        declined.append(Declined(label(node), reason))
        return PassOutcome(count, {"folded": count}, declined)


def _fold(node: ir.Node, edit: Edit) -> str | None:
    """Fold one node; the reason if it stays."""
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]) or (
        node.attributes.get_int("training_mode", 0) != 0
    ):
        return "it is in training mode"
    if not node.attributes.get_int("spatial", 1) or (
        edit.opset < 7 and not node.attributes.get_int("is_test", 0)
    ):
        return "an old form of the op, that is not a fixed factor for each channel"
    if not all(is_constant(v) for v in node.inputs[1:5]):
        return "its parameters are not constants"
    if any(v is None or v.dtype not in FLOATS for v in node.inputs[1:5]):
        return "parameters of 16 bits would be rounded"
    affine = _affine(node)
    target = _target(node, edit, len(affine.scale))
    if target is None:
        return (
            "no Conv, ConvTranspose, Gemm or MatMul of constant weight makes its input"
        )
    if isinstance(target, str):
        return target
    if target.channels != len(affine.scale):
        return f"it has {len(affine.scale)} channels and {label(target.node)} has {target.channels}"
    if not edit.bypass(node, target.node.outputs[0]):
        return "its output must keep its name"
    fold(target, affine, edit)
    return None


def _affine(node: ir.Node) -> Affine:
    parameters = []
    for value in node.inputs[1:5]:
        assert value is not None
        assert value.const_value is not None
        parameters.append(value.const_value.numpy().astype(np.float64))
    gamma, beta, mean, variance = parameters
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return Affine(scale, beta - mean * scale)


def _target(node: ir.Node, edit: Edit, channels: int) -> Target | str | None:
    source = node.inputs[0]
    matmul = source.producer() if source is not None else None
    if (
        source is None
        or matmul is None
        or matmul.op_type != "MatMul"
        or matmul.domain != ""
    ):
        return target_of(source)
    weight = matmul.inputs[1]
    if (
        rank_of(matmul.inputs[0]) != 2
        or not is_constant(weight)
        or weight is None
        or rank_of(weight) != 2
    ):
        return "the MatMul before it is not one of a matrix and constant weights"
    if not used_once(source) or not used_once(weight) or weight.dtype not in FLOATS:
        return "the MatMul before it is shared"
    gemm = edit.node_before(matmul, "Gemm", [matmul.inputs[0], weight])
    gemm.outputs[0].type, gemm.outputs[0].shape = source.type, source.shape
    edit.bypass(matmul, gemm.outputs[0])
    return target_of(gemm.outputs[0])
