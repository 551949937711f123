"""The registry: every public module of this folder is one pass, found by walking; a dotted name is
a foreign pass.
"""

from __future__ import annotations

import difflib
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import onnx_ir as ir

from ... import UsageError
from .context import Context
from .contract import Pass
from .options import quoted
from .outcome import Effect, PassOutcome

_PASSES = __name__.rpartition("._core")[0]


def pass_names() -> list[str]:
    """Names of all passes, sorted, without importing them."""
    return sorted(
        m.name.replace("_", "-")
        for m in pkgutil.iter_modules(import_module(_PASSES).__path__)
        if not m.name.startswith("_")
    )


def pass_class(name: str) -> type[Pass]:
    """The class of the pass called `name`; UsageError with a near name otherwise."""
    if name not in pass_names():
        near = difflib.get_close_matches(name, pass_names(), 1)
        raise UsageError(
            f"passes: {name}",
            "no such pass",
            f"did you mean '{near[0]}'?"
            if near
            else f"choose among {', '.join(pass_names())}",
        )
    module = import_module(f"{_PASSES}.{name.replace('-', '_')}")
    found = [
        c
        for c in vars(module).values()
        if isinstance(c, type)
        and issubclass(c, Pass)
        and c.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} must define exactly one pass"
    return found[0]


@dataclass(frozen=True)
class ForeignPass(Pass):
    """Run any `onnx_ir.passes.PassBase` as a step of a pipeline; believed exact, and verified like
    one.

    Effect: exact. Rolled back when the outputs change.

    Source: follows from the definition of `onnx_ir.passes.PassBase`.
    """

    name: ClassVar[str] = "foreign"
    effect: ClassVar[Effect] = "exact"

    instance: ir.passes.PassBase
    arguments: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.instance, ir.passes.PassBase):
            raise UsageError(
                "passes",
                f"{self.instance!r} is not a pass",
                "give an onnx_ir.passes.PassBase instance",
            )

    def __str__(self) -> str:
        kind = type(self.instance)
        arguments = ", ".join(f"{k}={_python_text(v)}" for k, v in self.arguments)
        return f"{kind.__module__}.{kind.__qualname__}" + (
            f"({arguments})" if arguments else ""
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForeignPass) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        result = self.instance(model)
        if result.model is not model:
            raise UsageError(
                str(self),
                "returns another model",
                "use an in-place pass (onnx_ir.passes.InPlacePass)",
            )
        return PassOutcome(changed=int(result.modified))


class AsIrPass(ir.passes.InPlacePass):
    """One of our passes as an `onnx_ir` pass, to stand in an `onnx_ir.passes.Sequential`."""

    def __init__(self, inner: Pass, context: Context) -> None:
        super().__init__()
        self.inner = inner
        self.context = context

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(
            model, self.inner.run(model, self.context).changed > 0
        )


def foreign_pass(path: str, arguments: dict[str, Any]) -> ForeignPass:
    """Build the foreign pass named by its dotted path, e.g.
    `onnx_ir.passes.common.IdentityEliminationPass`.
    """
    module_name, _, attribute = path.rpartition(".")
    try:
        kind = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError):
        raise UsageError(
            f"passes: {path}",
            "cannot be imported",
            "give module.Class of an installed package",
        ) from None
    values = {key: _python_value(value) for key, value in arguments.items()}
    try:
        return ForeignPass(kind(**values), tuple(sorted(values.items())))
    except TypeError as error:
        raise UsageError(
            f"passes: {path}", str(error), "give the arguments that its class takes"
        ) from None


def _python_value(text: Any) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            continue
    return text


def _python_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return quoted(str(value))
