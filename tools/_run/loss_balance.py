"""Losses of layers beside what the outputs lost: do they add up, and where do they part?

To first order the noise of a layer is carried to the outputs as it is, beside the signal: relative
powers of independent noises add.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .explain_loss import Loss, StageLosses

APART = 3.0
"""Difference (dB) above which two figures are told apart: a factor of two in power."""

BEARABLE = 60.0
"""SQNR (dB) above which a loss that nothing explains is not worth a word. Chosen by hand."""


def parting(stages: Sequence[StageLosses], measured_db: float) -> str | None:
    """Say where the losses of layers part from what the outputs lost, and why; None: they do not.

    `measured_db`: SQNR of the outputs to the original's.
    """
    of_stages = [_sum_db(loss.own_db for loss in stage.losses) for stage in stages]
    summed = _sum_db(of_stages)
    last = [_last_known(stage.losses) for stage in stages]
    known = [loss for loss in last if loss is not None]
    if summed == math.inf:
        return _unexplained(measured_db)
    # outputs that are exact, labels for one, or broken: nothing is to be compared
    if not (math.isfinite(summed) and math.isfinite(measured_db)):
        return None
    if abs(summed - measured_db) <= APART:
        return None
    words = (
        f"the layers' own losses add up to {summed:.1f} dB, and the outputs keep "
        f"{measured_db:.1f} dB"
    )
    if not known:
        return f"{words}: no layer's output is to be seen in the result, all were fused"
    reached = _sum_db(loss.sqnr_db or 0.0 for loss in known)
    behind = known[-1]
    if abs(reached - measured_db) > APART:
        return (
            f"{words}: at '{behind.layer}', the last layer that lost something, {reached:.1f} dB "
            f"had accumulated; what follows it {_made(reached, measured_db)}"
        )
    place = _first_apart(stages)
    where = "" if place is None else f", from '{place}' on"
    change = _grew(summed, measured_db)
    return f"{words}: on their way through other layers the errors {change}{where}"


def _sum_db(figures: Iterable[float]) -> float:
    """SQNR of independent noises together; inf of none."""
    noise = sum(10 ** (-db / 10) for db in figures)
    return -10 * math.log10(noise) if noise > 0 else math.inf


def _last_known(losses: Sequence[Loss]) -> Loss | None:
    """The last layer whose output the result still has."""
    for loss in reversed(losses):
        if loss.sqnr_db is not None:
            return loss
    return None


def _unexplained(measured_db: float) -> str | None:
    if measured_db >= BEARABLE:
        return None
    return (
        f"no Conv, Gemm or MatMul lost anything, and the outputs keep {measured_db:.1f} dB: it is "
        "lost in tables, recurrent layers or layers with fewer channels, whose loss is not told "
        "apart, between layers, where values have fewer bits, or by other kernels"
    )


def _first_apart(stages: Sequence[StageLosses]) -> str | None:
    """The first layer at which more or less has accumulated than the losses up to it come to."""
    for stage in stages:
        own: list[float] = []
        for loss in stage.losses:
            own.append(loss.own_db)
            expected = _sum_db(own)
            if loss.sqnr_db is None or not math.isfinite(expected):
                continue
            if abs(loss.sqnr_db - expected) > APART:
                return loss.layer
    return None


def _made(reached: float, measured_db: float) -> str:
    if measured_db < reached:
        return "makes errors larger beside the signal (as a Softmax or a small difference does)"
    return (
        "makes errors smaller beside the signal (a clip, a mean, or a skip connection)"
    )


def _grew(summed: float, measured_db: float) -> str:
    if measured_db < summed:
        return "grow or point one way"
    return "cancel or are diluted by larger signals"
