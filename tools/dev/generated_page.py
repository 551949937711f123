"""Pages of the documentation that a command writes: `--check` fails where one is stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def write_or_check(
    page: Path, text: Callable[[], str], command: Path, help: str
) -> int:
    """Write a page, or compare it with its text; returns the exit code.

    `command`: the script that writes it. `help`: of its command line.
    """
    parser = argparse.ArgumentParser(description=help)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 where the page is stale",
    )
    asked = parser.parse_args()
    if not asked.check:
        page.write_text(text(), encoding="utf-8")
        return 0
    if page.is_file() and page.read_text(encoding="utf-8") == text():
        return 0
    fix = f"python tools/dev/{command.name}"
    print(f"error: {page.name}: is stale\n  fix: {fix}", file=sys.stderr)
    return 1
