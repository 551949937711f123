"""Options of a pass: declared by its fields, parsed from pipeline text, validated, shown in help and docs."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ... import UsageError

NONE = "none"
"""Pipeline text of an option that is not set."""


def Option(  # noqa: N802 - reads as a declaration, like dataclasses.field
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
) -> Any:
    """Declare one option of a pass: its default, one sentence of help, its inclusive range and its
    unit.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "low": low, "high": high, "unit": unit}
    )


@dataclass(frozen=True)
class OptionSpec:
    """One option as declared by a field of a pass: the single source for text, help, docs and
    validation.
    """

    name: str
    kind: Any
    optional: bool
    default: Any
    help: str
    low: float | None
    high: float | None
    unit: str
    positional: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """Words that a `Literal` option accepts; empty for every other kind."""
        if typing.get_origin(self.kind) is not Literal:
            return ()
        return typing.get_args(self.kind)

    @property
    def type_text(self) -> str:
        """Kind of value for people: `fraction in [0, 1]`, `int8 | binary`, `list of text`."""
        if self.choices:
            return " | ".join(self.choices)
        names = {
            float: "number",
            int: "integer",
            bool: "true | false",
            str: "text",
            tuple[str, ...]: "list of text",
        }
        text = names[self.kind]
        if self.low is not None or self.high is not None:
            low = "" if self.low is None else self.low
            high = "" if self.high is None else self.high
            text += f" in [{low}, {high}]"
        return f"{text} ({self.unit})" if self.unit else text

    def parse(self, where: str, value: Any) -> Any:
        """Turn a value of pipeline text (str, or list of str) into this option's type; UsageError
        if it cannot be.
        """
        if self.optional and value == NONE:
            return None
        try:
            return _PARSERS[str if self.choices else self.kind](value)
        except (ValueError, TypeError, KeyError):
            raise UsageError(
                f"{where}.{self.name}",
                f"{_shown(value)} is not {self.type_text}",
                self._fix(),
            ) from None

    def validate(self, where: str, value: Any) -> None:
        """Raise UsageError unless `value` has this option's type and lies in its range."""
        if self.optional and value is None:
            return
        place = f"{where}.{self.name}"
        if self.choices:
            if value not in self.choices:
                near = difflib.get_close_matches(str(value), self.choices, 1)
                raise UsageError(
                    place,
                    f"{_shown(value)} is not one of {', '.join(self.choices)}",
                    f"did you mean '{near[0]}'?" if near else self._fix(),
                )
            return
        if not _HAS_TYPE[self.kind](value):
            raise UsageError(
                place, f"{_shown(value)} is not {self.type_text}", self._fix()
            )
        if isinstance(value, (int, float)) and not self._in_range(value):
            raise UsageError(
                place, f"{value} is outside [{self.low}, {self.high}]", self._fix()
            )

    def _in_range(self, value: float) -> bool:
        # written so that NaN, which compares with nothing, lies outside
        above = self.low is None or value >= self.low
        below = self.high is None or value <= self.high
        return above and below

    def render(self, value: Any) -> str:
        """The option as pipeline text."""
        if value is None:
            text = NONE
        elif isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, tuple):
            text = "[" + ", ".join(map(quoted, value)) + "]"
        else:
            text = quoted(value) if isinstance(value, str) else repr(value)
        return text if self.positional else f"{self.name}={text}"

    def _fix(self) -> str:
        if self.choices:
            return f"choose one of {', '.join(self.choices)}; the default is {self.default}"
        if self.low is not None or self.high is not None:
            return f"choose a value in [{self.low}, {self.high}]; the default is {self.default}"
        return f"give {self.type_text}; the default is {self.default!r}"


def options_of(kind: type) -> list[OptionSpec]:
    """Options of a pass class, in field order; a leading `Literal` field may be given positionally.

    A field of type `T | None` may be unset: None, which pipeline text spells `none`.
    """
    hints = typing.get_type_hints(kind)
    specs = []
    for index, field in enumerate(dataclasses.fields(kind)):
        annotation, optional = _without_none(hints[field.name])
        positional = index == 0 and typing.get_origin(annotation) is Literal
        specs.append(
            OptionSpec(
                name=field.name,
                kind=annotation,
                optional=optional,
                default=field.default,
                help=field.metadata["help"],
                low=field.metadata["low"],
                high=field.metadata["high"],
                unit=field.metadata["unit"],
                positional=positional,
            )
        )
    return specs


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """`T` and True of `T | None`; the annotation itself and False of every other."""
    kinds = typing.get_args(annotation)
    if type(None) not in kinds:
        return annotation, False
    (kind,) = (k for k in kinds if k is not type(None))
    return kind, True


def quoted(text: str) -> str:
    """A word as pipeline text: bare where the grammar allows, in double quotes otherwise."""
    bare = bool(text) and not any(c.isspace() or c in ',()[]="\\' for c in text)
    return text if bare else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _parse_number(value: str) -> float:
    return float(value[:-1]) / 100 if value.endswith("%") else float(value)


def _parse_words(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_PARSERS: dict[Any, Callable[[Any], Any]] = {
    float: _parse_number,
    int: int,
    bool: {"true": True, "false": False}.__getitem__,
    str: _parse_text,
    tuple[str, ...]: _parse_words,
}


_HAS_TYPE: dict[Any, Callable[[Any], bool]] = {
    float: lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    int: lambda v: isinstance(v, int) and not isinstance(v, bool),
    bool: lambda v: isinstance(v, bool),
    str: lambda v: isinstance(v, str),
    tuple[str, ...]: lambda v: (
        isinstance(v, tuple) and all(isinstance(s, str) for s in v)
    ),
}
