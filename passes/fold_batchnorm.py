"""Folding of BatchNormalization into the weights before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ._base import Context, Effect, Pass, PassOutcome
from ._core.edit import Edit, is_constant, rank_of, used_once
from ._core.graph import label, producer_of
from ._core.ops import normalizes_by_batch
from ._simplify.affine import FOLDABLE, Affine, FoldTarget, fold, target_of
from ._simplify.folding import fold_nodes


@dataclass(frozen=True)
class FoldBatchnorm(Pass):
    """Fold inference BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before it.

    Effect: exact. Weights are recomputed in float64 and rounded once. Declines training mode;
    weights that are shared, computed, overridable or 16-bit; and outputs that have other readers.

    Shapes: weight (M, C, *K) * scale (M,); bias (M,) * scale + shift, where scale = gamma /
    sqrt(var + epsilon) and shift = beta - mean * scale. A MatMul of two matrices becomes a Gemm.

    Stats: `folded` (count).

    Source: Jacob et al., Quantization and training of neural networks, CVPR 2018, section 3.2
    (arXiv:1712.05877).
    """

    name: ClassVar[str] = "fold-batchnorm"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "nodes"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        outcome = fold_nodes(model, self.name, ("BatchNormalization",), _fold)
        outcome.stats["folded"] = outcome.changed
        return outcome


def _fold(node: ir.Node, edit: Edit) -> str | None:
    """Fold one node; the reason if it stays."""
    reason = _not_a_fixed_map(node, edit.opset)
    if reason is not None:
        return reason
    affine = _affine(node)
    target = _target(node, edit)
    if target is None:
        return (
            "no Conv, ConvTranspose, Gemm or MatMul of constant weight makes its input"
        )
    if isinstance(target, str):
        return target
    if target.channels != len(affine.scale):
        own = len(affine.scale)
        return f"it has {own} channels and {label(target.node)} has {target.channels}"
    if not edit.bypass(node, target.node.outputs[0]):
        return "it gives an output of the model, whose name stays"
    fold(target, affine, edit)
    return None


def _not_a_fixed_map(node: ir.Node, opset: int) -> str | None:
    """Reason why a BatchNormalization is no known factor and shift for each channel."""
    if normalizes_by_batch(node):
        return "it is in training mode"
    old_form = "an old form of the op, that is not a fixed factor for each channel"
    # spatial=0, of opsets before 9: a factor for each element
    if not node.attributes.get_int("spatial", 1):
        return old_form
    if opset < 7 and not node.attributes.get_int("is_test", 0):
        return old_form
    parameters = node.inputs[1:5]
    if not all(is_constant(value) for value in parameters):
        return "its parameters are not constants"
    if any(value is None or value.dtype not in FOLDABLE for value in parameters):
        return "parameters of 16 bits would be rounded"
    return None


def _affine(node: ir.Node) -> Affine:
    """Scale and shift of each channel, from constant parameters."""
    parameters = []
    for value in node.inputs[1:5]:
        assert value is not None
        assert value.const_value is not None
        parameters.append(value.const_value.numpy().astype(np.float64))
    gamma, beta, mean, variance = parameters
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    return Affine(scale, beta - mean * scale)


def _target(node: ir.Node, edit: Edit) -> FoldTarget | str | None:
    """The node before, as in `target_of`; a MatMul becomes a Gemm, which has a bias."""
    source = node.inputs[0]
    matmul = producer_of(source, "MatMul")
    if source is None or matmul is None:
        return target_of(source)
    weight = matmul.inputs[1]
    no_matrices = "the MatMul before it is not one of a matrix and constant weights"
    if rank_of(matmul.inputs[0]) != 2:
        return no_matrices
    if rank_of(weight) != 2:
        return no_matrices
    if weight is None or not is_constant(weight):
        return no_matrices
    is_shared = not used_once(source) or not used_once(weight)
    if is_shared or weight.dtype not in FOLDABLE:
        return "the MatMul before it is shared"
    # a MatMul has no bias to fold the shift into
    gemm = edit.node_before(
        matmul,
        "Gemm",
        [matmul.inputs[0], weight],
    )
    output = gemm.outputs[0]
    output.type = source.type
    output.shape = source.shape
    edit.bypass(matmul, output)
    return target_of(output)
