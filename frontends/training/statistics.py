"""Batch normalization as it trains: with the batch's own statistics, the running ones following."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ..trainable import TrainableModule

Tensor = Any
Arrays = Mapping[str, NDArray[Any]]
LEAST_OPSET = 14
"""Since when a node says by an attribute that it trains."""


@dataclass(frozen=True)
class Running:
    """One running statistic: its name, that of the value that a batch gives, and how much of it
    stays at a step.
    """

    name: str
    batch: str
    momentum: float


@dataclass(frozen=True)
class Statistics:
    """A copy of a graph whose BatchNormalizations train, and the statistics that they own."""

    model: ir.Model
    running: tuple[Running, ...]

    def freeze(self, module: TrainableModule) -> None:
        """No optimizer changes statistics."""
        names = {running.name for running in self.running}
        for name, origin in module.origins.items():
            if origin.name in names:
                module.get_parameter(name).requires_grad_(False)

    def move(
        self,
        module: TrainableModule,
        values: Mapping[str, Tensor],
        stays: float | None = None,
    ) -> None:
        """Let the running statistics move to what a run gave. `stays`: which part of them, for
        all.
        """
        names = {origin.name: name for name, origin in module.origins.items()}
        with torch.no_grad():
            for running in self.running:
                now, kept = (
                    module.get_parameter(names[running.name]),
                    running.momentum if stays is None else stays,
                )
                now.lerp_(values[running.batch].detach().to(now.dtype), 1 - kept)


def with_batch_statistics(model: ir.Model) -> Statistics | None:
    """The graph as it trains; None where it has no BatchNormalization with statistics of its
    own.
    """
    if model.opset_imports.get("", 0) < LEAST_OPSET:
        return None
    copy = model.clone()
    running: list[Running] = []
    for node in copy.graph:
        if (
            node.op_type != "BatchNormalization"
            or node.domain
            or len(node.outputs) != 1
        ):
            continue
        owned = [
            value
            for value in node.inputs[3:5]
            if value is not None and value.is_initializer()
        ]
        if len(owned) < 2 or any(len(value.uses()) != 1 for value in owned):
            continue
        momentum = node.attributes.get_float("momentum", 0.9)
        node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
        node.attributes["momentum"] = ir.AttrFloat32(
            "momentum", 0.0
        )  # its outputs are the batch's own
        node.resize_outputs(3)
        for value, output in zip(owned, node.outputs[1:], strict=True):
            output.name, output.type = f"{value.name}_moved", value.type
            running.append(Running(value.name or "", output.name, momentum))
    return Statistics(copy, tuple(running)) if running else None
