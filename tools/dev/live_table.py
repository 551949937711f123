"""A benchmark's table: each row as soon as it is known, then all of them with the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from both_classes import this_cpu
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table


def show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows as they come in, then as a table."""
    table = Table(*columns, box=MARKDOWN)
    for row in rows:
        print(" | ".join(row), flush=True)
        table.add_row(*row)
    console = Console(width=200)
    console.print(f"CPU: {this_cpu().label}")
    console.print(table)
