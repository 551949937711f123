"""The manifest of a bundle: what `runtime/_bundle/schema/bundle-1.json` describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ... import __version__
from ...passes._core.normalize import normalize
from ...passes._core.requirements import requirements_of
from ...passes._core.stats import model_macs
from ...passes.unpack import restore_packed
from ...runtime.installed import release
from ...runtime.providers import PROVIDERS, Provider
from ...runtime.session import TensorInfo
from .._run.figures import LARGE, figures_of, weight_bytes
from .._run.kernels import saturating_pairs
from .._run.load import opsets_of
from .._run.provenance import RECORD, history, provenance, sha256_of
from .content import MODEL, OPERATORS, ORT, Files, sample_names
from .extras import LABELS, TOKENIZER, preprocessing
from .packaged_model import PackagedModel
from .timing import Times

SCHEMA = "1.0"
"""Version of the manifest's form."""

_CHOICES = {"tensorrt": ("tensorrt", "cuda", "cpu"), "cuda": ("cuda", "cpu")}
"""Providers that `auto` chooses from, the best first; of other targets their own alone."""


def manifest_of(
    packaged: PackagedModel, files: Files, extras: dict[str, Path], times: Times
) -> dict[str, Any]:
    """Everything but the digests. `files`: by their names in the bundle."""
    session = packaged.session
    limits = packaged.limits
    return {
        "schema": SCHEMA,
        "name": bundle_name(packaged.request.model),
        "made_by": {"onnx-opt": __version__, "onnxruntime": packaged.onnxruntime},
        "target": packaged.target.name,
        "model": _model(packaged, files),
        "inputs": [_tensor(info) for info in session.inputs],
        "outputs": [_tensor(info) for info in session.outputs],
        "preprocessing": preprocessing(extras),
        "labels": _present(LABELS, files),
        "tokenizer": _present(TOKENIZER, files),
        "runtime": _runtime(packaged),
        "providers": _providers(packaged.target.provider),
        "samples": [sample_names(session, n) for n in range(len(packaged.samples))],
        "tolerance": {
            "provider": session.provider.name,
            "measured": limits.measured,
            "outputs": limits.outputs,
        },
        "figures": _figures(packaged, times),
        "provenance": _provenance(packaged),
    }


def bundle_name(model: Path) -> str:
    """Name of a bundle: the model's, as folders on every system may be called."""
    stem = model.stem.removesuffix(".opt")
    return re.sub(r"[^\w.+-]", "_", stem).strip(".") or "model"


def _present(name: str, files: Files) -> str | None:
    return name if name in files else None


def _model(packaged: PackagedModel, files: Files) -> dict[str, Any]:
    ort = None
    if ORT in files:
        # older releases may not know what this one writes
        newest = ".".join(map(str, release(packaged.onnxruntime)))
        ort = {"file": ORT, "runtime": newest}
    return {
        "file": MODEL,
        "ort": ort,
        "operators": _present(OPERATORS, files),
        "opset": opsets_of(packaged.model),
        "ir_version": packaged.model.ir_version,
    }


def _tensor(info: TensorInfo) -> dict[str, Any]:
    dtype = "string" if info.dtype == "object" else info.dtype
    return {"name": info.name, "dtype": dtype, "shape": list(info.shape)}


def _runtime(packaged: PackagedModel) -> dict[str, str]:
    needs = requirements_of(packaged.model)
    tried = packaged.onnxruntime
    if needs.onnxruntime is None:
        least = ".".join(map(str, release(tried)))
        because = f"the one that was tried; {needs.because}"
    else:
        least = needs.onnxruntime
        because = needs.because
    return {"minimum": least, "because": because, "tried": tried}


def _providers(name: str) -> list[dict[str, Any]]:
    choices = _CHOICES.get(name, (name,))
    return [_provider(PROVIDERS[choice]) for choice in choices]


def _provider(provider: Provider) -> dict[str, Any]:
    return {
        "name": provider.name,
        "onnxruntime": provider.ort_name,
        "options": dict(provider.options),
        "partner": provider.partner or None,
    }


def _figures(packaged: PackagedModel, times: Times) -> dict[str, Any]:
    model = packaged.model
    is_large = weight_bytes(model) > LARGE
    figures = figures_of(model, packaged.request.model, count_nonzero=not is_large)
    # on a copy: the file keeps the form that it has
    plain = model.clone()
    normalize(plain)
    restore_packed(plain)
    is_timed = times.latency_ms is not None
    return {
        "bytes": figures.bytes,
        "params": figures.params,
        "nonzero": figures.nonzero,
        "nodes": figures.nodes,
        "macs": model_macs(plain),
        "load_ms": times.load_ms,
        "cold_start_ms": times.cold_start_ms,
        "latency_ms": times.latency_ms,
        "offending_pairs": None if is_large else saturating_pairs(plain).offending,
        "measured_on": packaged.hardware.label if is_timed else None,
    }


def _provenance(packaged: PackagedModel) -> dict[str, Any]:
    record: dict[str, Any] = dict.fromkeys(RECORD)
    record.update(provenance(packaged.model))
    # the manifest has it under `runtime`
    del record["min_runtime"]
    return {
        **record,
        "model_sha256": sha256_of(packaged.request.model),
        "history": history(packaged.model),
    }
