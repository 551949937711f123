"""Choices as pipeline text, which the main command runs without a search."""

from __future__ import annotations

import glob
from collections.abc import Sequence

from ...passes._core.pipeline import parse
from .choices import FLOAT, Picks

DEFAULT_FORM = "int8:8"
"""Form of weights that the text does not name: what `quant` gives without options."""


def recipe_of(picks: Picks, before: Sequence[str] = ()) -> str:
    """Canonical pipeline text of choices; `before`: passes that run first, as text.

    `quant` does not time its layers in it: a replay could decide otherwise.
    """
    steps = ["simplify", *before]
    forms = [
        f"{_pattern(name)}={choice.form}"
        for name, choice in picks.items()
        if choice.form != DEFAULT_FORM
    ]
    options = []
    if forms:
        options.append(f"layers={_list(forms)}")
    options.append("measure=false")
    forms_picked = {choice.form for choice in picks.values()}
    # weights that are not named have 8 bits
    is_quantized = forms_picked != {FLOAT}
    if is_quantized:
        steps.append(f"quant({', '.join(options)})")
    steps.append("strip")
    return str(parse(", ".join(steps)))


def _pattern(name: str) -> str:
    """Pattern that matches the name alone."""
    return glob.escape(name)


def _list(entries: Sequence[str]) -> str:
    quoted = []
    for entry in entries:
        safe = entry.replace("\\", "\\\\").replace('"', '\\"')
        quoted.append(f'"{safe}"')
    return f"[{', '.join(quoted)}]"
