"""onnx-opt: LLVM's `opt`, for ONNX. Import is cheap: everything heavy loads on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "CheckError",
    "OnnxOptError",
    "RefusedError",
    "Result",
    "UsageError",
    "__version__",
    "bisect",
    "load",
    "optimize",
]

if TYPE_CHECKING:
    from .frontends.onnx_file import load
    from .tools.bisect import bisect
    from .tools.optimize import Result, optimize

# loaded by __getattr__ below: importing this package must not load onnx_ir, which takes seconds
_LAZY = {
    "load": ".frontends.onnx_file",
    "bisect": ".tools.bisect",
    "optimize": ".tools.optimize",
    "Result": ".tools.optimize",
}


class OnnxOptError(Exception):
    """A failure that a user can act on: where it happened, what is wrong, what to do.

    `exit_code` is what the command line returns (docs: README, "Exit codes").
    """

    exit_code = 1

    def __init__(self, where: str, problem: str, fix: str) -> None:
        super().__init__(f"{where}: {problem}\n  fix: {fix}")
        self.where = where
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[type[OnnxOptError], tuple[str, str, str]]:
        """Make another process's copy from the three parts; by default it would be the text."""
        return type(self), (self.where, self.problem, self.fix)


class UsageError(OnnxOptError):
    """A call that is wrong: an unknown pass or option, a value out of range."""

    exit_code = 2


class RefusedError(OnnxOptError):
    """A model or data that is not fit for the job."""

    exit_code = 3


class CheckError(OnnxOptError):
    """A check or a budget that was asked for and is not met."""

    exit_code = 4


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
