"""Two models, or several, side by side: what `verify`, `bench` and `eval` share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .. import OnnxOptError, RefusedError
from ..frontends.onnx_file import load
from ..runtime.compare import DriftMeter
from ..runtime.feeds import candidate_feeds, open_feeds
from ..runtime.session import Session
from ._drift import Arrays, all_finite, limited
from .console import say


def checked(path: Path) -> Path:
    """`path`, after the loader has found it sound: ONNX Runtime gets nothing that we would refuse."""
    load(path)
    return path.absolute()


def feeds_for(session: Session, data: str | None, seed: int) -> Iterable[Arrays]:
    """All batches of the data, or a few synthetic ones that the model accepts."""
    if data is not None:
        feeds = open_feeds(data, session.inputs)
        for message in feeds.warnings:
            say(f"warning: data: {message}")
        return (batch.feeds for batch in feeds)
    for kind in candidate_feeds(session.inputs, seed):
        batches = limited(batch.feeds for batch in kind)
        try:
            outputs = [session.run(feeds) for feeds in batches]
        except OnnxOptError:
            continue  # not this kind; the next may be
        if all_finite(outputs):
            return batches
    raise RefusedError(session.path.name, "gives no finite outputs on synthetic feeds", "give --data with real ones")


class Closeness:
    """Figures of one model's outputs against another's, and whether each element is within atol + rtol |y|."""

    def __init__(self, atol: float | None, rtol: float | None) -> None:
        self.atol, self.rtol = atol or 0.0, rtol or 0.0
        self.elementwise = atol is not None or rtol is not None
        self.meter = DriftMeter()
        self.outside = 0

    def update(self, reference: dict[str, Any], got: dict[str, Any]) -> None:
        """Take one batch of outputs. Errors: CheckError where names or shapes differ."""
        self.meter.update(reference, got)
        if self.elementwise:
            self.outside += sum(self._outside(reference[name], got[name]) for name in reference)

    def _outside(self, reference: Any, got: Any) -> int:
        if reference.dtype.kind in "OUS":
            return int(np.count_nonzero(reference != got))
        close = np.isclose(got.astype(np.float64), reference.astype(np.float64), self.rtol, self.atol, equal_nan=True)
        return int(np.count_nonzero(~close))

    def problem(self, min_sqnr: float | None) -> str | None:
        """Which limit is not met; None if all are."""
        overall = self.meter.overall()
        if overall.nonfinite:
            return f"{overall.nonfinite} output values are finite in A and not in B"
        if min_sqnr is not None and overall.sqnr_db < min_sqnr:
            return f"SQNR {overall.sqnr_db:.1f} dB is below {min_sqnr:g} dB"
        if self.outside:
            return f"{self.outside} output values are outside atol {self.atol:g} + rtol {self.rtol:g} |y|"
        return None
