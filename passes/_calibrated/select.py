"""Choice of the layers that a rounding pass works on, and their moments.

Moments are collected a bounded number of bytes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.context import Context, MomentRequest
from .._core.graph import all_nodes, label
from .._core.linear import LinearLayer
from .._core.ops import WEIGHTED_OPS, is_standard
from .._core.outcome import Declined
from .._core.patterns import layer_names, left_out, require_matches
from .._quant.grids import Grid
from .grid import is_on_grid
from .layers import LARGEST_WIDTH, Grams, fittable_layers

HELD = 512 << 20
"""Bytes of Gram matrices collected in one run of the model; larger models are run more often.

As much as one layer of LARGEST_WIDTH needs.
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
    layers, declined = fittable_layers(model)
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
    fit = []
    for layer in layers:
        if kind == "gram" and layer.width > LARGEST_WIDTH:
            reason = f"its {layer.width} inputs are too many to fit"
            declined.append(Declined(label(layer.node), reason))
        else:
            fit.append(layer)
    for part in _parts(fit, kind):
        keys = _keys(request for _, request in part)
        # layers that read one value ask for the same moment: it is collected once
        requests = {key: request for request, key in keys.items()}
        found = context.collect(model, requests, samples)
        for layer, request in part:
            moment = found.get(keys[request])
            reason = _unusable(moment)
            if moment is None or reason:
                where = label(layer.node)
                declined.append(Declined(where, f"{reason} on the calibration data"))
            # the mean of a tensor has no axis of groups, that of patches has
            elif moment.ndim == 1:
                yield layer, moment[None]
            else:
                yield layer, moment


def _keys(requests: Iterable[MomentRequest]) -> dict[MomentRequest, str]:
    """A key for each request that differs from those before it."""
    keys: dict[MomentRequest, str] = {}
    for request in requests:
        keys.setdefault(request, str(len(keys)))
    return keys


def _unusable(moment: NDArray[np.float64] | None) -> str:
    """Reason why a moment is of no use; empty if it is of use."""
    if moment is None:
        return "its input was never computed"
    if not np.isfinite(moment).all():
        return "the squares of its inputs overflow"
    return ""


def _parts(
    layers: list[AnyLayer], kind: Kind
) -> Iterator[list[tuple[AnyLayer, MomentRequest]]]:
    """Runs of layers whose moments fit into HELD bytes together."""
    part: list[tuple[AnyLayer, MomentRequest]] = []
    held = 0
    seen = set[MomentRequest]()
    for layer in layers:
        request = layer.request(kind)
        size = _moment_bytes(layer, kind)
        added = 0 if request in seen else size
        if part and held + added > HELD:
            yield part
            # another run of the model: what the last one found is not kept
            part = []
            seen = set()
            held = 0
            added = size
        part.append((layer, request))
        seen.add(request)
        held += added
    if part:
        yield part


def _moment_bytes(layer: Observed, kind: Kind) -> int:
    inputs = layer.width + 1
    numbers = inputs * inputs if kind == "gram" else inputs
    return layer.groups * numbers * 8
