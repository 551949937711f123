"""Tables for people, with the same facts as the JSON forms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from ._run.clock import TimedStep
from ._run.result import Budget, Remaining, RunAccount, Step
from .console import markup_safe


def result_tables(result: RunAccount, verbosity: int = 0) -> list[RenderableType]:
    """The main job's account: the passes, then before and after."""
    tables: list[RenderableType] = [pass_account(result.passes)]
    if result.drift_on is not None:
        data = DRIFT_ON[result.drift_on]
        count = f" ({result.drift['samples']})" if result.drift else ""
        tables.append(
            f"SQNR to the original, on {data}{count}{_drift_words(result.drift)}"
        )
    tables.append(before_after(result))
    if result.metric is not None and "cached" in result.metric:
        tables.append(found_in_cache(result.metric["cached"]))
    if result.hardware is not None:
        label = result.hardware.label
        tables.append(measured_on(label) + _samples_a_run(result.latency_samples))
    if result.requires is not None:
        tables.append(needed(result.requires))
    if result.about["changes"]:
        tables.append(changed_besides(result.about["changes"]))
    if result.budgets:
        is_share = result.metric is not None and "drop_share" in result.metric
        tables.append(budget_table(result.budgets, is_share))
    if verbosity <= 0:
        return tables
    if result.largest:
        tables.append(largest_table(result.largest))
    tables.append(time_table(result.time))
    for step in result.passes:
        if step.chosen:
            tables.append(chosen_table(step.name, step.chosen))
        if step.declined:
            table = declined_table(step.name, step.declined)
            tables.append(table)
    return tables


def _drift_words(drift: Mapping[str, Any] | None) -> str:
    """The result's own drift, as `: 21.3 dB, cosine 0.9963, largest output alike 98 %: close`."""
    if drift is None:
        return ""
    figures = [f"cosine {drift['cosine']:.4f}"]
    if math.isfinite(drift["sqnr_db"]):
        figures.insert(0, f"{drift['sqnr_db']:.1f} dB")
    if drift["agreement"] is not None:
        figures.append(f"largest output alike {drift['agreement']:.0%}")
    return f": {', '.join(figures)}: {drift['word']}"


DRIFT_ON = {
    "held-out data": "samples held out of --data, which no pass has seen",
    "evaluation data": "the evaluation data",
    "calibration data": (
        "the calibration data itself: give 32 samples or more and some are held out"
    ),
    "synthetic feeds": "synthetic feeds",
}
"""Words for the data that drift was measured on, by `RunAccount.drift_on`."""


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
        # folded, not cut: names must be legible to the last letter
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold"
        )
    return table


def pass_account(steps: Sequence[Step]) -> Table:
    """One row a pass: its changes, the drift after it, its time, and what it declined."""
    table = plain_table(
        "passes",
        "pass",
        "changed",
        "SQNR dB",
        *(["metric"] if any(step.metric is not None for step in steps) else []),
        "seconds",
        "declined",
        right=("SQNR dB", "metric", "seconds"),
    )
    for step in steps:
        cells = [markup_safe(step.text), _changed_text(step), _drift_text(step)]
        if step.metric is not None:
            cells.append(f"{step.metric:.4f}")
        cells.append(f"{step.seconds:.2f}")
        table.add_row(*cells, markup_safe(declined_summary(step.declined)))
    return table


def _changed_text(step: Step) -> str:
    """`1 layer`, `12 layers`."""
    unit = step.unit.removesuffix("s") if step.changed == 1 else step.unit
    return f"{step.changed} {unit}"


def _drift_text(step: Step) -> str:
    if step.rolled_back:
        return "rolled back"
    if step.drift is None:
        return "not measured"
    return decibels(step.drift["sqnr_db"])


def budget_table(budgets: Mapping[str, Budget], is_share: bool = False) -> Table:
    """Limits that were set, what was measured, and whether they are kept.

    `is_share`: the drop is one of the score before, and shown in per cent.
    """
    table = plain_table(
        "budgets", "", "limit", "measured", "kept", right=("limit", "measured")
    )
    words = {True: "yes", False: "no", None: "not known"}
    for name, (limit, value, kept) in budgets.items():
        scale, unit = 1, ""
        if is_share and name == "max_drop":
            scale, unit = 100, " %"
        measured = "not measured"
        if value is not None:
            measured = f"{scale * value:.4g}{unit}"
        most = f"{scale * limit:g}{unit}"
        table.add_row(name.replace("_", "-"), most, measured, words[kept])
    return table


def largest_table(parts: Sequence[Remaining]) -> Table:
    """The largest tensors of the result, why they stayed, and the pass that would shrink them."""
    table = plain_table(
        "largest parts left",
        "tensor",
        "layer",
        "bytes",
        "why",
        "shrunk by",
        right=("bytes",),
    )
    for part in parts:
        table.add_row(
            markup_safe(part.tensor),
            markup_safe(part.layer),
            bytes_text(part.bytes),
            markup_safe(part.why),
            markup_safe(part.pass_text or ""),
        )
    return table


SHOWN_SECONDS = 1.0
"""Seconds below which a step is left out of the table of time."""


def time_table(whole: TimedStep) -> Table:
    """Steps of a run that took a second or more, inner ones indented."""
    table = plain_table(
        "time", "step", "seconds", "CPU seconds", right=("seconds", "CPU seconds")
    )
    waiting = [(0, whole)]
    while waiting:
        depth, step = waiting.pop()
        name = markup_safe("  " * depth + step.name)
        table.add_row(name, f"{step.seconds:.2f}", f"{step.cpu_seconds:.2f}")
        inner = [each for each in step.steps.values() if each.seconds >= SHOWN_SECONDS]
        waiting += [(depth + 1, each) for each in reversed(inner)]
    return table


def loss_table(losses: Sequence[Mapping[str, Any]], most: int | None = None) -> Table:
    """Loss of each layer in dB (fewer is worse), worst first: own weights, own input, in all.

    `most`: rows to show; None for all.
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
        keys = ("weight_sqnr_db", "activation_sqnr_db", "sqnr_db")
        figures = ["" if loss[key] is None else decibels(loss[key]) for key in keys]
        table.add_row(loss["pass"], markup_safe(loss["layer"]), loss["op"], *figures)
    if most is not None and len(losses) > most:
        table.add_row("…", f"{len(losses) - most} more: -v shows them", "", "", "", "")
    return table


def declined_summary(declined: Sequence[Mapping[str, str]], most: int = 2) -> str:
    """Number of items, and the commonest reasons: `12: already quantized (10); rank 1 (2)`."""
    if not declined:
        return ""
    reasons = Counter(item["reason"] for item in declined).most_common()
    shown = [f"{reason} ({count})" for reason, count in reasons[:most]]
    if len(reasons) > most:
        shown.append("…")
    return f"{len(declined)}: {'; '.join(shown)}"


def declined_table(name: str, declined: Sequence[Mapping[str, str]]) -> Table:
    """Everything that the pass of that name declined, with its reason."""
    table = plain_table(f"declined by {markup_safe(name)}", "where", "reason")
    for item in declined:
        table.add_row(markup_safe(item["where"]), markup_safe(item["reason"]))
    return table


def chosen_table(name: str, chosen: Sequence[Mapping[str, str]]) -> Table:
    """Everything that the pass of that name decided itself, with its reason."""
    table = plain_table(f"chosen by {markup_safe(name)}", "where", "choice", "reason")
    for item in chosen:
        table.add_row(
            *(markup_safe(item[key]) for key in ("where", "choice", "reason"))
        )
    return table


def before_after(result: RunAccount) -> Table:
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
        before = getattr(result.input, name)
        after = getattr(result.output, name)
        # unknown in both: a row of question marks tells nothing
        if before is not None or after is not None:
            change = "" if name == "bits" else ratio(before, after)
            # of pairs: that of the medians may contradict the verdict
            ratios = {"latency_ms": result.latency, "step_ms": result.step_latency}
            if ratios.get(name) is not None:
                change = str(ratios[name])
            # with a cache, the first feed is a prefill
            if name == "latency_ms" and result.input.step_ms is not None:
                label = "latency: prefill"
            table.add_row(label, text(before), text(after), change)
    if result.metric is not None:
        first = result.metric["before"]
        second = result.metric["after"]
        change = f"{second - first:+.4f}"
        # budgets are on the share
        if "drop_share" in result.metric:
            change += f" ({100 * result.metric['drop_share']:+.2f} %)"
        # a difference, where the other rows have a ratio: budgets are on the drop
        table.add_row(
            markup_safe(result.metric["name"]),
            f"{first:.4f}",
            f"{second:.4f}",
            change,
        )
    return table


def found_in_cache(which: Sequence[str]) -> str:
    """Say which scores an earlier run computed."""
    return f"metric {' and '.join(which)}: from an earlier run; --no-cache computes it again"


def measured_on(label: str) -> str:
    """Line below figures that are one machine's."""
    return f"on {markup_safe(label)}"


def _samples_a_run(count: int | None) -> str:
    """Continue that line with the batch that latency is of; nothing where it was not measured."""
    if count is None:
        return ""
    return f"; latency: {count} {'sample' if count == 1 else 'samples'} a run"


def needed(requires: Mapping[str, Any]) -> str:
    """Needs of a file: `needs ONNX Runtime 1.23 or newer (Cast from INT4); opset 21, IR 10`."""
    release = requires["onnxruntime"]
    because = markup_safe(requires["because"])
    runtime = "an ONNX Runtime, not known which"
    if release:
        runtime = f"ONNX Runtime {release} or newer"
    return (
        f"needs {runtime} ({because}); opset {requires['opset'] or 'none'}, IR "
        f"{requires['ir_version']}"
    )


def changed_besides(changes: Sequence[str]) -> str:
    """Changes that no pass made: `besides the passes: Constant nodes made initializers: 3; …`."""
    return f"besides the passes: {markup_safe('; '.join(changes))}"


def bytes_text(value: int | None) -> str:
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


def bits_text(value: Mapping[str, int] | None) -> str:
    """Weights by their bits: `8: 5,000, 32: 120`."""
    if value is None:
        return "?"
    return ", ".join(f"{bits}: {number:,}" for bits, number in value.items())


def milliseconds(value: float | None) -> str:
    """Three significant digits."""
    return "?" if value is None else f"{value:.3g} ms"


def decibels(value: float | None) -> str:
    """One decimal; `exact` where there is no difference at all."""
    if value is None:
        return "?"
    # infinite: there is no noise
    return "exact" if value == math.inf else f"{value:.1f}"


def ratio(before: float | None, after: float | None) -> str:
    """after/before with three decimals; blank where unknown."""
    # nothing before, such as 0 MACs, has no ratio
    if not before or after is None:
        return ""
    return f"{after / before:.3f}"


ROWS = (
    ("bytes", "bytes", bytes_text),
    ("zipped", "zipped_bytes", bytes_text),
    ("parameters", "params", count),
    ("nonzero", "nonzero", count),
    ("bits: weights", "bits", bits_text),
    ("nodes", "nodes", count),
    ("MACs", "macs", count),
    ("latency", "latency_ms", milliseconds),
    ("latency: one token", "step_ms", milliseconds),
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
    # line by line: rich would fold the sections into one paragraph otherwise
    parts.extend(markup_safe(line) for line in item["description"].splitlines())
    if not item["options"]:
        return [*parts, "", "No options."]
    table = plain_table(None, "option", "type", "default", "meaning")
    for option in item["options"]:
        default = default_text(option["default"])
        cells = (option["name"], option["type"], default, option["help"])
        table.add_row(*map(markup_safe, cells))
    return [*parts, "", table]


def default_text(value: Any) -> str:
    """Default of an option as pipeline text spells it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(str, value))}]"
    return "''" if value == "" else str(value)


def front_table(search: Mapping[str, Any]) -> Table:
    """The front of a search, the smallest first; the chosen one is marked."""
    front = search["front"]
    known = {
        name: figure
        for name, figure in TRADED.items()
        if name not in OF_TIME or any(point[figure[0]] is not None for point in front)
    }
    title = f"{search['trials']} trials; those that no other beats"
    # of one that was trained at the end there is no trial
    if any(point["recipe"] == search["recipe"] for point in front):
        title += ", and the chosen one (*)"
    table = plain_table(
        title,
        "",
        "bytes",
        *known,
        "recipe",
        right=("bytes", *known),
    )
    for point in front:
        cells = ["*" if point["recipe"] == search["recipe"] else ""]
        cells.append(f"{point['bytes']:,}")
        for key, digits in known.values():
            cells.append(_number(point[key], digits))
        cells.append(markup_safe(_shortened(point["recipe"])))
        table.add_row(*cells)
    return table


TRADED = {
    "latency/before": ("latency_ratio", 2),
    "ms": ("latency_ms", 2),
    "predicted ms": ("predicted_ms", 2),
    "drop": ("drop", 4),
    "SQNR dB": ("sqnr_db", 1),
}
"""Figures of a point by column, with their digits."""

OF_TIME = ("latency/before", "ms", "predicted ms")
"""Columns that a search without times leaves out."""


def passed_over_table(search: Mapping[str, Any]) -> Table | None:
    """Points of the front that seem better than the chosen one, each with the reason for which it
    was not taken; None of none.
    """
    points = [point for point in search["front"] if point["reason"] is not None]
    if not points:
        return None
    table = plain_table(
        f"{BETTER[search['objective']]} ones within the budget on the half that the search saw, "
        "not taken",
        "bytes",
        "reason",
        right=("bytes",),
    )
    for point in points:
        table.add_row(f"{point['bytes']:,}", markup_safe(point["reason"]))
    return table


BETTER = {
    "size": "smaller",
    "latency": "faster",
    "macs": "cheaper",
    "accuracy": "more accurate",
}
"""Word for a better point, by the objective of a search."""


def split_table(search: Mapping[str, Any]) -> Table:
    """The chosen recipe on the half that the search saw, and on the other."""
    halves = search["split"]
    measures = SCORED if halves["unseen"]["drop"] is not None else COMPARED
    table = plain_table(
        f"the chosen recipe (*), by {search['measured_by']}",
        "half of the data",
        *measures,
        right=tuple(measures),
    )
    words = {"seen": "seen by the search", "unseen": "never seen: the verdict"}
    for key, label in words.items():
        cells = [label]
        for figure, digits in measures.values():
            cells.append(_number(halves[key][figure], digits))
        table.add_row(*cells)
    return table


SCORED = {
    "metric": ("metric", 4),
    "drop": ("drop", 4),
    "least drop told from none": ("smallest_difference", 4),
}
"""Columns of a recipe that was scored: the figure of each, and its digits."""

COMPARED = {"SQNR dB": ("sqnr_db", 1)}
"""The column of one whose outputs were compared alone."""


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


LONGEST_RECIPE = 120
"""Characters of a recipe in a table; the whole text is in the JSON form."""


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_RECIPE else f"{text[:LONGEST_RECIPE]}…"
