"""`onnx-opt export module:callable -o M.onnx`: torch to ONNX, and state dicts onto ONNX graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import emit_json, say, shared_options, show

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from ...frontends.from_torch import Exported


@click.command("export")
@click.argument("source", required=False)
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    required=True,
    help="The ONNX file to write.",
)
@click.option(
    "--opset",
    type=click.IntRange(18, 23),
    default=None,
    help="ONNX opset.  [default: 21]",
)
@click.option(
    "--dynamic",
    multiple=True,
    metavar="NAME:AXIS=DIM",
    help="A dynamic axis of an input; repeatable.",
)
@click.option(
    "--input-names", metavar="A,B", default="", help="Names of the inputs, in order."
)
@click.option(
    "--output-names", metavar="A,B", default="", help="Names of the outputs, in order."
)
@click.option(
    "--state-dict",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Weights (.safetensors, .pt, .pth) to load before exporting, or to put --onto a graph.",
)
@click.option(
    "--onto",
    metavar="GRAPH.onnx",
    type=click.Path(path_type=Path),
    help="Graph to put the weights of --state-dict onto, instead of exporting.",
)
@click.option(
    "--partial", is_flag=True, help="Accept a state dict that fits only in part."
)
@click.option(
    "--hf",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Export a Hugging Face model folder.",
)
@click.option(
    "--atol",
    type=click.FloatRange(min=0),
    help="Exit 4 unless |torch - onnx| <= atol + rtol |torch| everywhere.",
)
@click.option(
    "--rtol",
    type=click.FloatRange(min=0),
    help="Relative part of that limit. Default of both: by type, 1e-4 and 1e-3 in float32.",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare with torch in ONNX Runtime.",
)
@click.option("--force", is_flag=True, help="Overwrite the output file.")
@shared_options
def command(
    source: str | None,
    out: Path,
    onto: Path | None,
    hf: Path | None,
    force: bool,
    as_json: bool,
    verbosity: int,
    **options: Any,
) -> None:
    """Export a torch model to ONNX, and compare both.

    \b
    SOURCE is one of
      module:callable, file.py:callable  a function returning (module, args) or
                                         (module, args, {"kwargs": …, "dynamic_shapes": …})
      model.pt2                          what torch.export.save wrote
      FOLDER                             a Hugging Face model (needs transformers)

    Needs torch: pip install 'onnx-opt[torch]'.
    """
    from ... import UsageError
    from ...frontends.onnx_file import check_output

    # in Python, since click has no "exactly one of these"
    sources = [item for item in (source, hf, onto) if item is not None]
    if len(sources) != 1:
        found = f"{len(sources)} sources" if sources else "no source"
        raise UsageError(
            "export", found, "give one: file.py:callable, a .pt2, a folder, or --onto"
        )
    # refuses the graph itself as the output; --force does not help there
    check_output(out, None if onto is None else onto)
    if out.exists() and not force:
        raise UsageError(
            str(out), "exists", "pass --force to overwrite it, or choose another name"
        )
    if onto is not None:
        _onto(
            onto,
            out,
            as_json,
            verbosity,
            options,
        )
        return
    _export(
        str(source if hf is None else hf),
        out,
        as_json,
        verbosity,
        options,
    )


def _export(
    source: str, out: Path, as_json: bool, verbosity: int, options: dict[str, Any]
) -> None:
    from .._export import ExportRequest, export

    options["input_names"] = _names(options["input_names"])
    options["output_names"] = _names(options["output_names"])
    request = ExportRequest(source=source, out=out, **options)
    exported, files, state_warnings = export(request)
    facts = export_facts(exported, out, files)
    facts["warnings"] = [*state_warnings, *exported.warnings]
    # on stderr: with --json too, where they are also among the facts
    for warning in facts["warnings"]:
        say(f"warning: {warning}")
    if as_json:
        emit_json(facts)
        return
    if verbosity >= 0:
        for part in account_parts(facts):
            show(part, stderr=True)
    click.echo(out)


def export_facts(exported: Exported, out: Path, files: list[Path]) -> dict[str, Any]:
    """The JSON form, but for the warnings."""
    model = exported.model
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return {
        "output_path": str(out),
        "files": [str(file) for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        "opset": model.opset_imports[""],
        "nodes": model.graph.num_nodes(),
        "params": sum(tensor.size for tensor in tensors if tensor is not None),
        "inputs": [_interface_value(value) for value in model.graph.inputs],
        "outputs": [_interface_value(value) for value in model.graph.outputs],
        "checks": [
            {"sizes": case.sizes, "outputs": _errors(case.differences)}
            for case in exported.cases
        ],
    }


def _interface_value(value: ir.Value) -> dict[str, Any]:
    from .._run.checks import dims_of

    shape = dims_of(value)
    return {
        "name": value.name,
        "dtype": value.dtype.name.lower() if value.dtype else None,
        "shape": None if shape is None else list(shape),
    }


def _errors(differences: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Largest errors by name of the output."""
    return {
        name: {"max_abs": found.max_abs, "max_rel": found.max_rel}
        for name, found in differences.items()
    }


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def account_parts(facts: dict[str, Any]) -> list[Any]:
    """Tables of the file's size, its interface, and its errors against torch."""
    from ..console import markup_safe
    from ..tables import bytes_text, count, plain_table

    interface = plain_table(None, "", "name", "type", "shape")
    for kind in ("inputs", "outputs"):
        for value in facts[kind]:
            dims = ["?"] if value["shape"] is None else map(str, value["shape"])
            shape = f"[{', '.join(dims)}]"
            interface.add_row(
                kind.removesuffix("s"),
                markup_safe(value["name"]),
                value["dtype"],
                markup_safe(shape),
            )
    checks = plain_table(
        "ONNX Runtime against torch",
        "sizes",
        "output",
        "max abs error",
        "max rel error",
        right=("max abs error", "max rel error"),
    )
    for check in facts["checks"]:
        given = [f"{name}={size}" for name, size in check["sizes"].items()]
        sizes = markup_safe(" ".join(given) or "as given")
        for name, figures in check["outputs"].items():
            max_abs = f"{figures['max_abs']:.2e}"
            max_rel = f"{figures['max_rel']:.2e}"
            checks.add_row(sizes, markup_safe(name), max_abs, max_rel)
    line = (
        f"opset {facts['opset']}, {count(facts['nodes'])} nodes, "
        f"{count(facts['params'])} parameters, "
        f"{bytes_text(facts['bytes'])}"
    )
    return [line, interface, checks if facts["checks"] else "not compared with torch"]


def _onto(
    graph: Path, out: Path, as_json: bool, verbosity: int, options: dict[str, Any]
) -> None:
    from ... import UsageError
    from .._export import onto

    if options["state_dict"] is None:
        raise UsageError("--onto", "needs weights", "--state-dict FILE")
    loaded, files = onto(graph, options["state_dict"], out, options["partial"])
    if as_json:
        emit_json(
            {
                "output_path": str(out),
                "files": [str(file) for file in files],
                **loaded.as_dict(),
            }
        )
        return
    if verbosity >= 0:
        say(loaded.summary())
    # tensors that found no place are told unasked
    if verbosity > 0 or loaded.incomplete:
        for line in loaded.lines():
            say(line)
    click.echo(out)
