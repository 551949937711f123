"""Choice of the layers that a rounding pass works on, and their moments.

Moments are collected a bounded number of bytes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.bodies import RunNames
from .._core.context import Context, MomentRequest, Streams
from .._core.graph import all_nodes, label
from .._core.linear import LinearLayer
from .._core.ops import WEIGHTED_OPS, is_standard
from .._core.outcome import Declined
from .._core.patterns import layer_names, left_out, require_matches
from .._quant.grids import Grid
from .grid import is_on_grid
from .layers import LARGEST_WIDTH, Grams, fittable_layers

HELD = 512 << 20
"""Bytes of moments that are collected at once, as much as one layer of LARGEST_WIDTH needs."""

PART = 64 << 20
"""Bytes of moments, and of the weights between, that are held at a time where all are more than
HELD; chosen by hand.
"""

FEWEST_BITS = 2
MOST_BITS = 8
"""Bits of the grids on which weights may lie already: those that `quant` has."""

Kind = Literal["mean", "gram"]


def require_named_layers(
    pass_name: str,
    model: ir.Model,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> None:
    """Raise UsageError for a pattern that names no layer of the model, with the nearest names."""
    if not include and not exclude:
        return
    names: list[str] = []
    for node in all_nodes(model):
        if is_standard(node, *WEIGHTED_OPS):
            names.extend(layer_names(node))
    require_matches(f"{pass_name}.include", include, names)
    require_matches(f"{pass_name}.exclude", exclude, names)


def layers_to_round(
    model: ir.Model,
    why_not: Callable[[LinearLayer], str | None],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> tuple[list[LinearLayer], list[Declined]]:
    """Layers that the patterns name and that `why_not` has no reason against; the others' reasons.

    A pattern that matches no layer is no error here: `quant` names layers of subgraphs too.
    """
    layers, declined = fittable_layers(model, branches=True)
    chosen = []
    for layer in layers:
        names = layer_names(layer.node, layer.weight)
        reason = left_out(names, include, exclude)
        if reason is None:
            reason = why_not(layer)
        if reason is None:
            chosen.append(layer)
        else:
            declined.append(Declined(layer.name, reason))
    return chosen, declined


def why_not_rounded(layer: LinearLayer, grid: Grid) -> str | None:
    """Reason why a weight is not to be rounded to a grid: it lies on one, say. None if it is."""
    rows = layer.rows()
    if not np.isfinite(rows).all():
        return "its weight holds NaN or infinity"
    # layers that an earlier pass rounded to fewer bits are left to it
    for bits in range(FEWEST_BITS, MOST_BITS + 1):
        levels = 2 ** (bits - 1) - 1
        if levels > grid.levels:
            break
        if is_on_grid(rows, Grid(levels, grid.pairs)):
            return f"its weights are rounded to {bits} bits already"
    return None


class Observed(Protocol):
    """A layer whose inputs have moments: `width` inputs of one output channel, in `groups`."""

    @property
    def node(self) -> ir.Node: ...
    @property
    def width(self) -> int: ...
    @property
    def groups(self) -> int: ...
    def request(self, kind: Kind) -> MomentRequest: ...


AnyLayer = TypeVar("AnyLayer", bound=Observed)


def moments_of(
    model: ir.Model,
    context: Context,
    layers: list[AnyLayer],
    kind: Kind,
    samples: int,
    declined: list[Declined],
) -> Iterator[tuple[AnyLayer, Grams]]:
    """Each layer with its moment; layers of one input share it. What cannot be had is declined.

    Shapes: mean (groups, K), gram (groups, K + 1, K + 1).
    """
    names = RunNames.of(model)
    # layers that read one value ask for the same moment: it is collected once
    readers: dict[MomentRequest, list[AnyLayer]] = {}
    sizes: dict[MomentRequest, int] = {}
    for layer in layers:
        if kind == "gram" and layer.width > LARGEST_WIDTH:
            reason = f"its {layer.width} inputs are too many to fit"
            declined.append(Declined(label(layer.node), reason))
        else:
            request = _named_by_runs(layer, kind, names)
            readers.setdefault(request, []).append(layer)
            sizes[request] = _moment_bytes(layer, kind)
    for request, moment in _collected(model, context, sizes, samples):
        reason = _unusable(moment)
        for layer in readers[request]:
            if moment is None or reason:
                where = label(layer.node)
                declined.append(Declined(where, f"{reason} on the calibration data"))
            # the mean of a tensor has no axis of groups, that of patches has
            elif moment.ndim == 1:
                yield layer, moment[None]
            else:
                yield layer, moment


def _named_by_runs(layer: Observed, kind: Kind, names: RunNames) -> MomentRequest:
    """The moment of what a layer reads, in the main graph or in a body."""
    request = layer.request(kind)
    graph = layer.node.graph
    path = "" if graph is None else names.path(graph)
    return replace(request, tensor=f"{path}{request.tensor}") if path else request


def _collected(
    model: ir.Model,
    context: Context,
    sizes: dict[MomentRequest, int],
    samples: int,
) -> Iterator[tuple[MomentRequest, NDArray[np.float64] | None]]:
    """Each request with its moment, None where its tensor was never computed.

    `sizes`: bytes of each moment. Few are held at a time where all would take much memory.
    """
    requests = {str(number): request for number, request in enumerate(sizes)}
    by_key = {key: sizes[request] for key, request in requests.items()}
    waiting = dict(requests)
    parts = _parts(
        model,
        context,
        requests,
        by_key,
        samples,
    )
    for found in parts:
        known = [key for key in waiting if key in found]
        for key in known:
            request = waiting.pop(key)
            yield request, found.pop(key)
    for request in waiting.values():
        yield request, None


def _parts(
    model: ir.Model,
    context: Context,
    requests: dict[str, MomentRequest],
    sizes: dict[str, int],
    samples: int,
) -> Iterator[dict[str, NDArray[np.float64]]]:
    """Moments by the key of their request, all together or part by part."""
    if sum(sizes.values()) <= HELD:
        if requests:
            yield context.collect(model, requests, samples)
    elif isinstance(context, Streams):
        yield from context.collect_in_parts(
            model,
            requests,
            sizes,
            PART,
            samples,
        )
    else:
        # another run of the model for each part
        for keys in _runs(sizes):
            part = {key: requests[key] for key in keys}
            yield context.collect(model, part, samples)


def _runs(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Keys in their order, as many together as fit into HELD bytes."""
    keys: list[str] = []
    held = 0
    for key, size in sizes.items():
        if keys and held + size > HELD:
            yield keys
            keys = []
            held = 0
        keys.append(key)
        held += size
    if keys:
        yield keys


def _unusable(moment: NDArray[np.float64] | None) -> str:
    """Reason why a moment is of no use; empty if it is of use."""
    if moment is None:
        return "its input was never computed"
    if not np.isfinite(moment).all():
        return "the squares of its inputs overflow"
    return ""


def _moment_bytes(layer: Observed, kind: Kind) -> int:
    inputs = layer.width + 1
    numbers = inputs * inputs if kind == "gram" else inputs
    return layer.groups * numbers * 8
