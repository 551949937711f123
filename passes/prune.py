"""Pruning of weights, in place, shapes unchanged."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

import onnx_ir as ir

from .. import UsageError
from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._core.drift_budget import PLACES, WITH_DATA, WITHOUT_DATA
from ._core.graph import become
from ._core.ops import WEIGHTED_OPS
from ._core.options import AUTO, Auto
from ._core.patterns import left_out, require_matches, weight_names, weighted_names
from ._core.weights import Weight, weights_of
from ._simplify.plain_weights import plain_weights
from ._sparsity.allocation import share
from ._sparsity.bearable import prune_as_bearable, prune_in_all
from ._sparsity.by_name import check_layers, counts_by_name
from ._sparsity.candidates import Pruner
from ._sparsity.pools import Criteria

HALF = 0.5
"""Sparsity where an option says which weights go but none says how many."""


@dataclass(frozen=True)
class Prune(Pass):
    """Zero the weights of smallest magnitude, or those that matter least to the outputs.

    Effect: lossy. Touches float weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, in
    every subgraph; shapes, dtypes and names stay. A weight that several nodes share is one weight.
    Entries that are already zero count as pruned.

    Without options (`sparsity=auto`), it prunes as many weights as the outputs can bear. It
    measures on data, layer by layer, what zeros cost at the model's outputs (without data it
    predicts this from the weights) and prunes the cheapest weights of all layers. It then measures
    the result on samples that no fit saw (without data, on synthetic inputs), and adjusts the
    amount until the result keeps `min_sqnr`. `chosen` says what each layer gave and what that
    costs. With `size`, or with data and a `sparsity`, as many weights go in all as requested, where
    they cost least (`allocation=auto`).

    With data, the remaining weights are fitted (`fit`), layer by layer: by least squares, from the
    layer's inputs in the pruned model to its outputs in the original, biases included (a MatMul
    without one gets an Add). Each layer keeps its number of zeros. Their places follow `pattern`,
    `threshold` and `scope=row`; otherwise they are chosen by magnitude, activation or second order.
    Choice and fit use one half of the data and are judged on the other. A layer that the fit does
    not improve there stays as it was pruned and is named, as are layers that cannot be fitted.

    Shapes: any weight -> same. What becomes zero:

    - `sparsity`: exactly floor(sparsity * size) entries of each pool, ties by index. A pool is all
      weights (allocation=auto with data), or else a layer, the model or a row (`scope`). Without
      data, every kept |w| of a pool >= every pruned |w|.
    - `pattern=N:M`: all but N entries of each group of M along the op's input axis.
    - `threshold`: entries with |w| <= threshold. With select=max, entries with |w| >= threshold are
      zeroed, or clipped to it.

    select=max, which zeroes or clips the largest weights, serves as a control and for outliers.

    Errors: UsageError if options contradict each other, if no sparsity reaches a `size`, or if a
    pattern of include, exclude or layers matches no layer.

    Stats: `weights` (count), `zeros` (count), `sparsity` (fraction), `clipped` (count, mode=clip),
    `fitted` (count of layers), `by_…` (counts of layers by the criterion that chose their mask),
    `select`, `zipped_bytes` (all these weights under zlib level 1; absent above 256 MiB of
    weights); with sparsity=auto also `predicted_sqnr` and `measured_sqnr` (dB; the latter is absent
    if nothing is run).

    Source: Han et al., Learning both Weights and Connections, NeurIPS 2015 (arXiv:1506.02626);
    allocations: Everett, Operations Research 11 (1963) for auto, Evci et al. 2020
    (arXiv:1911.11134), Lee et al. 2021 (arXiv:2010.07611); N:M: Mishra et al. 2021
    (arXiv:2104.08378).
    """

    name: ClassVar[str] = "prune"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "weights"

    sparsity: float | Auto = Option(
        AUTO,
        "Fraction of weights to zero (select=max, mode=clip: to clip). auto: as many as the "
        "outputs can bear (min_sqnr); half of them if select, scope or allocation is given.",
        low=0.0,
        high=0.99,
    )
    min_sqnr: float | None = Option(
        None,
        "SQNR that the outputs must keep with sparsity=auto, of what varies between samples; "
        f"unset: {WITH_DATA:g} on data, {WITHOUT_DATA:g} on synthetic inputs, {PLACES:g} on "
        "either for maps and for probabilities at several places of a sample.",
        low=0.0,
        high=120.0,
        unit="dB",
    )
    size: float | None = Option(
        None,
        "Fraction of the weights' bytes to leave, stored as bit masks and nonzeros, instead of a "
        "sparsity.",
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
        "zero", "Zero the selected weights, or saturate them (select=max only)."
    )
    scope: Literal["layer", "model", "row"] = Option(
        "layer",
        "Rank weights within each layer, across the model, or within each output row.",
    )
    pattern: str | None = Option(
        None,
        "N:M: keep N of every M weights along the input axis, e.g. 2:4; sets the sparsity.",
    )
    allocation: Literal["auto", "uniform", "erk", "lamp"] = Option(
        AUTO,
        "How sparsity is spread over layers: uniform, by Erdos-Renyi kernel (erk), by LAMP score, "
        "or by what zeros cost at the model's outputs (auto: with data or size; else uniform).",
    )
    fit: bool = Option(
        True,
        "With data, fit the remaining weights by least squares to the original's outputs.",
    )
    samples: int = Option(
        512, "Maximum number of calibration samples to fit to.", low=1, high=10_000_000
    )
    include: tuple[str, ...] = Option(
        (),
        "Only weights of layers whose node, weight or output name matches a pattern.",
    )
    exclude: tuple[str, ...] = Option(
        (), "Leave out layers whose node, weight or output name matches a pattern."
    )
    layers: tuple[str, ...] = Option(
        (),
        "Sparsity of single layers, first match wins: PATTERN=SPARSITY; or @FILE.toml, whose table"
        ' [layers] has lines "PATTERN" = "SPARSITY". Other layers get `sparsity`, or none if it is'
        " auto.",
    )
    ops: tuple[str, ...] = Option(
        (), "Only weights of these op types; all weighted ops by default."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_combinations(self)

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        plain = plain_weights(model)
        weights, declined = _chosen(plain, self)
        if plain is not model and weights:
            become(model, plain)
        if self.select == "max" and self.mode == "zero":
            context.warn(
                "prune.select",
                "max zeroes the largest weights: a control experiment, outputs suffer most",
            )
        pruner = Pruner(
            model.clone(),
            lambda each: _chosen(each, self)[0],
            self.criteria,
            fits=self.fit and self.select == "min",
            samples=self.samples,
        )
        if self.layers:
            counts = counts_by_name(self.layers, self.sparsity, weights, plain)
            outcome = pruner.prune(model, context, counts).outcome()
        elif self._is_automatic:
            outcome = prune_as_bearable(
                pruner, model, context, self.min_sqnr, str(self)
            )
        elif self._follows_losses(context):
            outcome = prune_in_all(pruner, model, context, self._total(weights))
        else:
            outcome = pruner.prune(model, context).outcome()
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
    def _is_automatic(self) -> bool:
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
            f"{fraction} is too small: with 99 % zeros {least:.3f} of the bytes is left",
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
    if options.layers:
        _check_by_name(options)
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
    # both put zeros where they cost least, whatever else would rank them
    for option in ("size", "min_sqnr"):
        value = getattr(options, option)
        rankings = _rankings(options)
        if value is not None and rankings:
            problem = f"{option}={value} contradicts {rankings[0]}"
            _refuse(option, problem, "keep one of them, or give a sparsity")


def _check_by_name(options: Prune) -> None:
    """Raise UsageError unless `layers` alone, with `sparsity`, says how many weights go."""
    check_layers(options.layers)
    others = _rankings(options)
    for option in ("size", "min_sqnr", "threshold", "pattern"):
        value = getattr(options, option)
        if value:
            others.append(f"{option}={value}")
    if others:
        first = others[0]
        _refuse("layers", f"contradicts {first}", "keep one of them")


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
