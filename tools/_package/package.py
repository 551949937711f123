"""The job of `package`: a model, its samples and all that it needs, written as a bundle."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import RefusedError
from ...frontends.onnx_file import load, save
from ...passes._core.input_shapes import fix_input_shapes
from ...passes._core.scratch import scratch_folder
from ...passes._core.target_limits import misfits
from ...runtime.bundles import Content, Place, texts, write
from ...runtime.hardware import covers
from ...runtime.worker_pool import pool
from .._run.misfits import grouped
from .._run.provenance import sha256_of
from .content import (
    ORT,
    Files,
    model_files,
    ort_files,
    programs,
    sample_files,
)
from .extras import LICENCE, extra_files
from .manifest import manifest_of
from .packaged_model import PackagedModel
from .request import PackageRequest
from .timing import Times, times_of
from .web import page_files


@dataclass(frozen=True)
class WrittenBundle:
    """A bundle that was written: its place, its manifest, and what the user should know."""

    path: Path
    manifest: dict[str, Any]
    warnings: list[str]


def package(request: PackageRequest) -> WrittenBundle:
    """Make a bundle.

    Errors: UsageError (options, an output that is there), RefusedError (model, data, samples),
    OnnxOptError (writing).
    """
    place = Place.of(request.out, request.force)
    extras = extra_files(request)
    with pool().borrowed() as worker, scratch_folder() as scratch:
        request = _with_shapes(request, scratch)
        packaged = PackagedModel.of(request, worker)
        _tell_misfits(packaged)
        files: Files = dict(model_files(packaged))
        samples = sample_files(packaged.session, packaged.samples)
        files.update(samples)
        made = ort_files(packaged, scratch)
        times = _times(packaged, files, made)
        if not _keeps_ort_format(request, times):
            _tell_of_ort_format(packaged, times, made)
            made.pop(ORT, None)
        files.update(made)
        files.update(extras)
        files.update(programs(packaged))
        files.update(page_files(packaged))
        manifest = manifest_of(packaged, files, extras, times)
        has_licence = LICENCE in files
        for name, text in texts(manifest, set(files), has_licence).items():
            files[name] = text.encode()
        full = write(place, files, manifest)
    _warn_of_saturation(packaged, full)
    return WrittenBundle(place.path, full, packaged.warnings)


def _with_shapes(request: PackageRequest, scratch: Path) -> PackageRequest:
    """The request for a copy of the model that has the shapes, where any are asked for."""
    if not request.shapes:
        return request
    model = load(request.model)
    fix_input_shapes(model, request.shapes)
    folder = scratch / "fixed"
    folder.mkdir()
    path = folder / request.model.name
    save(model, path, durable=False)
    return replace(request, model=path, source=request.model)


def _tell_misfits(packaged: PackagedModel) -> None:
    """Warn of nodes that run beside the target. Errors: RefusedError where nothing runs on it."""
    name = packaged.target.name
    where = f"target {name}"
    found = misfits(packaged.model, name)
    for group in grouped(found):
        if group.is_fatal:
            raise RefusedError(where, group.problem, group.fix)
        warning = f"{where}: {group.problem}: {group.fix}"
        packaged.warnings.append(warning)


def _keeps_ort_format(request: PackageRequest, times: Times) -> bool:
    if request.ort == "auto":
        return times.ort_pays
    return request.ort == "yes"


def _tell_of_ort_format(
    packaged: PackagedModel, times: Times, made: dict[str, Path]
) -> None:
    """Say what ORT format would give where it is left out for its bytes alone."""
    if packaged.request.ort != "auto" or times.ort_start is None:
        return
    size = made[ORT].stat().st_size
    packaged.warnings.append(
        f"a cold start from ORT format takes {times.ort_start:.2f} of the time, but that file has "
        f"{size:,} bytes: --ort yes adds it"
    )


def _times(packaged: PackagedModel, files: Files, made: dict[str, Path]) -> Times:
    """Times on this machine, where the target is made for it and its provider is here."""
    request = packaged.request
    target = packaged.target
    is_here = packaged.session.provider.name == target.provider
    is_covered = covers(target, packaged.hardware)
    if not (request.bench and is_here and is_covered):
        return Times()
    ort_format = None
    if request.ort == "auto":
        ort_format = made.get(ORT)
    key = [
        packaged.onnxruntime,
        packaged.hardware.label,
        target.name,
        str(ort_format is not None),
    ]
    for name in sorted(files):
        digest = _digest(files[name])
        key.append(f"{name} {digest}")
    feeds = packaged.samples[0].feeds
    return times_of(packaged.session, feeds, ort_format, key, request.cache)


def _digest(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return sha256_of(content)


def _warn_of_saturation(packaged: PackagedModel, manifest: dict[str, Any]) -> None:
    offending = manifest["figures"]["offending_pairs"]
    if offending and packaged.target.quant.limits_pairs:
        packaged.warnings.append(
            f"{offending:,} weight pairs may saturate on x86 CPUs without VNNI: outputs there may "
            "miss the samples; --passes requantize mends the model"
        )
