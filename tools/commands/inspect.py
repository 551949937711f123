"""`onnx-opt inspect MODEL`: what a model is made of, and what the passes could do to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..console import emit_json, markup_safe, shared_options, show


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Layers to list by size.",
)
@click.option(
    "--groups",
    is_flag=True,
    help="List instead the channels that can only go together, and what stays.",
)
@shared_options
def command(model: Path, top: int, groups: bool, as_json: bool, verbosity: int) -> None:
    """Show what a model is made of, and what each lossy pass could touch in it.

    Interface, ops, parameters, sparsity, MACs, where the weights live, the largest of them, and its
    origin.
    """
    if groups:
        _show_groups(model, as_json, verbosity)
        return
    from .._inspect import inspection

    facts = inspection(model)
    if as_json:
        emit_json({**facts, "layers": facts["layers"][:top]})
        return
    for part in report(facts, top, verbosity):
        show(part)


def _show_groups(model: Path, as_json: bool, verbosity: int) -> None:
    from .._groups import groups_of

    facts = groups_of(model)
    if as_json:
        emit_json(facts)
        return
    for part in group_parts(facts, verbosity):
        show(part)


def report(facts: dict[str, Any], top: int, verbosity: int) -> list[Any]:
    """The facts as tables."""
    from .._run.saturation import pair_words
    from ..tables import count, needed, size

    about, figures, weights = facts["model"], facts["figures"], facts["weights"]
    opsets = ", ".join(
        f"{domain} {version}" for domain, version in about["opset"].items()
    )
    sparsity = facts["sparsity"]
    lines = [
        f"[bold]{markup_safe(about['path'])}[/bold]  {size(figures['bytes'])}",
        f"opset {markup_safe(opsets)} · IR {about['ir_version']} · by "
        f"{markup_safe(about['producer'] or 'unknown')}",
        f"{count(figures['params'])} parameters · sparsity "
        f"{'?' if sparsity is None else f'{sparsity:.4f}'} · "
        f"{count(figures['nodes'])} nodes · {count(figures['macs'])} MACs (symbolic dims as 1)",
        "weights live in "
        + ", ".join(
            f"{place.replace('_', ' ')} ({size(item['bytes'])} in {item['tensors']})"
            for place, item in weights.items()
            if item["tensors"]
        ),
    ]
    lines.append(needed(facts["requires"]))
    if facts["quantized"]:
        lines.append(
            "quantized already: "
            + markup_safe(", ".join(f"{k} ×{n}" for k, n in facts["quantized"].items()))
        )
    if facts["saturation"] and facts["saturation"]["pairs"]:
        lines.append(markup_safe(pair_words(**facts["saturation"])))
    if facts["hardware"]:
        lines.append("this CPU: " + markup_safe(facts["hardware"]["label"]))
    if facts["provenance"]:
        lines.append(
            "made by onnx-opt: "
            + markup_safe(", ".join(f"{k}={v}" for k, v in facts["provenance"].items()))
        )
    return [
        *lines,
        "",
        port_table(facts),
        "",
        op_line(facts),
        "",
        layer_table(facts["layers"][:top]),
        "",
        *pass_parts(facts["passes"], verbosity),
    ]


def port_table(facts: dict[str, Any]) -> Any:
    """Inputs and outputs."""
    from .._run.checks import shape_text
    from ..tables import plain_table

    table = plain_table(None, "", "name", "type", "shape")
    for kind in ("inputs", "outputs"):
        for port in facts[kind]:
            shape = shape_text(port["shape"]) + (
                " (has a default)" if port["default"] else ""
            )
            table.add_row(
                kind[:-1],
                markup_safe(port["name"]),
                markup_safe(port["type"]),
                markup_safe(shape),
            )
    return table


def op_line(facts: dict[str, Any]) -> str:
    """The ops, most frequent first."""
    return "ops: " + markup_safe(
        ", ".join(f"{op} ×{n}" for op, n in facts["ops"].items())
    )


def layer_table(layers: list[dict[str, Any]]) -> Any:
    """The largest weights."""
    from ..tables import plain_table, size

    table = plain_table(
        None,
        "weight",
        "used by",
        "type",
        "shape",
        "size",
        "sparsity",
        right=("size", "sparsity"),
    )
    for layer in layers:
        sparsity = "?" if layer["sparsity"] is None else f"{layer['sparsity']:.4f}"
        table.add_row(
            markup_safe(layer["name"]),
            markup_safe(", ".join(layer["ops"])),
            layer["dtype"],
            str(layer["shape"]).replace("[", r"\["),
            size(layer["bytes"]),
            sparsity,
        )
    return table


def pass_parts(passes: list[dict[str, Any]], verbosity: int) -> list[Any]:
    """What each lossy pass could touch with its defaults, and what it declines; every item of it
    with -v.
    """
    from ..tables import declined_summary, plain_table

    table = plain_table(
        None,
        "pass",
        "would change",
        "declines (reason, how often)",
        right=("would change",),
    )
    for item in passes:
        changed = "failed" if item["error"] else str(item["changed"])
        table.add_row(
            markup_safe(item["pass"]),
            changed,
            markup_safe(item["error"] or declined_summary(item["declined"], most=4)),
        )
    parts: list[Any] = [table]
    if verbosity > 0:
        for item in passes:
            detail = plain_table(
                f"declined by {markup_safe(item['pass'])}", "where", "reason"
            )
            for declined in item["declined"]:
                detail.add_row(
                    markup_safe(declined["where"]), markup_safe(declined["reason"])
                )
            parts.append(detail)
    return parts


def group_parts(facts: dict[str, Any], verbosity: int) -> list[Any]:
    """The channel groups and the weights that stay, as tables; every member and every weight with
    -v.
    """
    from ..tables import declined_summary, plain_table

    groups, frozen = facts["groups"], facts["frozen"]
    spread = "l2 min / median / max"
    table = plain_table(
        "channel groups of prune-channels",
        "group",
        "channels",
        spread,
        "where",
        right=("channels", spread),
    )
    for group in groups:
        size, was, importance = (
            group["channels"],
            group["channels_at_first"],
            group["importance"],
        )
        table.add_row(
            markup_safe(group["name"]),
            f"{size}" if size == was else f"{size} of {was}",
            " / ".join(f"{importance[key]:.2f}" for key in ("min", "median", "max")),
            markup_safe(_places(group["where"], None if verbosity > 0 else 4)),
        )
    count = sum(group["channels"] for group in groups)
    parts: list[Any] = [
        table,
        "",
        f"{len(groups)} groups, {count} channels that can go; "
        f"{len(frozen)} axes of weights stay" + (":" if frozen else "."),
    ]
    if verbosity > 0:
        stays = plain_table(None, "weight:axis", "why it stays")
        for item in frozen:
            stays.add_row(markup_safe(item["where"]), markup_safe(item["reason"]))
        return [*parts, stays]
    if frozen:
        parts.append(
            markup_safe(
                declined_summary(frozen, most=6).partition(": ")[2]
                + " (-v: each of them)"
            )
        )
    return parts


def _places(where: list[dict[str, Any]], most: int | None) -> str:
    """`weight:axis` of every member, with ×n where a channel takes n slots of the axis."""
    named = [
        f"{p['weight']}:{p['axis']}" + (f" ×{p['slots']}" if p["slots"] > 1 else "")
        for p in where
    ]
    more = 0 if most is None else len(named) - most
    return ", ".join(named[:most]) + (f", … {more} more" if more > 0 else "")
