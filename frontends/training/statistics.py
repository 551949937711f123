"""Batch normalization as it trains: with the batch's own statistics, the running ones following."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch

from ..trainable import TrainableModule

Tensor = Any
_LEAST_OPSET = 14  # since when a node says by an attribute that it trains


class Statistics:
    """A copy of a graph whose BatchNormalizations train. `running`: names of the statistics they own; `moved`: of the
    values that those become, in the same order.
    """

    def __init__(self, model: ir.Model, running: list[str], moved: list[str]) -> None:
        self.model, self.running, self.moved = model, running, moved

    def freeze(self, module: TrainableModule) -> None:
        """No optimizer changes statistics."""
        for name, origin in module.origins.items():
            if origin.name in self.running:
                module.get_parameter(name).requires_grad_(False)

    def move(self, module: TrainableModule, values: Mapping[str, Tensor]) -> None:
        """Let the running statistics become what a run gave."""
        names = {origin.name: name for name, origin in module.origins.items()}
        with torch.no_grad():
            for running, moved in zip(self.running, self.moved, strict=True):
                module.get_parameter(names[running]).copy_(values[moved])


def with_batch_statistics(model: ir.Model) -> Statistics | None:
    """The graph as it trains; None where it has no BatchNormalization with statistics of its own."""
    if model.opset_imports.get("", 0) < _LEAST_OPSET:
        return None
    copy = model.clone()
    running: list[str] = []
    moved: list[str] = []
    for node in copy.graph:
        if node.op_type != "BatchNormalization" or node.domain or len(node.outputs) != 1:
            continue
        owned = [value for value in node.inputs[3:5] if value is not None and value.is_initializer()]
        if len(owned) < 2 or any(len(value.uses()) != 1 for value in owned):
            continue
        node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
        node.resize_outputs(3)
        for value, output in zip(owned, node.outputs[1:], strict=True):
            output.name, output.type = f"{value.name}_moved", value.type
            running.append(value.name or "")
            moved.append(output.name)
    return Statistics(copy, running, moved) if running else None
