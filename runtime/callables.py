"""User functions named as text: `module:callable` and `file.py:callable`, and their failures as one
clear line.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import OnnxOptError, RefusedError, UsageError


def load_callable(text: str, where: str) -> Callable[..., Any]:
    """The function that `module:name` or `file.py:name` names.

    Errors: UsageError when the text has no such form or the name is not there, RefusedError when
    its module fails.
    """
    source, _, name = text.rpartition(":")
    if not source or not name:
        raise UsageError(
            f"{where} {text}",
            "is not of the form module:callable",
            "write file.py:function",
        )
    module = (
        _load_file(Path(source), text)
        if source.endswith(".py")
        else _load_module(source, text)
    )
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if function is None:
        near = difflib.get_close_matches(
            name, [n for n in vars(module) if not n.startswith("_")], 1
        )
        raise UsageError(
            f"{where} {text}",
            f"{source} has no '{name}'",
            f"did you mean '{near[0]}'?"
            if near
            else f"define a function '{name}' in {source}",
        )
    if not callable(function):
        raise UsageError(
            f"{where} {text}",
            f"'{name}' is a {type(function).__name__}, not a function",
            "name a function that yields batches",
        )
    checked: Callable[..., Any] = function
    return checked


def _load_file(path: Path, text: str) -> ModuleType:
    if not path.is_file():
        raise RefusedError(
            text,
            f"no such file: {path}",
            "give the path of a Python file, then ':' and a function's name",
        )
    spec = importlib.util.spec_from_file_location(f"_onnx_opt_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise failure(text, error) from error
    return module


def _load_module(name: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise RefusedError(
                text,
                f"no module named '{error.name}'",
                "install it, set PYTHONPATH, or name the file: path/to/file.py:function",
            ) from None
        raise failure(text, error) from error
    except Exception as error:
        raise failure(text, error) from error


def user_code(function: Callable[[], Iterable[Any]], text: str) -> Iterator[Any]:
    """Call a user's function and iterate what it returns; its exceptions become RefusedError with
    file and line.
    """
    try:
        iterator = iter(function())
    except OnnxOptError:
        raise
    except Exception as error:
        raise failure(text, error) from error
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except OnnxOptError:
            raise
        except Exception as error:
            raise failure(text, error) from error
        yield item


def failure(text: str, error: Exception) -> RefusedError:
    """An exception of user code as ours: what, and the file and line where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(str(Path(__file__).parent))]
    place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    if isinstance(error, SyntaxError):
        place = f" at {error.filename}:{error.lineno}"
    first = (str(error).splitlines() or [""])[0]
    return RefusedError(
        text,
        f"{type(error).__name__}{': ' + first if first else ''}{place}",
        "correct that function",
    )
