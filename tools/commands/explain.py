"""`onnx-opt explain A B`: whether both models' answers rest on the same parts of the input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..command_options import REPORT, THREADS, data_option, seed_option
from ..console import Progress, emit_json, markup_safe, say, shared_options, show

if TYPE_CHECKING:
    from .._explain.request import ExplainRequest

SHOWN = 10
"""Samples in the table, unless -v asks for all."""


@click.command("explain")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@data_option("Samples to explain", required=True)
@click.option(
    "--method",
    type=click.Choice(("occlusion", "lime", "shap", "ig")),
    default="occlusion",
    show_default=True,
    help="How parts are weighed: by running the models without them, or (ig) by integrated "
    "gradients in torch.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Samples to explain, the first of the data.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=2),
    metavar="N",
    help="Variants of a sample (lime, shap: 512), or points on the path (ig: 32).",
)
@click.option(
    "--output",
    metavar="NAME",
    help="Output to explain. Default: the first with a score for each class, or the only one.",
)
@click.option(
    "--as",
    "form",
    type=click.Choice(("class", "value", "embedding")),
    help="What the output is: scores of classes, one value, or an embedding, whose cosine to that "
    "of A is explained. Default: by its values.",
)
@click.option(
    "--input",
    metavar="NAME",
    help="Input to explain. Default: the first image, row of tokens, frames or columns.",
)
@click.option(
    "--engine",
    type=click.Choice(("own", "library")),
    default="own",
    show_default=True,
    help="library: compute by the packages lime, shap or captum.",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Exit 4 unless the agreement is at least this share of the noise floor.",
)
@THREADS
@seed_option("variants and of the second explanation")
@REPORT
@shared_options
def command(
    a: Path,
    b: Path,
    report: Path | None,
    as_json: bool,
    verbosity: int,
    **options: Any,
) -> None:
    """Compare what A and B look at.

    Each sample of the data is explained for both models: how much each patch, token or column adds
    to the score of the class that A chooses. The agreement of both is shown beside the noise floor,
    which is that of A with itself, explained twice with other seeds.
    """
    from .._explain.request import ExplainRequest
    from .._report.write import check_page

    if report is not None:
        check_page(report)
    request = ExplainRequest(a, b, **options)
    facts, failure = explain_facts(request, report, Progress(verbosity - as_json))
    if as_json and failure is None:
        emit_json(facts)
    elif not as_json:
        for part in explain_parts(facts, verbosity):
            show(part)
        for warning in facts["warnings"]:
            say(f"warning: {warning}")
    # the figures first: a limit that is not met is better understood beside them
    if failure is not None:
        raise failure


def explain_facts(
    request: ExplainRequest, report: Path | None, progress: Progress | None = None
) -> tuple[dict[str, Any], Exception | None]:
    """The JSON form, and the error of a limit that is not met; writes the page if one is named."""
    from .._explain.explain import explained
    from .._explain.shown import shown_samples
    from .._report.write import write_page

    found = explained(request, progress)
    facts = found.to_json()
    facts["shown"] = shown_samples(found)
    if report is not None:
        write_page(report, facts, "explain")
    return facts, found.failure(facts)


def explain_parts(facts: dict[str, Any], verbosity: int) -> list[Any]:
    """Figures, the samples that agree least, and what was explained."""
    explained = facts["input"]
    output = facts["output"]
    words = (
        f"{facts['samples']} samples by {facts['method']}: input '{explained['name']}' "
        f"({explained['kind']}), output '{output['name']}' ({output['form']})"
    )
    parts = [agreement_table(facts), markup_safe(words)]
    same = facts["same_class"]
    if same is not None:
        parts.append(f"same class: {same:.1%} of the samples")
    most = None if verbosity > 0 else SHOWN
    table = sample_table(facts["by_sample"], most)
    return [*parts, "", table]


def agreement_table(facts: dict[str, Any]) -> Any:
    """Agreement, noise floor and their ratio, a row for each figure."""
    from ..tables import plain_table

    figures = ("A and B", "noise floor", "share of it")
    table = plain_table(None, "agreement", *figures, right=figures)
    rows = {"spearman": "Spearman of all parts", "topk": "first 10 % in common"}
    for key, name in rows.items():
        share = facts["share"][key]
        table.add_row(
            name,
            f"{facts['agreement'][key]:.3f}",
            f"{facts['noise_floor'][key]:.3f}",
            "?" if share is None else f"{share:.3f}",
        )
    return table


def sample_table(samples: list[dict[str, Any]], most: int | None) -> Any:
    """The samples, those that agree least first."""
    from ..tables import plain_table

    figures = ("Spearman", "noise floor", "first 10 %", "noise floor ")
    table = plain_table(None, "sample", "class of A", "of B", *figures, right=figures)
    ordered = sorted(samples, key=lambda each: each["agreement"]["spearman"])
    for each in ordered[:most]:
        found = each["agreement"]
        floor = each["noise_floor"]
        table.add_row(
            str(each["sample"]),
            _class_text(each["class"]),
            _class_text(each["class_b"]),
            f"{found['spearman']:.3f}",
            f"{floor['spearman']:.3f}",
            f"{found['topk']:.3f}",
            f"{floor['topk']:.3f}",
        )
    if most is not None and len(ordered) > most:
        more = f"… {len(ordered) - most} more: -v shows them"
        table.add_row(more, *[""] * 6)
    return table


def _class_text(number: int | None) -> str:
    return "" if number is None else str(number)
