"""Boxes: which of them stay."""

from __future__ import annotations

from typing import Any

import torch

from .._registry import op

Tensor = Any


@op("NonMaxSuppression", 10, host=(2, 3, 4), gradient=False)
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    most: Any = None,
    overlap: Any = None,
    lowest: Any = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """(batch, class, box) of the boxes kept, best first within each class."""
    limit, threshold = int(_number(most, 0)), _number(overlap, 0.0)
    corners = _corners(boxes.detach(), bool(center_point_box))
    kept = []
    for image in range(scores.shape[0]):
        overlaps = _overlaps(corners[image])
        for group in range(scores.shape[1]):
            values = scores[image, group].detach()
            order = torch.sort(values, descending=True, stable=True).indices
            if lowest is not None:
                order = order[values[order] > _number(lowest, 0.0)]
            kept += [
                [image, group, box]
                for box in _greedy(order.tolist(), overlaps, threshold, limit)
            ]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _greedy(
    order: list[int], overlaps: Tensor, threshold: float, limit: int
) -> list[int]:
    chosen: list[int] = []
    for box in order:
        if len(chosen) == limit:
            break
        if not chosen or not bool((overlaps[box, chosen] > threshold).any()):
            chosen.append(box)
    return chosen


def _number(value: Any, default: float) -> float:
    """ONNX lets a setting be a number or a list of one."""
    if value is None:
        return default
    number: float = value[0] if isinstance(value, list) else value
    return number


def _corners(boxes: Tensor, centered: bool) -> Tensor:
    """Low corner, high corner, whichever way boxes are given."""
    if centered:
        x, y, width, height = boxes.unbind(-1)
        return torch.stack(
            [y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1
        )
    one, other = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(one, other), torch.maximum(one, other)], -1)


def _overlaps(corners: Tensor) -> Tensor:
    """Intersection over union of all pairs."""
    low = torch.maximum(corners[:, None, :2], corners[None, :, :2])
    high = torch.minimum(corners[:, None, 2:], corners[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    areas = (corners[:, 2:] - corners[:, :2]).prod(-1)
    return inside / (areas[:, None] + areas[None, :] - inside)
