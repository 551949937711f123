"""Share of a run's wall and CPU time that the steps of its account name.

python tools/dev/account_coverage.py MODEL [options of onnx-opt] prints the steps, their sum, and
what the command took as seen from outside, start of Python included. Exit code 1 below 95 %.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

LEAST = 0.95
"""Share of the run that the steps must name."""


def main(words: Sequence[str]) -> int:
    """Run onnx-opt with these words; 1 where its steps leave too much unnamed."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "onnx_opt", "run", "--json", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    wall = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    account = json.loads(done.stdout)
    show(account["steps"])
    outside = {"seconds": wall, "cpu_seconds": used.ru_utime + used.ru_stime}
    shares = []
    for key, whole in outside.items():
        named = sum(step[key] for step in account["steps"])
        shares.append(named / account[key])
        print(
            f"{key}: {named:.2f} in steps, {account[key]:.2f} in the run "
            f"({named / account[key]:.1%}), {whole:.2f} of the command ({named / whole:.1%})"
        )
    return int(min(shares) < LEAST)


def show(steps: Sequence[dict[str, Any]], depth: int = 0) -> None:
    """Print steps, inner ones indented: seconds and CPU seconds."""
    for step in steps:
        name = "  " * depth + step["step"]
        print(f"{name:50} {step['seconds']:8.2f} {step['cpu_seconds']:8.2f}")
        show(step["steps"], depth + 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
