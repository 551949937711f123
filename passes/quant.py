"""Quantization: integer layers in the form that the target's runtime fuses, with weights of 8 bits
down to one.
"""

from __future__ import annotations

import functools
import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx_ir as ir

from .. import UsageError
from ._base import Context, Declined, Effect, Option, Pass, PassOutcome, RangeMethod
from ._core.graph import (
    Names,
    all_graphs,
    all_nodes,
    become,
    graphs_of,
    label,
    refresh_shapes,
)
from ._core.integer_layers import offending_pairs
from ._core.notes import drop_notes
from ._core.ops import WEIGHTED_OPS, is_standard
from ._core.opset import raise_opset
from ._core.patterns import (
    Part,
    layer_names,
    left_out,
    matches,
    node_names,
    part_of,
    require_matches,
    weight_names,
    weighted_parts,
)
from ._core.provenance import FloatLayer, set_float_layer
from ._core.tables import tables_of
from ._core.targets import TARGETS, QuantRules
from ._quant.calibrate import Ranges
from ._quant.engine import Counts, stat_of
from ._quant.first_plan import first_plan
from ._quant.fp16.convert import touches_float
from ._quant.inner_passes import (
    ROUNDING_SAMPLES,
    InnerReasons,
    in_short_blocks,
    round_inside,
    smooth_inside,
)
from ._quant.inserter import forget_redundant
from ._quant.kernel_audit import audit_kernels
from ._quant.latency_fallback import keep_faster
from ._quant.layer_config import (
    LEAVE_FLOAT,
    Choice,
    Override,
    choices,
    fix_of_bits,
    read_overrides,
)
from ._quant.other_layers import OtherPlan, OtherRequest, plan_others, store_others
from ._quant.outliers import (
    ROUNDING_TOKENS,
    SMOOTHING,
    RowNoise,
    Sparing,
    observing,
    predicts_tokens,
    reading,
    with_outliers,
)
from ._quant.plan import PlanRequest, QuantPlan, plan
from ._quant.prepare import drop_unused_initializers, mean_to_pool
from ._quant.quiet_samples import InputNoise, SampleNoise, with_quiet_samples
from ._quant.schemes import (
    BLOCKED,
    DYNAMIC,
    FORMS,
    EncodeOptions,
    is_integer_only,
)
from ._quant.weight_codes import Storage
from ._quant.write_layers import write_layers
from ._simplify.plain_weights import plain_weights
from .fuse_attention import FASTER, FuseAttention
from .simplify import Simplify
from .smooth import Smooth

LEAST_BITS_FOR_SPEED = 7
"""Width of weights (bits) below which a small file is the aim, and nothing is timed."""

GENTLER = (3, 12)
"""Counts of the worst layers that are spared where a result is worthless, before all are."""


_FORMS_INSTEAD = {
    "int2": "quant(bits=2)",
    "int3": "quant(bits=3)",
    "int4": "quant(bits=4), or for MatMul alone quant(blocked)",
    "4bit": "quant(bits=4), or for MatMul alone quant(blocked)",
    "8bit": "quant(int8)",
    "uint8": "quant(int8)",
    "static": "quant(int8) with --data",
    "weight-only": "quant(blocked), or compress-weights",
    "float16": "quant(fp16)",
    "half": "quant(fp16)",
    "bf16": "quant(fp16)",
    "int1": "quant(binary)",
    "1bit": "quant(binary)",
}
"""Pipeline text for forms by the names that other tools give them."""


@dataclass(frozen=True)
class Quant(Pass):
    """Quantize layers to 8-bit integers (QDQ), or their weights to fewer bits, down to one.

    Effect: lossy. Touches Conv, Gemm and MatMul with constant float32 weights and the values
    between them, LSTM (integers at run time), GRU and RNN (8-bit weights), and tables that Gather
    takes rows from (fp16: every node that can run in float16). Inputs and outputs keep their types.
    Exporters' notes on nodes and values are dropped (`notes=keep` keeps them); names stay.

    With calibration data, activations get static ranges. Without, MatMul and Gemm quantize them at
    run time, and Conv stays float. Bodies of If, Loop and Scan are calibrated too; if no sample
    enters one, its Conv stays float, with 8-bit weights.

    Weights of 4 bits or fewer are stored packed, and are unpacked to int8 when the runtime loads
    the model: the file is smaller, and the speed is that of int8.

    - `palette`: each channel uses only 2**bits of 256 codes, those that fit its weights. Kernels
      are those of int8, and `pack` stores the indices.
    - `codebook`: 8 or 9 neighbouring weights (bits=1), or 4 (bits=2), are one of 256 vectors of
      codes, which layers share. With bits=1, the smallest layers, a quarter of the weights, get 2
      bits. Tables and recurrent layers keep 8 bits, and pruned zeros are not kept.

    Without data, the codes of both are chosen on synthetic inputs: expect worse results on real
    ones.

    Shapes: weight (M, C, *K), (K, N) -> same, int8 with one scale per output channel; bias (M,) ->
    int32.

    Errors: RefusedError if calibration meets NaN or Inf, or the opset cannot be raised to 13 (21
    for 3 and 4 bits, 16-bit activations and blocks). UsageError if an entry of `layers` cannot be
    read, or if it or a pattern of `include` or `exclude` matches no layer.

    Stats:

    - `layers` (count), `weights` (count of those that now have 8 bits or fewer), `weights_N_bit`
      (count of those of N bits, for each N), `pairs` (count of Q/DQ pairs), `tables` (count of
      tables in 8 bits).
    - `int8_kernels` (count of the runtime's integer kernels; `unproven` if it was not asked),
      `missed` (count of layers that it still runs in float), `offending_pairs` (count of weight
      pairs that may saturate on x86 CPUs without VNNI; 0 on targets for any CPU).
    - Of the passes that run inside: `simplified` (count of exact rewrites), `smoothed` (count of
      values whose channels were evened out), `rounded` (count of layers rounded on data),
      `rounding_gain_db` (dB of output error below nearest rounding, mean over those layers),
      `fused` (count of operators that pass fuse-attention made, for blocks).
    - `outliers` (count of layers in which only the weights are integers, because the input holds
      outliers or samples too quiet for one grid), `notes` (count of metadata entries and doc
      strings dropped).

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018 (arXiv:1712.05877); binary: Rastegari et al.,
    XNOR-Net, ECCV 2016 (arXiv:1603.05279), planes after Lin et al., ABC-Net, NeurIPS 2017
    (arXiv:1711.11294); ternary: Li et al., Ternary Weight Networks, 2016 (arXiv:1605.04711);
    palettes: Han et al., Deep Compression, ICLR 2016 (arXiv:1510.00149); codebooks: Stock et al.,
    And the Bit Goes Down, ICLR 2020 (arXiv:1907.05686).
    """

    name: ClassVar[str] = "quant"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "layers"

    form: Literal[
        "int8",
        "dynamic",
        "int16",
        "blocked",
        "palette",
        "codebook",
        "fp16",
        "ternary",
        "binary",
    ] = Option(
        "int8",
        "int8: integers, activations too (static with data, at run time without); dynamic: "
        "activations at run time even with data; int16: 16-bit activations; blocked: weights only,"
        " one scale per block; palette: each channel uses only 2**bits different int8 values, and "
        "the file stores their indices; codebook: several weights together are one of 256 vectors "
        "of int8 values; fp16: the whole model in half precision; ternary: weights of -1, 0 and 1;"
        " binary: weights of -1 and 1.",
        instead=_FORMS_INSTEAD,
    )
    calibration: RangeMethod = Option(
        "auto", "How activation ranges are chosen from the calibration data."
    )
    percentile: float = Option(
        99.99,
        "Share of values inside the range, for calibration=percentile.",
        low=50.0,
        high=100.0,
        unit="percent",
    )
    samples: int = Option(
        512, "Maximum number of calibration samples to use.", low=1, high=10_000_000
    )
    include: tuple[str, ...] = Option(
        (),
        "Quantize only layers (fp16: nodes) whose node, weight or output name matches "
        "a pattern.",
    )
    exclude: tuple[str, ...] = Option(
        (),
        "Leave layers (fp16: nodes) float if their node, weight or output name matches a pattern.",
    )
    layers: tuple[str, ...] = Option(
        (),
        "Form of single layers, first match wins: PATTERN=FORM[:bits], where FORM may also be "
        'float; or @FILE.toml, whose table [layers] has lines "PATTERN" = "FORM[:bits]".',
    )
    bits: int = Option(
        8,
        "Bits per integer weight: 1 to 6 for palette, 1 or 2 for codebook, 4 or 8 for blocked, 2 "
        "to 8 otherwise.",
        low=1,
        high=8,
        instead={"16": "quant(int16) or quant(fp16)"},
    )
    activation_bits: int = Option(
        8,
        "Bits of the inputs of integer layers, except the first and the last; needs data. Fewer "
        "than 8 are clipped codes for 8-bit kernels, which make no CPU faster; finetune recovers "
        "the loss.",
        low=2,
        high=8,
    )
    block: int = Option(
        32, "Weights that share a scale, for blocked.", low=16, high=65_536
    )
    planes: int = Option(
        1,
        "Number of planes of signs that are summed, for binary; each takes one bit per weight.",
        low=1,
        high=3,
    )
    fit: Literal["mse", "mean"] = Option(
        "mse",
        "Scale of binary and ternary weights: least squares (mse), or from mean |w| (mean).",
    )
    storage: Storage = Option(
        "auto",
        "How 3- and 4-bit weights are stored: int4, a type of opset 21 (ONNX Runtime 1.23 or "
        "newer), or table, a lookup at load that is as small (opset 13). auto: int4.",
    )
    kernel: Literal["auto", "int8", "float"] = Option(
        "auto",
        "Kernels that run the layers; with float, weights are only stored in fewer bits. auto: "
        "int8 if activation ranges are known.",
    )
    ends: Literal["8", "same"] = Option(
        "8",
        "Bits of the first and the last layer if the others have 4 or fewer: 8, or the same.",
    )
    rounding: Literal["gptq", "nearest"] = Option(
        "gptq",
        "How integer weights are rounded if there is calibration data: so that each layer's "
        "outputs are preserved (pass gptq), or each to the nearest.",
    )
    sensitive: float = Option(
        0.12,
        "Share of the weights in 4-bit blocks that get 8 bits instead, in the layers that lose "
        "most for their size (rounding=gptq).",
        low=0.0,
        high=1.0,
        unit="fraction",
    )
    smooth: bool = Option(
        True,
        "With data, first even out the activations of MatMul and Gemm (pass smooth); for 4-bit "
        "blocks, scale weights for better rounding (its aim=weights).",
    )
    notes: Literal["drop", "keep"] = Option(
        "drop",
        "Whether to drop exporters' notes on nodes and values (metadata, doc strings), which may "
        "outweigh the weights.",
    )
    measure: bool = Option(
        True,
        "Time the result, and return layers to float that are slower in 8-bit integers.",
    )
    outliers: Literal["blocks", "ignore"] = Option(
        "blocks",
        "Layers whose input holds outliers that do not survive 8 bits: blocks keeps the input "
        "float and stores the weights in blocks, ignore quantizes them like other layers. Also "
        "applies to inputs with samples too quiet for one grid.",
    )
    tables: Literal["int8", "float"] = Option(
        "int8",
        "Tables that Gather takes rows from, such as embeddings: 8 bits with one scale per row, or"
        " float. Not for fp16.",
    )

    fuse: bool = Option(
        True,
        "Replace each attention, rotary embedding and RMS normalisation by one operator (pass "
        "fuse-attention) if only weights are quantized, in blocks, and the target is a CPU; needs "
        "ONNX Runtime 1.23.",
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
        if self.activation_bits < 8 and not form.low_bit_activations:
            able = [name for name, row in FORMS.items() if row.low_bit_activations]
            raise UsageError(
                "quant.activation_bits",
                f"form {self.form} has no activations of fewer than 8 bits",
                f"choose one of {', '.join(able)}, or leave it at 8",
            )
        problem = form.wrong_bits(self.bits)
        if problem:
            raise UsageError(
                "quant.bits",
                f"form {self.form} has {problem}",
                fix_of_bits(self.form, self.bits),
            )
        if form.whole and self.layers:
            raise UsageError(
                "quant.layers",
                f"form {self.form} is of all nodes alike",
                "leave nodes as they are with exclude",
            )

    def parts(self, model: ir.Model) -> list[Part]:
        """Layers; with fp16 every node that it may touch."""
        if FORMS[self.form].whole is None:
            return weighted_parts(model)
        parts: list[Part] = []
        for graph in graphs_of(model):
            parts += [part_of(node) for node in graph if touches_float(node)]
        # layers first: what comes first is rather kept, and they hold the weights
        parts.sort(key=lambda part: part.kind not in WEIGHTED_OPS)
        return parts

    def at_lower_opset(self) -> Quant | None:
        """3- and 4-bit weights looked up in a table, which needs no types of opset 21."""
        if self.storage != "auto" or not FORMS[self.form].has_bits:
            return None
        return replace(self, storage="table")

    def gentler(self, worst: Sequence[str]) -> list[Pass]:
        """The worst layers with more of what was taken: 8 bits, or weights alone; then all of them.

        Weights of one bit or two are nothing without training, whatever single layers keep.
        """
        form = FORMS[self.form]
        if form.width(self._encode_options()) <= 2:
            return []
        milder = self.milder()
        if milder is None:
            return []
        found: list[Pass] = []
        for count in GENTLER:
            spared = self.sparing(worst[:count]) if count <= len(worst) else None
            if spared is not None:
                found.append(spared)
        return [*found, milder]

    def sparing(self, layers: Sequence[str]) -> Pass | None:
        """The same pass with more for these layers: 8 bits, or weights alone."""
        milder = self.milder()
        # single layers cannot have every form
        if milder is None or not FORMS[milder.form].per_layer:
            return None
        word = f"{milder.form}:8"
        spared = [f"{glob.escape(name)}={word}" for name in layers]
        return replace(self, layers=(*spared, *self.layers))

    def milder(self) -> Quant | None:
        """8 bits; of 8 bits weights alone. None for forms of the whole graph."""
        form = FORMS[self.form]
        if form.whole is not None:
            return None
        if self.bits < 8 or self.activation_bits < 8:
            # of 8 bits there are no palettes and no codebooks
            whole = self.form if form.codes == "steps" else "int8"
            return replace(self, form=whole, bits=8, activation_bits=8)
        if self.form != "blocked":
            return replace(self, form="blocked", kernel="auto")
        return None

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        self._require_matches(model, context)
        instead = self._instead(context)
        if instead is not None:
            return instead.run(model, context)
        whole = FORMS[self.form].whole
        if whole is not None:
            outcome = whole(model, context, Names(model), self._why_left)
            outcome.unit = "nodes"
        else:
            outcome = self._quantize_and_check(model, context)
            self._warn_of_ends(outcome, context)
        if outcome.changed and self.notes == "drop":
            outcome.stats["notes"] = drop_notes(model, ports=False).total()
        return outcome

    def _instead(self, context: Context) -> Quant | None:
        """The form that a target without integers has in place of int8; None elsewhere."""
        rules = TARGETS[context.target].quant
        is_eight_bit = self.form == "int8" and self.bits == self.activation_bits == 8
        # who chose a form for single layers, or a kernel, wants that
        if (
            not rules.instead
            or not is_eight_bit
            or self.layers
            or self.kernel != "auto"
        ):
            return None
        context.warn(
            f"target {context.target}",
            f"{rules.why_not}; quant({rules.instead}) was done instead",
        )
        return replace(self, form=rules.instead)

    def _warn_of_ends(self, outcome: PassOutcome, context: Context) -> None:
        """Tell the user where no weight got as few bits as were asked for."""
        asked = FORMS[self.form].width(self._encode_options())
        if (
            self.ends == "same"
            or asked >= 8
            or not outcome.changed
            or stat_of(asked) in outcome.stats
        ):
            return
        context.warn(
            str(self),
            "no weight got the bits that were asked for: the first and the last layer keep 8, and "
            "no other was quantized; ends=same gives them as few",
        )

    def _encode_options(self) -> EncodeOptions:
        return EncodeOptions(
            bits=self.bits,
            planes=self.planes,
            fit=self.fit,
            storage=self.storage,
        )

    def _why_left(self, node: ir.Node) -> str | None:
        return left_out(node_names(node), self.include, self.exclude)

    def _require_matches(self, model: ir.Model, context: Context) -> None:
        """Raise UsageError for a name pattern that matches no layer, quantizable or not."""
        asked = {
            "include": list(self.include),
            "exclude": list(self.exclude),
            "layers": [override.pattern for override in self._overrides()],
        }
        patterns = [*asked["include"], *asked["exclude"], *asked["layers"]]
        if not patterns:
            return
        whole = FORMS[self.form].whole is not None
        names = _names_of_nodes(model) if whole else _names_of_layers(model)
        if not whole and not all(matches(names, [pattern]) for pattern in patterns):
            # simplify may give a layer, or its weight, another name
            trial = plain_weights(model).clone()
            Simplify().run_within(trial, context)
            names += _names_of_layers(trial)
        for option, found in asked.items():
            require_matches(f"quant.{option}", found, names)

    def _quantize_and_check(self, model: ir.Model, context: Context) -> PassOutcome:
        """Quantize layers, put back what that makes slower, ask the runtime what it runs."""
        # it shares the weights, which passes replace and never change
        before = model.clone()
        ranges = Ranges(
            context,
            self.calibration,
            self.percentile,
            self.samples,
        )
        noise = InputNoise(RowNoise(context), SampleNoise(context))

        def quantize(candidate: ir.Model, left_float: tuple[str, ...]) -> PassOutcome:
            return self._quantize(
                candidate,
                left_float,
                context,
                ranges,
                noise,
            )

        outcome = quantize(model, ())
        if outcome.changed and self._is_timed():
            outcome = keep_faster(
                quantize,
                before,
                model,
                context,
                outcome,
            )
        if outcome.changed:
            audit_kernels(model, context, outcome)
            outcome.stats["offending_pairs"] = sum(offending_pairs(model).values())
        return outcome

    def _is_timed(self) -> bool:
        """True if speed is the aim, so that a slower model would miss it."""
        if not self.measure or self.kernel == "float":
            return False
        return FORMS[self.form].is_timed and self.bits >= LEAST_BITS_FOR_SPEED

    def _quantize(
        self,
        model: ir.Model,
        left_float: tuple[str, ...],
        context: Context,
        ranges: Ranges,
        noise: InputNoise,
    ) -> PassOutcome:
        """Plan, prepare, round, calibrate, insert. `left_float`: more patterns to exclude."""
        rules = self._rules(context.target)
        reason = self._why_not(rules)
        if reason:
            return PassOutcome(declined=[Declined(f"target {context.target}", reason)])
        request = self._request(rules, left_float, context, ranges)
        other_request = self._other_request(left_float, context)
        first = first_plan(model, request, other_request, context)
        planned = first.planned
        if first.is_empty:
            return PassOutcome(declined=planned.declined + first.others.declined)
        if first.model is not model:
            become(model, first.model)

        # from before any change: names of nodes that are gone by then stay theirs in reports
        names = Names(model)
        outcome = PassOutcome()
        inner = InnerReasons()
        if planned.graphs:
            planned = self._prepared(
                model,
                planned,
                request,
                context,
                noise,
                outcome,
                inner,
            )
        else:
            context.remember_float(model)
        names.take(model)
        # again: rounding and exact rewrites have made other nodes and values
        others = plan_others(model, other_request)
        with context.progress("quantize layers", 1):
            counts = write_layers(
                model,
                planned,
                request,
                ranges,
                names,
                others,
            )
            _count(outcome, counts)
        # what quant declines or stores itself is for it to tell
        own = [declined.where for declined in planned.declined]
        own += [table.name or "" for table in others.table_values]
        outcome.declined = planned.declined + inner.besides(own)
        outcome.declined += _still_read(planned, others)
        counts, declined = store_others(model, others, names, rules.limits_pairs)
        outcome.declined += others.declined + declined
        _count(outcome, counts)
        # float weights that integers have replaced
        drop_unused_initializers(all_graphs(model))
        refresh_shapes(model)
        forget_redundant(all_nodes(model))
        return outcome

    def _other_request(
        self, left_float: tuple[str, ...], context: Context
    ) -> OtherRequest:
        floats = [o.pattern for o in self._overrides() if o.choice.form == LEAVE_FLOAT]
        return OtherRequest(
            form=FORMS[self.form],
            target=TARGETS[context.target],
            kernel=self.kernel,
            tables=self.tables,
            include=self.include,
            exclude=(*self.exclude, *floats),
            left_float=left_float,
            palette_bits=self._palette_bits,
        )

    def _palette_bits(self, names: Sequence[str]) -> int | None:
        """Bits of the palettes of a table or recurrent layer that goes by these names."""
        choice = Choice(self.form, self.bits)
        for override in self._overrides():
            if matches(names, [override.pattern]):
                choice = override.choice
                break
        return choice.bits if choice.codes == "palettes" else None

    def _prepared(
        self,
        model: ir.Model,
        planned: QuantPlan,
        request: PlanRequest,
        context: Context,
        noise: InputNoise,
        outcome: PassOutcome,
        inner: InnerReasons,
    ) -> QuantPlan:
        """Bring the model to the opset and the form that the plan needs, and round its weights.

        Returns the plan of the model as it is then.
        """
        raise_opset(model, planned.opset(request.options))
        self._rewrite(
            model,
            planned,
            context,
            outcome,
            inner,
        )
        # again: exact rewrites put other nodes in place of the planned ones, and uncover layers
        planned = plan(model, request)
        request, planned = self._spare(
            model,
            planned,
            request,
            noise,
            outcome,
        )
        if planned.graphs and raise_opset(model, planned.opset(request.options)):
            # nodes of another graph now
            planned = plan(model, request)
        rounds = self._rounding_context(model, planned, context)
        short = in_short_blocks(planned)
        if rounds is not None and self.smooth and short:
            samples = min(self.samples, ROUNDING_SAMPLES)
            smooth = Smooth(aim="weights", block=self.block, samples=samples)
            smooth_inside(smooth, model, rounds, outcome, inner, short)
            # again: a factor may have become a node
            planned = plan(model, request)
        _note_origins(planned)
        # from here on the model loses: reports compare with this
        context.remember_float(model)
        if rounds is None or self.rounding != "gptq":
            return planned
        finer = round_inside(
            model,
            planned,
            request,
            rounds,
            outcome,
            inner,
            self.samples,
            context.has_data(),
            self.sensitive,
        )
        # again: rounding gives biases to layers that had none
        planned = plan(model, request)
        if not finer:
            return planned
        names = [chosen.where for chosen in finer]
        kept = Sparing.of_weights(planned, names, Choice("blocked", 8))
        return plan(model, replace(request, choose=kept.around(request.choose)))

    def _rewrite(
        self,
        model: ir.Model,
        planned: QuantPlan,
        context: Context,
        outcome: PassOutcome,
        inner: InnerReasons,
    ) -> None:
        """Exact rewrites that the plan is worth more by."""
        if self.fuse and context.target in FASTER and planned.uses(BLOCKED):
            # integers of weights leave time for what stands between layers to count
            fused = FuseAttention().run_within(model, context)
            outcome.stats["fused"] = fused.changed
            inner.add(FuseAttention.name, fused.declined)
        if planned.needs_ranges:
            self._prepare(
                model,
                context,
                outcome,
                inner,
            )
        elif self.smooth and planned.uses(DYNAMIC) and tables_of(model):
            # made-up tokens are tokens: what they make of a model's channels holds for others
            observer = observing(model, context)
            smooth = Smooth(samples=self.samples, alpha=SMOOTHING)
            if observer is not None:
                smooth_inside(smooth, model, observer, outcome, inner)

    def _rounding_context(
        self, model: ir.Model, planned: QuantPlan, context: Context
    ) -> Context | None:
        """The inputs that rounding keeps to: the user's, or made up where these help."""
        if context.has_data():
            return context
        if self.rounding == "gptq" and self._rounds_unseen(model, planned):
            return self._unseen(model, context)
        return None

    def _rounds_unseen(self, model: ir.Model, planned: QuantPlan) -> bool:
        """True if made-up inputs decide better than none, though not as well as real ones do."""
        if planned.has_values:
            return True
        return planned.uses(BLOCKED) and predicts_tokens(model)

    def _unseen(self, model: ir.Model, context: Context) -> Context | None:
        """A context with inputs that nobody gave: text of the model's own where it writes any."""
        if predicts_tokens(model):
            return reading(model, context)
        return observing(model, context, ROUNDING_TOKENS)

    def _spare(
        self,
        model: ir.Model,
        planned: QuantPlan,
        request: PlanRequest,
        noise: InputNoise,
        outcome: PassOutcome,
    ) -> tuple[PlanRequest, QuantPlan]:
        """Let layers read floats whose inputs 8 bits do not hold; the request and the plan then."""
        if self.outliers == "ignore":
            return request, planned
        in_blocks = Choice("blocked", 4 if self.bits <= 4 else 8)
        ways = (
            functools.partial(with_outliers, noise=noise.of_rows, instead=in_blocks),
            functools.partial(with_quiet_samples, noise=noise.of_samples),
        )
        count = 0
        for layers_to_spare in ways:
            spared = layers_to_spare(model, planned, request)
            if spared.layers:
                count += len(spared.layers)
                request = replace(request, choose=spared.around(request.choose))
                planned = plan(model, request)
        if count:
            outcome.stats["outliers"] = count
        return request, planned

    def _rules(self, target: str) -> QuantRules:
        """The target's table, with the activations of the form."""
        rules = TARGETS[target].quant
        activation = FORMS[self.form].activation
        return replace(rules, activation=activation) if activation else rules

    def _why_not(self, rules: QuantRules) -> str:
        """Reason why the target has no layers of the form, or ""."""
        form = FORMS[self.form]
        # an override may still choose a form that is not of integers
        if is_integer_only(form, self.kernel) and not self.layers and rules.why_not:
            return rules.why_not
        return form.why_not(rules)

    def _overrides(self) -> tuple[Override, ...]:
        return read_overrides(self.layers, self.bits)

    def _request(
        self,
        rules: QuantRules,
        left_float: tuple[str, ...],
        context: Context,
        ranges: Ranges,
    ) -> PlanRequest:
        default = Choice(
            self.form,
            self.bits,
            activation_bits=self.activation_bits,
        )
        choose = functools.partial(
            choices,
            default=default,
            ends=self.ends,
            overrides=self._overrides(),
        )
        return PlanRequest(
            rules=rules,
            include=self.include,
            exclude=(*self.exclude, *left_float),
            kernel=self.kernel,
            block=self.block,
            has_data=context.has_data(),
            options=self._encode_options(),
            choose=choose,
            keeps_tables=not self._other_request(left_float, context).has_tables,
            entered=ranges.entered,
            stores_floats=self.kernel == "auto"
            and TARGETS[context.target].folds_constants,
        )

    def _prepare(
        self,
        model: ir.Model,
        context: Context,
        outcome: PassOutcome,
        inner: InnerReasons,
    ) -> None:
        """Exact rewrites: those without which integer kernels do not form, and evener
        activations.
        """
        simplified = Simplify().run_within(model, context)
        inner.add(Simplify.name, simplified.declined)
        if self.smooth:
            # before ranges are read: it makes them shorter
            smooth = Smooth(samples=self.samples)
            smooth_inside(smooth, model, context, outcome, inner)
        names = Names(model)
        pooled = sum(mean_to_pool(graph, names) for graph in graphs_of(model))
        outcome.stats["simplified"] = simplified.changed + pooled


def _names_of_nodes(model: ir.Model) -> list[str]:
    """Names of all nodes, for a form that is not of layers."""
    names: list[str] = []
    for node in all_nodes(model):
        names += node_names(node)
    return names


def _names_of_layers(model: ir.Model) -> list[str]:
    """Names of all nodes that may hold a weight: patterns may leave out what is no layer yet."""
    names: list[str] = []
    for node in all_nodes(model):
        if is_standard(node, *WEIGHTED_OPS):
            names += layer_names(node)
    for table in tables_of(model).values():
        names += weight_names(table)
    return names


def _note_origins(planned: QuantPlan) -> None:
    """Note on every layer the name by which patterns find it, before rounding adds nodes."""
    for graph_plan in planned.graphs:
        for layer in graph_plan.layers:
            name = layer.node.name or layer.node.outputs[0].name or ""
            set_float_layer(layer.node, FloatLayer(name, layer.name))


def _still_read(planned: QuantPlan, others: OtherPlan) -> list[Declined]:
    """A reason for each weight that stays float beside its integers: something else reads it.

    Tables are not among them.
    """
    stored = others.table_values
    found: dict[str, Declined] = {}
    for graph_plan in planned.graphs:
        for layer in graph_plan.layers:
            name = layer.weight.name or ""
            if layer.weight in stored:
                continue
            for user in layer.weight.consumers():
                reason = (
                    f"{label(user)} reads it too, so it stays float: compress-weights stores it "
                    "small"
                )
                found.setdefault(name, Declined(name, reason))
    return list(found.values())


def _count(outcome: PassOutcome, counts: Counts) -> None:
    """Add the counts of one engine's layers."""
    outcome.changed += counts.get("layers", 0) + counts.get("tables", 0)
    for key, count in counts.items():
        outcome.stats[key] = int(outcome.stats.get(key, 0)) + count
