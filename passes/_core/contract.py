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
    """A transformation of a model, in place. Subclasses are frozen dataclasses whose fields are
    their options.
    """

    name: ClassVar[str]
    effect: ClassVar[Effect]

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            option.validate(self.name, getattr(self, option.name))

    @abc.abstractmethod
    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        """Transform `model` in place and account for it."""

    def __str__(self) -> str:
        """Canonical pipeline text: the options that differ from their defaults, a leading word
        positionally.
        """
        given = []
        for option in options_of(type(self)):
            value = getattr(self, option.name)
            if value != option.default:
                given.append(option.render(value))
        return f"{self.name}({', '.join(given)})" if given else self.name
