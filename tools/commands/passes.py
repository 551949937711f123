"""`onnx-opt passes [NAME]`: the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..console import emit_json, shared_options, show

if TYPE_CHECKING:
    from ...passes._core.contract import Pass


@click.command("passes")
@click.argument("name", required=False)
@shared_options
def command(name: str | None, as_json: bool, verbosity: int) -> None:
    """List the passes, or show one: its options, its effect, its source."""
    from ...passes._core.registry import pass_class, pass_names
    from ..tables import pass_detail, pass_list

    kinds = [pass_class(name)] if name else [pass_class(n) for n in pass_names()]
    if as_json:
        emit_json({"passes": [describe(kind) for kind in kinds]})
        return
    for part in (
        pass_detail(describe(kinds[0]))
        if name
        else [pass_list([describe(kind) for kind in kinds])]
    ):
        show(part)


def describe(kind: type[Pass]) -> dict[str, Any]:
    """A pass as plain data: name, effect, summary, description, options (with type, default, range,
    unit, help).
    """
    from inspect import cleandoc

    from ...passes._core.options import options_of

    text = cleandoc(kind.__doc__ or "")
    return {
        "pass": kind.name,
        "effect": kind.effect,
        "summary": " ".join(text.split("\n\n")[0].split()),
        "description": text,
        "options": [
            {
                "name": o.name,
                "type": o.type_text,
                "default": o.default,
                "low": o.low,
                "high": o.high,
                "unit": o.unit,
                "choices": list(o.choices),
                "positional": o.positional,
                "help": o.help,
            }
            for o in options_of(kind)
        ],
    }
