"""Quantization: 8-bit integer layers in the form that the target's runtime fuses, or 1-bit weights stored packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from ._base import Context, Declined, Effect, Option, Pass, PassOutcome, RangeMethod
from ._graph import Names, all_graphs, refresh_shapes
from ._opset import raise_opset
from ._quant.binary import inner_layers, insert_packed_float, sign_scales
from ._quant.insert import insert_dynamic, insert_static, worth_dynamic
from ._quant.layers import Layer, find_layers
from ._quant.parameters import assign
from ._quant.placement import place
from ._quant.prepare import drop_unused_initializers, mean_to_pool
from ._quant.rules import TARGETS, TargetRules
from .fold_affine import FoldAffine
from .fold_batchnorm import FoldBatchnorm
from .fold_pad import FoldPad

PER_CHANNEL_OPSET = 13


@dataclass(frozen=True)
class Quant(Pass):
    """Quantize layers to 8-bit integers (QDQ), or their weights to one bit.

    Effect: lossy. Touches Conv, Gemm and MatMul with constant float32 weights and the values between them; inputs,
    outputs and every other op keep their types. With calibration data activations get static ranges; without,
    MatMul and Gemm quantize them at run time and Conv stays float.

    Shapes: weight (M, C, *K), (K, N) -> same, int8 with one scale per output channel; bias (M,) -> int32.

    Errors: RefusedError if calibration meets NaN or Inf, or the opset cannot be raised to 13.

    Stats: `layers` (count), `weights` (count, now 8 bit or less), `pairs` (count of Q/DQ pairs), `form`.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, CVPR 2018 (arXiv:1712.05877); binary: Rastegari et al., XNOR-Net, ECCV 2016 (arXiv:1603.05279).
    """

    name: ClassVar[str] = "quant"
    effect: ClassVar[Effect] = "lossy"

    form: Literal["int8", "binary"] = Option("int8", "What weights become: 8-bit integers, or sign times a scale.")
    calibration: RangeMethod = Option("mse", "How activation ranges are read off the calibration data.")
    percentile: float = Option(99.99, "Share of values inside the range, for calibration=percentile.",
                               low=50.0, high=100.0, unit="percent")
    samples: int = Option(512, "Calibration samples to use at most.", low=1, high=10_000_000)
    include: tuple[str, ...] = Option((), "Quantize only layers whose node, weight or output name matches a pattern.")
    exclude: tuple[str, ...] = Option((), "Leave layers float whose node, weight or output name matches a pattern.")

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        rules = TARGETS[context.target]
        if rules.why_not:
            return PassOutcome(declined=[Declined(f"target {context.target}", rules.why_not)])
        plan, declined = self._plan(model, context, rules)
        if not plan:
            return PassOutcome(declined=declined)
        raise_opset(model, PER_CHANNEL_OPSET)
        names = Names(model)
        if context.has_data():
            self._prepare(model, context, names)
        plan, declined = self._plan(model, context, rules)
        outcome = PassOutcome(declined=declined)
        for part in plan:
            if part.graph is model.graph and context.has_data():
                _count(outcome, self._static(model, part, context, rules, names))
            else:
                _count(outcome, insert_packed_float(part.graph, names, part.one_bit))
                _count(outcome, insert_dynamic(part.graph, names, [v for v in part.layers if v not in part.one_bit]))
        drop_unused_initializers(all_graphs(model))
        refresh_shapes(model)
        return outcome

    def _plan(
        self, model: ir.Model, context: Context, rules: TargetRules
    ) -> tuple[list[Part], list[Declined]]:
        """The layers to quantize, graph by graph, and the reasons for the others. Changes nothing."""
        plan: list[Part] = []
        declined: list[Declined] = []
        for graph in all_graphs(model):
            layers, reasons = find_layers(graph, rules, self.include, self.exclude)
            declined += reasons
            one_bit = inner_layers(layers) if self.form == "binary" else []
            calibrated = context.has_data() and graph is model.graph
            taken: list[Layer] = []
            for layer in layers:
                reason = None if calibrated or layer in one_bit else self._why_not_dynamic(layer, context, rules)
                if reason:
                    declined.append(Declined(layer.name, reason))
                else:
                    taken.append(layer)
            if isinstance(graph, ir.Function):
                declined += [Declined(v.name, "it lies in a local function that could not be inlined") for v in taken]
            elif taken:
                plan.append(Part(graph, taken, one_bit))
        return plan, declined

    def _why_not_dynamic(self, layer: Layer, context: Context, rules: TargetRules) -> str | None:
        if layer.node.op_type not in rules.dynamic:
            need = f"{layer.node.op_type} needs calibrated ranges"
            calibrated = context.has_data()
            return f"{need}, and calibration does not reach into subgraphs" if calibrated else f"{need}: give --data"
        return worth_dynamic(layer)

    def _prepare(self, model: ir.Model, context: Context, names: Names) -> None:
        """Exact rewrites without which int8 kernels do not form."""
        for fold in (FoldBatchnorm(), FoldAffine(), FoldPad()):
            fold.run(model, context)
        mean_to_pool(model.graph, names)

    def _static(
        self, model: ir.Model, part: Part, context: Context, rules: TargetRules, names: Names
    ) -> dict[str, int]:
        """Quantize the main graph with ranges from calibration."""
        placement = place(part.graph, part.layers, rules)
        taps = [v.name for v in placement.quantized if v.name]
        ranges = context.activation_ranges(model, taps, self.calibration, self.percentile, self.samples)
        parameters = assign(placement, {v: ranges[v.name] for v in placement.quantized if v.name}, rules)
        return insert_static(part.graph, names, placement, parameters, rules, sign_scales(part.one_bit))


@dataclass(frozen=True)
class Part:
    """One graph's layers to quantize; `one_bit`: those whose weights become packed signs."""

    graph: ir.Graph
    layers: list[Layer]
    one_bit: list[Layer]


def _count(outcome: PassOutcome, stats: dict[str, int]) -> None:
    outcome.changed += stats["layers"]
    for key, count in stats.items():
        outcome.stats[key] = int(outcome.stats.get(key, 0)) + count
