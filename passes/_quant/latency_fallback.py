"""Return of int8 regions to float where the quantized model measures slower than the float one."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from .._core.context import Context
from .._core.graph import all_nodes, become, label
from .._core.halving import kept_by_halving
from .._core.outcome import Declined, PassOutcome
from .._core.provenance import FloatLayer, float_layer
from .._core.targets import TARGETS, QuantRules
from .._core.union_find import Sets
from .kernel_audit import quantized_layers

MAX_TRIALS = 16
"""Tries (count) after which regions that are not decided go back to float; bounds the time."""

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
    """Put back to float what makes `model` slower than `before`; all layers where nothing else
    helps.

    `outcome` is that of quantizing; it is returned unless something had to go back. Where nothing
    can be measured, or it is not decided which is slower, nothing is changed: the bytes are saved
    for certain.
    """
    ratio = context.latency_ratio(before, model)
    if ratio is None:
        return outcome
    verdict = ratio.verdict()
    if verdict == "undecided":
        context.warn(
            "quant",
            f"the timing does not decide whether int8 is slower than float ({ratio} times its "
            "latency): it stays int8, which is smaller; run again on an idle machine to know",
        )
    if verdict != "slower":
        return outcome
    regions = regions_of(model, TARGETS[context.target].quant)
    search = _Search(quantize, before, context, regions)
    kept = kept_by_halving(regions, search.is_not_slower, MAX_TRIALS)
    reason = f"in int8 it took {ratio} times as long as in float"
    declined = []
    for region in regions:
        if region not in kept:
            declined += [Declined(layer.label, reason) for layer in region.layers]
    # with none of them in int8, what is only stored in 8 bits stays
    candidate, partial = search.quantized(kept)
    become(model, candidate)
    # they were excluded for this trial: that is no reason to tell
    back = {d.where for d in declined}
    others = [d for d in partial.declined if d.where not in back]
    partial.declined = others + declined
    return partial


@dataclass(frozen=True)
class _Search:
    """Trials of a part of the regions in int8, the others in float."""

    quantize: Quantize
    before: ir.Model
    context: Context
    regions: Sequence[Region]

    def is_not_slower(self, group: Sequence[Region]) -> bool:
        """True if it is decided that these regions make the model no slower than float."""
        candidate, outcome = self.quantized(group)
        if not outcome.changed:
            return False
        # all together are slower for certain: here a doubt counts against them
        return self.context.is_not_slower(self.before, candidate)

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
    connected = _connected(all_nodes(model), rules)
    regions: dict[ir.Node, Region] = {}
    for nodes in quantized_layers(model).values():
        for node in nodes:
            region = regions.setdefault(connected.root(node), Region())
            region.layers.append(float_layer(node) or _as_found(node))
    return sorted(regions.values(), key=lambda region: len(region.layers))


def _as_found(node: ir.Node) -> FloatLayer:
    """A layer that came quantized already: it is known by what it is."""
    return FloatLayer(node.name or node.outputs[0].name or "", label(node))


def _connected(nodes: Iterable[ir.Node], rules: QuantRules) -> Sets[ir.Node]:
    """Sets of nodes between which values stay integers."""
    sets = Sets[ir.Node]()
    through = {*rules.integer_ops, *rules.carry, *rules.folded, *PAIR, "MatMulInteger"}
    for node in nodes:
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
