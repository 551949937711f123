"""Pruning by what zeros cost at the model's outputs: as many as they bear, or so many in all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from .._base import Chosen, Context, Declined, PassOutcome
from .._core.drift_budget import (
    PLACES,
    WITH_DATA,
    WITHOUT_DATA,
    lost_share,
    sqnr_of,
)
from .._core.output_drift import is_probability
from .._core.weights import Weight
from .._reconstruct.evidence import Evidence, measured_loss
from .candidates import Candidate, Pruner
from .loss_curves import (
    Curves,
    LossCurve,
    counts_for,
    counts_within,
    energy_curve,
    predicted_loss,
)
from .magnitude import NonFiniteError, count_zeros
from .search import CAUTIOUS, MOST, Trial, most_zeros
from .sensitivity import measured_curves

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

RECORD = "onnx_opt.pruned"
"""Key of the model's metadata that holds the zeros that the pass left, and its text."""


def prune_in_all(
    pruner: Pruner, model: ir.Model, context: Context, total: int
) -> PassOutcome:
    """Prune a model in place to `total` zeros in all, where they cost least."""
    evidence = Evidence.of(context)
    curves, declined = _curves(pruner, model, evidence)
    counts = counts_for(curves, total)
    # no budget is to be kept to: all of the data may be fitted to
    outcome = pruner.prune(model, context, counts).outcome()
    outcome.declined += declined
    outcome.chosen += _choices(curves, counts)
    return outcome


def prune_as_bearable(
    pruner: Pruner, model: ir.Model, context: Context, min_sqnr: float | None, text: str
) -> PassOutcome:
    """Prune a model in place as long as its outputs keep an SQNR.

    `min_sqnr`: dB; None: the default for data or for none. `text`: pipeline text of the pass, by
    which a second run of the same knows that its budget is spent.
    """
    if _is_repeated(model, pruner.weights_of(model), text):
        reason = "pruned so already; give a sparsity, or a lower min_sqnr, to take more"
        untouched = pruner.prune(model, context, {}).outcome()
        untouched.declined.append(Declined(model.graph.name or "model", reason))
        return untouched
    evidence = Evidence.of(context)
    if context.has_data() and not evidence.is_apart and pruner.fits:
        context.warn(
            "prune",
            "too few samples to judge a fit by: what stays is not fitted (give 32 or more)",
        )
        pruner = dataclasses.replace(pruner, fits=False)
    if min_sqnr is None:
        min_sqnr = default_budget(model, context)
    curves, declined = _curves(pruner, model, evidence)
    limit = lost_share(min_sqnr)
    best = _best(pruner, curves, evidence, limit) if curves else None
    if best is None and curves and pruner.fits:
        # a fit may do harm on data that it did not see
        plain = dataclasses.replace(pruner, fits=False)
        best = _best(plain, curves, evidence, limit)
    if best is None:
        if curves:
            context.warn(
                "prune",
                "nothing could go: no sparsity that was tried leaves the outputs "
                f"{min_sqnr:g} dB of SQNR; give a lower min_sqnr, or a sparsity",
            )
        outcome = pruner.prune(model, context, {}).outcome()
        outcome.declined += declined
        return outcome
    # the pass works in place: the graph moves over
    model.graph = best.candidate.model.graph
    model.metadata_props[RECORD] = f"{best.candidate.zeros} {text}"
    outcome = best.candidate.outcome()
    outcome.declined += declined
    outcome.chosen += _choices(curves, best.counts)
    predicted = predicted_loss(curves, best.counts)
    outcome.stats["predicted_sqnr"] = sqnr_of(predicted)
    if not math.isnan(best.lost):
        outcome.stats["measured_sqnr"] = sqnr_of(best.lost)
    return outcome


def default_budget(model: ir.Model, context: Context) -> float:
    """SQNR in dB that the outputs keep unless another is asked for."""
    if any(_has_places(output) for output in model.graph.outputs):
        return PLACES
    return WITH_DATA if context.has_data() else WITHOUT_DATA


def _has_places(output: ir.Value) -> bool:
    """Return whether an output says something of each of several places.

    Probabilities of classes (N, places, C), or maps (N, C, H, W).
    """
    rank = 0 if output.shape is None else len(output.shape)
    return rank >= 4 or (rank == 3 and is_probability(output))


def _is_repeated(model: ir.Model, weights: Sequence[Weight], text: str) -> bool:
    """Return whether the same pass left these weights, which are as sparse as they were then.

    Its budget counts from the model that it found: a second one would spend it again.
    """
    zeros, _, recorded = model.metadata_props.get(RECORD, "").partition(" ")
    if recorded != text or not zeros.isdigit():
        return False
    return count_zeros([weight.tensor for weight in weights]) >= int(zeros)


def _best(
    pruner: Pruner, curves: Curves, evidence: Evidence, limit: float
) -> Trial[Candidate] | None:
    """The candidate of most zeros within a limit; a cautious one where nothing can be measured."""
    original = pruner.original
    fitting, judging = evidence.fitting, evidence.judging
    if math.isnan(measured_loss(original, original, judging)):
        counts = counts_within(curves, UNMEASURED_LOSS, MOST)
        candidate = pruner.prune(original.clone(), fitting, counts)
        return Trial(candidate, counts, math.nan)

    def attempt(counts: dict[str, int]) -> Trial[Candidate]:
        candidate = pruner.prune(original.clone(), fitting, counts)
        loss = measured_loss(original, candidate.model, judging)
        return Trial(candidate, counts, loss * evidence.allowance)

    has_data = fitting.has_data()
    fits = pruner.fits and has_data
    return most_zeros(
        curves,
        limit,
        first=CAUTIOUS * limit,
        most=1.0 if has_data else UNSEEN_LOSS,
        rounds=FITTED_ROUNDS if fits else PLAIN_ROUNDS,
        attempt=attempt,
    )


def _curves(
    pruner: Pruner, model: ir.Model, evidence: Evidence
) -> tuple[Curves, list[Declined]]:
    """Loss by the zeros of each weight; without data by its own elements alone."""
    curves: dict[str, LossCurve] = {}
    declined = []
    finite = []
    for weight in pruner.weights_of(model):
        try:
            curves[weight.name] = energy_curve(weight.tensor)
        except NonFiniteError:
            reason = "it holds NaN or infinity, which cannot be ranked by magnitude"
            declined.append(Declined(weight.name, reason))
        else:
            finite.append(weight)
    if not evidence.fitting.has_data() or not finite:
        return curves, declined
    measured = measured_curves(
        pruner.original,
        finite,
        evidence.fitting,
        evidence.judging,
        pruner.samples,
    )
    return measured, declined


def _choices(curves: Curves, counts: Mapping[str, int]) -> list[Chosen]:
    """The zeros of each weight, and what they are predicted to cost."""
    chosen = []
    for name, curve in curves.items():
        count = counts.get(name, 0)
        part = count / max(curve.size, 1)
        choice = f"{part:.0%} of {curve.size:,} weights"
        if count:
            alone = sqnr_of(curve.at(count))
            reason = f"predicted: alone they leave the outputs {alone:.0f} dB of SQNR"
            if part > MOST - 0.005:
                reason += "; more is pruned only if a sparsity is given"
        else:
            one_percent = max(curve.size // 100, 1)
            least = sqnr_of(curve.at(one_percent))
            reason = f"predicted: one percent leaves the outputs {least:.0f} dB of SQNR"
        chosen.append(Chosen(name, choice, reason))
    return chosen
