"""`onnx-opt reduce MODEL --check CMD`: a small model that still shows a fault."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import emit_json, say, shared_options


@click.command("reduce")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--check",
    "command_text",
    metavar="CMD",
    help="Command that exits with 0 if a model still shows the fault. {} stands for the model's "
    "path, which else comes last; no shell.",
)
@click.option(
    "--fails-with-passes",
    "passes",
    metavar="TEXT",
    help="Instead of a command: the fault is that this pipeline fails, in the same way.",
)
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    help="The ONNX file to write; its text goes beside it, as .txt.  "
    "[default: MODEL's stem + .reduced.onnx]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60,
    show_default=True,
    help="Seconds that CMD may take; beyond, the model counts as not showing the fault.",
)
@click.option(
    "--max-checks",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Most models to try.",
)
@shared_options
def command(
    model: Path,
    command_text: str | None,
    passes: str | None,
    out: Path | None,
    timeout: float,
    max_checks: int,
    as_json: bool,
    verbosity: int,
) -> None:
    """Shrink MODEL to a small one that still shows a fault.

    Prints the small model as text, for an issue.

    \b
      onnx-opt reduce model.onnx --fails-with-passes simplify
      onnx-opt reduce model.onnx --check 'python still_wrong.py {}' -o small.onnx

    Outputs, nodes, subgraphs, constants, lengths and names are removed for as long as the fault
    shows.
    """
    from ..reduce import reduce

    def tell(words: str) -> None:
        if verbosity > 0:
            say(words)

    reduced = reduce(
        model,
        check=command_text,
        passes=passes,
        out=out,
        timeout=timeout,
        max_checks=max_checks,
        tell=tell,
    )
    if as_json:
        emit_json(reduced.to_json())
        return
    click.echo(reduced.text)
    if verbosity >= 0:
        say(str(reduced))
