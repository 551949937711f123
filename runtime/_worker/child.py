"""The worker's child process: answers calls until its parent is gone.

`Worker.call` names functions of the table `FUNCTIONS` at the end of this file.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ... import OnnxOptError
from ...passes._core.freed import give_back
from ..hardware import products_saturate
from . import bundles, ipc, profiles, sessions, statistics
from .installed import installed

_MESSAGE_LENGTH = 300
"""Characters of an ONNX Runtime message that are kept. Chosen by hand; not measured."""

_PARENT_SECONDS = 1.0
_MEMORY_SECONDS = 0.1
"""Seconds between two looks for the parent, and at the memory held. Chosen by hand; not measured.
"""

_NODE_PREFIX = re.compile(
    r"(?:.*)Non-zero status code returned while running (\S+) node\."
    r" Name:'([^']*)' Status Message: "
)


def serve(parent: int, memory_bytes: int) -> None:
    """Answer calls until the parent, a process id, is gone.

    Messages travel on the original stdin and stdout. `memory_bytes` limits the address space; 0 is
    no limit.
    """
    requests: BinaryIO = os.fdopen(os.dup(0), "rb")
    replies: BinaryIO = os.fdopen(os.dup(1), "wb")
    # what libraries print must not land between messages: from here on stdout is stderr
    os.dup2(2, 1)
    # what the system does not limit, the watcher does
    rest = 0 if _limit_memory(memory_bytes) else memory_bytes
    watcher = threading.Thread(target=_watch, args=[parent, rest], daemon=True)
    watcher.start()
    _warm_up()
    while True:
        try:
            call = ipc.receive(requests)
        except EOFError:
            # without cleanup: a thread of ONNX Runtime may never end
            os._exit(0)
        reply = _answer(ipc.FunctionCall(*call))
        ipc.send(replies, reply._replace(cpu_seconds=time.process_time()))


def _warm_up() -> None:
    """Load what nearly every call needs, while the parent may still be reading its model."""
    # where it is missing, the first call says so
    with contextlib.suppress(ImportError):
        import onnxruntime  # noqa: F401


def _answer(call: ipc.FunctionCall) -> ipc.Reply:
    try:
        value = FUNCTIONS[call.function](*call.args, **call.kwargs)
    except OnnxOptError as error:
        kind = type(error).__name__
        failure = ipc.Failure(kind, error.where, error.problem, error.fix)
        return ipc.Reply(failure=failure)
    except Exception as error:
        return ipc.Reply(failure=_described(call.function, error))
    return ipc.Reply(value)


def _described(function: str, error: Exception) -> ipc.Failure:
    kind = type(error).__name__
    text = shortened(str(error)) or kind
    if _is_out_of_memory(error, text):
        kind = "MemoryError"
    fix = "run `onnx-opt inspect` on the model; the message is ONNX Runtime's"
    return ipc.Failure(kind, function, text, fix)


def _is_out_of_memory(error: Exception, text: str) -> bool:
    # ONNX Runtime reports a failed allocation as an ordinary failure, in one of these words
    return (
        isinstance(error, MemoryError)
        or "bad_alloc" in text
        or "Failed to allocate memory" in text
    )


def shortened(message: str) -> str:
    """First line of an ONNX Runtime message, without its code prefix and source paths.

    At most 300 characters.
    """
    line = _first_line(message)
    if line.startswith("[ONNXRuntimeError]"):
        # "[ONNXRuntimeError] : 1 : FAIL : what happened"
        line = line.split(" : ", 3)[-1]
    line = _NODE_PREFIX.sub(r"\1 node '\2': ", line)
    words = [word for word in line.split(" ") if "onnxruntime_src/" not in word]
    return " ".join(words)[:_MESSAGE_LENGTH]


def _first_line(message: str) -> str:
    for line in message.splitlines():
        if line.strip():
            return line.strip()
    return ""


def _limit_memory(memory_bytes: int) -> bool:
    """Have the system limit the address space; False where it does not."""
    if not memory_bytes or sys.platform == "win32":
        return False
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    # macOS refuses
    except (ValueError, OSError):
        return False
    return True


def _watch(parent: int, memory_bytes: int) -> None:
    """Exit once the parent was killed, or above so many bytes of memory; 0 is no limit.

    A killed parent closes the pipe, which a long run does not read.
    """
    seconds = _MEMORY_SECONDS if memory_bytes else _PARENT_SECONDS
    while _is_alive(parent):
        if memory_bytes and _held_memory() > memory_bytes:
            os._exit(ipc.OUT_OF_MEMORY)
        time.sleep(seconds)
    os._exit(1)


def _is_alive(parent: int) -> bool:
    if sys.platform == "win32":
        # an orphan keeps its parent's number there
        import psutil

        return bool(psutil.pid_exists(parent))
    return os.getppid() == parent


def _held_memory() -> int:
    """Bytes of memory that this process holds; on Windows, those that were promised to it too."""
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "private", info.rss))


def close_session(handle: int) -> None:
    """Free a session and its statistics."""
    # statistics first: a count that goes on in the background must end before
    statistics.forget(handle)
    sessions.close(handle)
    give_back()


def clear() -> bool:
    """Free every session and all statistics; False if the process is not as it was at its start."""
    for handle in sessions.opened():
        close_session(handle)
    return not sessions.has_prepared_gpu()


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    if sys.platform == "win32":
        import psutil

        info = psutil.Process().memory_info()
        return int(getattr(info, "peak_wset", info.rss))
    if sys.platform == "linux":
        # what getrusage tells there may be the peak of the parent, before this process began
        status = Path("/proc/self/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux kibibytes
    return peak if sys.platform == "darwin" else peak * 1024


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "installed": installed,
    "open_session": sessions.open_session,
    "run": sessions.run,
    "run_rows": sessions.run_rows,
    "write_optimized": sessions.write_optimized,
    "compare": sessions.compare,
    "time_rounds": sessions.time_rounds,
    "profile": profiles.profile,
    "observe": statistics.observe,
    "ranges": statistics.ranges,
    "accumulate": statistics.accumulate,
    "moments": statistics.moments,
    "close_session": close_session,
    "clear": clear,
    "peak_memory": peak_memory,
    "products_saturate": products_saturate,
    "selftest": bundles.selftest,
    "write_ort_format": bundles.write_ort_format,
    "write_operators": bundles.write_operators,
    "time_load": bundles.time_load,
}
"""Functions that the parent may call, by name."""
