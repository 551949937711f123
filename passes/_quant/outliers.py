"""Layers whose input holds outliers, which 8-bit activations do not survive.

One grid serves all rows of a tensor (tokens, say). Where a few values are hundreds of times as
large as the others, its steps are so coarse that whole rows round to zero: language models have
such *massive activations* in front of some layers. There the weights alone become 8-bit codes, in
blocks, and what the layer reads stays float.

Source: Sun et al., Massive Activations in Large Language Models, COLM 2024 (arXiv:2402.17762);
Dettmers et al., LLM.int8(), NeurIPS 2022 (arXiv:2208.07339) for keeping them out of integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from .._core.context import Context, Observes
from .._core.drift_budget import sqnr_of
from .._core.opset import can_be_raised
from .._core.tables import tables_of, token_inputs
from .blocked import BLOCKED_OPSET, why_not_blocked
from .engine import LayerCase
from .layer_config import Choice
from .layers import QuantLayer
from .plan import PlanRequest, QuantPlan
from .schemes import DYNAMIC, STATIC

LEAST = 16.0
"""SQNR in dB that the rows of an 8-bit input keep in the mean.

Layers of MiniLM keep 18.3 dB and more, and 8 bits cost it nothing; of SmolLM2, 0.1 to 14.4 dB in
front of eight layers, which took its perplexity from 33.7 to 51.2.
"""

LEAST_OF_TOKENS = 30.0
"""The same where a model predicts tokens, whose perplexity counts every layer's error.

SmolLM2, smoothed, perplexity 40.15 in float: 44.5 with none spared, 41.5 with 30 of its 211 layers
below 25 dB, 40.4 with 38 below 30 dB, at two thirds of float's time. Without smoothing as many as
that take 1.04 times float's.
"""

SMOOTHING = 0.5
"""Share of the spread of activations that goes into weights where no data rounds them (pass smooth,
alpha). SmolLM2's perplexity with 0.7: 41.2 with 56 layers spared.
"""

FEWEST_TOKENS = 256
"""Rows from which a table counts as a vocabulary: that of bytes."""

ROUNDING_TOKENS = 2048
"""Made-up tokens without which weights are rounded to the nearest: a layer has as many inputs, and
what few tokens leave unseen would be rounded worse.
"""

SAMPLES = 16
"""Samples that are looked at."""


def observing(model: ir.Model, context: Context, least: int = 0) -> Context | None:
    """A context that can look at tensors, on made-up feeds without data; None where none can.

    `least`: tokens without which made-up ones will not do.
    """
    if not isinstance(context, Observes):
        return context if context.has_data() else None
    return context.on_any_feeds(token_inputs(model), least)


def reading(model: ir.Model, context: Context) -> Context | None:
    """A context by which the weights of a model of tokens are rounded; None where none can run it.

    Without data it reads text that the model wrote itself.
    """
    if not isinstance(context, Observes):
        return context if context.has_data() else None
    return context.on_own_text(model, token_inputs(model), ROUNDING_TOKENS)


@dataclass
class RowNoise:
    """Shares of error that 8-bit activations leave in the rows that layers read, each found once.

    A trial of the same model with other layers asks again: a name stands for the same value.
    """

    context: Context
    _found: dict[str, float] = field(default_factory=dict)

    def sqnr(
        self, model: ir.Model, layers: Collection[QuantLayer]
    ) -> dict[QuantLayer, float]:
        """SQNR in dB of the rows that each layer reads, the mean of their errors.

        Absent from the result: layers of which nothing is known, for the model is not run or a run
        does not reach them.
        """
        names = {layer: layer.input.name or "" for layer in layers}
        self._look(model, layers)
        return {
            layer: sqnr_of(self._found[name])
            for layer, name in names.items()
            if name in self._found
        }

    def _look(self, model: ir.Model, layers: Collection[QuantLayer]) -> None:
        requests = {}
        for layer in layers:
            name = layer.input.name or ""
            if name not in self._found:
                requests[name] = layer.request("row_noise")
        context = observing(model, self.context) if requests else None
        if context is None:
            return
        for name, value in context.collect(model, requests, SAMPLES).items():
            share = float(value[0])
            # values beyond float32's squares are outliers by any measure
            self._found[name] = share if math.isfinite(share) else 1.0


@dataclass(frozen=True)
class Sparing:
    """Layers that keep float activations; `instead`: what becomes of the choice made for one."""

    layers: tuple[QuantLayer, ...] = ()
    instead: Callable[[Choice], Choice] = lambda choice: choice

    @classmethod
    def of_weights(
        cls, planned: QuantPlan, names: Collection[str], instead: Choice
    ) -> Sparing:
        """The planned layers whose weights go by these names."""
        found: list[QuantLayer] = []
        for graph_plan in planned.graphs:
            layers = graph_plan.layers
            found += [each for each in layers if each.weight.name in names]
        return cls(tuple(found), lambda choice: instead)

    def around(
        self, choose: Callable[[list[QuantLayer]], dict[QuantLayer, Choice]]
    ) -> Callable[[list[QuantLayer]], dict[QuantLayer, Choice]]:
        """The choice of forms `choose`, but for these layers."""
        # nodes change with the graph; the names of what they read stay
        spared = {_names(layer) for layer in self.layers}

        def chosen(layers: list[QuantLayer]) -> dict[QuantLayer, Choice]:
            found = choose(layers)
            for layer in layers:
                if _names(layer) in spared:
                    found[layer] = self.instead(found[layer])
            return found

        return chosen


def with_outliers(
    model: ir.Model,
    planned: QuantPlan,
    request: PlanRequest,
    noise: RowNoise,
    instead: Choice,
) -> Sparing:
    """Find the planned layers with 8-bit inputs that do not hold what they read.

    Layers that were named by the user stay what he chose, and so do those that have no form in
    blocks. Where nothing is known of a model that predicts tokens, every layer is spared.
    """
    candidates = []
    for graph_plan in planned.graphs:
        for engine in (STATIC, DYNAMIC):
            for layer in graph_plan.engines.get(engine, []):
                choice = graph_plan.choices[layer]
                case = _case(layer, instead, request)
                if not choice.named and why_not_blocked(case) is None:
                    candidates.append(layer)
    predicts = predicts_tokens(model)
    known = noise.sqnr(model, candidates)
    least = LEAST_OF_TOKENS if predicts else LEAST
    found = [layer for layer in candidates if known.get(layer, least) < least]
    if predicts and not known:
        found = candidates
    if not found or not can_be_raised(model, BLOCKED_OPSET):
        return Sparing()
    return Sparing(tuple(found), lambda choice: instead)


def _names(layer: QuantLayer) -> tuple[str | None, ...]:
    """Names that tell a layer from others, of other branches too."""
    graph = layer.node.graph
    branch = None if graph is None else graph.name
    output = layer.node.outputs[0]
    return branch, output.name, layer.input.name, layer.weight.name


def _case(layer: QuantLayer, instead: Choice, request: PlanRequest) -> LayerCase:
    return LayerCase(
        layer=layer,
        bits=instead.bits,
        block=request.block,
        named=False,
        has_data=request.has_data,
        calibrated=False,
        rules=request.rules,
    )


def predicts_tokens(model: ir.Model) -> bool:
    """True if an output holds a score for each row of a table: each token of a vocabulary."""
    vocabularies = set()
    for table in tables_of(model):
        assert table.shape is not None
        rows = table.shape[0]
        if isinstance(rows, int) and rows >= FEWEST_TOKENS:
            vocabularies.add(rows)
    for output in model.graph.outputs:
        shape = output.shape
        # one of two axes may be a classifier's
        if shape is not None and len(shape) >= 3 and shape[-1] in vocabularies:
            return True
    return False
