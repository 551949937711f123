"""Write docs/passes.md from the registry; with `--check`, exit 1 where it is stale."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from generated_page import write_or_check
from onnx_opt.passes._core.registry import pass_class, pass_names
from onnx_opt.tools.commands.passes import describe
from onnx_opt.tools.tables import default_text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "passes.md"

HEAD = """# Passes: what each does, and its options

Made by `python tools/dev/docs_passes.py` from the passes themselves; \
`onnx-opt passes NAME` prints the same.
Effects: an *exact* pass leaves outputs equal up to float noise and is verified, a *lossy* one \
lets them drift and is
measured, *analysis* changes nothing.
"""


def page() -> str:
    """The whole page: one row a pass, then one section a pass."""
    passes = [describe(pass_class(name)) for name in pass_names()]
    rows = [
        f"| [`{p['pass']}`](#{p['pass']}) | {p['effect']} | {cell(p['summary'])} |"
        for p in passes
    ]
    table = "\n".join(["| pass | effect | does |", "|---|---|---|", *rows])
    return "\n\n".join([HEAD.rstrip(), table, *map(section, passes)]) + "\n"


def section(item: dict[str, Any]) -> str:
    """One pass: its docstring and a table of its options."""
    text = f"## {item['pass']}\n\n{item['description']}"
    if not item["options"]:
        return text + "\n\nNo options."
    rows = [
        f"| `{o['name']}` | {cell(o['type'])} | `{default_text(o['default'])}` | "
        f"{cell(o['help'])} |"
        for o in item["options"]
    ]
    return "\n".join(
        [text, "", "| option | type | default | meaning |", "|---|---|---|---|", *rows]
    )


def cell(text: str) -> str:
    """Text inside a table: bars escaped, one line."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Write the page, or compare it; returns the exit code."""
    return write_or_check(PAGE, page, Path(__file__), __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
