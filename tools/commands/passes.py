"""`onnx-opt passes [NAME]`: the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..console import emit_json, shared_options, show

if TYPE_CHECKING:
    from ...passes._core.contract import Pass
    from ...passes._core.options import OptionSpec


@click.command("passes")
@click.argument("name", required=False)
@shared_options
def command(name: str | None, as_json: bool, verbosity: int) -> None:
    """List the passes, or show the options, effect and source of one."""
    from ...passes._core.registry import pass_class, pass_names
    from ..tables import pass_detail, pass_list

    kinds = [pass_class(name)] if name else [pass_class(n) for n in pass_names()]
    described = [describe(kind) for kind in kinds]
    if as_json:
        emit_json({"passes": described})
        return
    parts = pass_detail(described[0]) if name else [pass_list(described)]
    for part in parts:
        show(part)


def describe(kind: type[Pass]) -> dict[str, Any]:
    """A pass as plain data: name, effect, summary, description and options."""
    from inspect import cleandoc

    from ...passes._core.options import options_of

    text = cleandoc(kind.__doc__ or "")
    # the first paragraph: a first sentence may take two lines
    summary, _, _ = text.partition("\n\n")
    return {
        "pass": kind.name,
        "effect": kind.effect,
        "unit": kind.unit,
        "summary": " ".join(summary.split()),
        "description": text,
        "options": [_option(option) for option in options_of(kind)],
    }


def _option(option: OptionSpec) -> dict[str, Any]:
    return {
        "name": option.name,
        "type": option.type_text,
        "default": option.default,
        "low": option.low,
        "high": option.high,
        "unit": option.unit,
        "choices": list(option.choices),
        "positional": option.positional,
        "help": option.help,
    }
