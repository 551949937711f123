"""Pruning of weights, in place, shapes unchanged."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

import onnx_ir as ir

from .. import UsageError
from ._base import (
    Chosen,
    Context,
    Declined,
    Effect,
    Option,
    Pass,
    PassOutcome,
    Stat,
)
from ._core.drift_budget import WITH_DATA, WITHOUT_DATA, lost_share, sqnr_of
from ._core.graph import Weight, weights_of
from ._core.lazy import set_tensor
from ._core.ops import WEIGHTED_OPS
from ._core.options import AUTO, Auto
from ._core.patterns import left_out, require_matches, weight_names, weighted_names
from ._reconstruct.evidence import Evidence, measured_loss
from ._sparsity.allocation import share
from ._sparsity.fit import fit_pruned
from ._sparsity.loss_curves import (
    Curves,
    LossCurve,
    counts_for,
    energy_curve,
    predicted_loss,
)
from ._sparsity.magnitude import NonFiniteError, count_zeros
from ._sparsity.pools import Criteria, PrunedWeight, prune_weights, stats_of
from ._sparsity.search import CAUTIOUS, Trial, most_zeros
from ._sparsity.sensitivity import measured_curves

HALF = 0.5
"""Sparsity where an option says which weights go but none says how many."""


@dataclass(frozen=True)
class Prune(Pass):
    """Zero the weights of smallest magnitude, or those that the outputs miss least.

    Effect: lossy. Touches float weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, in
    every subgraph; shapes, dtypes and names stay. A weight that several nodes share is one weight.
    Already zero entries count.

    Without options (`sparsity=auto`) each layer gives what costs little: losses at the model's
    outputs are measured layer by layer on data (without data they are predicted from the weights),
    the cheapest weights of all layers go, and the result is measured on samples that no fit saw
    (without data on made-up inputs) until it keeps `min_sqnr`. `chosen` tells what each layer gave
    and what it costs. With `size`, or with data and a `sparsity`, as many weights go in all as are
    asked for, where they cost least (`allocation=auto`).

    Shapes: any weight -> same. With `sparsity` exactly floor(sparsity * size) entries of each pool
    (all weights under allocation=auto with data; else layer, row or model) are zero, ties by index;
    without data every kept |w| >= every pruned |w|. With `pattern=N:M` each group of M along the
    op's input axis keeps N. With `threshold` |w| <= threshold goes (select=max: |w| >= threshold,
    or is clipped to it). As a control, and for outliers, select=max zeroes or clips the largest.

    With data the weights that stay are fitted (`fit`): layer by layer, by least squares on the
    inputs that the pruned model gives, towards the original's outputs, biases included (a MatMul
    without one gets an Add). Each layer keeps its count of zeros. Their places follow `pattern`,
    `threshold` and `scope=row`; else they are chosen by magnitude, activation or second order.
    Choice and fit are made on one half of the data and judged on the other. A layer whose fit does
    no better there stays as it was pruned, and is named, as are layers that cannot be fitted.

    Errors: UsageError where options contradict each other, where no sparsity reaches a `size`, or a
    pattern of include or exclude matches no layer.

    Stats: `weights` (count), `zeros` (count), `sparsity` (fraction), `clipped` (count, mode=clip),
    `fitted` (count of layers), `by_…` (count of layers by the criterion of their mask), `select`,
    `zipped_bytes` (all these weights under zlib level 1; absent above 256 MiB of weights); of
    sparsity=auto `predicted_sqnr` and `measured_sqnr` (dB; absent where nothing is run).

    Source: Han et al., Learning both Weights and Connections, NeurIPS 2015 (arXiv:1506.02626);
    allocations: Everett, Operations Research 11 (1963) for auto, Evci et al. 2020
    (arXiv:1911.11134), Lee et al. 2021 (arXiv:2010.07611); N:M: Mishra et al. 2021
    (arXiv:2104.08378).
    """

    name: ClassVar[str] = "prune"
    effect: ClassVar[Effect] = "lossy"

    sparsity: float | Auto = Option(
        AUTO,
        "Fraction of weights to zero (select=max, mode=clip: to clip). auto: as many as the "
        "outputs bear (min_sqnr); half of them where select, scope or allocation is given.",
        low=0.0,
        high=0.99,
    )
    min_sqnr: float | None = Option(
        None,
        f"Least SQNR that the outputs keep with sparsity=auto; unset: {WITH_DATA:g} on data, "
        f"{WITHOUT_DATA:g} on made-up inputs.",
        low=0.0,
        high=120.0,
        unit="dB",
    )
    size: float | None = Option(
        None,
        "Fraction of the bytes of the weights to leave, stored as bit masks and nonzeros, instead "
        "of a sparsity.",
        low=0.0,
        high=1.0,
    )
    threshold: float | None = Option(
        None, "Absolute magnitude to prune at, instead of a sparsity.", low=0.0
    )
    select: Literal["min", "max"] = Option(
        "min", "Prune the smallest magnitudes, or the largest."
    )
    mode: Literal["zero", "clip"] = Option(
        "zero", "Zero what is selected, or saturate it (select=max only)."
    )
    scope: Literal["layer", "model", "row"] = Option(
        "layer",
        "Rank weights within each layer, across the model, or within each output row.",
    )
    pattern: str | None = Option(
        None,
        "N:M, keep N of every M along the input axis, e.g. 2:4; sets the sparsity.",
    )
    allocation: Literal["auto", "uniform", "erk", "lamp"] = Option(
        AUTO,
        "Sparsity by layer: all alike, by Erdos-Renyi kernel, by LAMP score, or by what its zeros "
        "cost at the model's outputs (auto: with data or size; else uniform).",
    )
    fit: bool = Option(
        True,
        "Solve for the weights that stay by least squares towards the original's outputs, where "
        "there is data.",
    )
    samples: int = Option(
        512, "Calibration samples to fit to at most.", low=1, high=10_000_000
    )
    include: tuple[str, ...] = Option(
        (),
        "Only weights of layers whose node, weight or output name matches a pattern.",
    )
    exclude: tuple[str, ...] = Option(
        (), "Leave out layers whose node, weight or output name matches a pattern."
    )
    ops: tuple[str, ...] = Option(
        (), "Only weights of these op types; all weighted ops by default."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_combinations(self)

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        weights, declined = _chosen(model, self)
        if self.select == "max" and self.mode == "zero":
            context.warn(
                "prune.select",
                "max zeroes the largest weights: a control experiment, outputs suffer most",
            )
        plan = _Plan.of(self, context, model)
        if self.is_automatic:
            outcome = plan.as_many_as_bearable(model, weights)
        elif self._follows_losses(context):
            outcome = plan.in_all(model, weights, self._total(weights))
        else:
            outcome = plan.made(model, None).outcome()
        outcome.declined = declined + outcome.declined
        return outcome

    @property
    def criteria(self) -> Criteria:
        """Criteria of which weights go; their number may be decided apart."""
        allocation = self.allocation
        return Criteria(
            sparsity=self._fraction,
            threshold=self.threshold,
            select=self.select,
            mode=self.mode,
            scope=self.scope,
            pattern=_parse_pattern(self.pattern) if self.pattern else None,
            allocation="uniform" if allocation == "auto" else allocation,
        )

    @property
    def is_automatic(self) -> bool:
        """True if the outputs say how many weights go."""
        explicit = self.sparsity != AUTO or self.size is not None
        by_value = bool(self.threshold or self.pattern)
        return not explicit and not by_value and not _rankings(self)

    @property
    def _fraction(self) -> float:
        """Fraction of the weights that goes where it is not the outputs that say."""
        return HALF if self.sparsity == "auto" else self.sparsity

    def _follows_losses(self, context: Context) -> bool:
        """Return whether each layer's part follows from what zeros cost at the outputs."""
        if self.size is not None:
            return True
        if self.allocation != AUTO or self.sparsity == AUTO or self.select != "min":
            return False
        return self.scope == "layer" and context.has_data()

    def _total(self, weights: list[Weight]) -> int:
        """Number of zeros in all. Errors: UsageError for a size that no sparsity reaches."""
        elements = sum(weight.size for weight in weights)
        if self.size is None:
            return share(self._fraction, elements)
        return _zeros_for(self.size, weights)


@dataclass(frozen=True)
class _Candidate:
    """A model pruned in place, with the account of what became of it."""

    model: ir.Model
    pruned: list[PrunedWeight]
    criteria: Criteria
    fitted: dict[str, Stat]
    declined: list[Declined]

    def outcome(self) -> PassOutcome:
        """Account without choices."""
        changed = [each for each in self.pruned if each.tensor is not None]
        stats = {**stats_of(self.pruned, self.criteria), **self.fitted}
        return PassOutcome(len(changed), stats, list(self.declined))


@dataclass(frozen=True)
class _Plan:
    """Candidates of one run.

    `original`: a copy of the model before the pass.
    """

    options: Prune
    context: Context
    evidence: Evidence
    original: ir.Model

    @classmethod
    def of(cls, options: Prune, context: Context, model: ir.Model) -> _Plan:
        """Plan for a model; with samples of the data apart, by which results are judged."""
        return cls(options, context, Evidence.of(context), model.clone())

    @property
    def fits(self) -> bool:
        """True if the weights that stay are fitted."""
        options = self.options
        if not options.fit or options.select != "min" or not self.context.has_data():
            return False
        # a budget cannot be kept to by the very data that the weights were fitted to
        return self.evidence.is_apart or not options.is_automatic

    def made(self, model: ir.Model, counts: Mapping[str, int] | None) -> _Candidate:
        """Prune a model in place, to so many zeros of each weight if `counts` are given."""
        options = self.options
        weights, _ = _chosen(model, options)
        criteria = dataclasses.replace(options.criteria, counts=counts)
        pruned, declined = prune_weights(weights, criteria, self.context)
        changed = [each for each in pruned if each.tensor is not None]
        for each in changed:
            set_tensor(each.weight.value, each.tensor)
        fitted: dict[str, Stat] = {}
        if self.fits and changed:
            names = [each.weight.name for each in changed]
            fitted, left = fit_pruned(
                self.original,
                model,
                names,
                self._frees_places(),
                self._fitting_context(),
                options.samples,
            )
            declined += left
        return _Candidate(model, pruned, criteria, fitted, declined)

    def _fitting_context(self) -> Context:
        """Data that is fitted to: all of it where no budget is to be kept to."""
        return self.evidence.fitting if self.options.is_automatic else self.context

    def _frees_places(self) -> bool:
        """Return whether only the count of zeros is asked for, not which weights they are."""
        options = self.options
        places = options.pattern or options.threshold or options.scope == "row"
        return not places

    def in_all(self, model: ir.Model, weights: list[Weight], total: int) -> PassOutcome:
        """Prune to so many zeros in all, where they cost least."""
        curves, declined = self._curves(weights)
        counts = counts_for(curves, total)
        outcome = self.made(model, counts).outcome()
        outcome.declined += declined
        outcome.chosen += _choices(curves, counts)
        return outcome

    def as_many_as_bearable(
        self, model: ir.Model, weights: list[Weight]
    ) -> PassOutcome:
        """Prune as long as the outputs keep the SQNR asked for."""
        if _is_repeated(model, weights, self.options):
            reason = (
                "pruned so already; give a sparsity, or a lower min_sqnr, to take more"
            )
            return PassOutcome(declined=[Declined(model.graph.name or "model", reason)])
        curves, declined = self._curves(weights)
        if not curves:
            outcome = self.made(model, {}).outcome()
            outcome.declined += declined
            return outcome
        has_data = self.context.has_data()
        limit = lost_share(self._least_sqnr())
        best = most_zeros(
            curves,
            limit,
            first=CAUTIOUS * limit,
            most=1.0 if has_data else UNSEEN_LOSS,
            unmeasured=UNMEASURED_LOSS,
            rounds=FITTED_ROUNDS if self.fits else PLAIN_ROUNDS,
            attempt=self._attempt,
        )
        if self.context.has_data() and not self.evidence.is_apart and self.options.fit:
            self.context.warn(
                "prune",
                "too few samples to judge a fit by: what stays is not fitted (32 or more are "
                "wanted, --data)",
            )
        if best is None:
            self.context.warn(
                "prune",
                f"nothing could go: no sparsity that was tried leaves the outputs "
                f"{self._least_sqnr():g} dB of SQNR",
            )
            return PassOutcome(declined=declined)
        # the pass works in place: the graph moves over
        model.graph = best.model.model.graph
        _record(model, best.model.pruned, self.options)
        outcome = best.model.outcome()
        outcome.declined += declined
        outcome.chosen += _choices(curves, best.counts)
        outcome.stats["predicted_sqnr"] = sqnr_of(predicted_loss(curves, best.counts))
        if best.lost is not None:
            outcome.stats["measured_sqnr"] = sqnr_of(best.lost)
        return outcome

    def _least_sqnr(self) -> float:
        if self.options.min_sqnr is not None:
            return self.options.min_sqnr
        return WITH_DATA if self.context.has_data() else WITHOUT_DATA

    def _curves(self, weights: list[Weight]) -> tuple[Curves, list[Declined]]:
        """Loss by the zeros of each weight; without data by its own elements alone."""
        curves: dict[str, LossCurve] = {}
        declined = []
        finite = []
        for weight in weights:
            try:
                curves[weight.name] = energy_curve(weight.tensor)
            except NonFiniteError:
                reason = "holds NaN or infinity: magnitudes have no order"
                declined.append(Declined(weight.name, reason))
                continue
            finite.append(weight)
        if self.context.has_data() and finite:
            measured = measured_curves(
                self.original,
                finite,
                self.evidence.fitting,
                self.evidence.judging,
                self.options.samples,
            )
            return measured, declined
        return curves, declined

    def _attempt(self, counts: dict[str, int]) -> Trial[_Candidate]:
        candidate = self.made(self.original.clone(), counts)
        lost = self._lost(candidate)
        return Trial(candidate, counts, lost)

    def _lost(self, candidate: _Candidate) -> float | None:
        """Share of the outputs' mean square that a candidate loses; None where nothing is run."""
        evidence = self.evidence
        loss = measured_loss(self.original, candidate.model, evidence.judging)
        return None if math.isnan(loss) else loss * evidence.allowance


RECORD = "onnx_opt.pruned"
"""Key of the model's metadata that holds the pass and the zeros that it left."""


def _record(model: ir.Model, pruned: list[PrunedWeight], options: Prune) -> None:
    zeros = sum(each.zeros for each in pruned)
    model.metadata_props[RECORD] = f"{zeros} {options}"


def _is_repeated(model: ir.Model, weights: list[Weight], options: Prune) -> bool:
    """Return whether the same pass left these weights, at least as sparse as they are now.

    Its budget counts from the model that it found: a second one would spend it again.
    """
    zeros, _, text = model.metadata_props.get(RECORD, "").partition(" ")
    if text != str(options) or not zeros.isdigit():
        return False
    return count_zeros([weight.tensor for weight in weights]) >= int(zeros)


UNSEEN_LOSS = 0.2
"""Predicted loss that is never exceeded without data, whatever made-up inputs show."""

UNMEASURED_LOSS = 0.01
"""Predicted loss where nothing is run.

ResNet-20 keeps 23 dB then, EfficientNet-Lite0 17, OCR 14.
"""

FITTED_ROUNDS = 3
"""Candidates that are fitted at most: each takes as long as all the rest of the pass."""

PLAIN_ROUNDS = 6
"""Candidates that are tried without a fit."""


def _choices(curves: Curves, counts: Mapping[str, int]) -> list[Chosen]:
    """The zeros of each weight, and what they are predicted to cost."""
    chosen = []
    for name, curve in curves.items():
        count = counts.get(name, 0)
        part = count / max(curve.size, 1)
        choice = f"{part:.0%} of {curve.size:,} weights"
        if count:
            reason = f"alone they leave the outputs {sqnr_of(curve.at(count)):.0f} dB of SQNR"
        else:
            least = sqnr_of(curve.at(max(curve.size // 100, 1)))
            reason = f"one percent would leave the outputs {least:.0f} dB of SQNR"
        chosen.append(Chosen(name, choice, reason))
    return chosen


def _zeros_for(fraction: float, weights: list[Weight]) -> int:
    """Zeros with which bit masks and nonzeros take this fraction of the weights' bytes.

    Errors: UsageError where no sparsity is enough.
    """
    elements = sum(weight.size for weight in weights)
    dense = sum(weight.tensor.nbytes for weight in weights)
    if not elements:
        return 0
    masks = elements / 8
    to_save = dense * (1 - fraction) + masks
    # of several types the smallest elements are counted: then the size holds whichever go
    smallest = min(weight.tensor.nbytes / weight.size for weight in weights)
    zeros = math.ceil(to_save / smallest)
    most = int(0.99 * elements)
    if zeros > most:
        least = 1 - (most * smallest - masks) / dense
        raise UsageError(
            "prune.size",
            f"{fraction} of the bytes is less than 99 % zeros leave",
            f"give at least {least:.3f}",
        )
    return zeros


def _check_combinations(options: Prune) -> None:
    threshold = options.threshold
    if threshold is not None and not math.isfinite(threshold):
        problem = f"{threshold} is not finite"
        _refuse("threshold", problem, "give a magnitude, for example 0.01")
    if options.mode == "clip" and options.select != "max":
        _refuse("mode", "clip saturates the largest magnitudes only", "add select=max")
    if options.pattern:
        _parse_pattern(options.pattern)
    _check_amount(options)
    _check_criteria(options)
    for op in options.ops:
        if op not in WEIGHTED_OPS:
            problem = f"'{op}' is not an op with weights"
            _refuse("ops", problem, f"choose among {', '.join(WEIGHTED_OPS)}")


def _check_amount(options: Prune) -> None:
    """Raise UsageError unless at most one option says how many weights go."""
    amounts = []
    if options.sparsity != AUTO:
        amounts.append(f"sparsity={options.sparsity}")
    if options.size is not None:
        amounts.append(f"size={options.size}")
    if options.min_sqnr is not None:
        amounts.append(f"min_sqnr={options.min_sqnr}")
    # 0 and "" are what pipeline text of older files calls off
    if options.threshold:
        amounts.append(f"threshold={options.threshold}")
    if options.pattern:
        amounts.append(f"pattern={options.pattern}")
    if len(amounts) > 1:
        first, second = amounts[:2]
        _refuse(_name_in(first), f"{first} contradicts {second}", "keep one of them")


def _rankings(options: Prune) -> list[str]:
    """Options that rank weights in their own way, as text."""
    ranked = []
    if options.select != "min":
        ranked.append(f"select={options.select}")
    if options.scope != "layer":
        ranked.append(f"scope={options.scope}")
    if options.allocation != AUTO:
        ranked.append(f"allocation={options.allocation}")
    return ranked


def _name_in(text: str) -> str:
    """Name of the option in `name=value`."""
    return text.split("=")[0]


def _check_criteria(options: Prune) -> None:
    """Raise UsageError unless at most one option says where weights go."""
    chosen = [each for each in _rankings(options) if not each.startswith("select")]
    if options.threshold:
        chosen.insert(0, f"threshold={options.threshold}")
    if options.pattern:
        chosen.insert(0, f"pattern={options.pattern}")
    if len(chosen) > 1:
        first, second = chosen[:2]
        _refuse(_name_in(first), f"{first} contradicts {second}", "keep one of them")
    by_layer = options.pattern or options.allocation not in (AUTO, "uniform")
    if options.select == "max" and by_layer:
        _refuse("select", f"max contradicts {chosen[0]}", "keep one of them")


def _refuse(option: str, problem: str, fix: str) -> NoReturn:
    raise UsageError(f"prune.{option}", problem, fix)


def _parse_pattern(text: str) -> tuple[int, int]:
    """(N, M) of `N:M`. Errors: UsageError."""
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2})", text)
    if match:
        keep, of = int(match[1]), int(match[2])
        if keep >= 1 and keep < of and of <= 64:
            return keep, of
    problem = f"'{text}' is not N:M with 1 <= N < M <= 64"
    _refuse("pattern", problem, "write for example pattern=2:4")


def _chosen(model: ir.Model, options: Prune) -> tuple[list[Weight], list[Declined]]:
    """The weights to prune, and the reason for each other one.

    Errors: UsageError for a pattern that matches no layer.
    """
    found, declined = weights_of(model)
    if options.include or options.exclude:
        names = weighted_names(model)
        require_matches("prune.include", options.include, names)
        require_matches("prune.exclude", options.exclude, names)
    chosen = []
    for weight in found:
        reason = _why_not(weight, options)
        if reason is None:
            chosen.append(weight)
        else:
            declined.append(Declined(weight.name, reason))
    return chosen, declined


def _why_not(weight: Weight, options: Prune) -> str | None:
    """Reason why this weight is not to be pruned; None if it is."""
    # nothing to rank
    if not weight.size:
        return "is empty"
    ops = [node.op_type for node, _ in weight.uses]
    if options.ops and not set(ops) & set(options.ops):
        return f"no use is one of ops=[{', '.join(options.ops)}]"
    return left_out(weight_names(weight), options.include, options.exclude)
