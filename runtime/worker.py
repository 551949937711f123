"""A child process that runs ONNX Runtime.

Valid models can abort the process that they run in, or never return.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .. import CheckError, OnnxOptError, RefusedError, UsageError
from ..passes._core.limits import limit
from ._worker import ipc
from ._worker.watchdog import time_limit

# imports this very package by its folder: the parent may have found it in a way that the child's
# sys.path does not know; nothing is imported from the current folder, which may be a stranger's
# (Python 3.11 has -P for that)
_BOOTSTRAP = """
import sys
sys.path[:] = filter(None, sys.path)
import importlib.util
root = sys.argv[1]
spec = importlib.util.spec_from_file_location(
    "onnx_opt", root + "/__init__.py", submodule_search_locations=[root]
)
sys.modules["onnx_opt"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from onnx_opt.runtime._worker import child
child.serve(int(sys.argv[2]), int(sys.argv[3]))
"""
"""The child's program; its arguments are the package's folder and those of `child.serve`."""

_ERRORS: dict[str, type[OnnxOptError]] = {
    "OnnxOptError": OnnxOptError,
    "UsageError": UsageError,
    "RefusedError": RefusedError,
    "CheckError": CheckError,
}

_ENVIRONMENT = {
    # ONNX Runtime 1.32 reports to its maker otherwise, from Linux too, and leaves a file of its own
    # in the folder for temporary files
    "ORT_DISABLE_TELEMETRY": "1",
    # threads of numpy's products sleep at once: they would keep a core busy that runs models
    "OPENBLAS_THREAD_TIMEOUT": "4",
}
"""Environment of the child, unless the user's has it."""

_EXIT_SECONDS = 10
"""Seconds that a child which closed its pipe may take to end. Chosen by hand; not measured."""

_STDERR_LINES = 3
_STDERR_BYTES = 4096
_STDERR_CHARACTERS = 400
"""The end of a dead child's stderr that is read, and the part of it that an error shows. Chosen by
hand; not measured.
"""

_RESERVED_BY_A_THREAD = 192 << 20
"""Bytes of address space that a thread reserves and does not use: its stack and glibc's arena of
the heap. Chosen by hand from their defaults on 64-bit Linux (8 MiB and up to 2 x 64 MiB).
"""


class WorkerDied(OnnxOptError):
    """The child process ended, ran too long or needed too much memory; what it held is lost."""


class LimitExceeded(WorkerDied):
    """The child ran too long or needed too much memory: what a larger machine would not mind."""


class RemoteError(OnnxOptError):
    """An exception in the child, with ONNX Runtime's message.

    `kind` is the name of the exception's class there.
    """

    def __init__(self, where: str, problem: str, fix: str, kind: str) -> None:
        super().__init__(where, problem, fix)
        self.kind = kind


class Worker:
    """One child process, started at the first call, and again at the first call after it died.

    `timeout`: seconds that a call may take; None is the limit SECONDS. `memory_bytes`: limit of the
    child's address space; None is the limit MEMORY, or the machine's physical memory and what its
    threads reserve (not for GPU providers, which reserve far more than they use). Windows and macOS
    limit no address space: there the child looks at what it holds ten times a second.
    One call at a time: not for use from several threads. `generation` counts the starts: handles
    from an earlier generation are void.
    """

    def __init__(
        self, timeout: float | None = None, memory_bytes: int | None = None
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self.timeout = limit("SECONDS") if timeout is None else timeout
        self.memory_bytes = memory_bytes or limit("MEMORY") or default_limit()
        self.generation = 0
        self._cpu_of_dead = self._cpu_of_living = 0.0

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def limits(self) -> tuple[float, int]:
        """Seconds of a call, and bytes of the child's address space."""
        return self.timeout, self.memory_bytes

    @property
    def alive(self) -> bool:
        """True while the child is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of all children up to their last answers."""
        return self._cpu_of_dead + self._cpu_of_living

    def call(
        self, function: str, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Any:
        """Run one function of `_worker/child.py` in the child and return its value.

        `timeout`: seconds for this call. Errors: WorkerDied when the child ended or went past a
        limit, RemoteError for an exception in it; the project's own errors come back as they were
        raised.
        """
        self.start()
        seconds = self.timeout if timeout is None else timeout
        assert self._process
        with time_limit(seconds, self._process.kill) as alarm:
            try:
                reply = self._exchange(ipc.FunctionCall(function, args, kwargs))
            except (EOFError, OSError):
                exceeded = seconds if alarm.expired else None
                raise self._death(function, exceeded) from None
            except BaseException:
                # interrupted between two messages: an answer may still come, to no question
                self._kill()
                raise
        if reply.failure is not None:
            raise self._error(function, reply.failure)
        return reply.value

    def start(self) -> None:
        """Start the child unless it runs."""
        if self.alive:
            return
        self._kill()
        root = Path(__file__).resolve().parents[1]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        program = [sys.executable, "-c", _BOOTSTRAP]
        arguments = [str(root), str(os.getpid()), str(self.memory_bytes)]
        self._process = subprocess.Popen(
            program + arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_ENVIRONMENT | os.environ,
            # Ctrl-C in the terminal is the parent's to handle: on POSIX, and on Windows
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self.generation += 1

    def close(self) -> None:
        """End the child."""
        self._kill()

    def _exchange(self, call: ipc.FunctionCall) -> ipc.Reply:
        assert self._process
        assert self._process.stdin
        assert self._process.stdout
        ipc.send(self._process.stdin, call)  # type: ignore[arg-type]
        reply: ipc.Reply = ipc.receive(self._process.stdout)  # type: ignore[arg-type]
        self._cpu_of_living = reply.cpu_seconds
        return reply

    def _error(self, function: str, failure: ipc.Failure) -> OnnxOptError:
        """Make the error to raise for a failure in the child."""
        kind, where, problem, fix = failure
        if kind == "MemoryError":
            # what it holds would leave the next call as little memory
            self._kill()
            return self._out_of_memory(where)
        if kind in _ERRORS:
            return _ERRORS[kind](where, problem, fix)
        return RemoteError(where or function, problem, fix, kind)

    def _out_of_memory(self, where: str) -> LimitExceeded:
        return LimitExceeded(
            where,
            f"needs more than the {self.memory_bytes / 2**30:.1f} GiB allowed",
            "use smaller batches, or a machine with more memory",
        )

    def _death(self, function: str, exceeded: float | None) -> WorkerDied:
        """Make the error for a child that is gone; `exceeded`: the seconds that it had, if those
        were too few.
        """
        if exceeded is not None:
            self._kill()
            return LimitExceeded(
                function,
                f"ran past {exceeded:g} s and was stopped",
                "use a smaller model or less data, or raise ONNX_OPT_SECONDS",
            )
        process = self._process
        assert process is not None
        # the pipe closes before the process has ended
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_SECONDS)
        code = process.poll()
        tail = "" if self._stderr is None else self._last_words(self._stderr)
        self._kill()
        if code == ipc.OUT_OF_MEMORY:
            return self._out_of_memory(function)
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = signal_name(-code)
        problem = f"ONNX Runtime's process died ({how})"
        if tail:
            problem += f": {tail}"
        # ONNX Runtime does not kill itself; Linux does so when memory runs out
        if how == "SIGKILL":
            return LimitExceeded(
                function,
                problem,
                "the system ended it, usually for want of memory: use smaller batches or "
                "a larger machine",
            )
        return WorkerDied(
            function,
            problem,
            "the model triggers a fault in ONNX Runtime: try another version of it, or "
            "report it there",
        )

    def _last_words(self, stderr: IO[bytes]) -> str:
        length = stderr.seek(0, os.SEEK_END)
        stderr.seek(max(length - _STDERR_BYTES, 0))
        text = stderr.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-_STDERR_LINES:])[:_STDERR_CHARACTERS]

    def _kill(self) -> None:
        process = self._process
        self._process = None
        self._cpu_of_dead += self._cpu_of_living
        self._cpu_of_living = 0.0
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                # unsent bytes have nowhere to go
                with contextlib.suppress(OSError):
                    pipe.close()
            process.wait()
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def __del__(self) -> None:
        self._kill()


def signal_name(number: int) -> str:
    """Name of a signal: 11 is SIGSEGV."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def default_limit() -> int:
    """Bytes of this machine's memory and of the address space that its threads reserve."""
    if sys.platform == "win32":
        import psutil

        physical = int(psutil.virtual_memory().total)
    else:
        # psutil tells the same, and costs its import
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    threads = os.cpu_count() or 1
    return physical + threads * _RESERVED_BY_A_THREAD
