"""Modules, exported programs, .pt2 files and Hugging Face folders as one kind of source.

What cannot be exported is refused with the reason.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ... import RefusedError, UsageError
from .capture import quiet
from .file_kinds import refuse_other_files
from .hugging_face import open_folder
from .source import Source, as_args


def open_source(
    model: Any, args: Any, kwargs: Mapping[str, Any] | None, where: str
) -> Source:
    """A source from whatever was given as a model.

    Errors: RefusedError for what holds no graph or is not safe to read, UsageError for missing
    arguments.
    """
    if isinstance(model, (str, os.PathLike)):
        return _from_path(Path(model), args, kwargs)
    if isinstance(model, torch.export.ExportedProgram):
        return _from_program(model, args, kwargs, where or "exported program")
    where = where or type(model).__name__
    _refuse_other_objects(model, where)
    if args is None and not kwargs:
        raise UsageError(
            "args",
            "missing: torch.export runs the module once on example arguments",
            "give a tuple of tensors of the sizes that the model takes",
        )
    return Source(
        where,
        type(model).__name__,
        model,
        as_args(args),
        dict(kwargs or {}),
    )


def _refuse_other_objects(model: Any, where: str) -> None:
    # ScriptModule is a subclass of nn.Module, so it is asked for first
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise RefusedError(
            where,
            "is TorchScript, which torch.export cannot trace",
            "give the nn.Module that it was scripted or traced from",
        )
    if isinstance(model, Mapping):
        raise RefusedError(
            where,
            "is a state dict: weights without a graph",
            "load it into the module (module.load_state_dict) and export that, or "
            "put it onto an ONNX "
            "graph: onnx-opt export --onto GRAPH.onnx --state-dict FILE",
        )
    if not isinstance(model, torch.nn.Module):
        kind = "a class" if isinstance(model, type) else f"a {type(model).__name__}"
        raise RefusedError(
            where,
            f"is {kind}, not a torch.nn.Module",
            "give an instance of nn.Module, or a .pt2 file",
        )


def _from_program(
    program: Any, args: Any, kwargs: Mapping[str, Any] | None, where: str
) -> Source:
    if args is None and not kwargs:
        if program.example_inputs is None:
            raise UsageError(
                "args",
                "missing: this exported program carries no example inputs",
                "give a tuple of tensors of the sizes that the model takes",
            )
        args, kwargs = program.example_inputs
    with quiet():
        module = program.module()
    return Source(
        where,
        "main_graph",
        module,
        as_args(args),
        dict(kwargs or {}),
        program,
    )


def _from_path(path: Path, args: Any, kwargs: Mapping[str, Any] | None) -> Source:
    where = str(path)
    if path.is_dir():
        source = open_folder(path)
        if args is None and not kwargs:
            return source
        return replace(source, args=as_args(args), kwargs=dict(kwargs or {}))
    if not path.is_file():
        raise RefusedError(
            where,
            "no such file or folder",
            "give a .pt2 file, a folder or file.py:function",
        )
    refuse_other_files(path)
    try:
        with quiet(), _weights_only():
            program = torch.export.load(path)
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        raise RefusedError(
            where,
            f"torch.export.load cannot read it: {message[:300]}",
            "save it again with torch.export.save, by the same version of torch",
        ) from error
    return _from_program(program, args, kwargs, where)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Take nothing but tensors from the pickles that a .pt2 may hold."""
    # torch.export.load has no argument for it: only the environment reaches its torch.load
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    former = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if former is None:
            del os.environ[key]
        else:
            os.environ[key] = former
