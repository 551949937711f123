"""Never slower: where the quantized graph measures slower than the float one, regions of it go back
to float.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import onnx_ir as ir

from .._base import Context, Declined, PassOutcome
from .._core.graph import become
from .._core.targets import TARGETS, QuantRules
from .._core.union_find import Sets
from .kernel_audit import prove, quantized_layers
from .layers import label

SLOWER = 1.03
"""Slower for certain: three of four paired runs take longer than this many times the float model's
time.
"""

SECONDS = 1.0
"""How long a trial is timed; the verdict that int8 is slower is confirmed over three times that."""

MAX_TRIALS = 16
PAIR = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
FOLLOWED = 6
"""Nodes between an integer product and the value that carries the layer's name."""

Quantize = Callable[[ir.Model, Context, tuple[str, ...]], PassOutcome]
"""Quantizes a model in place but for the layers whose names match the given patterns."""


@dataclass
class Region:
    """Layers that hand each other int8 values. `names`: how exclude patterns name them; `labels`:
    how reports do.
    """

    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def checked(
    quantize: Quantize, model: ir.Model, context: Context, measure: bool
) -> PassOutcome:
    """Quantize `model` in place, keep what does not make it slower, and prove what the runtime
    makes of it.
    """
    before = model.clone()
    remembering = cast(Context, _RememberedRanges(context))
    outcome = quantize(model, remembering, ())
    if outcome.changed and measure:
        outcome = keep_faster(quantize, before, model, remembering, outcome)
    if outcome.changed:
        prove(model, context, outcome)
    return outcome


def keep_faster(
    quantize: Quantize,
    before: ir.Model,
    model: ir.Model,
    context: Context,
    outcome: PassOutcome,
) -> PassOutcome:
    """Put back to float what makes `model` slower than `before`; all of it where nothing else
    helps.

    `outcome` is what quantizing gave; it is returned unless something had to go back. Where nothing
    can be measured nothing is changed.
    """
    ratio = _slower(before, model, context)
    if ratio is None:
        return outcome
    regions = regions_of(model, before, TARGETS[context.target].quant)
    search = _Search(quantize, before, context, regions)
    kept = search.kept_of_halves(regions)
    if kept and not search.is_faster(kept):
        kept = []
    back = [region for region in regions if region not in kept]
    reason = f"measured {ratio:.2f} times as slow in int8 as in float"
    declined = [Declined(text, reason) for region in back for text in region.labels]
    if not kept:
        become(model, before)
        return PassOutcome(declined=[*outcome.declined, *declined])
    candidate, partial = search.quantized(kept)
    become(model, candidate)
    chosen = {d.where for d in declined}
    partial.declined = [d for d in partial.declined if d.where not in chosen] + declined
    return partial


def _slower(before: ir.Model, model: ir.Model, context: Context) -> float | None:
    """The median ratio to the float model's time, where the quantized one is slower beyond noise,
    twice.
    """
    for seconds in (SECONDS, 3 * SECONDS):
        quartiles = context.latency_ratio(before, model, seconds)
        if quartiles is None or quartiles[0] <= SLOWER:
            return None
    assert quartiles is not None
    return quartiles[1]


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
        """What to keep of a group that is too slow as a whole."""
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
        """Whether three of four paired runs are faster than float; no, where too much was tried
        already.
        """
        if self.trials == 0:
            return False
        self.trials -= 1
        candidate, outcome = self.quantized(group)
        if not outcome.changed:
            return False
        quartiles = self.context.latency_ratio(self.before, candidate, SECONDS)
        return quartiles is not None and quartiles[2] < 1.0

    def quantized(self, group: Sequence[Region]) -> tuple[ir.Model, PassOutcome]:
        """The model with only this group in int8."""
        candidate = self.before.clone()
        excluded = [
            glob.escape(name)
            for region in self.regions
            if region not in group
            for name in region.names
        ]
        return candidate, self.quantize(candidate, self.context, tuple(excluded))


def regions_of(model: ir.Model, before: ir.Model, rules: QuantRules) -> list[Region]:
    """Groups of quantized layers connected by int8 values; short ones, which pay most for their
    borders, first.
    """
    sets = Sets[ir.Node]()
    through = {*rules.heavy, *rules.carry, *rules.folded, *PAIR, "MatMulInteger"}
    for node in model.graph:
        if node.op_type not in through:
            continue
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is None or producer.op_type not in through:
                continue
            if (
                node.op_type in PAIR
                or producer.op_type in PAIR
                or node.op_type in rules.folded
            ):
                sets.join(node, producer)
    known = {
        name
        for n in before.graph
        for name in (n.name, *(o.name for o in n.outputs))
        if name
    }
    regions: dict[ir.Node, Region] = {}
    for node in (node for nodes in quantized_layers(model).values() for node in nodes):
        region = regions.setdefault(sets.root(node), Region())
        name = _name_before(node, known)
        region.names.append(name)
        region.labels.append(
            label(node) if node.op_type in rules.heavy else f"MatMul {name}"
        )
    return sorted(regions.values(), key=lambda region: len(region.names))


def _name_before(node: ir.Node, known: set[str]) -> str:
    """The name by which an exclude pattern finds the layer in the float model."""
    if node.name and node.name in known:
        return node.name
    value = node.outputs[0]
    for _ in range(FOLLOWED):
        uses = list(value.uses())
        if value.name in known or len(uses) != 1:
            break
        value = uses[0].node.outputs[0]
    return value.name or ""


class _RememberedRanges:
    """A context that calibrates each tensor once, however many trials ask for it: float values do
    not change.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ranges: dict[tuple[str, tuple[Any, ...]], tuple[float, float]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def activation_ranges(
        self, model: ir.Model, names: Sequence[str], *how: Any
    ) -> dict[str, tuple[float, float]]:
        missing = [name for name in names if (name, how) not in self._ranges]
        if missing:
            found = self._context.activation_ranges(model, missing, *how)
            self._ranges.update({(name, how): range_ for name, range_ in found.items()})
        return {
            name: self._ranges[name, how]
            for name in names
            if (name, how) in self._ranges
        }
