"""The facts of `onnx-opt inspect --groups`: which channels go together, where they are, and which
weights stay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..frontends.onnx_file import load
from ..passes._channels.branches import droppable
from ..passes._channels.importance.scores import Scores
from ..passes._channels.importance.weights import magnitude
from ..passes._channels.pruning import Pruning
from ..passes._core.context import NullContext
from ..passes._dims.groups import Group


def groups_of(path: Path) -> dict[str, Any]:
    """Channel groups in graph order, and weights of which no slot can go. Weights are read once,
    block by block.

    `slots`: of an axis, that each channel takes. `importance`: smallest, median and largest L2 norm
    of a group's channels, each weight's over its mean.
    """
    pruning = Pruning(load(path), NullContext(), "heads", keep_batchnorm=False)
    scores = magnitude(pruning.groups, pruning.solution, 2)
    return {
        "model": {"path": str(path)},
        "groups": [
            _facts(group, each, pruning)
            for group, each in zip(pruning.groups, scores, strict=True)
        ],
        "frozen": [{"where": d.where, "reason": d.reason} for d in pruning.declined],
    }


def _facts(group: Group, scores: Scores, pruning: Pruning) -> dict[str, Any]:
    slots = dict(group.places)
    least, middle, most = np.quantile(scores, [0, 0.5, 1]).tolist()
    return {
        "name": group.name,
        "channels": len(group.channels),
        "channels_at_first": pruning.was[group.name],
        "where": [
            {
                "weight": value.name,
                "axis": axis,
                "slots": slots[pruning.solution.classes[value, axis]],
            }
            for value, axis in group.weights
        ],
        "importance": {"min": least, "median": middle, "max": most},
        "can_go_whole": droppable(group, pruning.solution),
    }
