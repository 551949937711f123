"""Decisions before changes: which layers of each graph become what, and why the others do not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ... import RefusedError
from .._core.bodies import Body, bodies_of
from .._core.chains import made_of_constants
from .._core.channel_layout import Layout
from .._core.graph import all_graphs
from .._core.lazy import side_by_side
from .._core.outcome import Declined
from .._core.tables import tables_of
from .._core.targets import QuantRules
from .._core.weights import other_weights
from .dynamic import why_not_float
from .engine import Engine, LayerCase
from .layer_config import LEAVE_FLOAT, Choice
from .layers import QuantLayer, find_layers
from .placement import Placement, place
from .residual_input import in_two_terms
from .schemes import FLOAT, FORMS, PER_CHANNEL_OPSET, Encode, EncodeOptions, engine_of
from .weight_codes import Codes

LEAST_STORED = 1024
"""Weights of a layer that stays float below which scales and nodes cost more than is saved; chosen
by hand.
"""

TOO_QUIET = "some samples of what it reads are too quiet for one grid of 8 bits"
"""Reason of a layer that reads floats, see quiet_samples.py."""


@dataclass(frozen=True)
class PlanRequest:
    """Facts on which plans depend: the target's rules, name patterns and options.

    `choose`: the form of each layer of a graph. `keeps_tables`: tables of rows stay float.
    `entered`: bodies of a model that calibration observes. `stores_floats`: layers that stay float
    may read their weights from codes.
    """

    rules: QuantRules
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    kernel: str
    block: int
    has_data: bool
    options: EncodeOptions
    choose: Callable[[list[QuantLayer]], dict[QuantLayer, Choice]]
    keeps_tables: bool = False
    entered: Callable[[ir.Model], Collection[ir.Graph]] = lambda model: ()
    stores_floats: bool = False


@dataclass
class GraphPlan:
    """One graph's layers by the engine that will run them."""

    graph: ir.Graph
    choices: dict[QuantLayer, Choice]
    engines: dict[Engine, list[QuantLayer]] = field(default_factory=dict)

    @property
    def layers(self) -> list[QuantLayer]:
        """All layers, engine by engine."""
        found: list[QuantLayer] = []
        for layers in self.engines.values():
            found += layers
        return found

    @property
    def has_values(self) -> bool:
        """True if some layer's weights are to be on palettes or in vectors."""
        return any(self.choices[layer].codes != "steps" for layer in self.layers)

    def opset(self, options: EncodeOptions) -> int:
        """Least opset that the chosen forms need."""
        needed = PER_CHANNEL_OPSET
        for layer in self.layers:
            choice = self.choices[layer]
            own = dataclasses.replace(options, bits=choice.bits)
            needed = max(needed, FORMS[choice.form].opset(own))
        return needed

    def sizes_by_width(self, options: EncodeOptions) -> Counter[int]:
        """Weights (count) by their bits; those that several layers share count once a width."""
        sizes: dict[tuple[int, ir.Value], int] = {}
        for layer in self.layers:
            choice = self.choices[layer]
            own = dataclasses.replace(options, bits=choice.bits)
            width = FORMS[choice.form].width(own)
            sizes[width, layer.weight] = layer.tensor.size
        counts = Counter[int]()
        for (width, _), size in sizes.items():
            counts[width] += size
        return counts

    def placement(self, rules: QuantRules) -> Placement:
        """Places of int8 values around the layers that read calibrated ranges."""
        layers: list[QuantLayer] = []
        for engine, found in self.engines.items():
            if engine.needs_ranges:
                layers += found
        placement = place(self.graph, layers, rules)
        packed = [layer for layer in layers if self.choices[layer].is_packed]
        placement.two_term = in_two_terms(placement, packed, rules)
        return placement

    def limited(self, placement: Placement, rules: QuantRules) -> set[QuantLayer]:
        """Layers whose 8-bit weights must not saturate any CPU's kernels."""
        if not rules.limits_pairs:
            return set()
        found: set[QuantLayer] = set()
        for engine, layers in self.engines.items():
            if engine.integer:
                found.update(layers)
        # two terms keep large products apart by themselves, see residual_input.py
        for layer in placement.layers:
            if layer.input in placement.two_term:
                found.remove(layer)
        return found

    def codes(
        self, options: EncodeOptions, limited: Collection[QuantLayer]
    ) -> dict[QuantLayer, Codes]:
        """Encoded weights; layers that share a weight and a choice share the codes.

        `limited`: layers whose 8-bit weights must not saturate. Errors: RefusedError where a weight
        holds NaN or infinity.
        """
        keys: dict[QuantLayer, tuple[object, ...]] = {}
        tasks: dict[tuple[object, ...], Callable[[], Codes]] = {}
        for layer in self.layers:
            choice = self.choices[layer]
            encode = FORMS[choice.form].encode
            # the engine encodes them itself
            if encode is None:
                continue
            pairs = layer.pairs if layer in limited else None
            # pairs too: ops of one weight may read it in different pairs
            key = (layer.weight, layer.channel_axis, choice, pairs)
            own = dataclasses.replace(
                options,
                bits=choice.bits,
                pairs=pairs,
            )
            keys[layer] = key
            tasks.setdefault(key, partial(_encoded, layer, encode, own))
        # two at a time: what one weight waits for in the end, the other computes meanwhile
        made = dict(zip(tasks, side_by_side(tasks.values()), strict=True))
        return {layer: made[key] for layer, key in keys.items()}


@dataclass(frozen=True)
class QuantPlan:
    """The layers to quantize, graph by graph, and a reason for each other one."""

    graphs: list[GraphPlan]
    declined: list[Declined]

    def opset(self, options: EncodeOptions) -> int:
        """Least opset of all that is planned."""
        return max(graph.opset(options) for graph in self.graphs)

    @property
    def needs_ranges(self) -> bool:
        """True if some engine reads calibrated ranges."""
        return any(engine.needs_ranges for engine in self._engines())

    def uses(self, engine: Engine) -> bool:
        """True if some layer is to be run by `engine`."""
        return engine in self._engines()

    @property
    def has_values(self) -> bool:
        """True if some layer's weights are to be on palettes or in vectors."""
        return any(graph.has_values for graph in self.graphs)

    def _engines(self) -> set[Engine]:
        used: set[Engine] = set()
        for graph in self.graphs:
            used.update(graph.engines)
        return used


def _encoded(layer: QuantLayer, encode: Encode, options: EncodeOptions) -> Codes:
    layout = Layout.of(layer.shape, layer.channel_axis)
    codes = encode(layer.tensor, layout, options)
    if not np.isfinite(codes.scales).all():
        raise RefusedError(
            layer.weight.name or layer.name,
            "holds NaN or infinity: it has no integer form",
            "repair the weight, or name the layer in exclude",
        )
    return codes


def plan(model: ir.Model, request: PlanRequest) -> QuantPlan:
    """Choose a form and an engine for every layer. Changes nothing."""
    graphs: list[GraphPlan] = []
    declined: list[Declined] = []
    made = made_of_constants(model)
    bodies = bodies_of(model)
    for graph in all_graphs(model):
        if isinstance(graph, ir.Function):
            declined += _declined_in_function(graph, made, request)
            continue
        found, reasons = _plan_graph(
            model,
            graph,
            bodies.get(graph),
            made,
            request,
        )
        declined += reasons
        # a graph without layers is not touched
        if found.engines:
            graphs.append(found)
    tables = () if request.keeps_tables else tables_of(model)
    declined += other_weights(model, tables)
    return QuantPlan(graphs, declined)


def _plan_graph(
    model: ir.Model,
    graph: ir.Graph,
    body: Body | None,
    made: Mapping[ir.Value, bool],
    request: PlanRequest,
) -> tuple[GraphPlan, list[Declined]]:
    """Plan one graph of a model; `body`: what it is of, None of the main graph."""
    layers, declined = find_layers(
        graph,
        request.rules,
        request.include,
        request.exclude,
        made,
    )
    found = GraphPlan(graph, request.choose(layers))
    calibrated = request.has_data
    # to ask costs a run of the model
    if body is not None and calibrated and _may_read_ranges(found.choices):
        calibrated = graph in request.entered(model)
    for layer in layers:
        decided = _decide(
            layer,
            found.choices[layer],
            calibrated,
            request,
            body,
        )
        if decided.engine is not None:
            found.engines.setdefault(decided.engine, []).append(layer)
        if decided.reason is not None:
            declined.append(Declined(layer.name, decided.reason))
    return found, declined


def _may_read_ranges(choices: Mapping[QuantLayer, Choice]) -> bool:
    """True if some layer's form has an engine that reads calibrated ranges."""
    engines: set[Engine] = set()
    for choice in choices.values():
        if choice.form != LEAVE_FLOAT:
            engines.update(FORMS[choice.form].engines)
    return any(engine.needs_ranges for engine in engines)


def _declined_in_function(
    function: ir.Function, made: Mapping[ir.Value, bool], request: PlanRequest
) -> list[Declined]:
    """A reason for each layer of a function body: it may be called with other ranges each time."""
    layers, declined = find_layers(
        function,
        request.rules,
        request.include,
        request.exclude,
        made,
    )
    chosen = request.choose(layers)
    for layer in layers:
        decided = _decide(
            layer,
            chosen[layer],
            False,
            request,
        )
        reason = "it lies in a local function that could not be inlined"
        declined.append(Declined(layer.name, decided.reason or reason))
    return declined


class _Decision(NamedTuple):
    """The engine that runs a layer, if any, and a reason why it is not what was chosen, if so."""

    engine: Engine | None = None
    reason: str | None = None


def _decide(
    layer: QuantLayer,
    choice: Choice,
    calibrated: bool,
    request: PlanRequest,
    body: Body | None = None,
) -> _Decision:
    """Choose the engine of one layer."""
    if choice.form == LEAVE_FLOAT:
        return _Decision(reason="left float by the option layers")
    rules = request.rules
    engine = engine_of(
        FORMS[choice.form],
        request.kernel,
        calibrated,
        rules,
    )
    # such a target still takes engines that leave layers float
    if engine.integer and rules.why_not:
        return _Decision(reason=rules.why_not)
    case = LayerCase(
        layer=layer,
        bits=choice.bits,
        block=request.block,
        named=choice.named,
        has_data=request.has_data,
        calibrated=calibrated,
        rules=rules,
        body=body,
    )
    reason = TOO_QUIET if choice.reads_floats else engine.why_not(case)
    if reason is None:
        return _Decision(engine)
    if engine.integer and request.stores_floats and _is_stored_small(case, choice):
        return _Decision(FLOAT, f"{reason}; its weights have {choice.bits} bits")
    return _Decision(reason=reason)


def _is_stored_small(case: LayerCase, choice: Choice) -> bool:
    """True for a layer that data has run as float, or not at all: its weights may still have fewer
    bits. Without data only those of a form that float layers have too.
    """
    layer = case.layer
    if not case.has_data and FLOAT not in FORMS[choice.form].engines:
        return False
    if layer.no_integers or layer.tensor.size < LEAST_STORED:
        return False
    return why_not_float(case) is None
