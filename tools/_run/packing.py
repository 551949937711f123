"""Packing of a run's result: an exact last step that nobody has to ask for."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import onnx_ir as ir

from ...frontends.onnx_file import save
from ...passes._core.targets import TARGETS
from ...passes.pack import Pack
from ...passes.unpack import Unpack
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

    Where latency is measured, so is what loading takes: `load_ms`, `load_peak_mb` of the process,
    and the same with `plain_` of the model before. Nothing happens where packing saves little, or
    where the pipeline says itself how it ends. A model that came packed and was unpacked to work on
    is packed again, whatever the pipeline.
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
    plain = checked.model.clone()
    packed = run_step(run, verifier, context, checked, Pack(), is_worth=_pays)
    if packed.steps == checked.steps or not inputs.latency_feeds or not settings.bench:
        return packed
    return _with_load_costs(run, inputs, packed, plain)


def _with_load_costs(
    run: Run, inputs: VerificationInputs, packed: Checked, plain: ir.Model
) -> Checked:
    """Add what loading takes to the last step's account, beside the model of plain constants."""
    *earlier, step = packed.steps
    stats = dict(step.stats)
    for prefix, model in (("plain_", plain), ("", packed.model)):
        with run.reporter.progress("measuring the load"):
            cost = _load_cost(run, inputs, model)
        stats[f"{prefix}load_ms"] = round(cost.ms, 1)
        if cost.peak_bytes is not None:
            stats[f"{prefix}load_peak_mb"] = round(cost.peak_bytes / 1e6, 1)
    step = dataclasses.replace(step, stats=stats)
    return dataclasses.replace(packed, steps=(*earlier, step))


def _load_cost(run: Run, inputs: VerificationInputs, model: ir.Model) -> LoadCost:
    with tempfile.TemporaryDirectory(dir=run.scratch) as folder:
        path = Path(folder, "loaded.onnx")
        save(model, path)
        return load_cost(path, run.settings.threads, inputs.provider or "cpu")


def _pays(before: ir.Model, after: ir.Model) -> bool:
    return expected_bytes(after) <= (1 - LEAST_SAVING) * expected_bytes(before)
