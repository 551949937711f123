"""Packing of a run's result: an exact last step that nobody has to ask for."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import onnx_ir as ir

from ...frontends.onnx_file import save
from ...passes._core.targets import TARGETS
from ...passes.pack import Pack
from ...passes.unpack import Unpack, without_packing
from ...runtime.bench import LoadCost, load_cost
from .context import TrainingContext
from .evidence import VerificationInputs
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
    inputs: VerificationInputs,
) -> Checked:
    """Pack the constants of a lossy pipeline's result where its target's runtime unpacks them.

    Nothing happens where that saves little, or where the pipeline says itself how it ends. A model
    that came packed and was unpacked to work on is packed again, whatever the pipeline.

    Where latency is measured, so is what loading takes: `load_ms` and `load_peak_mb` of the process
    in the account of the last step, and the same with `plain_` for the model without packing.
    """
    if _is_due(run, original):
        checked = run_step(run, verifier, context, checked, Pack(), is_worth=_pays)
    last = checked.steps[-1] if checked.steps else None
    if last is None or last.name != Pack.name or not last.changed:
        return checked
    if not inputs.latency_feeds or not run.settings.bench:
        return checked
    step = dataclasses.replace(
        last, stats={**last.stats, **_loads(run, inputs, checked)}
    )
    return dataclasses.replace(checked, steps=(*checked.steps[:-1], step))


def _is_due(run: Run, original: Original) -> bool:
    settings = run.settings
    passes = settings.pipeline.passes
    is_lossy = any(pass_.effect == "lossy" for pass_ in passes)
    if not settings.pack or not (is_lossy or original.was_packed):
        return False
    if any(isinstance(pass_, (Pack, Unpack)) for pass_ in passes):
        return False
    folds = TARGETS[settings.target].folds_constants
    if original.was_packed and not folds:
        run.reporter.warn(
            "pack",
            f"the result is not packed, as the model was: not every runtime of "
            f"{settings.target} unpacks constants once, while it loads",
        )
    return folds


def _loads(run: Run, inputs: VerificationInputs, checked: Checked) -> dict[str, float]:
    """Cost of loading the packed model and the plain one."""
    stats: dict[str, float] = {}
    plain = without_packing(checked.model)
    with run.reporter.progress("measuring the load"):
        for prefix, model in (("plain_", plain), ("", checked.model)):
            cost = _load_cost(run, inputs, model)
            stats[f"{prefix}load_ms"] = round(cost.ms, 1)
            if cost.peak_bytes is not None:
                stats[f"{prefix}load_peak_mb"] = round(cost.peak_bytes / 1e6, 1)
    return stats


def _load_cost(run: Run, inputs: VerificationInputs, model: ir.Model) -> LoadCost:
    with tempfile.TemporaryDirectory(dir=run.scratch) as folder:
        path = Path(folder, "loaded.onnx")
        save(model, path)
        return load_cost(path, run.settings.threads, inputs.provider or "cpu")


def _pays(before: ir.Model, after: ir.Model) -> bool:
    return expected_bytes(after) <= (1 - LEAST_SAVING) * expected_bytes(before)
