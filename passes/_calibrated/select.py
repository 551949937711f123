"""Which layers a rounding pass works on, and their moments, a bounded number of bytes at a time."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context, Declined, MomentRequest
from .._core.graph import label
from .._quant.grids import Grid
from .grid import GridOf, is_on_grid
from .layers import LARGEST_WIDTH, Linear, linear_layers

HELD = 512 << 20
"""Bytes of Gram matrices collected in one run of the model; larger models are run more often."""


def layers_to_round(
    model: ir.Model, grid_of: GridOf, include: tuple[str, ...], exclude: tuple[str, ...]
) -> tuple[list[Linear], list[Declined]]:
    """The layers that the patterns name and whose weights lie on no grid yet; why the others are
    not.
    """
    layers, declined = linear_layers(model)
    chosen = []
    for layer in layers:
        reason = _unnamed(layer, include, exclude) or _unfit(layer, grid_of(layer))
        if reason is None:
            chosen.append(layer)
        else:
            declined.append(Declined(label(layer.node), reason))
    return chosen, declined


def _unnamed(
    layer: Linear, include: tuple[str, ...], exclude: tuple[str, ...]
) -> str | None:
    names = [
        n for n in (layer.node.name, layer.weight.name, layer.node.outputs[0].name) if n
    ]

    def matches(patterns: tuple[str, ...]) -> bool:
        return any(
            fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns
        )

    if include and not matches(include):
        return "not matched by include"
    return "matched by exclude" if matches(exclude) else None


def _unfit(layer: Linear, grid: Grid) -> str | None:
    rows = layer.rows()
    if not np.isfinite(rows).all():
        return "its weight holds NaN or infinity"
    for bits in range(2, 9):
        levels = 2 ** (bits - 1) - 1
        if levels <= grid.levels and is_on_grid(rows, Grid(levels, grid.pairs)):
            return f"its weights lie on the {bits}-bit grid already"
    return None


class Observed(Protocol):
    """A layer whose inputs have moments: `width` inputs of one output channel, in `groups`."""

    @property
    def node(self) -> ir.Node: ...
    @property
    def width(self) -> int: ...
    @property
    def groups(self) -> int: ...
    def request(self, kind: Any) -> MomentRequest: ...


AnyLayer = TypeVar("AnyLayer", bound=Observed)


def moments_of(
    model: ir.Model,
    context: Context,
    layers: list[AnyLayer],
    kind: Literal["mean", "gram"],
    samples: int,
    declined: list[Declined],
) -> Iterator[tuple[AnyLayer, NDArray[np.float64]]]:
    """Each layer with its moment; layers of one input share it. What cannot be had is declined."""
    fit = []
    for layer in layers:
        if kind == "gram" and layer.width > LARGEST_WIDTH:
            declined.append(
                Declined(
                    label(layer.node),
                    f"its {layer.width} inputs make too large a Gram matrix",
                )
            )
        else:
            fit.append(layer)
    for part in _parts(fit, kind):
        requests = {
            str(index): request
            for index, request in enumerate(dict.fromkeys(r for _, r in part))
        }
        keys = {request: key for key, request in requests.items()}
        found = context.collect(model, requests, samples)
        for layer, request in part:
            moment = found.get(keys[request])
            if moment is None or not np.isfinite(moment).all():
                reason = (
                    "its input was not produced"
                    if moment is None
                    else "its inputs are too large to square"
                )
                declined.append(
                    Declined(label(layer.node), f"{reason} on the calibration data")
                )
            else:
                yield layer, moment if moment.ndim > 1 else moment[None]


def _parts(
    layers: list[AnyLayer], kind: Literal["mean", "gram"]
) -> Iterator[list[tuple[AnyLayer, MomentRequest]]]:
    """Runs of layers whose moments fit into HELD bytes together."""
    part: list[tuple[AnyLayer, MomentRequest]] = []
    held, seen = 0, set[MomentRequest]()
    for layer in layers:
        request = layer.request(kind)
        size = (
            0
            if request in seen
            else layer.groups * (layer.width + 1) ** (2 if kind == "gram" else 1) * 8
        )
        if part and held + size > HELD:
            yield part
            part, held, seen = [], 0, set()
            size = layer.groups * (layer.width + 1) ** (2 if kind == "gram" else 1) * 8
        part.append((layer, request))
        held += size
        seen.add(request)
    if part:
        yield part
