"""Quantization: integer layers in the form that the target's runtime fuses; weights of 8 bits down
to one.
"""

from __future__ import annotations

import functools
import glob
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx_ir as ir

from .. import UsageError
from ._base import Context, Declined, Effect, Option, Pass, PassOutcome, RangeMethod
from ._calibrated.grid import grid_of_bits
from ._core.graph import Names, all_graphs, all_nodes, refresh_shapes
from ._core.linear import LinearLayer
from ._core.notes import drop_notes
from ._core.opset import raise_opset
from ._core.targets import TARGETS, QuantRules
from ._quant.blocked import insert_blocked
from ._quant.dynamic import insert_dynamic
from ._quant.effective import with_effective_values
from ._quant.grids import Grid
from ._quant.insert import insert_static
from ._quant.inserter import forget_redundant
from ._quant.latency_fallback import checked
from ._quant.layer_config import (
    INTEGERS,
    Choice,
    Override,
    check_patterns,
    choices,
    is_packed,
    read_overrides,
)
from ._quant.layers import Layer, heavy_nodes
from ._quant.low_bit_activations import Coarse, coarse_reads
from ._quant.packed import insert_packed
from ._quant.placement import Placement, place
from ._quant.plan import Part, Request, plan
from ._quant.prepare import drop_unused_initializers, mean_to_pool
from ._quant.qparams import Parameters, assign, coarse_parameters
from ._quant.residual_input import in_two_limbs
from ._quant.saturating import offending_pairs
from ._quant.schemes import FORMS, ONE_LAYER, Settings
from ._quant.weight_codes import Storage
from .gptq import Gptq
from .simplify import Simplify
from .smooth import Smooth

COARSE = ("int8", "ternary", "binary")
"""Forms whose layers may read fewer than 8 bits."""
ROUNDING_SAMPLES = 64
"""Calibration samples for `gptq`: more change nothing that was measured."""


@dataclass(frozen=True)
class Quant(Pass):
    """Quantize layers to 8-bit integers (QDQ), or their weights to fewer bits, down to one.

    Effect: lossy. Touches Conv, Gemm and MatMul with constant float32 weights and the values
    between them (fp16: every node that float16 can hold); inputs and outputs keep their types. With
    calibration data activations get static ranges; without, MatMul and Gemm quantize them at run
    time and Conv stays float. Weights of 4 bits or fewer are stored packed and unpacked to int8
    when the runtime loads the model: the file is smaller, the speed that of int8. What exporters
    noted on nodes and values goes (`notes=keep`); names stay.

    Shapes: weight (M, C, *K), (K, N) -> same, int8 with one scale per output channel; bias (M,) ->
    int32.

    Errors: RefusedError if calibration meets NaN or Inf, or the opset cannot be raised to 13 (21
    for 3 and 4 bits, 16-bit activations and blocks). UsageError if an entry of `layers` cannot be
    read or matches no layer.

    Stats: `layers` (count), `weights` (count, now 8 bit or less), `pairs` (count of Q/DQ pairs),
    `int8_kernels` (count of the runtime's integer kernels; `unproven` where it was not asked),
    `missed` (count of layers that it runs in float all the same), `offending_pairs` (count of
    weight pairs that may saturate on x86 CPUs without VNNI: 0 on targets that are to run on any
    CPU), `notes` (count of metadata entries and doc strings dropped).

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018 (arXiv:1712.05877); binary: Rastegari et al.,
    XNOR-Net, ECCV 2016 (arXiv:1603.05279), planes after Lin et al., ABC-Net, NeurIPS 2017
    (arXiv:1711.11294); ternary: Li et al., Ternary Weight Networks, 2016 (arXiv:1605.04711).
    """

    name: ClassVar[str] = "quant"
    effect: ClassVar[Effect] = "lossy"

    form: Literal[
        "int8", "dynamic", "int16", "blocked", "fp16", "ternary", "binary"
    ] = Option(
        "int8",
        "int8: integers, activations too (static with data, at run time without); "
        "dynamic: at run time even "
        "with data; int16: 16-bit activations; blocked: weights only, a scale a "
        "block; fp16: the whole model in half "
        "precision; ternary, binary: weights of -1, (0,) 1.",
    )
    calibration: RangeMethod = Option(
        "auto", "How activation ranges are read off the calibration data."
    )
    percentile: float = Option(
        99.99,
        "Share of values inside the range, for calibration=percentile.",
        low=50.0,
        high=100.0,
        unit="percent",
    )
    samples: int = Option(
        512, "Calibration samples to use at most.", low=1, high=10_000_000
    )
    include: tuple[str, ...] = Option(
        (), "Quantize only layers whose node, weight or output name matches a pattern."
    )
    exclude: tuple[str, ...] = Option(
        (), "Leave layers float whose node, weight or output name matches a pattern."
    )
    layers: tuple[str, ...] = Option(
        (),
        "What single layers become, first match wins: PATTERN=FORM[:bits], FORM also "
        "float; or @FILE.toml, whose "
        'table [layers] has lines "PATTERN" = "FORM[:bits]".',
    )
    bits: int = Option(8, "Bits of integer weights.", low=2, high=8)
    activation_bits: int = Option(
        8,
        "Bits of what integer layers read, but the ends; needs data. Fewer than 8 "
        "are clipped codes for 8-bit "
        "kernels, which make a CPU no faster; finetune wins the loss back.",
        low=2,
        high=8,
    )
    block: int = Option(
        32, "Weights that share a scale, for blocked.", low=16, high=65_536
    )
    planes: int = Option(
        1, "Sums of so many signs, for binary: as many bits a weight.", low=1, high=3
    )
    fit: Literal["mse", "mean"] = Option(
        "mse", "Scale of binary and ternary weights: least squares, or from mean |w|."
    )
    storage: Storage = Option(
        "auto",
        "How 3- and 4-bit weights are kept: int4, a type of opset 21 (ONNX Runtime "
        "1.23 or newer), or table, "
        "looked up while loading, as small (opset 13). auto: int4.",
    )
    kernel: Literal["auto", "int8", "float"] = Option(
        "auto",
        "What runs the layers; float only stores them small. auto: int8 where ranges are known.",
    )
    ends: Literal["8", "same"] = Option(
        "8", "First and last layer where the others have 4 bits or fewer."
    )
    rounding: Literal["gptq", "nearest"] = Option(
        "gptq",
        "How integer weights are rounded where there is calibration data: so that "
        "each layer's outputs stay "
        "(pass gptq), or each to the nearest.",
    )
    smooth: bool = Option(
        True,
        "Even out activations for MatMul and Gemm first (pass smooth), where there is data.",
    )
    notes: Literal["drop", "keep"] = Option(
        "drop",
        "What exporters say of nodes and values (metadata, doc strings): it may "
        "outweigh the weights.",
    )
    measure: bool = Option(
        True, "Put back to float what measures slower in 8-bit integers than in float."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._overrides()
        form = FORMS[self.form]
        if self.kernel != "auto" and len(form.engines) < 2:
            raise UsageError(
                "quant.kernel",
                f"form {self.form} has no choice of kernels",
                "leave it at auto",
            )
        if self.activation_bits < 8 and self.form not in COARSE:
            raise UsageError(
                "quant.activation_bits",
                f"form {self.form} has no activations of fewer than 8 bits",
                f"choose one of {', '.join(COARSE)}, or leave it at 8",
            )
        if form.whole and (self.layers or self.include or self.exclude):
            raise UsageError(
                "quant.layers",
                f"form {self.form} is of the whole model",
                "leave the name patterns out",
            )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        outcome = self._in_its_form(model, context)
        if outcome.changed and self.notes == "drop":
            outcome.stats["notes"] = drop_notes(model, ports=False).total()
        return outcome

    def _in_its_form(self, model: ir.Model, context: Context) -> PassOutcome:
        if whole := FORMS[self.form].whole:
            return whole(model, context, Names(model))
        for_speed = (
            self.form in ("int8", "dynamic", "int16")
            and self.bits >= 7
            and self.kernel != "float"
        )
        outcome = checked(self._but_for, model, context, self.measure and for_speed)
        if outcome.changed:
            outcome.stats["offending_pairs"] = sum(offending_pairs(model).values())
        return outcome

    def _but_for(
        self, model: ir.Model, context: Context, patterns: tuple[str, ...]
    ) -> PassOutcome:
        return replace(self, exclude=(*self.exclude, *patterns))._quantize(
            model, context
        )

    def _quantize(self, model: ir.Model, context: Context) -> PassOutcome:
        rules, reason = self._rules(context.target)
        if reason:
            return PassOutcome(declined=[Declined(f"target {context.target}", reason)])
        check_patterns(self._overrides(), heavy_nodes(all_nodes(model)))
        request = self._request(rules, context)
        parts, declined = plan(model, request)
        if (
            not parts and context.has_data()
        ):  # layers may hide behind what simplify removes
            trial = model.clone()
            Simplify().run(trial, context)
            parts, declined = plan(trial, request)
        if not parts:
            return PassOutcome(declined=declined)
        names = Names(model)
        raise_opset(model, max(part.opset(request.settings) for part in parts))
        if any("static" in part.engines for part in parts):
            self._prepare(model, context)
        parts, declined = plan(model, request)
        context.remember_float(model)
        if self.rounding == "gptq":
            self._round(model, parts, request, context)
        names.take(model)
        parts, declined = plan(model, request)
        outcome = PassOutcome(declined=declined)
        for part in parts:
            self._insert(model, part, request, context, names, outcome)
        drop_unused_initializers(all_graphs(model))
        refresh_shapes(model)
        forget_redundant(all_nodes(model))
        return outcome

    def _prepare(self, model: ir.Model, context: Context) -> None:
        """Exact rewrites: those without which integer kernels do not form, and evener
        activations.
        """
        Simplify().run(model, context)
        if self.smooth:
            Smooth(samples=self.samples).run(model, context)
        mean_to_pool(model.graph, Names(model))

    def _round(
        self, model: ir.Model, parts: list[Part], request: Request, context: Context
    ) -> None:
        """Bring the weights of integer layers onto their grids, each layer's outputs kept."""
        by_bits: dict[int, list[str]] = {}
        limited: set[str] = set()
        for part in parts:
            layers = part.engines.get("static", [])
            limited |= {
                layer.weight.name or ""
                for layer in _limited(
                    part, place(part.graph, layers, request.rules), request.rules
                )
            }
            for layer in layers:
                if part.choices[layer].form in INTEGERS:
                    by_bits.setdefault(part.choices[layer].bits, []).append(
                        glob.escape(layer.weight.name or "")
                    )
        for bits, patterns in by_bits.items():
            rounding = Gptq(
                bits=bits,
                samples=min(self.samples, ROUNDING_SAMPLES),
                include=tuple(patterns),
            )
            rounding.run_on(model, context, functools.partial(_grid_of, bits, limited))

    def _rules(self, target: str) -> tuple[QuantRules, str]:
        """The target's table, and why the form is not for it."""
        rules = TARGETS[target].quant
        if self.form == "int16":
            return replace(
                rules, activation="uint16"
            ), rules.why_not or rules.why_not_int16
        integers_only = (
            not {"float", "blocked"} & set(FORMS[self.form].engines)
            and self.kernel != "float"
        )
        return rules, rules.why_not if integers_only and not self.layers else ""

    def _overrides(self) -> tuple[Override, ...]:
        return read_overrides(self.layers, self.bits, ONE_LAYER)

    def _request(self, rules: QuantRules, context: Context) -> Request:
        default = Choice(self.form, self.bits, activation_bits=self.activation_bits)
        overrides = self._overrides()
        return Request(
            rules,
            self.include,
            self.exclude,
            self.kernel,
            self.block,
            context.has_data(),
            Settings(self.bits, self.planes, self.fit, storage=self.storage),
            choose=lambda layers: choices(layers, default, self.ends, overrides),
        )

    def _insert(
        self,
        model: ir.Model,
        part: Part,
        request: Request,
        context: Context,
        names: Names,
        outcome: PassOutcome,
    ) -> None:
        """One graph's layers, engine by engine; calibration comes first, on the float graph."""
        settings, engines = request.settings, part.engines
        if layers := engines.get("static"):
            _count(outcome, self._static(model, part, layers, request, context, names))
        if layers := engines.get("dynamic"):
            limited = layers if request.rules.limits_pairs else ()
            _count(
                outcome,
                insert_dynamic(
                    part.graph, names, layers, part.codes(layers, settings, limited)
                ),
            )
        if layers := engines.get("float"):
            _count(
                outcome,
                insert_packed(part.graph, names, layers, part.codes(layers, settings)),
            )
        for bits in (4, 8):
            if layers := [
                v for v in engines.get("blocked", ()) if part.choices[v].bits == bits
            ]:
                _count(
                    outcome, insert_blocked(part.graph, names, layers, bits, self.block)
                )

    def _static(
        self,
        model: ir.Model,
        part: Part,
        layers: list[Layer],
        request: Request,
        context: Context,
        names: Names,
    ) -> dict[str, int]:
        """Quantize the main graph with ranges from calibration."""
        rules = request.rules
        placement = place(part.graph, layers, rules)
        limited = _limited(part, placement, rules)
        codes = part.codes(layers, request.settings, limited)
        probe, effective = with_effective_values(model, placement)
        taps = {v: effective.get(v.name, v.name) for v in placement.quantized if v.name}
        ranges = context.activation_ranges(
            probe, list(taps.values()), self.calibration, self.percentile, self.samples
        )
        parameters = assign(
            placement, {value: ranges[tap] for value, tap in taps.items()}, rules
        )
        reads = coarse_reads(
            placement, {layer: part.choices[layer].activation_bits for layer in layers}
        )
        return insert_static(
            part.graph,
            names,
            placement,
            parameters,
            rules,
            codes,
            self._coarse_grids(model, reads, rules, context),
        )

    def _coarse_grids(
        self, model: ir.Model, reads: list[Coarse], rules: QuantRules, context: Context
    ) -> dict[Coarse, Parameters]:
        """On which grids values are read with fewer bits: fewer levels want shorter ranges."""
        found: dict[Coarse, Parameters] = {}
        for bits in sorted({read.bits for read in reads}):
            chosen = [read for read in reads if read.bits == bits]
            ranges = context.activation_ranges(
                model,
                [read.value.name or "" for read in chosen],
                self.calibration,
                self.percentile,
                self.samples,
                2**bits - 1,
            )
            found |= {
                read: coarse_parameters(ranges[read.value.name or ""], bits, rules)
                for read in chosen
            }
        return found


def _limited(part: Part, placement: Placement, rules: QuantRules) -> list[Layer]:
    """Find what is read in two limbs; the layers whose weights must not saturate: the others, on
    most targets.
    """
    packed = [layer for layer in placement.layers if is_packed(part.choices[layer])]
    placement.limbed = in_two_limbs(placement, packed, rules)
    return (
        [v for v in placement.layers if v.input not in placement.limbed]
        if rules.limits_pairs
        else []
    )


def _grid_of(bits: int, limited: Collection[str], layer: LinearLayer) -> Grid:
    return grid_of_bits(bits, layer if layer.weight.name in limited else None)


def _count(outcome: PassOutcome, stats: dict[str, int]) -> None:
    outcome.changed += stats["layers"]
    for key, count in stats.items():
        outcome.stats[key] = int(outcome.stats.get(key, 0)) + count
