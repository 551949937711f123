"""The options that a file gives to one run of a command: chosen, checked, their paths placed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ... import UsageError
from ...passes._core.nearest import did_you_mean
from .file import Config, Options

NOT_IN_FILES = ("config", "recipe", "json", "help")
"""Options that a file does not have: they say what to read, and who reads the result."""

FORMS = ("data", "eval-data", "metric")
"""Options that name a file, or a function as `file.py:name`."""

_FILE_IN_PIPELINE = re.compile(r"@([^\s,:()\[\]\"']+)")
"""A file that a pipeline names, such as `@recipe.txt`."""


@dataclass(frozen=True)
class Given:
    """An option that a file gives: its value there, and the place that errors name."""

    value: Any
    place: str


def chosen(config: Config, recipe: str | None, target: str | None) -> dict[str, Given]:
    """Options by name: those of all runs, above them the target's, above them the recipe's.

    `target`: the name on the command line. A target that the file describes is replaced by the one
    that it names. Errors: UsageError.
    """
    shared = _options(config, "", config.shared)
    of_recipe: dict[str, Given] = {}
    if recipe is not None:
        of_recipe = _options(config, f"recipes.{recipe}.", config.recipe(recipe))
    name = target
    for options in (of_recipe, shared):
        if name is None and "target" in options:
            name = str(options["target"].value)
    of_target: dict[str, Given] = {}
    if name is not None and name in config.targets:
        of_target = _options(config, f"targets.{name}.", config.targets[name])
        if "target" not in of_target:
            raise UsageError(
                f"{config.where}: targets.{name}",
                "names no target that it is based on",
                'write target = "cpu", or another of onnx-opt run --help',
            )
        # what it is based on, not its own name
        of_recipe.pop("target", None)
        shared.pop("target", None)
    return {**shared, **of_target, **of_recipe}


def _options(config: Config, prefix: str, table: Options) -> dict[str, Given]:
    found = {}
    for key, value in table.items():
        place = f"{config.where}: {prefix}{key}"
        # Python spells it with the other
        name = key.replace("_", "-")
        found[name] = Given(value, place)
    return found


def options_by_name(command: click.Command) -> dict[str, click.Option]:
    """The options of a command that a file may have, by their long names without dashes."""
    found: dict[str, click.Option] = {}
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        for option in parameter.opts:
            if not option.startswith("--"):
                continue
            name = option.removeprefix("--")
            if name not in NOT_IN_FILES:
                found[name] = parameter
    return found


def defaults(
    config: Config,
    given: Mapping[str, Given],
    command: click.Command,
    context: click.Context,
    others: Iterable[str],
) -> dict[str, Any]:
    """Values for a command's parameters, by their names in Python.

    `others`: options that other commands have. Errors: UsageError that names the file and the key,
    for an unknown key and for a value of another type.
    """
    known = options_by_name(command)
    found = {}
    for name, each in given.items():
        if name not in known:
            raise _unknown(name, each.place, known, command, others)
        option = known[name]
        value = _placed(name, option, each.value, config.folder)
        _check(option, value, each.place, context)
        found[str(option.name)] = value
    return found


def _unknown(
    name: str,
    place: str,
    known: Iterable[str],
    command: click.Command,
    others: Iterable[str],
) -> UsageError:
    if name in others:
        return UsageError(
            place,
            f"onnx-opt {command.name} has no such option",
            "move it into a recipe of its own, or take another with --recipe",
        )
    fix = did_you_mean(name, known, f"see onnx-opt {command.name} --help")
    return UsageError(place, "no such option", fix)


def _placed(name: str, option: click.Option, value: Any, folder: Path) -> Any:
    """The value with its paths relative to the file that has it; a list where several are taken."""
    if option.multiple and not isinstance(value, list):
        value = [value]
    if not isinstance(value, list):
        return _one_placed(
            name,
            option,
            value,
            folder,
        )
    placed = []
    for each in value:
        one = _one_placed(
            name,
            option,
            each,
            folder,
        )
        placed.append(one)
    return placed


def _one_placed(name: str, option: click.Option, value: Any, folder: Path) -> Any:
    if not isinstance(value, str):
        return value
    if isinstance(option.type, click.Path):
        return str(folder / value)
    if name == "passes":
        return _FILE_IN_PIPELINE.sub(lambda found: f"@{folder / found[1]}", value)
    if name in FORMS:
        return _form_placed(value, folder)
    return value


def _form_placed(value: str, folder: Path) -> str:
    """A path, or `file.py:name`, below a folder; `module:name` and a metric's name stay."""
    source, _, function = value.rpartition(":")
    if source.endswith(".py"):
        return f"{folder / source}:{function}"
    path = folder / value
    return str(path) if path.exists() else value


def _check(
    option: click.Option, value: Any, place: str, context: click.Context
) -> None:
    """Errors: UsageError for a value that the option does not take."""
    if isinstance(value, dict):
        raise UsageError(place, "is a table", "only recipes and targets are tables")
    if isinstance(value, list) and not option.multiple:
        raise UsageError(place, "takes one value, not a list", "give one")
    values = value if isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) == option.is_flag:
            continue
        shown = _as_toml(each)
        fix = "write true or false" if option.is_flag else "give a value"
        raise UsageError(place, f"{shown} does not fit", fix)
    try:
        option.type_cast_value(context, value)
    except click.BadParameter as error:
        choices = getattr(option.type, "choices", None)
        fix = f"see onnx-opt {context.command.name} --help"
        if choices:
            fix = did_you_mean(str(value), choices)
        raise UsageError(place, error.message.rstrip("."), fix) from None


def _as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
