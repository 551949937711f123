"""Passes that `quant` runs inside, and what they changed and declined."""

from __future__ import annotations

import functools
import glob
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from .._calibrated.block_rounding import round_in_blocks
from .._calibrated.codebook_rounding import round_to_codebooks
from .._calibrated.grid import grid_of_bits
from .._calibrated.palette_rounding import round_to_palettes
from .._calibrated.rounding import DAMP
from .._core.context import Context
from .._core.linear import LinearLayer
from .._core.outcome import Chosen, Declined, PassOutcome
from ..gptq import Gptq
from ..smooth import Smooth
from .block_grids import BLOCK_BITS, BlockGrid
from .grids import Grid
from .layers import QuantLayer
from .plan import PlanRequest, QuantPlan
from .schemes import BLOCKED, FORMS

UNSEEN_DAMP = 1.0
"""Damping of `gptq` where inputs are made up, which tell little of real ones. Chosen by hand."""

ROUNDING_SAMPLES = 64
"""Calibration samples for `gptq`: more change nothing that was measured."""


def in_short_blocks(planned: QuantPlan) -> set[str]:
    """Names of weights that get blocks of so few bits that rounding is worth care."""
    found = set()
    for graph_plan in planned.graphs:
        for layer in graph_plan.engines.get(BLOCKED, []):
            if graph_plan.choices[layer].bits == BLOCK_BITS:
                found.add(layer.weight.name or "")
    return found


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
    only: Collection[str] | None = None,
) -> None:
    """Even out what layers read; `only`: those of these weights."""
    with context.progress(smooth.name, 1):
        smoothed = smooth.run_on(model, context, only)
    before = int(outcome.stats.get("smoothed", 0))
    outcome.stats["smoothed"] = before + smoothed.changed
    inner.add(Smooth.name, smoothed.declined)


def round_inside(
    model: ir.Model,
    planned: QuantPlan,
    request: PlanRequest,
    context: Context,
    outcome: PassOutcome,
    inner: InnerReasons,
    samples: int,
    is_real: bool,
    sensitive: float,
) -> list[Chosen]:
    """Bring the weights of integer layers onto their grids, each layer's outputs kept.

    Returns the weights of layers in blocks that lose most, which stay as they were: at most the
    share `sensitive` of all in blocks. `is_real`: the context's data are the user's.
    """
    finer: list[Chosen] = []
    tally = _RoundedLayers()
    samples = min(samples, ROUNDING_SAMPLES)
    damp = DAMP if is_real else UNSEEN_DAMP
    # one grid at a time: layers of a model may differ in bits
    by_grid, limited = _grids(planned, request)
    for (bits, block), layers in by_grid.items():
        with context.progress(Gptq.name, 1):
            if block is None:
                rounding = Gptq(
                    bits=bits,
                    samples=samples,
                    damp=damp,
                    include=_names(layers),
                )
                grid_of = functools.partial(_grid_of, bits, limited)
                found = rounding.run_on(model, context, grid_of)
            else:
                blocks = round_in_blocks(
                    model,
                    context,
                    BlockGrid(bits, block),
                    samples,
                    DAMP,
                    _names(layers),
                    sensitive=sensitive,
                    fixed=_named(planned),
                )
                found = blocks.outcome
                finer += blocks.left
        tally.add(found)
        inner.add(Gptq.name, _of(layers, found))
    for (kind, bits), layers in _by_codes(planned).items():
        with context.progress(kind, 1):
            found = _ROUNDING[kind](
                model,
                context,
                bits,
                samples,
                _names(layers),
                is_real,
            )
        tally.add(found)
        inner.add(kind, _of(layers, found))
    if tally.asked:
        outcome.stats["rounded"] = tally.layers
    if tally.layers:
        outcome.stats["rounding_gain_db"] = round(tally.gained / tally.layers, 2)
    outcome.chosen += finer
    return finer


@dataclass
class _RoundedLayers:
    """Layers that were rounded (count), and the decibels that they gained together."""

    asked: bool = False
    layers: int = 0
    gained: float = 0.0

    def add(self, found: PassOutcome) -> None:
        self.asked = True
        self.layers += found.changed
        self.gained += found.changed * float(found.stats["gain_db"])


_ROUNDING = {"palettes": round_to_palettes, "codebook": round_to_codebooks}
"""Functions that bring weights onto codes other than steps, by their kind."""

Grids = dict[tuple[int, int | None], list[QuantLayer]]
"""Layers by the bits of their weights, and by the block that shares a scale where there is one."""


def _grids(planned: QuantPlan, request: PlanRequest) -> tuple[Grids, set[str]]:
    """Layers that GPTQ rounds to steps, and the weights that must not saturate."""
    found: Grids = {}
    limited: set[str] = set()
    for graph_plan in planned.graphs:
        placement = graph_plan.placement(request.rules)
        for layer in graph_plan.limited(placement, request.rules):
            limited.add(layer.weight.name or "")
        for layer in placement.layers:
            choice = graph_plan.choices[layer]
            if FORMS[choice.form].has_bits and choice.codes == "steps":
                found.setdefault((choice.bits, None), []).append(layer)
        for layer in graph_plan.engines.get(BLOCKED, []):
            if graph_plan.choices[layer].bits == BLOCK_BITS:
                found.setdefault((BLOCK_BITS, request.block), []).append(layer)
    return found, limited


def _by_codes(planned: QuantPlan) -> dict[tuple[str, int], list[QuantLayer]]:
    """Layers with palettes or codebooks by kind and bits, whatever engine runs them."""
    found: dict[tuple[str, int], list[QuantLayer]] = {}
    for graph_plan in planned.graphs:
        for layer in graph_plan.layers:
            choice = graph_plan.choices[layer]
            if choice.codes in _ROUNDING:
                key = (choice.codes, choice.bits)
                found.setdefault(key, []).append(layer)
    return found


def _names(layers: list[QuantLayer]) -> tuple[str, ...]:
    return tuple(glob.escape(layer.weight.name or "") for layer in layers)


def _named(planned: QuantPlan) -> set[str]:
    """Weights of layers whose form the user chose by name."""
    found = set()
    for graph_plan in planned.graphs:
        for layer, choice in graph_plan.choices.items():
            if choice.named:
                found.add(layer.weight.name or "")
    return found


def _of(layers: list[QuantLayer], found: PassOutcome) -> list[Declined]:
    """Reasons of these layers: a pass walks all, and says of others that nobody names them."""
    labels = {layer.name for layer in layers}
    return [declined for declined in found.declined if declined.where in labels]


def _grid_of(bits: int, limited: Collection[str], layer: LinearLayer) -> Grid:
    return grid_of_bits(bits, layer if layer.weight.name in limited else None)
