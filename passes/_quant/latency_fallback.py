"""Return of int8 regions to float where the quantized model measures slower than the float one."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from .._core.context import Context
from .._core.graph import become, label
from .._core.outcome import Declined, PassOutcome
from .._core.provenance import FloatLayer, float_layer
from .._core.targets import TARGETS, QuantRules
from .._core.union_find import Sets
from .kernel_audit import quantized_layers

SLOWER = 1.03
"""Ratio of times (quantized to float) above which a model is slower for certain: three of four
paired runs are; chosen by hand, above the noise of paired runs.
"""

SECONDS = 1.0
"""Time of one trial (s); the verdict that int8 is slower is confirmed over three times that. Chosen
by hand.
"""

MAX_TRIALS = 16
"""Regions timed (count) before the search gives up and leaves the rest float; bounds the time."""

PAIR = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

Quantize = Callable[[ir.Model, tuple[str, ...]], PassOutcome]
"""Quantizes a model in place but for the layers whose names match the given patterns."""


@dataclass
class Region:
    """Layers that hand each other int8 values."""

    layers: list[FloatLayer] = field(default_factory=list)


def keep_faster(
    quantize: Quantize,
    before: ir.Model,
    model: ir.Model,
    context: Context,
    outcome: PassOutcome,
) -> PassOutcome:
    """Put back to float what makes `model` slower than `before`; all of it where nothing else
    helps.

    `outcome` is that of quantizing; it is returned unless something had to go back. Where nothing
    can be measured nothing is changed.
    """
    ratio = _slower(before, model, context)
    if ratio is None:
        return outcome
    regions = regions_of(model, TARGETS[context.target].quant)
    search = _Search(
        quantize,
        before,
        context,
        regions,
    )
    kept = search.kept_of_halves(regions)
    # halves were faster each by itself; together they may not be
    if kept and not search.is_faster(kept):
        kept = []
    reason = f"measured {ratio:.2f} times as slow in int8 as in float"
    declined = []
    for region in regions:
        if region not in kept:
            declined += [Declined(layer.label, reason) for layer in region.layers]
    if not kept:
        become(model, before)
        return PassOutcome(declined=[*outcome.declined, *declined])
    candidate, partial = search.quantized(kept)
    become(model, candidate)
    # they were excluded for this trial: that is no reason to tell
    back = {d.where for d in declined}
    others = [d for d in partial.declined if d.where not in back]
    partial.declined = others + declined
    return partial


def _slower(before: ir.Model, model: ir.Model, context: Context) -> float | None:
    """The median ratio to the float model's time; None unless the model is slower beyond noise,
    twice.
    """
    median = 0.0
    # twice, for a verdict costs layers their int8
    for seconds in (SECONDS, 3 * SECONDS):
        ratio = context.latency_ratio(before, model, seconds)
        if ratio is None:
            return None
        if ratio.low <= SLOWER:
            return None
        median = ratio.median
    return median


class _Search:
    """Bisection over regions: a group is kept if the model is faster than float with only that
    group in int8.
    """

    def __init__(
        self,
        quantize: Quantize,
        before: ir.Model,
        context: Context,
        regions: Sequence[Region],
    ) -> None:
        self.quantize = quantize
        self.before = before
        self.context = context
        self.regions = regions
        self.trials = MAX_TRIALS

    def kept_of_halves(self, group: Sequence[Region]) -> list[Region]:
        """The regions to keep of a group that is too slow as a whole."""
        # one region that is too slow by itself goes back
        if len(group) < 2:
            return []
        middle = len(group) // 2
        kept: list[Region] = []
        for half in (group[:middle], group[middle:]):
            if self.is_faster(half):
                kept += half
            else:
                kept += self.kept_of_halves(half)
        return kept

    def is_faster(self, group: Sequence[Region]) -> bool:
        """True if three of four paired runs are faster than float; False where too much was tried
        already.
        """
        if self.trials == 0:
            return False
        self.trials -= 1
        candidate, outcome = self.quantized(group)
        if not outcome.changed:
            return False
        ratio = self.context.latency_ratio(
            self.before,
            candidate,
            SECONDS,
        )
        return ratio is not None and ratio.high < 1.0

    def quantized(self, group: Sequence[Region]) -> tuple[ir.Model, PassOutcome]:
        """The model with only this group in int8."""
        # quantizing is not undone: every trial starts from the float model
        candidate = self.before.clone()
        excluded = []
        for region in self.regions:
            if region not in group:
                excluded += [glob.escape(layer.name) for layer in region.layers]
        return candidate, self.quantize(candidate, tuple(excluded))


def regions_of(model: ir.Model, rules: QuantRules) -> list[Region]:
    """Groups of quantized layers connected by int8 values.

    Short ones, which pay most for their borders, first.
    """
    connected = _connected(model.graph, rules)
    regions: dict[ir.Node, Region] = {}
    for nodes in quantized_layers(model).values():
        for node in nodes:
            region = regions.setdefault(connected.root(node), Region())
            region.layers.append(float_layer(node) or _as_found(node))
    return sorted(regions.values(), key=lambda region: len(region.layers))


def _as_found(node: ir.Node) -> FloatLayer:
    """A layer that came quantized already: it is known by what it is."""
    return FloatLayer(node.name or node.outputs[0].name or "", label(node))


def _connected(graph: ir.Graph, rules: QuantRules) -> Sets[ir.Node]:
    """Sets of nodes between which values stay integers."""
    sets = Sets[ir.Node]()
    through = {*rules.integer_ops, *rules.carry, *rules.folded, *PAIR, "MatMulInteger"}
    for node in graph:
        if node.op_type not in through:
            continue
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is None or producer.op_type not in through:
                continue
            # two layers with no Q, DQ or folded activation between them exchange floats
            either = {node.op_type, producer.op_type}
            if either & PAIR or node.op_type in rules.folded:
                sets.join(node, producer)
    return sets
