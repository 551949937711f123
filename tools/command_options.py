"""Options that several commands have: each is declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ._config.command import TARGET_NAME

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_FORMS = ".npz, .npy, .csv, .parquet, .txt, .jsonl, a folder, or module:callable"


def _joined(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> str | list[str] | None:
    """Data as `open_feeds` takes it: None, one place, or several that are joined."""
    if not values:
        return None
    return values[0] if len(values) == 1 else list(values)


def data_option(use: str, required: bool = False) -> Decorator:
    """`--data`, of which several are joined; `use`: what it is for."""
    return click.option(
        "--data",
        metavar="DATA",
        multiple=True,
        required=required,
        callback=_joined,
        help=f"{use}: {_FORMS}; several are joined.",
    )


EVAL_DATA = click.option(
    "--eval-data",
    metavar="DATA",
    multiple=True,
    callback=_joined,
    help="Labelled data for --metric. Default: --data.",
)


def metric_option(required: bool = False) -> Decorator:
    """`--metric`, by name or as a function."""
    return click.option(
        "--metric",
        metavar="METRIC",
        required=required,
        help="top1, top5, spearman, perplexity, generation, module:callable or file.py:callable.",
    )


MAX_BYTES = click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Budget of a search: most bytes of the file and its weights.",
)

MAX_LATENCY = click.option(
    "--max-latency-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="T",
    help="Budget of a search: most milliseconds of a run on the first batch, on this machine.",
)

MAX_DROP = click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    help="Write nothing if the metric drops by more than this.",
)

MIN_SQNR = click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Write nothing if the outputs' signal-to-noise ratio to the original's is lower (dB).",
)

FLOOR = click.option(
    "--floor",
    metavar="TEXT",
    help="Least that a lossy result keeps, unless --force: 3 (dB), 50% (of rows whose largest "
    "output stays), both with a comma, or none. Default: 50% of classes, 3 dB of all else.",
)

VERIFY = click.option(
    "--verify",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Run the models to compare them; auto: if the weights take at most 1 GiB.",
)

NO_PACK = click.option(
    "--no-pack",
    is_flag=True,
    help="Do not store constants in fewer bytes at the end of a lossy pipeline (pass pack).",
)

METRIC_OUTPUT = click.option(
    "--metric-output",
    metavar="NAME",
    help="Output that the metric scores. Default: the first.",
)

TARGET = click.option(
    "--target",
    type=TARGET_NAME,
    default="cpu",
    show_default=True,
    help="What the result will run on. cpu: any CPU, with the same results on all. cpu-vnni, "
    "arm64: weights use all 8 bits, which loses accuracy on x86-64 without VNNI. cuda, tensorrt: "
    "NVIDIA GPUs. openvino, web, qnn, coreml: those runtimes (onnx-opt docs targets). generic: any "
    "other.",
)

SHAPE = click.option(
    "--shape",
    "shapes",
    metavar="NAME=DIMS",
    multiple=True,
    help="Fix the dims of an input, such as x=1,3,224,224; ? leaves one as it is. May be repeated.",
)

PROVIDER = click.option(
    "--provider", default="cpu", show_default=True, help="cpu, cuda or tensorrt."
)

THREADS = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    help="Threads of ONNX Runtime; 0: its default.",
)


def seed_option(use: str) -> Decorator:
    """`--seed`; `use`: what is drawn by it."""
    return click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help=f"Seed of {use}.",
    )


NO_CACHE = click.option(
    "--no-cache",
    is_flag=True,
    help="Compute metrics anew, also of models that were scored before.",
)

CACHE_IN = click.option(
    "--cache",
    "cache_in",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Keep results here, and take those of earlier runs on the same model, recipe and data; "
    "not with --no-cache.",
)

CACHE_SIZE = click.option(
    "--cache-size",
    "cache_mb",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    metavar="MB",
    help="Results that are kept, at most: those used last.",
)

REPORT = click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="R.html",
    help="Write a page of everything that was measured; it needs no network.",
)

HTML = click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="R.html",
    help="Write a page with the graph to walk through; it needs no network.",
)

LAYERS = click.option(
    "--layers",
    is_flag=True,
    help="Add a table of layers to --json: bytes, bits, zeros, histograms (part of --report).",
)

RESUME = click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Keep the state of training here, and go on from what an interrupted run left.",
)

FORCE = click.option(
    "--force",
    is_flag=True,
    help="Write even over the input itself, and a result that is below --floor.",
)
