"""Packing of a run's result: an exact last step that nobody has to ask for."""

from __future__ import annotations

import onnx_ir as ir

from ...passes._core.targets import TARGETS
from ...passes.pack import Pack
from ...passes.unpack import Unpack
from .context import TrainingContext
from .figures import expected_bytes
from .load import Original
from .run import Run
from .step import Checked, Verifier, run_step

LEAST_SAVING = 0.05
"""Part of the file that packing must save; below it, plain constants are worth more.

Chosen by hand; not measured.
"""


def end_packed(
    run: Run,
    original: Original,
    verifier: Verifier,
    context: TrainingContext,
    checked: Checked,
) -> Checked:
    """Pack the constants of a lossy pipeline's result where its target's runtime unpacks them.

    Nothing happens where that saves little, or where the pipeline says itself how it ends. A model
    that came packed and was unpacked to work on is packed again, whatever the pipeline.
    """
    settings = run.settings
    passes = settings.pipeline.passes
    is_lossy = any(pass_.effect == "lossy" for pass_ in passes)
    if not settings.pack or not (is_lossy or original.was_packed):
        return checked
    if any(isinstance(pass_, (Pack, Unpack)) for pass_ in passes):
        return checked
    if not TARGETS[settings.target].folds_constants:
        if original.was_packed:
            run.reporter.warn(
                "pack",
                f"the result is not packed, as the model was: not every runtime of "
                f"{settings.target} unpacks constants once, while it loads",
            )
        return checked
    return run_step(run, verifier, context, checked, Pack(), is_worth=_pays)


def _pays(before: ir.Model, after: ir.Model) -> bool:
    return expected_bytes(after) <= (1 - LEAST_SAVING) * expected_bytes(before)
