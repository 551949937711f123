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
    q = student / temperature
    p = teacher / temperature
    log_q = F.log_softmax(q, -1)
    log_p = F.log_softmax(p, -1)
    divergence = _divergence(log_p, log_q)
    distance = divergence.mean()
    return distance * temperature**2


def dist(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return 1 - Pearson correlation, over classes in each row plus over rows in each class.

    Source: arXiv:2205.10536 (DIST), times T^2.
    """
    q = _softened_rows(student, temperature)
    p = _softened_rows(teacher, temperature)
    by_row = _pearson(q, p)
    by_class = _pearson(q.T, p.T)
    # the paper's inter-class and intra-class relations
    between_classes = 1 - by_row.mean()
    within_classes = 1 - by_class.mean()
    distance = between_classes + within_classes
    return distance * temperature**2


def _softened_rows(logits: Tensor, temperature: float) -> Tensor:
    """Return probabilities (rows, C); places of a sequence are rows."""
    rows = logits.flatten(0, -2)
    return F.softmax(rows / temperature, -1)


def dkd(
    student: Tensor, teacher: Tensor, temperature: float, others: float = OTHERS_WEIGHT
) -> Tensor:
    """Return KL in two parts: first choice against the rest, and, weighted, among the rest.

    The target class is the teacher's argmax, so labels are not needed. Source: arXiv:2203.08679
    (alpha 1, beta `others`), times T^2.
    """
    q = student / temperature
    p = teacher / temperature
    # dividing by a temperature leaves the order of the classes
    top = teacher.argmax(-1, keepdim=True)
    first = _first_choice_divergence(q, p, top)
    rest = _rest_divergence(q, p, top)
    by_row = first + others * rest
    distance = by_row.mean()
    return distance * temperature**2


def _first_choice_divergence(q: Tensor, p: Tensor, top: Tensor) -> Tensor:
    """Return KL, from logits, of the class `top` against all others together."""
    probabilities_q = F.softmax(q, -1)
    probabilities_p = F.softmax(p, -1)
    q_top = probabilities_q.gather(-1, top)
    p_top = probabilities_p.gather(-1, top)
    chosen = _binary_term(p_top, q_top)
    q_others = 1 - q_top
    p_others = 1 - p_top
    others = _binary_term(p_others, q_others)
    return chosen + others


def _rest_divergence(q: Tensor, p: Tensor, top: Tensor) -> Tensor:
    """Return KL, from logits, among the classes besides `top`."""
    zeros = torch.zeros_like(q)
    mask = zeros.scatter(-1, top, MASKED_LOGIT)
    q_rest = q + mask
    p_rest = p + mask
    log_q = F.log_softmax(q_rest, -1)
    log_p = F.log_softmax(p_rest, -1)
    return _divergence(log_p, log_q)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last axis, from logarithms."""
    p = log_p.exp()
    terms = p * (log_p - log_q)
    return terms.sum(-1)


def _binary_term(p: Tensor, q: Tensor) -> Tensor:
    """Return p log(p / q) summed over the last axis; probabilities may be 0."""
    tiny = torch.finfo(q.dtype).tiny
    positive_p = p.clamp_min(tiny)
    positive_q = q.clamp_min(tiny)
    log_p = positive_p.log()
    log_q = positive_q.log()
    terms = p * (log_p - log_q)
    return terms.sum(-1)


def binary(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL of each yes-or-no by its logit, times T^2."""
    q = student / temperature
    p = teacher / temperature
    target = p.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(q, target)
    # the least that the cross-entropy can be: without it the teacher itself had a loss
    entropy = F.binary_cross_entropy_with_logits(p, target)
    divergence = cross_entropy - entropy
    return divergence * temperature**2


def mse(student: Tensor, teacher: Tensor, variance: float | Tensor) -> Tensor:
    """Return the mean squared difference over the variance of the teacher's values.

    `variance`: of all values, or of each column, shaped to divide by. 1 is what a student gets that
    gives nothing but the teacher's mean.
    """
    if isinstance(variance, float):
        error = F.mse_loss(student, teacher)
        return error / max(variance, SMALLEST_VARIANCE)
    squares = (student - teacher).square()
    shares = squares / variance.to(squares.device)
    return shares.mean()


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cosine of the angle between rows."""
    cosines = F.cosine_similarity(
        student.flatten(1),
        teacher.flatten(1),
        dim=-1,
    )
    return 1 - cosines.mean()


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of attention maps.

    A map is the mean square over channels of (N, C, *K), to unit norm. Source: arXiv:1612.03928.
    """
    own = _attention_map(student)
    theirs = _attention_map(teacher)
    difference = own - theirs
    squares = difference.square()
    by_row = squares.sum(-1)
    return by_row.mean()


def _attention_map(x: Tensor) -> Tensor:
    squares = x.square()
    energy = squares.mean(1)
    return F.normalize(energy.flatten(1), dim=-1)


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of the cosines between all rows of a batch.

    Widths need not agree: only rows are compared with each other.
    """
    own = _cosines(student)
    theirs = _cosines(teacher)
    difference = own - theirs
    squares = difference.square()
    return squares.mean()


def _cosines(x: Tensor) -> Tensor:
    rows = F.normalize(x.flatten(1), dim=-1)
    return rows @ rows.T


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    # correlation is the cosine of centred values
    return F.cosine_similarity(
        a - a.mean(-1, keepdim=True),
        b - b.mean(-1, keepdim=True),
        dim=-1,
        eps=1e-8,
    )


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
