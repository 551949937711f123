"""Facts of `onnx-opt inspect --groups`: channels that go together, and weights that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..frontends.onnx_file import load
from ..passes.prune_channels import ChannelGroup, channel_groups
from ..passes.unpack import without_packing


def groups_of(path: Path) -> dict[str, Any]:
    """Channel groups in graph order, and weights of which no slot can go, as JSON values.

    `slots`: of an axis, that each channel takes. `importance`: smallest, median and largest L2 norm
    of a group's channels, each weight's over its mean.
    """
    found = channel_groups(without_packing(load(path)))
    frozen = [{"where": item.where, "reason": item.reason} for item in found.frozen]
    return {
        "model": {"path": str(path)},
        "groups": [_facts(group) for group in found.groups],
        "frozen": frozen,
    }


def _facts(group: ChannelGroup) -> dict[str, Any]:
    places = []
    for member in group.members:
        place = {"weight": member.weight, "axis": member.axis, "slots": member.slots}
        places.append(place)
    norms = group.norms
    assert norms is not None
    return {
        "name": group.name,
        "channels": group.width,
        "channels_at_first": group.first_width,
        "where": places,
        "importance": {
            "min": norms.least,
            "median": norms.median,
            "max": norms.most,
        },
        "can_go_whole": group.droppable,
    }
