"""Measuring the same files twice: on this CPU, and as on one without VNNI where that can be had.

A benchmark that makes files keeps their rows as JSON and calls itself with `--measure FILE` under
`without_vnni.py`: the files stay, their figures are those of the other kernels.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx_opt.runtime.hardware import Hardware, hardware
from onnx_opt.runtime.worker import Worker
from without_vnni import why_not

HERE = Path(__file__).resolve().parent


def this_cpu() -> Hardware:
    """The CPU that ONNX Runtime runs on here."""
    with Worker() as worker:
        return hardware(worker)


def without_vnni(
    script: Path, rows: Sequence[dict[str, Any]], arguments: Sequence[str] = ()
) -> list[dict[str, Any]] | None:
    """The rows as the script measures them without VNNI; None where this CPU has none or cannot
    hide it.
    """
    if this_cpu().saturates or why_not() is not None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        path.write_text(json.dumps(list(rows)))
        command = [
            sys.executable,
            HERE / "without_vnni.py",
            sys.executable,
            script,
            "--measure",
            path,
            *arguments,
        ]
        subprocess.run(list(map(str, command)), check=True)
        found: list[dict[str, Any]] = json.loads(path.read_text())
    return found
