"""onnx-opt: LLVM's `opt`, for ONNX. Import is cheap: everything heavy loads on first use."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "CheckError",
    "OnnxOptError",
    "RefusedError",
    "Result",
    "UsageError",
    "__version__",
    "batch",
    "bench",
    "bisect",
    "compat",
    "diff",
    "distill",
    "evaluate",
    "explain",
    "export",
    "inspect",
    "list_passes",
    "load",
    "optimize",
    "package",
    "reduce",
    "report",
    "selftest",
    "tune",
    "verify",
]

if TYPE_CHECKING:
    from .frontends.onnx_file import load
    from .tools import compat
    from .tools.bisect import bisect
    from .tools.functions import (
        batch,
        bench,
        diff,
        distill,
        evaluate,
        explain,
        export,
        inspect,
        list_passes,
        package,
        report,
        selftest,
        verify,
    )
    from .tools.optimize import optimize
    from .tools.reduce import reduce
    from .tools.result import Result
    from .tools.tune import tune

# loaded by __getattr__ below: importing this package must not load onnx_ir, which takes seconds
_LAZY = {
    "batch": ".tools.functions",
    "bench": ".tools.functions",
    "bisect": ".tools.bisect",
    "diff": ".tools.functions",
    "distill": ".tools.functions",
    "evaluate": ".tools.functions",
    "explain": ".tools.functions",
    "export": ".tools.functions",
    "inspect": ".tools.functions",
    "list_passes": ".tools.functions",
    "load": ".frontends.onnx_file",
    "optimize": ".tools.optimize",
    "package": ".tools.functions",
    "reduce": ".tools.reduce",
    "report": ".tools.functions",
    "Result": ".tools.result",
    "selftest": ".tools.functions",
    "tune": ".tools.tune",
    "verify": ".tools.functions",
}


class OnnxOptError(Exception):
    """A failure that a user can act on: where it happened, what is wrong, what to do.

    `exit_code` is what the command line returns (docs: README, "Exit codes").
    """

    exit_code = 1

    account: Any = None
    """What was known when it failed, as the command's JSON object; None: nothing."""

    def __init__(self, where: str, problem: str, fix: str) -> None:
        super().__init__(f"{where}: {problem}\n  fix: {fix}")
        self.where = where
        self.problem = problem
        self.fix = fix

    def facts(self) -> dict[str, Any]:
        """The object `error` of `--json`."""
        return {
            "where": self.where,
            "problem": self.problem,
            "fix": self.fix,
            "exit_code": self.exit_code,
        }

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


class _CompatModule(ModuleType):
    """`onnx_opt.compat`, which scripts import by that name: `tools.compat`, loaded on first use."""

    def __getattr__(self, name: str) -> Any:
        # whoever walks sys.modules asks for names like __file__, and must not load anything
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        return getattr(import_module(".tools.compat", __name__), name)


if not TYPE_CHECKING:
    compat = _CompatModule(f"{__name__}.compat")
    sys.modules[compat.__name__] = compat


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # completion shows what the package is for, loaded or not
    return __all__
