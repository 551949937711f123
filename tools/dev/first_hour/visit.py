"""One user's first hour: a folder, commands typed in it, and checks of what came of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from onnx_opt.tools.cli import main


@dataclass(frozen=True)
class Done:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """All that it printed, in one line."""
        return " ".join(f"{self.out} {self.err}".split())

    @property
    def account(self) -> dict[str, Any]:
        """The one JSON object of `--json`."""
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass
class Visit:
    """A task under way in `folder`. `checks`: by what a person looks for, whether it was there."""

    folder: Path
    seconds: float = 0.0
    checks: dict[str, bool] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """Checks that did not hold."""
        return [words for words, holds in self.checks.items() if not holds]

    def check(self, words: str, holds: Any) -> None:
        """Note whether something that the user looks for is there."""
        self.checks[words] = bool(holds)

    def run(self, *words: str | Path) -> Done:
        """Type `onnx-opt …` in the folder."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            done = CliRunner().invoke(main, [str(word) for word in words])
        finally:
            os.chdir(before)
        # click's own exit has a code; an exception that came through is a traceback for the user
        unexpected = done.exception is not None and not isinstance(
            done.exception, SystemExit
        )
        error = repr(done.exception) if unexpected else ""
        return Done(done.exit_code, done.stdout, done.stderr + error)

    def refuses(self, words: str, done: Done, code: int, *texts: str) -> None:
        """Check an error: its exit code, a problem and a fix in two lines, and texts in them."""
        lines = done.err.splitlines()
        form = len(lines) == 2 and lines[0].startswith("error: ")
        has_fix = form and lines[1].startswith("  fix: ")
        has_texts = all(text in done.err for text in texts)
        self.check(words, done.code == code and has_fix and has_texts)

    def python(self, script: str, *shell: str) -> Done:
        """Run a script, or a line of bash with `$python`, as a process without a terminal."""
        command = [sys.executable, "-c", script]
        if shell:
            command = ["bash", "-c", shell[0]]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "python": sys.executable, "PYTHONPATH": search_path()},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)


def search_path() -> str:
    """PYTHONPATH under which a new process finds what this one does."""
    return os.pathsep.join(path for path in sys.path if path)
