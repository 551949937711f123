"""Files that belong to a model besides it: preprocessing, labels, tokenizer, licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import RefusedError
from ...passes._core import toml
from ...runtime.data_files import companions
from .request import PackageRequest

PREPROCESS = "preprocess.toml"
LABELS = "labels.txt"
TOKENIZER = "tokenizer.json"
LICENCE = "LICENSE.model"


def extra_files(request: PackageRequest) -> dict[str, Path]:
    """Files by their names in the bundle: those given, else those that lie with the data.

    Errors: RefusedError for one that was given and is not there.
    """
    beside = companions(request.data, request.folder)
    chosen = {
        PREPROCESS: request.preprocess or beside.preprocess,
        LABELS: request.labels or beside.classes,
        TOKENIZER: request.tokenizer or beside.tokenizer,
        LICENCE: request.licence,
    }
    files = {name: path for name, path in chosen.items() if path is not None}
    for name, path in files.items():
        if not path.is_file():
            raise RefusedError(str(path), "no such file", f"give the path of {name}")
    return files


def preprocessing(files: dict[str, Path]) -> dict[str, Any] | None:
    """The manifest's entry of preprocess.toml; None without one.

    Errors: RefusedError for a file that is no TOML.
    """
    if PREPROCESS not in files:
        return None
    path = files[PREPROCESS]
    try:
        settings = toml.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RefusedError(
            str(path), f"is no TOML: {error}", "onnx-opt data init FOLDER writes one"
        ) from error
    return {"file": PREPROCESS, "settings": settings}
