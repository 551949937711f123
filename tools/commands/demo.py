"""`onnx-opt demo`: the main job on the trained model that ships with the package."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import Progress, emit_json, say, shared_options, show

PASSES = "simplify, quant(int8)"
"""Pipeline of the demo: the default one, spelled out."""


@click.command("demo")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Keep the result here. Default: it is thrown away.",
)
@click.option(
    "-p",
    "--passes",
    default=PASSES,
    show_default=True,
    metavar="TEXT",
    help="The pipeline.",
)
@shared_options
def command(out: Path | None, passes: str, as_json: bool, verbosity: int) -> None:
    """Optimize a small classifier of real handwritten digits.

    Shows size, latency and accuracy before and after.
    """
    from ...passes._core.scratch import scratch_folder
    from ..optimize import optimize
    from ..tables import result_tables

    here = Path(__file__).resolve().parents[1] / "demo"
    with scratch_folder() as folder:
        result = optimize(
            here / "digits_cnn.onnx",
            passes,
            out=out or Path(folder, "digits_cnn.opt.onnx"),
            data=str(here / "digits_calib.npz"),
            eval_data=str(here / "digits_test.npz"),
            metric="top1",
            progress=Progress(verbosity - as_json),
        )
    if out is None:
        # the folder that it was written to is gone
        result.output_path = None
    if as_json:
        emit_json(result.as_dict())
        return
    click.echo(
        f"onnx-opt digits_cnn.onnx --passes '{result.about['passes']}' --data digits_calib.npz "
        "--eval-data digits_test.npz --metric top1\n"
    )
    for table in result_tables(result, verbosity):
        show(table)
    for warning in result.warnings:
        say(f"warning: {warning}")
