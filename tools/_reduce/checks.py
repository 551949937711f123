"""Interestingness: a command that says so, or a pipeline that fails in the same way."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import onnx

from ... import OnnxOptError, RefusedError, UsageError
from ...passes._core.scratch import scratch_folder
from ..optimize import Passes, optimize

PLACEHOLDER = "{}"
"""Word of a command that stands for the path of the candidate."""


class CommandCheck:
    """True where a command, given the path of a candidate, exits with 0.

    `text`: split as a shell does, without one; the path stands for `{}`, else comes last. A
    command that takes longer than `timeout` seconds says no.
    """

    def __init__(self, text: str, timeout: float, folder: Path) -> None:
        try:
            self._words = shlex.split(text)
        except ValueError as error:
            raise UsageError("--check", f"cannot be split: {error}", _QUOTES) from None
        if not self._words:
            raise UsageError(
                "--check", "is empty", "give a command, as in 'python test.py'"
            )
        self._timeout = timeout
        self._path = folder / "candidate.onnx"
        self.outcome = ""

    def __call__(self, model: onnx.ModelProto) -> bool:
        """Write the candidate and run the command. Errors: UsageError where it cannot start."""
        self._path.write_bytes(model.SerializeToString())
        try:
            done = subprocess.run(
                self._command(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self.outcome = f"it ran past {self._timeout:g} s"
            return False
        except OSError as error:
            raise UsageError(
                "--check",
                f"'{self._words[0]}' cannot be run: {error.strerror}",
                "give a program and its arguments; for a shell, sh -c '…'",
            ) from None
        self.outcome = f"exit code {done.returncode}"
        return done.returncode == 0

    def _command(self) -> list[str]:
        path = str(self._path)
        if not any(PLACEHOLDER in word for word in self._words):
            return [*self._words, path]
        return [word.replace(PLACEHOLDER, path) for word in self._words]


_QUOTES = "close the quotes"


class PipelineCheck:
    """True where a pipeline fails as it did the first time.

    A run with `--strict` fails where a pass raises, gives an invalid model or another interface, or
    is exact and changes outputs; where outputs cannot be compared, for the others of these
    reasons alone. `symptom`: place and words of that error, without what differs
    from model to model; None until the first failure.
    """

    def __init__(self, passes: Passes, seed: int = 0) -> None:
        self._passes = passes
        self._seed = seed
        self.symptom: str | None = None
        self.outcome = ""

    def __call__(self, model: onnx.ModelProto) -> bool:
        """Run the pipeline. Errors: UsageError for one that does not suit any model."""
        found = self._failure(model)
        if found is None:
            return False
        if self.symptom is None:
            self.symptom = found
        return found == self.symptom

    def _failure(self, model: onnx.ModelProto) -> str | None:
        with scratch_folder() as folder:
            path = Path(folder, "candidate.onnx")
            path.write_bytes(model.SerializeToString())
            error = self._error(path, strict=True)
            # nothing to compare with: faults of structure show all the same
            if isinstance(error, RefusedError) and error.where == "verify":
                error = self._error(path, strict=False)
        self.outcome = "it succeeds"
        if error is None:
            return None
        self.outcome = f"{error.where}: {error.problem}"
        # not the passes' fault: nothing was run
        if isinstance(error, RefusedError):
            return None
        return symptom_of(error)

    def _error(self, path: Path, strict: bool) -> OnnxOptError | None:
        try:
            optimize(path, self._passes, strict=strict, bench=False, seed=self._seed)
        except UsageError:
            raise
        except OnnxOptError as error:
            return error
        return None


def symptom_of(error: OnnxOptError) -> str:
    """Place and words of an error up to the first name or number."""
    words = re.split(r"['\"\d\[(]", error.problem, maxsplit=1)[0]
    return f"{error.where}: {words.strip()}"
