"""`onnx-opt diff A B`: what two models differ in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..command_options import HTML
from ..console import emit_json, markup_safe, shared_options, show

SHOWN = 10
"""Rows of each table, unless -v asks for all."""


@click.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@HTML
@shared_options
def command(a: Path, b: Path, html: Path | None, as_json: bool, verbosity: int) -> None:
    """Show the differences of model B from model A.

    Inputs and outputs, operators, nodes, weights and by how much. Nothing is run: `onnx-opt verify`
    compares outputs.
    """
    from .._report.write import check_page

    if html is not None:
        check_page(html, "--html")
    facts = compared(a, b, html)
    if as_json:
        emit_json(facts)
        return
    for part in diff_parts(facts, verbosity):
        show(part)


def compared(a: Path, b: Path, html: Path | None) -> dict[str, Any]:
    """The JSON form; writes the page where one is asked for."""
    from .._diff.difference import difference
    from .._report.diff_graph import diff_graph
    from .._report.write import write_page

    found = difference(a, b)
    facts = found.as_dict()
    if html is not None:
        write_page(html, facts, "diff", diff_graph(found))
    return facts


def diff_parts(facts: dict[str, Any], verbosity: int) -> list[Any]:
    """Tables and lines; with -v every node and weight."""
    most = None if verbosity > 0 else SHOWN
    nodes = facts["nodes"]
    weights = facts["weights"]
    parts: list[Any] = [figure_table(facts), ""]
    for change in (*facts["interface"], *facts["file"]):
        line = _short(change)
        parts.append(markup_safe(line))
    parts += ["", node_line(nodes)]
    tables = []
    changed_ops = [each for each in facts["ops"] if each["a"] != each["b"]]
    if changed_ops:
        table = op_table(changed_ops)
        tables.append(table)
    for kind in KINDS:
        if nodes[kind]:
            table = node_table(kind, nodes[kind], most)
            tables.append(table)
    if weights:
        table = weight_table(weights, most)
        tables.append(table)
    for table in tables:
        parts += ["", table]
    return parts


KINDS = ("added", "removed", "changed")
"""Kinds of nodes that are listed."""


def node_line(nodes: dict[str, Any]) -> str:
    """`nodes: 3 added, 1 removed, 2 changed, 40 the same`."""
    counts = []
    for kind in KINDS:
        number = len(nodes[kind])
        counts.append(f"{number} {kind}")
    same = nodes["same"]
    return f"nodes: {', '.join(counts)}, {same} the same"


LONGEST = 160
"""Characters of a change that are shown: metadata may hold whole documents."""


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    start = text[:LONGEST]
    return f"{start}…"


def figure_table(facts: dict[str, Any]) -> Any:
    """Size, parameters, nodes and work of both."""
    from ..tables import ROWS, plain_table, ratio

    figures = ("A", "B", "B/A")
    table = plain_table(None, "", *figures, right=figures)
    before = facts["a"]["figures"]
    after = facts["b"]["figures"]
    for name, key, text in ROWS:
        old = before.get(key)
        new = after.get(key)
        # unknown in both
        if old is None and new is None:
            continue
        table.add_row(
            name,
            text(old),
            text(new),
            ratio(old, new),
        )
    return table


def op_table(ops: list[dict[str, Any]]) -> Any:
    """Operators whose counts differ."""
    from ..tables import plain_table

    table = plain_table(None, "operator", "A", "B", "change", right=("A", "B"))
    for each in ops:
        change = f"{each['b'] - each['a']:+d}"
        table.add_row(markup_safe(each["op"]), str(each["a"]), str(each["b"]), change)
    return table


def node_table(kind: str, nodes: list[dict[str, Any]], most: int | None) -> Any:
    """Nodes that are added, removed or changed."""
    from ..tables import plain_table

    table = plain_table(None, kind, "what differs")
    for each in nodes[:most]:
        words = markup_safe("; ".join(each["changes"]))
        table.add_row(markup_safe(each["layer"]), words)
    if most is not None and len(nodes) > most:
        table.add_row(f"… {len(nodes) - most} more: -v shows them", "")
    return table


def weight_table(weights: list[dict[str, Any]], most: int | None) -> Any:
    """Weights that differ, the farthest first."""
    from ..tables import plain_table

    figures = ("distance", "max abs", "differ", "zeros")
    table = plain_table(
        "weights that differ (distance: share of the norm)",
        "weight",
        *figures,
        "type",
        right=figures,
    )
    for each in weights[:most]:
        kinds = dict.fromkeys([each["a"]["dtype"] or "?", each["b"]["dtype"] or "?"])
        table.add_row(
            markup_safe(each["weight"]),
            *_distances(each),
            f"{each['changed']:.1%}",
            f"{each['zeros_a']:.1%} to {each['zeros_b']:.1%}",
            markup_safe(" to ".join(kinds)),
        )
    if most is not None and len(weights) > most:
        more = f"… {len(weights) - most} more: -v shows them"
        table.add_row(more, "", "", "", "", "")
    return table


def _distances(weight: dict[str, Any]) -> tuple[str, str]:
    """Distance and largest difference; shapes where those differ."""
    before = weight["a"]["shape"]
    after = weight["b"]["shape"]
    if before != after:
        shapes = markup_safe(f"{before} to {after}")
        return shapes, ""
    relative = weight["relative"]
    distance = "?"
    if relative is not None:
        distance = f"{relative:.2%}"
    most = weight["max_abs"]
    return distance, f"{most:.3g}"
