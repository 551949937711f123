"""The contract of a pass: options from fields, an effect, `run(model, context) -> PassOutcome`."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from .context import Context
from .options import options_of
from .outcome import Effect, PassOutcome


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A transformation of a model, in place.

    Subclasses are frozen dataclasses; their fields are their options, checked when one is made.
    """

    name: ClassVar[str]
    effect: ClassVar[Effect]

    def __post_init__(self) -> None:
        # also those made in Python, without pipeline text
        for option in options_of(type(self)):
            value = getattr(self, option.name)
            option.validate(self.name, value)

    @abc.abstractmethod
    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        """Transform `model` in place and account for it."""

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
