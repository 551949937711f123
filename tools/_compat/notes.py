"""Arguments that are not followed: each is named in a warning."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

# the caller of quantize_static, whose line the warning shows: behind that and `_quantized`
_CALLER = 4


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
        for words in self.found:
            warnings.warn(words, UserWarning, stacklevel=_CALLER)
