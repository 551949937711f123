"""Layers as integers: codes, calibration of all graphs at once, then engine by engine."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from .._core.graph import Names
from .calibrate import Calibration, Ranges, calibrate
from .engine import Counts, Insertion, stat_of
from .layers import QuantLayer
from .other_layers import OtherPlan
from .plan import PlanRequest, QuantPlan
from .schemes import ENGINES


def write_layers(
    model: ir.Model,
    planned: QuantPlan,
    request: PlanRequest,
    ranges: Ranges,
    names: Names,
    others: OtherPlan,
) -> Counts:
    """Rewrite all planned layers, in place.

    Counts: those of the engines, and the weights of each width. Errors: RefusedError where a weight
    holds NaN or infinity, or calibration meets some.
    """
    rules = request.rules
    placements = [graph.placement(rules) for graph in planned.graphs]
    counts: Counter[str] = Counter()
    # before calibration, which a weight of NaN would make fail with a less helpful reason
    codes = []
    activation_bits: dict[QuantLayer, int] = {}
    for graph_plan, placement in zip(planned.graphs, placements, strict=True):
        limited = graph_plan.limited(placement, rules)
        codes.append(graph_plan.codes(request.options, limited))
        for layer in placement.layers:
            choice = graph_plan.choices[layer]
            activation_bits[layer] = choice.activation_bits
    # of all graphs at once: a run shows them all
    calibrations: list[Calibration | None] = [None] * len(placements)
    if planned.needs_ranges:
        calibrations[:] = calibrate(
            model,
            placements,
            activation_bits,
            rules,
            ranges,
        )
    for graph_plan, calibration, encoded in zip(
        planned.graphs, calibrations, codes, strict=True
    ):
        insertion = Insertion(
            graph=graph_plan.graph,
            names=names,
            rules=rules,
            bits={v: graph_plan.choices[v].bits for v in graph_plan.layers},
            block=request.block,
            codes=encoded,
            calibration=calibration,
            tables=others.table_values,
            rows=others.rows,
        )
        for engine in ENGINES:
            layers = graph_plan.engines.get(engine)
            if layers:
                counts.update(engine.insert(insertion, layers))
        for width, size in graph_plan.sizes_by_width(request.options).items():
            counts[stat_of(width)] += size
        for layer in graph_plan.layers:
            layer.chain.remove_unread()
    return dict(counts)
