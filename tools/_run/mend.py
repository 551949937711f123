"""Mending before refusal: a pass whose result is worthless is tried in gentler forms first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ... import OnnxOptError
from ...passes._core.contract import Pass
from ...passes._core.drift_budget import BROKEN
from ...passes._core.training_recipe import TrainingRecipe
from ...runtime.drift_words import ON_DATA, ON_SYNTHETIC
from .blame import few_losses
from .context import TrainingContext
from .drift import choices_of
from .evidence import VerificationInputs
from .floor import floor_of
from .load import Original
from .run import Run
from .step import Checked, run_step
from .verify import Verifier


@dataclass(frozen=True)
class _Judged:
    """A model after a pass: dB of SQNR of its outputs, and the bound that it misses, if any."""

    checked: Checked
    sqnr_db: float
    missed: str | None


@dataclass(frozen=True)
class Mender:
    """Runs passes of one run, and those that make it worthless again, more gently."""

    run: Run
    original: Original
    inputs: VerificationInputs
    verifier: Verifier
    context: TrainingContext

    def run_step(
        self, checked: Checked, pass_: Pass, later: Sequence[Pass] = ()
    ) -> Checked:
        """Apply one pass and verify it; where the floor would refuse it, try `gentler` forms.

        The first one that is no longer broken is taken, else the best that the floor lets pass; a
        warning says so. Where none is, the pass stays as it was asked for: the end of the run
        refuses it. What is trained by `later` passes is theirs to mend. Errors: as `step.run_step`.
        """
        start = checked.model.clone()
        after = run_step(self.run, self.verifier, self.context, checked, pass_)
        # layers are looked for only where a pass can do something with them
        if type(pass_).gentler is Pass.gentler:
            return after
        asked = self._judged(after)
        if asked is None or asked.missed is None or _are_trained(later):
            return after
        size = self.original.figures.bytes
        losses = few_losses(self.run, self.inputs, after, size)
        worst = [loss["layer"] for loss in losses if loss["pass"] == pass_.name]
        best: _Judged | None = None
        chosen: Pass | None = None
        for gentler in pass_.gentler(worst):
            tried = self._tried(checked, start, gentler)
            if tried is None or tried.missed is not None:
                continue
            if best is None or tried.sqnr_db > best.sqnr_db:
                best, chosen = tried, gentler
            if best.sqnr_db >= BROKEN:
                break
        if best is None:
            return after
        self.run.reporter.warn(
            str(pass_),
            f"as asked, {asked.missed}: mended by {chosen}, which keeps {best.sqnr_db:.1f} dB; "
            "--floor none gives what was asked",
        )
        return best.checked

    def _tried(self, checked: Checked, start: ir.Model, pass_: Pass) -> _Judged | None:
        """The model after a gentler form of a pass; None where that fails."""
        before = dataclasses.replace(checked, model=start.clone())
        try:
            after = run_step(self.run, self.verifier, self.context, before, pass_)
        except OnnxOptError:
            # a form that this model does not have: the run goes on
            self.run.reporter.refused = []
            return None
        return self._judged(after)

    def _judged(self, checked: Checked) -> _Judged | None:
        """The model against the original; None where there is nothing to judge, or no floor."""
        reference = self.inputs.reference
        if reference is None or checked.outputs is None or checked.is_exact:
            return None
        is_made_up = self.inputs.drift_on == "synthetic feeds"
        floor = floor_of(self.run.settings, ON_SYNTHETIC if is_made_up else ON_DATA)
        if floor is None:
            return None
        drifts = reference.measured(checked.outputs, False)
        choices = choices_of(reference.original, checked.outputs)
        missed = floor.problem(drifts.per_output(), choices)
        return _Judged(checked, drifts.overall().sqnr_db, missed)


def _are_trained(later: Sequence[Pass]) -> bool:
    """True if a pass trains what those before it made."""
    return any(isinstance(pass_, TrainingRecipe) for pass_ in later)
