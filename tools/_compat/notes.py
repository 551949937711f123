"""Arguments that are not followed: each is named in a warning."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field

_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class Notes:
    """Arguments of one call of `function` that are not followed."""

    function: str
    found: list[str] = field(default_factory=list)

    def add(self, argument: str, instead: str) -> None:
        """Note an argument that is not followed, and what is done instead."""
        self.found.append(f"{self.function}: {argument} is not followed: {instead}")

    def warn(self) -> None:
        """Give one UserWarning for each, at the line of the script."""
        level = _frames_of_package()
        for words in self.found:
            warnings.warn(words, UserWarning, stacklevel=level)


def _frames_of_package() -> int:
    """Frames from this one on, until the first of the script that called this package."""
    count = 0
    frame = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] != _PACKAGE:
            break
        count += 1
        frame = frame.f_back
    return count
