"""Hostile input at the command line: refused in two lines or done, never a crash, a hang or a file.

    python tools/dev/hostile.py [--only TEXT] [--every 1] [--processes 20]

Every case of `hostile_cases` is a command in a folder of its own, run in a fork of this process,
which has everything imported; every so many run as fresh processes (`--processes`). Right is: one
of the case's exit codes; on refusal exactly `error: …` and `  fix: …`; no traceback, no control
character; the model as it was, and no file left but the output of a success; CPU time and memory
within limits. Prints counts by kind; exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import collections
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hostile_cases import Case, all_cases
from onnx_opt.tools.cli import main as command_line
from onnx_opt.tools.optimize import optimize

assert optimize  # imported before the forks, which would import it each

WALL_SECONDS = 240
"""Seconds after which a case hangs, however busy the machine."""

MEMORY = 3 << 29
"""Bytes (1.5 GiB) of resident memory that a case may reach, imports included."""

OUTPUT = ("m.opt.onnx", "m.opt.onnx.data")


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (negative: a signal), output, CPU seconds, peak memory."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    memory: int


def run(case: Case, folder: Path, fresh: bool) -> Outcome:
    """Run a case's command in a folder that holds its files."""
    out, err = folder.parent / "stdout", folder.parent / "stderr"
    if fresh:
        child = _start_process(case, folder, out, err)
    else:
        child = os.fork()
        if not child:
            _be_the_command(case, folder, out, err)
    deadline = time.monotonic() + WALL_SECONDS
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return Outcome(
        os.waitstatus_to_exitcode(status),
        out.read_text(errors="replace"),
        err.read_text(errors="replace"),
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
    )


def _start_process(case: Case, folder: Path, out: Path, err: Path) -> int:
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "onnx_opt", *case.arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    # waited for by its id, as the forks are
    process.returncode = 0
    return process.pid


def _be_the_command(case: Case, folder: Path, out: Path, err: Path) -> None:
    """Be the command, in a fork, and end with it."""
    code = 99
    try:
        os.chdir(folder)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        # what grows without end fails instead of taking the machine with it
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        command_line.main(list(case.arguments))
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def faults_of(
    case: Case, outcome: Outcome, before: set[str], folder: Path
) -> list[str]:
    """Everything that is wrong about an outcome."""
    faults = []
    words = outcome.stdout + outcome.stderr
    if outcome.code not in case.codes:
        wanted = "/".join(map(str, sorted(case.codes)))
        last = outcome.stderr.strip()[-300:]
        faults.append(f"exit code {outcome.code}, not {wanted}: {last}")
    if "Traceback" in words:
        faults.append("a traceback")
    odd = {c for c in words if not c.isprintable() and c not in "\n"}
    if odd:
        faults.append(f"control characters: {sorted(odd)}")
    lines = outcome.stderr.splitlines()
    starts = [line[:7] for line in lines]
    if outcome.code and starts != ["error: ", "  fix: "]:
        faults.append(f"not one error and one fix: {outcome.stderr[-300:]!r}")
    if max(map(len, lines), default=0) > 2000:
        faults.append(f"a line of {max(map(len, lines))} characters")
    if case.says not in words:
        faults.append(f"'{case.says}' is not said")
    if outcome.seconds > case.seconds:
        faults.append(f"{outcome.seconds:.1f} s of CPU, more than {case.seconds:g}")
    if outcome.memory > MEMORY:
        faults.append(f"{outcome.memory >> 20} MiB of memory")
    left = set(_names(folder)) - before
    if not outcome.code:
        left -= set(OUTPUT)
    if left:
        faults.append(f"files left: {sorted(left)}")
    for name, content in case.files.items():
        if (folder / name).read_bytes() != content:
            faults.append(f"{name} was changed")
    return faults


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def try_case(case: Case, scratch: Path, fresh: bool) -> tuple[Outcome, list[str]]:
    """Run a case in a new folder: its outcome, and what is wrong."""
    folder = scratch / "work"
    folder.mkdir(parents=True)
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if case.prepare is not None:
        case.prepare(folder)
    before = _names(folder)
    # a FIFO blocks whoever reads it
    outcome = run(case, folder, fresh)
    faults = faults_of(case, outcome, before, folder)
    shutil.rmtree(scratch)
    return outcome, faults


def main() -> int:
    """Run the cases and print counts; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", default="", help="cases whose name contains this text"
    )
    parser.add_argument("--every", type=int, default=1, help="take each n-th case")
    parser.add_argument(
        "--processes", type=int, default=20, help="cases to run as fresh processes"
    )
    arguments = parser.parse_args()
    cases = [case for case in all_cases() if arguments.only in case.name]
    cases = cases[:: arguments.every]
    every = max(len(cases) // max(arguments.processes, 1), 1)
    counts: collections.Counter[tuple[str, int]] = collections.Counter()
    faulty = 0
    slowest = largest = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(cases):
            fresh = arguments.processes > 0 and number % every == every - 1
            outcome, faults = try_case(case, Path(scratch, str(number)), fresh)
            kind, _ = case.name.split(": ", 1)
            counts[kind, outcome.code] += 1
            slowest = max(slowest, outcome.seconds)
            largest = max(largest, outcome.memory)
            faulty += bool(faults)
            for fault in faults:
                print(f"{case.name}: {fault}", flush=True)
    print(f"{len(cases)} hostile inputs, {faulty} with faults")
    for kind in dict.fromkeys(kind for kind, _ in sorted(counts)):
        codes = {code: n for (k, code), n in sorted(counts.items()) if k == kind}
        shown = ", ".join(f"{n} ended with {code}" for code, n in codes.items())
        print(f"  {kind:10} {sum(codes.values()):5}: {shown}")
    print(f"  at most {slowest:.1f} s of CPU and {int(largest) >> 20} MiB a case")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
