"""Distances between the values of a student and those of its teacher.

All are means over rows, of tensors (N, *, C); a shape-free scalar comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

Tensor = Any

SMALLEST_VARIANCE = 1e-12
"""Variance that a constant teacher counts as having: it is divided by."""

OTHERS_WEIGHT = 8.0
"""Weight of the classes besides the first choice in `dkd`: beta of the paper; not tuned here."""

MASKED_LOGIT = -1000.0
"""Added to a logit whose class is to have probability 0: exp of it underflows, yet is finite."""


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student) of softened classes, times T^2.

    The factor keeps gradients alike at every temperature. Source: arXiv:1503.02531.
    """
    log_q = F.log_softmax(student / temperature, -1)
    log_p = F.log_softmax(teacher / temperature, -1)
    return _divergence(log_p, log_q).mean() * temperature**2


def dist(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return 1 - Pearson correlation, over classes in each row plus over rows in each class.

    Source: arXiv:2205.10536 (DIST), times T^2.
    """
    rows_q = student.flatten(0, -2)
    rows_p = teacher.flatten(0, -2)
    q = F.softmax(rows_q / temperature, -1)
    p = F.softmax(rows_p / temperature, -1)
    between_classes = 1 - _pearson(q, p).mean()
    within_classes = 1 - _pearson(q.T, p.T).mean()
    return (between_classes + within_classes) * temperature**2


def dkd(
    student: Tensor, teacher: Tensor, temperature: float, others: float = OTHERS_WEIGHT
) -> Tensor:
    """Return KL in two parts: first choice against the rest, and, weighted, among the rest.

    The target class is the teacher's argmax, so labels are not needed. Source: arXiv:2203.08679
    (alpha 1, beta `others`), times T^2.
    """
    top = teacher.argmax(-1, keepdim=True)
    q = F.softmax(student / temperature, -1)
    p = F.softmax(teacher / temperature, -1)
    q_top = q.gather(-1, top)
    p_top = p.gather(-1, top)
    first = _binary_term(p_top, q_top) + _binary_term(1 - p_top, 1 - q_top)
    # softmax over the other classes alone: the target's logit falls out of both
    masked = torch.zeros_like(student).scatter(-1, top, MASKED_LOGIT)
    log_q = F.log_softmax(student / temperature + masked, -1)
    log_p = F.log_softmax(teacher / temperature + masked, -1)
    rest = _divergence(log_p, log_q)
    return (first + others * rest).mean() * temperature**2


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last axis, from logarithms."""
    difference = log_p - log_q
    return (log_p.exp() * difference).sum(-1)


def _binary_term(p: Tensor, q: Tensor) -> Tensor:
    """Return p log(p / q) summed over the last axis; probabilities may be 0."""
    tiny = torch.finfo(q.dtype).tiny
    log_p = p.clamp_min(tiny).log()
    log_q = q.clamp_min(tiny).log()
    return (p * (log_p - log_q)).sum(-1)


def binary(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL of each yes-or-no by its logit, times T^2."""
    q = student / temperature
    p = teacher / temperature
    target = p.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(q, target)
    # the least that the cross-entropy can be: without it the teacher itself had a loss
    entropy = F.binary_cross_entropy_with_logits(p, target)
    return (cross_entropy - entropy) * temperature**2


def mse(student: Tensor, teacher: Tensor, variance: float) -> Tensor:
    """Return the mean squared difference over the variance of the teacher's values.

    1 is what a student gets that gives nothing but the teacher's mean.
    """
    return F.mse_loss(student, teacher) / max(variance, SMALLEST_VARIANCE)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cosine of the angle between rows."""
    rows_q = student.flatten(1)
    rows_p = teacher.flatten(1)
    return 1 - F.cosine_similarity(rows_q, rows_p, dim=-1).mean()


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of attention maps.

    A map is the mean square over channels of (N, C, *K), to unit norm. Source: arXiv:1612.03928.
    """
    difference = _attention_map(student) - _attention_map(teacher)
    return difference.square().sum(-1).mean()


def _attention_map(x: Tensor) -> Tensor:
    energy = x.square().mean(1).flatten(1)
    return F.normalize(energy, dim=-1)


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of the cosines between all rows of a batch.

    Widths need not agree: only rows are compared with each other.
    """
    difference = _cosines(student) - _cosines(teacher)
    return difference.square().mean()


def _cosines(x: Tensor) -> Tensor:
    rows = F.normalize(x.flatten(1), dim=-1)
    return rows @ rows.T


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    centred_a = a - a.mean(-1, keepdim=True)
    centred_b = b - b.mean(-1, keepdim=True)
    return F.cosine_similarity(centred_a, centred_b, dim=-1, eps=1e-8)


SOFT_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "kl": kl,
    "dist": dist,
    "dkd": dkd,
    "binary": binary,
}
"""Losses of logits by the words of the option `loss`; the last argument is a temperature."""

FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attention": attention,
    "relation": relation,
}
"""Losses of features by the words of the option `feature_loss`, besides `mse`."""
