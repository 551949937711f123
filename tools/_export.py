"""The driver of `export`: torch to an ONNX file that agrees with it, or weights onto a graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import CheckError, OnnxOptError, RefusedError, UsageError
from ..frontends.from_torch import Exported, export_torch, require_torch
from ..frontends.onnx_file import load, save
from ..frontends.state_dicts import Loaded, load_into_module, load_state_dict
from ..runtime.callables import failure, load_callable
from ..runtime.session import open_session
from ..runtime.worker import Worker
from ._run.provenance import stamp_source

DEFAULT_OPSET = 21
"""Opset of exports, unless another is asked for. Chosen by hand."""

OPTIONS = (
    "kwargs",
    "dynamic_shapes",
    "dynamic_axes",
    "input_names",
    "output_names",
    "opset",
)
"""Options that a function may return beside the model and its arguments."""

RETURNS = "return (module, args) or (module, args, {'kwargs': …, 'dynamic_shapes': …})"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Everything that the command line asks for; `opset` None: the callable's, or 21."""

    source: str
    out: Path
    opset: int | None = None
    dynamic: Sequence[str] = ()
    input_names: Sequence[str] = ()
    output_names: Sequence[str] = ()
    state_dict: Path | None = None
    partial: bool = False
    verify: bool = True
    atol: float | None = None
    rtol: float | None = None


def export(request: ExportRequest) -> tuple[Exported, list[Path], list[str]]:
    """Export, write atomically, and compare with torch before the file takes its name.

    Returns the model, the files written, and warnings about the state dict.
    """
    require_torch()
    model, args, options = _source(request)
    state_warnings: list[str] = []
    if request.state_dict is not None:
        state_warnings = load_into_module(model, request.state_dict, request.partial)
    label = _label(request.source)
    exported = export_torch(
        model,
        args,
        cases=request.verify,
        where=label,
        **options,
    )
    stamp_source(exported.model, "exported_from", label)

    def check(path: Path) -> None:
        def run(feeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
            return _outputs(path, exported, feeds)

        if request.verify:
            exported.check(run, request.atol, request.rtol)

    files = save(exported.model, request.out, check=check)
    return exported, files, state_warnings


def onto(
    graph: Path, state_dict: Path, out: Path, partial: bool
) -> tuple[Loaded, list[Path]]:
    """A state dict onto the weights of an ONNX graph, written to `out`."""
    model = load(graph)
    loaded = load_state_dict(model, state_dict, partial=partial)
    stamp_source(model, "weights_from", state_dict.name)

    def check(path: Path) -> None:
        # a file that ONNX Runtime does not open does not take its name
        with Worker() as worker:
            open_session(worker, path)

    return loaded, save(model, out, check=check)


def _label(source: str) -> str:
    """Text of the source without the folders of this machine: it is written into the file."""
    path, colon, name = source.rpartition(":")
    if not colon:
        return Path(source).resolve().name
    if path.endswith(".py"):
        return f"{Path(path).name}:{name}"
    return source


def _outputs(
    path: Path, exported: Exported, batches: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Outputs of the written file in ONNX Runtime. Errors: CheckError where it does not run."""
    names = [value.name for value in exported.model.graph.inputs if value.name]
    with Worker() as worker:
        try:
            session = open_session(worker, path)
            return [
                session.run({name: feeds[name] for name in names}) for feeds in batches
            ]
        except OnnxOptError as error:
            raise CheckError(
                exported.where,
                f"the exported graph does not run: {error.problem.strip()[:400]}",
                "try another --opset, or export with --no-verify and look into it",
            ) from error


# the source


def _source(request: ExportRequest) -> tuple[Any, Any, dict[str, Any]]:
    """The model, its arguments and the options for them.

    The command line's options win over the callable's.
    """
    text = request.source
    options: dict[str, Any] = {
        "opset": request.opset or DEFAULT_OPSET,
        "input_names": request.input_names,
        "output_names": request.output_names,
    }
    model: Any = Path(text)
    args: Any = None
    # a file may have a colon in its name
    if ":" in text and not model.exists():
        model, args, more = _call(text)
        if request.opset is not None:
            more.pop("opset", None)
        for key, value in more.items():
            if key == "opset" or not options.get(key):
                options[key] = value
    if request.dynamic:
        options["dynamic_shapes"] = dynamic_axes(request.dynamic)
        options.pop("dynamic_axes", None)
    return model, args, options


def _call(text: str) -> tuple[Any, Any, dict[str, Any]]:
    """Call the user's function; the model, its arguments and options that it returns.

    Errors: RefusedError for anything else.
    """
    function = _callable_without_arguments(text)
    try:
        returned = function()
    except OnnxOptError:
        raise
    except Exception as error:
        raise failure(text, error) from error
    found = _in_parts(returned)
    if found is None:
        raise RefusedError(
            text,
            f"returned {_kind_of(returned)}",
            f"{RETURNS}, args being example inputs",
        )
    return found


def _callable_without_arguments(text: str) -> Callable[[], Any]:
    try:
        function: Callable[[], Any] = load_callable(text, "export")
    except UsageError as error:
        if "not a function" not in error.problem:
            raise
        raise UsageError(
            error.where, error.problem, f"name a function; let it {RETURNS}"
        ) from error
    # both can be called, but what they return is no model
    if hasattr(function, "forward") or inspect.isclass(function):
        kind = "a class" if inspect.isclass(function) else "a module"
        raise RefusedError(
            text, f"is {kind}, not a function", f"write a function; let it {RETURNS}"
        )
    if any(map(_is_required, inspect.signature(function).parameters.values())):
        raise RefusedError(
            text,
            "takes arguments, and is called without any",
            f"wrap it; let the wrapper {RETURNS}",
        )
    return function


def _is_required(parameter: inspect.Parameter) -> bool:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    return parameter.default is parameter.empty


def _in_parts(returned: Any) -> tuple[Any, Any, dict[str, Any]] | None:
    """Model, arguments and options of what a function returned; None if it has no such form."""
    if _is_model_and_arguments(returned):
        module, args, *rest = returned
        more = rest[0] if rest else {}
        if isinstance(more, Mapping):
            options = dict(more)
            # no option among them: these are the keyword arguments themselves
            if not set(more) <= set(OPTIONS):
                options = {"kwargs": more}
            # arguments by name
            if isinstance(args, Mapping):
                options["kwargs"] = {**args, **options.get("kwargs", {})}
                args = ()
            return module, args, options
    # a program that torch.export made has its arguments with it
    if hasattr(returned, "graph_signature"):
        return returned, None, {}
    return None


def _is_model_and_arguments(returned: Any) -> bool:
    if not isinstance(returned, tuple) or len(returned) not in (2, 3):
        return False
    return hasattr(returned[0], "forward")


def _kind_of(returned: Any) -> str:
    if hasattr(returned, "forward"):
        return "only a module"
    if isinstance(returned, Mapping):
        return "a dict: weights have no graph"
    if isinstance(returned, tuple):
        kinds = [type(item).__name__ for item in returned]
        return f"a tuple of {', '.join(kinds)}"
    return type(returned).__name__


def dynamic_axes(texts: Sequence[str]) -> dict[str, dict[int, str]]:
    """`x:0=batch` to {"x": {0: "batch"}}. Errors: UsageError."""
    found: dict[str, dict[int, str]] = {}
    for text in texts:
        place, equals, dim = text.partition("=")
        name, colon, axis = place.rpartition(":")
        has_parts = bool(equals and colon and name)
        is_axis = axis.removeprefix("-").isdigit()
        if not has_parts or not is_axis or not dim.isidentifier():
            raise UsageError(
                "--dynamic",
                f"'{text}' is not of the form NAME:AXIS=DIM",
                "--dynamic x:0=batch",
            )
        if found.setdefault(name, {}).setdefault(int(axis), dim) != dim:
            raise UsageError(
                "--dynamic", f"axis {axis} of '{name}' has two names", "give one"
            )
    return found
