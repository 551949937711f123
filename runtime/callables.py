"""User functions named as text, `module:callable` or `file.py:callable`.

Their failures become one clear line.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import OnnxOptError, RefusedError, UsageError
from ..passes._core.nearest import did_you_mean


def load_callable(text: str, where: str) -> Callable[..., Any]:
    """Load the function that `module:name` or `file.py:name` names; `where` says what it is for.

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
    if source.endswith(".py"):
        module = _load_file(Path(source), text)
    else:
        module = _load_module(source, text)
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if function is None:
        public = [other for other in vars(module) if not other.startswith("_")]
        fix = did_you_mean(name, public, f"define a function '{name}' in {source}")
        raise UsageError(f"{where} {text}", f"{source} has no '{name}'", fix)
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
    # dataclasses and pickle look their module up
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise failure(text, error) from error
    return module


def _load_module(name: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # else a module that the user's own one imports is missing
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
    """Call a user's function and iterate over its result.

    Errors: RefusedError, with file and line, for any exception of it.
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
    """Make a RefusedError of user code's exception, with the file and line that raised it."""
    problem = type(error).__name__
    first = (str(error).splitlines() or [""])[0]
    if first:
        problem += f": {first}"
    return RefusedError(text, problem + _place(error), "correct that function")


def _place(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        # raised by the import, not in the file that holds it
        return f" at {error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    folder = str(Path(__file__).parent)
    theirs = [frame for frame in frames if not frame.filename.startswith(folder)]
    if not theirs:
        return ""
    return f" at {theirs[-1].filename}:{theirs[-1].lineno}"
