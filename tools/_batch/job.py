"""One model of a batch: taken from the cache, or optimized in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.worker import signal_name
from .._cache.recipe import Recipe
from .._cache.results import ResultCache
from .models import BatchModel

# this very package by its folder, as the worker's child has it
_BOOTSTRAP = """
import sys
sys.path[:] = filter(None, sys.path)
import importlib.util
root = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location(
    "onnx_opt", root + "/__init__.py", submodule_search_locations=[root]
)
sys.modules["onnx_opt"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from onnx_opt.tools.cli import main
main()
"""

PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """Outcome of one model.

    `status`: "done", "cached" or "failed". `account`: the JSON object of its run, with `error`
    where it failed.
    """

    model: BatchModel
    status: str
    seconds: float
    account: dict[str, Any] = field(default_factory=dict)


def from_cache(model: BatchModel, cache: ResultCache) -> Outcome | None:
    """Put the result that is kept in its place; None where none is kept."""
    start = time.monotonic()
    account = cache.take(model.path, model.out)
    if account is None:
        return None
    return Outcome(model, "cached", time.monotonic() - start, account)


class Processes:
    """Processes of a batch that run now; safe to use from several threads.

    `timeout`: seconds that one may take; None: no limit.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_over = False

    def run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end. Errors: subprocess.TimeoutExpired; Stopped."""
        with self._lock:
            if self._is_over:
                raise Stopped
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            self._running.add(process)
        try:
            with process:
                try:
                    out, words = process.communicate(timeout=self.timeout)
                finally:
                    process.kill()
        finally:
            with self._lock:
                self._running.discard(process)
        return subprocess.CompletedProcess(command, process.returncode, out, words)

    def stop(self) -> None:
        """End those that run, which leave nothing half-written, and begin no other."""
        with self._lock:
            self._is_over = True
            for process in self._running:
                process.terminate()


class Stopped(Exception):
    """The batch is over before its time."""


@dataclass(frozen=True)
class JobSettings:
    """Settings that all jobs of a batch share; they can be sent to other machines.

    `timeout`: seconds of a model; None: no limit.
    """

    recipe: Recipe
    cache: ResultCache | None
    timeout: float | None


def run_elsewhere(settings: JobSettings, model: BatchModel) -> Outcome:
    """`run_job` on a worker of a cluster, which reads and writes the same files."""
    processes = Processes(settings.timeout)
    try:
        return run_job(model, settings.recipe, settings.cache, processes)
    finally:
        processes.stop()


def run_job(
    model: BatchModel, recipe: Recipe, cache: ResultCache | None, processes: Processes
) -> Outcome:
    """Optimize one model in a process of its own, whatever becomes of that.

    `cache`: keeps what succeeds.
    """
    start = time.monotonic()
    before = None if cache is None else cache.digest(model.path)
    model.out.parent.mkdir(parents=True, exist_ok=True)
    account = _account(model, recipe, processes)
    seconds = time.monotonic() - start
    if "error" in account:
        return Outcome(model, "failed", seconds, account)
    if cache is not None:
        cache.keep(model.path, before, model.out, account)
    return Outcome(model, "done", seconds, account)


def _account(model: BatchModel, recipe: Recipe, processes: Processes) -> dict[str, Any]:
    """The JSON object of a run; one with an error alone where the process died."""
    command = [
        sys.executable,
        "-c",
        _BOOTSTRAP,
        str(PACKAGE),
        "run",
        str(model.path),
        "-o",
        str(model.out),
        "--json",
        *recipe.words(),
    ]
    try:
        done = processes.run(command)
    except subprocess.TimeoutExpired as error:
        return _error(model, f"took more than {error.timeout:g} s", "raise --timeout")
    code = done.returncode
    with contextlib.suppress(ValueError, RecursionError):
        account = json.loads(done.stdout)
        is_whole = code == 0 or "error" in account
        if isinstance(account, dict) and is_whole:
            return account
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed by {signal_name(-code)}"
    words_for_people = done.stderr.decode(errors="replace")
    last = words_for_people.strip().splitlines()[-1:]
    problem = ": ".join([f"its process {how}", *last])
    return _error(model, problem, f"onnx-opt {model.path} shows it alone")


def _error(model: BatchModel, problem: str, fix: str) -> dict[str, Any]:
    words = {"where": str(model.path), "problem": problem, "fix": fix}
    return {"error": {**words, "exit_code": 1}}
