"""Options of a pass: declared by its fields, parsed from pipeline text, validated, documented."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ... import UsageError
from .nearest import did_you_mean

NONE = "none"
"""Pipeline text of an option that is not set."""

AUTO = "auto"
"""Value of an option that the pass chooses itself."""

Auto = Literal["auto"]


def Option(  # noqa: N802 - reads as a declaration, like dataclasses.field
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    instead: Mapping[str, str] | None = None,
) -> Any:
    """Declare one option of a pass: its default, a sentence of help, its range and its unit.

    `low` and `high` belong to the range. A field of type `T | None` may be unset: `none` in
    pipeline text. One of type `T | Auto` may be left to the pass: `auto`. `instead`: pipeline text
    to write instead of values that people try and that it does not have.
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "unit": unit,
        "instead": dict(instead or {}),
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class OptionSpec:
    """One option as a field of a pass declares it, from which text, help and checks follow.

    `kind`: type of its values, without `None` and `Auto`. `optional`: it may be unset. `automatic`:
    it may be left to the pass. `positional`: pipeline text may give it without its name. `instead`:
    pipeline text to write instead of some values that it does not have.
    """

    name: str
    kind: Any
    optional: bool
    automatic: bool
    default: Any
    help: str
    low: float | None
    high: float | None
    unit: str
    positional: bool
    instead: Mapping[str, str]

    @property
    def choices(self) -> tuple[str, ...]:
        """Words that a `Literal` option accepts; empty for every other kind."""
        if typing.get_origin(self.kind) is not Literal:
            return ()
        return typing.get_args(self.kind)

    @property
    def type_text(self) -> str:
        """Kind of value for people: `number in [0, 1]`, `int8 | binary`, `list of text`."""
        text = self._value_text
        if self.automatic:
            text += f" or {AUTO}"
        if self.optional:
            text += f" or {NONE}"
        return text

    @property
    def _value_text(self) -> str:
        """Kind of value that is set."""
        if self.choices:
            return " | ".join(self.choices)
        text = _KIND_NAMES[self.kind]
        if self._is_bounded:
            low = "" if self.low is None else self.low
            high = "" if self.high is None else self.high
            text += f" in [{low}, {high}]"
        if self.unit:
            text += f" ({self.unit})"
        return text

    @property
    def _is_bounded(self) -> bool:
        return self.low is not None or self.high is not None

    def parse(self, where: str, value: Any) -> Any:
        """Turn a value of pipeline text, str or list of str, into this option's type.

        Errors: UsageError, naming the pass `where`, for text that is no such value.
        """
        if self.optional and value == NONE:
            return None
        if self.automatic and value == AUTO:
            return AUTO
        parser = _PARSERS[str if self.choices else self.kind]
        try:
            return parser(value)
        except (ValueError, TypeError, KeyError):
            raise UsageError(
                f"{where}.{self.name}",
                f"{_shown(value)} is not {self.type_text}",
                self._fix(value),
            ) from None

    def validate(self, where: str, value: Any) -> None:
        """Raise UsageError unless `value` has this option's type and lies in its range."""
        if self.optional and value is None:
            return
        if self.automatic and value == AUTO:
            return
        place = f"{where}.{self.name}"
        if self.choices:
            self._require_choice(place, value)
            return
        if not _HAS_TYPE[self.kind](value):
            problem = f"{_shown(value)} is not {self.type_text}"
            raise UsageError(place, problem, self._fix(value))
        if not isinstance(value, (int, float)):
            return
        if not self._in_range(value):
            problem = f"{value} is outside [{self.low}, {self.high}]"
            raise UsageError(place, problem, self._fix(value))

    def _require_choice(self, place: str, value: Any) -> None:
        if value in self.choices:
            return
        fix = self._fix(value)
        if str(value) not in self.instead:
            fix = did_you_mean(str(value), self.choices, fix)
        choices = ", ".join(self.choices)
        raise UsageError(
            place,
            f"{_shown(value)} is not one of {choices}",
            fix,
        )

    def _in_range(self, value: float) -> bool:
        # written so that NaN, which compares with nothing, lies outside
        above = self.low is None or value >= self.low
        below = self.high is None or value <= self.high
        return above and below

    def render(self, value: Any) -> str:
        """The option with a value as pipeline text."""
        text = _value_as_text(value)
        if self.positional:
            return text
        return f"{self.name}={text}"

    def _fix(self, value: Any) -> str:
        if str(value) in self.instead:
            return f"write {self.instead[str(value)]}"
        default = NONE if self.default is None else self.default
        if self.choices:
            choices = ", ".join(self.choices)
            return f"choose one of {choices}; the default is {default}"
        if self._is_bounded:
            return (
                f"choose a value in [{self.low}, {self.high}]; the default is {default}"
            )
        if self.default is not None:
            default = repr(self.default)
        return f"give {self.type_text}; the default is {default}"


def options_of(kind: type) -> tuple[OptionSpec, ...]:
    """Options of a pass class, in field order; a leading `Literal` field may be given positionally.

    A field of type `T | None` may be unset: None, which pipeline text spells `none`. One of type `T
    | Auto` may be left to the pass.
    """
    return _options_of(kind)


# once a class: its annotations are evaluated, which takes as long as many a pass
@functools.cache
def _options_of(kind: Hashable) -> tuple[OptionSpec, ...]:
    assert isinstance(kind, type)
    # annotations are texts, since modules defer their evaluation
    hints = typing.get_type_hints(kind)
    specs = []
    for index, field in enumerate(dataclasses.fields(kind)):
        annotation, optional = _without(type(None), hints[field.name])
        annotation, automatic = _without(Auto, annotation)
        positional = index == 0 and typing.get_origin(annotation) is Literal
        spec = OptionSpec(
            name=field.name,
            kind=annotation,
            optional=optional,
            automatic=automatic,
            default=field.default,
            help=field.metadata["help"],
            low=field.metadata["low"],
            high=field.metadata["high"],
            unit=field.metadata["unit"],
            positional=positional,
            instead=field.metadata["instead"],
        )
        specs.append(spec)
    return tuple(specs)


def _without(one: Any, annotation: Any) -> tuple[Any, bool]:
    """`T` and True of `T | one`; the annotation itself and False of every other."""
    kinds = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal or one not in kinds:
        return annotation, False
    others = [each for each in kinds if each != one]
    return typing.Union[tuple(others)], True  # noqa: UP007 - of a tuple


def quoted(text: str) -> str:
    """A word as pipeline text: bare where the grammar allows, in double quotes otherwise."""
    if text and not any(map(_needs_quotes, text)):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _needs_quotes(character: str) -> bool:
    return character.isspace() or character in ',()[]="\\'


def _value_as_text(value: Any) -> str:
    if value is None:
        return NONE
    # before numbers: to Python, True and False are integers
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        words = ", ".join(map(quoted, value))
        return f"[{words}]"
    if isinstance(value, str):
        return quoted(value)
    return repr(value)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"'{value}'"
    return str(value)


def _parse_number(value: Any) -> float:
    text = _parse_text(value)
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return float(text)


def _parse_words(value: str | list[str]) -> tuple[str, ...]:
    # one word needs no brackets
    if isinstance(value, str):
        return (value,)
    return tuple(value)


def _parse_text(value: Any) -> str:
    # a list in brackets is no text
    if not isinstance(value, str):
        raise TypeError
    return value


def _is_number(value: Any) -> bool:
    # to Python, True and False are integers
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_words(value: Any) -> bool:
    if not isinstance(value, tuple):
        return False
    return all(isinstance(word, str) for word in value)


_KIND_NAMES: dict[Any, str] = {
    float: "number",
    int: "integer",
    bool: "true | false",
    str: "text",
    tuple[str, ...]: "list of text",
}

_PARSERS: dict[Any, Callable[[Any], Any]] = {
    float: _parse_number,
    int: int,
    bool: {"true": True, "false": False}.__getitem__,
    str: _parse_text,
    tuple[str, ...]: _parse_words,
}

_HAS_TYPE: dict[Any, Callable[[Any], bool]] = {
    float: _is_number,
    int: _is_integer,
    bool: lambda value: isinstance(value, bool),
    str: lambda value: isinstance(value, str),
    tuple[str, ...]: _is_words,
}
