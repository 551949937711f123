"""One try of a pass: the model that it made, and whether that is to be believed."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ... import OnnxOptError
from ...passes._core.outcome import PassOutcome
from ...runtime.compare import Drift
from .drift import Outputs


@dataclass(frozen=True)
class Verification:
    """Verification of a model: a reason not to believe it, its drift, its outputs.

    `drift` and `outputs` are None where nothing is compared. `fault`: words of the runtime that
    does not bear the model, which is then the `problem`; "" for every other problem.
    """

    problem: str | None = None
    drift: Drift | None = None
    outputs: Outputs | None = None
    fault: str = ""


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
    def fault(self) -> str:
        """Words of the runtime that does not bear the model; "" where it does."""
        return self.verification.fault
