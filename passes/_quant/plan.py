"""Deciding before changing: which layers of each graph become what, and why the others do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ... import RefusedError
from .._base import Declined
from .._core.channel_layout import Layout
from .._core.graph import all_graphs
from .._core.targets import QuantRules
from .blocked import why_not_blocked
from .dynamic import worth_dynamic
from .layer_config import FLOAT, Choice
from .layers import Layer, find_layers, int_attribute
from .residual_input import IMAGE_RANK
from .schemes import FORMS, PER_CHANNEL_OPSET, Engine, Settings, engine_of
from .weight_codes import Codes


@dataclass(frozen=True)
class Request:
    """What is asked of every graph: the target's rules, name patterns, and the options that plans
    depend on.
    """

    rules: QuantRules
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    kernel: str
    block: int
    has_data: bool
    settings: Settings
    choose: Callable[[list[Layer]], dict[Layer, Choice]]


@dataclass
class Part:
    """One graph's layers by the engine that will run them."""

    graph: ir.Graph
    choices: dict[Layer, Choice]
    engines: dict[Engine, list[Layer]] = field(default_factory=dict)

    def opset(self, settings: Settings) -> int:
        """The opset that the chosen forms need."""
        chosen = [
            self.choices[layer] for layers in self.engines.values() for layer in layers
        ]
        needs = [
            FORMS[c.form].opset(dataclasses.replace(settings, bits=c.bits))
            for c in chosen
        ]
        return max(needs, default=PER_CHANNEL_OPSET)

    def codes(
        self, layers: list[Layer], settings: Settings, limited: Collection[Layer] = ()
    ) -> dict[Layer, Codes]:
        """The weights of `layers` encoded; layers that share a weight and a choice share the codes.

        `limited`: layers whose 8-bit weights must not saturate any CPU's kernels. Errors:
        RefusedError where a weight holds NaN or infinity.
        """
        made: dict[tuple[object, ...], Codes] = {}
        found: dict[Layer, Codes] = {}
        for layer in layers:
            choice, pairs = (
                self.choices[layer],
                layer.pairs if layer in limited else None,
            )
            key = (layer.weight, layer.weight_axis, choice, pairs)
            if key not in made:
                own = dataclasses.replace(settings, bits=choice.bits, pairs=pairs)
                made[key] = _encoded(layer, choice, own)
            found[layer] = made[key]
        return found


def _encoded(layer: Layer, choice: Choice, settings: Settings) -> Codes:
    encode = FORMS[choice.form].encode
    assert encode is not None
    codes = encode(
        layer.tensor,
        Layout.of(tuple(layer.tensor.shape.numpy()), layer.weight_axis),
        settings,
    )
    if not np.isfinite(codes.scales).all():
        raise RefusedError(
            layer.weight.name or layer.name,
            "holds NaN or infinity: it has no integer form",
            "repair the weight, or name the layer in exclude",
        )
    return codes


def plan(model: ir.Model, request: Request) -> tuple[list[Part], list[Declined]]:
    """The layers to quantize, graph by graph, and the reasons for the others. Changes nothing."""
    parts: list[Part] = []
    declined: list[Declined] = []
    for graph in all_graphs(model):
        layers, reasons = find_layers(
            graph, request.rules, request.include, request.exclude
        )
        declined += reasons
        in_function = isinstance(graph, ir.Function)
        part = Part(model.graph if in_function else graph, request.choose(layers))  # type: ignore[arg-type]
        for layer in layers:
            choice = part.choices[layer]
            calibrated = request.has_data and graph is model.graph
            reason = _why_not(layer, choice, calibrated, request)
            if reason is None and in_function:
                reason = "it lies in a local function that could not be inlined"
            if reason:
                declined.append(Declined(layer.name, reason))
            else:
                engine = engine_of(choice, request.kernel, calibrated, request.rules)
                part.engines.setdefault(engine, []).append(layer)
        if part.engines:
            parts.append(part)
    return parts, declined


def _why_not(
    layer: Layer, choice: Choice, calibrated: bool, request: Request
) -> str | None:
    """Why a layer does not become what was chosen for it, or None."""
    if choice.form == FLOAT:
        return "float by an override of the option layers"
    engine = engine_of(choice, request.kernel, calibrated, request.rules)
    if engine == "blocked":
        return why_not_blocked(layer, choice.bits, request.block)
    if engine == "float":
        return None
    if request.rules.why_not:
        return request.rules.why_not
    if engine == "static":
        reason = (
            _why_not_static(layer, request.rules)
            if calibrated
            else _needs_ranges(layer, request)
        )
        return None if calibrated and choice.asked else reason
    if layer.node.op_type not in request.rules.dynamic:
        return _needs_ranges(layer, request)
    return None if choice.asked else worth_dynamic(layer)


def _why_not_static(layer: Layer, rules: QuantRules) -> str | None:
    if (
        layer.node.op_type != "Conv"
        or not layer.input.is_graph_input()
        or len(layer.output.uses()) > 1
    ):
        return None
    shape = layer.tensor.shape.numpy()
    channels = int(shape[1]) * int_attribute(layer.node, "group", 1)
    if len(shape) == IMAGE_RANK or channels > rules.image_channels:
        return None
    return (
        f"it reads the input's {channels} channels: float is as fast there, and keeps the "
        "input's precision"
    )


def _needs_ranges(layer: Layer, request: Request) -> str:
    need = f"{layer.node.op_type} needs calibrated ranges"
    beyond = f"{need}, and calibration does not reach into subgraphs"
    return beyond if request.has_data else f"{need}: give --data"
