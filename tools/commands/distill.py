"""`onnx-opt distill TEACHER STUDENT`: train a smaller graph to give the outputs of a larger one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..command_options import (
    EVAL_DATA,
    FORCE,
    LAYERS,
    NO_CACHE,
    REPORT,
    RESUME,
    TARGET,
    THREADS,
    data_option,
    metric_option,
    seed_option,
)
from ..console import Progress, shared_options
from ..shown import show_result

if TYPE_CHECKING:
    from ...passes._core.pipeline import Pipeline


@click.command("distill")
@click.argument("teacher", type=click.Path(path_type=Path))
@click.argument("student", type=click.Path(path_type=Path))
@data_option("Data to learn from, with labels or without", required=True)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Where to write. Default: STUDENT's stem + .opt.onnx.",
)
@click.option(
    "--recipe",
    default="",
    metavar="TEXT",
    help="Options of the pass finetune, e.g. 'minutes=20, temperature=4, flip=true, shift=4'.",
)
@click.option(
    "--init",
    is_flag=True,
    help="Start from random weights instead of those of STUDENT.",
)
@EVAL_DATA
@metric_option()
@NO_CACHE
@TARGET
@seed_option("everything random")
@THREADS
@LAYERS
@REPORT
@RESUME
@FORCE
@shared_options
def command(
    teacher: Path,
    student: Path,
    out: Path | None,
    recipe: str,
    init: bool,
    no_cache: bool,
    as_json: bool,
    verbosity: int,
    **options: Any,
) -> None:
    """Train STUDENT to give the outputs of TEACHER.

    Labels are not needed. The best state of the training is written, if ONNX Runtime finds it
    better than STUDENT on data held out.
    """
    from ..optimize import default_output, optimize

    passes = as_pass(recipe)
    model: Any = student
    # in memory, since the student's own file must stay as it is
    if init:
        model = initialized(student, options["seed"])
    result = optimize(
        model,
        passes,
        out=out or default_output(student),
        teacher=teacher,
        bench=False,
        cache=not no_cache,
        progress=Progress(verbosity - as_json),
        **options,
    )
    show_result(result, as_json, verbosity)


def as_pass(recipe: str) -> Pipeline:
    """The pass `finetune` with these options, for a student unless they name another preset.

    Errors: UsageError.
    """
    import dataclasses

    from ...passes._core.pipeline import Pipeline, parse
    from ...passes.finetune import Finetune

    (chosen,) = parse(f"finetune({recipe})" if recipe.strip() else "finetune").passes
    assert isinstance(chosen, Finetune)
    # auto would choose recover or qad, which mend a copy of the teacher
    if chosen.preset == "auto":
        chosen = dataclasses.replace(chosen, preset="student")
    return Pipeline((chosen,))


def initialized(student: Path, seed: int) -> Any:
    """The graph with random weights.

    Errors: UsageError without torch, RefusedError for a file that does not load.
    """
    from ...frontends.onnx_file import load
    from ...frontends.training.initialize import initialize
    from ...passes._core.normalize import normalize
    from ...passes.unpack import restore_packed

    model = load(student)
    normalize(model)
    restore_packed(model)
    initialize(model, seed)
    return model
