"""Limits on what one model may cost, each with a default and a variable of the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ... import UsageError

PREFIX = "ONNX_OPT_"
"""Beginning of the variables' names."""


@dataclass(frozen=True)
class Limit:
    """A limit: its default and unit, and what is refused or left alone beyond it."""

    default: int
    unit: str
    about: str


LIMITS = {
    "SECONDS": Limit(600, "s", "one call of ONNX Runtime: a load, a batch"),
    "MEMORY": Limit(
        0, "bytes", "address space of its process; 0: the machine's memory"
    ),
    "FOLD_BYTES": Limit(32 << 20, "bytes", "a constant that folding reads or makes"),
    "INLINE_NODES": Limit(200_000, "nodes", "nodes that inlining functions makes"),
    "CALL_NODES": Limit(1_000_000, "nodes", "nodes that all calls would expand to"),
    "CALL_DEPTH": Limit(200, "calls", "function calls inside function calls"),
    "SPARSE_BYTES": Limit(1 << 30, "bytes", "a sparse tensor once it is dense"),
    "FEED_BYTES": Limit(1 << 30, "bytes", "one batch of made-up inputs"),
    "STAGE_BYTES": Limit(
        0, "bytes", "weights that calibration loads at once; 0: by the memory there is"
    ),
    "ARRAY_BYTES": Limit(
        4 << 30, "bytes", "a batch of --data, and an array read whole"
    ),
    "BUNDLE_BYTES": Limit(16 << 30, "bytes", "an archive of a bundle, unpacked"),
}
"""Chosen by hand, far above what honest models need."""


def limit(name: str) -> int:
    """The value of a limit: that of the environment, else the default.

    Errors: UsageError for a value that is not a whole number.
    """
    variable = PREFIX + name
    text = os.environ.get(variable)
    default = LIMITS[name].default
    if text is None:
        return default
    # int() would take long over a text of any length
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise UsageError(
            variable,
            f"'{text[:80]}' is not a whole number of {LIMITS[name].unit}",
            f"unset {variable}; the default is {default}",
        )
    return int(text)


def table() -> str:
    """The limits as a table of SECURITY.md."""
    lines = ["| variable | default | limits |", "|---|---|---|"]
    for name, each in LIMITS.items():
        default = f"{each.default:,} {each.unit}"
        lines.append(f"| `{PREFIX}{name}` | {default} | {each.about} |")
    return "\n".join(lines)
