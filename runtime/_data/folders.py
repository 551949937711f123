"""Batches from folders: ONNX `test_data_set_*`, and images with a preprocessing spec."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError
from .images import SPEC, ImageFolder


def open_folder(path: Path, names: list[str]) -> Callable[[], Iterator[Any]]:
    """The batches of a folder, whichever kind it is. Errors: RefusedError for an unknown or empty
    one.
    """
    sets = sorted(path.glob("test_data_set_*"), key=_number)
    if not sets and path.name.startswith("test_data_set_"):
        sets = [path]
    if sets:
        return lambda: (_test_data(folder, names) for folder in sets)
    if (path / SPEC).is_file():
        folder = ImageFolder.open(path)
        return lambda: folder.batches(names)
    raise RefusedError(
        f"data {path}",
        f"has neither test_data_set_* folders nor images with a {SPEC}",
        f"put a {SPEC} beside the images (docs: data), or give an .npz file",
    )


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"(\d+)$", path.name)
    return (int(digits[1]) if digits else -1, path.name)


def _test_data(folder: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """One data set: input_0.pb … in the order of the model's inputs, or by the name inside the
    tensor.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import numpy_helper

    files = sorted(folder.glob("input_*.pb"), key=lambda p: _number(p.with_suffix("")))
    if not files:
        raise RefusedError(
            f"data {folder}",
            "holds no input_0.pb",
            "give the folder that holds test_data_set_*",
        )
    feeds: dict[str, NDArray[Any]] = {}
    for index, file in enumerate(files):
        tensor = onnx.TensorProto()
        try:
            tensor.ParseFromString(file.read_bytes())
            array = np.asarray(numpy_helper.to_array(tensor))
        except (DecodeError, ValueError, TypeError) as error:
            raise RefusedError(
                f"data {file}",
                f"is not a tensor: {error}",
                "write it with onnx.numpy_helper",
            ) from error
        positional = names[index] if index < len(names) else f"input_{index}"
        feeds[tensor.name if tensor.name in names else positional] = array
    return feeds
