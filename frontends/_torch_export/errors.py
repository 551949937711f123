"""Errors of torch's exporter in two lines: the cause with the user's line of code, and the cure."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ... import RefusedError

Finding = tuple[str, str]
"""Problem and fix, as RefusedError takes them."""

_FOREIGN_PARTS = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[1]),
    "<",
    "contextlib.py",
    "/onnxscript/",
)
"""Parts of the names of files that no user wrote: torch, this package, generated code."""

_FOREIGN_ENDS = ("/traceback.py", "/functools.py", "/inspect.py", "/cli.py")


def as_refusal(error: BaseException, where: str) -> RefusedError:
    """An exception of torch.export, or of the translation to ONNX, as an error of this project."""
    chain = list(_chain(error))
    for cause in chain:
        for rule in _RULES:
            found = rule(str(cause))
            if found is not None:
                return RefusedError(where, found[0] + _place(chain), found[1])
    innermost = chain[-1]
    message = str(innermost).strip().partition("\n")[0].strip()
    return RefusedError(
        where,
        f"torch.export fails: {type(innermost).__name__}: {message[:300]}{_place(chain)}",
        "change that line to tensor operations that torch.export can trace",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those behind it, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _place(chain: list[BaseException]) -> str:
    """` at file:line: code`, the user's innermost frame; empty where there is none."""
    for error in reversed(chain):
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if not _is_users(frame):
                continue
            if frame.line and not _calls_the_exporter(frame.line):
                return f" at {frame.filename}:{frame.lineno}: {frame.line.strip()}"
    # torch prints the frames of traced code into its messages instead
    for error in chain:
        place = user_line(str(error))
        if place:
            return place
    return ""


def _is_users(frame: traceback.FrameSummary) -> bool:
    if frame.name == "_torch_call" or frame.filename.endswith(_FOREIGN_ENDS):
        return False
    return not any(part in frame.filename for part in _FOREIGN_PARTS)


def user_line(text: str | None) -> str:
    """` at file:line: code`, from a traceback in text."""
    match = re.search(r'File "([^"]+)", line (\d+)', text or "")
    if match is None:
        return ""
    line = linecache.getline(match[1], int(match[2])).strip()
    return f" at {match[1]}:{match[2]}" + (f": {line}" if line else "")


def _calls_the_exporter(line: str) -> bool:
    # the user's call of this frontend is no line of the model
    calls = ("from_torch(", "export_torch(", "invoke(", "main(")
    return any(call in line for call in calls)


def _data_dependent(text: str) -> Finding | None:
    if (
        "data-dependent" not in text
        and "DataDependent" not in text
        and "to concretize a" not in text
    ):
        return None
    if "integer" in text or "symint" in text or "int(" in text:
        return (
            "a size or a number depends on the values of a tensor",
            "compute it from shapes, or keep it a tensor instead of int(), .item() or .tolist()",
        )
    return (
        "control flow depends on the values of a tensor",
        "replace the `if` by torch.where or torch.cond, or decide outside of forward",
    )


def _fixed_dim(text: str) -> Finding | None:
    # two parts of torch find it, each in words of its own
    constraint = re.search(
        r"marked L\['(?P<name>.+?)'\](?P<more>\S*?)\.size\(\)\[(?P<axis>\d+)\] as dynamic "
        r".*?constant \((?P<size>\d+)\)",
        text,
    )
    specialization = re.search(
        r"inferred a static shape of (?P<size>\d+) for dimension inputs\['(?P<name>.+?)'\]"
        r"(?P<more>\S*?)\.shape\[(?P<axis>\d+)\]",
        text,
    )
    match = constraint or specialization
    if match is None:
        return None
    name = match["name"] + match["more"]
    axis = match["axis"]
    size = match["size"]
    return (
        f"axis {axis} of input '{name}' cannot be dynamic: the model works for size {size} only",
        f"leave {name}:{axis} out of the dynamic axes, or make forward independent of that size",
    )


def _related_dims(text: str) -> Finding | None:
    match = re.search(r"Suggested fixes:\s*\n((?:[ \t]*\S.*\n?)+)", text)
    if match is None:
        return None
    fixes = "; ".join(line.strip() for line in match[1].splitlines() if "=" in line)
    return (
        "its dynamic sizes depend on one another or are bounded",
        f"declare what torch.export found: {fixes}",
    )


def _keys(text: str) -> Finding | None:
    match = re.search(
        r"top-level keys must be the arg names (\[.*?\]) of `inputs`, but here they are (\[.*?\])",
        text,
    )
    if match is None:
        return None
    return (
        f"dynamic_shapes names {match[2]}",
        f"name the arguments of forward: {match[1]}",
    )


def _no_onnx(text: str) -> Finding | None:
    match = re.search(
        r"No ONNX function found for <OpOverload\(op='([\w.:]+)', overload='(\w+)'\)>",
        text,
    )
    name = f"{match[1]}.{match[2]}" if match is not None else None
    if name is None:
        # whatever is called but is no OpOverload
        other = re.search(r"No ONNX function found for (\S+)", text)
        name = other[1].rstrip(".,") if other is not None else None
    if not name:
        return None
    return (
        f"torch has no ONNX form of '{name}'",
        "write that part of forward with other operations",
    )


def _missing_argument(text: str) -> Finding | None:
    match = re.search(r"missing a required argument: '(\w+)'", text)
    if match is None:
        return None
    return (
        f"forward needs an argument '{match[1]}' that was not given",
        "give it in args or kwargs",
    )


def _numpy(text: str) -> Finding | None:
    if ".numpy() is not supported" not in text:
        return None
    return ("forward leaves torch (.numpy())", "compute with torch operations only")


def _scripted(text: str) -> Finding | None:
    if "ScriptModule" not in text and "ScriptFunction" not in text:
        return None
    return (
        "contains TorchScript, which torch.export cannot trace",
        "use the module that was scripted, as Python code",
    )


_RULES: tuple[Callable[[str], Finding | None], ...] = (
    # the particular before the general: the first that knows a message explains it
    _fixed_dim,
    _related_dims,
    _keys,
    _missing_argument,
    _numpy,
    _no_onnx,
    _scripted,
    _data_dependent,
)
