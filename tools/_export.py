"""The driver of `export`: a source to an ONNX file that agrees with torch, or weights onto a graph
that is there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import CheckError, OnnxOptError, RefusedError, UsageError, __version__
from ..frontends.from_torch import Exported, export_torch, require_torch
from ..frontends.onnx_file import load, save
from ..frontends.state_dicts import Loaded, load_into_module, load_state_dict
from ..runtime.callables import failure, load_callable
from ..runtime.session import open_session
from ..runtime.worker import Worker
from ._run.provenance import PREFIX

if TYPE_CHECKING:
    import onnx_ir as ir

OPTIONS = (
    "kwargs",
    "dynamic_shapes",
    "dynamic_axes",
    "input_names",
    "output_names",
    "opset",
)
RETURNS = "return (module, args) or (module, args, {'kwargs': …, 'dynamic_shapes': …})"


@dataclass
class Request:
    """What the command line asks for."""

    source: str
    out: Path
    opset: int = 21
    dynamic: Sequence[str] = ()
    input_names: Sequence[str] = ()
    output_names: Sequence[str] = ()
    state_dict: Path | None = None
    partial: bool = False
    verify: bool = True
    atol: float | None = None
    rtol: float | None = None
    given_opset: bool = False
    state: list[str] = field(default_factory=list)


def export(request: Request) -> tuple[Exported, list[Path]]:
    """Export, write atomically, and compare with torch before the file takes its name."""
    require_torch()
    model, args, options = _source(request)
    if request.state_dict is not None:
        request.state = load_into_module(model, request.state_dict, request.partial)
    exported = export_torch(
        model, args, cases=request.verify, where=_label(request), **options
    )
    stamp(exported.model, "exported_from", _label(request))

    def check(path: Path) -> None:
        if request.verify:
            exported.check(
                lambda feeds: _run(path, exported, feeds), request.atol, request.rtol
            )

    return exported, save(exported.model, request.out, check=check)


def onto(
    graph: Path, state_dict: Path, out: Path, partial: bool
) -> tuple[Loaded, list[Path]]:
    """A state dict onto the weights of an ONNX graph, written to `out`."""
    model = load(graph)
    loaded = load_state_dict(model, state_dict, partial=partial)
    stamp(model, "weights_from", state_dict.name)

    def check(path: Path) -> None:
        with Worker() as worker:
            open_session(worker, path)

    return loaded, save(model, out, check=check)


def stamp(model: ir.Model, key: str, value: str) -> None:
    """Record in the file where it comes from."""
    model.metadata_props[f"{PREFIX}version"] = __version__
    model.metadata_props[f"{PREFIX}{key}"] = value


def _label(request: Request) -> str:
    """The source without the folders of this machine."""
    path, colon, name = request.source.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(path).name}:{name}"
    return request.source if colon else Path(request.source).resolve().name


def _run(
    path: Path, exported: Exported, feeds: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    names = [value.name for value in exported.model.graph.inputs]
    with Worker() as worker:
        try:
            session = open_session(worker, path)
            return [
                session.run({name: batch[name] for name in names if name})
                for batch in feeds
            ]
        except OnnxOptError as error:
            raise CheckError(
                exported.where,
                f"the exported graph does not run: {error.problem.strip()[:400]}",
                "try another --opset, or export with --no-verify and look into it",
            ) from error


def _source(request: Request) -> tuple[Any, Any, dict[str, Any]]:
    """The model, its arguments and the options for them; the command line's win over the
    callable's.
    """
    text = request.source
    options: dict[str, Any] = {
        "opset": request.opset,
        "input_names": request.input_names,
        "output_names": request.output_names,
    }
    model: Any = Path(text)
    args: Any = None
    if ":" in text and not model.exists():
        model, args, more = _called(text)
        if request.given_opset:
            more.pop("opset", None)
        options.update(
            {
                key: value
                for key, value in more.items()
                if not options.get(key) or key == "opset"
            }
        )
    if request.dynamic:
        options["dynamic_shapes"] = dynamic_axes(request.dynamic)
        options.pop("dynamic_axes", None)
    return model, args, options


def _called(text: str) -> tuple[Any, Any, dict[str, Any]]:
    """What the user's callable returns, in parts. Errors: RefusedError for anything else."""
    try:
        function: Callable[[], Any] = load_callable(text, "export")
    except UsageError as error:
        if "not a function" not in error.problem:
            raise
        raise UsageError(
            error.where, error.problem, f"name a function; let it {RETURNS}"
        ) from error
    if hasattr(function, "forward") or inspect.isclass(function):
        kind = "a class" if inspect.isclass(function) else "a module"
        raise RefusedError(
            text, f"is {kind}, not a function", f"write a function; let it {RETURNS}"
        )
    if any(
        p.default is p.empty and p.kind != p.VAR_POSITIONAL and p.kind != p.VAR_KEYWORD
        for p in inspect.signature(function).parameters.values()
    ):
        raise RefusedError(
            text,
            "takes arguments, and is called without any",
            f"wrap it; let the wrapper {RETURNS}",
        )
    try:
        returned = function()
    except OnnxOptError:
        raise
    except Exception as error:
        raise failure(text, error) from error
    if (
        isinstance(returned, tuple)
        and len(returned) in (2, 3)
        and hasattr(returned[0], "forward")
    ):
        module, args, *rest = returned
        more = rest[0] if rest else {}
        if isinstance(more, Mapping):
            if not set(more) <= set(OPTIONS):  # the keyword arguments themselves
                more = {"kwargs": more}
            if isinstance(args, Mapping):  # arguments by name
                return (
                    module,
                    (),
                    {**more, "kwargs": {**args, **more.get("kwargs", {})}},
                )
            return module, args, dict(more)
    if hasattr(returned, "graph_signature"):
        return returned, None, {}
    kind = type(returned).__name__
    if hasattr(returned, "forward"):
        kind = "only a module"
    elif isinstance(returned, Mapping):
        kind = "a dict: weights have no graph"
    elif isinstance(returned, tuple):
        kind = "a tuple of " + ", ".join(type(item).__name__ for item in returned)
    raise RefusedError(
        text, f"returned {kind}", f"{RETURNS}, args being example inputs"
    )


def dynamic_axes(texts: Sequence[str]) -> dict[str, dict[int, str]]:
    """`x:0=batch` to {"x": {0: "batch"}}. Errors: UsageError."""
    found: dict[str, dict[int, str]] = {}
    for text in texts:
        place, equals, dim = text.partition("=")
        name, colon, axis = place.rpartition(":")
        number = axis.removeprefix("-")
        if (
            not (equals and colon and name and number.isdigit())
            or not dim.isidentifier()
        ):
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
