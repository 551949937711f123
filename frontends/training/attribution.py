"""Attribution maps of student and teacher: what their answers rest on, place by place.

A map is of features (N, C, *K): the sum over channels, each weighted by its mean gradient of the
score that the teacher's choice has, where it adds to that score. Source: Park et al., NeurIPS 2020
(arXiv:2010.15054), whose weights these are; Selvaraju et al. 2017 (arXiv:1610.02391).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from ... import RefusedError
from .features import Tap, channel_axis
from .heads import Head

Tensor = Any


def key_of(tap: Tap) -> str:
    """Name of the teacher's map of a feature, among its values."""
    return f"{tap.teacher}, attribution"


def check_classes(head: Head) -> None:
    """Refuse a first output without classes. Errors: RefusedError."""
    if head.kind != "classes":
        raise RefusedError(
            "finetune.attribution",
            f"output '{head.output}' has no classes whose score could be attributed",
            "train with attribution=0, or a model whose first output is of classes",
        )


def chosen_scores(logits: Tensor, teacher: Tensor, axis: int) -> Tensor:
    """Sum of the logits that belong to the teacher's choices; `axis`: that of the classes."""
    chosen = teacher.argmax(axis, keepdim=True)
    return logits.gather(axis, chosen).sum()


def attribution_maps(
    score: Tensor, features: Sequence[Tensor], trains: bool
) -> list[Tensor]:
    """Maps of features by a score, (N, places) of unit norm each.

    `trains`: gradients pass through the maps. A feature that the score does not depend on has a map
    of zeros.
    """
    gradients = torch.autograd.grad(
        score,
        features,
        create_graph=trains,
        retain_graph=True,
        allow_unused=True,
    )
    maps = []
    for feature, gradient in zip(features, gradients, strict=True):
        if gradient is None:
            gradient = torch.zeros_like(feature)
        maps.append(_map_of(feature.float(), gradient.float()))
    return maps


def _map_of(feature: Tensor, gradient: Tensor) -> Tensor:
    axis = channel_axis(feature.ndim)
    values = feature.movedim(axis, 1).flatten(2)
    slopes = gradient.movedim(axis, 1).flatten(2)
    weights = slopes.mean(2, keepdim=True)
    weighted = weights * values
    total = weighted.sum(1)
    # what takes from the score is no part of the map
    added = F.relu(total)
    return F.normalize(added, dim=1)


def teacher_maps(
    values: Mapping[str, Tensor], head: Head, taps: Sequence[Tap]
) -> dict[str, Tensor]:
    """Maps of the teacher's features by their keys, from values with gradients."""
    logits = values[head.teacher].float()
    score = chosen_scores(logits, logits, head.axis)
    features = [values[tap.teacher] for tap in taps]
    maps = attribution_maps(score, features, trains=False)
    found = {}
    for tap, each in zip(taps, maps, strict=True):
        key = key_of(tap)
        found[key] = each.detach()
    return found


def attribution_distance(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    head: Head,
    taps: Sequence[Tap],
) -> Tensor:
    """Mean squared distance of the student's maps from the teacher's, over rows and features."""
    logits = student[head.student].float()
    answers = teacher[head.teacher]
    score = chosen_scores(logits, answers, head.axis)
    features = [student[tap.student] for tap in taps]
    maps = attribution_maps(score, features, trains=True)
    total: Tensor = 0.0
    for tap, own in zip(taps, maps, strict=True):
        key = key_of(tap)
        difference = own - teacher[key]
        squares = difference.square()
        by_row = squares.sum(1)
        total = total + by_row.mean()
    return total / len(taps)


def with_places(taps: Sequence[Tap], values: Mapping[str, Tensor]) -> list[Tap]:
    """Features with more than one place: of a single one every map is the same."""
    found = []
    for tap in taps:
        shape = list(values[tap.student].shape)
        del shape[channel_axis(len(shape))]
        if len(shape) > 1 and torch.Size(shape[1:]).numel() > 1:
            found.append(tap)
    return found
