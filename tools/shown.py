"""Accounts of runs and of searches as the commands show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .console import command_line, emit_json, say

if TYPE_CHECKING:
    from ._run.result import RunAccount
    from ._tune.trial import RecipeTrial
    from .result import Result

SHOWN_LOSSES = 20
"""Layers in the table of losses, unless -v asks for all."""


def show_result(result: Result, as_json: bool, verbosity: int) -> None:
    """Tables, warnings and the path of what was written, or JSON.

    Nothing in a process that leaves the writing to another.
    """
    from ._run.context import is_main_process

    if not is_main_process():
        return
    if as_json:
        emit_json(result.as_dict())
        return
    show_account(result, verbosity)
    if result.output_path:
        # alone on stdout, so that a script can read it
        click.echo(result.output_path)
    else:
        say("dry run: nothing was written")


def show_account(result: RunAccount, verbosity: int) -> None:
    """Tables and warnings, on stderr."""
    if verbosity >= 0:
        from .console import show
        from .tables import result_tables

        for table in result_tables(result, verbosity):
            show(table, stderr=True)
    say_warnings(result.warnings)


def say_warnings(warnings: list[str]) -> None:
    """A line each, on stderr."""
    for warning in warnings:
        say(f"warning: {warning}")


def show_losses(
    losses: list[dict[str, Any]] | None, passes: tuple[str, ...], verbosity: int
) -> None:
    """The worst layers, if losses were asked for, and the command that spares the worst one."""
    if not losses:
        return
    from ..passes._core.pipeline import as_pipeline
    from ._run.explain_loss import next_pipeline
    from .console import show
    from .optimize import DEFAULT_PASSES
    from .tables import loss_table

    most = None if verbosity > 0 else SHOWN_LOSSES
    show(loss_table(losses, most), stderr=True)
    pipeline = as_pipeline(list(passes) or DEFAULT_PASSES)
    following = next_pipeline(pipeline, losses)
    if following is not None:
        # all that was given holds for the next run, too
        again = command_line(click.get_current_context(), passes=str(following))
        say(f"next: {again}")


def tell_trial(trial: RecipeTrial) -> None:
    """One line for each trial."""
    if trial.failure:
        say(f"trial: {trial.failure}")
        return
    words = [f"{trial.bytes:,} bytes"]
    if trial.ratio is not None:
        words.append(f"{trial.ratio:.2f} of the time")
    if trial.drop is not None:
        words.append(f"drop {trial.drop:.4f}")
    if trial.sqnr_db is not None:
        words.append(f"{trial.sqnr_db:.1f} dB")
    words.append(f"{trial.seconds:.0f} s")
    say(f"trial: {', '.join(words)}")


def show_search(search: dict[str, Any]) -> None:
    """The front as a table, the recipe and both halves of the data."""
    from .console import show
    from .tables import front_table, passed_over_table, split_table

    show(front_table(search), stderr=True)
    passed_over = passed_over_table(search)
    if passed_over is not None:
        show(passed_over, stderr=True)
    show(split_table(search), stderr=True)
    say(f"recipe: {search['recipe']}")
