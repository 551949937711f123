"""`onnx-opt package MODEL -o PLACE`: a deployable bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._package.request import ORT_FORMAT, PackageRequest
from ..command_options import SHAPE, TARGET, data_option, seed_option
from ..console import emit_json, say, shared_options, show

if TYPE_CHECKING:
    from .._package.package import WrittenBundle

_FILE = click.Path(path_type=Path)


@click.command("package")
@click.argument("model", type=_FILE)
@click.option(
    "-o",
    "--out",
    required=True,
    type=_FILE,
    metavar="PLACE",
    help="Folder to make, or an archive: NAME.zip, NAME.tar.gz.",
)
@TARGET
@SHAPE
@data_option("Real inputs for the samples, instead of made-up ones")
@click.option(
    "--preprocess",
    type=_FILE,
    help="How images become inputs. Default: preprocess.toml in the folder of --data.",
)
@click.option(
    "--labels",
    type=_FILE,
    help="Names of the classes, one a line. Default: classes.txt in the folder of --data.",
)
@click.option(
    "--tokenizer",
    type=_FILE,
    help="tokenizer.json. Default: that beside the texts of --data, or the model.",
)
@click.option("--licence", type=_FILE, help="Text of the model's licence.")
@click.option(
    "--node-modules",
    type=_FILE,
    help="Folder with onnxruntime-web, for the page of target web. Default: the variable "
    "ONNX_OPT_NODE_MODULES.",
)
@click.option(
    "--ort",
    type=click.Choice(ORT_FORMAT),
    default="auto",
    show_default=True,
    help="The model in ORT format, too. auto: where it loads faster and runs no slower.",
)
@click.option("--no-bench", is_flag=True, help="Measure no times.")
@click.option(
    "--no-cache",
    is_flag=True,
    help="Measure anew what was measured of this model on this machine.",
)
@seed_option("made-up inputs")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@shared_options
def command(
    no_bench: bool, no_cache: bool, as_json: bool, verbosity: int, **options: Any
) -> None:
    """Pack MODEL with all that it needs to run elsewhere, tested.

    The bundle holds the model, samples with expected outputs, a program for Python that needs
    onnxruntime and numpy alone, an example in C++, for the target web a page, a Dockerfile,
    and manifest.json.
    """
    from .._package.package import package

    request = PackageRequest(bench=not no_bench, cache=not no_cache, **options)
    packaged = package(request)
    if as_json:
        emit_json(as_facts(packaged))
        return
    for warning in packaged.warnings:
        say(f"warning: {warning}")
    if verbosity >= 0:
        for part in bundle_parts(as_facts(packaged)):
            show(part, stderr=True)
    # alone on stdout, so that a script can read it
    click.echo(packaged.path)


def as_facts(packaged: WrittenBundle) -> dict[str, Any]:
    """The JSON form."""
    return {
        "bundle": str(packaged.path),
        "manifest": packaged.manifest,
        "warnings": packaged.warnings,
    }


def bundle_parts(facts: dict[str, Any]) -> list[Any]:
    """Tables of the files, and of how far outputs may be missed."""
    from ..console import markup_safe
    from ..tables import bytes_text, measured_on, milliseconds, plain_table

    manifest = facts["manifest"]
    files = plain_table(None, "file", "bytes", right=("bytes",))
    for name, own in manifest["files"].items():
        files.add_row(markup_safe(name), bytes_text(own["bytes"]))
    columns = ("off by at most", "SQNR dB at least")
    limits = plain_table(None, "output", *columns, right=columns)
    for each in manifest["tolerance"]["outputs"]:
        least = each["min_sqnr_db"]
        limits.add_row(
            markup_safe(each["name"]),
            f"{each['atol']:.3g}",
            "" if least is None else f"{least:.1f}",
        )
    runtime = manifest["runtime"]
    parts: list[Any] = [files, limits]
    parts.append(f"needs ONNX Runtime {runtime['minimum']} ({runtime['because']})")
    figures = manifest["figures"]
    if figures["latency_ms"] is not None:
        words = f"latency {milliseconds(figures['latency_ms'])}"
        if figures["cold_start_ms"] is not None:
            words += f", cold start {milliseconds(figures['cold_start_ms'])}"
        parts.append(words)
        parts.append(measured_on(figures["measured_on"]))
    return parts
