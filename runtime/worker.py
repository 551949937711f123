"""A child process that runs ONNX Runtime: valid models can abort the process they run in, or never
return.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .. import CheckError, OnnxOptError, RefusedError, UsageError
from ._worker import ipc

_BOOTSTRAP = """
import importlib.util, sys
root = sys.argv[1]
spec = importlib.util.spec_from_file_location("onnx_opt", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["onnx_opt"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from onnx_opt.runtime._worker import child
child.serve(int(sys.argv[2]), int(sys.argv[3]))
"""
_ERRORS: dict[str, type[OnnxOptError]] = {
    c.__name__: c for c in (OnnxOptError, UsageError, RefusedError, CheckError)
}
_STDERR_LINES = 3
_RESERVED_BY_A_THREAD = (
    192 << 20
)  # stack and glibc's heap arena: counted as address space, not used


class WorkerDied(OnnxOptError):
    """The child process ended, ran too long or needed too much memory; what it held is lost."""


class RemoteError(OnnxOptError):
    """An exception in the child, with ONNX Runtime's message; `kind` is the exception's class name
    there.
    """

    def __init__(self, where: str, problem: str, fix: str, kind: str) -> None:
        super().__init__(where, problem, fix)
        self.kind = kind


class Worker:
    """One child process; starts at the first call, and again at the first call after it died.

    `timeout`: seconds a call may take. `memory_bytes`: limit of the child's address space; None is
    the machine's physical memory and what its threads reserve (not on Windows, nor for GPU
    providers, which reserve far more than they use). One call at a time: not for use from several
    threads. `generation` counts the starts: handles from an earlier generation are void.
    """

    def __init__(self, timeout: float = 600, memory_bytes: int | None = None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self.timeout = timeout
        self.memory_bytes = memory_bytes or default_limit()
        self.generation = 0

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
    def alive(self) -> bool:
        """Whether the child is running."""
        return self._process is not None and self._process.poll() is None

    def call(
        self, function: str, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Any:
        """Run one function of `_worker/child.py` in the child and return its value.

        Errors: WorkerDied when the child ended or went past a limit, RemoteError for an exception
        in it; the project's own errors come back as they were raised.
        """
        self.start()
        limit = self.timeout if timeout is None else timeout
        expired = threading.Event()
        timer = threading.Timer(limit, self._expire, [expired])
        timer.daemon = True
        timer.start()
        try:
            reply = self._exchange((function, args, kwargs))
        except (EOFError, OSError):
            raise self._death(function, limit if expired.is_set() else None) from None
        except BaseException:
            self._kill()
            raise
        finally:
            timer.cancel()
        return self._value(function, reply)

    def start(self) -> None:
        """Start the child unless it runs."""
        if self.alive:
            return
        self._kill()
        root = Path(__file__).resolve().parents[1]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                _BOOTSTRAP,
                str(root),
                str(os.getpid()),
                str(self.memory_bytes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # Ctrl-C in the terminal is the parent's to handle
        )
        self.generation += 1

    def close(self) -> None:
        """End the child."""
        self._kill()

    def _exchange(self, message: Any) -> Any:
        assert self._process
        assert self._process.stdin
        assert self._process.stdout
        ipc.send(self._process.stdin, message)  # type: ignore[arg-type]
        return ipc.receive(self._process.stdout)  # type: ignore[arg-type]

    def _value(self, function: str, reply: tuple[str, Any]) -> Any:
        status, value = reply
        if status == "ok":
            return value
        kind, where, problem, fix = value
        if kind == "MemoryError":
            self._kill()
            raise WorkerDied(
                where,
                f"needs more than the {self.memory_bytes / 2**30:.1f} GiB allowed",
                "use smaller batches, or a machine with more memory",
            )
        if kind in _ERRORS:
            raise _ERRORS[kind](where, problem, fix)
        raise RemoteError(where or function, problem, fix, kind)

    def _death(self, function: str, expired: float | None) -> WorkerDied:
        if expired is not None:
            self._kill()
            return WorkerDied(
                function,
                f"ran past {expired:g} s and was stopped",
                "use a smaller model or less data, or raise the time limit",
            )
        process, tail = self._process, ""
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        code = process.poll()
        if self._stderr is not None:
            tail = self._last_words(self._stderr)
        self._kill()
        how = (
            signal_name(-code) if code is not None and code < 0 else f"exit code {code}"
        )
        fix = (
            "the model triggers a fault in ONNX Runtime: try another version of it, or "
            "report it there"
        )
        if how == "SIGKILL":
            fix = (
                "the system ended it, usually for want of memory: use smaller batches or "
                "a larger machine"
            )
        return WorkerDied(
            function,
            f"ONNX Runtime's process died ({how}){': ' + tail if tail else ''}",
            fix,
        )

    def _last_words(self, stderr: IO[bytes]) -> str:
        stderr.seek(max(stderr.seek(0, os.SEEK_END) - 4096, 0))
        lines = [
            line.strip()
            for line in stderr.read().decode(errors="replace").splitlines()
            if line.strip()
        ]
        return " | ".join(lines[-_STDERR_LINES:])[:400]

    def _expire(self, expired: threading.Event) -> None:
        expired.set()
        if self._process is not None:
            self._process.kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):  # unsent bytes have nowhere to go
                    pipe.close()
            process.wait()
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def __del__(self) -> None:
        self._kill()


def signal_name(number: int) -> str:
    """The name of a signal: 11 is SIGSEGV."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def default_limit() -> int:
    """Bytes of memory of this machine and of the address space of its threads; 0 (no limit) if it
    does not tell.
    """
    if not hasattr(os, "sysconf"):
        return 0
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return physical + (os.cpu_count() or 1) * _RESERVED_BY_A_THREAD
