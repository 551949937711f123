"""A click command whose defaults come from a file of options."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ...passes._core.targets import TARGETS
from ..console import say
from .chosen import chosen, defaults, options_by_name
from .file import NAME, Config, read_config

_BASES = "onnx_opt.targets"
"""Key of the targets that a file describes, in a click context: their names, and those below."""

_CONFIG = click.option(
    "--config",
    metavar="FILE",
    expose_value=False,
    help=f"File of options and recipes (TOML), or none. Default: {NAME} of this folder, else "
    "[tool.onnx-opt] of its pyproject.toml.",
)
_RECIPE = click.option(
    "--recipe",
    metavar="NAME",
    expose_value=False,
    help="Take the options of [recipes.NAME] of the file; those given here win.",
)


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--config` and `--recipe`, for a command of the class `ConfiguredCommand`."""
    return _CONFIG(_RECIPE(function))


class TargetName(click.Choice[str]):
    """A target, or one that the file of options describes in terms of a target."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        bases = {} if ctx is None else ctx.meta.get(_BASES, {})
        return super().convert(bases.get(value, value), param, ctx)


TARGET_NAME = TargetName(TARGETS)


class ConfiguredCommand(click.Command):
    """Takes from the file of options what the command line does not say."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # the words are parsed twice: which recipe is asked for says what the defaults are
        words, _, _ = self.make_parser(ctx).parse_args(list(args))
        if not words.get("help"):
            self._take_defaults(ctx, words)
        return super().parse_args(ctx, args)

    def _take_defaults(self, ctx: click.Context, words: dict[str, Any]) -> None:
        recipe = _said(words, "recipe")
        target = _said(words, "target")
        asked = _said(words, "config")
        config = read_config(asked)
        if config is None:
            if recipe is not None:
                # the error says what there is: no file at all
                Config(NAME, Path(), {}, {}, {}).recipe(recipe)
            return
        bases = {}
        for name, table in config.targets.items():
            bases[name] = table.get("target")
        ctx.meta[_BASES] = bases
        given = chosen(config, recipe, target)
        main = _main_command()
        others = options_by_name(main)
        ctx.default_map = defaults(
            config,
            given,
            self,
            ctx,
            others,
        )
        # results should not change by a file that nobody saw
        if not (words.get("as_json") or words.get("quiet")):
            of_recipe = "" if recipe is None else f", recipe {recipe}"
            say(f"options of {config.where}{of_recipe}")


def _said(words: dict[str, Any], name: str) -> str | None:
    """The value of an option in the words of a command line; None where there is none."""
    value = words.get(name)
    # click marks what was not given by objects of its own
    return value if isinstance(value, str) else None


def _main_command() -> click.Command:
    """The main job, whose options a file has."""
    command: click.Command = import_module("..commands.run", __package__).command
    return command
