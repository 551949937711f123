"""Fix of an error for a word that is not known: the nearest that is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """`did you mean 'x'?`, or `otherwise` where none is near; by default it names all."""
    names = list(known)
    near = difflib.get_close_matches(word, names, 1)
    if near:
        return f"did you mean '{near[0]}'?"
    if otherwise is not None:
        return otherwise
    return f"choose one of {', '.join(names)}"
