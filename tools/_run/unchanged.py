"""Runs that change nothing: the result is the file that was given, byte by byte."""

from __future__ import annotations

import filecmp

import onnx_ir as ir

from ...frontends.onnx_file import save
from ...passes._core.targets import TARGETS
from ...passes.pack import Pack
from ...passes.unpack import Unpack
from .load import Original
from .run import Run
from .step import Checked


def is_unchanged(run: Run, original: Original, checked: Checked) -> bool:
    """True if no pass has changed anything, and loading mended nothing.

    A model that came packed was unpacked to work on: it is unchanged if the run would only pack it
    again.
    """
    if original.was_mended or any(step.changed for step in checked.steps):
        return False
    if not original.was_packed:
        return True
    passes = run.settings.pipeline.passes
    if any(isinstance(pass_, Pack | Unpack) for pass_ in passes):
        return False
    return run.settings.pack and TARGETS[run.settings.target].folds_constants


def is_packed_again(
    run: Run, original: Original, checked: Checked, model: ir.Model
) -> bool:
    """True if a pipeline only packs what came packed, and `model` is what its file holds."""
    changed = {step.name for step in checked.steps if step.changed}
    source = run.settings.source
    if not original.was_packed or changed != {Pack.name} or source is None:
        return False
    path = run.scratch / "packed_again.onnx"
    try:
        save(model, path, external=False, durable=False)
        return filecmp.cmp(path, source, shallow=False)
    finally:
        path.unlink(missing_ok=True)
