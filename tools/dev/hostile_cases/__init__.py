"""Hostile inputs, the same at every call: models, data files, pipeline texts."""

from __future__ import annotations

from collections.abc import Iterator

from . import bombs, damage, data, external, names, structure, tensors, texts
from .case import Case

KINDS = (damage, tensors, structure, external, names, bombs, data, texts)
"""Modules with a function `cases`, one a kind of input."""


def all_cases() -> Iterator[Case]:
    """Every case of every kind; a case's name begins with that of its kind."""
    for kind in KINDS:
        yield from kind.cases()
