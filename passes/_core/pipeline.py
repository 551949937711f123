"""Pipeline text: `simplify, prune(sparsity=0.6)` or, shell-safe, `simplify,prune:sparsity=0.6`.

    pipeline := pass ("," pass)*
    pass     := name | name "(" [argument ("," argument)*] ")" | name (":" argument)+
    argument := [option "="] value            only the first argument may lack its option's name
    value    := word | "quoted" | "[" [word ("," word)*] "]"

In the shell-safe spelling a later segment without "=" belongs to the value before it
(`prune:pattern=2:4`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ... import UsageError
from .contract import Pass
from .nearest import did_you_mean
from .options import OptionSpec, options_of
from .recipe_files import read_tables, read_text
from .registry import ForeignPass, foreign_pass, pass_class


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run; `str()` is the canonical text."""

    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.passes))


def parse(text: str) -> Pipeline:
    """Parse pipeline text, or `@file` holding it (see `recipe_files`).

    Errors: UsageError naming the column (1-based) for a syntax error; the pass and option for a
    wrong value.
    """
    if text.startswith("@"):
        path = Path(text[1:])
        if path.suffix == ".toml":
            return as_pipeline(read_tables(path))
        text = read_text(path)
    parser = _Parser(text)
    return Pipeline(tuple(parser.pipeline()))


PipelineStep = str | Pass | ir.passes.PassBase | tuple[str, Mapping[str, Any]]
"""A pass of a pipeline: text, an object, or a name with its options as Python values."""


def as_pipeline(passes: str | Pipeline | Iterable[PipelineStep]) -> Pipeline:
    """A Pipeline from text, or from a list of texts, passes, (name, options) pairs and foreign
    `onnx_ir` passes.
    """
    if isinstance(passes, Pipeline):
        return passes
    if isinstance(passes, str):
        return parse(passes)
    steps: list[Pass] = []
    for step in passes:
        if isinstance(step, str):
            steps.extend(parse(step).passes)
        elif isinstance(step, Pass):
            steps.append(step)
        elif isinstance(step, tuple):
            steps.append(_from_pair(step))
        else:
            steps.append(ForeignPass(step))
    return Pipeline(tuple(steps))


def _from_pair(pair: tuple[str, Mapping[str, Any]]) -> Pass:
    """Make a pass from its name and its options. Errors: UsageError."""
    is_pair = len(pair) == 2 and isinstance(pair[1], Mapping)
    if not is_pair:
        raise UsageError(
            "passes", f"{pair!r} is no pass", 'write ("prune", {"sparsity": 0.5})'
        )
    name, options = pair
    kind = pass_class(name)
    known = [option.name for option in options_of(kind)]
    for key in options:
        if key not in known:
            raise _no_option(name, key, known)
    return kind(**options)


def build(name: str, arguments: dict[str, Any], positional: Any = None) -> Pass:
    """Make the pass `name` from option texts; `positional` is the value given without a name."""
    if "." in name:
        return foreign_pass(name, arguments)
    kind = pass_class(name)
    options = {option.name: option for option in options_of(kind)}
    if positional is not None:
        first = next(iter(options.values()), None)
        if first is None or not first.positional:
            raise UsageError(
                name,
                f"'{positional}' has no option name",
                _named(name, positional, list(options.values())),
            )
        arguments = {first.name: positional, **arguments}
    for key in arguments:
        if key not in options:
            raise _no_option(name, key, list(options))
    values = {}
    for key, value in arguments.items():
        values[key] = options[key].parse(name, value)
    return kind(**values)


def _named(name: str, value: Any, options: Sequence[OptionSpec]) -> str:
    """Say how to write a value that came without a name: by the first option that takes it."""
    for option in options:
        try:
            option.validate(name, option.parse(name, value))
        except UsageError:
            continue
        return f"write {name}({option.name}={value})"
    return "write option=value"


def _no_option(name: str, key: str, options: list[str]) -> UsageError:
    all_of_them = f"{name} takes no options"
    if options:
        all_of_them = f"choose among {', '.join(options)}"
    fix = did_you_mean(key, options, all_of_them)
    return UsageError(f"{name}.{key}", "no such option", fix)


class _Parser:
    """Recursive descent over one line; `self.at` is the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pipeline(self) -> list[Pass]:
        passes = [self._pass()]
        while self._peek() == ",":
            self.at += 1
            # after a trailing comma
            if self._peek() == "":
                break
            passes.append(self._pass())
        if self._peek():
            raise self._error(
                f"unexpected '{self._peek()}'", "separate passes with commas"
            )
        return passes

    def _pass(self) -> Pass:
        name = self._word(",():=[]", "a pass name")
        if self._peek() == "(":
            self.at += 1
            return self._finish(name, self._arguments())
        if self._peek() == ":":
            return self._finish(name, self._segments())
        return build(name, {})

    def _finish(self, name: str, arguments: list[tuple[str | None, Any, int]]) -> Pass:
        named: dict[str, Any] = {}
        positional: Any = None
        for index, (key, value, column) in enumerate(arguments):
            if key is None and index == 0:
                positional = value
            elif key is None:
                raise self._error(
                    f"'{value}' has no option name", "write option=value", column
                )
            elif key in named:
                raise self._error(
                    f"option '{key}' is given twice", "keep one of them", column
                )
            else:
                named[key] = value
        return build(name, named, positional)

    def _arguments(self) -> list[tuple[str | None, Any, int]]:
        found: list[tuple[str | None, Any, int]] = []
        while self._peek() != ")":
            column = self.at
            value = self._value(",()[]=")
            if self._peek() == "=":
                self.at += 1
                found.append((str(value), self._value(",()[]="), column))
            else:
                found.append((None, value, column))
            if self._peek() == ",":
                self.at += 1
            elif self._peek() != ")":
                raise self._error(
                    "expected ',' or ')'",
                    "close the parenthesis, and quote the text for the shell: "
                    "--passes 'prune(sparsity=0.5)'; prune:sparsity=0.5 needs no quotes",
                )
        self.at += 1
        return found

    def _segments(self) -> list[tuple[str | None, Any, int]]:
        found: list[tuple[str | None, Any, int]] = []
        while self._peek() == ":":
            self.at += 1
            column = self.at
            value = self._value(",()[]=:")
            if self._peek() == "=":
                self.at += 1
                key = str(value)
                value = self._value(",()[]=:")
                found.append((key, value, column))
                continue
            if found:
                former, head, start = found[-1]
                # `pattern=2:4`: the colon belongs to the value
                if isinstance(head, str):
                    found[-1] = (former, f"{head}:{value}", start)
                    continue
            found.append((None, value, column))
        return found

    def _value(self, stops: str) -> Any:
        if self._peek() == "[":
            self.at += 1
            items: list[str] = []
            while self._peek() != "]":
                items.append(str(self._scalar(",[]()")))
                if self._peek() == ",":
                    self.at += 1
                elif self._peek() != "]":
                    raise self._error("expected ',' or ']'", "close the bracket")
            self.at += 1
            return items
        return self._scalar(stops)

    def _scalar(self, stops: str) -> str:
        if self._peek() != '"':
            return self._word(stops, "a value")
        out: list[str] = []
        self.at += 1
        while self._character() not in ('"', ""):
            # a backslash keeps the next character as it is
            if self._character() == "\\":
                self.at += 1
            out.append(self._character())
            self.at += 1
        if not self._character():
            raise self._error("the quote is not closed", 'add "')
        self.at += 1
        return "".join(out)

    def _word(self, stops: str, what: str) -> str:
        self._peek()
        start = self.at
        while self.at < len(self.text):
            character = self.text[self.at]
            if character in stops or character.isspace():
                break
            self.at += 1
        if start == self.at:
            raise self._error(
                f"expected {what}",
                "for example: --passes 'prune(sparsity=0.5), quant(int8)'",
            )
        return self.text[start : self.at]

    def _peek(self) -> str:
        """The next character that is not a space; "" at the end."""
        while self._character().isspace():
            self.at += 1
        return self._character()

    def _character(self) -> str:
        """The character at this place; "" at the end."""
        return self.text[self.at : self.at + 1]

    def _error(self, problem: str, fix: str, at: int | None = None) -> UsageError:
        column = (self.at if at is None else at) + 1
        return UsageError(
            f"--passes: column {column}", f"{problem} in '{self.text}'", fix
        )
