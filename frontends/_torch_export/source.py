"""A torch model that is ready to export, with the arguments of one call."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ... import RefusedError
from .capture import plain_attention, quiet


@dataclass
class Source:
    """A callable torch model with example arguments.

    `program`: the ExportedProgram where torch exported it already. `dynamic_shapes`: the axes that
    are dynamic unless the caller names others.
    """

    where: str
    name: str
    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    program: Any = None
    dynamic_shapes: Any = None
    warnings: list[str] = field(default_factory=list)


def as_args(args: Any) -> tuple[Any, ...]:
    """Arguments as a tuple; a bare tensor is one argument."""
    if args is None:
        return ()
    if isinstance(args, (tuple, list)):
        return tuple(args)
    return (args,)


def call_module(source: Source, args: Any = None, kwargs: Any = None) -> Any:
    """Run the module on copies of the arguments, by default on the source's own.

    Errors: RefusedError with the user's line of code.
    """
    args = source.args if args is None else args
    kwargs = source.kwargs if kwargs is None else kwargs
    try:
        with quiet(), plain_attention():
            return source.module(*_copies(args), **_copies(kwargs))
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        raise RefusedError(
            source.where,
            f"torch itself fails on the arguments: {type(error).__name__}: "
            f"{message[:300]}{_users_place(error)}",
            "give arguments that the module runs on",
        ) from error


def _users_place(error: Exception) -> str:
    """` at file:line: code` of the innermost frame that is not torch's; empty without one."""
    # "<" begins the file names of generated code, such as <string>
    foreign = (str(Path(torch.__file__).parent), "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == __file__ or frame.filename.startswith(foreign):
            continue
        return f" at {frame.filename}:{frame.lineno}: {frame.line}"
    return ""


def _copies(values: Any) -> Any:
    """Nested arguments with every tensor cloned: forward may write into its inputs."""

    def clone(value: Any) -> Any:
        return value.clone() if isinstance(value, torch.Tensor) else value

    return pytree.tree_map(clone, values)
