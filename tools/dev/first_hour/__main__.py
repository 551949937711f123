"""The first hour of ten users, replayed: `python tools/dev/first_hour [TASK…] [--all]`.

Each task is one file in `tasks/`: what such a user types, and what they would look at. Data is
made or shipped; nothing is fetched. Prints a table: checks that hold, seconds, and whether the user
would have needed a workaround. Tasks whose extra is not installed are named and left out; with
`--all` they are failures. Exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tasks import NAMES, missing_extras, replay
from visit import Visit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", choices=[*NAMES, []], metavar="TASK")
    parser.add_argument("--all", action="store_true", help="fail without an extra")
    options = parser.parse_args()
    table = Table("task", "checks", "seconds", "workaround needed", box=None)
    failures = 0
    for name in options.tasks or NAMES:
        missing = missing_extras(name)
        if missing:
            table.add_row(name, "", "", f"not run: needs {', '.join(missing)}")
            failures += options.all
            continue
        with tempfile.TemporaryDirectory() as folder:
            visit = replay(name, Path(folder))
        failures += bool(visit.failed)
        table.add_row(
            name,
            f"{len(visit.checks) - len(visit.failed)} of {len(visit.checks)}",
            f"{visit.seconds:.1f}",
            verdict(visit),
        )
    Console().print(table)
    return 1 if failures else 0


def verdict(visit: Visit) -> str:
    """No, or yes with what did not hold."""
    if not visit.failed:
        return "no"
    return f"yes: {'; '.join(visit.failed)}"


if __name__ == "__main__":
    sys.exit(main())
