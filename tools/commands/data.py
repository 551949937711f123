"""`onnx-opt data init FOLDER`: the preprocessing file of a folder of images."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import emit_json, say, shared_options


@click.group("data")
def command() -> None:
    """Prepare data for --data."""


@command.command("init")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--preset",
    metavar="NAME",
    default="imagenet",
    show_default=True,
    help="Preprocessing to start from; --list names them.",
)
@click.option("--list", "is_list", is_flag=True, help="Print the presets and end.")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@shared_options
def init(
    folder: Path,
    preset: str,
    is_list: bool,
    force: bool,
    as_json: bool,
    verbosity: int,
) -> None:
    """Write FOLDER/preprocess.toml: how its images become the input."""
    from ...runtime.presets import PRESETS

    if is_list:
        if as_json:
            emit_json(PRESETS)
            return
        for name, text in PRESETS.items():
            click.echo(f"{name}:")
            for line in text.splitlines():
                click.echo(f"    {line}")
        return
    path = _written(folder, preset, force)
    if as_json:
        emit_json({"path": str(path), "preset": preset})
        return
    if verbosity >= 0:
        for line in PRESETS[preset].splitlines():
            say(f"    {line}")
        say("adapt it to the model, then: onnx-opt MODEL --data " + str(folder))
    click.echo(str(path))


def _written(folder: Path, preset: str, force: bool) -> Path:
    """Write the file; its path. Errors: UsageError, RefusedError for an existing file."""
    from ... import RefusedError, UsageError
    from ...passes._core.nearest import did_you_mean
    from ...runtime.presets import PRESETS, SPEC

    if preset not in PRESETS:
        fix = did_you_mean(preset, PRESETS, f"the presets are {', '.join(PRESETS)}")
        raise UsageError("--preset", f"'{preset}' is not known", fix)
    if not folder.is_dir():
        raise RefusedError(
            str(folder), "no such folder", "give the folder of the images"
        )
    path = folder / SPEC
    if path.exists() and not force:
        raise UsageError(
            str(path), "is there already", "edit it, or pass --force to write over it"
        )
    path.write_text(PRESETS[preset], encoding="utf-8")
    return path
