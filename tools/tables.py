"""Tables for people; the same facts as the JSON forms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from ._run.result import Figures, Result, Step
from .console import markup_safe


def result_tables(result: Result, verbosity: int = 0) -> list[RenderableType]:
    """The main job's account: the passes, then before and after."""
    tables: list[RenderableType] = [pass_account(result.passes)]
    if result.drift_on is not None:
        tables.append(f"SQNR to the original, on {DRIFT_ON[result.drift_on]}")
    tables.append(before_after(result))
    if result.hardware is not None:
        tables.append(measured_on(result.hardware.label))
    tables.append(needed(result.requires))
    if verbosity > 0:
        tables.extend(declined_table(step) for step in result.passes if step.declined)
    return tables


DRIFT_ON = {
    "held-out data": "samples held out of --data, which no pass has seen",
    "evaluation data": "the evaluation data",
    "calibration data": "the calibration data itself: give 32 samples or more and some are held out",
    "synthetic feeds": "synthetic feeds",
}


def plain_table(title: str | None, *columns: str, right: Sequence[str] = ()) -> Table:
    """A table in the house style: left-aligned text, right-aligned figures."""
    table = Table(
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold"
        )
    return table


def pass_account(steps: Sequence[Step]) -> Table:
    """One row a pass: what it changed, the drift after it, its time, what it declined and the first
    reasons.
    """
    table = plain_table(
        "passes",
        "pass",
        "changed",
        "SQNR dB",
        "seconds",
        "declined",
        right=("changed", "SQNR dB", "seconds"),
    )
    for step in steps:
        drift = (
            "rolled back"
            if step.rolled_back
            else ""
            if step.drift is None
            else decibels(step.drift["sqnr_db"])
        )
        table.add_row(
            markup_safe(step.text),
            str(step.changed),
            drift,
            f"{step.seconds:.2f}",
            markup_safe(declined_summary(step.declined)),
        )
    return table


def loss_table(losses: Sequence[Mapping[str, Any]], most: int | None = None) -> Table:
    """What each layer lost, in dB (fewer is worse), the worst first: its own weights, its own
    input, and in all.
    """
    table = plain_table(
        "loss by layer, worst first (SQNR in dB)",
        "pass",
        "layer",
        "op",
        "weight",
        "activation",
        "accumulated",
        right=("weight", "activation", "accumulated"),
    )
    for loss in losses[:most]:
        figures = [
            "" if loss[key] is None else decibels(loss[key])
            for key in ("weight_sqnr_db", "activation_sqnr_db", "sqnr_db")
        ]
        table.add_row(loss["pass"], markup_safe(loss["layer"]), loss["op"], *figures)
    if most is not None and len(losses) > most:
        table.add_row("…", f"{len(losses) - most} more: -v shows them", "", "", "", "")
    return table


def declined_summary(declined: Sequence[Mapping[str, str]], most: int = 2) -> str:
    """`12: already quantized (10); rank 1 (2)`: how many, and the commonest reasons with their
    counts.
    """
    if not declined:
        return ""
    reasons = Counter(item["reason"] for item in declined).most_common()
    shown = "; ".join(f"{reason} ({count})" for reason, count in reasons[:most])
    return f"{len(declined)}: {shown}" + ("; …" if len(reasons) > most else "")


def declined_table(step: Step) -> Table:
    """Everything that one pass declined, with its reason."""
    table = plain_table(f"declined by {markup_safe(step.name)}", "where", "reason")
    for item in step.declined:
        table.add_row(markup_safe(item["where"]), markup_safe(item["reason"]))
    return table


def before_after(result: Result) -> Table:
    """Size, parameters, nodes, work, latency and metric, before and after, with the ratio."""
    table = plain_table(
        "result",
        "",
        "before",
        "after",
        "after/before",
        right=("before", "after", "after/before"),
    )
    for label, name, text in ROWS:
        before, after = getattr(result.input, name), getattr(result.output, name)
        if before is not None or after is not None:
            table.add_row(label, text(before), text(after), ratio(before, after))
    if result.metric is not None:
        first, second = result.metric["before"], result.metric["after"]
        table.add_row(
            markup_safe(result.metric["name"]),
            f"{first:.4f}",
            f"{second:.4f}",
            f"{second - first:+.4f}",
        )
    return table


def measured_on(label: str) -> str:
    """The line below figures that are one machine's."""
    return f"on {markup_safe(label)}"


def needed(requires: Mapping[str, Any]) -> str:
    """What a file asks of a runtime: `needs ONNX Runtime 1.23 or newer (Cast from INT4); opset 21,
    IR 10`.
    """
    release, because = requires["onnxruntime"], markup_safe(requires["because"])
    runtime = (
        f"ONNX Runtime {release} or newer"
        if release
        else "an ONNX Runtime, not known which"
    )
    return (
        f"needs {runtime} ({because}); opset {requires['opset'] or 'none'}, IR "
        f"{requires['ir_version']}"
    )


def size(value: int | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return "?"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value} B"


def count(value: int | None) -> str:
    """A count with thousands separated."""
    return "?" if value is None else f"{value:,}"


def milliseconds(value: float | None) -> str:
    """Three significant digits."""
    return "?" if value is None else f"{value:.3g} ms"


def decibels(value: float | None) -> str:
    """One decimal; `exact` where there is no difference at all."""
    if value is None:
        return "?"
    return "exact" if value == math.inf else f"{value:.1f}"


def ratio(before: float | None, after: float | None) -> str:
    """after/before with three decimals; blank where unknown."""
    return f"{after / before:.3f}" if before and after is not None else ""


ROWS = (
    ("bytes", "bytes", size),
    ("parameters", "params", count),
    ("nonzero", "nonzero", count),
    ("nodes", "nodes", count),
    ("MACs", "macs", count),
    ("latency", "latency_ms", milliseconds),
)


def pass_list(passes: Sequence[Mapping[str, Any]]) -> Table:
    """The registry: one row a pass."""
    table = plain_table(None, "pass", "effect", "does", "options")
    for item in passes:
        options = ", ".join(option["name"] for option in item["options"])
        table.add_row(
            markup_safe(item["pass"]),
            item["effect"],
            markup_safe(item["summary"]),
            markup_safe(options),
        )
    return table


def pass_detail(item: Mapping[str, Any]) -> list[RenderableType]:
    """One pass: its docstring, then its options."""
    parts: list[RenderableType] = [
        f"[bold]{markup_safe(item['pass'])}[/bold] ({item['effect']})",
        "",
    ]
    parts.extend(markup_safe(line) for line in item["description"].splitlines())
    if not item["options"]:
        return [*parts, "", "No options."]
    table = plain_table(None, "option", "type", "default", "meaning")
    for option in item["options"]:
        cells = (
            option["name"],
            option["type"],
            default_text(option["default"]),
            option["help"],
        )
        table.add_row(*map(markup_safe, cells))
    return [*parts, "", table]


def default_text(value: Any) -> str:
    """A default as pipeline text spells it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(str, value)) + "]"
    return "''" if value == "" else str(value)


def figures_table(figures: Figures) -> Table:
    """One model's figures."""
    table = plain_table(None, "", "figure", right=("figure",))
    for label, name, text in ROWS:
        if getattr(figures, name) is not None:
            table.add_row(label, text(getattr(figures, name)))
    return table
