"""The registry: every public module of `passes` is one pass; a dotted name is a foreign pass."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import onnx_ir as ir

from ... import UsageError
from .context import Context
from .contract import Pass
from .nearest import did_you_mean
from .options import options_of, quoted
from .outcome import Effect, PassOutcome

_PASSES = __name__.rpartition("._core")[0]


def pass_names() -> list[str]:
    """Names of all passes, sorted, without importing them."""
    folder = import_module(_PASSES).__path__
    modules = [module.name for module in pkgutil.iter_modules(folder)]
    return sorted(
        name.replace("_", "-") for name in modules if not name.startswith("_")
    )


def pass_class(name: str) -> type[Pass]:
    """The class of the pass called `name`; UsageError with a near name otherwise."""
    # names first, so that one module is imported and not all
    known = pass_names()
    if name not in known:
        raise UsageError(f"passes: {name}", "no such pass", _fix(name, known))
    module = import_module(f"{_PASSES}.{name.replace('-', '_')}")
    # passes that the module imports from others are not its own
    found: list[type[Pass]] = []
    for value in vars(module).values():
        # by its type: in Python 3.10 isinstance takes list[int] for a class
        if not issubclass(type(value), type):
            continue
        if not issubclass(value, Pass):
            continue
        if value.__module__ == module.__name__:
            found.append(value)
    assert len(found) == 1, f"{module.__name__} must define exactly one pass"
    return found[0]


def _fix(name: str, known: list[str]) -> str:
    """Say what to write instead of a pass that there is not."""
    # people name the form that they want: fp16, int4
    forms = []
    for other in reversed(known):
        first = next(iter(options_of(pass_class(other))), None)
        if first is None or not first.positional:
            continue
        if name in first.choices:
            forms.append(f"{other}({name})")
        elif name in first.instead:
            forms.append(first.instead[name])
    otherwise = f"choose among {', '.join(known)}"
    if forms:
        otherwise = f"write {', or '.join(forms)}"
    return did_you_mean(name, known, otherwise)


@dataclass(frozen=True)
class ForeignPass(Pass):
    """Run any `onnx_ir.passes.PassBase` as a step of a pipeline.

    Effect: exact. Believed to be, and verified: rolled back when the outputs change.

    Source: follows from the definition of `onnx_ir.passes.PassBase`.
    """

    name: ClassVar[str] = "foreign"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "models"

    instance: ir.passes.PassBase
    arguments: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        # in place of the check of options, which a foreign pass has not
        if not isinstance(self.instance, ir.passes.PassBase):
            raise UsageError(
                "passes",
                f"{self.instance!r} is not a pass",
                "give an onnx_ir.passes.PassBase instance",
            )

    def __str__(self) -> str:
        kind = type(self.instance)
        path = f"{kind.__module__}.{kind.__qualname__}"
        if not self.arguments:
            return path
        given = []
        for key, value in self.arguments:
            given.append(f"{key}={_python_text(value)}")
        arguments = ", ".join(given)
        return f"{path}({arguments})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ForeignPass):
            return False
        return str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        result = self.instance(model)
        # callers hold the model that they gave
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
        outcome = self.inner.run(model, self.context)
        modified = outcome.changed > 0
        return ir.passes.PassResult(model, modified)


def foreign_pass(path: str, arguments: dict[str, Any]) -> ForeignPass:
    """Build the foreign pass of a dotted path, `onnx_ir.passes.common.IdentityEliminationPass`."""
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
        instance = kind(**values)
        return ForeignPass(instance, tuple(sorted(values.items())))
    except TypeError as error:
        raise UsageError(
            f"passes: {path}", str(error), "give the arguments that its class takes"
        ) from None


def _python_value(text: Any) -> Any:
    """Pipeline text as the value that it looks like: the class declares no types to go by."""
    if text in ("true", "false"):
        return text == "true"
    # whole numbers stay whole
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
