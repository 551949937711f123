"""Pipelines that suit many models: each search tries them beside its own recipes."""

from __future__ import annotations

from ...passes._core.pipeline import parse

TEMPLATES = tuple(
    str(parse(text))
    for text in (
        "simplify, quant(palette, bits=4), strip",
        "simplify, prune(sparsity=0.5), quant(palette, bits=4), strip",
        "simplify, prune(sparsity=0.5), quant(palette, bits=3), strip",
        "simplify, quant, strip",
    )
)
"""Canonical pipeline text, as main runs spell it."""
