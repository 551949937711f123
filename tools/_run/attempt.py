"""One try of a pass: the model that it made, and whether that is to be believed."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ... import OnnxOptError
from ...passes._core.outcome import PassOutcome
from .bisection import Problem
from .verify import Verification


@dataclass(frozen=True)
class PassAttempt:
    """A pass applied to a model, in place, and verified.

    `seconds`: of the pass alone; verifying may take longer. `float_form`: the model that its lossy
    changes started from, where that is not the one before the pass. `error`: raised by the pass
    itself for what is then the verification's `fault`.
    """

    model: ir.Model
    outcome: PassOutcome
    verification: Verification
    seconds: float
    float_form: ir.Model | None = None
    error: OnnxOptError | None = None

    @property
    def problem(self) -> Problem | None:
        """Reason not to keep the model."""
        return self.verification.problem

    @property
    def fault(self) -> str:
        """Words of the runtime that does not bear the model; "" where it does."""
        return self.verification.fault
