"""Modules that load when something of them is first used, not when they are imported.

onnx_ir imports sympy for arithmetic on symbolic dimensions, which few runs need: half of the time
that its import takes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

DEFERRED = ("sympy", "onnx_ir._symbolic_shapes")
"""Modules that are imported, and used by few runs; the second takes functions of the first."""


class DeferringFinder:
    """Finder of `sys.meta_path` that defers the modules of a list, and knows no others."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if name not in DEFERRED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def defer_imports() -> None:
    """Defer them for the rest of this process, which must be the tool's own.

    In a program of someone else, the moment of an import is not ours to choose.
    """
    if not any(isinstance(finder, DeferringFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, DeferringFinder())
