"""Choice among boxes that overlap."""

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
    limit = int(_number(most, 0))
    threshold = _number(overlap, 0.0)
    exact_boxes = boxes.detach()
    exact_scores = scores.detach()
    corners = _corners(exact_boxes, bool(center_point_box))
    images, classes = scores.shape[:2]
    kept: list[list[int]] = []
    for image in range(images):
        # of all pairs at once: all classes of an image share them
        overlaps = _overlaps(corners[image])
        for group in range(classes):
            order = _by_score(exact_scores[image, group], lowest)
            boxes_kept = _greedy(
                order,
                overlaps,
                threshold,
                limit,
            )
            kept.extend([image, group, box] for box in boxes_kept)
    # without boxes there is no row to tell the three columns from
    indices = torch.tensor(kept, dtype=torch.int64, device=boxes.device)
    return indices.reshape(-1, 3)


def _by_score(scores: Tensor, lowest: Any) -> list[int]:
    """Return boxes by falling score, those above `lowest` only, if it is given."""
    order = torch.sort(scores, descending=True, stable=True).indices
    if lowest is not None:
        least = _number(lowest, 0.0)
        above = scores[order] > least
        order = order[above]
    boxes: list[int] = order.tolist()
    return boxes


def _greedy(
    order: list[int], overlaps: Tensor, threshold: float, limit: int
) -> list[int]:
    """Return the boxes, of `limit` at most, that overlap no better one beyond the threshold."""
    chosen: list[int] = []
    for box in order:
        if len(chosen) == limit:
            break
        if chosen:
            too_close = overlaps[box, chosen] > threshold
            if bool(too_close.any()):
                continue
        chosen.append(box)
    return chosen


def _number(value: Any, default: float) -> float:
    """ONNX lets a setting be a number or a list of one."""
    if value is None:
        return default
    number: float = value[0] if isinstance(value, list) else value
    return number


def _corners(boxes: Tensor, centered: bool) -> Tensor:
    """Return low corner, high corner, whichever way boxes are given."""
    if centered:
        x, y, width, height = boxes.unbind(-1)
        half_width = width / 2
        half_height = height / 2
        top = y - half_height
        left = x - half_width
        bottom = y + half_height
        right = x + half_width
        return torch.stack([top, left, bottom, right], -1)
    # the standard lets the two be any diagonal pair of corners
    one = boxes[..., :2]
    other = boxes[..., 2:]
    low = torch.minimum(one, other)
    high = torch.maximum(one, other)
    return torch.cat([low, high], -1)


def _overlaps(corners: Tensor) -> Tensor:
    """Return the intersection over union of all pairs, (boxes, boxes)."""
    lows = corners[:, :2]
    highs = corners[:, 2:]
    low = torch.maximum(lows[:, None], lows[None])
    high = torch.minimum(highs[:, None], highs[None])
    # boxes that do not meet would get negative sides
    shared_sides = (high - low).clamp(min=0)
    intersection = shared_sides.prod(-1)
    sides = highs - lows
    areas = sides.prod(-1)
    both = areas[:, None] + areas[None, :]
    union = both - intersection
    return intersection / union
