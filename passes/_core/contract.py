"""The contract of a pass: options from fields, an effect, `run(model, context) -> PassOutcome`.

A pass that can leave parts of a model as they are says so by its option `exclude`: a run in which
the runtime does not bear the result looks for the parts at fault, and has the pass leave them out.
"""

from __future__ import annotations

import abc
import dataclasses
import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from .context import Context
from .options import options_of
from .outcome import Effect, PassOutcome
from .patterns import Part, weighted_parts


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A transformation of a model, in place.

    Subclasses are frozen dataclasses; their fields are their options, checked when one is made.
    """

    name: ClassVar[str]
    effect: ClassVar[Effect]
    unit: ClassVar[str] = "changes"
    """Things that `PassOutcome.changed` counts, in the plural."""

    def __post_init__(self) -> None:
        # also those made in Python, without pipeline text
        for option in options_of(type(self)):
            value = getattr(self, option.name)
            option.validate(self.name, value)

    @abc.abstractmethod
    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        """Transform `model` in place and account for it."""

    def run_within(self, model: ir.Model, context: Context) -> PassOutcome:
        """Run as a step of another pass, which the account of the run names."""
        with context.progress(self.name, 1):
            return self.run(model, context)

    def parts(self, model: ir.Model) -> list[Part]:
        """Parts of a model that the pass can leave as they are; none unless `has_parts`."""
        return weighted_parts(model) if self.has_parts() else []

    @classmethod
    def has_parts(cls) -> bool:
        """True if parts of a model can be left as they are: with the option `exclude`."""
        return any(option.name == "exclude" for option in options_of(cls))

    def without(self, parts: Iterable[Part]) -> Pass:
        """The same pass, which leaves these parts as they are; it must have some."""
        patterns = list(getattr(self, "exclude"))  # noqa: B009 - an option of those with parts
        for part in parts:
            patterns += [glob.escape(name) for name in part.names]
        # mypy knows the fields of this class alone
        changes = {"exclude": tuple(patterns)}
        return dataclasses.replace(self, **changes)

    def gentler(self, worst: Sequence[str]) -> list[Pass]:
        """Forms of the pass that lose less, to be tried in turn where its result is worthless.

        `worst`: names of the layers that lost most, worst first; empty where they are not known.
        """
        return []

    def milder(self) -> Pass | None:
        """The same pass in the form that loses less of all layers; None where it has no such."""
        return None

    def sparing(self, layers: Sequence[str]) -> Pass | None:
        """The same pass, which takes less from these layers; None where it has no such form.

        `layers`: names of nodes, weights or outputs.
        """
        return None

    def at_lower_opset(self) -> Pass | None:
        """The same pass in a form that an older opset holds; None where it has no other."""
        return None

    def __str__(self) -> str:
        """Canonical pipeline text: the options that differ from their defaults, in field order."""
        given = []
        for option in options_of(type(self)):
            value = getattr(self, option.name)
            if value != option.default:
                given.append(option.render(value))
        if not given:
            return self.name
        return f"{self.name}({', '.join(given)})"
