"""Run mypy strict over the package: `python tools/dev/check_types.py [mypy arguments]`.

The repository root is the package `onnx_opt`, whatever the checkout's folder is called, so mypy
looks at it through a temporary folder that holds one symlink of that name.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_INSTALLED = r"/(tests|build|examples|tools/dev)/"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "onnx_opt").symlink_to(ROOT, target_is_directory=True)
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(ROOT / "pyproject.toml"),
            "--cache-dir",
            str(ROOT / ".mypy_cache"),
            "--exclude",
            NOT_INSTALLED,
            "-p",
            "onnx_opt",
            *sys.argv[1:],
        ]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
