"""Everything that is asked of each model, and the key under which a result is found again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from ... import UsageError, __version__
from ...runtime.data_files import data_files
from ...runtime.hardware import hardware
from .._run.provenance import sha256_of

PACKAGE = Path(__file__).resolve().parents[2]
LAYERS = ("passes", "runtime", "frontends", "tools")

_WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnx", "onnx_ir", "numpy", "torch")
"""Packages that results depend on."""

_FOREIGN = re.compile(r"(^|,)\s*[A-Za-z_]\w*\.")
"""A pass of another package, by its dotted name: nothing tells whether its code has changed."""


@dataclass(frozen=True)
class Recipe:
    """Options of the main job that all models of a batch share."""

    passes: tuple[str, ...] = ()
    target: str = "cpu"
    data: Any = None
    seed: int = 0
    min_sqnr: float | None = None
    threads: int = 0
    bench: bool = True
    strict: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        parts = self.data if isinstance(self.data, (list, tuple)) else [self.data]
        for part in parts:
            if not isinstance(part, (str, Path, type(None))):
                raise UsageError(
                    "data",
                    f"a {type(part).__name__} cannot go to the processes of a batch",
                    "give a path, or module:callable",
                )

    def words(self) -> list[str]:
        """The options as words of the command line."""
        words = []
        for text in self.passes:
            words += ["--passes", text]
        parts = self.data if isinstance(self.data, (list, tuple)) else [self.data]
        for part in parts:
            if part is not None:
                words += ["--data", str(part)]
        words += ["--target", self.target, "--seed", str(self.seed)]
        words += ["--threads", str(self.threads)]
        if self.min_sqnr is not None:
            words += ["--min-sqnr", str(self.min_sqnr)]
        flags = {
            "--no-bench": not self.bench,
            "--strict": self.strict,
            "--force": self.force,
        }
        return words + [flag for flag, is_set in flags.items() if is_set]

    @property
    def why_not_kept(self) -> str | None:
        """Reason why results cannot be found again; None where they can."""
        if self._data_files is None:
            return "nothing tells whether data that code makes has changed"
        if any(_FOREIGN.search(text) for text in self.passes):
            return "nothing tells whether a pass of another package has changed"
        return None

    def key(self, model: Path) -> str:
        """Key of the result of a model file: same key, same result."""
        content = {"model": sha256_of(model), **self._content}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _data_files(self) -> list[list[str]] | None:
        """Names and digests of the files of the data; None where there are none to compare."""
        if self.data is None:
            return []
        files = data_files(self.data)
        if files is None:
            return None
        return [[file.name, sha256_of(file.path)] for file in files]

    @cached_property
    def _content(self) -> dict[str, Any]:
        """Everything besides the model that a result depends on."""
        options = replace(self, data=None)
        return {
            "options": options.words(),
            "files": self._named_files(),
            "data": self._data_files,
            "program": _program(),
            "cpu": hardware(None).label,
        }

    def _named_files(self) -> list[str]:
        """Digests of files that the passes name: a recipe, a table of layers."""
        names = re.findall(r"[^\s,=()\[\]\"'@:]+", " ".join(self.passes))
        return [sha256_of(Path(name)) for name in names if Path(name).is_file()]


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
