"""Sessions that the child holds, by handle: opening, running, comparing and timing them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError
from ...passes._core.freed import give_back
from . import light_load, ort_values
from .installed import onnxruntime_module
from .ipc import OpenedSession, OrtTensor, OutputComparison, Powers, Providers

Feeds = Mapping[str, Any]

_SESSIONS: dict[int, Any] = {}
_PREPARED: set[str] = set()
"""Providers that libraries were loaded and limits lifted for."""

_WARM_UP_BATCHES = 2
"""Untimed runs before a timing: the first of a shape allocates memory and starts the threads.

Chosen by hand; not measured.
"""

_LONG_RUN = 0.25
"""Seconds of a run beside which starting threads and allocating memory count for nothing. Chosen by
hand; not measured.
"""


def session_at(handle: int) -> Any:
    """Get the session of a handle, an `onnxruntime.InferenceSession`."""
    return _SESSIONS[handle]


def open_session(
    path: str,
    provider: str,
    providers: Providers,
    install: str,
    threads: int,
    optimize: bool,
    spin: bool = True,
    exact: bool = False,
    as_deployed: bool = False,
) -> OpenedSession:
    """Create a session on the first of `providers`, never on another one.

    `provider`: our name of it. `as_deployed`: load the file itself, for what that takes. Errors:
    RefusedError, with `install` as its fix, where ONNX Runtime lacks the provider or cannot start
    it.
    """
    ort = onnxruntime_module()
    ort_name = providers[0][0]
    if ort_name not in ort.get_available_providers():
        raise RefusedError(
            f"provider {provider}",
            f"this onnxruntime ({ort.__version__}) has no {ort_name}",
            install,
        )
    if provider != "cpu":
        prepare_gpu(provider)
    settings = _session_options(threads, optimize)
    if not spin:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact:
        settings.add_session_config_entry("session.x64quantprecision", "1")
    make = _plain_load if as_deployed else light_load.load
    session = make(path, settings, providers)
    # ONNX Runtime only logs that a provider does not start, and runs everything on the CPU
    if ort_name not in session.get_providers():
        raise RefusedError(
            f"provider {provider}",
            f"{ort_name} does not start here: its libraries or a device are missing",
            install,
        )
    session.disable_fallback()
    # handles are never used twice: closed sessions keep their place, as None
    handle = len(_SESSIONS)
    _SESSIONS[handle] = session
    inputs = [_described(value) for value in session.get_inputs()]
    outputs = [_described(value) for value in session.get_outputs()]
    return OpenedSession(handle, inputs, outputs)


def _plain_load(path: str, settings: Any, providers: Providers) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(path, settings, providers=providers)


def _described(value: Any) -> OrtTensor:
    return OrtTensor(
        name=value.name,
        type=value.type,
        shape=list(value.shape),
    )


def _session_options(threads: int, optimize: bool) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    # 4: only what ends the process; every other error comes back as an exception
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads
    # idle sessions would slow the one that is timed
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    levels = ort.GraphOptimizationLevel
    level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    # they are not timed, and weights that a graph decodes would stay in the arena, all of them
    settings.enable_cpu_mem_arena = optimize
    settings.graph_optimization_level = level
    return settings


def prepare_gpu(provider: str) -> None:
    """Lift the address-space limit and load the libraries of pip's packages."""
    import importlib
    import importlib.util

    import onnxruntime as ort

    _PREPARED.add(provider)
    if sys.platform != "win32":
        import resource

        # CUDA reserves far more address space than it uses
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    # 1.21 and newer
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    if provider == "tensorrt" and importlib.util.find_spec("tensorrt"):
        importlib.import_module("tensorrt")


def close(handle: int) -> None:
    """Free a session."""
    _SESSIONS[handle] = None


def opened() -> list[int]:
    """Handles of the sessions that are not closed."""
    return [handle for handle, session in _SESSIONS.items() if session is not None]


def has_prepared_gpu() -> bool:
    """True once a provider took a GPU: this process has no memory limit any more."""
    return bool(_PREPARED)


def run(handle: int, feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Run a session: outputs by name; items of a sequence are `name[0]`, `name[1]`, …"""
    session = _SESSIONS[handle]
    names = [output.name for output in session.get_outputs()]
    return ort_values.flattened(names, ort_values.run(session, None, feeds))


def run_rows(
    handle: int, feeds: Feeds, output: str, rows: Sequence[int]
) -> NDArray[Any]:
    """Run a session for one output, and take some rows of its second axis: (B, T, ...) -> (B, n,
    ...).
    """
    session = _SESSIONS[handle]
    (value,) = ort_values.run(session, [output], feeds)
    return np.take(value, rows, axis=1)


_LEVELS = {
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
"""Levels of ONNX Runtime's graph optimizations, by their names in its documentation."""


def write_optimized(path: str, providers: Providers, files: Mapping[str, str]) -> None:
    """Have ONNX Runtime write its optimized graph of each level, and the weights beside it."""
    for level, out in files.items():
        _write_optimized(path, providers, level, out)
        give_back()


def _write_optimized(path: str, providers: Providers, level: str, out: str) -> None:
    # nothing is run: starting threads would take longer than the rest
    settings = optimized_options(1, out, level)
    light_load.load(path, settings, providers)


def optimized_options(threads: int, out: str, level: str = "all") -> Any:
    """Options of a session that writes its optimized graph to `out`, with the weights beside it."""
    import onnxruntime as ort

    settings = _session_options(threads, optimize=True)
    settings.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, _LEVELS[level]
    )
    settings.optimized_model_filepath = out
    # weights in a file beside it: a graph above 2 GB could not be written at all
    settings.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "weights.bin"
    )
    settings.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
    )
    return settings


def compare(
    handle: int, other: int, feeds: Feeds, scalars: Sequence[str]
) -> OutputComparison:
    """Run two sessions on the same feeds and compare their common outputs.

    `scalars`: outputs of the first session, of one element each, whose values are returned.
    """
    first = run(handle, feeds)
    second = run(other, feeds)
    powers = {}
    for name in first.keys() & second.keys():
        powers[name] = _powers(first[name], second[name])
    values = {name: float(first[name]) for name in scalars}
    arrays = (*first.values(), *second.values())
    size = sum(array.nbytes for array in arrays)
    return OutputComparison(powers, values, size)


def _powers(reference: NDArray[Any], got: NDArray[Any]) -> Powers:
    y = np.asarray(reference, np.float64)
    signal = float(np.vdot(y, y))
    if y.shape != got.shape:
        return Powers(signal, math.nan)
    error = y - np.asarray(got, np.float64)
    return Powers(signal, float(np.vdot(error, error)))


def time_rounds(
    handles: Sequence[int],
    feeds: Sequence[Sequence[Feeds]],
    seconds: float,
    min_rounds: int,
    max_rounds: int,
) -> list[list[float]]:
    """Time sessions in rounds, in each of which every session runs once: ms, one list a session.

    `feeds`: batches of each session, used in turn. It ends after `seconds` or `max_rounds`, but not
    before `min_rounds`.
    """
    sessions = [_SESSIONS[handle] for handle in handles]
    for session, batches in zip(sessions, feeds, strict=True):
        for batch in batches[:_WARM_UP_BATCHES]:
            start = time.perf_counter()
            ort_values.run(session, None, batch)
            if time.perf_counter() - start > _LONG_RUN:
                break
    times: list[list[float]] = [[] for _ in sessions]
    forwards = list(range(len(sessions)))
    backwards = forwards[::-1]
    end = time.perf_counter() + seconds
    turn = 0
    while turn < min_rounds or (turn < max_rounds and time.perf_counter() < end):
        # the order alternates: going first, with cold caches, costs each session alike
        order = forwards if turn % 2 == 0 else backwards
        for index in order:
            batches = feeds[index]
            batch = batches[turn % len(batches)]
            start = time.perf_counter()
            ort_values.run(sessions[index], None, batch)
            elapsed = time.perf_counter() - start
            times[index].append(elapsed * 1e3)
        turn += 1
    return times
