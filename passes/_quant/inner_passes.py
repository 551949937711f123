"""Passes that `quant` runs inside, and what they changed and declined."""

from __future__ import annotations

import functools
import glob
from collections.abc import Collection

import onnx_ir as ir

from .._calibrated.grid import grid_of_bits
from .._core.context import Context
from .._core.linear import LinearLayer
from .._core.outcome import Declined, PassOutcome
from ..gptq import BLOCK_BITS, Gptq
from ..smooth import Smooth
from .grids import Grid
from .layers import QuantLayer
from .plan import PlanRequest, QuantPlan
from .schemes import BLOCKED, FORMS

ROUNDING_SAMPLES = 64
"""Calibration samples for `gptq`: more change nothing that was measured."""


class InnerReasons:
    """Reasons of the passes that `quant` runs, with the names of those that gave each."""

    def __init__(self) -> None:
        self._given_by: dict[Declined, list[str]] = {}

    def add(self, name: str, declined: list[Declined]) -> None:
        """Note what the pass called `name` declined."""
        for reason in declined:
            names = self._given_by.setdefault(reason, [])
            if name not in names:
                names.append(name)

    def besides(self, own: Collection[str]) -> list[Declined]:
        """Each reason once, but for those of what `own` names."""
        left = set(own)
        found = []
        for declined, names in self._given_by.items():
            if declined.where not in left:
                reason = f"{', '.join(names)}: {declined.reason}"
                found.append(Declined(declined.where, reason))
        return found


def smooth_inside(
    smooth: Smooth,
    model: ir.Model,
    context: Context,
    outcome: PassOutcome,
    inner: InnerReasons,
) -> None:
    """Even out what layers read."""
    smoothed = smooth.run_within(model, context)
    outcome.stats["smoothed"] = smoothed.changed
    inner.add(Smooth.name, smoothed.declined)


def round_inside(
    model: ir.Model,
    planned: QuantPlan,
    request: PlanRequest,
    context: Context,
    outcome: PassOutcome,
    inner: InnerReasons,
    samples: int,
) -> None:
    """Bring the weights of integer layers onto their grids, each layer's outputs kept."""
    # by bits, and by the block that shares a scale where there is one
    by_grid: dict[tuple[int, int | None], list[QuantLayer]] = {}
    limited: set[str] = set()
    for graph_plan in planned.graphs:
        placement = graph_plan.placement(request.rules)
        for layer in graph_plan.limited(placement, request.rules):
            limited.add(layer.weight.name or "")
        for layer in placement.layers:
            choice = graph_plan.choices[layer]
            if FORMS[choice.form].has_bits:
                by_grid.setdefault((choice.bits, None), []).append(layer)
        for layer in graph_plan.engines.get(BLOCKED, []):
            if graph_plan.choices[layer].bits == BLOCK_BITS:
                by_grid.setdefault((BLOCK_BITS, request.block), []).append(layer)
    rounded = 0
    gained = 0.0
    # one grid at a time: layers of a model may differ in bits
    for (bits, block), layers in by_grid.items():
        names = [glob.escape(layer.weight.name or "") for layer in layers]
        rounding = Gptq(
            bits=bits,
            block=block,
            samples=min(samples, ROUNDING_SAMPLES),
            include=tuple(names),
        )
        grid_of = functools.partial(_grid_of, bits, limited)
        with context.progress(Gptq.name, 1):
            found = rounding.run_on(model, context, grid_of)
        rounded += found.changed
        gained += found.changed * float(found.stats["gain_db"])
        # it walks all layers, and says of the others that include does not name them
        labels = {layer.name for layer in layers}
        inner.add(Gptq.name, [d for d in found.declined if d.where in labels])
    if by_grid:
        outcome.stats["rounded"] = rounded
    if rounded:
        outcome.stats["rounding_gain_db"] = round(gained / rounded, 2)


def _grid_of(bits: int, limited: Collection[str], layer: LinearLayer) -> Grid:
    return grid_of_bits(bits, layer if layer.weight.name in limited else None)
