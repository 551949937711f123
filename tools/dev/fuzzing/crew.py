"""Judges in a process of their own, reused from job to job, and what became of those that died."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

NOT_OURS = ("generate", "original")
"""Phases in which a death is the runtime's own, on the model as it came."""


class Reply(NamedTuple):
    """Outcome of a job: what the process said, or how it ended (died, hang) and in which phase."""

    answer: dict[str, Any] | None
    end: str
    phase: str


class Judge:
    """One process that takes jobs as lines of JSON, started again after it died.

    `program`: arguments of this interpreter. `timeout`: seconds that a job may take. The process
    answers a job with one line that has `answer`, after any number of lines that have `phase`.
    """

    def __init__(self, program: Sequence[str], timeout: float) -> None:
        self.program = list(program)
        self.timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, job: dict[str, Any]) -> Reply:
        """The answer to one job."""
        process = self._started()
        assert process.stdin is not None
        phase = "start"
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            while True:
                line = self._lines.get(timeout=self.timeout)
                if line is None:
                    self.close()
                    return Reply(None, "died", phase)
                message = json.loads(line)
                if "answer" in message:
                    return Reply(message["answer"], "", phase)
                phase = message["phase"]
        except queue.Empty:
            self.close()
            return Reply(None, "hang", phase)
        except BrokenPipeError:
            self.close()
            return Reply(None, "died", phase)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        self._reader.join()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            # unsent bytes have nowhere to go
            with contextlib.suppress(OSError):
                pipe.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, *self.program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        # lines of a former process must not answer for this one
        self._lines = queue.Queue()
        self._reader = threading.Thread(
            target=_read, args=(self._process, self._lines), daemon=True
        )
        self._reader.start()
        return self._process


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


class Pipe:
    """The other side, in the process: jobs come in, phases and answers go out."""

    def __init__(self) -> None:
        # what libraries print must not be taken for an answer
        self._out = sys.stdout
        sys.stdout = sys.stderr

    def jobs(self) -> Iterator[dict[str, Any]]:
        for line in sys.stdin:
            yield json.loads(line)

    def phase(self, name: str) -> None:
        self._send({"phase": name})

    def answer(self, answer: dict[str, Any]) -> None:
        self._send({"answer": answer})

    def _send(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self._out, flush=True)
