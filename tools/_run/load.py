"""First step of a run: load the original, and keep the facts that later steps compare with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ... import CheckError, RefusedError
from ...frontends.onnx_file import Reading, check_output, read, save
from ...passes._core.declared import declare_as_is
from ...passes._core.input_shapes import fix_input_shapes
from ...passes._core.normalize import normalize
from ...passes._core.stats import model_macs
from ...passes._core.stored import bits_by_count, stored_constants
from ...passes._core.targets import target_named
from ...passes.unpack import is_packed, restore_packed, starts_with_unpack
from .checks import (
    Interface,
    Validity,
    has_inner_shapes,
    interface_of,
    interface_of_file,
    validity_of,
)
from .figures import LARGE, Figures, figures_of, files_of, weight_bytes, zipped_bytes
from .floor import is_asked
from .kernels import is_quantized
from .provenance import sha256_of
from .run import Run
from .settings import RunSettings


@dataclass(frozen=True)
class Original:
    """Facts of the original model.

    `about`: the JSON form's `model`. `path`: a file of it for the worker; None where this run never
    runs it. `files`: that file and those of its weights. `complaint`: what strict inference says of
    the file itself. `is_large`: its weights are above 1 GiB. `is_run`: models are run to check
    them. `has_shapes`, `is_quantized`, `was_packed`: as it came, before anything was inferred or
    changed. `was_mended`: loading has mended faults of the file, or fixed its shapes. `changes`:
    what reading and normalizing changed, in words.
    """

    about: dict[str, Any]
    figures: Figures
    path: Path | None
    files: frozenset[Path]
    sha256: str | None
    interface: Interface
    validity: Validity
    complaint: str | None
    is_large: bool
    is_run: bool
    has_shapes: bool
    is_quantized: bool
    was_packed: bool
    was_mended: bool
    changes: tuple[str, ...]


def load_original(run: Run) -> tuple[Original, ir.Model]:
    """Load the original; its facts, and the normalized model that the passes work on.

    Errors: UsageError for the target and the output path, RefusedError for the model, and for
    checks that are asked of a model that is not run.
    """
    settings = run.settings
    target_named(settings.target)
    # before anything costly: the file could not be written in the end
    if settings.out is not None:
        check_output(settings.out, settings.source, settings.force)
    step = run.reporter.progress
    with step("read"):
        reading = reading_of(settings)
    model = reading.model
    for fault in reading.mended:
        run.reporter.warn("model", fault)
    changes = list(reading.changes)
    interface = interface_of_file(model)
    with step("check structure"):
        validity = validity_of(model)
    complaint = validity.inference
    is_large = weight_bytes(model) > LARGE
    is_run = settings.verify == "always" or (settings.verify == "auto" and not is_large)
    if not is_run:
        _refuse_or_warn_unrun(run)
    with step("count"):
        sha256 = None if settings.source is None else sha256_of(settings.source)
        path, files = _files_of(run, model, is_run)
        figures = figures_of(model, path, count_nonzero=not is_large)
    if settings.zipped and path is not None:
        with step("zip"):
            figures.zipped_bytes = zipped_bytes(path, model)
    about = description(settings, model, sha256)
    has_shapes = has_inner_shapes(model)
    was_quantized = is_quantized(model)

    with step("normalize"):
        changes += normalize(model)
        bits = bits_by_count(stored_constants(model))
    # passes work on weights; how they are stored is the last step's affair
    was_packed = is_packed(model)
    if not starts_with_unpack(settings.pipeline.passes):
        unpacked = restore_packed(model)
        if unpacked:
            changes.append(f"packed constants unpacked: {unpacked}")
    # types that inference adds are the model's own from here on
    loaded = interface_of(model)
    problem = interface.difference(loaded)
    if problem:
        raise own_fault(f"loading changes the model: {problem}")
    of_file = validity
    if validity != Validity(None, None):
        # normalizing may mend what the file fails; passes must not undo that
        validity = validity.either(validity_of(model))
    is_another = bool(reading.mended or settings.shapes)
    original = Original(
        about=about,
        # shapes that normalizing infers make the MACs known
        figures=dataclasses.replace(figures, macs=model_macs(model), bits=bits),
        path=path,
        files=files,
        sha256=sha256,
        interface=loaded,
        validity=validity,
        complaint=complaint,
        is_large=is_large,
        is_run=is_run,
        has_shapes=has_shapes,
        is_quantized=was_quantized,
        was_packed=was_packed,
        was_mended=is_another or validity != of_file,
        changes=tuple(changes),
    )
    return original, model


def reading_of(settings: RunSettings) -> Reading:
    """The original as its file has it, with the shapes that were asked for; of a model in memory a
    clone.
    """
    if isinstance(settings.model, Path):
        reading = read(settings.model)
    else:
        # passes work in place, and the caller's model must stay as it is
        model = settings.model.clone()
        declare_as_is(model)
        reading = Reading(model, [], [])
    fixed = fix_input_shapes(reading.model, settings.shapes)
    return dataclasses.replace(reading, changes=[*reading.changes, *fixed])


def _refuse_or_warn_unrun(run: Run) -> None:
    """Warn that the model is not run. Errors: RefusedError where a check needs that."""
    settings = run.settings
    reason = "its weights are above 1 GiB"
    if settings.verify == "never":
        reason = "--verify never"
    # what cannot be kept is refused, not warned of
    checks = {
        "--strict": settings.strict,
        "--min-sqnr": settings.min_sqnr is not None,
        "--floor": is_asked(settings),
    }
    for option, is_given in checks.items():
        if is_given:
            raise RefusedError(
                option,
                f"cannot be checked: the model is not run ({reason})",
                "pass --verify always",
            )
    run.reporter.warn(
        "verify",
        f"checked in structure only, not run, not timed ({reason}); --verify always runs it",
    )


def _files_of(
    run: Run, model: ir.Model, is_run: bool
) -> tuple[Path | None, frozenset[Path]]:
    """A file of the model for the worker, and with those of its weights.

    None where this run needs none.
    """
    if run.settings.source is not None and not run.settings.shapes:
        path = run.settings.source.absolute()
        return path, frozenset(files_of(path, model))
    if not is_run and run.settings.metric is None:
        return None, frozenset()
    path = run.scratch / "input.onnx"
    return path, frozenset(save(model, path, durable=False))


def description(
    settings: RunSettings, model: ir.Model | None = None, sha256: str | None = None
) -> dict[str, Any]:
    """The JSON form's `model`; `model` None: it could not be read."""
    source = settings.source
    return {
        "path": None if source is None else str(source),
        "name": None if model is None else model.graph.name,
        "sha256": sha256,
        "producer": None if model is None else producer_of(model),
        "ir_version": None if model is None else model.ir_version,
        "opset": {} if model is None else opsets_of(model),
        "passes": str(settings.pipeline),
        "target": settings.target,
        "seed": settings.seed,
        "changes": [],
    }


def producer_of(model: ir.Model) -> str | None:
    """Name and version of the tool that made a model; None where it does not say."""
    words = (model.producer_name, model.producer_version)
    return " ".join(word for word in words if word) or None


def opsets_of(model: ir.Model) -> dict[str, int]:
    """Opset version by domain, the standard one by its written name."""
    return {
        domain or "ai.onnx": version for domain, version in model.opset_imports.items()
    }


def own_fault(problem: str) -> CheckError:
    """Error for a check that no model may fail: it is a fault in onnx-opt."""
    return CheckError(
        "check", problem, "this is a fault in onnx-opt: please report it with the model"
    )
