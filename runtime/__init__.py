"""Everything that runs a model: sessions, targets, data feeds, calibration, metrics, benchmarks,
comparison, bundles.

`load` makes a function of a bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._bundle.read import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # on first use: most of the package needs no bundles
    if name == "load":
        from ._bundle.read import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
