"""What runs inside the worker's child process; `Worker.call` names functions of this file."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ... import OnnxOptError, RefusedError
from ..calibrate import Clipped, RangeObserver, Tap
from ..hardware import products_saturate
from ..moments import MomentObserver
from . import ipc, ort_values
from .background import Counting

Feeds = dict[str, Any]
Providers = list[tuple[str, dict[str, str]]]
_NODE_PREFIX = re.compile(
    r"(?:.*)Non-zero status code returned while running (\S+) node\. Name:'([^']*)' Status Message: "
)
_SESSIONS: dict[int, Any] = {}
_OBSERVERS: dict[int, dict[str, RangeObserver]] = {}
_MOMENTS: dict[int, dict[str, MomentObserver]] = {}
_COUNTING = Counting()
_HELD_BYTES = (
    256 << 20
)  # more than this is counted before the next outputs come, so that it is held only once


def serve(parent: int, memory_bytes: int) -> None:
    """Answer calls until the parent is gone. Frames travel on the original stdin and stdout, prints
    go to stderr.
    """
    requests: BinaryIO = os.fdopen(os.dup(0), "rb")
    replies: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit_memory(memory_bytes)
    threading.Thread(target=_exit_with_parent, args=[parent], daemon=True).start()
    while True:
        try:
            name, args, kwargs = ipc.receive(requests)
        except EOFError:
            os._exit(0)
        try:
            reply = ("ok", _FUNCTIONS[name](*args, **kwargs))
        except OnnxOptError as error:
            reply = (
                "error",
                (type(error).__name__, error.where, error.problem, error.fix),
            )
        except Exception as error:
            reply = ("error", _described(name, error))
        ipc.send(replies, reply)


def _described(name: str, error: Exception) -> tuple[str, str, str, str]:
    kind, text = type(error).__name__, shortened(str(error)) or type(error).__name__
    if (
        isinstance(error, MemoryError)
        or "bad_alloc" in text
        or "Failed to allocate memory" in text
    ):
        kind = "MemoryError"
    return (
        kind,
        name,
        text,
        "run `onnx-opt inspect` on the model; the message is ONNX Runtime's",
    )


def shortened(message: str) -> str:
    """First line of an ONNX Runtime message without its code prefix and source paths, at most 300
    characters.
    """
    line = next((part for part in message.splitlines() if part.strip()), "").strip()
    if line.startswith("[ONNXRuntimeError]"):
        line = line.split(" : ", 3)[-1]
    line = _NODE_PREFIX.sub(r"\1 node '\2': ", line)
    words = [word for word in line.split(" ") if "onnxruntime_src/" not in word]
    return " ".join(words)[:300]


def _limit_memory(memory_bytes: int) -> None:
    if memory_bytes and sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = (
            memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
        )
        with contextlib.suppress(
            ValueError, OSError
        ):  # macOS may refuse; the limit is a guard, not a promise
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _exit_with_parent(parent: int) -> None:
    """A parent that was killed closes the pipe, but a long run does not read it."""
    while os.name != "posix" or os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def open_session(
    path: str,
    provider: str,
    providers: Providers,
    install: str,
    threads: int,
    optimize: bool,
    spin: bool = True,
    exact: bool = False,
) -> tuple[int, list[tuple[str, str, list[Any]]], list[tuple[str, str, list[Any]]]]:
    """Create a session; returns its handle and (name, type, shape) of inputs and outputs. Never
    another provider.
    """
    import onnxruntime as ort

    ort_name = providers[0][0]
    if ort_name not in ort.get_available_providers():
        raise RefusedError(
            f"provider {provider}",
            f"this onnxruntime ({ort.__version__}) has no {ort_name}",
            install,
        )
    if provider != "cpu":
        _prepare_gpu(provider)
    settings = _session_options(threads, optimize)
    if not spin:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact:
        settings.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(path, settings, providers=providers)
    if ort_name not in session.get_providers():
        raise RefusedError(
            f"provider {provider}",
            f"{ort_name} does not start here: its libraries or a device are missing",
            install,
        )
    session.disable_fallback()
    handle = len(_SESSIONS)
    _SESSIONS[handle] = session
    inputs = [(i.name, i.type, list(i.shape)) for i in session.get_inputs()]
    return (
        handle,
        inputs,
        [(o.name, o.type, list(o.shape)) for o in session.get_outputs()],
    )


def _session_options(threads: int, optimize: bool) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry(
        "session.force_spinning_stop", "1"
    )  # idle sessions would slow the timed one
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    )
    return settings


def _prepare_gpu(provider: str) -> None:
    """Lift the address-space limit (CUDA reserves far more than it uses) and load the libraries of
    pip's packages.
    """
    import importlib
    import importlib.util

    import onnxruntime as ort

    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    ort.preload_dlls()
    if provider == "tensorrt" and importlib.util.find_spec("tensorrt"):
        importlib.import_module("tensorrt")


def run(handle: int, feeds: Feeds) -> dict[str, Any]:
    """Outputs by name; sequences and maps are flattened to `name[0]`, `name[1]`, …"""
    session = _SESSIONS[handle]
    return ort_values.flattened(
        [o.name for o in session.get_outputs()], ort_values.run(session, None, feeds)
    )


def close_session(handle: int) -> None:
    """Free a session."""
    _COUNTING.abandon()
    _SESSIONS[handle] = None
    _OBSERVERS.pop(handle, None)
    _MOMENTS.pop(handle, None)


def optimized_ops(path: str, providers: Providers, threads: int) -> dict[str, int]:
    """Counts of `domain.op` (standard ops without a domain) of ONNX Runtime's optimized graph,
    subgraphs included.
    """
    return dict(
        Counter(op for op, _, _, _ in optimized_nodes(path, providers, threads))
    )


def optimized_nodes(
    path: str, providers: Providers, threads: int
) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """(`domain.op`, name, inputs, outputs) of each node of ONNX Runtime's optimized graph,
    subgraphs included.
    """
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        settings = _session_options(threads, True)
        settings.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
        ort.InferenceSession(path, settings, providers=providers)
        model = onnx.load(settings.optimized_model_filepath, load_external_data=False)
    nodes = []
    pending = [model.graph]
    while pending:
        for node in pending.pop().node:
            domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
            nodes.append(
                (
                    domain + node.op_type,
                    node.name,
                    tuple(node.input),
                    tuple(node.output),
                )
            )
            for attribute in node.attribute:
                pending += (
                    [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
                )
    return nodes


def observe(handle: int, feeds: Feeds, taps: Mapping[str, Tap | None]) -> int:
    """Run the feeds and take the tapped outputs (or inputs) into this session's observers; returns
    their bytes.

    A tap that is a `Tap` clips another one, which is observed for both. Counting goes on while the
    next feeds run; an error in it is raised by the next call.
    """
    session, observers = _SESSIONS[handle], _OBSERVERS.setdefault(handle, {})
    plain = [name for name, tap in taps.items() if tap is None]
    produced = {o.name for o in session.get_outputs()}
    wanted = [name for name in plain if name in produced]
    arrays = (
        dict(zip(wanted, ort_values.run(session, wanted, feeds), strict=True))
        if wanted
        else {}
    )
    size: int = sum(array.nbytes for array in arrays.values())
    taken = {name: arrays.get(name, feeds.get(name)) for name in plain}
    _COUNTING.start(functools.partial(_count, observers, taken, taps))
    if size > _HELD_BYTES:
        _COUNTING.finish()
    return size


def _count(
    observers: dict[str, RangeObserver],
    arrays: dict[str, Any],
    taps: Mapping[str, Tap | None],
) -> None:
    """Update the observers, emptying `arrays`."""
    clipped: dict[str, list[Clipped]] = {}
    for name, tap in taps.items():
        if tap is not None and _is_float(arrays.get(tap.source)):
            observer = observers.setdefault(name, RangeObserver(name))
            clipped.setdefault(tap.source, []).append(
                Clipped(observer, tap.low, tap.high)
            )
    for name in list(arrays):
        array = arrays.pop(name)
        if _is_float(array):
            observers.setdefault(name, RangeObserver(name)).update(
                array, clipped.get(name, ())
            )


def _is_float(array: Any) -> bool:
    return array is not None and np.issubdtype(np.asarray(array).dtype, np.floating)


def ranges(
    handle: int, method: str, percentile: float, levels: int
) -> dict[str, tuple[float, float]]:
    """(low, high) of every tensor observed in this session."""
    _COUNTING.finish()
    return {
        name: o.range(method, percentile, levels)
        for name, o in _OBSERVERS.get(handle, {}).items()
        if o.count
    }


def compare(
    handle: int, other: int, feeds: Feeds, sums: Sequence[str]
) -> tuple[dict[str, tuple[float, float]], dict[str, float], int]:
    """Run two sessions on the same feeds; (signal and noise power by output of both, outputs in
    `sums`, bytes).

    Signal power: sum y^2 of the first session's output; noise power: sum (y - y')^2, NaN where y'
    has another shape.
    """
    first, second = run(handle, feeds), run(other, feeds)
    powers = {}
    for name in first.keys() & second.keys():
        y = np.asarray(first[name], np.float64)
        same = y.shape == second[name].shape
        error = y - np.asarray(second[name], np.float64) if same else np.array(math.nan)
        powers[name] = (float(np.vdot(y, y)), float(np.vdot(error, error)))
    scalars = {name: float(first[name]) for name in sums}
    return (
        powers,
        scalars,
        sum(array.nbytes for array in (*first.values(), *second.values())),
    )


def accumulate(handle: int, feeds: Feeds, requests: dict[str, dict[str, Any]]) -> int:
    """Run the feeds and take what the requests name into this session's moments; returns the bytes
    of the tensors.
    """
    session, observers = _SESSIONS[handle], _MOMENTS.setdefault(handle, {})
    rows = next((np.shape(array)[0] for array in feeds.values() if np.ndim(array)), 1)
    produced = {o.name for o in session.get_outputs()}
    named = [
        r[key] for r in requests.values() for key in ("tensor", "target") if r.get(key)
    ]
    wanted = list(dict.fromkeys(name for name in named if name in produced))
    arrays = (
        dict(zip(wanted, ort_values.run(session, wanted, feeds), strict=True))
        if wanted
        else {}
    )
    for key, request in requests.items():
        array = arrays.get(request["tensor"], feeds.get(request["tensor"]))
        if array is not None and np.issubdtype(np.asarray(array).dtype, np.floating):
            target = (
                arrays.get(request["target"], feeds.get(request["target"]))
                if request.get("target")
                else None
            )
            observers.setdefault(
                key, MomentObserver(request["tensor"], request)
            ).update(array, target, samples=rows)
    return sum(array.nbytes for array in arrays.values())


def moments(handle: int) -> dict[str, Any]:
    """Every moment observed in this session, by the request's key."""
    return {key: o.value() for key, o in _MOMENTS.get(handle, {}).items() if o.count}


def time_rounds(
    handles: Sequence[int],
    feeds: Sequence[Sequence[Feeds]],
    seconds: float,
    min_rounds: int,
    max_rounds: int,
) -> list[list[float]]:
    """Milliseconds of each run, one list a session: warm-up, then rounds in which every session
    runs the same turn.
    """
    sessions = [_SESSIONS[handle] for handle in handles]
    for session, batches in zip(sessions, feeds, strict=True):
        for batch in batches[:2]:
            ort_values.run(session, None, batch)
    times: list[list[float]] = [[] for _ in sessions]
    end, turn = time.perf_counter() + seconds, 0
    while turn < min_rounds or (turn < max_rounds and time.perf_counter() < end):
        order = (
            range(len(sessions)) if turn % 2 == 0 else reversed(range(len(sessions)))
        )
        for index in order:
            batch = feeds[index][turn % len(feeds[index])]
            start = time.perf_counter()
            ort_values.run(sessions[index], None, batch)
            times[index].append((time.perf_counter() - start) * 1e3)
        turn += 1
    return times


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def sleep(seconds: float) -> None:
    """Do nothing: for tests of the time limit."""
    time.sleep(seconds)


def abort() -> None:
    """Die as ONNX Runtime does on a failed assertion: for tests."""
    os.abort()


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        open_session,
        run,
        close_session,
        optimized_ops,
        optimized_nodes,
        compare,
        observe,
        ranges,
        accumulate,
        moments,
        time_rounds,
        peak_memory,
        products_saturate,
        sleep,
        abort,
    )
}
