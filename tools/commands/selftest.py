"""`onnx-opt selftest BUNDLE`: files, runtime, provider and samples of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..command_options import THREADS
from ..console import emit_json, shared_options, show


@click.command("selftest")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--provider",
    default="auto",
    show_default=True,
    help="auto: the best of the bundle's that is here; cpu, cuda, tensorrt, openvino, …: that one.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Time to measure for.",
)
@THREADS
@shared_options
def command(
    bundle: Path,
    provider: str,
    threads: int,
    seconds: float,
    as_json: bool,
    verbosity: int,
) -> None:
    """Check a bundle: its files, the runtime, the provider, samples.

    BUNDLE is a folder or an archive. Exit code 4 if a file is not the one packaged, the runtime is
    too old, the provider is not there or runs nothing, or a sample gives other outputs. Code of the
    bundle is not run.
    """
    facts = selftest_facts(bundle, provider, threads, seconds)
    if as_json:
        emit_json(facts)
    elif verbosity >= 0:
        for part in selftest_parts(facts):
            show(part)


def selftest_facts(
    bundle: Path, provider: str, threads: int, seconds: float
) -> dict[str, Any]:
    """The JSON form."""
    from ...frontends.onnx_file import load
    from ...runtime.bundles import checked_model, opened, selftest
    from ...runtime.hardware import hardware

    with opened(bundle) as folder:
        # ONNX Runtime gets no file that the loader would refuse
        load(checked_model(folder))
        facts = selftest(folder, provider, threads, seconds)
    facts["hardware"] = hardware(None).to_json()
    return facts


def selftest_parts(facts: dict[str, Any]) -> list[Any]:
    """One table of models, one of outputs, and nodes on other providers."""
    from ..console import markup_safe
    from ..tables import decibels, measured_on, milliseconds, plain_table

    times = ("load", "cold start", "latency")
    models = plain_table(None, "model", "nodes", *times, right=times)
    columns = ("off by", "SQNR dB")
    outputs = plain_table(None, "model", "sample", "output", *columns, right=columns)
    others: list[str] = []
    for model in facts["models"]:
        file = markup_safe(model["file"])
        nodes = [f"{name} {len(own)}" for name, own in model["nodes"].items()]
        models.add_row(
            file,
            ", ".join(nodes),
            milliseconds(model["load_ms"]),
            milliseconds(model["cold_start_ms"]),
            milliseconds(model["latency_ms"]),
        )
        for own in model["samples"]:
            error = own.get("max_abs", own.get("unequal"))
            outputs.add_row(
                file,
                str(own["sample"]),
                markup_safe(own["output"]),
                f"{error:.3g}",
                decibels(own["sqnr_db"]) if "sqnr_db" in own else "",
            )
        for name, own in model["nodes"].items():
            if name != facts["provider"]:
                others.append(markup_safe(f"on {name}: {', '.join(own)}"))
    told = (
        f"{facts['files']} files as packaged; onnxruntime {facts['onnxruntime']}, "
        f"{facts['provider']}"
    )
    label = facts["hardware"]["label"]
    return [told, models, outputs, *others, measured_on(label), "self-test passed"]
