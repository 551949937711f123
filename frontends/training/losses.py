"""Distances between what a student says and what its teacher says. All are means over rows, of
tensors (N, *, C).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

Tensor = Any


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened classes, times T^2, which keeps gradients alike.
    arXiv:1503.02531.
    """
    log_q = F.log_softmax(student / temperature, -1)
    log_p = F.log_softmax(teacher / temperature, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean() * temperature**2


def dist(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """1 - Pearson correlation, of each row over the classes and of each class over the rows.
    arXiv:2205.10536.
    """
    q = F.softmax(student.flatten(0, -2) / temperature, -1)
    p = F.softmax(teacher.flatten(0, -2) / temperature, -1)
    between, within = 1 - _pearson(q, p).mean(), 1 - _pearson(q.T, p.T).mean()
    return (between + within) * temperature**2


def dkd(
    student: Tensor, teacher: Tensor, temperature: float, others: float = 8.0
) -> Tensor:
    """KL taken apart: of the teacher's first choice against the rest, and, weighted, among the
    rest.

    The target class is the teacher's argmax, so labels are not needed. arXiv:2203.08679 (alpha 1,
    beta 8).
    """
    top = teacher.argmax(-1, keepdim=True)
    q, p = F.softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
    q_top, p_top = q.gather(-1, top), p.gather(-1, top)
    tiny = torch.finfo(q.dtype).tiny
    pairs = ((p_top, q_top), (1 - p_top, 1 - q_top))
    first = sum(
        (a * (a.clamp_min(tiny).log() - b.clamp_min(tiny).log())).sum(-1)
        for a, b in pairs
    )
    masked = torch.zeros_like(student).scatter(-1, top, -1000.0)
    log_q = F.log_softmax(student / temperature + masked, -1)
    log_p = F.log_softmax(teacher / temperature + masked, -1)
    rest = (log_p.exp() * (log_p - log_q)).sum(-1)
    return (first + others * rest).mean() * temperature**2


def binary(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL of each yes-or-no, times T^2."""
    q, p = student / temperature, teacher / temperature
    entropy = F.binary_cross_entropy_with_logits(p, p.sigmoid())
    return (
        F.binary_cross_entropy_with_logits(q, p.sigmoid()) - entropy
    ) * temperature**2


def mse(student: Tensor, teacher: Tensor, variance: float) -> Tensor:
    """Mean square of the difference, over the variance of the teacher's values: 1 is what their
    mean gets.
    """
    return F.mse_loss(student, teacher) / max(variance, 1e-12)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of the angle between rows."""
    return (
        1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1), dim=-1).mean()
    )


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of where the energy is: sums of squares over channels (N, C, *K), to unit norm.
    arXiv:1612.03928.
    """
    q, p = (
        F.normalize(x.square().mean(1).flatten(1), dim=-1) for x in (student, teacher)
    )
    return (q - p).square().sum(-1).mean()


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of how alike rows are to each other: cosines between all of a batch. Needs no shapes
    to agree.
    """
    q, p = (F.normalize(x.flatten(1), dim=-1) for x in (student, teacher))
    return (q @ q.T - p @ p.T).square().mean()


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return F.cosine_similarity(a, b, dim=-1, eps=1e-8)
