"""The child's part of bundles: self-test, models in ORT format, time of a cold start."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import sessions
from .installed import onnxruntime_module
from .ort_format import sorted_kernels

_CPU = "CPUExecutionProvider"

_OF_ONE_CPU = ["NchwcTransformer"]
"""Optimizations whose result only CPUs with the same instructions run."""


def selftest(folder: str, provider: str, threads: int, seconds: float) -> Any:
    """Self-test of a bundle's folder, as its own run.py does it.

    Errors: UsageError, RefusedError, CheckError.
    """
    # here: every child starts faster without
    from .._bundle import run
    from .._bundle.failures import as_own_errors

    onnxruntime_module()
    path = Path(folder)
    with as_own_errors():
        chosen = run.chosen_provider(run.read_manifest(path), provider)
        if chosen["name"] in ("cuda", "tensorrt"):
            sessions.prepare_gpu(chosen["name"])
        return run.selftest(path, provider, threads, seconds)


def write_ort_format(path: str, out: str, optimize: bool) -> None:
    """Have ONNX Runtime write a model in ORT format, as any CPU runs it."""
    ort = onnxruntime_module()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    levels = ort.GraphOptimizationLevel
    level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    settings.graph_optimization_level = level
    settings.optimized_model_filepath = out
    settings.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(
        path,
        settings,
        providers=[_CPU],
        disabled_optimizers=_OF_ONE_CPU,
    )
    written = Path(out)
    written.write_bytes(sorted_kernels(written.read_bytes()))


def write_operators(paths: Sequence[str], out: str) -> None:
    """Write the operators of models in ORT format, as ONNX Runtime's build reads them.

    With the types that each is used for, where ONNX Runtime's tools know them all: they lack INT4.
    """
    onnxruntime_module()
    from onnxruntime.tools.ort_format_model import create_config_from_models

    models = [Path(path) for path in paths]
    # it prints what it does
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            create_config_from_models(models, Path(out), True)
        except KeyError:
            create_config_from_models(models, Path(out), False)


def time_load(path: str, feeds: Mapping[str, Any]) -> tuple[float, float]:
    """Time a cold start: seconds until the session is there, and until it has run once."""
    ort = onnxruntime_module()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    start = time.perf_counter()
    session = ort.InferenceSession(path, settings, providers=[_CPU])
    loaded = time.perf_counter()
    session.run(None, dict(feeds))
    return loaded - start, time.perf_counter() - start
