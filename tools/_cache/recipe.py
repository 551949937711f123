"""Everything that is asked of each model, and the key under which a result is found again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from ... import UsageError, __version__
from ...runtime.data_files import data_files
from ...runtime.hardware import hardware
from .._run.command import OPTIONS
from .._run.provenance import sha256_of
from .._run.settings import Verify

PACKAGE = Path(__file__).resolve().parents[2]
LAYERS = ("passes", "runtime", "frontends", "tools")

_WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnx", "onnx_ir", "numpy", "torch")
"""Packages that results depend on."""

_FOREIGN = re.compile(r"(^|,)\s*[A-Za-z_]\w*\.")
"""A pass of another package, by its dotted name: nothing tells whether its code has changed."""


@dataclass(frozen=True)
class Recipe:
    """Options of the main job that results of models depend on."""

    passes: tuple[str, ...] = ()
    target: str = "cpu"
    shapes: tuple[str, ...] = ()
    data: Any = None
    eval_data: Any = None
    metric: str | None = None
    metric_output: str | None = None
    max_drop: float | None = None
    min_sqnr: float | None = None
    floor: str | None = None
    seed: int = 0
    threads: int = 0
    verify: Verify = "auto"
    bench: bool = True
    pack: bool = True
    metric_each: bool = False
    zipped: bool = False
    explain_loss: bool = False
    layers: bool = False
    strict: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "eval_data", "metric"):
            for part in _parts(getattr(self, name)):
                if not isinstance(part, (str, Path)):
                    raise UsageError(
                        name,
                        f"a {type(part).__name__} cannot go to the processes of a batch",
                        "give a path, or module:callable",
                    )

    @classmethod
    def of_options(cls, passes: tuple[str, ...], options: dict[str, Any]) -> Recipe:
        """The recipe of a command line of the main job."""
        taken: dict[str, Any] = {"passes": passes}
        for field in fields(cls):
            if field.name in options:
                taken[field.name] = options[field.name]
        for name in ("bench", "pack"):
            taken[name] = not options[f"no_{name}"]
        return cls(**taken)

    def words(self) -> list[str]:
        """The options as words of the command line, those at their defaults left out."""
        # the file of options was read for all models at once
        words = ["--config", "none"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            option = OPTIONS.get(field.name, f"--{field.name}")
            # a flag says the opposite of the default, whichever that is
            if isinstance(value, bool):
                words.append(option)
                continue
            for part in _parts(value):
                words += [option, str(part)]
        return words

    @property
    def why_not_kept(self) -> str | None:
        """Reason why results cannot be found again; None where they can."""
        if self._data_files is None:
            return "nothing tells whether data that code makes has changed"
        if self.metric is not None and ":" in self.metric:
            return "nothing tells whether a metric of your own has changed"
        if any(_FOREIGN.search(text) for text in self.passes):
            return "nothing tells whether a pass of another package has changed"
        return None

    def key(self, model: Path) -> str:
        """Key of the result of a model file: same key, same result."""
        content = dict(self._content)
        content["model"] = sha256_of(model)
        text = json.dumps(content, sort_keys=True)
        digest = hashlib.sha256(text.encode())
        return digest.hexdigest()

    @cached_property
    def _data_files(self) -> list[list[list[str]]] | None:
        """Names and digests of files of data and labels; None where none are to compare."""
        found = []
        for data in (self.data, self.eval_data):
            files = [] if data is None else data_files(data)
            if files is None:
                return None
            found.append([[file.name, sha256_of(file.path)] for file in files])
        return found

    @cached_property
    def _content(self) -> dict[str, Any]:
        """Everything besides the model that a result depends on."""
        options = replace(self, data=None, eval_data=None)
        return {
            "options": options.words(),
            "files": self._named_files(),
            "data": self._data_files,
            "program": _program(),
            "cpu": hardware(None).label,
        }

    def _named_files(self) -> list[str]:
        """Digests of files that the passes name: a recipe, a table of layers."""
        text = " ".join(self.passes)
        names = re.findall(r"[^\s,=()\[\]\"'@:]+", text)
        found = []
        for name in names:
            path = Path(name)
            if path.is_file():
                digest = sha256_of(path)
                found.append(digest)
        return found


def _parts(value: Any) -> list[Any]:
    """The values of an option: several, one or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _program() -> dict[str, Any]:
    """Versions of the packages, and a digest of this one's source, which may be a checkout."""
    versions = {}
    for name in _WHEELS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    digest = hashlib.sha256()
    for layer in LAYERS:
        for file in sorted((PACKAGE / layer).rglob("*.py")):
            digest.update(file.read_bytes())
    return {"onnx-opt": __version__, "source": digest.hexdigest(), **versions}
