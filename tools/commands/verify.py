"""`onnx-opt verify A B`: distance of B's outputs from A's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..command_options import THREADS, data_option, metric_option, seed_option
from ..console import emit_json, say, shared_options, show

if TYPE_CHECKING:
    from ...runtime.session import Session
    from .._compare import Closeness, Comparison


@click.command("verify")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@data_option("Inputs to compare on, instead of made-up ones")
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Exit 4 if the signal-to-noise ratio over all outputs is below this (dB).",
)
@click.option(
    "--atol",
    type=click.FloatRange(min=0),
    help="Exit 4 unless |a - b| <= atol + rtol |a| everywhere; 0 if only --rtol is given.",
)
@click.option(
    "--rtol",
    type=click.FloatRange(min=0),
    help="Relative part of that limit; 0 if only --atol is given.",
)
@metric_option()
@THREADS
@seed_option("made-up inputs")
@shared_options
def command(
    a: Path,
    b: Path,
    data: str | list[str] | None,
    min_sqnr: float | None,
    atol: float | None,
    rtol: float | None,
    metric: str | None,
    threads: int,
    seed: int,
    as_json: bool,
    verbosity: int,
) -> None:
    """Compare the outputs of model B with those of model A.

    The exit code is 4 if a limit that was given is not met, or if values became infinite or NaN.
    """
    from ... import CheckError

    comparison = compare(a, b, data, atol, rtol, threads, seed, metric)
    problem = comparison.closeness.problem(min_sqnr)
    facts = as_dict(comparison, a, b, problem)
    if as_json and not problem:
        emit_json(facts)
    elif not as_json:
        for part in comparison_parts(comparison, a, b):
            show(part)
        for warning in comparison.warnings:
            say(f"warning: {warning}")
    # the figures first: a limit that is not met is better understood beside them
    if problem:
        failure = CheckError(
            str(b),
            problem,
            "relax the limit, or see the drift that `onnx-opt run` reports for each pass",
        )
        failure.account = facts
        raise failure


def compare(
    a: Path,
    b: Path,
    data: Any,
    atol: float | None,
    rtol: float | None,
    threads: int,
    seed: int,
    metric: str | Callable[..., Any] | None = None,
) -> Comparison:
    """Run both models on the same feeds, and score both by the metric."""
    import dataclasses

    from ...runtime.drift_words import ON_DATA, ON_SYNTHETIC
    from ...runtime.worker import Worker
    from .._compare import Closeness, Side, compared, feeds_for
    from .._evaluate import scored_side_by_side

    with Worker() as worker:
        first = Side.of(worker, a, threads)
        second = Side.of(worker, b, threads)
        require_same_interface(first.session, second.session)
        feeds = feeds_for(first.session, data, seed)
        bounds = ON_SYNTHETIC if data is None else ON_DATA
        found = compared(worker, first, second, Closeness(atol, rtol, bounds), feeds)
        found = dataclasses.replace(found, is_made_up=data is None)
        if metric is None:
            return found
        scores = scored_side_by_side(first.session, second.session, data, metric)
        return dataclasses.replace(found, metric=scores)


def require_same_interface(first: Session, second: Session) -> None:
    """Refuse models with other inputs or outputs. Errors: RefusedError."""
    from ... import RefusedError

    for one, other in ((first, second), (second, first)):
        for kind in ("inputs", "outputs"):
            problem = _other_port(kind, one, other)
            if problem is not None:
                have = [f"{s.path.name}: {_ports_text(kind, s)}" for s in (one, other)]
                fix = (
                    f"compare models with the same {kind}; these have {'; '.join(have)}"
                )
                raise RefusedError(other.path.name, problem, fix)


def _other_port(kind: str, one: Session, other: Session) -> str | None:
    """The first input or output of `one` that `other` lacks or has of another type."""
    known = {info.name: info for info in getattr(other, kind)}
    word = kind.removesuffix("s")
    for info in getattr(one, kind):
        same = known.get(info.name)
        if same is None:
            return f"has no {word} '{info.name}', which {one.path.name} has"
        # shapes of outputs may be told by one file and not by the other
        if kind == "outputs":
            continue
        if (same.dtype, len(same.shape)) != (info.dtype, len(info.shape)):
            return (
                f"its input '{info.name}' is {same.dtype} of rank {len(same.shape)}, that of "
                f"{one.path.name} {info.dtype} of rank {len(info.shape)}"
            )
    return None


def _ports_text(kind: str, session: Session) -> str:
    """`x float32 [batch, 8], mask …`: the inputs or outputs of a model."""
    from .._run.checks import shape_text

    ports = getattr(session, kind)
    return ", ".join(f"{p.name} {p.dtype} {shape_text(p.shape)}" for p in ports)


def as_dict(
    comparison: Comparison, a: Path, b: Path, problem: str | None
) -> dict[str, Any]:
    """The JSON form."""
    import dataclasses

    from ...runtime.drift_words import worst

    closeness = comparison.closeness
    drifts = closeness.meter.per_output()
    quantized = {
        side: None if found is None else found.to_json()
        for side, found in comparison.quantized.items()
    }
    words = closeness.words()
    outputs = {
        name: {**dataclasses.asdict(drift), "word": words[name]}
        for name, drift in drifts.items()
    }
    overall = dataclasses.asdict(closeness.meter.overall())
    facts = {
        "a": str(a),
        "b": str(b),
        "batches": closeness.meter.batches,
        "outputs": outputs,
        "overall": {**overall, "word": worst(words.values())},
        "outside_tolerance": closeness.outside if closeness.elementwise else None,
        "within": problem is None,
        "problem": problem,
        "hardware": comparison.hardware.to_json(),
        "quantized": quantized,
        "warnings": comparison.warnings,
    }
    if comparison.metric is not None:
        facts["metric"] = comparison.metric
    return facts


def comparison_parts(comparison: Comparison, a: Path, b: Path) -> list[Any]:
    """The table, the metric, the CPU, and each quantized file's weight pairs."""
    from ..console import markup_safe
    from ..tables import measured_on

    parts = [drift_table(comparison.closeness)]
    metric = comparison.metric
    if metric is not None:
        scores = f"{metric['a']:.6g}, {metric['b']:.6g}"
        parts.append(markup_safe(f"{metric['name']} of A and B: {scores}"))
    parts.append(measured_on(comparison.hardware.label))
    for path, each in zip((a, b), comparison.quantized.values(), strict=True):
        if each is not None and each.pairs.words():
            parts.append(markup_safe(f"{path}: {each.pairs.words()}"))
    return parts


def drift_table(closeness: Closeness) -> Any:
    """One row an output."""
    from ...runtime.drift_words import worst
    from ..console import markup_safe
    from ..tables import decibels, plain_table

    figures = ("SQNR dB", "cosine", "max abs", "max rel", "top-1 agreement")
    table = plain_table(None, "output", *figures, "in a word", right=figures)
    words = closeness.words()
    rows = list(closeness.meter.per_output().items())
    together = "all together"
    if len(rows) > 1:
        rows.append((together, closeness.meter.overall()))
        words[together] = worst(words.values()) or ""
    for name, drift in rows:
        top1 = "" if drift.top1_agreement is None else f"{drift.top1_agreement:.4f}"
        table.add_row(
            markup_safe(name),
            decibels(drift.sqnr_db),
            f"{drift.cosine:.6f}",
            f"{drift.max_abs:.3g}",
            f"{drift.max_rel:.3g}",
            top1,
            words[name],
        )
    return table
