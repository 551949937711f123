"""`onnx-opt report RUN.json`: the page of a run, from its JSON."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import emit_json, shared_options


@click.command("report")
@click.argument("account", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Where to write. Default: ACCOUNT's stem + .html.",
)
@shared_options
def command(account: Path, out: Path | None, as_json: bool, verbosity: int) -> None:
    """Write the page of an account in JSON.

    ACCOUNT is what a run, bench, inspect, diff or explain printed with --json; - is standard input.
    The page is one file that needs no network: the same that --report writes at once.
    """
    from .._report.stored import page_from_file

    path, kind = page_from_file(account, out)
    if as_json:
        emit_json({"path": str(path), "kind": kind})
        return
    click.echo(path)
