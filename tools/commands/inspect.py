"""`onnx-opt inspect MODEL`: the parts of a model, and what the passes could do to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..command_options import HTML
from ..console import emit_json, markup_safe, shared_options, show


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Tensors to list, largest first.",
)
@click.option(
    "--groups",
    is_flag=True,
    help="Show instead which channels prune-channels can remove together, and which stay.",
)
@HTML
@shared_options
def command(
    model: Path,
    top: int,
    groups: bool,
    html: Path | None,
    as_json: bool,
    verbosity: int,
) -> None:
    """Show the parts of MODEL, and what each lossy pass could change.

    Inputs and outputs, operators, parameters, sparsity, multiply-accumulates, the largest tensors,
    and what made the file.
    """
    # another question: it takes none of the facts below
    if groups:
        _show_groups(model, as_json, verbosity)
        return
    from .._inspect import inspection
    from .._report.write import check_page

    if html is not None:
        check_page(html, "--html")
    facts = inspection(model)
    if html is not None:
        write_inspection(html, model, facts)
    if as_json:
        parts = {key: facts[key][:top] for key in ("layers", "others")}
        emit_json({**facts, **parts})
        return
    for part in report(facts, top, verbosity):
        show(part)


def write_inspection(path: Path, model: Path, facts: dict[str, Any]) -> None:
    """Write the page of a model: its facts and its graph."""
    from ...frontends.onnx_file import load
    from ...passes._core.normalize import normalize
    from ...passes.unpack import restore_packed
    from .._report.graph import graph_of
    from .._report.write import write_page

    found = load(model)
    normalize(found)
    restore_packed(found)
    write_page(path, facts, "inspect", graph_of(found))


def _show_groups(model: Path, as_json: bool, verbosity: int) -> None:
    from .._groups import groups_of

    facts = groups_of(model)
    if as_json:
        emit_json(facts)
        return
    for part in group_parts(facts, verbosity):
        show(part)


def report(facts: dict[str, Any], top: int, verbosity: int) -> list[Any]:
    """Tables and lines of the facts."""
    from .._run.kernels import pair_words

    lines = summary_lines(facts)
    if facts["quantized"]:
        lines.append(f"quantized already: {_counts(facts['quantized'])}")
    if facts["packed"]:
        lines.append(f"packed: {facts['packed']} constants, unpacked while it loads")
    if facts["saturation"] and facts["saturation"]["pairs"]:
        lines.append(markup_safe(pair_words(**facts["saturation"])))
    if facts["hardware"]:
        lines.append(f"this CPU: {markup_safe(facts['hardware']['label'])}")
    if facts["provenance"]:
        record = [f"{key}={text}" for key, text in facts["provenance"].items()]
        lines.append(f"made by onnx-opt: {markup_safe(', '.join(record))}")
    return [
        *lines,
        "",
        port_table(facts),
        "",
        op_line(facts),
        "",
        layer_table([*facts["layers"], *facts["others"]], top),
        "",
        *pass_parts(facts["passes"], verbosity),
    ]


def summary_lines(facts: dict[str, Any]) -> list[str]:
    """Lines that every model has: its file, versions, figures, weights and needs."""
    from ..tables import bytes_text, count, needed

    about = facts["model"]
    path = markup_safe(about["path"])
    versions = [f"{domain} {version}" for domain, version in about["opset"].items()]
    opsets = markup_safe(", ".join(versions))
    producer = markup_safe(about["producer"] or "unknown")
    figures = facts["figures"]
    file_size = bytes_text(figures["bytes"])
    parameters = count(figures["params"])
    nodes = count(figures["nodes"])
    macs = count(figures["macs"])
    sparsity = "?"
    if facts["sparsity"] is not None:
        sparsity = f"{facts['sparsity']:.4f}"
    places = []
    for place, item in facts["weights"].items():
        if item["tensors"]:
            words = place.replace("_", " ")
            held = bytes_text(item["bytes"])
            places.append(f"{held} in the {words} (tensors: {item['tensors']})")
    return [
        f"[bold]{path}[/bold]  {file_size}",
        f"opset {opsets} · IR {about['ir_version']} · by {producer}",
        f"{parameters} parameters · sparsity {sparsity} · "
        f"{nodes} nodes · {macs} MACs (symbolic dims as 1)",
        f"weights: {', '.join(places) or 'none'}",
        needed(facts["requires"]),
    ]


def _counts(counts: dict[str, int]) -> str:
    """`Conv ×3, Relu ×2`; names of ops may come from a hostile file."""
    return markup_safe(", ".join(f"{name} ×{count}" for name, count in counts.items()))


def port_table(facts: dict[str, Any]) -> Any:
    """Inputs and outputs."""
    from .._run.checks import shape_text
    from ..tables import plain_table

    table = plain_table(None, "", "name", "type", "shape")
    for kind in ("inputs", "outputs"):
        for port in facts[kind]:
            default = " (has a default)" if port["default"] else ""
            shape = shape_text(port["shape"]) + default
            table.add_row(
                kind.removesuffix("s"),
                markup_safe(port["name"]),
                markup_safe(port["type"]),
                markup_safe(shape),
            )
    return table


def op_line(facts: dict[str, Any]) -> str:
    """The ops, most frequent first."""
    return f"ops: {_counts(facts['ops'])}"


def layer_table(parts: list[dict[str, Any]], top: int) -> Any:
    """The largest parts of the file: weights, tables and other constants, models in attributes."""
    from ..tables import bytes_text, plain_table

    largest = sorted(parts, key=lambda part: -int(part["bytes"]))
    table = plain_table(
        None,
        "largest",
        "used by",
        "type",
        "shape",
        "size",
        "sparsity",
        right=("size", "sparsity"),
    )
    for layer in largest[:top]:
        sparsity = "?" if layer["sparsity"] is None else f"{layer['sparsity']:.4f}"
        table.add_row(
            markup_safe(layer["name"]),
            markup_safe(", ".join(layer["ops"])),
            layer["dtype"],
            # rich reads [64] as markup
            str(layer["shape"]).replace("[", r"\["),
            bytes_text(layer["bytes"]),
            sparsity,
        )
    return table


def pass_parts(passes: list[dict[str, Any]], verbosity: int) -> list[Any]:
    """Changes of each lossy pass with its defaults, and what it declines.

    With -v, also a table of every item that it declines.
    """
    from ..tables import declined_summary, declined_table, plain_table

    table = plain_table(
        None,
        "pass",
        "would change",
        "declines (reason, how often)",
        right=("would change",),
    )
    for item in passes:
        changed = _changes_in_words(item)
        reasons = item["error"] or declined_summary(item["declined"], most=4)
        table.add_row(markup_safe(item["pass"]), changed, markup_safe(reasons))
    if verbosity <= 0:
        return [table]
    details = [declined_table(item["pass"], item["declined"]) for item in passes]
    return [table, *details]


def _changes_in_words(item: dict[str, Any]) -> str:
    """Number of changes that a pass would make, or why it made none."""
    error = item["error"]
    if not error:
        return str(item["changed"])
    return "needs --data" if error.startswith("needs --data") else "failed"


def group_parts(facts: dict[str, Any], verbosity: int) -> list[Any]:
    """The channel groups and the weights that stay, as tables.

    With -v, every member of a group and every weight.
    """
    from ..tables import declined_summary, plain_table

    groups = facts["groups"]
    frozen = facts["frozen"]
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
        # fewer than at first: the file was pruned before, and remembers
        channels = str(group["channels"])
        if group["channels"] != group["channels_at_first"]:
            channels = f"{channels} of {group['channels_at_first']}"
        norms = [f"{group['importance'][key]:.2f}" for key in ("min", "median", "max")]
        places = _places(group["where"], None if verbosity > 0 else 4)
        table.add_row(
            markup_safe(group["name"]),
            channels,
            " / ".join(norms),
            markup_safe(places),
        )
    count = sum(group["channels"] for group in groups)
    parts: list[Any] = [
        table,
        "",
        f"groups: {len(groups)}, channels that can go: {count}, "
        f"axes of weights that stay: {len(frozen)}",
    ]
    if verbosity > 0:
        stays = plain_table(None, "weight:axis", "why it stays")
        for item in frozen:
            stays.add_row(markup_safe(item["where"]), markup_safe(item["reason"]))
        return [*parts, stays]
    if frozen:
        # the line above has told how many
        _, _, reasons = declined_summary(frozen, most=6).partition(": ")
        parts.append(markup_safe(f"{reasons} (-v: each of them)"))
    return parts


def _places(where: list[dict[str, Any]], most: int | None) -> str:
    """`weight:axis` of every member, with ×n where a channel takes n slots of the axis."""
    shown = []
    for place in where[:most]:
        name = f"{place['weight']}:{place['axis']}"
        if place["slots"] > 1:
            name += f" ×{place['slots']}"
        shown.append(name)
    more = len(where) - len(shown)
    if more:
        shown.append(f"… {more} more")
    return ", ".join(shown)
