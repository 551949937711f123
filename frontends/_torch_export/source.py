"""What was given as a torch model: a module, a program, a file, a folder; and what cannot be one,
with the reason.
"""

from __future__ import annotations

import contextlib
import os
import pickletools
import traceback
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ... import RefusedError, UsageError
from .capture import plain_attention, quiet

_EXPORT_FUNCTION = (
    "write a function that returns (module, args), and export file.py:function"
)


@dataclass
class Source:
    """A callable torch model with example arguments; `program` where it was exported by torch
    already.
    """

    where: str
    name: str
    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    program: Any = None
    dynamic_shapes: Any = None
    warnings: list[str] = field(default_factory=list)


def opened(
    model: Any, args: Any, kwargs: Mapping[str, Any] | None, where: str
) -> Source:
    """Errors: RefusedError for what holds no graph or is not safe to read, UsageError for missing
    arguments.
    """
    if isinstance(model, (str, os.PathLike)):
        return _from_path(Path(model), args, kwargs)
    if isinstance(model, torch.export.ExportedProgram):
        return _from_program(model, args, kwargs, where or "exported program")
    where = where or type(model).__name__
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
    if args is None and not kwargs:
        raise UsageError(
            "args",
            "missing: torch.export runs the module once on example arguments",
            "give a tuple of tensors of the sizes that the model takes",
        )
    return Source(where, type(model).__name__, model, as_args(args), dict(kwargs or {}))


def as_args(args: Any) -> tuple[Any, ...]:
    """Arguments as a tuple; a bare tensor is one argument."""
    if args is None:
        return ()
    return tuple(args) if isinstance(args, (tuple, list)) else (args,)


def called(source: Source, args: Any = None, kwargs: Any = None) -> Any:
    """What the module returns. Errors: RefusedError with the user's line."""
    args = source.args if args is None else args
    kwargs = source.kwargs if kwargs is None else kwargs
    try:
        with quiet(), plain_attention():
            return source.module(*_copies(args), **_copies(kwargs))
    except Exception as error:
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if not f.filename.startswith((str(Path(torch.__file__).parent), "<"))
            and f.filename != __file__
        ]
        place = (
            f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"
            if frames
            else ""
        )
        first = (str(error).splitlines() or [""])[0]
        raise RefusedError(
            source.where,
            f"torch itself fails on the arguments: {type(error).__name__}: {first[:300]}"
            f"{place}",
            "give arguments that the module runs on",
        ) from error


def _copies(values: Any) -> Any:
    """Arguments that forward may write into."""
    return torch.utils._pytree.tree_map(
        lambda v: v.clone() if isinstance(v, torch.Tensor) else v, values
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
        where, "main_graph", module, as_args(args), dict(kwargs or {}), program
    )


def _from_path(path: Path, args: Any, kwargs: Mapping[str, Any] | None) -> Source:
    where = str(path)
    if path.is_dir():
        from . import hugging_face

        source = hugging_face.opened(path)
        return (
            source
            if args is None and not kwargs
            else Source(
                where,
                source.name,
                source.module,
                as_args(args),
                dict(kwargs or {}),
                None,
                source.dynamic_shapes,
            )
        )
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
        first = (str(error).splitlines() or [""])[0]
        raise RefusedError(
            where,
            f"torch.export.load cannot read it: {first[:300]}",
            "save it again with torch.export.save, by the same version of torch",
        ) from error
    return _from_program(program, args, kwargs, where)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """A .pt2 may hold pickles: only tensors are taken from them."""
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


def refuse_other_files(path: Path) -> None:
    """Refuse a file that is not an exported program, for what it is."""
    where, head = str(path), head_of(path)
    if path.suffix == ".onnx":
        raise RefusedError(where, "is an ONNX model already", f"onnx-opt {path.name}")
    if path.suffix == ".safetensors":
        raise _state_dict(where)
    if not zipfile.is_zipfile(path):
        if head[:1] == b"\x80":
            raise RefusedError(
                where,
                "is a pickle of an old torch.save, which may run any code when it is read",
                f"{_EXPORT_FUNCTION}; inside it load the weights with torch.load(…, "
                "weights_only=True)",
            )
        raise RefusedError(where, "is not a .pt2 file", _EXPORT_FUNCTION)
    if is_torchscript(path):
        raise RefusedError(
            where,
            "is a TorchScript file, which torch.export cannot trace",
            _EXPORT_FUNCTION,
        )
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
        if "data.pkl" in names:
            pickle = next(
                name
                for name in archive.namelist()
                if name.partition("/")[2] == "data.pkl"
            )
            if holds_only_tensors(archive.read(pickle)):
                raise _state_dict(where)
            raise RefusedError(
                where,
                "is a pickled module: reading it can run any code, and it fits one version of "
                "the module's source only",
                _EXPORT_FUNCTION,
            )


def _state_dict(where: str) -> RefusedError:
    return RefusedError(
        where,
        "is a checkpoint: weights without a graph",
        f"{_EXPORT_FUNCTION}, with --state-dict {Path(where).name}; or put it onto an ONNX graph: "
        f"onnx-opt export --onto GRAPH.onnx --state-dict {Path(where).name} -o OUT.onnx",
    )


def holds_only_tensors(pickle: bytes) -> bool:
    """Whether a pickle names nothing beyond what torch.load(weights_only=True) takes; it is not
    executed.
    """
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "GLOBAL":
                if not _harmless(str(argument).split(" ")[0]):
                    return False
            elif opcode.name == "STACK_GLOBAL":
                if len(strings) < 2 or not _harmless(strings[-2]):
                    return False
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:
        return False
    return True


def _harmless(module: str) -> bool:
    return module in (
        "torch",
        "torch._utils",
        "torch._tensor",
        "torch.storage",
        "collections",
        "builtins",
        "__builtin__",
        "torch.serialization",
        "numpy",
        "_codecs",
        "numpy.core.multiarray",
        "numpy._core.multiarray",
    )


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive with TorchScript code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(
        name.partition("/")[2] == "constants.pkl" or "/code/__torch__" in name
        for name in names
    )


def head_of(path: Path) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(8)
