"""Batch normalization as it trains: by the batch's own statistics, the running ones following."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ...passes._core.ops import is_standard
from ..trainable import TrainableModule

Tensor = Any
Arrays = Mapping[str, NDArray[Any]]

LEAST_OPSET = 14
"""Opset since which an attribute of BatchNormalization says that it trains."""

DEFAULT_MOMENTUM = 0.9
"""Momentum of a BatchNormalization without one, by the ONNX standard."""


@dataclass(frozen=True)
class RunningStatistic:
    """A running mean or variance.

    `name`: its initializer. `batch`: the value that a batch gives. `momentum`: the part (0-1) that
    stays at a step.
    """

    name: str
    batch: str
    momentum: float


@dataclass(frozen=True)
class BatchStatistics:
    """A copy of a graph whose BatchNormalizations train, and the statistics that they own."""

    model: ir.Model
    running: tuple[RunningStatistic, ...]

    def freeze(self, module: TrainableModule) -> None:
        """Exclude the statistics from what optimizers change."""
        names = {statistic.name for statistic in self.running}
        for name, origin in module.origins.items():
            if origin.name in names:
                module.get_parameter(name).requires_grad_(False)

    def move(
        self,
        module: TrainableModule,
        values: Mapping[str, Tensor],
        stays: float | None = None,
    ) -> None:
        """Move running statistics towards those of a batch.

        `values`: from a run of the graph. `stays`: the part that stays, in place of each momentum.
        """
        parameters = {origin.name: name for name, origin in module.origins.items()}
        with torch.no_grad():
            for statistic in self.running:
                name = parameters[statistic.name]
                running = module.get_parameter(name)
                batch = values[statistic.batch].detach()
                kept = statistic.momentum
                if stays is not None:
                    kept = stays
                # values of half precision must not round the statistics
                running.lerp_(batch.to(running.dtype), 1 - kept)


def with_batch_statistics(model: ir.Model) -> BatchStatistics | None:
    """Return the graph as it trains; None where no BatchNormalization owns its statistics."""
    if model.opset_imports.get("", 0) < LEAST_OPSET:
        return None
    # a copy: the graph that is written must not train
    copy = model.clone()
    running: list[RunningStatistic] = []
    for node in copy.graph:
        if is_standard(node, "BatchNormalization") and len(node.outputs) == 1:
            running += _train_by_batch(node)
    return BatchStatistics(copy, tuple(running)) if running else None


def _train_by_batch(node: ir.Node) -> list[RunningStatistic]:
    """Let a node give its batch's statistics; empty where it shares its own with others."""
    owned = [value for value in node.inputs[3:5] if _is_owned(value)]
    if len(owned) < 2:
        return []
    momentum = node.attributes.get_float("momentum", DEFAULT_MOMENTUM)
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    # with a momentum of 0 the outputs are the batch's own statistics, not the moved ones
    node.attributes["momentum"] = ir.AttrFloat32("momentum", 0.0)
    node.resize_outputs(3)
    running = []
    for value, output in zip(owned, node.outputs[1:], strict=True):
        assert value is not None
        output.name = f"{value.name}_moved"
        output.type = value.type
        statistic = RunningStatistic(
            name=value.name or "",
            batch=output.name,
            momentum=momentum,
        )
        running.append(statistic)
    return running


def _is_owned(value: ir.Value | None) -> bool:
    """True for an initializer that a node alone reads."""
    if value is None or not value.is_initializer():
        return False
    return len(value.uses()) == 1
