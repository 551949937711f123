"""Choices as pipeline text, which the main command runs without a search."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence

from ...passes._core.pipeline import parse
from .choices import FLOAT, Picks

DEFAULT_FORM = "int8:8"
"""Form of weights that the text does not name: what `quant` gives without options."""


def recipe_of(picks: Picks, before: Sequence[str] = ()) -> str:
    """Canonical pipeline text of choices; `before`: passes that run first, as text.

    `quant` does not time its layers in it: a replay could decide otherwise.
    """
    steps = ["simplify", *before]
    forms = {name: choice.form for name, choice in picks.items()}
    # weights that are not named have 8 bits
    is_quantized = set(forms.values()) != {FLOAT}
    if is_quantized:
        steps.append(quant_text(forms))
    steps.append("strip")
    return str(parse(", ".join(steps)))


def quant_text(forms: Mapping[str, str]) -> str:
    """Text of the pass that gives weights these forms, and 8 bits to those that are not named."""
    entries = [
        f"{_pattern(name)}={form}"
        for name, form in forms.items()
        if form != DEFAULT_FORM
    ]
    options = [f"layers={_list(entries)}"] if entries else []
    options.append("measure=false")
    return f"quant({', '.join(options)})"


def _pattern(name: str) -> str:
    """Pattern that matches the name alone."""
    return glob.escape(name)


def _list(entries: Sequence[str]) -> str:
    quoted = []
    for entry in entries:
        safe = entry.replace("\\", "\\\\").replace('"', '\\"')
        quoted.append(f'"{safe}"')
    return f"[{', '.join(quoted)}]"
