"""Packing of a run's result: an exact last step that nobody has to ask for."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections import Counter
from pathlib import Path

import onnx_ir as ir

from ...frontends.onnx_file import save
from ...passes._core.stored import bits_by_count, stored_constants
from ...passes._core.targets import TARGETS
from ...passes.pack import Pack
from ...passes.unpack import Unpack, without_packing
from ...runtime.bench import LoadCost, load_cost
from .context import TrainingContext
from .evidence import VerificationInputs
from .figures import expected_bytes
from .load import Original
from .run import Run
from .step import Checked, run_step
from .verify import Verifier

LEAST_SAVING = 0.05
"""Part of the file that packing must save; below it, plain constants are worth more.

Chosen by hand; not measured.
"""

BYTE = 8
"""Bits of the smallest elements that integer kernels read."""

_FEW_BITS = re.compile(r"weights_([1-7])_bit")
"""Stat of weights with fewer."""


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
        pack = Pack()
        count = len(checked.steps)
        checked = run_step(run, verifier, context, checked, pack, is_worth=_pays)
        if len(checked.steps) == count:
            _warn_of_wide_codes(run, checked)
    if not checked.steps:
        return checked
    *earlier, last = checked.steps
    if last.name != Pack.name:
        return checked
    if not last.changed:
        return checked
    if not inputs.latency_feeds or not run.settings.bench:
        return checked
    loads = _loads(run, inputs, checked)
    stats = {**last.stats, **loads}
    step = dataclasses.replace(last, stats=stats)
    steps = (*earlier, step)
    return dataclasses.replace(checked, steps=steps)


def _is_due(run: Run, original: Original) -> bool:
    settings = run.settings
    passes = settings.pipeline.passes
    if not settings.pack:
        return False
    is_lossy = any(pass_.effect == "lossy" for pass_ in passes)
    if not is_lossy and not original.was_packed:
        return False
    if any(isinstance(pass_, (Pack, Unpack)) for pass_ in passes):
        return False
    target = TARGETS[settings.target]
    folds = target.folds_constants
    if original.was_packed and not folds:
        run.reporter.warn(
            "pack",
            f"the result is not packed, as the model was: not every runtime of "
            f"{settings.target} unpacks constants once, while it loads",
        )
    return folds


def _warn_of_wide_codes(run: Run, checked: Checked) -> None:
    """Tell of weights that a pass gave few bits, and that only packing would store in these."""
    few = _few_bits(checked)
    if not few:
        return
    stored = bits_by_count(stored_constants(checked.model))
    least = min(stored, key=int, default="0")
    if int(least) < BYTE:
        return
    widths = sorted(few)
    asked = " or ".join(map(str, widths))
    unit = "bit" if asked == "1" else "bits"
    run.reporter.warn(
        "pack",
        f"{few.total():,} weights of {asked} {unit} are stored in {BYTE}: packing them saves less "
        f"than {LEAST_SAVING:.0%} of the file; 'pack' at the end of --passes packs them all the "
        "same",
    )


def _few_bits(checked: Checked) -> Counter[int]:
    """Number of weights by the bits that passes gave them, of those below 8."""
    few = Counter[int]()
    for step in checked.steps:
        for name, value in step.stats.items():
            found = _FEW_BITS.fullmatch(name)
            if found is not None:
                width = int(found[1])
                few[width] += int(value)
    return few


def _loads(run: Run, inputs: VerificationInputs, checked: Checked) -> dict[str, float]:
    """Cost of loading the packed model and the plain one."""
    stats: dict[str, float] = {}
    packed = checked.model
    plain = without_packing(packed)
    models = {"plain_": plain, "": packed}
    with run.reporter.progress("measuring the load"):
        for prefix, model in models.items():
            cost = _load_cost(run, inputs, model)
            stats[f"{prefix}load_ms"] = round(cost.ms, 1)
            if cost.peak_bytes is None:
                continue
            peak_mb = cost.peak_bytes / 1e6
            stats[f"{prefix}load_peak_mb"] = round(peak_mb, 1)
    return stats


def _load_cost(run: Run, inputs: VerificationInputs, model: ir.Model) -> LoadCost:
    threads = run.settings.threads
    provider = inputs.provider or "cpu"
    with tempfile.TemporaryDirectory(dir=run.scratch) as folder:
        path = Path(folder, "loaded.onnx")
        save(model, path, durable=False)
        return load_cost(path, threads, provider)


def _pays(before: ir.Model, after: ir.Model) -> bool:
    plain = expected_bytes(before)
    packed = expected_bytes(after)
    limit = (1 - LEAST_SAVING) * plain
    return packed <= limit
