"""One model of a batch: taken from the store, or optimized in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.worker import signal_name
from .._run.provenance import sha256_of
from .models import BatchModel
from .recipe import Recipe
from .store import KeptResult, Store

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


def from_store(model: BatchModel, recipe: Recipe, store: Store) -> Outcome | None:
    """Put the result that is kept in its place; None where none is kept."""
    start = time.monotonic()
    try:
        entry = store.find(recipe.key(model.path), model.path)
    # it is told where the model is run
    except OSError:
        return None
    if entry is None or not _is_placed(entry, model.out):
        return None
    account = {**entry.account, "output_path": str(model.out)}
    return Outcome(model, "cached", time.monotonic() - start, account)


def _is_placed(entry: KeptResult, out: Path) -> bool:
    """Copy a result to its place; False where another batch has just removed it."""
    *data, name = entry.files
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if data:
            # the writer of models gives data files names that nothing uses yet
            from ...frontends.onnx_file import load, save

            save(load(entry.folder / name), out)
            return True
        handle, temporary = tempfile.mkstemp(
            dir=out.parent, prefix=f".{out.name[:80]}."
        )
        os.close(handle)
        try:
            shutil.copyfile(entry.folder / name, temporary)
            # mkstemp's are for one user alone
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, out)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileNotFoundError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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


def run_job(
    model: BatchModel, recipe: Recipe, store: Store | None, processes: Processes
) -> Outcome:
    """Optimize one model in a process of its own, whatever becomes of that.

    `store`: keeps what succeeds.
    """
    start = time.monotonic()
    before = _digest(model.path)
    model.out.parent.mkdir(parents=True, exist_ok=True)
    account = _account(model, recipe, processes)
    seconds = time.monotonic() - start
    if "error" in account:
        return Outcome(model, "failed", seconds, account)
    # nothing is kept of a model that changed meanwhile
    if store is not None and before is not None and before == _digest(model.path):
        _keep(model, recipe, store, account)
    return Outcome(model, "done", seconds, account)


def _digest(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None


def _account(model: BatchModel, recipe: Recipe, processes: Processes) -> dict[str, Any]:
    """The JSON object of a run; one with an error alone where the process died."""
    program = [sys.executable, "-c", _BOOTSTRAP, str(PACKAGE)]
    words = ["run", str(model.path), "-o", str(model.out), "--json"]
    command = [*program, *words, *recipe.words()]
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


def _keep(
    model: BatchModel, recipe: Recipe, store: Store, account: dict[str, Any]
) -> None:
    from ...frontends.onnx_file import load
    from .._run.figures import files_of

    result = load(model.out)
    data = files_of(model.out, result) - {model.out}
    original = load(model.path)
    read = files_of(model.path, original) - {model.path}
    folder = os.path.realpath(model.path.parent)
    weights = {}
    for file in read:
        name = os.path.relpath(os.path.realpath(file), folder)
        weights[name] = sha256_of(file)
    key = recipe.key(model.path)
    store.keep(key, [*sorted(data), model.out], weights, account)
